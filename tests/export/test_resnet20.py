"""ResNet-20 with published weights on real images: packed and ONNX beside the evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmpq
from jmpq.allocation import Allocation, bit_arrays
from jmpq.data.batches import batches
from jmpq.data.load import load_dataset
from jmpq.export.check import compare, onnx_runner, packed_runner
from jmpq.export.codes import take_codes
from jmpq.export.packed import save_packed
from jmpq.network.network import Network
from jmpq.problem.costs import Overhead, allocation_costs
from jmpq.quantizers.fake_quant import quantized_logits
from jmpq.zoo.architectures import build_module
from jmpq.zoo.weights import load_weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def resnet20(shared_data):
    """The network, its quantizers, its evaluation examples."""
    module, folder = build_module("resnet20", 10), shared_data / "cifar10"
    variables = load_weights(folder / "resnet20.safetensors", module, architecture="resnet20")
    network = Network.from_linen(module, variables, jnp.zeros((1, 32, 32, 3), jnp.float32))
    images = load_dataset("cifar10", folder).heldout
    calibration = batches(images.take(np.arange(9000, 9128)), 64)
    inputs = [jnp.asarray(batch.inputs) for batch in calibration]
    found = jmpq.calibrate_quantizers(network, (2, 4, 8), (8,), inputs)
    return network, found, images.take(np.arange(200))


@pytest.mark.parametrize("widths", [(8,), (8, 4, 2, 4)])
def test_resnet20_runs_as_it_was_evaluated(resnet20, widths, tmp_path):
    network, found, images = resnet20
    names = [layer.name for layer in network.layers]
    bits = [widths[i % len(widths)] for i in range(len(names))]
    bits[-1] = 8
    allocation = Allocation.from_bits(names, np.array([bits, [8] * len(names)]))
    rows = map(jnp.asarray, bit_arrays(names, [allocation])[0])
    logits = jax.jit(lambda n, q, w, a, x: quantized_logits(n, q, w, a, x))
    arrays = (network, found, *rows)

    def evaluation(inputs):
        return np.asarray(logits(*arrays, jnp.asarray(inputs)))

    coded = take_codes(network, found, allocation)
    costs = allocation_costs(
        network.layers,
        allocation,
        Overhead.of(network.layers, found.weights.spec),
        unquantized_parameters=network.other_parameters,
    )
    size = costs["size_bytes"]
    path = tmp_path / "resnet20.safetensors"
    assert save_packed(path, coded, architecture="resnet20") == size
    packed = compare(packed_runner(path), evaluation, batches(images, 100))
    assert packed.same_class == 1
    assert packed.mean < 2e-3  # two programs: a value at a tie may take the other code
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra onnx)")
    from jmpq.export.onnx_graph import onnx_model

    model = onnx_model(coded).SerializeToString()
    assert len(model) < 1.1 * size
    onnx = compare(onnx_runner(model), evaluation, batches(images, 100))
    assert (
        onnx.same_class >= 0.97
    )  # of 200 images; few bits move with onnxruntime's int32 biases
    assert onnx.mean < 0.1
