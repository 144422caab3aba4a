"""Outputs of every shape: all metrics against dense formulas, positions with unequal masks."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.allocation import Allocation
from jmpq.data.positions import reference_logits
from jmpq.deploy.measure import Evaluator
from jmpq.formats import choice_grid
from jmpq.network.network import Network
from jmpq.network.piecewise import ends_in_softmax
from jmpq.quantizers.calibrate import calibrate_weights
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import KernelSpec
from jmpq.sensitivity.analyse import analyse
from jmpq.sensitivity.logits.composed import Composed
from jmpq.sensitivity.logits.measure import measure_superposed
from jmpq.sensitivity.logits.superposed import Superposed
from jmpq.sensitivity.metrics.by_name import MetricName, make_metric
from jmpq.sensitivity.metrics.hawq_eigenvalue import EigenSearch, HawqEigenvalue, QBert
from jmpq.sensitivity.metrics.hawq_trace import HawqTrace
from jmpq.sensitivity.metrics.measured_moves import MeasuredMoves
from jmpq.sensitivity.metrics.output_fisher import OutputFisher
from jmpq.sensitivity.metrics.path_attribution import PathAttribution
from jmpq.sensitivity.metrics.squared_error import SquaredError
from jmpq.sensitivity.metrics.taylor import (
    EmpiricalFisher,
    ExactHessian,
    FirstOrder,
    GaussNewton,
)
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.training.losses import kl_divergence, squared_error
from tests.sensitivity import outputs
from tests.sensitivity.outputs import MASKED, SEGMENTS, Subject

CHOICES = choice_grid((*outputs.W_BITS, 32), (*outputs.A_BITS, 32))
KEY = jax.random.key(0)
SEARCH = EigenSearch(tolerance=1e-13, max_products=400)
TARGETS = np.random.default_rng(5).normal(size=(3, 3))
SUBJECTS = {
    "text": lambda: Subject(outputs.text, MASKED),
    "pixels": lambda: Subject(outputs.pixels, SEGMENTS, act=jax.nn.relu),
    "words": lambda: Subject(outputs.words, np.array([0, 11, 4])),
    "number": lambda: Subject(outputs.number, TARGETS[0], squared_error),
    "numbers": lambda: Subject(outputs.numbers, TARGETS, squared_error, jax.nn.relu),
    "reverse": lambda: Subject(outputs.text, MASKED, act=outputs.reverse_softplus),
}


LESS = [pytest.param(name, marks=pytest.mark.slow) for name in SUBJECTS if name != "text"]


@pytest.fixture(scope="module", params=["text", *LESS])
def subject(request):
    return SUBJECTS[request.param]()


def terms(subject, metric):
    got = metric(subject.moves, subject.inputs, jnp.asarray(subject.labels), KEY)
    return np.asarray(got.first), np.asarray(got.second)


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-11)


def test_taylor_metrics(subject):
    s, loss = subject, subject.loss
    slopes = jax.jacrev(s.example_losses)(s.point) @ s.deltas.T
    first, second = terms(s, FirstOrder(loss=loss))
    close(first, slopes.mean(0))
    close(second, 0)
    close(terms(s, EmpiricalFisher(loss=loss))[1], slopes.T @ slopes / len(slopes))
    along = lambda e: s.mean_loss(s.point + e @ s.deltas)  # noqa: E731
    zero = jnp.zeros(len(s.deltas))
    hessian = jax.jacfwd(jax.grad(along)) if s.act is not jax.nn.relu else jax.hessian(along)
    first, second = terms(s, ExactHessian(loss=loss, micro_batch=2))
    close(first, slopes.mean(0))
    close(second, hessian(zero))


def gauss_newton(subject, changes):
    curved = np.einsum("noe,nop,npf->ef", changes, subject.output_curvature, changes)
    return curved / len(changes)


def test_gauss_newton_in_both_modes_and_by_difference(subject):
    s = subject
    jacobian = jax.jacrev(lambda e: s.outputs(s.point + e @ s.deltas))(jnp.zeros(len(s.deltas)))
    jacobian = np.asarray(jacobian).reshape(len(s.labels), -1, len(s.deltas))
    close(terms(s, GaussNewton(loss=s.loss))[1], gauss_newton(s, jacobian))
    z, pull = s.moves.pullback(s.inputs)
    seeds = jnp.eye(z[0].size)[:, None].repeat(len(z), 1).reshape(-1, *z.shape)
    close(np.moveaxis(jax.vmap(pull)(seeds), 0, 1), jacobian)
    if s.act is not outputs.reverse_softplus:
        forward = np.moveaxis(s.moves._pushforward(s.inputs), 0, -1)
        close(forward.reshape(jacobian.shape), jacobian)
    moved = [s.outputs(s.point + delta) - s.outputs(s.point) for delta in s.deltas]
    changes = np.stack(moved, -1).reshape(jacobian.shape)
    close(terms(s, GaussNewton(changes="difference", loss=s.loss))[1], gauss_newton(s, changes))


def layer_and_kind(subject, move):
    return [layer.name for layer in subject.network.layers].index(move.layer), "wa".index(
        move.kind
    )


def test_output_fisher_and_squared_error(subject):
    s = subject
    gradients = np.asarray(jax.jacrev(s.example_losses)(s.point))
    fisher, norms = [], []
    for move, delta in zip(s.moves.moves, s.deltas, strict=True):
        layer, kind = layer_and_kind(s, move)
        kernels, shifts, _ = s.unravel(s.point + delta)
        float_kernels, zero, _ = s.unravel(s.point)
        at = s.block_of(2, layer)

        def output(kernels, shifts, layer=layer):
            found = []

            def put(i, x, op):
                x = s.seen[i] + shifts[i] if s.has_input[i] else s.seen[i]
                found.append(op(x, kernels[i]))
                return found[-1]

            s.layers(put, s.inputs)
            return found[layer]

        change = np.asarray(output(kernels, shifts) - output(float_kernels, zero))
        own = gradients[:, at].reshape(len(s.labels), *change.shape)
        fisher.append(np.square(own * change[None]).sum() / len(s.labels))
        norms.append(2 * np.square(delta).sum() / (len(s.labels) if kind else 1))
    close(terms(s, OutputFisher(loss=s.loss))[1], fisher)
    close(terms(s, SquaredError())[1], norms)


def test_traces_and_eigenvalues(subject):
    s = subject
    if s.act is outputs.reverse_softplus:
        hessian = np.asarray(jax.jacrev(jax.jacrev(s.example_losses))(s.point))
    else:
        hessian = np.asarray(jax.jacfwd(jax.jacrev(s.example_losses))(s.point))
    traces, eigenvalues = [], []
    for move, delta in zip(s.moves.moves, s.deltas, strict=True):
        layer, part = layer_and_kind(s, move)
        at, count = s.block_of(part, layer), len(s.labels)
        block = hessian[:, at][:, :, at]
        if part == 0:
            mean, size = block.mean(0), len(at)
            values = np.linalg.eigvalsh(mean)
            eigenvalues.append(values[abs(values).argmax()] * np.square(delta).sum())
        else:  # each example has a block of its own, the rest is zero
            size = len(at) // count
            own = block.reshape(count, count, size, count, size)
            values = np.linalg.eigvalsh(np.stack([own[n, n, :, n] for n in range(count)]))
            largest = np.take_along_axis(values, abs(values).argmax(1)[:, None], 1)[:, 0]
            norms = np.square(delta[at].reshape(count, -1)).sum(1)
            eigenvalues.append((largest * norms).mean())
        mean_norm = np.square(delta).sum() / (count if part else 1)
        trace = np.trace(block.mean(0)) / size
        traces.append(trace * mean_norm)
    for metric in (
        HawqEigenvalue(search=SEARCH, loss=s.loss),
        QBert(search=SEARCH, loss=s.loss),
    ):
        np.testing.assert_allclose(terms(s, metric)[1], eigenvalues, rtol=1e-4, atol=1e-9)
    if s.act is jax.nn.relu:
        close(terms(s, HawqTrace(traces="exact", loss=s.loss))[1], traces)
    metric = HawqTrace(traces="probes", loss=s.loss)
    probe = jax.vmap(lambda key: metric.sample(s.moves, s.inputs, jnp.asarray(s.labels), key))
    drawn = np.asarray(probe(jax.random.split(KEY, 400)))
    error = drawn.std(0, ddof=1) / 20
    assert np.all(abs(drawn.mean(0) - traces) < 5 * error + 1e-9)


@pytest.mark.parametrize("kind", ["loss", "kl"])
def test_measured_moves_and_composed_logits(subject, kind):
    s = subject
    if kind == "kl" and s.loss is squared_error:
        return
    z = s.outputs(s.point)
    increase = lambda q: s.divergences(q, z) if kind == "kl" else s._losses(q) - s._losses(z)  # noqa: E731
    want = [float(increase(s.outputs(s.point + delta)).mean()) for delta in s.deltas]
    for pairs in ("layer", "all"):
        _, second = terms(s, MeasuredMoves(kind=kind, pairs=pairs, loss=s.loss))
        close(np.diag(second) / 2, want)
    batches = [(s.inputs, s.labels)]
    superposed = measure_superposed(s.moves, batches, CHOICES, loss=s.loss)
    made = [s.moves.allocation([m]) for m in range(len(s.deltas))]
    for ridge in (1.0, np.inf):
        composed = Composed(superposed=superposed, ridge=ridge)
        close(composed.predict(made, kind, loss=s.loss), want)
        assert composed.main_effects([3], kind=kind, loss=s.loss).losses.shape[1] == len(
            CHOICES
        )
    close(superposed.predict(made, kind, loss=s.loss), want)


def test_path_attribution_adds_up(subject):
    s = subject
    if s.act is jax.nn.relu:
        return
    first, _ = terms(s, PathAttribution(points=64, loss=s.loss))
    for bits in (2, 3):
        of = [m for m, move in enumerate(s.moves.moves) if move.bits == bits]
        together = s.point + s.deltas[of].sum(0)
        damage = float(s.mean_loss(together) - s.mean_loss(s.point))
        assert first[of].sum() == pytest.approx(damage, rel=2e-3, abs=1e-5)


def test_composed_maps_leave_out_positions_that_do_not_count():
    """Whatever the network says there, maps and predictions are the same."""
    s = SUBJECTS["text"]()
    found = measure_superposed(s.moves, [(s.inputs, s.labels)], CHOICES)
    rubbish = np.where((MASKED == -1)[..., None], 100.0, found.logits)
    changes = np.where((MASKED == -1)[:, None, :, None], -50.0, found.changes)
    other = Superposed(
        layers=found.layers, choices=found.choices, moves=found.moves, logits=rubbish,
        changes=changes, targets=found.targets,
    )  # fmt: skip
    table = np.array([[0, 1, 0], [1, 1, 0]])
    one, two = (Composed(superposed=x).predict_columns(table) for x in (found, other))
    close(one, two)


@pytest.mark.parametrize("name", ["text", "pixels"])
def test_divergences_to_the_own_logits_leave_out_positions_that_do_not_count(name):
    """The loss "kl", whose targets are the float network's logits and not the labels."""
    s = SUBJECTS[name]()
    z = np.asarray(s.outputs(s.point))
    targets = reference_logits(z, s.labels)
    get = lambda metric: np.asarray(metric(s.moves, s.inputs, jnp.asarray(targets), KEY).second)  # noqa: E731
    by_labels = terms(s, GaussNewton())[1]  # the same curvature: its residual is zero
    close(get(GaussNewton(loss=kl_divergence)), by_labels)
    close(get(ExactHessian(loss=kl_divergence)), by_labels)
    moved = [s.outputs(s.point + delta) for delta in s.deltas]
    want = [float(s.divergences(q, z).mean()) for q in moved]
    for kind in ("loss", "kl"):
        close(np.diag(get(MeasuredMoves(kind=kind, loss=kl_divergence))) / 2, want)
    found = measure_superposed(s.moves, [(s.inputs, targets)], CHOICES, loss=kl_divergence)
    made = [s.moves.allocation([m]) for m in range(len(s.deltas))]
    for kind in ("loss", "kl"):
        close(Composed(superposed=found).predict(made, kind, loss="kl"), want)
        close(found.predict(made, kind, loss="kl"), want)
    by_label = measure_superposed(s.moves, [(s.inputs, s.labels)], CHOICES)
    both = (
        Composed(superposed=x).predict([s.moves.allocation([0, 3])]) for x in (found, by_label)
    )
    close(*both)


@pytest.mark.parametrize("name", ["text", "pixels"])
def test_sampled_classes_of_positions_are_unbiased(name):
    s = SUBJECTS[name]()
    exact = terms(s, GaussNewton())[1]
    metric = GaussNewton(class_samples=8)
    labels = jnp.asarray(s.labels)
    drawn = [metric(s.moves, s.inputs, labels, jax.random.key(k)) for k in range(40)]
    samples = np.concatenate([x.samples for x in drawn])
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    assert np.all(abs(samples.mean(0) - exact) < 5 * error)
    assert np.all(np.diag(error) < 0.5 * np.diag(exact))
    close(drawn[0].first, terms(s, FirstOrder())[0])


@pytest.mark.parametrize("name", ["text", "pixels", "number", "numbers"])
def test_outcomes(name):
    s = SUBJECTS[name]()
    evaluator = Evaluator(s.network, s.quantizers, [(s.inputs, s.labels)], loss=s.loss)
    made = [s.moves.allocation([m]) for m in (0, 3)] + [Allocation({})]
    z = np.asarray(s.outputs(s.point))
    points = [s.point + s.deltas[0], s.point + s.deltas[3], s.point]
    for got, point in zip(evaluator(made), points, strict=True):
        q = np.asarray(s.outputs(point))
        losses, base = s._losses(q), s._losses(z)
        close([got.loss, got.increase], [losses.mean(), (losses - base).mean()])
        close(got.loss_sem, losses.std(ddof=1) / np.sqrt(3))
        if s.loss is squared_error:
            assert np.isnan([got.top1, got.top5]).all()
            assert np.isnan([got.kl, got.agreement]).all() == (name == "number")
            continue
        close(got.kl, s.divergences(q, z).mean())
        close(got.top1, s.mean_of(q.argmax(-1) == s.labels).mean())
        close(got.agreement, s.mean_of(q.argmax(-1) == z.argmax(-1)).mean())
    got = evaluator.float_outcome()
    assert np.isnan(got.kl) if name == "number" else got.kl == 0


def test_metrics_that_need_classes_are_refused_by_name():
    s = SUBJECTS["number"]()
    batches = [(s.inputs, s.labels)]
    for name in typing.get_args(MetricName):
        if name == "composed":
            continue
        metric = make_metric(name, loss=squared_error)
        if name.endswith("_kl"):
            match = (
                rf"Metric '{name}' .*shape \[\].*work: composed, gauss_newton, .*measured_loss"
            )
            with pytest.raises(ValueError, match=match):
                analyse(s.moves, metric, batches, CHOICES)
    with pytest.raises(ValueError, match=r"shape \[3\] for .*, one number an example"):
        analyse(s.moves, GaussNewton(), batches, CHOICES)
    superposed = measure_superposed(s.moves, batches, CHOICES, loss=squared_error)
    with pytest.raises(ValueError, match=r"two classes or more.*shape \[\]"):
        superposed.predict([Allocation({})])


def by_hand(z):
    e = jnp.exp(z - z.max(-1, keepdims=True))
    return e / jnp.sum(e, axis=-1)[..., None]


def ending_in(last):
    inputs = jnp.ones((2, 3))
    apply = lambda params, x: last(x @ params["w"])  # noqa: E731
    network = Network.from_function(
        apply, {"w": jnp.sin(jnp.arange(12.0)).reshape(3, 4)}, inputs[:1]
    )
    scales = calibrate_weights(network, KernelSpec(), outputs.W_BITS, [inputs])
    quantizers = Quantizers(weights=scales, activations=None)
    return MoveNetwork(network=network, quantizers=quantizers), inputs


@pytest.mark.parametrize("last", [jax.nn.softmax, by_hand, jax.jit(by_hand)])
def test_a_softmax_at_the_end_is_refused_before_anything_is_computed(last):
    moves, inputs = ending_in(last)
    choices = choice_grid((*outputs.W_BITS, 32), (32,))
    for metric in (GaussNewton(), EmpiricalFisher(), make_metric("measured_kl")):
        with pytest.raises(ValueError, match=r"those of a softmax.*leave the softmax out"):
            analyse(moves, metric, [(inputs, np.zeros(2, int))], choices)
    own = FirstOrder(loss=squared_error)
    assert np.isfinite(analyse(moves, own, [(inputs, np.ones((2, 4)))], choices).first).all()


@pytest.mark.parametrize(
    "last",
    [
        jax.nn.log_softmax,
        jax.nn.sigmoid,
        lambda z: jax.nn.softmax(z) * 2,
        lambda z: jnp.exp(z) / jnp.exp(z + 1).sum(-1, keepdims=True),
        lambda z: jnp.exp(z[:, :, None] * jnp.ones(4)) / jnp.exp(z).sum(-1)[:, None, None],
    ],
)
def test_what_is_no_softmax_at_the_end_is_not_taken_for_one(last):
    assert not ends_in_softmax(ending_in(last)[0].network.tap)


def test_losses_that_are_all_zero_are_told():
    moves, inputs = ending_in(lambda z: z)
    errors = lambda logits, label: (logits.argmax() != label).astype(logits.dtype)  # noqa: E731
    with pytest.warns(UserWarning, match=r"'first_order' is zero for every .*arbitrary.*slope"):
        analyse(
            moves, FirstOrder(loss=errors), [(inputs, np.zeros(2, int))],
            choice_grid((*outputs.W_BITS, 32), (32,)),
        )  # fmt: skip


def test_a_loss_that_is_none_of_one_example_is_refused():
    moves, inputs = ending_in(lambda z: z)
    batch, choices = (inputs, np.zeros(2, int)), choice_grid((*outputs.W_BITS, 32), (32,))
    for loss, match in {
        (lambda logits, label: logits): r"Loss '<lambda>' returned float\d+\[4\]; expected one",
        squared_error: r"Loss 'squared_error' failed .*\[\] and its output \[4\]",
    }.items():
        with pytest.raises(ValueError, match=match):
            analyse(moves, FirstOrder(loss=loss), [batch], choices)
