"""Racing: the best of many allocations, the hopeless ones dropped after a few batches."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np
import scipy.stats
from jaxtyping import Bool, Float

from jmpq.allocation import AllocationLike
from jmpq.deploy.measure import Evaluator, Outcome, outcome_of
from jmpq.kinds import check_kinds


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Race:
    """How a race ended.

    Attributes:
        best: Index of the allocation of least mean among those that finished.
        finished: Whether an allocation was measured on all examples.
        outcomes: Outcome of every allocation, on the examples it was measured on.
    """

    best: int
    finished: Bool[np.ndarray, " allocations"]
    outcomes: list[Outcome]

    @property
    def share(self) -> float:
        """Part of the work of measuring every allocation on all examples that was done."""
        examples = [outcome.examples for outcome in self.outcomes]
        return sum(examples) / (len(examples) * max(examples))


@check_kinds
def race(
    evaluator: Evaluator,
    allocations: Sequence[AllocationLike],
    *,
    by: Literal["loss", "kl"] = "loss",
    error: float = 0.01,
) -> Race:
    """Find the allocation of least mean loss without measuring all of them to the end.

    Batch by batch, all allocations still in the race are measured on the same examples. One
    is dropped as soon as its mean difference to the best so far, example by example, is
    positive beyond doubt: by Student's t at the level `error` over the number of allocations
    and of looks at them. The true best is thus dropped with a probability of at most `error`
    (as far as means of a batch of differences are normal), however many allocations race.

    Args:
        evaluator: Measures; its batches should hold some 50 examples or more, in random order.
        allocations: The allocations.
        by: Quantity to minimise: the loss, or the KL divergence to the float network.
        error: Probability of losing the best allocation.

    Raises:
        ValueError: If there is no allocation, `error` is not between 0 and 0.5, or a
            layer is given bits that were not calibrated.

    References:
        Maron, Moore (1994), Hoeffding races; Moore, Lee (1994), for paired differences.
    """
    bits = evaluator.bits(allocations)
    if not len(bits) or not 0 < error < 0.5:
        raise ValueError(
            f"A race needs an allocation and an error between 0 and 0.5; got {len(bits)} "
            f"allocations and error={error}."
        )
    step, row = evaluator.candidates_per_call, ("loss", "kl").index(by)
    chunks = [np.arange(i, min(i + step, len(bits))) for i in range(0, len(bits), step)]
    by_chunk = [evaluator.corrections(bits[chunk]) for chunk in chunks]
    corrections = jax.tree.map(lambda *parts: np.concatenate(parts), *by_chunk)
    level = error / (len(bits) * len(evaluator.reference()))
    seen: list[list[np.ndarray]] = [[] for _ in bits]  # scores, batch by batch
    alive, best = np.arange(len(bits)), 0  # best: its place in alive
    for number, batch in enumerate(evaluator.batches()):
        for start in range(0, len(alive), step):
            chunk = alive[start : start + step]
            own = jax.tree.map(lambda x, chunk=chunk: x[chunk], corrections)
            for i, scores in zip(
                chunk, evaluator.scores(bits[chunk], number, batch, own), strict=True
            ):
                seen[i].append(scores)
        values = np.stack([np.concatenate([s[row] for s in seen[i]]) for i in alive])
        means = np.where(np.isnan(values).any(axis=1), np.inf, values.mean(axis=1))
        best = int(means.argmin())
        if number + 1 < len(evaluator.reference()):
            alive = alive[_may_be_best(values, best, level)]
    finished = np.isin(np.arange(len(bits)), alive)
    outcomes = [outcome_of(np.concatenate(scores, axis=1)) for scores in seen]
    return Race(best=int(alive[best]), finished=finished, outcomes=outcomes)


def _may_be_best(
    values: Float[np.ndarray, "allocations examples"], best: int, level: float
) -> Bool[np.ndarray, " allocations"]:
    """Which allocations the differences to the best one do not rule out; itself is not."""
    examples = values.shape[1]
    if examples < 2:
        return np.ones(len(values), bool)
    with np.errstate(invalid="ignore"):  # destroyed networks: infinite losses
        differences = values - values[best]
        sem = differences.std(axis=1, ddof=1) / np.sqrt(examples)
        bound = scipy.stats.t.isf(level, examples - 1)
        kept = differences.mean(axis=1) <= bound * sem
    kept[best] = True
    return kept
