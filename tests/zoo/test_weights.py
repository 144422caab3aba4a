import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jmpq.data.cifar10 import cifar10
from jmpq.training.evaluate import evaluate, logits
from jmpq.zoo.architectures import build_module
from jmpq.zoo.published.files import torch_name
from jmpq.zoo.published.image_names import known_names
from jmpq.zoo.resnet import ResNetCIFAR
from jmpq.zoo.tensor_files import load_variables, save_variables, weights_sha256
from jmpq.zoo.weights_torchvision import load_published

TINY = ResNetCIFAR(depth=4, widths=(4,), num_classes=3)


def published(seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors of `TINY` as a PyTorch file would have them."""
    rng = np.random.default_rng(seed)
    shapes = {"conv1.weight": (4, 3, 3, 3), "linear.weight": (3, 4), "linear.bias": (3,)}
    for k in (1, 2):
        shapes[f"layer1.0.conv{k}.weight"] = (4, 4, 3, 3)
    for bn in ("bn1", "layer1.0.bn1", "layer1.0.bn2"):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{bn}.{leaf}"] = (4,)
    return {k: rng.uniform(0.5, 1.5, s).astype(np.float32) for k, s in shapes.items()}


def write(path, tensors):
    path.write_bytes(safetensors.numpy.save(tensors))
    return path


@pytest.mark.parametrize("depth", [20, 32, 44])
def test_logits_equal_the_reference_forward_pass(shared_data, depth):
    folder = shared_data / "cifar10"
    module = build_module(f"resnet{depth}")
    variables = load_published(folder / f"resnet{depth}.safetensors", module)
    first = cifar10(shared_data).heldout.take(np.arange(256))
    got = logits(module.apply, variables, first, batch_size=256)
    want = np.load(folder / "reference_logits.npz")[f"resnet{depth}"]
    np.testing.assert_allclose(got, want, atol=1e-3)


def test_resnet20_has_its_published_accuracy_on_all_test_images(shared_data):
    module = build_module("resnet20")
    variables = load_published(shared_data / "cifar10" / "resnet20.safetensors", module)
    result = evaluate(module.apply, variables, cifar10(shared_data).heldout)
    assert result.examples == 10_000
    assert result.top1 == pytest.approx(0.9173, abs=1e-12)


def test_kernels_are_transposed_and_statistics_go_to_batch_stats(tmp_path):
    tensors = published()
    tensors["bn1.num_batches_tracked"] = np.zeros((), np.int64)
    variables = load_published(write(tmp_path / "w.safetensors", tensors), TINY)
    conv = variables["params"]["layer1"]["0"]["conv2"]["kernel"]
    assert conv[0, 2, 3, 1] == tensors["layer1.0.conv2.weight"][1, 3, 0, 2]
    np.testing.assert_array_equal(
        variables["params"]["linear"]["kernel"], tensors["linear.weight"].T
    )
    np.testing.assert_array_equal(
        variables["batch_stats"]["layer1"]["0"]["bn2"]["var"],
        tensors["layer1.0.bn2.running_var"],
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert torch_name("params/linear/bias") == "linear.bias"


def test_missing_unexpected_and_misshaped_tensors_are_named(tmp_path):
    tensors = published()
    tensors["conv1.bias"] = tensors.pop("layer1.0.bn1.bias")
    tensors["linear.weight"] = np.zeros((10, 4), np.float32)
    path = write(tmp_path / "w.safetensors", tensors)
    with pytest.raises(ValueError, match="does not fit the network") as error:
        load_published(path, TINY)
    assert "missing: layer1.0.bn1.bias" in str(error.value)
    assert "unexpected: conv1.bias" in str(error.value)
    assert "linear.weight (10, 4) instead of (3, 4)" in str(error.value)


def test_long_lists_of_tensors_are_cut(tmp_path):
    path = write(tmp_path / "w.safetensors", {"x": np.zeros(1, np.float32)})
    with pytest.raises(ValueError, match=r"and \d+ more; unexpected: x"):
        load_published(path, TINY)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(tmp_path, value):
    tensors = published()
    tensors["layer1.0.conv1.weight"][0, 0, 0, :2] = value
    path = write(tmp_path / "w.safetensors", tensors)
    with pytest.raises(ValueError, match=r"NaN or inf.*layer1.0.conv1.weight \(2 of 144"):
        load_published(path, TINY)


def test_one_of_several_files_is_told_from_a_wrong_one(tmp_path):
    tensors = published()
    half = dict(list(tensors.items())[: len(tensors) // 2])
    path = write(tmp_path / "model-00001-of-00002.safetensors", half)
    with pytest.raises(ValueError, match=r"missing: .*number 1 of 2: give their folder"):
        load_published(path, TINY)


def test_missing_file_and_other_format(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights file .*none\.safetensors"):
        load_published(tmp_path / "none.safetensors", TINY)
    (tmp_path / "text.safetensors").write_text("weights")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_published(tmp_path / "text.safetensors", TINY)


def test_saved_variables_come_back_with_their_metadata(tmp_path):
    kernels = {"conv1": {"kernel": jnp.arange(6.0).reshape(2, 3)}, "scale": jnp.float32(2)}
    variables = {"params": kernels, "batch_stats": {"mean": jnp.ones(3)}, "n": jnp.float32(3)}
    path = tmp_path / "new" / "weights.safetensors"
    save_variables(path, variables, architecture="small", metadata={"top1": 0.5})
    loaded, header = load_variables(path, architecture="small")
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert weights_sha256(loaded) == weights_sha256(variables)
    assert header["architecture"] == "small"
    assert header["metadata"] == {"top1": 0.5}


def test_other_architecture_is_refused(tmp_path):
    save_variables(tmp_path / "w", {"a": jnp.ones(2)}, architecture="small")
    with pytest.raises(ValueError, match="weights of 'small', not of 'resnet20'"):
        load_variables(tmp_path / "w", architecture="resnet20")


def test_foreign_file_is_refused_by_load_variables(tmp_path):
    path = write(tmp_path / "w.safetensors", published())
    with pytest.raises(ValueError, match="was not written by this version"):
        load_variables(path)


@pytest.mark.parametrize(
    "header", ["{", "[]", "{}", '{"schema": "jmpq/weights", "version": 1, "metadata": 3}']
)
def test_a_spoilt_header_is_refused_with_the_file(tmp_path, header):
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file({"a": np.ones(2)}, path, {"jmpq": header})
    with pytest.raises(ValueError, match=rf"{path} (is spoilt: .*|was not written by this)"):
        load_variables(path)


def test_not_finite_variables_are_not_saved_and_the_old_file_stays(tmp_path):
    path = tmp_path / "w"
    save_variables(path, {"a": jnp.ones(2)}, architecture="x")
    with pytest.raises(ValueError, match=r"NaN or infinite weights.*a/b \(1 of 2"):
        save_variables(path, {"a": {"b": jnp.array([1.0, np.nan])}}, architecture="x")
    assert list(tmp_path.iterdir()) == [path]
    assert load_variables(path)[0]["a"].tolist() == [1, 1]


def test_name_with_a_slash_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'a/b' has a '/'"):
        save_variables(tmp_path / "w", {"a/b": jnp.ones(2)}, architecture="x")


def test_hash_is_of_paths_dtypes_shapes_and_bytes():
    tree = {"b": np.array([1, 2], np.float32), "a": {"c": np.zeros((1, 2), np.int32)}}
    digest = hashlib.sha256()
    digest.update(json.dumps(["a/c", "int32", [1, 2]]).encode() + bytes(8))
    digest.update(json.dumps(["b", "float32", [2]]).encode() + b"\0\0\x80\x3f\0\0\0\x40")
    assert weights_sha256(tree) == digest.hexdigest()
    assert weights_sha256(jax.tree.map(jnp.asarray, tree)) == digest.hexdigest()
    other = [
        {**tree, "b": tree["b"].reshape(1, 2)},
        {**tree, "b": tree["b"].view(np.int32)},
        {"d": tree["b"], "a": tree["a"]},
        {**tree, "b": tree["b"][::-1]},
    ]
    assert len({weights_sha256(t) for t in [tree, *other]}) == 5


def test_names_of_other_publishers_become_those_of_the_network():
    names = {
        "conv_stem.weight": "features.0.0.weight",
        "bn1.running_mean": "features.0.1.running_mean",
        "blocks.0.0.conv_dw.weight": "features.1.conv.0.0.weight",
        "blocks.0.0.conv_pw.weight": "features.1.conv.1.weight",
        "blocks.1.0.conv_pw.weight": "features.2.conv.0.0.weight",
        "blocks.1.0.conv_pwl.weight": "features.2.conv.2.weight",
        "blocks.1.0.bn3.bias": "features.2.conv.3.bias",
        "conv_head.weight": "features.3.0.weight",
        "classifier.weight": "classifier.1.weight",
    }
    tensors = {name: np.full(2, i) for i, name in enumerate(names)}
    renamed = known_names(tensors)
    assert {name: tensor[0] for name, tensor in renamed.items()} == {
        name: i for i, name in enumerate(names.values())
    }
    lite = {
        "conv_stem.weight": "conv_stem.weight",
        "bn1.running_mean": "bn0.running_mean",
        "blocks.0.0.conv_dw.weight": "blocks.0.depthwise_conv.weight",
        "blocks.0.0.conv_pw.weight": "blocks.0.project_conv.weight",
        "blocks.1.0.conv_pw.weight": "blocks.1.expand_conv.weight",
        "blocks.1.0.conv_pwl.weight": "blocks.1.project_conv.weight",
        "blocks.1.1.conv_pwl.weight": "blocks.2.project_conv.weight",
        "blocks.1.1.bn1.bias": "blocks.2.bn0.bias",
        "bn2.weight": "bn1.weight",
        "classifier.weight": "fc.weight",
    }
    expected = ["blocks.0.depthwise_conv.weight"]
    assert list(known_names(dict.fromkeys(lite, np.zeros(1)), expected)) == list(lite.values())
    want = ["conv_stem.weight", "blocks.3.bn0.running_var", "fc.bias"]
    underscored = ["_conv_stem.weight", "_blocks.3._bn0.running_var", "_fc.bias"]
    assert list(known_names(dict.fromkeys(underscored, np.zeros(1)))) == want
    vgg = {
        "pre_logits.fc1.weight": np.arange(16).reshape(2, 2, 2, 2),
        "head.fc.bias": np.ones(2),
    }
    renamed = known_names(vgg)
    np.testing.assert_array_equal(renamed["classifier.0.weight"], np.arange(16).reshape(2, 8))
    assert set(renamed) == {"classifier.0.weight", "classifier.6.bias"}
    assert known_names(published()).keys() == published().keys()
