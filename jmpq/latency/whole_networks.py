"""From a network and a runtime to the seconds of every choice: export, time in turns, fit."""

import dataclasses
import math
import pathlib
import tempfile
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int, PyTree

from jmpq.allocation import Allocation
from jmpq.export.codes import take_codes
from jmpq.files import json_sha256
from jmpq.formats import UNQUANTIZED, Choice
from jmpq.journal import Journal
from jmpq.kinds import check_kinds
from jmpq.latency.design import (
    Terms,
    designed_networks,
    draw_networks,
    kernel_of,
    kernels_of,
)
from jmpq.latency.fit import LatencyModel, fit_latency, mean_relative_error
from jmpq.latency.measure import Clock, Timings, measure_networks
from jmpq.latency.runtimes import Call, Runtime, feed_of
from jmpq.latency.table import LatencyTable
from jmpq.network.network import Network
from jmpq.network.ties import nearest_layers
from jmpq.quantizers.scales import Quantizers

SHARE = 2  # networks of a design for every term of a layer
Told = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """How networks are timed.

    Attributes:
        rounds: Times that every network is opened and timed.
        threads: Threads of the runtime.
        clock: Clock that counts: processor time (of one thread), or time on the clock.
        seconds_per_round: Least time for the calls of one network in one round.
        seed: Seed of the order in every round.
    """

    rounds: int = 6
    threads: int = 1
    clock: Clock = "cpu"
    seconds_per_round: float = 0.03
    seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class MeasuredLatency:
    """Whole networks that were timed, and the model that was fitted to them.

    Attributes:
        columns: Kernel of every layer, by position in the model's kernels; the uniform
            networks first, the held-out ones last.
        held_out: Number of networks that the fit did not see.
        timings: Measured times, seconds.
        clock: Clock of the fit.
        model: Fitted model.
        table: Seconds by layer and choice.
    """

    columns: Int[np.ndarray, "networks layers"]
    held_out: int
    timings: Timings
    clock: Clock
    model: LatencyModel
    table: LatencyTable

    @property
    def fit_error(self) -> float:
        """Mean relative error of the networks that were fitted."""
        return self._error(slice(0, len(self.columns) - self.held_out))

    @property
    def held_out_error(self) -> float:
        """Mean relative error of the networks that were not; NaN without any."""
        return self._error(slice(len(self.columns) - self.held_out, None))

    @property
    def table_error(self) -> float:
        """Mean relative error of the held-out networks by the sum over layers."""
        terms = self.model.terms
        each = self.table.array(terms.layers, terms.kernels)
        held = self.columns[len(self.columns) - self.held_out :]
        sums = self.table.fixed + each[np.arange(len(terms.layers)), held].sum(axis=1)
        measured = self.timings.seconds(self.clock)[len(self.columns) - self.held_out :]
        return mean_relative_error(sums, measured) if self.held_out else math.nan

    @property
    def repeatability(self) -> float:
        """Mean relative difference of two measurements of one network."""
        return self.timings.repeatability(self.clock)

    def _error(self, part: slice) -> float:
        columns, seconds = self.columns[part], self.timings.seconds(self.clock)[part]
        if not len(columns):
            return math.nan
        return mean_relative_error(self.model.predict(columns), seconds)


@check_kinds
def measure_latency(
    network: Network,
    quantizers: Quantizers,
    choices: Sequence[Choice],
    inputs: PyTree,
    program: Runtime,
    *,
    networks: int | None = None,
    held_out: int = 16,
    timing: Timing = Timing(),
    journal: Journal | None = None,
    progress: Told = lambda what, done, total: None,
) -> MeasuredLatency:
    """Measure a designed set of networks and fit the time of every layer.

    Args:
        network: The float network.
        quantizers: Calibrated quantizers of the network, with scales for every choice.
        choices: Candidates; those that run in one kernel are measured once.
        inputs: One batch.
        program: Runtime of the networks.
        networks: Number of networks to fit; by default two for every layer and kernel.
        held_out: Number of random networks that are predicted, not fitted.
        timing: Options of timing.
        journal: Keeps what is measured.
        progress: Told what is done, and how many of how many.

    Raises:
        NotExportable: If the network cannot be written as ONNX; it says which layer.
        ValueError: If `networks` are too few, or the network does not take the inputs.
    """
    network.output_shape(inputs, "the inputs")
    terms = terms_of(network, choices)
    count = SHARE * terms.of_layers if networks is None else networks
    fitted = designed_networks(terms, count, seed=timing.seed)
    others = draw_networks(terms, held_out, np.random.default_rng([timing.seed, 1]))
    columns = np.concatenate([fitted, others])
    timings = time_allocations(
        network,
        quantizers,
        [_allocation(terms, row, choices) for row in columns],
        inputs,
        program,
        timing=timing,
        journal=journal,
        progress=progress,
    )
    model = fit_latency(terms, fitted, timings.seconds(timing.clock)[:count])
    return MeasuredLatency(
        columns=columns,
        held_out=held_out,
        timings=timings,
        clock=timing.clock,
        model=model,
        table=model.table(choices),
    )


def time_allocations(
    network: Network,
    quantizers: Quantizers,
    allocations: Sequence[Allocation],
    inputs: PyTree,
    program: Runtime,
    *,
    timing: Timing = Timing(),
    journal: Journal | None = None,
    progress: Told = lambda what, done, total: None,
) -> Timings:
    """Export allocations of a network and time them in turns.

    Arguments as of `measure_latency`. Files lie in a temporary folder while they are timed.
    """
    from jmpq.export.onnx_graph import OnnxOptions, onnx_model  # needs the extra onnx

    feed, total = feed_of(inputs), len(allocations)
    how = OnnxOptions(smallest=program.smallest)
    with tempfile.TemporaryDirectory(prefix="jmpq-latency-") as folder:
        paths = [pathlib.Path(folder) / f"{number}.onnx" for number in range(total)]
        for done, (path, allocation) in enumerate(zip(paths, allocations, strict=True), 1):
            model = onnx_model(take_codes(network, quantizers, allocation), how)
            path.write_bytes(model.SerializeToString())
            progress("Writing networks", done, total)

        def start(number: int) -> Call:
            return program.start(paths[number].read_bytes(), feed, timing.threads)

        return measure_networks(
            start,
            total,
            rounds=timing.rounds,
            seconds_per_round=timing.seconds_per_round,
            seed=timing.seed,
            journal=journal,
            keys=[json_sha256(allocation.to_json()) for allocation in allocations],
            progress=lambda done, total: progress("Timing networks", done, total),
        )


def terms_of(network: Network, choices: Sequence[Choice]) -> Terms:
    """Layers, kernels and borders of a network."""
    return Terms(
        layers=tuple(layer.name for layer in network.layers),
        kernels=kernels_of(choices),
        edges=np.array(nearest_layers(network), dtype=np.int64).reshape(-1, 2),
    )


def _allocation(
    terms: Terms, row: Int[np.ndarray, " layers"], choices: Sequence[Choice]
) -> Allocation:
    """An allocation that runs in the kernels of a row: of each the candidate of most bits."""
    named = {}
    for layer, column in zip(terms.layers, row.tolist(), strict=True):
        kernel = terms.kernels[column]
        if kernel != UNQUANTIZED:
            named[layer] = max(c for c in choices if kernel_of(c) == kernel)
    return Allocation(named)
