import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jmpq.network.network import Network
from jmpq.zoo.bert import BERTS, Bert, BertConfig, example_tokens, read_config, split_heads
from jmpq.zoo.weights_bert import load_bert, read_bert
from tests.zoo.bert_reference import TINY, hidden_states, published, tokens


@pytest.fixture(autouse=True)
def _flax_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def write(path, tensors):
    path.write_bytes(safetensors.numpy.save(tensors))
    return path


def load(tmp_path, head="hidden", config=TINY, **options):
    path = write(tmp_path / "model.safetensors", published())
    module = Bert(config, head)
    return module, load_bert(path, module, **options)


def test_every_head_equals_the_network_written_out(tmp_path):
    tensors, batch = published(), tokens()
    want = hidden_states(tensors, batch)
    module, variables = load(tmp_path)
    got = np.asarray(module.apply(variables, batch))
    for row, states in zip(got, want, strict=True):
        np.testing.assert_allclose(row[: len(states)], states, atol=1e-5)
    pooled = np.tanh(
        np.stack([states[0] for states in want]) @ tensors["pooler.dense.weight"].T
        + tensors["pooler.dense.bias"]
    )
    module, variables = load(tmp_path, "pooled")
    np.testing.assert_allclose(module.apply(variables, batch), pooled, atol=1e-5)
    means = np.stack([states.mean(axis=0) for states in want])
    means = means / np.linalg.norm(means, axis=1, keepdims=True)
    module, variables = load(tmp_path, "embedding")
    np.testing.assert_allclose(module.apply(variables, batch), means, atol=1e-5)
    pairs = jax.tree.map(lambda x: np.stack([x[:2], x[1:]], axis=1), batch)
    module, variables = load(tmp_path, "similarity")
    cosines = (means[:2] * means[1:]).sum(axis=1)
    np.testing.assert_allclose(module.apply(variables, pairs)[:, 0], cosines, atol=1e-5)


def test_padding_has_no_influence(tmp_path):
    module, variables = load(tmp_path, "embedding")
    batch = tokens()
    longer = jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, 3))), batch)
    longer["input_ids"][:, -1] = 7
    np.testing.assert_allclose(
        module.apply(variables, longer), module.apply(variables, batch), atol=1e-6
    )


def test_heads_with_kernels_of_their_own_are_the_same_network(tmp_path):
    batch = tokens()
    module, variables = load(tmp_path, "pooled")
    apart = Bert(dataclasses.replace(TINY, split_heads=True), "pooled")
    split = {"params": split_heads(variables["params"], TINY)}
    want = jax.eval_shape(apart.init, jax.random.key(0), example_tokens(1, 2))
    assert jax.tree.map(lambda x: x.shape, split) == jax.tree.map(lambda x: x.shape, want)
    np.testing.assert_allclose(
        apart.apply(split, batch), module.apply(variables, batch), atol=1e-6
    )
    loaded = load(tmp_path, "pooled", apart.config)[1]
    jax.tree.map(np.testing.assert_array_equal, loaded, split)


@pytest.mark.parametrize("split", [False, True])
def test_the_layer_table_has_every_matrix_and_every_embedding(split):
    config = dataclasses.replace(TINY, split_heads=split)
    module = Bert(config, "similarity")
    variables = module.init(jax.random.key(0), example_tokens(1, 2, 4))
    network = Network.from_linen(module, variables, example_tokens(1, 2, 4))
    layers = {layer.name: layer for layer in network.layers}
    assert len(layers) == 3 + 2 * ((4 * 2 + 2) if split else 6)
    for name in ("word", "position", "token_type"):
        layer = layers[f"embeddings/{name}_embeddings"]
        assert (layer.kind, layer.macs) == ("embedding", 0)
    attention = "encoder/layer/1/attention"
    value = layers[f"{attention}/self/value/1" if split else f"{attention}/self/value"]
    assert value.macs == 2 * 4 * 8 * (4 if split else 8)  # two sentences of four tokens
    assert all(site.repeat == 1 and site.input_batch_axis == 0 for site in network.sites)
    kernels = sum(layer.parameters for layer in network.layers)
    assert kernels == (30 + 10 + 2) * 8 + 2 * (4 * 8 * 8 + 2 * 8 * 12)
    assert network.other_parameters == 2 * 8 + 2 * (4 * 8 + 12 + 8 + 4 * 8)
    batch = jax.tree.map(lambda x: np.stack([x, x[::-1]], axis=1), tokens(length=9))
    got = network.logits(batch)
    np.testing.assert_array_equal(got, network.apply(network.params, batch))


def test_training_draws_dropout_and_evaluation_does_not(tmp_path):
    module, variables = load(tmp_path, "pooled")
    batch = tokens()

    def run(seed):
        return module.apply(
            variables, batch, train=True, rngs={"dropout": jax.random.key(seed)}
        )

    assert jnp.any(run(0) != run(1))
    np.testing.assert_array_equal(
        module.apply(variables, batch), module.apply(variables, batch)
    )


def test_sizes_are_those_published():
    def parameters(name):
        tree = jax.eval_shape(
            Bert(BERTS[name], "pooled").init, jax.random.key(0), example_tokens(1, 2)
        )
        return sum(x.size for x in jax.tree.leaves(tree))

    assert parameters("bert_base") == 109_482_240  # the 110M of Devlin et al., table of sizes
    assert parameters("minilm_l6") == 22_713_216  # tensors of the published file


def test_missing_unexpected_and_misshaped_tensors_are_named(tmp_path):
    tensors = published()
    tensors["encoder.layer.9.output.dense.bias"] = tensors.pop(
        "encoder.layer.0.output.dense.bias"
    )
    tensors["embeddings.word_embeddings.weight"] = np.zeros((31, 8), np.float32)
    path = write(tmp_path / "bad.safetensors", tensors)
    with pytest.raises(ValueError, match="does not fit") as error:
        load_bert(path, Bert(TINY))
    for said in (
        "missing: encoder.layer.0.output.dense.bias",
        "unexpected: encoder.layer.9.output.dense.bias",
        r"embeddings.word_embeddings.weight (31, 8) instead of (30, 8)",
    ):
        assert said in str(error.value)


def test_old_names_prefixes_buffers_and_unused_heads_are_understood(tmp_path):
    tensors = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma"): x
        for name, x in published().items()
    }
    tensors["bert.embeddings.position_ids"] = np.arange(10)[None]
    tensors["cls.predictions.bias"] = np.zeros(30, np.float32)
    module = Bert(TINY, "embedding")
    got = load_bert(write(tmp_path / "old.safetensors", tensors), module)
    jax.tree.map(np.testing.assert_array_equal, got, load(tmp_path, "embedding")[1])


def test_a_head_that_the_file_lacks_is_drawn_only_when_asked(tmp_path):
    with pytest.raises(ValueError, match=r"missing: classifier\.(bias|weight)"):
        load(tmp_path, "classification")
    _, variables = load(tmp_path, "classification", key=jax.random.key(1))
    assert variables["params"]["classifier"]["kernel"].shape == (8, 2)
    assert jnp.any(variables["params"]["classifier"]["kernel"] != 0)


def test_configurations_are_read_or_refused(tmp_path):
    text = (
        '{"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,'
        '"intermediate_size": 12, "max_position_embeddings": 10, "type_vocab_size": 2'
    )
    file = tmp_path / "config.json"
    file.write_text(text + "}")
    assert read_config(tmp_path) == TINY
    write(tmp_path / "model.safetensors", published())
    module, variables = read_bert(tmp_path, "embedding", split_heads=True)
    assert module.config.split_heads
    assert "0" in variables["params"]["encoder"]["layer"]["0"]["attention"]["self"]["key"]
    for extra, said in (
        (', "model_type": "roberta"}', "model_type='roberta'"),
        (', "position_embedding_type": "relative_key"}', "expected 'absolute'"),
        (', "hidden_act": "swish"}', "activation='swish' is unknown"),
        ("", "not a configuration"),
    ):
        file.write_text(text + extra)
        with pytest.raises(ValueError, match=said):
            read_config(file)
    file.write_text('{"vocab_size": 30}')
    with pytest.raises(ValueError, match="lacks 'hidden_size'"):
        read_config(file)
    with pytest.raises(FileNotFoundError, match=r"give a folder with a BERT's config\.json"):
        read_config(tmp_path / "nothing")


def test_wrong_inputs_are_refused(tmp_path):
    module, variables = load(tmp_path, "embedding")
    with pytest.raises(ValueError, match="of 11 tokens, but the network has 10"):
        module.apply(variables, example_tokens(1, 11))
    with pytest.raises(ValueError, match="Tokens lack token_type_ids"):
        module.apply(variables, {k: v for k, v in tokens().items() if k != "token_type_ids"})
    with pytest.raises(ValueError, match=r"takes \[batch, 2, length\]"):
        Bert(TINY, "similarity").apply(variables, example_tokens(3, 4))
    with pytest.raises(ValueError, match="head='mean' is unknown"):
        Bert(TINY, "mean").apply(variables, example_tokens(3, 4))
    with pytest.raises(ValueError, match="does not divide into num_heads=3"):
        BertConfig(num_heads=3, hidden_size=8)
    with pytest.raises(
        FileNotFoundError, match=r"expected model\.safetensors, .*pytorch_model"
    ):
        load_bert(tmp_path / "..", module)


def test_a_pytorch_file_that_is_none_is_refused(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"nothing")
    with pytest.raises(FileNotFoundError, match="There is no weights file"):
        load_bert(tmp_path / "other.bin", Bert(TINY))
    with pytest.raises(ValueError, match="not a readable PyTorch state dict"):
        load_bert(path, Bert(TINY))


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_pytorch_parity_on_random_weights(tmp_path, activation):
    reason = "needs torch and transformers: `make bench-env` installs them"
    torch = pytest.importorskip("torch", reason=reason)
    transformers = pytest.importorskip("transformers", reason=reason)
    config = transformers.BertConfig(
        vocab_size=200,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=40,
        hidden_act=activation,
        num_labels=3,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    theirs = transformers.BertForSequenceClassification(config).eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    ours = read_config(tmp_path)
    batch = tokens(3, sentences=5, length=33, config=ours)
    with torch.no_grad():
        given = {k: torch.tensor(x, dtype=torch.long) for k, x in batch.items()}
        logits = theirs(**given).logits.numpy()
        hidden = theirs.bert(**given).last_hidden_state.numpy()
        pooled = theirs.bert(**given).pooler_output.numpy()
    seen = batch["attention_mask"] > 0
    for head, want in (("hidden", hidden), ("pooled", pooled), ("classification", logits)):
        module = Bert(ours, head, num_classes=3)
        got = np.asarray(module.apply(load_bert(tmp_path, module), batch))
        if head == "hidden":
            got, want = got[seen], want[seen]
        assert np.abs(want).max() > 0.1
        np.testing.assert_allclose(got, want, atol=1e-4)
    again = load_bert(tmp_path / "pytorch_model.bin", module)
    jax.tree.map(np.testing.assert_array_equal, again, load_bert(tmp_path, module))
