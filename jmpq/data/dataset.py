"""A data set: two splits, each knowing where its examples come from."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float, Int, PyTree, Shaped

from jmpq.data.images import EncodedImages, EncodedLabels
from jmpq.data.text.tokens import Tokenizer
from jmpq.kinds import check_kinds
from jmpq.zoo.architectures import InputKind

Source = Literal["train", "heldout"]
MOST_CLASSES = 100_000  # classes that are numbered; a larger label is taken for a mistake


@dataclasses.dataclass(frozen=True, kw_only=True)
class Normalization:
    """Network input = (raw / scale − mean) / std, mean and std per channel, float32."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(
        self, raw: Shaped[np.ndarray, "batch height width channels"]
    ) -> Float[np.ndarray, "batch height width channels"]:
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return (raw.astype(np.float32) / np.float32(self.scale) - mean) / std


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrimPadding:
    """Network input = tokens up to the shortest of `lengths` that holds every sentence.

    What is cut off is padding in all sentences of the batch. Few lengths are few programs to
    compile; one that is longer than all of them stays as it is.
    """

    lengths: tuple[int, ...] = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)

    def __call__(
        self, raw: Mapping[str, Shaped[np.ndarray, "*batch length"]]
    ) -> dict[str, Shaped[np.ndarray, "*batch trimmed"]]:
        mask = raw["attention_mask"]
        used = np.flatnonzero(mask.any(axis=tuple(range(mask.ndim - 1))))
        longest = int(used[-1]) + 1 if len(used) else 1
        length = next((n for n in sorted(self.lengths) if n >= longest), mask.shape[-1])
        return {key: tokens[..., :length] for key, tokens in raw.items()}


@dataclasses.dataclass(frozen=True)
class AsStored:
    """Network input = what is stored: token ids, or arrays as the network takes them."""

    def __call__(
        self, raw: PyTree[Shaped[np.ndarray, "batch ..."]]
    ) -> PyTree[Shaped[np.ndarray, "batch ..."]]:
        return raw


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Split:
    """Examples in a fixed order: raw inputs, in memory or still encoded, and labels.

    Attributes:
        dataset: Name of the data set.
        source: The part of the data set they come from.
        inputs: Raw inputs as stored, a pytree with one row per example: images NHWC (uint8),
            or tokens; `normalization` is applied to batches. Encoded images are decoded batch
            by batch.
        labels: Classes, from 0, one an example or one a position of its output, or what a
            regression is to give; those of a large split are read where they are asked for.
        indices: Positions in the whole `source` split.
        normalization: From raw inputs to the network's.
        seed: Seed of the draw that chose these examples; None for a whole split.
        note: Remark that a reader of results must know.
    """

    dataset: str
    source: Source
    inputs: PyTree[Shaped[np.ndarray, "..."] | EncodedImages]
    labels: Shaped[np.ndarray, "_ ..."] | EncodedLabels
    indices: Int[np.ndarray, " _"]
    normalization: Normalization | TrimPadding | AsStored
    seed: int | None = None
    note: str = ""

    def __post_init__(self) -> None:
        inputs = [len(leaf) for leaf in jax.tree.leaves(self.inputs)]
        counts = {*inputs, len(self.labels), len(self.indices)}
        if len(counts) > 1 or counts == {0}:
            raise ValueError(
                f"Split {self.source!r} of {self.dataset}: {max(inputs, default=0)} inputs, "
                f"{len(self.labels)} labels, {len(self.indices)} indices; expected one of each "
                "for every example, and at least one example."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: Int[np.ndarray, " _"], *, seed: int | None = None) -> "Split":
        """The examples at these positions of this split, in their order."""

        def rows(x: Any) -> Any:
            return x.take(positions) if isinstance(x, EncodedImages) else x[positions]

        return dataclasses.replace(
            self,
            inputs=jax.tree.map(rows, self.inputs),
            labels=self.labels[positions],
            indices=self.indices[positions],
            seed=self.seed if seed is None else seed,
        )

    @cached_property
    def lengths(self) -> Int[np.ndarray, " _"] | None:
        """Tokens of every example's longest sentence; None of images and running text."""
        if not isinstance(self.normalization, TrimPadding):
            return None
        lengths = self.inputs["attention_mask"].sum(axis=-1)
        return lengths.reshape(len(self), -1).max(axis=1)

    @cached_property
    def sha256(self) -> str:
        """Hash of names, normalisation, indices, inputs and labels."""
        names = [self.dataset, self.source, dataclasses.asdict(self.normalization)]
        digest = hashlib.sha256(json.dumps(names, sort_keys=True).encode())
        labels = self.labels[np.arange(len(self))]
        arrays = [self.indices.astype("<i8")]
        arrays.append(labels.astype("<f8" if labels.dtype.kind == "f" else "<i4"))
        if isinstance(self.inputs, EncodedImages):
            self.inputs.update(digest)
        else:
            arrays += jax.tree.leaves(self.inputs)
        for array in arrays:
            digest.update(json.dumps([array.dtype.name, list(array.shape)]).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def record(self) -> dict[str, Any]:
        """JSON description of the examples, kept by the artifacts made from them."""
        return {
            "dataset": self.dataset,
            "source": self.source,
            "examples": len(self),
            "seed": self.seed,
            "sha256": self.sha256,
            **({"note": self.note} if self.note else {}),
        }


@check_kinds
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """A named data set; its splits are read when first asked for.

    `from_arrays` makes one of arrays.

    Attributes:
        name: Name, as the command line takes it.
        classes: Names of the classes, in the order of the labels.
        read: Reads one split.
        note: Remark on the examples that a reader of results must know.
        guessed: Whether classes were numbered by the order of their names, as nobody said how.
        tokenizer: Tokenizer of the texts; None for images and stored token ids.
        inputs: Kind of inputs.
    """

    name: str
    classes: tuple[str, ...]
    read: Callable[[Source], Split]
    note: str = ""
    guessed: bool = False
    tokenizer: Tokenizer | None = None
    inputs: InputKind = "images"

    @classmethod
    @check_kinds
    def from_arrays(
        cls,
        inputs: PyTree,
        labels: Any,
        *,
        train: tuple[PyTree, Any] | None = None,
        classes: Sequence[str] | None = None,
        name: str = "arrays",
    ) -> "Dataset":
        """A data set of arrays that the network takes as they are.

        Args:
            inputs: Held-out examples, which the network was not trained on: an array, or a
                pytree of arrays, with one row per example. Calibration examples are drawn from
                them and accuracy is reported on the others, unless calibration is asked to take
                training examples. Float64 becomes float32, int64 becomes int32.
            labels: One label per example, classes counted from 0; or one per position; or what
                a regression is to give.
            train: Inputs and labels to fine-tune with, or to calibrate on.
            classes: Names of the classes; by default the numbers up to the largest label.
            name: Name of the data set.

        Raises:
            ValueError: If inputs or labels are no arrays of numbers, or differ in number.
        """
        parts: dict[Source, tuple[PyTree, np.ndarray]] = {}
        given: dict[Source, tuple[PyTree, Any] | None]
        given = {"heldout": (inputs, labels), "train": train}
        for source, pair in given.items():
            if pair is not None:
                what = f"of the {source} examples of {name!r}"
                if len(pair) != 2:
                    raise ValueError(
                        f"{source} has {len(pair)} parts: expected (inputs, labels)."
                    )
                if not jax.tree.leaves(pair[0]):
                    raise ValueError(f"There are no inputs {what}: give an array or several.")
                arrays = jax.tree.map(
                    lambda x, what=what: _numbers(x, f"inputs {what}"), pair[0]
                )
                parts[source] = arrays, _numbers(pair[1], f"labels {what}")
        splits = {
            source: dataclasses.replace(
                whole_split(name, source, arrays, own, AsStored()), labels=own
            )
            for source, (arrays, own) in parts.items()
        }
        if classes is None:
            whole = [own for _, own in parts.values() if own.dtype.kind in "iu"]
            most = max((int(own.max()) for own in whole if own.size), default=-1)
            # Whole numbers beyond are no classes, or are refused against the network's.
            classes = tuple(map(str, range(most + 1))) if most < MOST_CLASSES else ()

        def read(source: Source) -> Split:
            if source not in splits:
                raise FileNotFoundError(
                    "The data set has no training examples: pass train=(inputs, labels) to "
                    "jmpq.Dataset.from_arrays."
                )
            return splits[source]

        return cls(name=name, classes=tuple(classes), read=read)

    def named(self, name: str) -> "Dataset":
        """The same data set by another name, which goes into the hashes of its splits."""

        def read(source: Source) -> Split:
            return dataclasses.replace(self.read(source), dataset=name)

        return dataclasses.replace(self, name=name, read=read)

    @cached_property
    def train(self) -> Split:
        """Examples to train on."""
        return self.read("train")

    @cached_property
    def heldout(self) -> Split:
        """Examples that training never sees (the official test set where there is one)."""
        return self.read("heldout")


def _numbers(values: Any, what: str) -> Shaped[np.ndarray, "..."]:
    """Rows of numbers, no wider than JAX computes with by default.

    Raises:
        ValueError: If they are none.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise ValueError(
            f"The {what} are no array: {error}. Give rows of one shape."
        ) from error
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)  # NumPy has no arithmetic of it
    if array.dtype.kind not in "iuf" or not array.ndim:
        raise ValueError(
            f"The {what} are {array.dtype} of shape {array.shape}: give an array of floats or "
            "whole numbers with one row per example."
        )
    if array.dtype.kind == "f":
        narrow = np.dtype(np.float32) if array.dtype.itemsize > 4 else array.dtype
        most = float(np.finfo(np.float32).max)
    else:
        narrow = array.dtype if array.dtype.itemsize < 4 else np.dtype(np.int32)
        most = np.iinfo(np.int32).max
    if narrow != array.dtype and array.size:
        finite = array[np.isfinite(array)]
        ends = (finite.min().item(), finite.max().item()) if finite.size else (0,)
        if abs(worst := max(ends, key=abs)) > most:
            raise ValueError(
                f"The {what} have {worst}, which {narrow} does not hold: give numbers up to "
                f"{most:.6g}."
            )
    return array.astype(narrow, copy=False)


def whole_split(
    dataset: str,
    source: Source,
    inputs: PyTree[Shaped[np.ndarray, "..."]],
    labels: Shaped[np.ndarray, "labels ..."],
    normalization: Normalization | TrimPadding | AsStored,
) -> Split:
    """All examples of one source, numbered in their order."""
    return Split(
        dataset=dataset,
        source=source,
        inputs=inputs,
        labels=labels.astype(np.float32 if labels.dtype.kind == "f" else np.int32),
        indices=np.arange(len(jax.tree.leaves(inputs)[0])),
        normalization=normalization,
    )
