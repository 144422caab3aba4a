"""Decoders compute what the published network does; files and configurations are checked."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jmpq.data.text.tokens import read_tokenizer
from jmpq.data.text.windows import documents
from jmpq.network.network import Network
from jmpq.training.next_token import next_token_scores
from jmpq.zoo.architectures import architecture, build_module
from jmpq.zoo.decoder import Decoder, DecoderConfig, example_ids, read_decoder_config
from jmpq.zoo.weights import load_weights
from jmpq.zoo.weights_decoder import load_decoder, read_decoder

TINY = DecoderConfig(
    vocab_size=11,
    hidden_size=6,
    num_layers=1,
    num_heads=4,
    num_key_value_heads=2,
    head_size=2,
    intermediate_size=5,
    max_positions=7,
    tied=True,
)


@pytest.fixture(scope="module")
def stories(shared_data):
    folder = shared_data / "tinystories"
    module = build_module("stories260k", inputs="text")
    path = folder / "stories260K.safetensors"
    return folder, module, load_weights(path, module, architecture="stories260k")


def random(module, seed=0):
    shapes = jax.eval_shape(module.init, jax.random.key(0), example_ids())
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(s.dtype), shapes)


def tensors(variables):
    """As Hugging Face saves them."""
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        *keys, last = [key.key for key in path]
        name = ".".join([*keys, "weight"])
        name = name if keys[0] == "lm_head" else f"model.{name}"
        named[name] = np.ascontiguousarray(leaf.T if last == "kernel" else leaf)
    return named


def write(path, named):
    path.write_bytes(safetensors.numpy.save(named))
    return path


def test_logits_equal_the_reference(stories):
    folder, module, variables = stories
    known = np.load(folder / "reference_logits.npz")
    got = jax.jit(module.apply)(variables, known["tokens"])
    np.testing.assert_allclose(got, known["logits"], atol=1e-4)


def test_the_published_folder_is_read_whole(stories):
    folder, module, variables = stories
    theirs, again = read_decoder(folder)
    assert theirs == module
    jax.tree.map(np.testing.assert_array_equal, again, variables)


@pytest.mark.slow
def test_loss_on_stories_is_the_published_one(stories):
    folder, module, variables = stories
    tokenizer = read_tokenizer(folder, kind="text")
    split = documents(folder, tokenizer, length=511).heldout.take(np.arange(200))
    scores = next_token_scores(module.apply, variables, split)
    assert scores.tokens == 69_071
    assert scores.loss == pytest.approx(1.2315, abs=5e-5)
    assert scores.loss_sem == pytest.approx(0.012, abs=5e-4)


def test_the_embedding_that_is_the_head_too_is_one_layer(stories):
    _, module, variables = stories
    tied = architecture("stories260k").tied
    network = Network.from_linen(module, variables, example_ids(1, 4), tied=tied)
    names = [layer.name for layer in network.layers]
    assert len(names) == 1 + 5 * 7
    assert [site.name for site in network.sites][-1] == "embed_tokens#2"
    assert sum(x.parameters for x in network.layers) + network.other_parameters == 260_032
    (embedding,) = (layer for layer in network.layers if layer.name == "embed_tokens")
    assert embedding.macs == 4 * 64 * 512
    with pytest.raises(ValueError, match="'embed_tokens/embedding' is used 2 times"):
        Network.from_linen(module, variables, example_ids(1, 4))


def test_what_comes_later_has_no_influence():
    module = Decoder(TINY)
    variables, ids = random(module), np.array([[1, 4, 2, 9]])
    got = jax.jit(module.apply)(variables, ids)
    other = jax.jit(module.apply)(variables, np.array([[1, 4, 7, 3]]))
    np.testing.assert_allclose(got[:, :2], other[:, :2], rtol=1e-6)
    assert np.abs(got[:, 2:] - other[:, 2:]).max() > 1e-2


def test_a_head_of_its_own_is_read_and_a_copy_of_the_embedding_is_left_out(tmp_path):
    module = Decoder(TINY)
    variables = random(module)
    named = tensors(variables)
    named["lm_head.weight"] = named["model.embed_tokens.weight"]
    named["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(1, np.float32)
    path = write(tmp_path / "w.safetensors", named)
    jax.tree.map(np.testing.assert_array_equal, load_decoder(path, module), variables)
    untied = Decoder(dataclasses.replace(TINY, tied=False))
    ids = np.array([[3, 1, 2]])
    got = untied.apply(load_decoder(path, untied), ids)
    np.testing.assert_allclose(got, module.apply(variables, ids), rtol=1e-5)
    named["lm_head.weight"] = named["lm_head.weight"] + 1
    path = write(tmp_path / "w.safetensors", named)
    with pytest.raises(ValueError, match=r"lm_head\.weight apart from embed_tokens\.weight"):
        load_decoder(path, module)


def test_configurations_of_other_decoders_are_refused(tmp_path, shared_data):
    record = json.loads((shared_data / "tinystories" / "config.json").read_text())
    file = tmp_path / "config.json"
    for change, said in (
        ({"model_type": "gemma"}, "model_type='gemma', expected 'llama'"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling=.*expected None"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type='yarn', expected 'default'"),
        ({"attention_bias": True}, "attention_bias=True, expected False"),
        ({"num_key_value_heads": 3}, "heads that divide evenly"),
        ({"num_hidden_layers": 0}, "num_layers=0: expected a positive number"),
    ):
        file.write_text(json.dumps(record | change))
        with pytest.raises(ValueError, match=said):
            read_decoder_config(tmp_path)
    file.write_text('{"vocab_size": 30}')
    with pytest.raises(ValueError, match="lacks 'num_attention_heads'"):
        read_decoder_config(file)
    with pytest.raises(FileNotFoundError, match=r"a Llama's config\.json"):
        read_decoder_config(tmp_path / "nothing")


def test_wrong_inputs_are_refused():
    module = Decoder(TINY)
    variables = random(module)
    with pytest.raises(ValueError, match="Texts of 8 tokens, but the network has 7 positions"):
        module.apply(variables, example_ids(1, 8))
    with pytest.raises(ValueError, match=r"takes token ids, .* got float32\[1, 2\]"):
        module.apply(variables, jnp.zeros((1, 2), jnp.float32))
