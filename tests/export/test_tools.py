"""Files for other tools, read by the tools themselves (in the bench environment)."""

import importlib
import json
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmpq
from jmpq.allocation import Allocation, bit_arrays
from jmpq.deploy.measure import corrected_logits
from jmpq.export.codes import take_codes, unquantized
from jmpq.export.exchange.tools import tell
from jmpq.network.network import Network
from jmpq.quantizers.spec import InputSpec, KernelSpec
from tests import helpers
from tests.export import cases
from tests.export.test_exchange import coded

MIXED = {"stem": "W8A8", "conv1": "W4A4", "conv2": "W3A3", "head": "W4A8"}
WHY = "cannot be imported (make bench-env; AIMET: make aimet)"


def module(name):
    """A tool, or the test is skipped; warnings of its import do not count."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except (ImportError, RuntimeError) as error:  # the latter of a torchvision misfit
            return pytest.skip(f"{name.split('.')[0]} {WHY}: {error}")


def calibrated(network, inputs, label, spec, activations):
    """Codes of an allocation, its evaluation's logits."""
    names = [layer.name for layer in network.layers]
    allocation = Allocation.from_json(label if isinstance(label, dict) else {})
    if isinstance(label, str):
        allocation = Allocation.parse(label, names)
    w_bits, a_bits = bit_arrays(names, [allocation])[0]
    widths = [sorted({int(b) for b in x} - {32}) for x in (w_bits, a_bits)]
    found = jmpq.calibrate_quantizers(
        network, *widths, [inputs], weights=spec, activations=activations
    )
    rows = jnp.asarray(w_bits), jnp.asarray(a_bits)
    logits = jax.jit(corrected_logits)(network, found, *rows, inputs, {})
    return take_codes(network, found, allocation), np.asarray(logits)


class Dense(nn.Module):
    """Two dense layers: Qwix takes other bits of their weights than of their inputs."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="two")(nn.relu(nn.Dense(16, name="one")(x)))


QWIX = [
    ("cnn", MIXED, "half"),
    ("cnn", {"conv1": "W8A8", "head": "W8"}, "affine"),
    ("dense", {"one": "W4A8", "two": "W5"}, "half"),
    ("dense", {"one": "W2A4", "two": "W8A8"}, "affine"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "label", "grid"), QWIX)
def test_qwix_gives_our_logits(name, label, grid):
    """Weights on the grid that it has, inputs on any with one scale."""
    qwix = module("qwix")
    if name == "cnn":
        inputs = cases.images(batch=16)
        linen = helpers.ResidualCNN(activation="relu", dtype=jnp.float32)
    else:
        inputs, linen = jax.random.normal(jax.random.key(0), (16, 8), jnp.float32), Dense()
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.enable_x64(False),
    ):
        variables = linen.init(jax.random.key(1), inputs)
        if "batch_stats" in variables:
            stats = helpers.shake(variables["batch_stats"], 1)
            variables = {**variables, "batch_stats": stats}
        network = Network.from_linen(linen, variables, inputs[:1])
        spec = KernelSpec(grid="half", clipping="minmax")
        own, want = calibrated(network, inputs, label, spec, InputSpec(grid=grid))
        told = tell("qwix", own)
        content = json.loads(json.dumps(told.content))
        provider = qwix.PtqProvider([qwix.QuantizationRule(**rule) for rule in content])
        quantized = qwix.quantize_model(linen, provider)
        got = np.asarray(quantized.apply(variables, inputs))
        assert not provider.get_unused_rules()
        floats = np.asarray(linen.apply(variables, inputs))
    assert np.abs(floats - want).max() > 1e-2 * np.abs(want).max()
    # Codes at ties may differ; nothing else does.
    close = np.isclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    assert close.mean() > 0.95
    assert np.abs(got - want).max() < 0.2 * np.abs(floats - want).max()


@pytest.mark.filterwarnings("ignore")
def test_compressed_tensors_applies_the_config():
    """To modules of PyTorch that are named as the layers of a small BERT."""
    quantization, torch = module("compressed_tensors.quantization"), module("torch")
    network = cases.bert_tiny()
    layers = [x for x in network.layers if x.kind == "dense"]
    widths = ("W8A8", "W4A8", "W3A5", "W2")
    choices = {x.name: widths[i % len(widths)] for i, x in enumerate(layers)}
    net = torch.nn.Module()
    for layer in network.layers:
        *path, last = layer.name.split("/")
        own = net
        for part in path:
            if not hasattr(own, part):
                own.add_module(part, torch.nn.Module())
            own = getattr(own, part)
        own.add_module(last, torch.nn.Linear(4, 4))
    told = tell("compressed-tensors", coded(choices, network=network))
    content = json.loads(json.dumps(told.content))
    config = quantization.QuantizationConfig.model_validate(content)
    quantization.apply_quantization_config(net, config)
    for name, label in choices.items():
        scheme = net.get_submodule(name.replace("/", ".")).quantization_scheme
        inputs = scheme.input_activations
        bits = f"W{scheme.weights.num_bits}" + (f"A{inputs.num_bits}" if inputs else "")
        assert bits == label
    ignored = net.get_submodule(content["ignore"][0])
    assert not hasattr(ignored, "quantization_scheme")


def convolutions():
    """The layers of `helpers.ResidualCNN` in PyTorch, and an example."""
    torch = module("torch")
    net = torch.nn.Sequential()
    for i, name in enumerate(("stem", "conv1", "conv2")):
        net.add_module(name, torch.nn.Conv2d(3 if i else 2, 3, 3))
    net.add_module("pool", torch.nn.AdaptiveAvgPool2d(1))
    net.add_module("flat", torch.nn.Flatten())
    net.add_module("head", torch.nn.Linear(3, 3))
    return net, torch.zeros(1, 2, 8, 8)


@pytest.mark.filterwarnings("ignore")
def test_modelopt_quantizes_by_the_config():
    mtq = module("modelopt.torch.quantization")
    net, example = convolutions()
    content = json.loads(json.dumps(tell("modelopt", coded(MIXED)).content))
    mtq.quantize(net, content, forward_loop=lambda model: model(example))
    for name, label in MIXED.items():
        own = getattr(net, name)
        assert f"W{own.weight_quantizer.num_bits}A{own.input_quantizer.num_bits}" == label
        assert own.weight_quantizer.is_enabled
        assert not own.output_quantizer.is_enabled


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("grid", ["symmetric", "affine"])
def test_aimet_loads_the_encodings_and_gives_our_logits(grid):
    aimet_onnx, onnx = module("aimet_onnx"), module("onnx")
    network, inputs = cases.network(), cases.images(batch=16)
    choices = MIXED | {"conv1": "W4A8"}
    own, want = calibrated(
        network, inputs, choices, KernelSpec(grid=grid), InputSpec(grid="affine")
    )
    told = tell("aimet", own)
    model = onnx.load_from_string(told.companions[".onnx"])
    floats = np.asarray(jax.jit(network.logits)(inputs))
    sim = aimet_onnx.QuantizationSimModel(model)
    mismatched = aimet_onnx.quantsim.load_encodings_to_sim(
        sim, json.loads(json.dumps(told.content)), strict=False
    )
    enabled = [n for n, q in sim.qc_quantize_op_dict.items() if q.enabled]
    assert len(enabled) == len(told.content["encodings"]) == 2 * len(choices), mismatched
    got = sim.session.run(None, {"inputs": np.asarray(inputs)})[0]
    assert np.abs(got - want).mean() < 0.05 * np.abs(floats - want).mean()


@pytest.mark.filterwarnings("ignore")
def test_ai_edge_quantizer_takes_the_recipe():
    quantizer = module("ai_edge_quantizer.quantizer")
    module("litert_converter")
    from jmpq.export.litert import float_litert

    own = coded({"stem": "W8", "head": "W4"})
    content = bytearray(float_litert(unquantized(cases.network())))
    recipe = json.loads(json.dumps(tell("ai-edge-quantizer", own).content))
    result = quantizer.Quantizer(content, recipe).quantize(enable_progress_report=False)
    from jmpq.export.litert_file import read_file

    graph = read_file(bytes(result.quantized_model)).subgraphs[0]
    kinds = {x.name.decode(): x.type for x in graph.tensors}
    int8, int4, float32 = 9, 17, 0
    assert kinds["stem/kernel"] == int8
    assert kinds["head/kernel"] == int4
    assert kinds["conv1/kernel"] == float32
