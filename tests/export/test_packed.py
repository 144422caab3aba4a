"""Packed files: bytes as `size_bytes` counts them, logits as evaluation has them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmpq
from jmpq.allocation import Allocation, bit_arrays
from jmpq.deploy.correction import find_corrections, output_moments
from jmpq.deploy.finetuned import Finetuned
from jmpq.deploy.measure import corrected_logits
from jmpq.export.codes import take_codes, unquantized
from jmpq.export.packed import expected_bytes, load_packed, save_packed
from jmpq.formats import Choice
from jmpq.problem.costs import Overhead, allocation_costs
from jmpq.quantizers.fake_quant import quantized_logits
from jmpq.quantizers.learned import rows_of, with_rows
from jmpq.quantizers.spec import InputSpec, KernelSpec
from jmpq.zoo.tensor_files import save_variables
from tests import helpers
from tests.export import cases

MIXED = Allocation(
    {"stem": Choice(8, 8), "conv1": Choice(3, 4), "conv2": Choice(2), "head": Choice(5, 8)}
)
PARTLY = Allocation({"stem": Choice(1, 8), "conv2": Choice(16, 3)})


def logits(network, found, allocation, inputs, corrections=None):
    bits = bit_arrays([layer.name for layer in network.layers], [allocation])[0]
    run = jax.jit(corrected_logits)
    return run(network, found, *map(jnp.asarray, bits), inputs, corrections or {})


@pytest.mark.parametrize(
    ("spec", "allocation", "placement"),
    [
        (KernelSpec(), MIXED, "inputs"),
        (KernelSpec(grid="affine", rounding="gptq"), MIXED, "inputs"),
        (KernelSpec(grid="half", granularity="tensor"), PARTLY, "inputs"),
        (KernelSpec(grid="affine", granularity="group", group_size=1), PARTLY, "stream"),
        (KernelSpec(), MIXED, "stream"),
        (KernelSpec(), Allocation({}), "inputs"),
    ],
    ids=["mixed", "gptq", "tensor", "groups", "stream", "float"],
)
def test_payload_is_size_bytes_and_logits_are_those_of_evaluation(
    spec, allocation, placement, tmp_path
):
    network, inputs = cases.network(), cases.images()
    widths = sorted({c.w_bits for c in allocation.values()} - {32})
    stream = placement == "stream"
    activations = InputSpec(
        granularity="tensor" if stream else "channel", placement=placement, int32_biases=stream
    )
    found = cases.quantizers(spec, widths, (3, 4, 8), activations)
    path = tmp_path / "net.safetensors"
    coded = take_codes(network, found, allocation)
    written = save_packed(path, coded)
    costs = allocation_costs(
        network.layers,
        allocation,
        Overhead.of(network.layers, spec),
        unquantized_parameters=network.other_parameters,
    )
    packed = load_packed(path, network)
    assert written == packed.size_bytes == expected_bytes(coded) == costs["size_bytes"]
    want = logits(network, found, allocation, inputs)
    np.testing.assert_allclose(packed.logits(inputs), want, rtol=1e-6, atol=1e-6)
    assert f"{written:,} bytes" in repr(packed)


def test_corrections_and_learned_scales_are_in_the_file(tmp_path):
    network, inputs = cases.network(), cases.images()
    found = cases.quantizers(KernelSpec(), (2, 3, 5, 8), (4, 8))
    bits = bit_arrays([layer.name for layer in network.layers], [MIXED])[0]
    scale, zero = rows_of(network, found, *bits.tolist())
    learned = scale._replace(weights=tuple(1.1 * row for row in scale.weights))
    found = with_rows(found, learned, zero)
    corrections = find_corrections(
        network, found, *map(jnp.asarray, bits), inputs, output_moments(network, inputs),
        "batch_norm",
    )  # fmt: skip
    tuned = Finetuned(
        network=network, quantizers=found, allocation=MIXED, corrections=corrections,
        losses=np.zeros(0),
    )  # fmt: skip
    coded = take_codes(tuned.network, tuned.quantizers, tuned.allocation, tuned.corrections)
    save_packed(path := tmp_path / "tuned.safetensors", coded)
    got = jmpq.load_packed(path, network).logits(inputs)
    np.testing.assert_allclose(got, tuned.logits(inputs), rtol=1e-6, atol=1e-6)
    plain = logits(network, found, MIXED, inputs)
    assert np.abs(got - plain).max() > 1e-3


def test_a_built_in_network_needs_no_network(tmp_path):
    network = cases.digits_resnet()
    inputs = jax.random.normal(jax.random.key(0), (4, 8, 8, 1), jnp.float32)
    found = jmpq.calibrate_quantizers(network, (4,), (8,), [inputs])
    allocation = Allocation.uniform([layer.name for layer in network.layers], Choice(4, 8))
    coded = take_codes(network, found, allocation)
    save_packed(path := tmp_path / "net.safetensors", coded, architecture="digits_resnet")
    bits = jnp.full(len(network.layers), 4), jnp.full(len(network.layers), 8)
    want = jax.jit(quantized_logits)(network, found, *bits, inputs)
    np.testing.assert_allclose(load_packed(path).logits(inputs), want, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="is of another network: it has 8 layers, this one 4"):
        load_packed(path, cases.network())


def test_sentences_come_back_too(tmp_path):
    network = cases.bert_tiny()
    save_packed(
        path := tmp_path / "net.safetensors", unquantized(network), architecture="bert_tiny"
    )
    inputs = cases.sentences()
    got = load_packed(path).logits(inputs)
    np.testing.assert_allclose(got, jax.jit(network.logits)(inputs), rtol=1e-5, atol=1e-5)


def test_a_changed_network_is_refused_and_asked_for(tmp_path):
    network = cases.network()
    save_packed(path := tmp_path / "net.safetensors", unquantized(network))
    with pytest.raises(ValueError, match=r"pass the network it was made from, load_packed\(p"):
        load_packed(path)
    with pytest.raises(ValueError, match="the frozen statistics 'batch_stats/bn0/mean' differ"):
        load_packed(path, helpers.residual_cnn(1, "relu", jnp.float32))
    other = helpers.residual_cnn(0, "softplus", jnp.float32)
    other = dataclasses.replace(other, state=network.state)
    with pytest.raises(ValueError, match="what it computes differs, though its layers are"):
        load_packed(path, other)


def test_spoilt_and_foreign_files_are_refused(tmp_path):
    network = cases.network()
    save_packed(path := tmp_path / "net.safetensors", unquantized(network))
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"net.safetensors is not a readable safetensors file"):
        load_packed(path, network)
    path.write_bytes(whole[:-8] + b"\0\0\0\0" + whole[-4:])
    with pytest.raises(ValueError, match="is spoilt: its tensors are not those"):
        load_packed(path, network)
    with pytest.raises(FileNotFoundError, match="There is no weights file"):
        load_packed(tmp_path / "none.safetensors", network)
    save_variables(path, {"a": np.ones(2)}, architecture="resnet20")
    with pytest.raises(ValueError, match=r"is not a packed network .*\(kind None\)"):
        load_packed(path, network)


def test_float64_is_refused(tmp_path):
    with pytest.raises(ValueError, match="parameters are float64: a packed file holds float32"):
        save_packed(tmp_path / "net.safetensors", unquantized(helpers.residual_cnn()))
