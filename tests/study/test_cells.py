"""Whatever decides a result makes the cell another one."""

import importlib
import pathlib
import sys

import jax
import numpy as np
import pytest

from jmpq import run
from jmpq.study import cells
from jmpq.study.cells import network_cell
from jmpq.study.grid import StudiedNetwork, Study
from jmpq.study.layout import lines

NETWORK = """
import jax
import numpy as np
from jmpq.network.network import Network

def network():
    # COMMENT
    params = {"a": {"kernel": np.load("kernel.npy")}, "b": {"kernel": np.ones((4, 10), "f4")}}
    def apply(params, x):
        x = jax.nn.relu(x.reshape(len(x), -1) @ params["a"]["kernel"])
        return x @ params["b"]["kernel"]
    return Network.from_function(apply, params, np.zeros((1, 8, 8, 1), "f4"))
"""
LOSS = """
def loss(logits, labels):
    return 1.0 * ((logits - logits.mean()) ** 2).mean(axis=-1)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with a network and a loss of one's own, read from a file beside them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_network.py").write_text(NETWORK)
    (tmp_path / "own_loss.py").write_text(LOSS)
    np.save(tmp_path / "kernel.npy", np.ones((64, 4), np.float32))
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield tmp_path
    for name in ("own_network", "own_loss"):
        sys.modules.pop(name, None)


def anew(path: pathlib.Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    sys.modules.pop(path.stem, None)
    importlib.invalidate_caches()


def test_a_network_of_ones_own_is_its_code_and_its_weights(own):
    studied = StudiedNetwork(layers=run.Layers(model="own_network:network", data="digits"))
    keys = [network_cell(studied).key]
    assert network_cell(studied).key == keys[0]
    anew(own / "own_network.py", "# COMMENT", "# changed, which may change anything")
    keys.append(network_cell(studied).key)
    np.save(own / "kernel.npy", np.full((64, 4), 2.0, np.float32))
    keys.append(network_cell(studied).key)
    assert len({*keys}) == 3


def test_weights_are_their_contents_not_their_name(own):
    weights = own / "weights.npz"
    studied = StudiedNetwork(
        layers=run.Layers(model="digits_resnet", data="digits", weights=weights)
    )
    weights.write_bytes(b"one")
    first = network_cell(studied).key
    weights.write_bytes(b"two")
    assert network_cell(studied).key != first


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "."])
def test_weights_in_several_files_are_read_for_what_is_in_them(own, name, monkeypatch):
    """An index of shards and a folder do not change with the tensors that they lead to."""
    read = []
    monkeypatch.setattr(
        cells, "_as_made", lambda layers: read.append(layers) or {"weights": "x"}
    )
    (own / "model.safetensors.index.json").write_text("{}")
    layers = run.Layers(model="digits_resnet", data="digits", weights=own / name)
    assert network_cell(StudiedNetwork(layers=layers)).inputs == {"weights": "x"}
    assert read == [layers]


def test_a_loss_of_ones_own_is_its_code(own):
    study = Study(
        networks={
            "tiny": StudiedNetwork(
                layers=run.Layers(model="tests.cli.networks:tiny", data="digits")
            )
        },
        sensitivity=run.Sensitivity(loss="own_loss:loss"),
    )
    before = [line.plan.key for line in lines(study)]
    anew(own / "own_loss.py", "1.0", "2.0")
    after = [line.plan.key for line in lines(study)]
    assert before
    assert not {*before} & {*after}
