"""What is said of the float network: its loss and top-1 by hand, and when to doubt them."""

import numpy as np
import pytest

from jmpq.data.batches import batches
from jmpq.data.dataset import Dataset
from jmpq.run.float_quality import chance, float_quality, guessing
from jmpq.training.losses import cross_entropy, squared_error

INPUTS = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 1, 1, 0])


def test_loss_top1_and_range_are_those_by_hand():
    split = Dataset.from_arrays(INPUTS, LABELS).heldout
    found = float_quality(lambda x: 3 * x, batches(split, 3), cross_entropy)
    z = 3 * INPUTS.astype(np.float64)
    losses = np.log(np.exp(z).sum(1)) - z[np.arange(7), LABELS]
    assert found.examples == 7
    assert found.loss == pytest.approx(losses.mean(), rel=1e-6)
    assert found.top1 == pytest.approx((z.argmax(1) == LABELS).mean())
    assert (found.low, found.high) == (INPUTS.min(), INPUTS.max())
    text = f"top-1 {100 * found.top1:.2f} %, loss {found.loss:.4g} nats on 7 calibration"
    assert text in str(found)


def test_regressions_and_tokens_have_no_top1_or_no_range():
    targets = INPUTS[:, :1] + 1
    split = Dataset.from_arrays(INPUTS[:, :1], targets).heldout
    found = float_quality(lambda x: x, batches(split, 7), squared_error)
    assert (found.top1, found.loss) == (None, pytest.approx(0.5))
    tokens = Dataset.from_arrays(LABELS[:, None], LABELS).heldout
    found = float_quality(lambda x: INPUTS, batches(tokens, 7), cross_entropy)
    assert (found.low, found.high) == (None, None)
    assert "inputs" not in str(found)


def test_a_network_that_does_no_better_than_guessing_is_doubted():
    split = Dataset.from_arrays(INPUTS, LABELS, name="mine").heldout
    assert chance(split) == {"chance": 3 / 7}

    def said(loss, top1, measured=cross_entropy):
        return guessing(loss, top1, split, measured=measured, classes=4)

    assert "float top-1 42.86 % on the heldout split of mine" in said(1.0, 3 / 7)
    match = "(its most frequent class: 42.86 %) is no better than guessing: labels or the scale"
    assert match in said(1.0, 3 / 7)
    assert said(1.0, 4 / 7) == ""
    assert "float loss 1.386 nats" in said(np.log(4), 4 / 7)
    assert "ln 4 = 1.386" in said(np.log(4), 4 / 7)
    assert said(9.0, 4 / 7, squared_error) == ""
    assert said(9.0, None, squared_error) == ""
