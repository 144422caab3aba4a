"""Seconds of every layer under every choice, as a table that any tool can write.

The CSV has the columns ``layer,choice,seconds`` (or ``layer,w_bits,a_bits,seconds``). A row
without a layer is of the whole network: without a choice the seconds that no choice changes,
with choice ``W32`` those of the unquantized network, which ratios such as ``0.6x`` refer to.
"""

import csv
import dataclasses
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from jmpq.files import write_csv
from jmpq.formats import UNQUANTIZED, Choice, labels
from jmpq.kinds import check_kinds
from jmpq.network.layers import Layer
from jmpq.problem.costs import MEASURED, Cost, Overhead
from jmpq.text import did_you_mean, some

_BITS = ("w_bits", "a_bits")


@check_kinds
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LatencyTable:
    """Seconds of one call of the network, as a sum over layers.

    Attributes:
        seconds: Seconds by layer and choice; a choice that is not there is unknown.
        fixed: Seconds that no choice changes.
        unquantized: Seconds of the unquantized network, where they are known otherwise than
            as a sum over layers.

    Raises:
        ValueError: If a number is negative, NaN or infinite; the message names the layer.
    """

    seconds: Mapping[str, Mapping[Choice, float]]
    fixed: float = 0.0
    unquantized: float | None = None

    def __post_init__(self) -> None:
        for layer, row in self.seconds.items():
            for choice, value in row.items():
                _check(value, f"layer {layer!r} at {choice.label}")
        _check(self.fixed, "the network apart from its choices")
        if self.unquantized is not None:
            _check(self.unquantized, "the unquantized network")

    @property
    def choices(self) -> tuple[Choice, ...]:
        """Choices that every layer has."""
        rows = [set(row) for row in self.seconds.values()]
        return tuple(sorted(set.intersection(*rows))) if rows else ()

    def array(
        self, layers: Iterable[str], choices: Sequence[Choice]
    ) -> Float[np.ndarray, "layers choices"]:
        """Seconds as an array, NaN where they are unknown."""
        rows = [self.seconds.get(name, {}) for name in layers]
        table = [[row.get(choice, math.nan) for choice in choices] for row in rows]
        return np.array(table, dtype=np.float64).reshape(len(rows), len(choices))

    @property
    def cost(self) -> Cost:
        """Cost ``latency_s`` of this table."""
        return dataclasses.replace(
            MEASURED["latency_s"],
            table=self._of_layers,
            fixed=self.fixed,
            unquantized=self.unquantized,
        )

    def _of_layers(
        self, layers: Sequence[Layer], choices: Sequence[Choice], overhead: Overhead
    ) -> Float[np.ndarray, "layers choices"]:
        return self.array([layer.name for layer in layers], choices)

    def check_layers(self, layers: Sequence[str]) -> None:
        """Raise `ValueError` where the table names a layer that the network has not."""
        if unknown := [name for name in self.seconds if name not in set(layers)]:
            raise ValueError(
                f"The table of latencies has layer {unknown[0]!r}."
                f"{did_you_mean(unknown[0], layers)} The network has {some(list(layers))}."
            )

    def write(self, path: pathlib.Path) -> None:
        """Write the table as CSV, whole or not at all."""
        rows = [("", "", self.fixed)]
        if self.unquantized is not None:
            rows.append(("", UNQUANTIZED.label, self.unquantized))
        for layer, row in self.seconds.items():
            rows += [(layer, choice.label, row[choice]) for choice in sorted(row)]
        names = ("layer", "choice", "seconds")
        write_csv(path, [dict(zip(names, row, strict=True)) for row in rows])

    @classmethod
    def read(cls, path: pathlib.Path) -> "LatencyTable":
        """Read a table from CSV.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it is not such a table; the message names file and line.
        """
        seconds: dict[str, dict[Choice, float]] = {}
        whole: dict[Choice | None, float] = {}
        try:  # spreadsheets begin UTF-8 with a mark of their own
            with pathlib.Path(path).open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                columns = set(reader.fieldnames or ())
                if not ({"layer", "seconds"} <= columns and columns & {"choice", "w_bits"}):
                    raise ValueError(
                        f"{path} has the columns {', '.join(sorted(columns)) or 'none'}: "
                        "expected layer, choice (as W4A8; or w_bits and a_bits) and seconds."
                    )
                for row in reader:
                    try:
                        choice, value = _choice(row), float(row["seconds"])
                        kept = seconds.setdefault(row["layer"], {}) if row["layer"] else whole
                        if choice in kept:
                            raise ValueError("it gives the seconds of a choice a second time")
                        if choice is None and row["layer"]:
                            raise ValueError(f"layer {row['layer']!r} has no choice")
                        kept[choice] = value  # type: ignore[index]
                    except (TypeError, ValueError) as error:
                        reason = str(error).rstrip(".")
                        raise ValueError(
                            f"{path}, line {reader.line_num}, cannot be read ({reason}): "
                            "expected layer, choice as W4A8, and seconds."
                        ) from error
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path} is not a CSV table ({error}): expected layer, choice, seconds."
            ) from error
        if other := [c for c in whole if c not in (None, UNQUANTIZED)]:
            raise ValueError(
                f"{path} has a row without a layer at {labels(c for c in other if c)}: give "
                "the whole network's seconds at W32 only."
            )
        fixed, unquantized = whole.get(None, 0.0), whole.get(UNQUANTIZED)
        try:
            return cls(seconds=seconds, fixed=fixed, unquantized=unquantized)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _choice(row: Mapping[str, str | None]) -> Choice | None:
    """The choice of a row: by label, or by bits, activations unquantized where they lack."""
    if label := row.get("choice"):
        return Choice.parse(label)
    w_bits, a_bits = (row.get(key) for key in _BITS)
    if not (w_bits or a_bits):
        return None
    return Choice(int(w_bits or 32), int(a_bits or 32))


def _check(value: float, what: str) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(
            f"The seconds of {what} are {value}: expected a number that is not negative."
        )
