"""Measuring the logit changes of every move: one forward pass a move and batch."""

import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from jmpq.data.batches import check_finite
from jmpq.devices import shared_journal, to_host
from jmpq.formats import Choice
from jmpq.kinds import check_kinds
from jmpq.network.network import Network
from jmpq.quantizers.fake_quant import quantized_logits
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.widths import for_every_width
from jmpq.sensitivity.batch_memory import PassMemory, Placement, cuts, estimate_memory
from jmpq.sensitivity.by_width import Made, MoveResults, Width, by_width, only
from jmpq.sensitivity.calibration_batches import checked_batches
from jmpq.sensitivity.logits.superposed import Superposed, changes_bytes
from jmpq.sensitivity.metric import About, Program, Terms
from jmpq.sensitivity.metrics.measured_moves import float_logits
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.sensitivity.table import Move, check_calibrated
from jmpq.training.losses import ExampleLoss


@check_kinds
def measure_superposed(
    moves: MoveNetwork,
    batches: Sequence[tuple[PyTree, Any]],
    choices: Sequence[Choice],
    *,
    loss: ExampleLoss | None = None,
    mesh: Mesh | None = None,
    memory_bytes: int = 2**32,
    process_bytes: int | None = None,
    announce: Callable[[PassMemory | None], None] | None = None,
    partial: pathlib.Path | None = None,
    of: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Superposed:
    """Make every move alone, batch by batch: one forward pass a move, and one more.

    Args:
        moves: Network and quantizers.
        batches: (inputs, targets) of the calibration examples.
        choices: Candidates of every layer.
        loss: Loss that will be predicted, so that labels are checked for it; only their
            number by default, as the KL divergence needs no labels.
        mesh: Devices over which the examples of a batch are spread (`device_mesh`).
        memory_bytes: Most that the changes may take on the host (`changes_bytes`).
        process_bytes: Most that the whole process may take where devices are CPUs, a pass on
            each device elsewhere (see `estimate_memory`): batches are cut into parts that
            fit. No limit by default.
        announce: Callback, called before the first pass with what it takes, if there is a
            limit.
        partial: File of a journal of moves, batch by batch: those of the same network,
            examples and scales are not made again, whatever other bits there are.
        of: Identity of network and examples in the journal; the provenance by default.
        provenance: Identity of network, data and quantizers, kept in the result.
        progress: Callback, called with (finished batches, all batches).

    Raises:
        ValueError: If there is nothing to measure, labels do not fit, the changes exceed
            the memory, a choice has bits that were not calibrated, or a change is not
            finite.
    """
    if not batches or not moves.moves:
        raise ValueError(
            f"Nothing to measure: {len(batches)} batches, {len(moves.moves)} moves. Give "
            "calibration examples and candidate bits below 32."
        )
    layers = tuple(layer.name for layer in moves.network.layers)
    check_calibrated(layers, choices, moves.moves)
    batches = checked_batches(batches, moves.network, loss)
    moves.quantizers.check_network(moves.network)
    targets = [np.asarray(t) for _, t in batches]
    examples = sum(len(t) for t in targets)
    struct = jax.eval_shape(lambda m, x: m.network.logits(x), moves, batches[0][0])
    shape = (len(moves.moves), examples, *struct.shape[1:])
    outputs = math.prod(struct.shape[1:])
    need = changes_bytes(*shape[:2], outputs, itemsize=struct.dtype.itemsize)
    if need > memory_bytes:
        raise ValueError(
            f"The logit changes of {shape[0]} moves, {examples} examples and {outputs} "
            f"outputs take {need} bytes, more than memory_bytes={memory_bytes}. Use fewer "
            "examples or candidates, leave composed logits out, or raise the limit."
        )
    sizes = [len(t) for t in targets]
    known = provenance or {} if of is None else of
    journal = shared_journal(partial, {"batches": sizes, **known})
    results = MoveResults(moves, journal, mesh)
    z = np.empty(shape[1:], struct.dtype)
    u = np.empty(shape, struct.dtype)  # move by move, so that a prediction is one product
    ends = np.cumsum(sizes).tolist()

    most = None
    if process_bytes is not None and any(results.lacking(n) for n in range(len(sizes))):
        fits = estimate_memory(
            _ChangesOfWidths(),
            Placement(moves, mesh),
            *batches[0],
            count=max(sizes),
            divisible=True,
            memory_bytes=process_bytes - need,
            of_process=True,
        )
        most = fits and fits.examples
        if announce is not None:
            announce(fits)

    @functools.cache
    def of_width(width: Width) -> tuple[tuple[Move, ...], Quantizers, np.ndarray]:
        """Moves of one bit-width, their quantizers, and the bits of every layer by move."""
        alone = only(moves, (width,))
        own = jax.tree.map(np.asarray, for_every_width(alone.quantizers))
        return alone.moves, own, np.asarray(alone.single_moves)

    def part(
        place: Placement, inputs: PyTree, t: np.ndarray, n: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Logits of a part of a batch, and the changes of them by every move."""
        placed, spread, _ = place(inputs, t)
        z, rows = float_logits(placed.network, spread), {}
        for width in results.lacking(n):
            made, quantizers, bits = of_width(width)
            changes = to_host(_changes(placed.network, quantizers, bits, spread, z))
            _check_finite(made, changes)
            rows |= zip(made, changes, strict=True)
        return to_host(z), np.stack([rows[move] for move in place.moves.moves])

    progress(0, len(batches))
    for n, ((inputs, _), t) in enumerate(zip(batches, targets, strict=True)):

        def change(place: Placement, n: int = n, inputs: PyTree = inputs, t: Any = t) -> Made:
            check_finite((inputs, t), "the calibration examples")
            parts = [
                part(place, jax.tree.map(lambda x, a=a, b=b: x[a:b], inputs), t[a:b], n)
                for a, b in itertools.pairwise(
                    cuts(len(t), place.size, most) if most else (0, len(t))
                )
            ]
            z, changes = (
                np.concatenate(x, axis=i) for i, x in enumerate(zip(*parts, strict=True))
            )
            return Made({"changes": changes}, {"logits": z})

        found, _ = results.get(n, change)
        here = slice(ends[n] - len(t), ends[n])
        z[here], u[:, here] = found["logits"], found["changes"]
        progress(n + 1, len(batches))
    return Superposed(
        layers=layers,
        choices=tuple(choices),
        moves=moves.moves,
        logits=z,
        changes=np.moveaxis(u, 0, 1),
        targets=np.concatenate(targets),
        provenance=dict(provenance or {}),
    )


@dataclasses.dataclass(frozen=True)
class _ChangesOfWidths:
    """The programs of `measure_superposed`, one for every bit-width; never called."""

    @property
    def about(self) -> About:
        return About(name="composed")

    def programs(
        self, moves: MoveNetwork, inputs: PyTree, targets: Any, key: Array
    ) -> list[Program]:
        z = Program(float_logits, (moves.network, inputs))
        found = [z]
        for width in by_width(moves):
            alone = only(moves, (width,))
            quantizers = jax.tree.map(np.asarray, for_every_width(alone.quantizers))
            bits = np.asarray(alone.single_moves)
            args = (moves.network, quantizers, bits, inputs, z.results())
            found.append(Program(_changes, args))
        return found

    def __call__(self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array) -> Terms:
        raise NotImplementedError


@jax.jit
def _changes(
    network: Network,
    quantizers: Quantizers,
    bits: Int[Array, "moves 2 layers"],
    inputs: PyTree,
    z: Float[Array, "batch *output"],
) -> Float[Array, "moves batch *output"]:
    """Change of the float logits z by each of some allocations that make one move."""
    return jax.lax.map(
        lambda b: quantized_logits(network, quantizers, b[0], b[1], inputs) - z, bits
    )


def _check_finite(moves: Sequence[Move], changes: Float[np.ndarray, "moves ..."]) -> None:
    bad = ~np.isfinite(changes).reshape(len(changes), -1).all(axis=1)
    if bad.any():
        move = moves[int(np.argmax(bad))]
        raise ValueError(
            f"The logits are NaN or infinite when layer {move.layer!r} is at {move.kind}"
            f"{move.bits}. Check this layer's weights and inputs for huge values."
        )
