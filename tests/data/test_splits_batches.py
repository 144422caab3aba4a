import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.data.batches import batches, check_finite, count_batches
from jmpq.data.dataset import Dataset, Normalization, Split, whole_split
from jmpq.data.splits import calibration_split


def toy_split(source="heldout", examples=10) -> Split:
    rng = np.random.default_rng(len(source))
    return whole_split(
        "toy",
        source,
        rng.integers(0, 256, (examples, 2, 3, 2), dtype=np.uint8),
        np.arange(examples) % 3,
        Normalization(scale=255.0, mean=(0.25, 0.5), std=(0.5, 2.0)),
    )


TOY = Dataset(
    name="toy", classes=("a", "b", "c"), read=lambda s: toy_split(s, 20 if s == "train" else 10)
)


def test_heldout_calibration_is_disjoint_from_evaluation_and_complete():
    calibration, evaluation = calibration_split(TOY, "heldout", examples=4, seed=3)
    assert len(calibration) == 4
    joined = np.concatenate([calibration.indices, evaluation.indices])
    assert sorted(joined) == list(range(10))
    assert (np.diff(calibration.indices) > 0).all()
    np.testing.assert_array_equal(calibration.inputs, TOY.heldout.inputs[calibration.indices])
    np.testing.assert_array_equal(evaluation.labels, TOY.heldout.labels[evaluation.indices])
    for part, examples in ((calibration, 4), (evaluation, 6)):
        assert part.record() == {
            "dataset": "toy",
            "source": "heldout",
            "examples": examples,
            "seed": 3,
            "sha256": part.sha256,
        }


def test_train_calibration_leaves_the_heldout_split_whole():
    calibration, evaluation = calibration_split(TOY, "train", examples=20)
    assert calibration.source == "train"
    assert evaluation is TOY.heldout
    assert evaluation.record()["seed"] is None


def test_same_seed_same_examples_other_seed_others():
    draws = [calibration_split(TOY, "train", examples=8, seed=s)[0] for s in (0, 0, 1)]
    assert draws[0].sha256 == draws[1].sha256
    assert draws[0].sha256 != draws[2].sha256


@pytest.mark.parametrize(
    ("source", "examples", "says"),
    [
        ("heldout", 10, r"1 to 9, leaving at least one"),
        ("train", 21, "1 to 20"),
        ("train", 0, "0 cal"),
    ],
)
def test_more_examples_than_there_are_is_an_error(source, examples, says):
    with pytest.raises(ValueError, match=says):
        calibration_split(TOY, source, examples=examples)


def test_unknown_source_is_an_error():
    with pytest.raises(ValueError, match=r"`source` .* is '.*': expected 'train' or 'heldout'"):
        calibration_split(TOY, "test")  # type: ignore[arg-type]


def test_hash_follows_every_part_of_a_split():
    split = toy_split()
    changed = [
        dataclasses.replace(split, inputs=split.inputs[::-1].copy()),
        dataclasses.replace(split, labels=split.labels[::-1].copy()),
        dataclasses.replace(split, indices=split.indices + 1),
        dataclasses.replace(split, source="train"),
        dataclasses.replace(
            split, normalization=Normalization(scale=1.0, mean=(0.0,), std=(1.0,))
        ),
    ]
    assert len({s.sha256 for s in [split, *changed]}) == 6


@pytest.mark.parametrize("labels", [9, 0])
def test_split_of_unequal_or_no_examples_is_refused(labels):
    split = toy_split()
    inputs = split.inputs[: 10 if labels else 0]
    with pytest.raises(ValueError, match=f"{len(inputs)} inputs, {labels} labels"):
        dataclasses.replace(
            split, inputs=inputs, labels=split.labels[:labels], indices=split.indices[:labels]
        )


@pytest.mark.parametrize("last", ["pad", "keep", "drop"])
def test_batches_are_normalised_in_order_with_the_chosen_last_batch(last):
    split = toy_split()
    made = list(batches(split, 4, last=last))
    sizes = {"pad": [4, 4, 4], "keep": [4, 4, 2], "drop": [4, 4]}[last]
    assert [len(b.labels) for b in made] == sizes
    assert len(made) == count_batches(split, 4, last=last)
    weights = np.concatenate([b.weights for b in made])
    inputs = np.concatenate([b.inputs for b in made])
    labels = np.concatenate([b.labels for b in made])
    assert weights.tolist() == [1] * min(10, sum(sizes)) + [0] * max(0, sum(sizes) - 10)
    assert (inputs.dtype, labels.dtype, weights.dtype) == (np.float32, np.int32, np.float32)
    real = weights > 0
    want = (split.inputs / 255.0 - np.array([0.25, 0.5])) / np.array([0.5, 2.0])
    np.testing.assert_allclose(inputs[real], want[: real.sum()], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(labels[real], split.labels[: real.sum()])


def test_batch_that_is_exactly_full_gets_no_padding():
    assert [b.weights.sum() for b in batches(toy_split(), 5)] == [5, 5]


def test_batch_errors():
    with pytest.raises(ValueError, match="batch_size=0: give at least 1"):
        batches(toy_split(), 0)
    with pytest.raises(ValueError, match="leaves no batch of 10"):
        batches(toy_split(), 11, last="drop")


def test_inputs_in_bfloat16_become_float32_and_float16_stays():
    values = np.linspace(0, 1, 12).reshape(4, 3)
    for dtype, kept in {jnp.bfloat16: np.float32, np.float16: np.float16}.items():
        inputs = np.asarray(values, dtype)
        split = Dataset.from_arrays(inputs, np.arange(4)).heldout
        assert split.inputs.dtype == kept
        np.testing.assert_array_equal(split.inputs, inputs.astype(np.float32))


def test_values_of_half_precision_are_looked_at_too():
    spoilt = np.array([1.0, np.nan], jnp.bfloat16)
    with pytest.raises(ValueError, match="1 of 2 values in a batch of the examples are NaN"):
        check_finite(spoilt, "the examples")
    check_finite(np.array([1.0, 2.0], jnp.bfloat16), "the examples")


def test_a_label_that_is_no_class_makes_no_names():
    data = Dataset.from_arrays(np.zeros((2, 3), np.float32), np.array([0, 30_000_000]))
    assert data.classes == ()
    with pytest.raises(ValueError, match="There are no inputs of the heldout examples"):
        Dataset.from_arrays({}, np.zeros(2, int))
