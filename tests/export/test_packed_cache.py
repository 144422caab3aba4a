"""Packed files of decoders whose keys and values have formats of their own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.allocation import Allocation, bit_arrays
from jmpq.export.codes import take_codes
from jmpq.export.exchange.tools import TOOLS, tell
from jmpq.export.packed import expected_bytes, load_packed, save_packed
from jmpq.export.stablehlo import load_stablehlo, save_stablehlo
from jmpq.formats import Choice
from jmpq.network.network import Network
from jmpq.problem.costs import Overhead, allocation_costs
from jmpq.quantizers.calibrate import calibrate_quantizers
from jmpq.quantizers.fake_quant import quantized_logits
from jmpq.quantizers.products import with_cache
from jmpq.quantizers.spec import InputSpec, KernelSpec
from jmpq.zoo.architectures import build_module
from jmpq.zoo.decoder import TIED, Decoder, DecoderConfig
from jmpq.zoo.tensor_files import load_tensors, save_tensors

KEPT = ("int3", "mxfp4", "nvfp4", "fp8_e4m3", "int8")
SMALL = DecoderConfig(
    vocab_size=20, hidden_size=16, num_layers=3, num_heads=4, num_key_value_heads=2,
    head_size=4, intermediate_size=24, max_positions=8,
)  # fmt: skip


def of_module(module, ids, tied=()):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = module.init(jax.random.key(0), ids)
        # Larger keys and queries: attention that depends on them.
        variables = jax.tree.map(lambda x: jnp.asarray(4 * x, jnp.float32), variables)
        return Network.from_linen(module, variables, ids, tied=tied)


@functools.cache
def plain():
    return of_module(Decoder(SMALL), jnp.zeros((1, 6), jnp.int32))


@functools.cache
def network():
    return with_cache(plain())


def tokens(seed=0):
    return jax.random.randint(jax.random.key(seed), (3, 6), 0, SMALL.vocab_size, jnp.int32)


@functools.cache
def quantizers():
    spec = InputSpec(granularity="channel", clipping="minmax")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return calibrate_quantizers(
            network(), [4, "mxfp4"], KEPT, [tokens(1)], weights=KernelSpec(), activations=spec
        )


def mixed():
    """Formats of kernels in turn, and of keys and values; one row stays unquantized."""
    layers, caches = ([x for x in network().layers if (x.kind == "cache") == kept]
                      for kept in (False, True))  # fmt: skip
    choices = {x.name: Choice(("int4", "mxfp4")[i % 2]) for i, x in enumerate(layers)}
    for i, row in enumerate(caches[1:]):
        choices[row.name] = Choice("none", KEPT[i % len(KEPT)])
    return Allocation(choices)


def evaluated(allocation):
    bits = bit_arrays([x.name for x in network().layers], [allocation])[0]
    w_bits, a_bits = map(jnp.asarray, bits)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return jax.jit(quantized_logits)(network(), quantizers(), w_bits, a_bits, tokens())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "net.safetensors"
    coded = take_codes(network(), quantizers(), mixed())
    return path, coded, save_packed(path, coded)


def test_logits_are_those_of_evaluation_and_bytes_those_of_the_cost(written):
    path, coded, size = written
    packed = load_packed(path, network())
    assert {**packed.allocation, **mixed()} == dict(packed.allocation)
    want = evaluated(mixed())
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        got = packed.logits(tokens())
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    of_kernels = {k: c for k, c in mixed().items() if ":" not in k}
    assert np.abs(want - evaluated(Allocation(of_kernels))).max() > 1e-2
    costs = allocation_costs(
        network().layers,
        mixed(),
        Overhead.of(network().layers, KernelSpec()),
        unquantized_parameters=network().other_parameters,
    )
    assert size == packed.size_bytes == expected_bytes(coded) == costs["size_bytes"]


@pytest.mark.slow
def test_a_built_in_decoder_needs_no_network_of_its_own(tmp_path):
    name, row = "stories260k", "layers/0/self_attn/v_proj:values"
    ids = jnp.zeros((1, 6), jnp.int32)
    whole = with_cache(of_module(build_module(name, 512), ids, TIED))
    found = calibrate_quantizers(whole, [], ["mxfp4"], [tokens(1)])
    coded = take_codes(whole, found, Allocation({row: Choice("none", "mxfp4")}))
    save_packed(path := tmp_path / "net.safetensors", coded, architecture=name)
    packed = load_packed(path)
    assert packed.allocation[row] == Choice("none", "mxfp4")
    assert packed.network.layers == whole.layers
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        floats, got = whole.logits(tokens()), packed.logits(tokens())
        again = load_packed(path, whole).logits(tokens())
    np.testing.assert_array_equal(got, again)
    assert np.abs(got - floats).max() > 1e-3


def test_programs_keep_formats_of_keys_and_values_too(written, tmp_path):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        save_stablehlo(tmp_path / "net.stablehlo", load_packed(written[0], network()))
        got = load_stablehlo(tmp_path / "net.stablehlo").logits(tokens())
    np.testing.assert_allclose(got, evaluated(mixed()), rtol=1e-5, atol=1e-5)


def test_spoilt_files_are_refused(written, tmp_path):
    path, content = tmp_path / "net.safetensors", written[0].read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        load_packed(path, network())
    tensors, header = load_tensors(written[0])
    name = next(name for name in tensors if ":keys/scale" in name)
    del tensors[name]
    save_tensors(path, tensors, architecture="", metadata=header["metadata"])
    with pytest.raises(ValueError, match="is spoilt: its tensors are not those"):
        load_packed(path, network())


def test_networks_with_other_rows_are_refused(written, tmp_path):
    with pytest.raises(ValueError, match=r"has rows of keys.*has none \(jmpq.with_cache adds"):
        load_packed(written[0], plain())
    kernels = calibrate_quantizers(plain(), [4])
    path = tmp_path / "plain.safetensors"
    save_packed(path, take_codes(plain(), kernels, Allocation({"embed_tokens": Choice(4)})))
    with pytest.raises(ValueError, match="it has no rows of keys and values, this one has"):
        load_packed(path, network())


@pytest.mark.parametrize("file", ["onnx", "litert", *TOOLS])
def test_other_files_name_the_row_and_the_way_out(written, file):
    coded = written[1]
    if file in TOOLS:
        write = functools.partial(tell, file, coded)
    elif file == "onnx":
        graph = pytest.importorskip("jmpq.export.onnx_graph")
        write = functools.partial(graph.onnx_model, coded)
    else:
        litert = pytest.importorskip("jmpq.export.litert")
        write = functools.partial(litert.litert_model, coded, [tokens()])
    with pytest.raises(
        ValueError, match=r"holds layers, .*k_proj:keys', ...\): export 'packed"
    ):
        write()
