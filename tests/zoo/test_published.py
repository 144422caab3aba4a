"""Weight files of every kind give the same variables; what is none is refused in one line."""

import argparse
import json
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from flax import serialization

from jmpq.zoo.published.files import read_published
from jmpq.zoo.published.match import fitted
from jmpq.zoo.weights_torchvision import load_published
from tests.zoo.pytorch_files import Tensor, save, save_legacy


class Small(nn.Module):
    """A convolution, normalisation and a dense layer."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), name="conv1")(x)
        x = nn.BatchNorm(use_running_average=not train, name="bn1")(x)
        return nn.Dense(3, name="fc")(x.mean((1, 2)))


RNG = np.random.default_rng(0)
TENSORS = {
    name: RNG.uniform(0.5, 1.5, shape).astype(np.float32)
    for name, shape in {
        "conv1.weight": (4, 3, 3, 3),
        "conv1.bias": (4,),
        "bn1.weight": (4,),
        "bn1.bias": (4,),
        "bn1.running_mean": (4,),
        "bn1.running_var": (4,),
        "fc.weight": (3, 4),
        "fc.bias": (3,),
    }.items()
}
VARIABLES = {
    "params": {
        "conv1": {
            "kernel": TENSORS["conv1.weight"].transpose(2, 3, 1, 0),
            "bias": TENSORS["conv1.bias"],
        },
        "bn1": {"scale": TENSORS["bn1.weight"], "bias": TENSORS["bn1.bias"]},
        "fc": {"kernel": TENSORS["fc.weight"].T, "bias": TENSORS["fc.bias"]},
    },
    "batch_stats": {
        "bn1": {"mean": TENSORS["bn1.running_mean"], "var": TENSORS["bn1.running_var"]}
    },
}


def safe(path, tensors):
    path.write_bytes(safetensors.numpy.save(tensors))
    return path


def state(prefix=""):
    counter = {f"{prefix}bn1.num_batches_tracked": Tensor(np.zeros((), np.int64))}
    return {f"{prefix}{name}": Tensor(x) for name, x in TENSORS.items()} | counter


def sharded(path):
    names = list(TENSORS)
    halves = {"a-1-of-2.safetensors": names[:4], "a-2-of-2.safetensors": names[4:]}
    for file, part in halves.items():
        safe(path / file, {name: TENSORS[name] for name in part})
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def pytorch(path):
    """A checkpoint of a training script with DistributedDataParallel."""
    known = {"epoch": 3, "args": argparse.Namespace(lr=0.1), "best": np.float64(0.5)}
    return save(path / "best.pth.tar", {**known, "state_dict": state("module.")})


def flattened(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value


def npz(path):
    np.savez(path / "w.npz", **dict(flattened(VARIABLES)))
    return path / "w.npz"


def msgpack(path):
    tree = {**VARIABLES, "step": np.int32(7), "opt_state": {"0": {"count": np.int32(7)}}}
    (path / "w.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    return path / "w.msgpack"


def orbax(path):
    with ocp.PyTreeCheckpointer() as writer:
        writer.save(path / "checkpoint", jax.tree.map(jnp.asarray, VARIABLES))
    return path / "checkpoint"


WRITERS = {
    "safetensors with a prefix": lambda p: safe(
        p / "w.safetensors", {f"module.model.{name}": x for name, x in TENSORS.items()}
    ),
    "shards": sharded,
    "index of shards": lambda p: sharded(p) / "model.safetensors.index.json",
    "checkpoint of a training": pytorch,
    "old state dict": lambda p: save_legacy(p / "w.th", state()),
    "folder with a state dict": lambda p: save(p / "pytorch_model.bin", state("model.")).parent,
    "npz": npz,
    "msgpack": msgpack,
    "orbax": orbax,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_file_gives_the_same_variables(kind, tmp_path):
    got = load_published(WRITERS[kind](tmp_path), Small())
    jax.tree.map(np.testing.assert_array_equal, got, VARIABLES)


def test_views_and_half_precision_are_read(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    stored = save(tmp_path / "w.pt", {"a": Tensor(array.T), "b": Tensor(array)})
    got = read_published(stored)
    np.testing.assert_array_equal(got["a"], array.T)
    np.testing.assert_array_equal(got["b"], array)
    half = {name: x.astype(jnp.bfloat16) for name, x in TENSORS.items()}
    got = load_published(safe(tmp_path / "half.safetensors", half), Small())
    want = half["fc.bias"].astype(np.float32)
    np.testing.assert_array_equal(got["params"]["fc"]["bias"], want)


class Runs:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [save, save_legacy])
def test_nothing_in_a_pickle_runs(write, tmp_path):
    stored = {"state_dict": state(), "hook": Runs(tmp_path / "ran")}
    path = write(tmp_path / "w.pth", stored)
    jax.tree.map(np.testing.assert_array_equal, load_published(path, Small()), VARIABLES)
    assert not (tmp_path / "ran").exists()
    path = write(tmp_path / "w.pth", {"fc.weight": Runs(tmp_path / "ran")})
    with pytest.raises(
        ValueError, match=r"holds \w+\.mkdir under 'fc\.weight'; expected names"
    ):
        load_published(path, Small())
    assert not (tmp_path / "ran").exists()


def test_files_that_are_something_else_are_refused(tmp_path):
    beyond = Tensor(np.ones((2, 2), np.float32))
    beyond.offset = 3
    files = {
        "a.pth": (save, {"epoch": 3}, "holds int under 'epoch'; expected names to tensors"),
        "b.pth": (save, [1], "holds list; expected names to tensors"),
        "c.pth": (save, {"w": beyond}, "damaged: a tensor of shape .* reaches beyond"),
    }
    for name, (write, stored, said) in files.items():
        write(tmp_path / name, stored)
        with pytest.raises(ValueError, match=said):
            read_published(tmp_path / name)
    for name, said in {
        "d.pth": "not a readable PyTorch state dict.*cut off.*get the file again",
        "e.npz": "not a readable .npz file",
        "f.msgpack": "not a readable tree of flax",
        "g.index.json": "not an index of shards",
        "h.safetensors": "not a readable safetensors file.*cut off.*get the file again",
    }.items():
        (tmp_path / name).write_bytes(b"weights")
        with pytest.raises(ValueError, match=said):
            read_published(tmp_path / name)
    objects = np.array([{}], dtype=object)
    np.savez(tmp_path / "i.npz", objects=objects)
    with pytest.raises(ValueError, match=r"not a readable .npz file of arrays: Object arrays"):
        read_published(tmp_path / "i.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"There are no weights in .*expected model.safe"
    ):
        read_published(tmp_path / "empty")


def test_shards_that_are_missing_are_named(tmp_path):
    sharded(tmp_path)
    (tmp_path / "a-2-of-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"names 2 files; not there: a-2-of-2"):
        load_published(tmp_path, Small())


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_whole_numbers_are_no_weights(kind, tmp_path):
    codes = {name: np.ones(x.shape, np.int8) for name, x in TENSORS.items()}
    path = tmp_path / f"codes.{kind}"
    if kind == "npz":
        np.savez(path, **dict(flattened(jax.tree.map(np.int8, VARIABLES))))
    else:
        safe(path, codes)
    with pytest.raises(ValueError, match=r"tensors of whole numbers, not of weights: .*int8"):
        load_published(path, Small())


def test_a_prefix_beside_other_names_is_taken_off_too():
    one = np.zeros(1)
    stored = dict.fromkeys(["model.norm.weight", "model.embed.weight", "lm_head.weight"], one)
    expected = ["norm.weight", "embed.weight", "lm_head.weight"]
    assert set(fitted(stored, expected)) == set(expected)
    own = dict.fromkeys(["model.a.weight", "model.b.weight"], one)
    assert set(fitted(own, list(own))) == set(own)
