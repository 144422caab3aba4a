import dataclasses

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jmpq.data.batches import batches
from jmpq.data.splits import calibration_split
from jmpq.data.text.glue import by_length, glue, read_glue
from jmpq.data.text.tokens import read_tokenizer

PAIRS = (
    'main-captions\tMSRvid\t2012test\t0001\t2.500\tA man plays.\tA man is "playing.\n'
    "main-news\tx\t2012test\t0002\t5.000\ta\tb\torigin a\torigin b\n"
    "main-news\tx\t2012test\t0003\t0.000\ta b c d e f\tb\n"
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "glue" / "stsb").mkdir(parents=True)
    (tmp_path / "glue" / "sst2").mkdir()
    (tmp_path / "glue" / "stsb" / "dev.csv").write_text(PAIRS)
    (tmp_path / "glue" / "sst2" / "dev.tsv").write_text(
        "sentence\tlabel\nit 's \"charming . \t1\nbleak\t0\n"
    )
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdef"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    return tmp_path


def test_tables_are_read_with_quotes_as_they_are(folder):
    pairs = read_glue("stsb", "dev", folder)
    assert pairs.first == ("A man plays.", "a", "a b c d e f")
    assert pairs.second == ('A man is "playing.', "b", "b")
    np.testing.assert_allclose(pairs.labels, [0.5, 1.0, 0.0])
    sentences = read_glue("sst2", "dev", folder / "glue")
    assert (sentences.first, sentences.second) == (("it 's \"charming .", "bleak"), None)
    np.testing.assert_array_equal(sentences.labels, [1, 0])


def test_pairs_go_through_splits_and_batches(folder):
    dataset = glue("stsb", read_tokenizer(folder), folder, train="dev", heldout="dev")
    calibration, rest = calibration_split(dataset, "heldout", examples=2, seed=1)
    assert not set(calibration.indices) & set(rest.indices)
    assert calibration.sha256 != rest.sha256
    whole = dataset.heldout
    assert whole.take(np.arange(3)).sha256 == whole.sha256
    moved = dataclasses.replace(whole, labels=whole.labels + np.float32(0.1))
    assert moved.sha256 != whole.sha256
    short = by_length(dataset.heldout)
    np.testing.assert_array_equal(short.indices, [1, 0, 2])
    first, last = batches(short, 2)
    assert first.inputs["input_ids"].shape == (2, 2, 8)
    assert last.labels.dtype == np.float32
    np.testing.assert_array_equal(last.weights, [1, 0])


def test_classes_stay_whole_numbers(folder):
    split = glue("sst2", read_tokenizer(folder), folder).heldout
    (batch,) = batches(split, 2)
    assert batch.labels.dtype == np.int32
    assert batch.inputs["input_ids"].shape == (2, 8)


def test_the_real_tables_have_their_published_sizes(shared_data):
    counts = {("sst2", "train"): 67349, ("sst2", "dev"): 872, ("sst2", "test"): 1821}
    counts |= {("stsb", "train"): 5749, ("stsb", "dev"): 1500, ("stsb", "test"): 1379}
    for (task, part), count in counts.items():
        found = read_glue(task, part, shared_data)
        assert len(found.first) == len(found.labels) == count
        assert all(found.first)
    assert read_glue("sst2", "dev", shared_data).labels.sum() == 444


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("x\ty\tz\t1\tfive\ta\tb", "line 4: could not convert string to float: 'five'"),
        ("x\ty\tz\t1\t7\ta\tb", "line 4: score 7, expected 0 to 5"),
        ("x\ty\tz\t1\t3\ta", "line 4: expected genre, file.*; got 6 columns"),
    ],
)
def test_wrong_lines_are_named(folder, line, said):
    file = folder / "glue" / "stsb" / "dev.csv"
    file.write_text(PAIRS + line + "\n")
    with pytest.raises(ValueError, match=said):
        read_glue("stsb", "dev", folder)


def test_wrong_files_are_refused(folder):
    file = folder / "glue" / "sst2" / "dev.tsv"
    file.write_text("sentence\tlabel\nbad\t2\n")
    with pytest.raises(ValueError, match="line 2: label '2', expected 0 or 1"):
        read_glue("sst2", "dev", folder)
    file.write_text("bad\t1\n")
    with pytest.raises(ValueError, match="must begin with the header"):
        read_glue("sst2", "dev", folder)
    with pytest.raises(FileNotFoundError, match=r"expected stsb/test\.csv there, or GLUE prep"):
        read_glue("stsb", "test", folder)
    with pytest.raises(ValueError, match="no mnli dev here"):
        read_glue("mnli", "dev", folder)


def test_what_tensorflow_datasets_prepared_is_read(monkeypatch):
    rows = {
        "glue/sst2": [{"idx": 0, "sentence": b"bleak ", "label": 0}],
        "glue/stsb": [{"idx": 0, "sentence1": b"a", "sentence2": b"b", "label": 2.5}],
    }
    asked = []

    def data_source(name, split, data_dir):
        asked.append((name, split, data_dir))
        return rows[name]

    monkeypatch.setattr(tfds, "data_source", data_source)
    found = read_glue("sst2", "dev")
    assert (found.first, found.second, found.labels.tolist()) == (("bleak",), None, [0])
    found = read_glue("stsb", "train")
    assert (found.first, found.second, found.labels.tolist()) == (("a",), ("b",), [0.5])
    assert asked == [("glue/sst2", "validation", None), ("glue/stsb", "train", None)]
    rows["glue/sst2"][0]["label"] = -1
    with pytest.raises(ValueError, match="test part of sst2 has no labels"):
        read_glue("sst2", "test")
