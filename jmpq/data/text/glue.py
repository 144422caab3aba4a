"""SST-2 and STS-B of GLUE: from local tables, or prepared by tensorflow-datasets."""

import csv
import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped

from jmpq.data.dataset import Dataset, Source, Split, TrimPadding, whole_split
from jmpq.data.text.tokens import Tokenizer
from jmpq.kinds import check_kinds

Task = Literal["sst2", "stsb"]
Part = Literal["train", "dev", "test"]

SENTIMENTS = ("negative", "positive")
MOST_SIMILAR = 5.0  # the score of two sentences that say the same
FILES: dict[tuple[str, str], str] = {
    ("sst2", "train"): "sst2/train.tsv",
    ("sst2", "dev"): "sst2/dev.tsv",
    ("sst2", "test"): "sst2/test_labeled.tsv",
    ("stsb", "train"): "stsb/train.csv",
    ("stsb", "dev"): "stsb/dev.csv",
    ("stsb", "test"): "stsb/test.csv",
}
TFDS_PARTS = {"train": "train", "dev": "validation", "test": "test"}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Sentences:
    """Sentences or pairs of them as text, with their labels.

    Attributes:
        first: The sentences.
        second: The other sentence of each pair; None where there are no pairs.
        labels: Classes from 0 (SST-2), or similarity from 0 to 1 (STS-B: score / 5).
    """

    first: tuple[str, ...]
    second: tuple[str, ...] | None
    labels: Shaped[np.ndarray, " _"]


def read_glue(task: str, part: str, data_dir: pathlib.Path | str | None = None) -> Sentences:
    """One part of a task.

    Args:
        task: ``sst2``: one sentence, negative 0 or positive 1. ``stsb``: two sentences, how
            similar they are.
        part: ``train``, ``dev`` or ``test``.
        data_dir: A folder (or the one that has it as ``glue/``) with ``sst2/train.tsv``,
            ``dev.tsv``, ``test_labeled.tsv`` (header ``sentence``, ``label``) and
            ``stsb/train.csv``, ``dev.csv``, ``test.csv`` (tab-separated without header: genre,
            file, year, id, score, two sentences); or what tensorflow-datasets prepared. None:
            the data folder of tensorflow-datasets, whose test parts have no labels.

    Raises:
        FileNotFoundError: If the data are not there (the message says how to get them).
        ValueError: If a table is not what it should be, or has no labels.
    """
    if (task, part) not in FILES:
        known = ", ".join(f"{t} {p}" for t, p in FILES)
        raise ValueError(f"GLUE has no {task} {part} here; choose one of {known}.")
    if data_dir is not None:
        for folder in (pathlib.Path(data_dir), pathlib.Path(data_dir) / "glue"):
            if (path := folder / FILES[task, part]).is_file():
                return _read_table(task, path)
    return _read_prepared(task, part, data_dir)


@check_kinds
def glue(
    task: Task,
    tokenizer: Tokenizer,
    data_dir: pathlib.Path | str | None = None,
    *,
    train: Part = "train",
    heldout: Part = "dev",
) -> Dataset:
    """A task as tokens. Pairs of STS-B stay two sequences: tokens ``[pairs, 2, length]``.

    Args:
        task: See `read_glue`.
        tokenizer: Tokenizer of the network.
        data_dir: See `read_glue`.
        train: The part to train, or to calibrate, on.
        heldout: The part that is held out.

    Raises:
        FileNotFoundError: If the data are not there.
        ValueError: As `read_glue`.
    """
    parts: dict[Source, Part] = {"train": train, "heldout": heldout}

    def read(source: Source) -> Split:
        sentences = read_glue(task, parts[source], data_dir)
        tokens = (
            tokenizer(sentences.first)
            if sentences.second is None
            else tokenizer.pairs(sentences.first, sentences.second)
        )
        name = f"{task} {parts[source]}"
        return whole_split(name, source, tokens, sentences.labels, TrimPadding())

    classes = SENTIMENTS if task == "sst2" else ()
    return Dataset(
        name=task, classes=classes, read=read, tokenizer=tokenizer, inputs="sentences"
    )


def by_length(split: Split) -> Split:
    """The examples of a split of tokens, the shortest first: batches with little padding."""
    assert split.lengths is not None
    return split.take(np.argsort(split.lengths, kind="stable"))


def _read_table(task: str, path: pathlib.Path) -> Sentences:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    parse = _sentiment if task == "sst2" else _similarity
    if task == "sst2" and rows[:1] != [["sentence", "label"]]:
        raise ValueError(f"{path} must begin with the header 'sentence<TAB>label'.")
    skipped = 1 if task == "sst2" else 0
    examples = []
    for number, row in enumerate(rows[skipped:], skipped + 1):
        try:
            examples.append(parse(row))
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"{path}, line {number}: {error}; got {len(row)} columns."
            ) from None
    return _sentences(task, examples)


def _sentiment(row: Sequence[str]) -> tuple[str, None, float]:
    sentence, label = row
    if label not in ("0", "1"):
        raise ValueError(f"label {label!r}, expected 0 or 1")
    return sentence.strip(), None, float(label)


def _similarity(row: Sequence[str]) -> tuple[str, str, float]:
    if len(row) < 7:
        raise ValueError("expected genre, file, year, id, score and two sentences")
    if not 0 <= (score := float(row[4])) <= MOST_SIMILAR:
        raise ValueError(f"score {row[4]}, expected 0 to {MOST_SIMILAR:g}")
    return row[5].strip(), row[6].strip(), score / MOST_SIMILAR


def _sentences(task: str, rows: Sequence[tuple[str, str | None, float]]) -> Sentences:
    return Sentences(
        first=tuple(first for first, _, _ in rows),
        second=None if task == "sst2" else tuple(str(second) for _, second, _ in rows),
        labels=np.array(
            [label for *_, label in rows], np.int32 if task == "sst2" else np.float32
        ),
    )


def _read_prepared(task: str, part: str, data_dir: pathlib.Path | str | None) -> Sentences:
    import tensorflow_datasets as tfds

    folder = None if data_dir is None else str(data_dir)
    try:
        source = tfds.data_source(f"glue/{task}", split=TFDS_PARTS[part], data_dir=folder)
    except Exception as error:  # whatever tensorflow-datasets meets
        where = folder or "the data folder of tensorflow-datasets"
        raise FileNotFoundError(
            f"No {task} in {where}: expected {FILES[task, part]} there, or GLUE prepared by "
            f"tensorflow-datasets (`tfds build glue/{task} --file_format=array_record`, which "
            "needs jmpq[prep])."
        ) from error
    return _sentences(task, [_prepared_row(task, part, example) for example in source])


def _prepared_row(task: str, part: str, example: Any) -> tuple[str, str | None, float]:
    label = float(example["label"])
    if label < 0:
        raise ValueError(
            f"The {part} part of {task} has no labels as GLUE publishes it: use 'dev'."
        )
    text = functools.partial(_text, example)
    if task == "sst2":
        return text("sentence"), None, label
    return text("sentence1"), text("sentence2"), label / MOST_SIMILAR


def _text(example: Any, key: str) -> str:
    value = example[key]
    return (value.decode() if isinstance(value, bytes) else str(value)).strip()
