import numpy as np
import pytest
from sklearn.datasets import load_digits

from jmpq.data.digits import digits
from jmpq.data.load import load_dataset


def test_parts_are_all_the_images_stratified():
    data = digits()
    assert (len(data.train), len(data.heldout)) == (1200, 597)
    inputs = np.concatenate([data.train.inputs, data.heldout.inputs])
    assert inputs.shape == (1797, 8, 8, 1)
    assert inputs.dtype == np.uint8
    pixels = sorted(map(bytes, inputs))
    assert pixels == sorted(map(bytes, load_digits().images.astype(np.uint8)))
    shares = [np.bincount(s.labels) / len(s) for s in (data.train, data.heldout)]
    np.testing.assert_allclose(*shares, atol=2e-3)


def test_split_is_always_the_same():
    assert digits().heldout.sha256 == load_dataset("digits").heldout.sha256
    with np.errstate(all="raise"):
        inputs = digits().train.normalization(digits().train.inputs)
    assert abs(inputs.mean()) < 0.01
    assert abs(inputs.std() - 1) < 0.01


def test_unknown_name_lists_the_data_sets():
    with pytest.raises(
        ValueError,
        match=r"no data set 'imagenet'. Did you mean .* one of digits, cifar10",
    ):
        load_dataset("imagenet")
