"""Estimates against the programs that XLA then holds, and batches cut to fit into memory."""

import collections
import dataclasses
import json
import math
import subprocess
import sys
import types
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.formats import choice_grid
from jmpq.sensitivity import batch_memory
from jmpq.sensitivity.analyse import analyse, estimate_batch
from jmpq.sensitivity.batch_memory import PassMemory, Placement, cuts, estimate_memory
from jmpq.sensitivity.metric import About, Program, Terms
from jmpq.sensitivity.metrics.hawq_eigenvalue import HawqEigenvalue, QBert
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
from tests import helpers
from tests.sensitivity.dense import A_BITS, W_BITS

CHOICES = choice_grid(W_BITS, A_BITS)
SLOW = pytest.mark.slow


def batch_of(count):
    return [helpers.images(3, count)]


def held():
    """Bytes of every program that XLA holds: arguments, results, and what lies between."""
    programs = jax.devices()[0].client.live_executables()
    stats = [program.get_compiled_memory_stats() for program in programs]
    return collections.Counter(
        s.argument_size_in_bytes + s.output_size_in_bytes + s.temp_size_in_bytes for s in stats
    )


@pytest.mark.parametrize(
    ("metric", "count"),
    [
        (EmpiricalFisher(), 21),  # a size that no other test compiles
        (MeasuredMoves(), 22),
        pytest.param(HawqTrace(), 23, marks=SLOW),
        pytest.param(ExactHessian(micro_batch=24), 24, marks=SLOW),
        pytest.param(HawqEigenvalue(), 25, marks=SLOW),
        pytest.param(QBert(), 26, marks=SLOW),
        pytest.param(PathAttribution(), 27, marks=SLOW),
        pytest.param(GaussNewton(), 28, marks=SLOW),
        pytest.param(GaussNewton(changes="difference"), 29, marks=SLOW),
        pytest.param(GaussNewton(class_samples=4), 30, marks=SLOW),
        pytest.param(MeasuredMoves(pairs="all"), 31, marks=SLOW),
        pytest.param(OutputFisher(), 32, marks=SLOW),
        pytest.param(SquaredError(), 33, marks=SLOW),
        pytest.param(FirstOrder(), 34, marks=SLOW),
    ],
)
def test_estimate_is_the_largest_program_and_it_is_compiled_once(dense, metric, count):
    compare(dense.moves, metric, count)


@pytest.mark.slow
def test_estimate_of_the_exact_hessian_by_tangents(dense):
    network = helpers.residual_cnn(3, "relu")
    moves = MoveNetwork(network=network, quantizers=dense.quantizers)
    compare(moves, ExactHessian(micro_batch=20), 20)


def compare(moves, metric, count):
    """Of what the estimate compiles the largest is told; the run adds nothing as large."""
    batches, before = batch_of(count), held()
    told = estimate_batch(metric, moves, batches)
    assert told.examples == count
    estimated = held()
    assert max(estimated - before) == pytest.approx(told.bytes, rel=0.01)
    metric(*Placement(moves, None)(*batches[0]), keys(metric, count))
    assert max(held() - estimated, default=0) < told.bytes


def keys(metric, count):
    key = jax.random.key(0)
    return jax.random.split(key, count) if metric.about.additive else key


@pytest.mark.parametrize("count", [1, 5, 27, 64])
@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("most", [1, 3, 100])
def test_cuts_cover_a_batch_in_parts_that_fit(count, devices, most):
    ends = cuts(count, devices, most)
    sizes = np.diff(ends)
    assert ends[0] == 0
    assert ends[-1] == count
    assert np.all(sizes > 0)
    assert all(n / np.gcd(n, devices) <= most for n in sizes)
    assert sum(n % devices > 0 for n in sizes) <= max(count % devices, 1)


def test_a_limit_of_memory_cuts_batches_and_changes_nothing(dense):
    metric, batches = SquaredError(), batch_of(40)
    whole = estimate_batch(metric, dense.moves, batches)
    assert whole.examples == 40
    limit = whole.bytes // 3
    told = []
    found = analyse(
        dense.moves, metric, batches, CHOICES, memory_bytes=limit, announce=told.append
    )
    (fits,) = told
    assert 0.5 * limit < fits.bytes <= limit
    assert 5 < fits.examples < 40 / 2
    assert fits == estimate_batch(metric, dense.moves, batches, memory_bytes=limit)
    assert found.batch_examples.tolist() == [40]
    want = analyse(dense.moves, metric, batches, CHOICES)
    np.testing.assert_allclose(found.second, want.second, rtol=1e-10)


def test_too_little_memory_is_refused_before_the_start(dense):
    with pytest.raises(ValueError, match=r"'squared_error' takes .* 1 example on .*0.001 MB"):
        dense.analyse(SquaredError(), memory_bytes=1000)
    with pytest.raises(ValueError, match=r"'planned' takes 0.003 MB for 3 examples.*smaller"):
        dense.analyse(Planned(lambda n: 1000 * n, []), memory_bytes=2999)


@dataclasses.dataclass(frozen=True)
class Planned:
    """A metric whose passes take what `needs` says, in bytes."""

    needs: object
    compiled: list
    about: typing.ClassVar = About(name="planned", additive=False)

    def programs(self, moves, inputs, targets, key):
        self.compiled.append(inputs.shape[0])
        memory = types.SimpleNamespace(
            argument_size_in_bytes=0,
            output_size_in_bytes=0,
            temp_size_in_bytes=self.needs(inputs.shape[0]),
            alias_size_in_bytes=0,
        )
        program = types.SimpleNamespace(memory_analysis=lambda: memory)
        lowered = types.SimpleNamespace(compile=lambda: program)
        return [Program(types.SimpleNamespace(lower=lambda: lowered), ())]

    def __call__(self, moves, inputs, targets, key):
        raise AssertionError("nothing runs")


@pytest.mark.parametrize(
    ("needs", "limit", "examples", "compiled"),
    [
        (lambda n: 10 + 2 * n, 50, 20, [100, 1, 20]),  # affine: found at once
        (lambda n: 10 + 2 * n, 500, 100, [100]),  # all fit
        (lambda n: 10 + 2 * n, 12, 1, [100, 1]),
        (lambda n: int(100 * math.sqrt(n)), 400, 8, [100, 1, 34, 17, 8]),
        (lambda n: int(100 * math.sqrt(n)), 120, 1, [100, 1, 3]),
    ],
)
def test_as_many_examples_as_their_own_compilation_allows(
    dense, needs, limit, examples, compiled
):
    metric = Planned(needs, [])
    found = estimate_memory(
        metric,
        Placement(dense.moves, None),
        dense.inputs,
        dense.labels,
        count=100,
        divisible=True,
        memory_bytes=limit,
    )
    assert (found.examples, found.bytes) == (examples, needs(examples))
    assert metric.compiled == compiled


def test_a_limit_of_the_process_counts_what_is_there_and_what_a_pass_was_seen_to_take(
    dense, monkeypatch
):
    """1000 bytes before, three for every planned byte: 20 examples plan 50 of 150 bytes."""
    monkeypatch.setattr(batch_memory, "resident_bytes", lambda: 1000)
    monkeypatch.setattr(batch_memory, "bytes_per_planned", lambda programs: 3.0)

    def estimate(limit, needs=lambda n: 10 + 2 * n):
        return estimate_memory(
            Planned(needs, []), Placement(dense.moves, None), dense.inputs, dense.labels,
            count=100, divisible=True, memory_bytes=limit, of_process=True,
        )  # fmt: skip

    assert estimate(1150) == PassMemory(bytes=50, examples=20, resident=1150)
    assert estimate(1630) == PassMemory(bytes=210, examples=100, resident=1630)
    match = r"3.6e-05 MB for 1 example on a device beside 0.001 MB that the process has, more"
    with pytest.raises(ValueError, match=match):
        estimate(1035)


@pytest.mark.slow
def test_the_process_stays_within_its_limit():
    """Resident memory at its peak, read from the system; a tenth above is allowed."""
    command = [
        sys.executable,
        "-W",
        "error::UserWarning",
        "-m",
        "tests.sensitivity.within_memory",
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    found = json.loads(done.stdout)
    assert 1 <= found["examples"] < found["all"]  # it would take more otherwise
    assert found["plan_bytes"] > 0.1 * found["limit"]
    assert found["peak_bytes"] < 1.1 * found["limit"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnTheHost:
    """A metric that looks at numbers and does not tell what it compiles."""

    about: typing.ClassVar = About(name="on_the_host", use_first=True, additive=False)

    def __call__(self, moves, inputs, targets, key):
        mean = float(np.asarray(inputs).mean())
        return Terms(jnp.full(len(moves.moves), mean), jnp.zeros(len(moves.moves)))


def test_a_metric_that_tells_nothing_is_not_estimated(dense):
    told = []
    dense.analyse(OnTheHost(), announce=told.append)
    assert told == [None]
    with pytest.raises(ValueError, match="'on_the_host' loops on the host"):
        dense.analyse(OnTheHost(), memory_bytes=10**9)
