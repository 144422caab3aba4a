"""Handwritten digits: 1797 real 8x8 images that come with scikit-learn."""

import numpy as np

from jmpq.data.dataset import Dataset, Normalization, Source, Split, whole_split

# Values 0 to 16; mean and standard deviation over all pixels of all images.
NORMALIZATION = Normalization(scale=16.0, mean=(0.3053,), std=(0.3760,))
HELDOUT_EXAMPLES = 597
SPLIT_SEED = 0  # of the split into training and held-out examples; part of the data set


def digits() -> Dataset:
    """The digits data set: 1200 examples to train on, 597 held out.

    The split is stratified by class and always the same; `Split.indices` count within each
    part.

    References:
        Alpaydin, Kaynak (1998), Optical Recognition of Handwritten Digits, UCI repository
        (its test part, as scikit-learn distributes it).
    """
    return Dataset(name="digits", classes=tuple("0123456789"), read=_read)


def _read(source: Source) -> Split:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(
        np.arange(len(labels)),
        test_size=HELDOUT_EXAMPLES,
        random_state=SPLIT_SEED,
        stratify=labels,
    )
    chosen = np.sort(parts[0 if source == "train" else 1])
    raw = pixels[chosen].astype(np.uint8).reshape(-1, 8, 8, 1)
    return whole_split("digits", source, raw, labels[chosen], NORMALIZATION)
