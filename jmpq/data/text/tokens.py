"""Sentences to padded tokens and texts to ids, by a local tokenizer."""

import dataclasses
import hashlib
import json
import pathlib
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from jmpq.files import write_text
from jmpq.kinds import check_kinds
from jmpq.zoo.bert import TOKEN_KEYS

FILES = ("tokenizer.json", "vocab.txt")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
MASK = "[MASK]"
MAX_LENGTH = 128


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Tokenizer:
    """A tokenizer of sentences or of running text.

    Called with sentences it gives what a BERT needs: ``[CLS] sentence [SEP]`` or ``[CLS] a
    [SEP] b [SEP]``; `ids` gives the ids of whole texts. Make one with `read_tokenizer` or
    `train_tokenizer`.

    Attributes:
        backend: The tokenizer of the `tokenizers` package, padding off.
        max_length: Tokens of the longest sentence; what is longer is cut, with a warning. None
            for running text, which is never cut.
    """

    backend: Any
    max_length: int | None

    @property
    def vocab_size(self) -> int:
        """Number of tokens it knows."""
        return self.backend.get_vocab_size()

    @property
    def vocabulary_sha256(self) -> str:
        """Hash of the tokens in their order."""
        vocabulary = self.backend.get_vocab()
        tokens = json.dumps(sorted(vocabulary, key=vocabulary.__getitem__))
        return hashlib.sha256(tokens.encode()).hexdigest()

    def save(self, path: pathlib.Path | str) -> None:
        """Write ``tokenizer.json``, whole or not at all."""
        write_text(pathlib.Path(path), self.backend.to_str(pretty=True))

    def check_vocabulary(self, vocab_size: int, embedding: str) -> None:
        """Raise `ValueError` where an embedding, named so, is of another vocabulary."""
        if self.vocab_size != vocab_size:
            raise ValueError(
                f"The tokenizer knows {self.vocab_size} tokens, the network's "
                f"{embedding!r} has {vocab_size} rows. Give the tokenizer that "
                "came with the weights."
            )

    def __call__(
        self, sentences: Sequence[str], seconds: Sequence[str] | None = None
    ) -> dict[str, Int[np.ndarray, "sentences length"]]:
        """Token ids, mask and types of sentences, or of pairs joined to one sequence each.

        Args:
            sentences: The sentences; they should not be empty.
            seconds: Second parts of the texts, if they have any.

        Returns:
            Arrays int32, as long as the longest of them.
        """
        texts = (
            list(sentences) if seconds is None else list(zip(sentences, seconds, strict=True))
        )
        encodings = self.backend.encode_batch(texts)
        if cut := sum(bool(encoding.overflowing) for encoding in encodings):
            warnings.warn(
                f"{cut} of {len(encodings)} sentences have more than {self.max_length} tokens "
                "and were cut. Raise max_length to keep them whole.",
                stacklevel=2,
            )
        length = max((len(encoding.ids) for encoding in encodings), default=1)
        arrays = {key: np.zeros((len(encodings), length), np.int32) for key in TOKEN_KEYS}
        for row, encoding in enumerate(encodings):
            count = len(encoding.ids)
            arrays["input_ids"][row, :count] = encoding.ids
            arrays["attention_mask"][row, :count] = 1
            arrays["token_type_ids"][row, :count] = encoding.type_ids
        return arrays

    def ids(self, texts: Sequence[str]) -> list[Int[np.ndarray, " _"]]:
        """Token ids of every text, with what the tokenizer itself puts around it."""
        return [np.asarray(x.ids, np.int32) for x in self.backend.encode_batch(list(texts))]

    def pairs(
        self, first: Sequence[str], second: Sequence[str]
    ) -> dict[str, Int[np.ndarray, "pairs 2 length"]]:
        """Tokens of pairs of sentences, each sentence a sequence of its own."""
        both = self([*first, *second])
        halves = {key: x.reshape(2, len(first), x.shape[1]) for key, x in both.items()}
        return {key: x.transpose(1, 0, 2) for key, x in halves.items()}


@check_kinds
def read_tokenizer(
    path: pathlib.Path | str,
    *,
    kind: Literal["sentences", "text"] = "sentences",
    max_length: int = MAX_LENGTH,
    lowercase: bool = True,
) -> Tokenizer:
    """A tokenizer from a local file; nothing is downloaded.

    Args:
        path: ``tokenizer.json``, ``vocab.txt`` (one WordPiece a line), or a folder with one.
        kind: ``sentences`` for an encoder as BERT; ``text`` for a decoder, whose tokenizer is
            taken as it is.
        max_length: Tokens of the longest sentence, special ones included.
        lowercase: Whether a ``vocab.txt`` is of an uncased model; ``tokenizer.json`` says so
            itself.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the package `tokenizers` is not installed.
        ValueError: If the file is not a tokenizer, or, for sentences, not of a BERT.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        there = [path / name for name in FILES if (path / name).is_file()]
        path = there[0] if there else path
    if not path.is_file():
        raise FileNotFoundError(f"There is no tokenizer in {path}: give {' or '.join(FILES)}.")
    tokenizers = _package()
    try:
        if path.suffix == ".json":
            saved = tokenizers.Tokenizer.from_file(str(path))
            vocabulary = saved.get_vocab()
        else:
            # Of the characters that `str.splitlines` divides at, some are tokens.
            saved, text = None, path.read_text(encoding="utf-8").removesuffix("\n")
            vocabulary = {token: i for i, token in enumerate(text.split("\n"))}
    except Exception as error:  # of the package, of no class of its own
        raise ValueError(f"{path} is not a valid tokenizer: {error}.") from error
    if kind == "text" and saved is not None:
        saved.no_padding()
        saved.no_truncation()
        return Tokenizer(backend=saved, max_length=None)
    if missing := [token for token in SPECIAL if token not in vocabulary]:
        raise ValueError(
            f"{path} is not of a BERT: its vocabulary lacks {', '.join(missing)}. Give the "
            "tokenizer that came with the weights."
        )
    if (pad := vocabulary["[PAD]"]) != 0:
        raise ValueError(f"{path} has [PAD] as token {pad}; expected 0.")
    backend = saved or tokenizers.BertWordPieceTokenizer(vocabulary, lowercase=lowercase)
    return _made(backend, max_length)


def train_tokenizer(
    sentences: Iterable[str],
    *,
    vocab_size: int = 8000,
    max_length: int = MAX_LENGTH,
    lowercase: bool = True,
) -> Tokenizer:
    """A WordPiece tokenizer made from sentences; the same sentences give the same one.

    Args:
        sentences: Training sentences.
        vocab_size: Most tokens it may know, special ones included; fewer where the sentences
            have no more.
        max_length: Tokens of the longest sentence, special ones included.
        lowercase: Whether upper and lower case are the same, and accents left out.

    Raises:
        ImportError: If the package `tokenizers` is not installed.
        ValueError: If there are no words, or more characters than tokens.
    """
    tokenizers = _package()
    sentences = list(sentences)
    empty: dict[str, int] = {token: i for i, token in enumerate((*SPECIAL, MASK))}
    backend = tokenizers.BertWordPieceTokenizer(empty, lowercase=lowercase)
    normalize = backend.normalizer.normalize_str
    characters = sorted({c for s in sentences for c in normalize(s) if not c.isspace()})
    if not characters:
        raise ValueError(
            f"{len(sentences)} sentences without a word: give sentences to make a tokenizer of."
        )
    # The trainer numbers the pieces of words in the order of a hash table, and equally
    # frequent pairs by those numbers: given beforehand, in order, they are always the same.
    first = [*empty, *characters, *(f"##{c}" for c in characters)]
    if vocab_size < len(first):
        raise ValueError(
            f"vocab_size={vocab_size} is too few: the sentences have {len(characters)} "
            f"characters, which alone are {len(first)} tokens. Give more."
        )
    learned = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token=SPECIAL[1]))
    learned.normalizer, learned.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=first, show_progress=False
    )
    learned.train_from_iterator(sentences, trainer)
    whole = tokenizers.BertWordPieceTokenizer(learned.get_vocab(), lowercase=lowercase)
    return _made(whole, max_length)


def _made(backend: Any, max_length: int) -> Tokenizer:
    special = backend.num_special_tokens_to_add(False)
    if max_length <= special:
        raise ValueError(
            f"max_length={max_length} leaves no token of a sentence beside its {special} "
            f"special ones: give at least {special + 1}."
        )
    backend.no_padding()
    backend.enable_truncation(max_length)
    return Tokenizer(backend=backend, max_length=max_length)


def _package() -> Any:
    try:
        import tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise ImportError("Tokens need the package tokenizers: install jmpq[bert].") from error
    return tokenizers
