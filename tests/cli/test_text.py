"""The steps on running text: a decoder, token ids or a text with its tokenizer."""

import jax
import numpy as np
import pytest

from jmpq.data.dataset import AsStored, whole_split
from jmpq.run import RunFolder
from jmpq.run.steps.evaluate import chance
from jmpq.zoo.architectures import build_module
from jmpq.zoo.decoder import example_ids
from jmpq.zoo.tensor_files import save_variables
from tests.cli.command import SMALL, jmpq, opened, works

MODEL = ("--model", "stories260k", "--data", "text", "--text-length", 6)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Token ids, and random weights."""
    path = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    np.save(path / "heldout.npy", rng.integers(0, 512, 200))
    module = build_module("stories260k")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        shapes = jax.eval_shape(module.init, jax.random.key(0), example_ids())
    variables = jax.tree.map(lambda s: rng.normal(0, 0.1, s.shape).astype("f"), shapes)
    save_variables(path / "weights.safetensors", variables, architecture="stories260k")
    return "--data-dir", path, "--weights", path / "weights.safetensors"


def test_layers_finds_those_of_a_decoder_and_its_ties(place, tmp_path):
    works("layers", tmp_path, *MODEL, *place)
    folder = RunFolder(tmp_path)
    network, dataset = opened(tmp_path)
    assert dataset.heldout.inputs.shape == (33, 6)
    assert len(network.layers) == 36
    assert folder.layers.network.text_length == 6
    ties = folder.layers.ties
    assert len(ties["qkv"]) == len(ties["gate_up"]) == len(ties["encoder_layer"]) == 5


def test_what_does_not_fit_a_decoder_is_refused(place, tmp_path, shared_data):
    result = jmpq("layers", tmp_path, "--model", "resnet20", *MODEL[2:], *place)
    assert "'resnet20' takes images, but the data are text" in result.err
    result = jmpq("layers", tmp_path, *MODEL[:2], "--data", "digits", *place[2:])
    assert "'stories260k' takes text, but the data are images" in result.err
    result = jmpq("layers", tmp_path, *MODEL[:4], *place[2:])
    assert "Text needs a file or a folder with .txt or .npy: give --data-dir" in result.err
    story = shared_data / "tinystories" / "stories.txt"
    result = jmpq("layers", tmp_path, *MODEL, "--data-dir", story, *place[2:])
    assert "stories.txt is text: say which tokenizer the network expects" in result.err
    result = jmpq("layers", tmp_path, *MODEL[:4], "--text-length", 0, *place)
    assert "text_length=0" in result.err
    assert not (tmp_path / "layers.json").exists()


@pytest.mark.slow
def test_every_step_runs_on_text(place, tmp_path):
    works("layers", tmp_path, *MODEL, *place)
    bits = ("--w-bits", 4, 8, "--a-bits", 32, "--examples", 8, "--batch-size", 8)
    classes = ("--class-samples", 2, "--metrics", "gauss_newton")
    works("sensitivity", tmp_path, *bits, *classes)
    works("solve", tmp_path, *SMALL, "--tie", "qkv", "gate_up")
    works("evaluate", tmp_path, "--examples", 8)
    works("report", tmp_path)
    assert "Bits by type of layer" in (tmp_path / "report.html").read_text()


def test_chance_is_the_share_of_the_most_frequent_token_that_counts():
    inputs, labels = np.zeros((2, 4), np.int32), np.array([[3, 3, 1, -1], [3, 2, -1, -1]])
    split = whole_split("documents", "heldout", inputs, labels, AsStored())
    assert chance(split) == {"chance": 3 / 5}
