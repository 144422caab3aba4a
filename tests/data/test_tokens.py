import numpy as np
import pytest

from jmpq.data.dataset import TrimPadding
from jmpq.data.text.tokens import read_tokenizer, train_tokenizer

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "man",
    "plays",
    "##ing",
    "play",
    ".",
]


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return path


def test_sentences_become_padded_tokens(vocabulary):
    tokenizer = read_tokenizer(vocabulary)
    got = tokenizer(["A man plays.", "playing"])
    np.testing.assert_array_equal(got["input_ids"], [[2, 5, 6, 7, 10, 3], [2, 9, 8, 3, 0, 0]])
    np.testing.assert_array_equal(got["attention_mask"], got["input_ids"] != 0)
    assert not got["token_type_ids"].any()
    assert {x.dtype for x in got.values()} == {np.dtype("int32")}
    tokenizer.check_vocabulary(len(WORDS), "embeddings/word_embeddings")


def test_pairs_are_one_sequence_or_two(vocabulary):
    tokenizer = read_tokenizer(vocabulary)
    joined = tokenizer(["a man"], ["zzz"])
    np.testing.assert_array_equal(joined["input_ids"], [[2, 5, 6, 3, 1, 3]])
    np.testing.assert_array_equal(joined["token_type_ids"], [[0, 0, 0, 0, 1, 1]])
    apart = tokenizer.pairs(["a", "man"], ["man .", "play"])
    np.testing.assert_array_equal(
        apart["input_ids"], [[[2, 5, 3, 0], [2, 6, 10, 3]], [[2, 6, 3, 0], [2, 9, 3, 0]]]
    )


def test_a_saved_tokenizer_is_the_same_whatever_its_padding(vocabulary, tmp_path):
    first = read_tokenizer(vocabulary)
    first.backend.enable_padding(length=20)
    first.backend.save(str(tmp_path / "tokenizer.json"))
    again = read_tokenizer(tmp_path)  # prefers tokenizer.json
    np.testing.assert_array_equal(again(["a man"])["input_ids"], [[2, 5, 6, 3]])


def test_long_sentences_are_cut_with_a_notice(vocabulary):
    tokenizer = read_tokenizer(vocabulary, max_length=4)
    with pytest.warns(UserWarning, match="1 of 2 sentences have more than 4 tokens"):
        got = tokenizer(["a man plays", "a"])
    np.testing.assert_array_equal(got["input_ids"], [[2, 5, 6, 3], [2, 5, 3, 0]])


@pytest.mark.parametrize("length", [-1, 0, 2])
def test_no_length_leaves_special_tokens_alone(vocabulary, length):
    message = f"max_length={length} leaves no token .* 2 special ones: give at least 3"
    with pytest.raises(ValueError, match=message):
        read_tokenizer(vocabulary, max_length=length)


def test_a_token_may_be_a_character_that_divides_lines_elsewhere(tmp_path):
    words = [*WORDS, "\u2028", "\x0b", "cat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tokenizer = read_tokenizer(tmp_path / "vocab.txt", kind="sentences", max_length=8)
    assert words.index("cat") in tokenizer(["a cat"])["input_ids"][0]


def test_wrong_vocabularies_are_refused(vocabulary, tmp_path):
    with pytest.raises(ValueError, match="knows 11 tokens, the network's 'embeddings/word_emb"):
        read_tokenizer(vocabulary).check_vocabulary(30522, "embeddings/word_embeddings")
    (tmp_path / "words.txt").write_text("[PAD]\nman\n")
    with pytest.raises(ValueError, match=r"its vocabulary lacks \[UNK\], \[CLS\]"):
        read_tokenizer(tmp_path / "words.txt")
    (tmp_path / "late.txt").write_text("\n".join(WORDS[::-1]))
    with pytest.raises(ValueError, match=r"has \[PAD\] as token 10"):
        read_tokenizer(tmp_path / "late.txt")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a valid tokenizer"):
        read_tokenizer(tmp_path / "bad.json")
    with pytest.raises(FileNotFoundError, match=r"give tokenizer\.json or vocab\.txt"):
        read_tokenizer(tmp_path / "nothing")


def test_padding_of_all_sentences_is_trimmed():
    mask = np.arange(40) < np.array([[[3], [11]], [[9], [2]]])
    ids = np.arange(160).reshape(2, 2, 40)
    tokens = {"attention_mask": mask.astype(np.int32), "input_ids": ids}
    assert TrimPadding()(tokens)["input_ids"].shape == (2, 2, 16)
    assert TrimPadding(lengths=(12,))(tokens)["attention_mask"].shape == (2, 2, 12)
    assert TrimPadding(lengths=(4,))(tokens)["attention_mask"].shape == (2, 2, 40)
    whole = TrimPadding(lengths=(12,))(tokens)
    np.testing.assert_array_equal(whole["input_ids"], tokens["input_ids"][..., :12])


TEXT = ["ab ab Ab", "ac", "é b"]  # of the pairs, a followed by ##b is the most frequent


def test_a_vocabulary_is_special_tokens_characters_and_frequent_pairs():
    tokenizer = train_tokenizer(TEXT, vocab_size=14)
    vocabulary = tokenizer.backend.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokens == [*special, *"abce", "##a", "##b", "##c", "##e", "ab"]
    np.testing.assert_array_equal(tokenizer(["AB aba z"])["input_ids"], [[2, 13, 13, 9, 1, 3]])


def test_the_same_sentences_make_the_same_tokenizer(tmp_path):
    rng = np.random.default_rng(0)
    text = [
        " ".join("".join(rng.choice(list("abcdefghij"), 5)) for _ in range(8))
        for _ in range(50)
    ]
    first, again = (train_tokenizer(text, vocab_size=200) for _ in range(2))
    assert first.vocab_size == 200
    assert first.vocabulary_sha256 == again.vocabulary_sha256
    assert (
        first.vocabulary_sha256 != train_tokenizer(text[1:], vocab_size=200).vocabulary_sha256
    )
    first.save(tmp_path / "tokenizer.json")
    again.save(tmp_path / "again.json")
    assert (tmp_path / "tokenizer.json").read_text() == (tmp_path / "again.json").read_text()
    read = read_tokenizer(tmp_path)
    assert read.vocabulary_sha256 == first.vocabulary_sha256
    np.testing.assert_array_equal(read(text)["input_ids"], first(text)["input_ids"])


def test_vocabularies_that_cannot_be_made_are_refused():
    with pytest.raises(
        ValueError, match=r"vocab_size=10 is too few: .* 4 characters, which alo"
    ):
        train_tokenizer(TEXT, vocab_size=10)
    with pytest.raises(ValueError, match="1 sentences without a word"):
        train_tokenizer(["  "])
