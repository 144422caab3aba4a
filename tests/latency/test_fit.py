"""Design and fit: made-up times of whole networks are found again."""

import itertools

import numpy as np
import pytest

from jmpq.allocation import Allocation
from jmpq.formats import UNQUANTIZED, Choice
from jmpq.latency.design import (
    Terms,
    designed_networks,
    draw_networks,
    is_integer,
    kernel_of,
    kernels_of,
)
from jmpq.latency.fit import LatencyModel, fit_latency, mean_relative_error

W8A8 = Choice(8, 8)


def chain(layers, kernels=(UNQUANTIZED, W8A8)):
    """A chain with a branch: layer 0 also feeds layer 2."""
    edges = [(i, i + 1) for i in range(layers - 1)] + [(0, 2)]
    return Terms(
        layers=tuple(f"l{i}" for i in range(layers)), kernels=kernels, edges=np.array(edges)
    )


def made_up(terms, seed=0):
    rng = np.random.default_rng(seed)
    shape = (len(terms.layers), len(terms.kernels))
    gains = rng.uniform(-0.6, 0.2, shape)
    gains[:, 0] = 0
    borders = rng.uniform(0.1, 0.3, len(terms.edges))
    return LatencyModel(terms=terms, unquantized=10.0, gains=gains, borders=borders)


def every(terms):
    return np.array(
        list(itertools.product(range(len(terms.kernels)), repeat=len(terms.layers)))
    )


def test_choices_share_the_kernels_that_run_them():
    choices = [Choice(w, a) for w in (1, 2, 8) for a in (8, 3, 32)] + [Choice(32, 8)]
    labels = [kernel_of(c).label for c in choices]
    assert labels == ["W8A8", "W8A4", "W8"] * 3 + ["W32A8"]
    assert [is_integer(kernel_of(c)) for c in choices] == [True, True, False] * 3 + [False]
    assert kernel_of(Choice(9, 12)) == Choice(16, 16)
    assert kernels_of([Choice(2, 8), W8A8]) == (UNQUANTIZED, W8A8)


def test_the_time_of_a_network_is_the_sum_of_its_terms():
    terms = chain(3)
    model = made_up(terms)
    got = model.predict(np.array([[0, 0, 0], [1, 0, 1], [1, 1, 1]]))
    gains, borders = model.gains[:, 1], model.borders
    want = [10, 10 + gains[0] + gains[2] + borders[0] + borders[1], 10 + gains.sum()]
    np.testing.assert_allclose(got, want, rtol=1e-15)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_fit_predicts_networks_that_it_did_not_see(seed):
    """Exact times: with as many networks as terms almost exactly, with fewer closely."""
    terms = chain(8)
    truth, networks = made_up(terms, seed), every(terms)
    count = 3 * terms.of_layers
    fitted = designed_networks(terms, count, seed=seed)
    model = fit_latency(terms, fitted, truth.predict(fitted))
    assert mean_relative_error(model.predict(networks), truth.predict(networks)) < 5e-3
    few = designed_networks(terms, terms.of_layers + 3, seed=seed)
    model = fit_latency(terms, few, truth.predict(few))
    assert mean_relative_error(model.predict(networks), truth.predict(networks)) < 3e-2


def test_noise_of_measurements_is_averaged():
    terms = chain(8)
    truth, networks = made_up(terms), every(terms)
    rng = np.random.default_rng(0)
    fitted = designed_networks(terms, 80)
    noisy = truth.predict(fitted) * rng.normal(1, 0.03, len(fitted))
    model = fit_latency(terms, fitted, noisy)
    assert mean_relative_error(model.predict(networks), truth.predict(networks)) < 0.02


def test_several_kernels_are_told_apart():
    terms = chain(5, (UNQUANTIZED, Choice(8), W8A8))
    truth, networks = made_up(terms), every(terms)
    fitted = designed_networks(terms, 40)
    model = fit_latency(terms, fitted, truth.predict(fitted))
    assert mean_relative_error(model.predict(networks), truth.predict(networks)) < 5e-3


def test_a_border_never_saves_time():
    terms = chain(4)
    seconds = made_up(terms)
    odd = LatencyModel(
        terms=terms, unquantized=10.0, gains=seconds.gains, borders=-seconds.borders
    )
    networks = every(terms)
    assert (fit_latency(terms, networks, odd.predict(networks)).borders >= 0).all()


def test_a_design_tells_more_than_random_networks():
    terms = chain(10)
    designed = designed_networks(terms, 30)
    assert (designed[0] == 0).all()
    assert (designed[1] == 1).all()
    assert len(np.unique(designed, axis=0)) == 30
    rng = np.random.default_rng(0)
    drawn = [draw_networks(terms, 30, rng) for _ in range(5)]
    tells = [
        np.linalg.slogdet(rows.T @ rows + 1e-3 * np.eye(rows.shape[1]))[1]
        for rows in map(terms.rows, [designed, *drawn])
    ]
    assert tells[0] > max(tells[1:])
    with pytest.raises(
        ValueError, match=r"11 networks cannot tell 11 terms of layers.*least 12"
    ):
        designed_networks(terms, 11)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_sum_over_layers_is_never_below_the_model(seed):
    """Exact without float neighbours; around an allocation, exact there."""
    terms = chain(6)
    model, networks = made_up(terms, seed), every(chain(6))
    want = model.predict(networks)

    def sums(table):
        each = table.array(terms.layers, terms.kernels)
        return table.fixed + each[np.arange(6), networks].sum(axis=1)

    got = sums(model.table((W8A8,)))
    floats = networks[:, terms.edges] == 0
    alone = ~floats.all(axis=2).any(axis=1)
    np.testing.assert_allclose(got[alone], want[alone], rtol=1e-12)
    assert (got[~alone] > want[~alone]).all()
    for row in (0, 5, 40):
        around = sums(model.table((W8A8,), around=networks[row]))
        assert around[row] == pytest.approx(want[row], rel=1e-12)
        seen = sums(model.table((W8A8,), around=networks[row], measured=1.25 * want[row]))
        np.testing.assert_allclose(seen, around + 0.25 * want[row], rtol=1e-12)
        assert (around >= want * (1 - 1e-12)).all()


def test_a_choice_takes_the_seconds_of_its_kernel():
    terms = chain(3)
    model = made_up(terms)
    table = model.table((Choice(2, 8), Choice(4, 8), W8A8))
    for row in table.seconds.values():
        assert row[Choice(2, 8)] == row[Choice(4, 8)] == row[W8A8]
        assert min(row.values()) == 0
    assert table.unquantized == 10
    two = Allocation({"l0": Choice(2, 8), "l2": W8A8})
    np.testing.assert_array_equal(model.columns([two]), [[1, 0, 1]])
    with pytest.raises(ValueError, match="'l1' takes W8: expected one of W32, W8A8"):
        model.columns([Allocation({"l1": Choice(4)})])
    with pytest.raises(
        ValueError, match="No network with W8A16 was measured, only with W32, W"
    ):
        model.table((W8A8, Choice(8, 16)))
