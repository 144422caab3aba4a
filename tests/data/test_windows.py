"""Running text is cut without overlap; every token is the label of the one before it."""

import numpy as np
import pytest

from jmpq.data.batches import batches
from jmpq.data.load import load_dataset
from jmpq.data.splits import calibration_split
from jmpq.data.text.tokens import read_tokenizer
from jmpq.data.text.windows import documents, running_text


@pytest.fixture(scope="module")
def tokenizer(shared_data):
    return read_tokenizer(shared_data / "tinystories", kind="text")


@pytest.fixture
def ids(tmp_path):
    stored = np.arange(100, 123, dtype=np.uint16)
    np.save(tmp_path / "heldout.npy", stored)
    return tmp_path, stored.astype(np.int32)


def test_windows_share_no_token(ids):
    folder, stored = ids
    split = running_text(folder, None, length=5).heldout
    assert split.inputs.shape == split.labels.shape == (4, 5)
    np.testing.assert_array_equal(split.inputs.ravel(), stored[:20])
    np.testing.assert_array_equal(split.labels.ravel(), stored[1:21])
    calibration, evaluation = calibration_split(
        running_text(folder, None, length=5), examples=2
    )
    assert not np.intersect1d(calibration.labels, evaluation.labels).size
    (batch,) = batches(calibration, 2)
    assert batch.inputs.dtype == np.int32
    assert batch.labels.shape == (2, 5)


def test_documents_begin_with_their_first_token(tmp_path, tokenizer):
    texts = ["Once upon a time", "A cat", "Tom and Lily went to the park to play."]
    (tmp_path / "tales.txt").write_text("".join(f"{t}\n<|endoftext|>\n" for t in texts))
    split = documents(tmp_path, tokenizer, length=6).heldout
    whole = tokenizer.ids(texts)
    assert len(split) == 3
    for row, known in enumerate(whole):
        count = min(len(known) - 1, 6)
        np.testing.assert_array_equal(split.inputs[row, :count], known[:count])
        np.testing.assert_array_equal(split.labels[row, :count], known[1 : count + 1])
        assert (split.labels[row, count:] == -1).all()
    assert (split.inputs[:, 0] == 1).all()
    joined = running_text(tmp_path, tokenizer, length=4).heldout
    np.testing.assert_array_equal(
        joined.inputs.ravel(), np.concatenate(whole)[: joined.inputs.size]
    )


def test_stories_have_the_published_tokens(shared_data, tokenizer):
    folder = shared_data / "tinystories"
    split = load_dataset("documents", folder, None, tokenizer, text_length=511).heldout
    assert len(split) == 733
    assert (split.labels >= 0).sum() == 261_635
    known = np.load(folder / "reference_logits.npz")["tokens"]
    np.testing.assert_array_equal(split.inputs[::90][:8, :48], known)


def test_parts_are_found_by_their_names(ids):
    folder, _ = ids
    np.save(folder / "train.npy", np.arange(9))
    dataset = running_text(folder, None, length=3)
    assert (len(dataset.train), len(dataset.heldout)) == (2, 7)
    (folder / "train.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"No train text in .*expected train\.txt or"):
        _ = running_text(folder, None, length=3).train


def test_what_is_no_text_is_refused(ids, tokenizer):
    folder, _ = ids
    with pytest.raises(FileNotFoundError, match="give --data-dir"):
        running_text(None, None, length=3)
    with pytest.raises(FileNotFoundError, match=r"No heldout text in .*or a single text"):
        running_text(folder / "none", None, length=3)
    with pytest.raises(ValueError, match="text_length=0: give at least one token"):
        running_text(folder, None, length=0)
    with pytest.raises(ValueError, match="has 23 tokens, too few for a window of 23"):
        _ = running_text(folder, None, length=23).heldout
    (folder / "a.txt").write_bytes(b"caf\xe9")
    (folder / "empty.txt").write_text("")
    np.save(folder / "b.npy", np.ones((2, 2)))
    for name, given, said in (
        ("a.txt", None, "is text: say which tokenizer the network expects"),
        ("a.txt", tokenizer, "is not UTF-8"),
        ("empty.txt", tokenizer, "is empty: expected a text"),
        ("b.npy", None, r"holds float64\[2, 2\]; expected token ids"),
    ):
        with pytest.raises(ValueError, match=said):
            _ = documents(folder / name, given, length=3).heldout
    np.save(folder / "one.npy", np.ones(1, np.int32))
    with pytest.raises(ValueError, match=r"Document 0 of .*one\.npy has 1 tokens"):
        _ = documents(folder / "one.npy", None, length=3).heldout
