"""The steps on sentences: a BERT classifier and the tokenizer beside its weights."""

import json

import jax
import numpy as np
import pytest

from jmpq.data.text.tokens import train_tokenizer
from jmpq.run import RunFolder
from jmpq.zoo.architectures import build_module
from jmpq.zoo.bert import example_tokens
from jmpq.zoo.tensor_files import save_variables
from tests.cli.command import SMALL, jmpq, opened, works

WORDS = {0: ["bad", "dull", "bleak"], 1: ["good", "fine", "charming"]}
FILLER = ["a", "the", "film", "plot", "is", "and", "very", "it"]


def table(count, seed):
    """Sentences whose label follows from one word."""
    rng = np.random.default_rng(seed)
    rows = ["sentence\tlabel"]
    for label in rng.integers(0, 2, count):
        words = rng.choice([*FILLER, *WORDS[int(label)]], rng.integers(3, 9))
        words[rng.integers(len(words))] = rng.choice(WORDS[int(label)])
        rows.append(f"{' '.join(words)} \t{label}")
    return "\n".join(rows) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("glue")
    (path / "sst2").mkdir()
    for part, count in (("train", 512), ("dev", 80)):
        (path / "sst2" / f"{part}.tsv").write_text(table(count, count))
    return path


def place(folder, *more):
    return ("--model", "bert_tiny", "--data", "sst2", "--data-dir", folder, *more)


@pytest.fixture
def weights(folder, tmp_path):
    """Random weights, and the tokenizer that goes with them."""
    tokenizer = train_tokenizer(table(512, 512).splitlines())
    module = build_module("bert_tiny", 2, tokenizer.vocab_size)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        shapes = jax.eval_shape(module.init, jax.random.key(0), example_tokens(1, 4))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: rng.normal(size=s.shape).astype("f"), shapes)
    path = tmp_path / "float" / "weights.safetensors"
    known = {"vocabulary_sha256": tokenizer.vocabulary_sha256}
    save_variables(path, variables, architecture="bert_tiny", metadata=known)
    tokenizer.save(path.parent / "tokenizer.json")
    return path


def test_layers_takes_the_tokenizer_beside_the_weights(folder, weights, tmp_path):
    run = tmp_path / "run"
    works("layers", run, *place(folder, "--weights", weights))
    folder = RunFolder(run)
    network, dataset = opened(run)
    assert folder.layers.network.tokenizer == str(weights.parent / "tokenizer.json")
    assert dataset.classes == ("negative", "positive")
    names = [layer.name for layer in network.layers]
    assert {"embeddings/word_embeddings", "pooler/dense", "classifier"} <= set(names)
    assert len(names) == 3 + 2 * 6 + 2


def test_tokenizers_that_do_not_go_with_the_weights_are_refused(folder, weights, tmp_path):
    here = place(folder, "--weights", weights)
    other = tmp_path / "tokenizer.json"
    text = table(512, 512).splitlines()
    train_tokenizer(text, vocab_size=60).save(other)
    result = jmpq("layers", tmp_path / "run", *here, "--tokenizer", other)
    assert "The tokenizer knows 60 tokens, the network's 'embeddings/word_embedd" in result.err
    saved = (weights.parent / "tokenizer.json").read_text()
    other.write_text(saved.replace("charming", "charmink"))
    result = jmpq("layers", tmp_path / "run", *here, "--tokenizer", other)
    assert "as many tokens as the one that" in result.err
    (weights.parent / "tokenizer.json").unlink()
    result = jmpq("layers", tmp_path / "run", *here)
    assert "say which tokenizer the network expects, with --tokenizer" in result.err
    result = jmpq("layers", tmp_path / "run", *here, "--tokenizer", tmp_path / "none")
    assert "There is no tokenizer in" in result.err


def test_images_and_sentences_are_not_taken_for_each_other(folder, tmp_path):
    result = jmpq("train", tmp_path, "--model", "bert_tiny")
    assert "takes sentences, but the data are images" in result.err
    images = ("--model", "resnet20", *place(folder)[2:])
    result = jmpq("train", tmp_path, *images)
    assert "takes images, but the data are sentences" in result.err
    result = jmpq("train", tmp_path, *place(folder), "--batch-size", 32, "--flip")
    assert "are for images, but sst2 train has sentences" in result.err
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_every_step_runs_on_sentences(folder, tmp_path):
    run = tmp_path / "run"
    rates = ("--epochs", 12, "--batch-size", 32, "--learning-rate", 2e-3)
    works("train", run, *place(folder), *rates)
    works("layers", run, *place(folder))
    bits = ("--w-bits", 2, 4, 8, "--a-bits", 8, "--examples", 40, "--batch-size", 20)
    works("sensitivity", run, *bits, "--metrics", "gauss_newton", "composed")
    works("solve", run, *SMALL, "--rule", "pin embeddings/.*=W8A8")
    works("evaluate", run)
    works("finetune", run, "--epochs", 1, "--batch-size", 32)
    works("report", run)
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["float"]["evaluation"]["top1"] > 0.9
    measured = {
        k: v["evaluation"] for k, v in evaluation["measured"].items() if "evaluation" in v
    }
    assert measured["uniform/W8A8"]["kl"] < measured["uniform/W2A8"]["kl"]
    outcomes = json.loads((run / "finetuning.json").read_text())["outcomes"]
    assert outcomes["finetuned"]["top1"] >= outcomes["float"]["top1"] - 0.1
