"""Calibration and evaluation examples that never overlap, the same for the same seed."""

import numpy as np

from jmpq.data.dataset import Dataset, Source, Split
from jmpq.kinds import check_kinds


@check_kinds
def calibration_split(
    dataset: Dataset, source: Source = "heldout", *, examples: int = 1024, seed: int = 0
) -> tuple[Split, Split]:
    """Draw calibration examples, and give those to report accuracy on.

    Args:
        dataset: The data set.
        source: ``"heldout"`` sets examples aside from the held-out split: evaluation is the
            rest of it. ``"train"`` takes training examples: evaluation is the whole held-out
            split.
        examples: Number of calibration examples, drawn without replacement, then put in the
            order of the data set.
        seed: Seed of the draw.

    Returns:
        Calibration and evaluation examples; both record source, seed, indices and a hash.

    Raises:
        ValueError: If there are not that many examples, or none would be left to evaluate.
    """
    whole = dataset.train if source == "train" else dataset.heldout
    most = len(whole) if source == "train" else len(whole) - 1
    if not 1 <= examples <= most:
        left = "" if source == "train" else ", leaving at least one to evaluate on"
        raise ValueError(
            f"{examples} calibration examples asked for, but the {source} split of "
            f"{dataset.name} can give 1 to {most}{left}. Ask for fewer."
        )
    chosen = np.zeros(len(whole), bool)
    chosen[np.random.default_rng(seed).permutation(len(whole))[:examples]] = True
    calibration = whole.take(np.flatnonzero(chosen), seed=seed)
    if source == "train":
        return calibration, dataset.heldout
    return calibration, whole.take(np.flatnonzero(~chosen), seed=seed)
