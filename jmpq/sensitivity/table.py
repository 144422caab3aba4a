"""The table of a sensitivity analysis: moves, two orders of terms, errors. No JAX."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jmpq.allocation import AllocationLike, column_table
from jmpq.artifact import ArtifactKind, check_array, check_json, fields_of
from jmpq.formats import FLOAT_BITS, UNQUANTIZED, Choice, Scheme
from jmpq.kinds import check_kinds
from jmpq.text import plural, printed, table

KIND = ArtifactKind("sensitivity", 3, "sensitivity")
NATS = "nats per example"  # unit of a loss
_SHOWN, _COLUMNS = 5, 10  # layers and choices of a printed table


class Move(NamedTuple):
    """One perturbation: a layer's weight ("w") or input ("a") by a scheme.

    `bits` is the number of the scheme: the bit-width of a plain integer.
    """

    layer: str
    kind: Literal["w", "a"]
    bits: int


@check_kinds
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Sensitivity:
    """Predicted loss increase of every choice of every layer, by one metric.

    Attributes:
        metric: Name of the metric.
        unit: Unit of the losses ("nats per example", or that of a proxy).
        layers: Layer names.
        choices: Candidate choices, the same for every layer.
        moves: The moves behind the choices.
        first: First-order term of every move, mean over examples; zeros where the metric
            has none.
        second: Second-order matrix S of the moves, or its diagonal: a set of moves with
            indicator e is predicted to cost firstᵀe + ½ eᵀSe.
        batch_first: First-order term of every choice, batch by batch.
        batch_second: Second-order term of every choice, batch by batch.
        batch_examples: Examples in each batch.
        use_first: Whether `losses` include the first-order term.
        projected: Whether negative curvature was taken out of `second` (see
            `positive_semidefinite`).
        spread: Weight c of the spread: `losses` are the mean over batches plus c times the
            standard deviation over batches, choice by choice. Not in `first` and `second`.
        sampling_sem: Standard error of `losses` by the metric's own random numbers, where it
            tells (sampled classes): part of `sem`, which also has the choice of examples.
        provenance: Hashes, seeds, versions, options, seconds.
    """

    metric: str
    unit: str
    layers: tuple[str, ...]
    choices: tuple[Choice, ...]
    moves: tuple[Move, ...]
    first: Float[np.ndarray, " moves"]
    second: Float[np.ndarray, "moves moves"] | Float[np.ndarray, " moves"]
    batch_first: Float[np.ndarray, "batches layers choices"]
    batch_second: Float[np.ndarray, "batches layers choices"]
    batch_examples: Float[np.ndarray, " batches"]
    use_first: bool = False
    projected: bool = False
    spread: float = 0.0
    sampling_sem: Float[np.ndarray, "layers choices"] | None = None
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        layers, choices = len(self.layers), len(self.choices)
        order = np.argsort(-np.abs(self.losses).max(axis=1), kind="stable")[:_SHOWN]
        rows = [
            [self.layers[i], *(f"{loss:.3g}" for loss in self.losses[i, :_COLUMNS])]
            for i in order
        ]
        left = [
            f"{layers - len(order)} less sensitive layers" if layers > len(order) else "",
            f"{choices - _COLUMNS} more choices" if choices > _COLUMNS else "",
        ]
        about = printed(
            f"Sensitivity by {self.metric}: {plural(layers, 'layer')} x "
            f"{plural(choices, 'choice')}, losses in {self.unit}",
            f"{plural(len(self.moves), 'move')}, "
            f"{plural(int(self.batch_examples.sum()), 'example')} in "
            f"{plural(len(self.batch_examples), 'batch', 'batches')}, "
            f"{'with' if self.has_interactions else 'no'} cross-layer terms",
        )
        heads = ["layer", *(choice.label for choice in self.choices[:_COLUMNS])]
        below = [f"  and {' and '.join(filter(None, left))}"] if any(left) else []
        return "\n".join([about, *table(heads, rows), *below])

    @property
    def _batches(self) -> Float[np.ndarray, "batches layers choices"]:
        return self.batch_second + (self.batch_first if self.use_first else 0.0)

    @functools.cached_property
    def _mean(self) -> Float[np.ndarray, "layers choices"]:
        return np.average(self._batches, axis=0, weights=self.batch_examples)

    @functools.cached_property
    def losses(self) -> Float[np.ndarray, "layers choices"]:
        """Predicted increase: diagonal blocks, weight and input of a layer together."""
        return self._mean + self.spread * self.deviation if self.spread else self._mean

    @functools.cached_property
    def deviation(self) -> Float[np.ndarray, "layers choices"]:
        """Standard deviation over batches, weighted by examples; NaN from a single batch."""
        if (count := len(self.batch_examples)) < 2:
            return np.full_like(self._mean, np.nan)
        squares = np.square(self._batches - self._mean)
        mean = np.average(squares, axis=0, weights=self.batch_examples)
        return np.sqrt(mean * count / (count - 1))

    @functools.cached_property
    def sem(self) -> Float[np.ndarray, "layers choices"]:
        """Standard error of the mean over batches in `losses`; NaN from a single batch."""
        if (count := len(self.batch_examples)) < 2:
            return np.full_like(self._mean, np.nan)
        weights = self.batch_examples / self.batch_examples.sum()
        squares = np.square(self._batches - self._mean)
        return np.sqrt(np.tensordot(np.square(weights), squares, 1) * count / (count - 1))

    @functools.cached_property
    def has_interactions(self) -> bool:
        """Whether the metric knows cross-layer terms: any that is not zero."""
        layers = np.array([move.layer for move in self.moves])
        across = layers[:, None] != layers[None, :]
        return self.second.ndim == 2 and bool(np.any(self.second[across]))

    @functools.cached_property
    def members(self) -> Float[np.ndarray, "layers choices moves"]:
        """1 where a choice makes a move."""
        return choice_members(self.layers, self.choices, self.moves)

    def indicator(
        self, table: Int[np.ndarray, "allocations layers"]
    ) -> Float[np.ndarray, "allocations moves"]:
        """Which moves each allocation (a column of `choices` per layer) makes."""
        chosen = self.members[np.arange(len(self.layers)), np.asarray(table)]
        return chosen.sum(axis=-2)

    @functools.cached_property
    def with_unquantized(self) -> "Sensitivity":
        """The same with the unquantized choice, which costs nothing, among the candidates."""
        if UNQUANTIZED in self.choices:
            return self

        def pad(x: np.ndarray) -> np.ndarray:
            return np.concatenate([x, np.zeros_like(x[..., :1])], axis=-1)

        return dataclasses.replace(
            self,
            choices=(*self.choices, UNQUANTIZED),
            batch_first=pad(self.batch_first),
            batch_second=pad(self.batch_second),
            sampling_sem=None if self.sampling_sem is None else pad(self.sampling_sem),
        )

    def predict(
        self, allocations: Sequence[AllocationLike], *, interactions: bool = False
    ) -> Float[np.ndarray, " allocations"]:
        """Predicted loss increase of joint allocations; unquantized layers add nothing.

        Args:
            allocations: The allocations.
            interactions: Add the cross-layer terms (the whole quadratic form).

        Raises:
            ValueError: If an allocation names a layer or takes a choice that is not known,
                or `interactions` are asked of a metric that has none.
        """
        whole = self.with_unquantized
        table = column_table(whole.layers, whole.choices, allocations)
        return whole.predict_columns(table, interactions=interactions)

    def predict_columns(
        self, table: Int[np.ndarray, "allocations layers"], *, interactions: bool = False
    ) -> Float[np.ndarray, " allocations"]:
        """`predict` for searches: of rows of columns of `choices`, one per layer."""
        table = np.asarray(table)
        if not interactions:
            return self.losses[np.arange(len(self.layers)), table].sum(axis=-1)
        if not self.has_interactions:
            raise ValueError(f"Metric {self.metric!r} has no cross-layer terms.")
        made = self.indicator(table)
        quadratic = 0.5 * np.einsum("am,mk,ak->a", made, self.second, made)
        return quadratic + (made @ self.first if self.use_first else 0.0)

    def interactions(self) -> Float[np.ndarray, "layers choices layers choices"]:
        """Cross-layer terms of every pair of choices: ``½ eᵀSe`` splits into `losses`
        and ½ the sum of these over ordered pairs of different layers.

        Raises:
            ValueError: If the metric has none.
        """  # noqa: D205
        if not self.has_interactions:
            raise ValueError(f"Metric {self.metric!r} has no cross-layer terms.")
        return np.einsum("icm,mk,jdk->icjd", self.members, self.second, self.members)

    def positive_semidefinite(self) -> "Sensitivity":
        """The same with S projected onto the positive semi-definite matrices.

        Negative eigenvalues become zero, which is the nearest such matrix in the Frobenius
        norm. Of a measured S (CLADO) they are largely noise, which a solver would seek out;
        of an exact Hessian they are negative curvature, which this throws away. The losses
        change with the diagonal of S, in every batch by the same.

        Raises:
            ValueError: If the metric has no cross-layer terms.

        References:
            CLADO (arXiv 2307.05657) projects its measured matrix so.
        """
        if not self.has_interactions:
            raise ValueError(f"Metric {self.metric!r} has no cross-layer terms.")
        values, vectors = np.linalg.eigh(self.second)
        projected = (vectors * np.maximum(values, 0)) @ vectors.T
        change = np.einsum(
            "icm,mk,ick->ic", self.members, projected - self.second, self.members
        )
        return dataclasses.replace(
            self,
            projected=True,
            second=(projected + projected.T) / 2,
            batch_second=self.batch_second + change / 2,
        )


def choice_members(
    layers: Sequence[str], choices: Sequence[Choice], moves: Sequence[Move]
) -> Float[np.ndarray, "layers choices moves"]:
    """1 where a choice of a layer makes a move, else 0.

    Raises:
        ValueError: If a choice has bits that no move makes, which would cost nothing.
    """
    check_calibrated(layers, choices, moves)
    index = {tuple(move): m for m, move in enumerate(moves)}
    members = np.zeros((len(layers), len(choices), len(moves)))
    for i, layer in enumerate(layers):
        for c, choice in enumerate(choices):
            for kind, scheme in (("w", choice.weights), ("a", choice.activations)):
                if (m := index.get((layer, kind, scheme.number))) is not None:
                    members[i, c, m] = 1.0
    return members


def check_calibrated(
    layers: Sequence[str], choices: Sequence[Choice], moves: Sequence[Move]
) -> None:
    """Refuse choices whose bits no move makes.

    A layer without any move of its input (an embedding) takes all activation bits; a row with
    moves of its input alone (keys and values) takes all weight bits.

    Raises:
        ValueError: If there is one; the message names it and the bits that are calibrated.
    """
    of_inputs = {move.layer for move in moves if move.kind == "a"}
    of_inputs -= {move.layer for move in moves if move.kind == "w"}
    kernels = [layer for layer in layers if layer not in of_inputs]
    widths: dict[tuple[str, str], set[int]] = {(x, "w"): set() for x in kernels or layers}
    for layer, kind, bits in moves:
        widths.setdefault((layer, kind), set()).add(bits)
    any_input = any(kind == "a" for _, kind in widths)
    for choice in choices:
        wanted = {"w": choice.weights.number, "a": choice.activations.number}
        for (layer, kind), calibrated in widths.items():
            if wanted[kind] not in (*calibrated, FLOAT_BITS):
                raise _uncalibrated(choice, layer, kind, calibrated)
        if not choice.activations.is_none and not any_input:
            raise _uncalibrated(choice, layers[0], "a", set())


def _uncalibrated(choice: Choice, layer: str, kind: str, calibrated: set[int]) -> ValueError:
    tensor = "weights" if kind == "w" else "activations"
    known = ", ".join(Scheme.of(b).short for b in sorted(calibrated)) or "none"
    return ValueError(
        f"Choice {choice.label}: layer {layer!r} has no move to these bits of its {tensor}; "
        f"calibrated are {known}. Calibrate these bits, or leave out the choice."
    )


@check_kinds
def save_sensitivities(
    path: pathlib.Path | str,
    sensitivities: Mapping[str, Sensitivity],
    extra: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write several metrics of one network into one npz file, whole or not at all.

    `extra` arrays (the quantizers' scales) travel along under names of their own.
    """
    arrays: dict[str, np.ndarray] = dict(extra or {})
    metrics: dict[str, Any] = {}
    for name, sensitivity in sensitivities.items():
        record = {}
        for field in dataclasses.fields(sensitivity):
            value = getattr(sensitivity, field.name)
            if isinstance(value, np.ndarray):
                arrays[f"{name}/{field.name}"] = value
            elif field.name == "choices":
                record["choices"] = [choice.label for choice in value]
            else:
                record[field.name] = value
        metrics[name] = record
    KIND.write_npz(pathlib.Path(path), {"metrics": metrics}, arrays, compress=True)


@check_kinds
def load_sensitivities(path: pathlib.Path | str) -> dict[str, Sensitivity]:
    """Read the metrics that `save_sensitivities` wrote: no data, no network needed.

    Raises:
        FileNotFoundError: If there is no such file; it says which step makes it.
        ValueError: If the file is not a sensitivity file of this version.
    """
    header, arrays = KIND.read_npz(path := pathlib.Path(path), "a sensitivity file")
    try:
        metrics = header["metrics"]
        return {name: _table(name, record, arrays) for name, record in metrics.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise KIND.unusable(path, error) from error


def load_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of a sensitivity file but the header, by name.

    Raises:
        FileNotFoundError: If there is no such file; it says which step makes it.
        ValueError: If it is not a sensitivity file of this version.
    """
    return KIND.read_npz(path, "a sensitivity file")[1]


def _table(name: str, record: Any, arrays: Mapping[str, np.ndarray]) -> Sensitivity:
    """One metric of a file, every field checked."""
    own = {k.removeprefix(f"{name}/"): v for k, v in arrays.items() if k.startswith(f"{name}/")}
    fields = fields_of(Sensitivity, record | own, f"metric {name!r}")
    layers, moves = tuple(record["layers"]), tuple(Move(*move) for move in record["moves"])
    choices = tuple(Choice.parse(label) for label in record["choices"])
    check_json(tuple[str, ...], layers, f"layers of metric {name!r}")
    for move in moves:
        check_json(int, move.bits, f"bits of a move of metric {name!r}")
        if move.layer not in layers or move.kind not in ("w", "a"):
            raise ValueError(f"metric {name!r} has an unknown move {tuple(move)}")
    check_calibrated(layers, choices, moves)
    rows = len(own["batch_examples"]) if np.ndim(own["batch_examples"]) else 0
    table, square = (len(layers), len(choices)), np.ndim(own["second"]) == 2
    shapes = {
        "first": (len(moves),),
        "second": (len(moves),) * (2 if square else 1),
        "batch_first": (rows, *table),
        "batch_second": (rows, *table),
        "batch_examples": (rows,),
        "sampling_sem": table,
    }
    for key, shape in shapes.items():
        if fields.get(key) is not None:
            finite = key != "sampling_sem"  # unknown from a single sample
            check_array(fields[key], shape, f"{key} of metric {name!r}", finite=finite)
    if not (rows and (own["batch_examples"] > 0).all()):
        raise ValueError(f"metric {name!r} is of no examples")
    return Sensitivity(**(fields | {"layers": layers, "moves": moves, "choices": choices}))
