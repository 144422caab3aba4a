"""Files for other tools: what they say, what they refuse, and what they say is left out."""

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.allocation import Allocation
from jmpq.export.codes import InputGrid, KernelCodes, unquantized
from jmpq.export.exchange.contents import NotExpressible
from jmpq.export.exchange.tools import TOOLS, tell
from jmpq.formats import UNQUANTIZED, Choice
from jmpq.network.network import Network
from jmpq.quantizers.scales import kernel_tiles
from jmpq.quantizers.spec import InputSpec, KernelSpec
from jmpq.zoo.resnet import ResNet
from tests.export import cases

MIXED = {"stem": "W8A8", "conv1": "W4A4", "conv2": "W2A2", "head": "W4A8"}
DENSE = {"head": "W4A8"}
HALF = KernelSpec(grid="half", clipping="minmax")


def coded(choices, spec=KernelSpec(), activations=InputSpec(), network=None):
    """A network under an allocation; made-up codes, as files for other tools have none."""
    network = network or cases.network()
    allocation = Allocation.from_json(choices)
    kernels, inputs = [], []
    for layer in network.layers:
        scheme = allocation.choices.get(layer.name, UNQUANTIZED).weights
        (tiling,) = kernel_tiles([layer], spec, [scheme.number])
        size = math.prod(tiling.block)
        blocks = layer.parameters // size
        kernel = KernelCodes(
            scheme=scheme,
            codes=np.zeros((blocks, size), np.int32),
            scale=np.full(blocks, 0.1, np.float32),
            zero_point=np.zeros(blocks, np.int32),
            tiling=tiling,
        )
        kernels.append(None if scheme.is_none else kernel)
    for site in network.sites:
        scheme = allocation.choices.get(site.layer.name, UNQUANTIZED).activations
        zero = np.full(1, 3.0 if activations.grid == "affine" else 0, np.float32)
        grid = InputGrid(scheme, np.full(1, 0.05, np.float32), zero)
        inputs.append(None if scheme.is_none or not site.has_input else grid)
    return dataclasses.replace(
        unquantized(network),
        allocation=allocation,
        weights=spec,
        activations=activations,
        kernels=tuple(kernels),
        inputs=tuple(inputs),
    )


@pytest.fixture(scope="module")
def mixed():
    return coded(MIXED)


def test_qwix_has_a_rule_a_layer_and_the_ranges_of_inputs(mixed):
    told = tell("qwix", mixed)
    rules = {rule["module_path"]: rule for rule in told.content}
    assert list(rules) == list(MIXED)
    for name, label in MIXED.items():
        choice = Choice.parse(label)
        assert rules[name]["weight_qtype"] == f"int{choice.w_bits}"
        assert rules[name]["act_qtype"] == f"int{choice.a_bits}"
    low, high = map(float, rules["stem"]["act_calibration_method"].split(",")[1:])
    grid = mixed.inputs[0]
    assert high - low == pytest.approx(255 * grid.scale[0], rel=1e-6)
    assert low == pytest.approx(-grid.zero_point[0] * grid.scale[0], rel=1e-6)
    assert "Weights: grid 'symmetric' here, 'half' in Qwix." in told.left_out
    assert tell("qwix", coded(MIXED, HALF, InputSpec(grid="half"))).left_out == ()


def test_compressed_tensors_has_a_group_a_choice():
    network = cases.bert_tiny()
    first, *_, last = [x.name for x in network.layers if x.kind == "dense"]
    content = tell("compressed-tensors", coded({first: "W8A8", last: "W4A8"}, network=network))
    groups = content.content["config_groups"]
    assert set(groups) == {"W8A8", "W4A8"}
    assert groups["W4A8"]["targets"] == [f"re:^{re.escape(last.replace('/', '.'))}$"]
    assert groups["W4A8"]["weights"] == {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel",
    }  # fmt: skip
    assert groups["W4A8"]["input_activations"]["num_bits"] == 8
    assert len(content.content["ignore"]) == len(network.layers) - 2
    spec = KernelSpec(granularity="group", group_size=1)
    weights = tell("compressed-tensors", coded(DENSE, spec)).content["config_groups"]["W4A8_g1"]
    assert weights["weights"]["group_size"] == 1
    spec = KernelSpec(granularity="group", group_count=1, along="output")
    with pytest.raises(NotExpressible, match="its groups lie along the inputs of one output"):
        tell("compressed-tensors", coded(DENSE, spec))


def test_compressed_tensors_has_a_group_a_size_and_leaves_indices_alone():
    bert = cases.bert_tiny()
    quantized = {layer.name: "W4A8" for layer in bert.layers}
    groups = KernelSpec(granularity="group", group_count=2)
    told = tell("compressed-tensors", coded(quantized, groups, network=bert)).content
    own = {re.sub(r"\\", "", t[4:-1]): g for g in told["config_groups"].values()
           for t in g["targets"]}  # fmt: skip
    assert len(own) == len(bert.layers)
    for layer in bert.layers:
        group = own[layer.name.replace("/", ".")]
        _, columns = groups.layer_blocks(layer)
        assert group["weights"]["group_size"] == columns, layer.name
        assert (group["input_activations"] is None) == (layer.kind == "embedding")
    assert len({g["weights"]["group_size"] for g in own.values()}) > 1


def test_qwix_says_which_ranges_it_finds_itself():
    told = tell("qwix", coded({"head": "W6A6"}))
    assert told.content[0]["act_calibration_method"] == "absmax"
    assert "Ranges of inputs of 1 layers: Qwix finds its own, input by input." in told.left_out


def test_modelopt_turns_everything_off_first(mixed):
    first, *rules = tell("modelopt", mixed).content["quant_cfg"]
    assert first == {"quantizer_name": "*", "enable": False}
    bits = {rule["quantizer_name"]: rule["cfg"]["num_bits"] for rule in rules}
    assert bits["conv2.weight_quantizer"] == bits["conv2.input_quantizer"] == 2
    assert len(bits) == 2 * len(MIXED)


def test_maxtext_names_dense_layers_and_a_default():
    content = tell("maxtext", coded({"head": "W4"})).content
    assert content == {
        "__default__": {"w_bits": None, "a_bits": None},
        "head": {"w_bits": 4, "a_bits": None},
    }


def test_ai_edge_recipe_names_outputs_and_what_stands_between():
    rules = tell("ai-edge-quantizer", coded({"stem": "W8A8", "head": "W3A8"})).content
    own = {rule["regex"]: rule for rule in rules if rule["regex"] != ".*"}
    assert set(own) == {r"^stem(#\d+)?;", r"^head(#\d+)?;"}
    config = own[r"^head(#\d+)?;"]["op_config"]
    assert config["weight_tensor_config"]["num_bits"] == 4  # the next that there is
    assert config["activation_tensor_config"]["num_bits"] == 8
    assert {"ADD", "MEAN"} <= {rule["operation"] for rule in rules}
    assert all(x["regex"] != ".*" for x in tell("ai-edge-quantizer", coded(DENSE)).content)


@pytest.fixture(scope="module")
def narrow_resnet18():
    """ResNet-18 of two channels: HAWQ goes by the names of layers."""
    module, example = ResNet(width=2, num_classes=3), jnp.zeros((1, 32, 32, 3), jnp.float32)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = module.init(jax.random.key(0), example)
    variables = jax.tree.map(lambda x: x.astype(jnp.float32), variables)
    return Network.from_linen(module, variables, example)


def resnet18(network, changed=()):
    """Its weights by turns at 8 and 4 bits, inputs at 8, but for what is changed."""
    names = [layer.name for layer in network.layers]
    choices = {n: f"W{(8, 4)[i % 2]}A8" for i, n in enumerate(names)} | dict(changed)
    return coded(choices, network=network)


def test_hawq_has_bits_of_every_module_of_resnet18(narrow_resnet18):
    own = resnet18(narrow_resnet18)
    bits = tell("hawq", own).content["bit_config_resnet18_jmpq"]
    assert bits["quant_init_block_convbn"] == own.allocation["conv1"].w_bits
    assert bits["stage2.unit1.quant_convbn2"] == own.allocation["layer2/0/conv2"].w_bits
    (projection,) = [x for x in own.allocation if x.startswith("layer3/0/downsample")]
    assert bits["stage3.unit1.quant_identity_convbn"] == own.allocation[projection].w_bits
    # As its own file for ResNet-18: 21 kernels, an input each but for the three projections,
    # and the sums of eight blocks and of the first one.
    kernels = [x for x in bits if "convbn" in x] + ["quant_output"]
    sums = [x for x in bits if x.endswith("quant_act_int32")]
    assert (len(kernels), len(sums), len(bits)) == (21, 9, 21 + 18 + 9)
    with pytest.raises(
        NotExpressible, match=r"'layer2/0/downsample.*' at W8A4: its input is tha"
    ):
        tell("hawq", resnet18(narrow_resnet18, {projection.replace("3", "2", 1): "W8A4"}))
    with pytest.raises(NotExpressible, match="layer 'fc' at W32: it quantizes every layer"):
        tell("hawq", resnet18(narrow_resnet18, {"fc": "W32"}))
    with pytest.raises(
        NotExpressible, match=r"modules for resnet18, resnet50, resnet101 alone"
    ):
        tell("hawq", coded({"stem": "W8A8"}))


REFUSED = {
    "qwix": [
        ({"conv1": "W4A8"}, "'conv1' at W4A8: a convolution's weights and input have the same"),
        ({"head": "W9A8"}, "'head' at W9A8: weights are integers of 2 to 8 bits there"),
        ({"head": "W32A8"}, "'head' at W32A8: weights are"),
        ({"head": "Wmxfp4A8"}, "'head' at Wmxfp4A8: weights are integers of 2 to 8 bits"),
    ],
    "compressed-tensors": [
        ({"head": "W32A8"}, "'head' at W32A8: weights are integers of 2 to 16 bits there"),
        ({"stem": "W8A8"}, "'stem' at W8A8: it quantizes dense layers and embeddings only"),
    ],
    "modelopt": [({"head": "W8Amxfp8_e4m3"}, "'head' at W8Amxfp8_e4m3: activations are int")],
    "maxtext": [({"conv1": "W4A8"}, "'conv1' at W4A8: it quantizes matrix products only")],
    "ai-edge-quantizer": [
        ({"conv1": "W8A4"}, "'conv1' at W8A4: activations are integers of 8 or 16 bits or unq"),
        ({"conv1": "W9A8"}, "'conv1' at W9A8: weights are"),
    ],
}


@pytest.mark.parametrize(
    ("tool", "choices", "message"),
    [(tool, *case) for tool, own in REFUSED.items() for case in own],
)
def test_what_a_tool_cannot_take_names_layer_choice_and_what_it_can(tool, choices, message):
    with pytest.raises(NotExpressible, match=re.escape(message)) as error:
        tell(tool, coded(choices))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("grid", ["half", "affine"])
def test_litert_refuses_other_grids_than_its_own(grid):
    with pytest.raises(NotExpressible, match="'head' at W4A8: weights are on a symmetric grid"):
        tell("ai-edge-quantizer", coded(DENSE, KernelSpec(grid=grid)))


def test_what_is_lost_of_the_quantizers_is_said():
    spec = KernelSpec(rounding="gptq")
    for tool in ("qwix", "compressed-tensors", "modelopt", "ai-edge-quantizer"):
        left_out = tell(tool, coded({"head": "W8A8"}, spec)).left_out
        assert any("rounding 'gptq' here, 'nearest' in" in x for x in left_out), tool


def test_embeddings_are_refused_by_name():
    name = "embeddings/word_embeddings"
    own = coded({name: "W4"}, network=cases.bert_tiny())
    for tool in ("qwix", "maxtext", "ai-edge-quantizer"):
        with pytest.raises(NotExpressible, match=f"cannot express layer '{name}' at W4: "):
            tell(tool, own)


def test_every_tool_writes_json(tmp_path):
    own = coded({"head": "W8A8"}, HALF, InputSpec(grid="half"))
    for tool in sorted(set(TOOLS) - {"aimet", "hawq", "ai-edge-quantizer"}):
        told = tell(tool, own)
        assert json.loads(json.dumps(told.content)) == told.content
