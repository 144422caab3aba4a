"""Positions of an example: which of them count, by their labels. No JAX."""

import math
from typing import Any

import numpy as np

# Label of a position that does not count, in outputs with several positions an example.
IGNORED = -1


def counted(target: Any, positions: tuple[int, ...]) -> Any:
    """Which positions count by the target; None where it does not say so.

    Labels say it by `IGNORED`, logits that are a target as `reference_logits` marks them.

    Args:
        target: Array of NumPy or JAX, of one example or of a batch.
        positions: Shape of the positions that the target is of.
    """
    if positions and target.shape == positions and np.issubdtype(target.dtype, np.integer):
        return target != IGNORED
    of_logits = positions and target.ndim and target.shape[:-1] == positions
    if of_logits and np.issubdtype(target.dtype, np.floating):
        return (target != np.finfo(target.dtype).min).any(axis=-1)
    return None


def reference_logits(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A network's own logits as targets: KL divergences to them count what the labels count.

    Where an example has positions, logits of those with the label `IGNORED` become the least
    number of their type, which the logits of no position are.

    >>> reference_logits(np.zeros((1, 2, 2)), np.array([[3, IGNORED]]))[0, :, 0] < 0
    array([False,  True])

    Args:
        logits: Examples first, classes last.
        labels: One a position; labels of another shape leave the logits as they are.
    """
    if (counts := counted(labels, logits.shape[:-1] if logits.ndim > 2 else ())) is None:
        return logits
    return np.where(counts[..., None], logits, np.finfo(logits.dtype).min)


def check_target(target: tuple[int, ...], output: tuple[int, ...]) -> None:
    """Refuse the target of an example that has not as many numbers as its output.

    Raises:
        ValueError: If the counts differ.
    """
    if math.prod(target) != math.prod(output):
        raise ValueError(
            f"a target has shape {list(target)} and its output {list(output)}: squared error "
            "takes them number by number, class numbers are for cross_entropy"
        )
