"""Running text as examples: token ids, and the token that follows each as its label."""

import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from jmpq.data.dataset import AsStored, Dataset, Source, Split, whole_split
from jmpq.data.positions import IGNORED
from jmpq.data.text.tokens import Tokenizer

SEPARATOR = "<|endoftext|>"  # a line of its own after every document
ENDINGS = (".txt", ".npy")
NAMES: dict[Source, tuple[str, ...]] = {
    "train": ("train",),
    "heldout": ("heldout", "validation", "valid", "val", "test"),
}


def running_text(
    data_dir: pathlib.Path | str | None, tokenizer: Tokenizer | None, *, length: int
) -> Dataset:
    """Windows of a text: its documents in a row, cut every `length` tokens.

    The inputs of a window are `length` ids, its labels the ids one further. So every token is
    predicted once, windows share no label, and what is left at the end is left out. A window
    may begin within a document.

    Args:
        data_dir: A text (``.txt``, UTF-8, documents each followed by a line
            ``<|endoftext|>``) or ids (``.npy``, one row of whole numbers), all of it held out;
            or a folder with one, or with ``train`` and ``heldout`` (``validation``, ``valid``,
            ``val``, ``test``) of these endings.
        tokenizer: Tokenizer of the network; ids need none.
        length: Tokens of a window.

    Raises:
        FileNotFoundError: If there is no text (of a part: when it is asked for).
        ValueError: If `length` is not positive, or a text is too short, not UTF-8 or not ids.
    """

    def read(source: Source) -> Split:
        path = _file(_folder(data_dir), source)
        stream = np.concatenate(_documents(path, tokenizer))
        count = (len(stream) - 1) // length
        if count < 1:
            raise ValueError(
                f"{path} has {len(stream)} tokens, too few for a window of {length} and the "
                "token after it. Choose shorter windows."
            )
        inputs, labels = (stream[i : i + count * length] for i in (0, 1))
        shape = (count, length)
        return whole_split(
            f"text {path.stem}",
            source,
            inputs.reshape(shape),
            labels.reshape(shape),
            AsStored(),
        )

    return _dataset("text", data_dir, tokenizer, length, read)


def documents(
    data_dir: pathlib.Path | str | None, tokenizer: Tokenizer | None, *, length: int
) -> Dataset:
    """Documents one by one, each from its beginning, the first `length` predictions of it.

    A shorter document is filled up; the label there is `IGNORED`, which does not count.

    Args:
        data_dir: See `running_text`; ids are one document.
        tokenizer: See `running_text`.
        length: Most predicted tokens of a document.

    Raises:
        FileNotFoundError: As `running_text`.
        ValueError: As `running_text`; also if a document has a single token.
    """

    def read(source: Source) -> Split:
        path = _file(_folder(data_dir), source)
        texts = [ids[: length + 1] for ids in _documents(path, tokenizer)]
        if (shortest := min(map(len, texts))) < 2:
            raise ValueError(
                f"Document {[len(ids) for ids in texts].index(shortest)} of {path} has "
                f"{shortest} tokens; expected two or more, the first of which is not predicted."
            )
        longest = max(map(len, texts)) - 1
        inputs = np.zeros((len(texts), longest), np.int32)
        labels = np.full((len(texts), longest), IGNORED, np.int32)
        for row, ids in enumerate(texts):
            inputs[row, : len(ids) - 1] = ids[:-1]
            labels[row, : len(ids) - 1] = ids[1:]
        return whole_split(f"documents {path.stem}", source, inputs, labels, AsStored())

    return _dataset("documents", data_dir, tokenizer, length, read)


def _dataset(
    name: str,
    data_dir: pathlib.Path | str | None,
    tokenizer: Tokenizer | None,
    length: int,
    read: Callable[[Source], Split],
) -> Dataset:
    if length < 1:
        raise ValueError(f"text_length={length}: give at least one token.")
    _file(_folder(data_dir), "heldout")
    return Dataset(name=name, classes=(), read=read, tokenizer=tokenizer, inputs="text")


def _folder(data_dir: pathlib.Path | str | None) -> pathlib.Path:
    if data_dir is None:
        raise FileNotFoundError(
            f"Text needs a file or a folder with {' or '.join(ENDINGS)}: give --data-dir."
        )
    return pathlib.Path(data_dir)


def _file(place: pathlib.Path, source: Source) -> pathlib.Path:
    """The file of a part; a text that is not named is held out."""
    if place.is_file():
        found = [place] if source == "heldout" else []
    else:
        files = {path.name: path for path in sorted(place.glob("*")) if path.suffix in ENDINGS}
        named = [f"{name}{ending}" for name in NAMES[source] for ending in ENDINGS]
        found = [files[name] for name in named if name in files]
        others = [path for path in files.values() if path.stem not in NAMES["train"]]
        if source == "heldout" and not found and len(others) == 1:
            found = others
    if not found:
        what = "train" if source == "train" else "heldout"
        raise FileNotFoundError(
            f"No {source} text in {place}: expected {what}.txt or {what}.npy"
            + (", or a single text." if source == "heldout" else " beside the held-out text.")
        )
    return found[0]


def _documents(
    path: pathlib.Path, tokenizer: Tokenizer | None
) -> Sequence[Int[np.ndarray, " _"]]:
    if path.suffix == ".npy":
        return [_ids(path)]
    if tokenizer is None:
        raise ValueError(
            f"{path} is text: say which tokenizer the network expects, with --tokenizer, or "
            "give its token ids as .npy."
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}.") from error
    parts = text.split(f"\n{SEPARATOR}\n")
    parts = parts if parts[-1].strip() else parts[:-1]
    if not parts:
        raise ValueError(f"{path} is empty: expected a text.")
    return tokenizer.ids(parts)


def _ids(path: pathlib.Path) -> Int[np.ndarray, " _"]:
    try:
        ids = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is not a readable .npy file: {error}.") from error
    if not isinstance(ids, np.ndarray):
        raise ValueError(f"{path} is an archive of arrays: expected one array, as .npy.")
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or (ids.size and ids.min() < 0):
        raise ValueError(
            f"{path} holds {ids.dtype}{list(ids.shape)}; expected token ids, one row of whole "
            "numbers from 0."
        )
    if ids.size and ids.max() > np.iinfo(np.int32).max:
        raise ValueError(f"{path} holds the token id {ids.max()}: expected ids below 2³¹.")
    return ids.astype(np.int32)
