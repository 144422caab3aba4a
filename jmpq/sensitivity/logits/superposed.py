"""Superposed logits: joint allocations predicted by the loss of added logit changes. No JAX."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Shaped

from jmpq.allocation import Allocation, column_table
from jmpq.artifact import ArtifactKind, check_array, check_json
from jmpq.formats import Choice
from jmpq.kinds import check_kinds
from jmpq.sensitivity.logits.increases import Kind, Loss, increases
from jmpq.sensitivity.table import Move, check_calibrated, choice_members
from jmpq.text import plural, printed, some

KIND = ArtifactKind("superposed", 2, "sensitivity")
MEMORY_BYTES = 64 * 2**20  # of one chunk of predictions
CHUNK_BYTES = 2**20  # of a chunk's logits: what a processor's cache holds is read fastest
WORKING_COPIES = 4  # arrays of the logits' size that a loss keeps at once


@check_kinds
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

    def predict(
        self,
        allocations: Sequence[Allocation],
        kind: Kind = "kl",
        *,
        loss: Loss = "cross_entropy",
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
        kind: Kind = "kl",
        *,
        loss: Loss = "cross_entropy",
        memory_bytes: int = MEMORY_BYTES,
    ) -> Float[np.ndarray, " allocations"]:
        """`predict` for searches: of rows of columns of `choices`, one per layer."""
        table = self.checked(table)
        made = self._members[np.arange(len(self.layers)), table].sum(axis=1)
        z = self.logits

        def predicted(
            chunk: Float[np.ndarray, "chunk moves"],
        ) -> Float[np.ndarray, "chunk examples"]:
            q = (chunk @ self._by_move).reshape(-1, *z.shape)
            q += z
            return increases(kind, loss, q, z, self.targets)

        return in_chunks(predicted, made, self.allocations_per_chunk(memory_bytes)).mean(axis=1)

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
        themselves are not counted.

        Raises:
            ValueError: If there is no room for one.
        """
        each = WORKING_COPIES * self.logits.size * self.logits.itemsize
        if memory_bytes < each:
            raise ValueError(
                f"One allocation takes about {each} bytes, more than "
                f"memory_bytes={memory_bytes}. Raise the limit or use fewer examples."
            )
        return min(memory_bytes // each, max(1, CHUNK_BYTES // self.logits.nbytes))

    @functools.cached_property
    def _members(self) -> Float[np.ndarray, "layers choices moves"]:
        members = choice_members(self.layers, self.choices, self.moves)
        return members.astype(self.changes.dtype)

    @functools.cached_property
    def _by_move(self) -> Float[np.ndarray, "moves values"]:
        """The changes as a matrix."""
        return np.moveaxis(self.changes, 1, 0).reshape(len(self.moves), -1)

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
        kind: Kind = "kl",
        *,
        loss: Loss = "cross_entropy",
    ) -> Float[np.ndarray, " allocations"]: ...

    def predict_columns(
        self,
        table: Int[np.ndarray, "allocations layers"],
        kind: Kind = "kl",
        *,
        loss: Loss = "cross_entropy",
    ) -> Float[np.ndarray, " allocations"]: ...


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PredictedLoss:
    """Joint predictor of the increase of a loss by predicted logits.

    Without it they predict the KL divergence to the float network.
    """

    logits: LogitPredictor
    loss: Loss = "cross_entropy"

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


def in_chunks(
    function: Callable[[Shaped[np.ndarray, "chunk _"]], Float[np.ndarray, "chunk examples"]],
    rows: Shaped[np.ndarray, "allocations _"],
    size: int,
) -> Float[np.ndarray, "allocations examples"]:
    """A function of at most `size` allocations, applied to any number of them; float64."""
    chunks = [
        function(rows[i : i + size]).astype(np.float64) for i in range(0, len(rows), size)
    ]
    return np.concatenate(chunks) if chunks else np.zeros((0, 1))
