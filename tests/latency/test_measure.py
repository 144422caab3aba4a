"""Timing in turns."""

import time

import numpy as np
import pytest

from jmpq.journal import Journal
from jmpq.latency.measure import Timings, host, measure_networks, time_call


def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_a_call_that_computes_takes_processor_time_and_one_that_sleeps_does_not():
    cpu, wall = time_call(lambda: spin(2e-3), seconds=0.0)
    assert 2e-3 <= cpu <= wall + 1e-3
    cpu, wall = time_call(lambda: time.sleep(2e-3), seconds=0.0)
    assert cpu < 1e-3
    assert wall >= 2e-3


def test_every_round_opens_every_network_once_in_an_order_of_its_own():
    opened, told = [], []

    def start(number):
        opened.append(number)
        return lambda: None

    timings = measure_networks(
        start, 7, rounds=3, seconds_per_round=0.0, progress=lambda *at: told.append(at)
    )
    rounds = np.array(opened).reshape(3, 7)
    np.testing.assert_array_equal(np.sort(rounds, axis=1), np.tile(np.arange(7), (3, 1)))
    assert len({tuple(row) for row in rounds.tolist()}) == 3
    assert timings.cpu_s.shape == timings.wall_s.shape == (7, 3)
    assert told[-1] == (21, 21)


def test_what_was_timed_is_not_timed_again(tmp_path):
    path, opened = tmp_path / "kept.journal", []

    def start(number):
        opened.append(number)
        if len(opened) == 5:
            raise KeyboardInterrupt
        return lambda: None

    def measured():
        return measure_networks(
            start,
            3,
            rounds=2,
            seconds_per_round=0.0,
            journal=Journal(path, "of"),
            keys=["a", "b", "c"],
        )

    with pytest.raises(KeyboardInterrupt):
        measured()
    timings = measured()
    assert len(opened) == 5 + 2  # four were kept
    again = measured()
    assert len(opened) == 7
    np.testing.assert_array_equal(again.cpu_s, timings.cpu_s)


def test_the_least_disturbed_round_counts_and_halves_tell_how_well_it_repeats():
    rounds = np.array([[3.0, 4.0, 9.0, 5.0], [1.0, 1.0, 1.0, 1.0]])
    timings = Timings(cpu_s=rounds, wall_s=2 * rounds)
    np.testing.assert_array_equal(timings.seconds("cpu"), [3, 1])
    np.testing.assert_array_equal(timings.seconds("wall"), [6, 2])
    # of rounds 0 and 2, and of rounds 1 and 3: 3 and 4, 1 and 1
    assert timings.repeatability("cpu") == pytest.approx((1 / 3.5 + 0) / 2)
    assert np.isnan(Timings(cpu_s=rounds[:, :1], wall_s=rounds[:, :1]).repeatability("cpu"))


def test_the_host_is_described():
    assert {"processor", "cores", "load"} <= set(host())
