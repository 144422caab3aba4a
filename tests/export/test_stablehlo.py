"""StableHLO programs: the packed network's logits, without jmpq, and spoilt files refused."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.allocation import Allocation
from jmpq.export.codes import take_codes, unquantized
from jmpq.export.packed import load_packed, save_packed
from jmpq.export.stablehlo import END, load_stablehlo, save_stablehlo
from jmpq.formats import Choice
from jmpq.quantizers.spec import KernelSpec
from tests.export import cases
from tests.export.test_packed import MIXED


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    found = cases.quantizers(KernelSpec(grid="half"), (2, 3, 5, 8), (4, 8))
    path = tmp_path_factory.mktemp("packed") / "net.safetensors"
    save_packed(path, take_codes(cases.network(), found, MIXED))
    return load_packed(path, cases.network())


@pytest.fixture(scope="module")
def program(packed, tmp_path_factory):
    path = tmp_path_factory.mktemp("stablehlo") / "net.stablehlo"
    assert save_stablehlo(path, packed) == packed.size_bytes
    return path


def test_any_number_of_examples_gives_the_packed_network_s_logits(packed, program):
    loaded = load_stablehlo(program)
    assert loaded.allocation == packed.allocation
    assert loaded.metadata["platforms"] == ["cpu", "cuda", "tpu"]
    for count in (1, 5):
        inputs = cases.images(batch=count)
        np.testing.assert_allclose(
            loaded.logits(inputs), packed.logits(inputs), rtol=1e-5, atol=1e-6
        )


def test_jax_alone_runs_the_file(packed, program):
    content = bytearray(program.read_bytes())
    inputs = cases.images()
    got = jax.export.deserialize(content).call(inputs)
    np.testing.assert_allclose(got, packed.logits(inputs), rtol=1e-5, atol=1e-6)


def test_codes_lie_packed_in_the_program(tmp_path):
    """A wide layer's codes of 2 bits take a sixteenth of its floats."""
    network = cases.digits_resnet()
    allocation = Allocation.uniform([x.name for x in network.layers], Choice(2))
    inputs = [jnp.zeros((1, 8, 8, 1), jnp.float32)]
    found = cases.quantizers(KernelSpec(grid="half"), (2,), of=network, inputs=inputs)
    sizes = {}
    for name, coded in (
        ("float", unquantized(network)),
        ("two", take_codes(network, found, allocation)),
    ):
        save_packed(path := tmp_path / f"{name}.safetensors", coded)
        own = load_packed(path, network)
        payload = save_stablehlo(path := tmp_path / name, own, batch=1)
        sizes[name] = path.stat().st_size, payload
    (floats, more), (two, less) = sizes["float"], sizes["two"]
    assert floats - two > 0.8 * (more - less)


def test_other_inputs_are_refused(program):
    loaded = load_stablehlo(program)
    with pytest.raises(ValueError, match=r"takes inputs .*\[5, 5, 2\].* got .*\[4, 4, 2\]"):
        loaded.logits(np.zeros((2, 4, 4, 2), np.float32))


def test_cut_off_and_spoilt_programs_are_refused(program, tmp_path):
    whole, path = program.read_bytes(), tmp_path / "net.stablehlo"
    refused = functools.partial(pytest.raises, ValueError)
    path.write_bytes(whole[:-100])
    with refused(match=r"net.stablehlo is not a StableHLO program of jmpq, or cut off"):
        load_stablehlo(path)
    path.write_bytes(whole[100:])
    with refused(match=r"net.stablehlo is spoilt: its program is not the one"):
        load_stablehlo(path)
    path.write_bytes(whole[:500] + b"\0" + whole[501:])
    with refused(match="is spoilt"):
        load_stablehlo(path)
    length, _ = END.unpack(whole[-END.size :])
    text = whole[-END.size - length : -END.size]
    other = json.dumps(json.loads(text) | {"kind": "other"}).encode()
    body = whole[: -END.size - length]
    path.write_bytes(body + other + END.pack(len(other), b"jmpqhlo1"))
    with refused(match="is spoilt"):
        load_stablehlo(path)
    with pytest.raises(FileNotFoundError, match="give a file that `jmpq export --format stab"):
        load_stablehlo(tmp_path / "none")
