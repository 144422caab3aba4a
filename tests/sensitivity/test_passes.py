"""Estimates against what XLA says, and batches cut to fit into memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.quantizers.choice import choice_grid
from jmpq.sensitivity.hawq import HawqTrace
from jmpq.sensitivity.measured import MeasuredPairs, MeasuredSingle
from jmpq.sensitivity.metric import Terms, _cuts, estimate_batch
from jmpq.sensitivity.passes import estimate
from jmpq.sensitivity.path import PathAttribution
from jmpq.sensitivity.program_cost import program_cost
from jmpq.sensitivity.taylor import EmpiricalFisher
from tests.sensitivity.dense import A_BITS, W_BITS

CHOICES = choice_grid(W_BITS, A_BITS)


def test_operations_of_products_loops_and_convolutions_are_counted():
    a, b = jnp.zeros((3, 4)), jnp.zeros((4, 5))
    assert program_cost(jnp.matmul, a, b).operations == 2 * 3 * 4 * 5
    looped = lambda a, b: jax.lax.map(lambda _: a @ b, jnp.arange(7))  # noqa: E731
    assert program_cost(looped, a, b).operations == 7 * 2 * 3 * 4 * 5
    x, kernel = jnp.zeros((2, 6, 6, 3)), jnp.zeros((3, 3, 3, 8))
    conv = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    assert program_cost(conv, x, kernel).operations == 2 * (2 * 6 * 6 * 8) * (3 * 3 * 3)


def test_memory_is_that_of_what_lives_together():
    x = jnp.zeros((100, 100))  # 80 kB in float64
    chain = lambda x: jnp.sin(jnp.sin(jnp.sin(x)))  # noqa: E731
    assert program_cost(chain, x).bytes == x.nbytes
    tree = lambda x: jnp.sin(x) @ jnp.cos(x)  # noqa: E731
    assert program_cost(tree, x).bytes == 3 * x.nbytes
    loop = lambda x: jax.lax.map(lambda r: r @ x, x)  # noqa: E731
    assert x.nbytes < program_cost(loop, x).bytes < 1.1 * x.nbytes
    view = lambda x: x.reshape(-1)  # noqa: E731
    assert program_cost(view, x).bytes == 0


@pytest.mark.parametrize(
    ("metric", "sets"), [(MeasuredSingle(), 16 + 16), (MeasuredPairs(), 16 + 112)]
)
def test_forward_passes_of_measurements_are_their_sets(dense, metric, sets):
    found = estimate(metric, dense.moves, dense.inputs, dense.labels, examples=3)
    assert found.forward_passes == pytest.approx(1 + sets, rel=1e-6)


@pytest.mark.parametrize("count", [1, 5, 27, 64])
@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("most", [1, 3, 100])
def test_cuts_cover_a_batch_in_parts_that_fit(count, devices, most):
    cuts = _cuts(count, devices, most)
    sizes = np.diff(cuts)
    assert cuts[0] == 0
    assert cuts[-1] == count
    assert np.all(sizes > 0)
    assert all(n / np.gcd(n, devices) <= most for n in sizes)
    assert sum(n % devices > 0 for n in sizes) <= max(count % devices, 1)


def test_a_limit_of_memory_cuts_batches_and_changes_nothing(dense):
    data = [(dense.inputs, dense.labels)]
    one = estimate(EmpiricalFisher(), dense.moves, *data[0], examples=1).bytes
    found = estimate_batch(EmpiricalFisher(), dense.moves, data, memory_bytes=one)
    assert found.examples == 1
    assert estimate_batch(EmpiricalFisher(), dense.moves, data).examples == 3
    cut = dense.analyse(EmpiricalFisher(), memory_bytes=one)
    np.testing.assert_allclose(cut.second, dense.analyse(EmpiricalFisher()).second, rtol=1e-10)


def test_too_little_memory_is_refused_before_the_start(dense):
    with pytest.raises(ValueError, match=r"'empirical_fisher' takes about .* 1 example on"):
        dense.analyse(EmpiricalFisher(), memory_bytes=1000)
    with pytest.raises(ValueError, match=r"'hawq_trace'.* 3 examples.*smaller batches"):
        dense.analyse(HawqTrace(), memory_bytes=1000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnTheHost:
    """A metric that looks at numbers and does not tell what it compiles."""

    name: str = "on_the_host"
    unit: str = "nats per example"
    use_first: bool = True

    def __call__(self, moves, inputs, targets, key):
        mean = float(np.asarray(inputs).mean())
        return Terms(jnp.full(len(moves.moves), mean), jnp.zeros(len(moves.moves)))


def test_a_metric_that_tells_nothing_is_not_estimated(dense):
    data = [(dense.inputs, dense.labels)]
    assert estimate_batch(OnTheHost(), dense.moves, data) is None
    with pytest.raises(ValueError, match="'on_the_host' loops on the host"):
        dense.analyse(OnTheHost(), memory_bytes=10**9)


def test_path_attribution_tells_its_programs(dense):
    found = estimate(
        PathAttribution(points=3), dense.moves, dense.inputs, dense.labels, examples=3
    )
    two = estimate(
        PathAttribution(points=2), dense.moves, dense.inputs, dense.labels, examples=3
    )
    assert found.forward_passes == pytest.approx(1.5 * two.forward_passes)
    assert two.forward_passes > 4 * 2 * 2  # bit-widths, points, forward and backward
