"""LiteRT files in their own runtime: our codes and ranges, logits beside the evaluation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.allocation import Allocation, bit_arrays
from jmpq.deploy.measure import corrected_logits
from jmpq.export.codes import take_codes, unquantized
from jmpq.export.exchange.contents import NotExpressible
from jmpq.formats import Choice
from jmpq.network.network import Network
from jmpq.quantizers.spec import InputSpec, KernelSpec
from tests.export import cases

pytest.importorskip(
    "litert_converter", reason="litert-converter is not installed (extra litert)"
)
pytest.importorskip("ai_edge_quantizer", reason="ai-edge-quantizer is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # of its import

from jmpq.export.check import litert_runner  # noqa: E402
from jmpq.export.litert import float_litert, litert_model  # noqa: E402
from jmpq.export.litert_file import named_products, read_file  # noqa: E402


def digits(count=16):
    return jax.random.normal(jax.random.key(0), (count, 8, 8, 1), jnp.float32)


NETWORKS = {
    "cnn": lambda: (cases.network(), cases.images()),
    "digits_resnet": lambda: (cases.digits_resnet(), digits()),
    "bert_tiny": lambda: (cases.bert_tiny(), cases.sentences()),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_float_logits_are_those_of_jax(name):
    network, inputs = NETWORKS[name]()
    content = float_litert(unquantized(network))
    want = np.asarray(jax.jit(network.logits)(inputs))
    got = litert_runner(content)(inputs)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
    products = named_products(read_file(content), network)
    assert [x.name for x in products] == [x.name for x in network.sites if x.has_input]


def stored(content, network):
    """Integer kernels of a file by layer, as outputs × inputs, and their scales."""
    model = read_file(content)
    graph = model.subgraphs[0]
    found = {}
    for tensor in graph.tensors:
        name, _, end = tensor.name.decode().rpartition("/")
        if end != "kernel" or tensor.type not in (9, 17):
            continue
        data = np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.uint8)
        if tensor.type == 17:  # two codes a byte
            data = np.stack([data & 15, data >> 4], axis=1).reshape(-1)
            data = np.where(data > 7, data.astype(int) - 16, data)[: np.prod(tensor.shape)]
        else:
            data = data.view(np.int8)
        codes = data.reshape(tensor.shape)
        if codes.ndim == 4:  # that of a depthwise operation has its outputs last
            depthwise = tensor.quantization.quantizedDimension == 3
            codes = codes.transpose((3, 0, 1, 2) if depthwise else (0, 3, 1, 2))
        found[name] = codes.reshape(len(codes), -1).astype(int), tensor.quantization.scale
    return found


@pytest.mark.parametrize("smallest", [8, 4])
@pytest.mark.parametrize("clipping", ["mse", "minmax"])
def test_codes_are_ours_at_any_bits(smallest, clipping):
    network, inputs = NETWORKS["digits_resnet"]()
    names = [layer.name for layer in network.layers]
    widths = (2, 3, 4, 5, 8)
    allocation = Allocation(
        {n: Choice(widths[i % len(widths)], 8) for i, n in enumerate(names)}
    )
    found = cases.quantizers(
        KernelSpec(clipping=clipping), widths, (8,), InputSpec(), network, [inputs]
    )
    coded = take_codes(network, found, allocation)
    content = litert_model(coded, [inputs], smallest)
    kernels = stored(content, network)
    assert set(kernels) == set(names)
    for layer, name in enumerate(names):
        own = coded.kernels[layer]
        leaf = coded.leaf(layer, jnp.asarray(own.codes, jnp.float32))
        matrix = np.asarray(network.to_matrix(layer, leaf)).astype(int)
        np.testing.assert_array_equal(np.abs(kernels[name][0]), np.abs(matrix))
    bits = map(jnp.asarray, bit_arrays(names, [allocation])[0])
    want = np.asarray(jax.jit(corrected_logits)(network, found, *bits, inputs, {}))
    got = litert_runner(content)(inputs)
    # Outputs of layers are integers too, and at ties codes differ.
    assert np.abs(got - want).mean() < 0.03 * np.abs(want).max()
    assert (got.argmax(1) == want.argmax(1)).mean() > 0.8


def test_kernels_alone_are_exact():
    """With inputs in floats nothing is rounded but the kernels."""
    network, inputs = NETWORKS["digits_resnet"]()
    names = [layer.name for layer in network.layers]
    allocation = Allocation.uniform(names, Choice(3))
    found = cases.quantizers(KernelSpec(), (3,), (32,), InputSpec(), network, [inputs])
    content = litert_model(take_codes(network, found, allocation), [])
    bits = map(jnp.asarray, bit_arrays(names, [allocation])[0])
    want = np.asarray(jax.jit(corrected_logits)(network, found, *bits, inputs, {}))
    got = litert_runner(content)(inputs)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


class Factorised(nn.Module):
    """Does what LiteRT has no operation for."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, name="first")(x)
        square = jnp.eye(4, dtype=x.dtype) + x[:, :, None] * x[:, None, :]
        return nn.Dense(3, name="second")(jnp.linalg.cholesky(square).sum(-1))


def test_an_operation_that_it_lacks_is_named_with_the_layer_before():
    example = jnp.zeros((1, 6), jnp.float32)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = Factorised().init(jax.random.key(0), example)
    variables = jax.tree.map(lambda x: x.astype(jnp.float32), variables)
    network = Network.from_linen(Factorised(), variables, example)
    with pytest.raises(
        ValueError, match=r"no operation for `cholesky` after layer 'first'"
    ) as error:
        float_litert(unquantized(network))
    assert "\n" not in str(error.value)


def test_a_choice_that_it_lacks_is_refused():
    network, inputs = NETWORKS["digits_resnet"]()
    name = network.layers[1].name
    found = cases.quantizers(KernelSpec(), (8,), (4,), InputSpec(), network, [inputs])
    coded = take_codes(network, found, Allocation({name: Choice(8, 4)}))
    with pytest.raises(
        NotExpressible, match=f"'{name}' at W8A4: activations are integers of 8"
    ):
        litert_model(coded, [inputs])
