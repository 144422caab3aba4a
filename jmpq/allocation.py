"""An allocation: the choice of every searched layer, by name, and its forms as arrays.

Solvers, evaluators, plans, fine-tuning and exporters take and return this value. Arrays are
made of it here and nowhere else: `Allocation.columns` gives indices into a table of layers
and choices, which is what searches work on; `bit_arrays` gives numbers of schemes for the
device, which are bit-widths where formats are plain integers.
"""

import dataclasses
import functools
import types
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from jmpq.formats import FLOAT_BITS, UNQUANTIZED, Choice, labels
from jmpq.kinds import check_kinds, expect

_LONG = 80  # characters of a label that `str` still shows
_PLAIN = "/:,;.+@()[]{}'"  # characters of names that labels keep, beside letters and digits


@dataclasses.dataclass(frozen=True, eq=False, repr=False, init=False)
class Allocation(Mapping[str, Choice]):
    """The choice of every searched layer, by name; a layer without one stays unquantized.

    A value: allocations are equal, and hash alike, if they give the same layers the same
    choices, in whatever order.

    >>> mixed = Allocation({"stem": "W8A8", "head": Choice(4, 8)})
    >>> mixed["head"].w_bits, mixed.label
    (4, 'head=W4A8 stem=W8A8')
    >>> Allocation.parse(mixed.label, ["stem", "head"]) == mixed
    True

    Attributes:
        choices: Choice of every layer that the allocation names; labels are read.

    Raises:
        TypeError: If it is not a mapping, a name is not a string, or a value is neither a
            `Choice` nor a label.
        ValueError: If a label is not a choice; the message names the layer.
    """

    choices: Mapping[str, Choice]

    @check_kinds
    def __init__(self, choices: Mapping[str, Choice | str]) -> None:
        own = {
            layer: _parsed(layer, choice) if isinstance(choice, str) else choice
            for layer, choice in choices.items()
        }
        for layer in own:
            if not isinstance(layer, str):
                raise TypeError(
                    f"An allocation gives layer {layer!r} a choice: expected its name."
                )
        object.__setattr__(self, "choices", types.MappingProxyType(own))

    def __getitem__(self, layer: str) -> Choice:
        return self.choices[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.choices)

    def __len__(self) -> int:
        return len(self.choices)

    @functools.cached_property
    def _hash(self) -> int:
        return hash(frozenset(self.choices.items()))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        return Allocation, (dict(self.choices),)  # a mapping proxy cannot be pickled

    def __str__(self) -> str:
        """The label; the number of layers of each choice where that is long."""
        if len(self.label) <= _LONG:
            return self.label
        counts = Counter(self.choices.values())
        parts = (f"{counts[choice]}x{choice.label}" for choice in sorted(counts))
        return f"{len(self)} layers: {' '.join(parts)}"

    def __repr__(self) -> str:
        return f"Allocation({self})"

    @classmethod
    def of(cls, given: "AllocationLike") -> "Allocation":
        """An allocation as it is, or one made of choices or labels by layer."""
        return given if isinstance(given, cls) else cls(given)

    @classmethod
    def uniform(cls, layers: Iterable[str], choice: Choice) -> "Allocation":
        """One choice for all layers."""
        return cls(dict.fromkeys(layers, choice))

    @classmethod
    def from_columns(
        cls, layers: Sequence[str], choices: Sequence[Choice], columns: Int[np.ndarray, " _"]
    ) -> "Allocation":
        """The allocation that takes these columns of a table ``[layers, choices]``.

        Raises:
            ValueError: If there is not one column for every layer, or one is not an index of
                `choices`.
        """
        if len(columns) != len(layers):
            raise ValueError(
                f"An allocation has one column for each of the {len(layers)} layers, got "
                f"{len(columns)}."
            )
        for i in np.flatnonzero((columns < 0) | (columns >= len(choices)))[:1]:
            raise ValueError(
                f"Layer {layers[i]!r} has column {columns[i]}: expected 0 to "
                f"{len(choices) - 1}, the columns of {labels(choices)}."
            )
        return cls({x: choices[c] for x, c in zip(layers, columns.tolist(), strict=True)})

    @classmethod
    def from_bits(cls, layers: Sequence[str], bits: Int[np.ndarray, "2 _"]) -> "Allocation":
        """The allocation of bits (`Scheme.number`) of weights and activations.

        It is one row of `bit_arrays`, and names every layer, unquantized ones too.

        Raises:
            ValueError: If there are not two numbers for every layer, or one is not valid.
        """
        pairs = zip(layers, *np.asarray(bits).tolist(), strict=True)
        return cls({layer: Choice(w_bits, a_bits) for layer, w_bits, a_bits in pairs})

    def columns(
        self, layers: Sequence[str], choices: Sequence[Choice]
    ) -> Int[np.ndarray, " layers"]:
        """Columns of a table ``[layers, choices]``, the inverse of `from_columns`.

        Args:
            layers: Rows of the table. One that the allocation does not name is unquantized,
                which must then be among the choices.
            choices: Columns of the table.

        Raises:
            ValueError: If the allocation names another layer or takes another choice.
        """
        _check_layers(layers, (self,))
        column = {choice: c for c, choice in enumerate(choices)}
        taken = [self.choices.get(layer, UNQUANTIZED) for layer in layers]
        found = [column.get(choice, -1) for choice in taken]
        if -1 in found:
            layer = layers[found.index(-1)]
            takes = (
                f"takes {self.choices[layer].label}"
                if layer in self.choices
                else "is not named by the allocation, which leaves it unquantized"
            )
            raise ValueError(f"Layer {layer!r} {takes}: expected one of {labels(choices)}.")
        return np.array(found, dtype=np.int64)

    @functools.cached_property
    def label(self) -> str:
        """One line that tells the allocation: ``W4A8``, or ``conv1=W8A8 layer1/conv1=W4A4``.

        The short form is that of several layers with one choice; else every layer is named,
        in alphabetical order. Equal allocations have equal labels, and allocations of the
        same layers are equal if their labels are. `parse` reads it.
        """
        if len(self) != 1 and len(set(self.choices.values())) <= 1:
            return next(iter(self.choices.values()), UNQUANTIZED).label
        return " ".join(
            f"{urllib.parse.quote(layer, safe=_PLAIN)}={self.choices[layer].label}"
            for layer in sorted(self.choices)
        )

    @classmethod
    def parse(cls, text: str, layers: Sequence[str]) -> "Allocation":
        """Read a `label`, or a choice such as ``W4A8`` that all layers take.

        Args:
            text: The label.
            layers: Layers that it may name; all of them, in the short form.

        Raises:
            ValueError: If a layer is unknown or named twice, or what it takes is not a choice.
        """
        if "=" not in text:
            return cls.uniform(layers, Choice.parse(text))
        named: dict[str, Choice] = {}
        for word in text.split():
            quoted, _, label = word.partition("=")
            if (layer := urllib.parse.unquote(quoted)) in named:
                raise ValueError(f"Layer {layer!r} stands twice in {text!r}: name it once.")
            named[layer] = _parsed(layer, label)
        _check_layers(layers, (cls(named),))
        return cls({layer: named[layer] for layer in layers if layer in named})

    def to_json(self) -> dict[str, str]:
        """``{"layer": "W4A8"}``, in the order of the layers."""
        return {layer: choice.label for layer, choice in self.choices.items()}

    @classmethod
    def from_json(cls, record: Mapping[str, str]) -> "Allocation":
        """Inverse of `to_json`.

        Raises:
            ValueError: If a value is not a choice; the message names the layer.
        """
        if not isinstance(record, Mapping):
            raise ValueError(
                f"an allocation is a JSON object of choices by layer, not {record!r:.40}"
            )
        return cls({layer: _parsed(layer, label) for layer, label in record.items()})


AllocationLike = Allocation | Mapping[str, Choice | str]


def column_table(
    layers: Sequence[str], choices: Sequence[Choice], allocations: Sequence[AllocationLike]
) -> Int[np.ndarray, "allocations layers"]:
    """`Allocation.columns` of several allocations, one row each.

    Raises:
        ValueError: If an allocation names another layer or takes another choice.
    """
    rows = [allocation.columns(layers, choices) for allocation in _listed(allocations)]
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(layers))


@runtime_checkable
class ChoiceTable(Protocol):
    """Anything with a row a layer and a column a choice: a problem, a joint predictor."""

    @property
    def layers(self) -> tuple[str, ...]: ...

    @property
    def choices(self) -> tuple[Choice, ...]: ...


def translate_columns(
    columns: Int[np.ndarray, "allocations _"], source: ChoiceTable, target: ChoiceTable
) -> Int[np.ndarray, "allocations _"]:
    """Allocations, a row each, from columns of one table to those of another.

    For searches, which have no time for names. A layer that only `target` has is unquantized.

    Raises:
        ValueError: If `target` lacks a layer or a choice of `source`, or the unquantized
            choice where a layer needs it.
    """
    row = {layer: i for i, layer in enumerate(target.layers)}
    column = {choice: c for c, choice in enumerate(target.choices)}
    if lacking := [layer for layer in source.layers if layer not in row]:
        raise ValueError(
            f"The table has no layer {lacking[0]!r}: it has {_some(target.layers)}."
        )
    if missing := [choice for choice in source.choices if choice not in column]:
        raise ValueError(
            f"The table has no {labels(missing)}: it has {labels(target.choices)}."
        )
    if (more := set(row).difference(source.layers)) and UNQUANTIZED not in column:
        raise ValueError(
            f"Layer {min(more)!r} is not searched, but the table has no unquantized choice for "
            f"it: it has {labels(target.choices)}."
        )
    shape = (len(columns), len(target.layers))
    out = np.full(shape, column.get(UNQUANTIZED, 0), dtype=np.int64)
    own = np.array([column[choice] for choice in source.choices])
    out[:, [row[layer] for layer in source.layers]] = own[columns]
    return out


def bit_arrays(
    layers: Sequence[str], allocations: Sequence[AllocationLike]
) -> Int[np.ndarray, "allocations 2 layers"]:
    """Numbers of the schemes of every layer, weights and activations, for compiled functions.

    Of plain integers they are the bit-widths.

    Args:
        layers: All layers of the network. One that an allocation does not name gets 32 bits:
            it stays unquantized.
        allocations: The allocations.

    Raises:
        ValueError: If an allocation names a layer that is not among `layers`.
    """
    allocations = _listed(allocations)
    _check_layers(layers, allocations)
    position = {layer: i for i, layer in enumerate(layers)}
    bits = np.full((len(allocations), 2, len(layers)), FLOAT_BITS, dtype=np.int64)
    for row, allocation in zip(bits, allocations, strict=True):
        for layer, choice in allocation.choices.items():
            row[:, position[layer]] = choice.weights.number, choice.activations.number
    return bits


def _listed(allocations: Sequence[AllocationLike]) -> list[Allocation]:
    expect(allocations, Sequence[AllocationLike], "`allocations`")
    return [Allocation.of(allocation) for allocation in allocations]


def _check_layers(layers: Sequence[str], allocations: Sequence[Allocation]) -> None:
    known = set(layers)
    for allocation in allocations:
        for layer in allocation:
            if layer not in known:
                raise ValueError(
                    f"An allocation names layer {layer!r}, which is not among {_some(layers)}. "
                    "Is it an allocation of another network?"
                )


def _parsed(layer: str, label: object) -> Choice:
    try:
        return Choice.parse(str(label))
    except ValueError as error:
        raise ValueError(f"Layer {layer!r}: {error}") from error


def _some(layers: Sequence[str], most: int = 5) -> str:
    return ", ".join([*layers[:most], *(["..."] if len(layers) > most else [])]) or "no layers"
