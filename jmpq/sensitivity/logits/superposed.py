"""Superposed logits: joint allocations predicted by the loss of added logit changes."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree, Shaped

from jmpq.allocation import Allocation, column_table
from jmpq.artifact import ArtifactKind, check_array, check_json
from jmpq.data.batches import check_finite
from jmpq.devices import shared_journal, to_host
from jmpq.formats import Choice
from jmpq.sensitivity.batch_memory import Placement
from jmpq.sensitivity.by_width import Made, MoveResults
from jmpq.sensitivity.calibration_batches import checked_batches
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.sensitivity.table import Move, check_calibrated, choice_members
from jmpq.text import plural, printed, some
from jmpq.training.losses import ExampleLoss, Increase, cross_entropy, increase

KIND = ArtifactKind("superposed", 2, "sensitivity")
MEMORY_BYTES = 64 * 2**20  # of one chunk of predictions
# Rows (allocations × examples) of one product. With 65,536 of them XLA's programs for CPUs give
# wrong numbers from row 32,768 on (JAX 0.10.2: 256 allocations, 256 examples, 10 classes).
SAFE_ROWS = 1 << 14
WORKING_COPIES = 4  # arrays of the logits' size that a loss keeps at once


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Superposed:
    """Predicts any joint allocation as loss(z + Σ u): the true loss on added logit changes.

    u_m = z(δ_m) − z is the change of the logits when one move is made in full, with its own
    nonlinearity. Exact for a single move; the second-order expansion is the Gauss-Newton
    quadratic form by difference. Two moves of one layer, weight and input, are added like
    those of different layers: their product term is left out.

    Attributes:
        layers: Layer names.
        choices: Candidate choices, the same for every layer.
        moves: The moves behind the choices.
        logits: z, float logits ``[examples, classes]``, or outputs of any other shape.
        changes: u ``[examples, moves, classes]``.
        targets: One per example.
        provenance: Hashes, seeds, versions.

    Raises:
        ValueError: If shapes do not fit, or a choice has bits that no move makes.
    """

    layers: tuple[str, ...]
    choices: tuple[Choice, ...]
    moves: tuple[Move, ...]
    logits: Float[np.ndarray, "_ ..."]
    changes: Float[np.ndarray, "_ _ ..."]
    targets: Shaped[np.ndarray, "..."]
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        (examples, *output), count = self.logits.shape, len(self.moves)
        want = (examples, count, *output)
        if self.changes.shape != want or self.targets.shape[:1] != (examples,):
            raise ValueError(
                f"`changes` must be [examples, moves, classes] = {want} and `targets` hold one "
                f"per example; got {self.changes.shape} and {self.targets.shape}."
            )
        check_calibrated(self.layers, self.choices, self.moves)

    def __repr__(self) -> str:
        examples, classes = self.logits.shape
        return printed(
            f"Superposed logits: {plural(len(self.layers), 'layer')} x "
            f"{plural(len(self.choices), 'choice')} ({some([c.label for c in self.choices])})",
            f"{plural(len(self.moves), 'move')} on {plural(examples, 'example')} and "
            f"{plural(classes, 'class', 'classes')}, {self.changes.nbytes / 1e6:.3g} MB; "
            "predicts the increase of joint allocations, nats per example",
        )

    @classmethod
    def measure(
        cls,
        moves: MoveNetwork,
        batches: Sequence[tuple[PyTree, Any]],
        choices: Sequence[Choice],
        *,
        loss: ExampleLoss | None = None,
        mesh: Mesh | None = None,
        memory_bytes: int = 2**32,
        partial: pathlib.Path | None = None,
        of: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> "Superposed":
        """Make every move alone, batch by batch: one forward pass a move, and one more.

        Args:
            moves: Network and quantizers.
            batches: (inputs, targets) of the calibration examples.
            choices: Candidates of every layer.
            loss: Loss that will be predicted, so that labels are checked for it; only their
                number by default, as the KL divergence needs no labels.
            mesh: Devices over which the examples of a batch are spread (`device_mesh`).
            memory_bytes: Most that the changes may take on the host (`changes_bytes`).
            partial: File of a journal of moves, batch by batch: those of the same network,
                examples and scales are not made again, whatever other bits there are.
            of: Identity of network and examples in the journal; the provenance by default.
            provenance: Identity of network, data and quantizers, kept in the result.
            progress: Called with (finished batches, all batches).

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
                "examples or candidates, or raise the limit."
            )
        sizes = [len(t) for t in targets]
        known = provenance or {} if of is None else of
        journal = shared_journal(partial, {"batches": sizes, **known})
        results = MoveResults(moves, journal, mesh)
        z = np.empty(shape[1:], struct.dtype)
        u = np.empty(shape, struct.dtype)  # move by move, so that a prediction is one product
        ends = np.cumsum(sizes).tolist()
        progress(0, len(batches))
        for n, ((inputs, _), t) in enumerate(zip(batches, targets, strict=True)):

            def change(place: Placement, inputs: PyTree = inputs, t: Any = t) -> Made:
                check_finite((inputs, t), "the calibration examples")
                placed, spread, _ = place(inputs, t)
                logits, changes = map(to_host, _changes(placed, spread))
                changes = np.moveaxis(changes, 1, 0)
                _check_finite(placed.moves, changes)
                return Made({"changes": changes}, {"logits": logits})

            found, _ = results.get(n, change)
            here = slice(ends[n] - len(t), ends[n])
            z[here], u[:, here] = found["logits"], found["changes"]
            progress(n + 1, len(batches))
        return cls(
            layers=layers,
            choices=tuple(choices),
            moves=moves.moves,
            logits=z,
            changes=np.moveaxis(u, 0, 1),
            targets=np.concatenate(targets),
            provenance=dict(provenance or {}),
        )

    def predict(
        self,
        allocations: Sequence[Allocation],
        kind: Increase = "kl",
        *,
        loss: ExampleLoss = cross_entropy,
        memory_bytes: int = MEMORY_BYTES,
    ) -> Float[np.ndarray, " allocations"]:
        """Predicted increase of joint allocations, mean nats per example.

        Args:
            allocations: The allocations; one that leaves out a layer needs the unquantized
                choice among `choices`.
            kind: ``kl``, KL(p_float ‖ p_quantized), or the increase of the ``loss``.
            loss: Loss of one example.
            memory_bytes: Limit of a chunk's working memory; allocations are predicted in
                chunks of `allocations_per_chunk`.

        Raises:
            ValueError: If an allocation names a layer or takes a choice that is not known, or
                one allocation alone exceeds the memory.
        """
        table = column_table(self.layers, self.choices, allocations)
        return self.predict_columns(table, kind, loss=loss, memory_bytes=memory_bytes)

    def predict_columns(
        self,
        table: Int[np.ndarray, "allocations layers"],
        kind: Increase = "kl",
        *,
        loss: ExampleLoss = cross_entropy,
        memory_bytes: int = MEMORY_BYTES,
    ) -> Float[np.ndarray, " allocations"]:
        """`predict` for searches: of rows of columns of `choices`, one per layer."""
        table = self.checked(table)
        made = self._members[np.arange(len(self.layers)), table].sum(axis=1)
        predicted = in_chunks(
            lambda chunk: _increases(kind, loss, chunk, *self._on_device),
            made,
            self.allocations_per_chunk(memory_bytes),
        )
        return predicted.mean(axis=1)

    def checked(
        self, table: Int[np.ndarray, "allocations layers"]
    ) -> Int[np.ndarray, "allocations layers"]:
        """A table of columns of `choices`, one allocation a row.

        Raises:
            ValueError: If it is not such a table.
        """
        table = np.asarray(table)
        if table.ndim != 2 or table.shape[1] != len(self.layers):
            raise ValueError(
                f"`table` must be [allocations, {len(self.layers)} layers]; got {table.shape}."
            )
        if table.size and not (table.min() >= 0 and table.max() < len(self.choices)):
            raise ValueError(
                f"`table` holds columns {table.min()} to {table.max()}; there are choices 0 "
                f"to {len(self.choices) - 1}."
            )
        return table

    def allocations_per_chunk(self, memory_bytes: int = MEMORY_BYTES) -> int:
        """How many allocations are predicted at once within `memory_bytes`.

        Estimated at `WORKING_COPIES` arrays of the logits' size for each; the changes
        themselves, held twice (host and device), are not counted.

        Raises:
            ValueError: If there is no room for one.
        """
        each = WORKING_COPIES * self.logits.size * self.logits.itemsize
        if memory_bytes < each:
            raise ValueError(
                f"One allocation takes about {each} bytes, more than "
                f"memory_bytes={memory_bytes}. Raise the limit or use fewer examples."
            )
        return min(memory_bytes // each, max(1, SAFE_ROWS // len(self.logits)))

    @functools.cached_property
    def _members(self) -> Float[np.ndarray, "layers choices moves"]:
        members = choice_members(self.layers, self.choices, self.moves)
        return members.astype(self.changes.dtype)

    @functools.cached_property
    def _on_device(self) -> tuple[Array, Array, Array]:
        """Changes as a matrix [moves, examples·classes], z, targets."""
        by_move = np.moveaxis(self.changes, 1, 0).reshape(len(self.moves), -1)
        return jnp.asarray(by_move), jnp.asarray(self.logits), jnp.asarray(self.targets)

    def save(self, path: pathlib.Path) -> None:
        """Write one npz file, whole or not at all."""
        fields = {
            "layers": self.layers,
            "choices": [choice.label for choice in self.choices],
            "moves": self.moves,
            "provenance": self.provenance,
        }
        by_move = np.moveaxis(self.changes, 1, 0)
        arrays = {"logits": self.logits, "changes_by_move": by_move, "targets": self.targets}
        KIND.write_npz(path, fields, arrays)

    @classmethod
    def load(cls, path: pathlib.Path) -> "Superposed":
        """Read what `save` wrote: no data, no network needed.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is not one of superposed logits of this version.
        """
        header, arrays = KIND.read_npz(path, "a file of superposed logits")
        try:
            moves = tuple(Move(*move) for move in header["moves"])
            logits, targets = arrays["logits"], arrays["targets"]
            check_array(logits, logits.shape, "logits")
            shape = (len(moves), *logits.shape)
            check_array(arrays["changes_by_move"], shape, "changes_by_move")
            check_array(targets, (len(logits), *targets.shape[1:]), "targets")
            check_json(dict[str, Any], header["provenance"], "provenance")
            return cls(
                layers=tuple(header["layers"]),
                choices=tuple(Choice.parse(label) for label in header["choices"]),
                moves=moves,
                logits=logits,
                changes=np.moveaxis(arrays["changes_by_move"], 0, 1),
                targets=targets,
                provenance=header["provenance"],
            )
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise KIND.unusable(pathlib.Path(path), error) from error


@runtime_checkable
class LogitPredictor(Protocol):
    """Predicts the logits of joint allocations: `Superposed`, `Composed`."""

    @property
    def layers(self) -> tuple[str, ...]: ...

    @property
    def choices(self) -> tuple[Choice, ...]: ...

    def predict(
        self,
        allocations: Sequence[Allocation],
        kind: Increase = "kl",
        *,
        loss: ExampleLoss = cross_entropy,
    ) -> Float[np.ndarray, " allocations"]: ...

    def predict_columns(
        self,
        table: Int[np.ndarray, "allocations layers"],
        kind: Increase = "kl",
        *,
        loss: ExampleLoss = cross_entropy,
    ) -> Float[np.ndarray, " allocations"]: ...


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PredictedLoss:
    """Joint predictor of the increase of a loss by predicted logits.

    Without it they predict the KL divergence to the float network.
    """

    logits: LogitPredictor
    loss: ExampleLoss = cross_entropy

    def __repr__(self) -> str:
        loss = getattr(self.loss, "__name__", self.loss)
        return printed(
            f"PredictedLoss: increase of {loss}, nats per example", f"by {self.logits!r}"
        )

    @property
    def layers(self) -> tuple[str, ...]:
        return self.logits.layers

    @property
    def choices(self) -> tuple[Choice, ...]:
        return self.logits.choices

    def predict(self, allocations: Sequence[Allocation]) -> Float[np.ndarray, " allocations"]:
        """Predicted increase, nats per example."""
        return self.logits.predict(allocations, "loss", loss=self.loss)

    def predict_columns(
        self, table: Int[np.ndarray, "allocations layers"]
    ) -> Float[np.ndarray, " allocations"]:
        """`predict` for searches: of rows of columns of `choices`."""
        return self.logits.predict_columns(table, "loss", loss=self.loss)


def changes_bytes(moves: int, examples: int, outputs: int, *, itemsize: int = 4) -> int:
    """Bytes that the logit changes take; `Superposed` holds them twice when it predicts.

    >>> changes_bytes(moves=140, examples=256, outputs=10)
    1433600
    """
    return moves * examples * outputs * itemsize


@jax.jit
def _changes(moves: MoveNetwork, inputs: PyTree) -> tuple[Array, Array]:
    return moves.changes_by_difference(inputs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _increases(
    kind: Increase,
    loss: ExampleLoss,
    made: Float[Array, "allocations moves"],
    by_move: Float[Array, "moves values"],
    z: Float[Array, "examples *output"],
    targets: Array,
) -> Float[Array, "allocations examples"]:
    q = z[None] + (made @ by_move).reshape(-1, *z.shape)
    return increases(kind, loss, q, z, targets)


def increases(
    kind: Increase,
    loss: ExampleLoss,
    q: Float[Array, "allocations examples *output"],
    z: Float[Array, "examples *output"],
    targets: Array,
) -> Float[Array, "allocations examples"]:
    """Loss increase of every example with logits `q` in the place of `z`, nats."""
    examples = jax.vmap(functools.partial(increase, kind, loss))
    return jax.vmap(examples, (0, None, None))(q, z, targets)


def in_chunks(
    function: Callable[[Shaped[np.ndarray, "chunk _"]], Float[Array, "chunk examples"]],
    rows: Shaped[np.ndarray, "allocations _"],
    size: int,
) -> Float[np.ndarray, "allocations examples"]:
    """A compiled function of at most `size` allocations, applied to any number of them.

    Chunks are padded by repetition to powers of two: few sizes, few programs.
    """
    size = min(size, 1 << max(len(rows) - 1, 0).bit_length())
    chunks = []
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        padded = np.resize(chunk, (size, chunk.shape[1]))
        chunks.append(np.asarray(function(padded), np.float64)[: len(chunk)])
    return np.concatenate(chunks) if chunks else np.zeros((0, 1))


def _check_finite(moves: Sequence[Move], changes: Float[np.ndarray, "moves ..."]) -> None:
    bad = ~np.isfinite(changes).reshape(len(changes), -1).all(axis=1)
    if bad.any():
        move = moves[int(np.argmax(bad))]
        raise ValueError(
            f"The logits are NaN or infinite when layer {move.layer!r} is at {move.kind}"
            f"{move.bits}. Check this layer's weights and inputs for huge values."
        )
