"""Size, range and parts of the inputs are those that the documentation states."""

import re

import numpy as np
import pytest

from jmpq.data import cifar10
from jmpq.data.digits import digits
from jmpq.zoo.architectures import PREPROCESSINGS
from tests import pages

PAGE = (pages.ROOT / "docs" / "guides" / "built_in_networks.md").read_text()


def row(name):
    """Cells of the row of a name in the tables of what the network is given."""
    (cells,) = re.findall(rf"^\| `{name}` \| (.*to.*) \|$", PAGE, re.MULTILINE)
    return cells.replace("−", "-").replace(",", "").split(" | ")


def normalised(values, rule):
    """Least and greatest input, the formula of the page by hand."""
    pairs = list(zip(rule.mean, rule.std, strict=True))
    inputs = [(x / rule.scale - m) / s for x in values for m, s in pairs]
    return f"{min(inputs):.2f} to {max(inputs):.2f}"


def test_digits_are_given_as_documented():
    size, values, formula, *counts = row("digits")
    data = digits()
    assert size == " × ".join(map(str, data.heldout.inputs.shape[1:]))
    assert [int(count) for count in counts] == [len(data.train), len(data.heldout)]
    inputs = data.heldout.normalization(data.heldout.inputs)
    assert values == f"{inputs.min():.2f} to {inputs.max():.2f}"
    by_hand = eval(formula.split(", ")[0].split(" x from")[0], {"x": data.heldout.inputs})
    np.testing.assert_allclose(inputs, by_hand, rtol=1e-5, atol=1e-6)


def test_cifar10_is_given_as_documented():
    size, values, _, *counts = row("cifar10")
    assert size == "32 × 32 × 3"
    assert values == normalised((0, 255), cifar10.NORMALIZATION)
    sheets = [10_000 * len(cifar10.SHEETS[source]) for source in ("train", "heldout")]
    assert [int(count) for count in counts] == sheets
    assert cifar10.NORMALIZATION.mean == PREPROCESSINGS["torchvision"].mean
    for name in ("mean", "std"):
        stated = ", ".join(map(str, getattr(cifar10.NORMALIZATION, name)))
        assert stated in " ".join(PAGE.split())


@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_preprocessings_are_as_documented(name):
    values, formula, resize = row(name)
    rule = PREPROCESSINGS[name]
    assert values.replace("-0.00", "0.00") == normalised((0, 255), rule)
    assert int(resize) == rule.resize
    assert rule.crop == 224
    if "mean" not in formula:
        x = np.arange(256)
        by_hand = eval(formula, {"x": x})
        np.testing.assert_allclose((x / rule.scale - rule.mean[0]) / rule.std[0], by_hand)
