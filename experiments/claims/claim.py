"""A claim, what it is made of, and the statistics that claims share."""

import dataclasses
import hashlib
import importlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from experiments.claims import MODULES
from experiments.common.arguments import RESULTS
from jmpq.study.source import source_sha256
from jmpq.study.statistics import Estimate, two_level_mean

Json = dict[str, Any]
Path = tuple[str | int, ...]
COMPOSED = (
    "Made from predictions of composed logits by a program that may have given wrong numbers "
    "for more than 32,768 rows of allocations and examples (corrected 2026-11-30); not made "
    "again."
)
OLD_RANDOM = (
    "Random and reversed allocations were drawn by older code that looked at the losses "
    "(before commit c9753a8); not made again."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """How a committed JSON was made.

    Attributes:
        sha256: Hash of the file.
        modules: Modules that were run.
        source_sha256: `jmpq.study.source.source_sha256` of it, as it was; None where that was
            not recorded.
        stale: Remark, where the code has changed since; empty where the result is current.
    """

    sha256: str
    modules: tuple[str, ...]
    source_sha256: str | None = None
    stale: str = ""

    @property
    def is_current(self) -> bool:
        """Whether the code that made it is the code that is here."""
        return self.source_sha256 == source_sha256(*self.modules)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim.

    Attributes:
        id: Identifier that prose cites.
        says: The claim, in a sentence.
        value: The statistic.
        least: Least value that supports it.
        most: Greatest value that supports it.
        decides: Path of one number in the JSON (name of the file first) that the statistic
            depends on; a test changes it and expects the claim to fail.
        stale: Remark, where this claim rests on rows that would be others today.
    """

    id: str
    says: str
    value: float
    least: float = -math.inf
    most: float = math.inf
    decides: Path
    stale: str = ""

    @property
    def holds(self) -> bool:
        """Whether the statistic is within its limits."""
        return self.least <= self.value <= self.most


def load(name: str) -> Json:
    """A committed result."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def file_sha256(name: str) -> str:
    """First digits of the hash of a committed result."""
    return hashlib.sha256((RESULTS / f"{name}.json").read_bytes()).hexdigest()[:16]


def all_modules() -> Iterator[tuple[str, Any]]:
    """Every module of claims by name."""
    for name in MODULES:
        yield name, importlib.import_module(f"experiments.claims.{name}")


def select(rows: Sequence[Json], **wanted: Any) -> list[tuple[int, Json]]:
    """Rows with these values, each with its position."""
    return [(i, row) for i, row in enumerate(rows)
            if all(row[key] == value for key, value in wanted.items())]  # fmt: skip


def paired(
    one: Mapping[Any, float], other: Mapping[Any, float], *, scale: float = 1.0
) -> Estimate:
    """Mean of ``one − other`` over the draws that both have; interval by Student's t."""
    draws = sorted(set(one) & set(other))
    values = scale * np.array([one[d] - other[d] for d in draws])
    return two_level_mean(values, np.arange(len(draws)), np.zeros(len(draws), int))


def spearman(one: Any, other: Any) -> float:
    """Spearman's rank correlation."""
    return float(stats.spearmanr(one, other)[0])  # type: ignore[arg-type]


def t_value(estimate: Estimate) -> float:
    """Mean over standard error."""
    return estimate.mean / estimate.sem if estimate.sem > 0 else math.inf * estimate.mean
