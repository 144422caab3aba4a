"""ONNX files in onnxruntime: logits of the float network, codes and classes of allocations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmpq
from jmpq.allocation import Allocation, bit_arrays
from jmpq.deploy.correction import Correction
from jmpq.deploy.measure import corrected_logits
from jmpq.export.codes import take_codes, unquantized
from jmpq.formats import Choice
from jmpq.network.network import Network
from jmpq.quantizers.spec import InputSpec, KernelSpec
from tests import helpers
from tests.export import cases

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra onnx)")

from jmpq.export import check  # noqa: E402
from jmpq.export.check import ONNX_RUNNERS, onnx_runner  # noqa: E402
from jmpq.export.onnx_graph import OnnxOptions, onnx_model, save_onnx  # noqa: E402
from jmpq.export.onnx_values import NotExportable  # noqa: E402


def digits(count=20):
    return jax.random.normal(jax.random.key(0), (count, 8, 8, 1), jnp.float32)


NETWORKS = {
    "cnn": lambda: (cases.network(), cases.images()),
    "digits_resnet": lambda: (cases.digits_resnet(), digits()),
    "bert_tiny": lambda: (cases.bert_tiny(), cases.sentences()),
}


def run(model, inputs):
    return onnx_runner(model.SerializeToString())(inputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_float_logits_are_those_of_jax_at_any_batch(name):
    network, inputs = NETWORKS[name]()
    model = onnx_model(unquantized(network))
    for count in (1, 3):
        some = jax.tree.map(lambda x, n=count: jnp.asarray(x[:n]), inputs)
        want = np.asarray(jax.jit(network.logits)(some))
        np.testing.assert_allclose(run(model, some), want, atol=1e-4 * np.abs(want).max())
    assert model.opset_import[0].version == 21
    assert sum(node.op_type == "Transpose" for node in model.graph.node) == 1 or name[0] == "b"


def codes_of(model):
    """Integer initializers by their elements, as onnx unpacks them."""
    return [
        onnx.numpy_helper.to_array(x).astype(np.int64)
        for x in model.graph.initializer
        if x.name.startswith("kernel/codes")
    ]


MIXED = {
    "w8a8": (KernelSpec(), InputSpec(), (8,), (8,)),
    "mixed": (KernelSpec(), InputSpec(grid="symmetric"), (2, 4, 8), (8, 5)),
    "affine": (
        KernelSpec(grid="affine", granularity="tensor"),
        InputSpec(granularity="channel"),
        (3, 9),
        (8, 10),
    ),
    "stream": (KernelSpec(), InputSpec(placement="stream"), (4, 8), (8,)),
    "few_bits": (KernelSpec(), InputSpec(placement="stream"), (8,), (4, 8)),
    "columns": (
        KernelSpec(grid="half", granularity="group", group_size=1, along="columns"),
        InputSpec(),
        (4, 6),
        (32,),
    ),
}


@pytest.mark.parametrize(
    ("name", "case", "overflows"),
    [
        *(("cnn", case, False) for case in MIXED),
        ("bert_tiny", "mixed", False),
        ("cnn", "mixed", True),
        ("cnn", "affine", True),
        pytest.param("bert_tiny", "mixed", True, marks=pytest.mark.slow),
    ],
)
def test_codes_are_bit_exact_and_classes_agree(name, case, overflows, monkeypatch):
    # On such processors onnxruntime is told to replace signed kernels by unsigned ones.
    monkeypatch.setattr(check, "overflows", lambda cpuinfo, machine: overflows)
    network, inputs = NETWORKS[name]()
    spec, activations, w_bits, a_bits = MIXED[case]
    arrays = jax.tree.map(jnp.asarray, inputs)
    found = jmpq.calibrate_quantizers(
        network, w_bits, a_bits, [arrays], weights=spec, activations=activations
    )
    names = [layer.name for layer in network.layers]
    allocation = Allocation(
        {
            layer: Choice(w_bits[i % len(w_bits)], a_bits[i % len(a_bits)])
            for i, layer in enumerate(names)
        }
    )
    coded = take_codes(network, found, allocation)
    model = onnx_model(coded)
    stored = sorted(np.sort(x.reshape(-1)).tolist() for x in codes_of(model))
    own = sorted(np.sort(k.codes.reshape(-1)).tolist() for k in coded.kernels if k is not None)
    assert stored == own
    bits = map(jnp.asarray, bit_arrays(names, [allocation])[0])
    want = np.asarray(jax.jit(corrected_logits)(network, found, *bits, arrays, {}))
    got = run(model, arrays)
    assert (got.argmax(1) == want.argmax(1)).all()
    assert np.abs(got - want).mean() < 5e-3 * np.abs(want).max()
    assert model.opset_import[0].version == (25 if 2 in w_bits else 21)


def test_integer_kernels_stand_between_integers_on_the_stream():
    network = cases.network()
    names = [layer.name for layer in network.layers]
    made = {}
    for placement in ("inputs", "stream"):
        activations = InputSpec(placement=placement)
        found = cases.quantizers(KernelSpec(), (8,), (8,), activations)
        coded = take_codes(network, found, Allocation.uniform(names, Choice(8, 8)))
        made[placement] = onnx_model(coded).graph.node
    assert outputs_in_integers(made["stream"]) == {"Conv": [True] * 3, "Add": [True]}
    # the first convolution is read by the addition too, which takes floats
    assert outputs_in_integers(made["inputs"]) == {"Conv": [False, True, False], "Add": [False]}


def outputs_in_integers(nodes):
    """Of convolutions and sums: whether all data comes from integers and all goes to them."""
    made = {name: node for node in nodes for name in node.output}
    readers = {name: [n for n in nodes if name in n.input] for name in made}

    def goes(node):
        following = readers[node.output[0]]
        if [n.op_type for n in following] == ["Relu"]:
            return goes(following[0])
        return {n.op_type for n in following} == {"QuantizeLinear"}

    def comes(node):
        count = 1 if node.op_type == "Conv" else 2
        return all(made[name].op_type == "DequantizeLinear" for name in node.input[:count])

    kinds = {kind: [n for n in nodes if n.op_type == kind] for kind in ("Conv", "Add")}
    return {k: [goes(n) and comes(n) for n in some] for k, some in kinds.items()}


def stored(model):
    return sum(len(x.raw_data) for x in model.graph.initializer if "codes" in x.name)


def test_native_codes_and_wider_ones_give_the_same(tmp_path):
    network, inputs = NETWORKS["cnn"]()
    found = cases.quantizers(KernelSpec(), (2, 4), (32,))
    names = [layer.name for layer in network.layers]
    allocation = Allocation({n: Choice((2, 4)[i % 2]) for i, n in enumerate(names)})
    coded = take_codes(network, found, allocation)
    cast = save_onnx(tmp_path / "net.onnx", coded)
    want, sizes = run(cast, inputs), []
    for options in (OnnxOptions(smallest=4), OnnxOptions(smallest=8)):
        model = onnx_model(coded, options)
        np.testing.assert_allclose(run(model, inputs), want, rtol=1e-5, atol=1e-5)
        sizes.append(stored(model))
    assert stored(onnx.load(tmp_path / "net.onnx")) < sizes[0] < sizes[1]
    native = onnx_model(coded, OnnxOptions(native=True))
    assert not [node for node in native.graph.node if node.op_type == "Cast"]


def test_corrections_are_part_of_the_graph():
    network, inputs = NETWORKS["cnn"]()
    found = cases.quantizers(KernelSpec(), (4,), (8,))
    names = [layer.name for layer in network.layers]
    allocation = Allocation.uniform(names, Choice(4, 8))
    gain = jnp.full((1, 1, 1, 3), 1.3, jnp.float32)
    corrections = {1: Correction(gain, 0.2 * gain)}
    bits = map(jnp.asarray, bit_arrays(names, [allocation])[0])
    want = np.asarray(jax.jit(corrected_logits)(network, found, *bits, inputs, corrections))
    got = run(onnx_model(take_codes(network, found, allocation, corrections)), inputs)
    assert np.abs(got - want).mean() < 5e-3 * np.abs(want).max()


class Sorted(nn.Module):
    """A network with a primitive that has no rule."""

    @nn.compact
    def __call__(self, x):
        return jnp.sort(nn.Dense(3, name="head")(x), axis=-1)


def test_a_primitive_without_a_rule_is_refused_by_its_module():
    module, example = Sorted(), jnp.zeros((1, 4), jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        variables = module.init(jax.random.key(0), example)
    network = Network.from_linen(module, variables, example)
    with pytest.raises(
        NotExportable, match=r"`sort` in .*Sorted.*, after layer 'head' as ONNX: there"
    ):
        onnx_model(unquantized(network))


def test_pooling_and_joined_channels_are_written():
    class Pools(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(4, (3, 3), padding="VALID", name="stem")(x)
            y = nn.max_pool(x, (2, 2), (1, 1), "SAME")
            x = jnp.concatenate([y, nn.avg_pool(x, (2, 2), (1, 1), "SAME"), nn.gelu(x)], -1)
            x = nn.Conv(12, (3, 3), (2, 2), feature_group_count=12, name="depthwise")(x)
            return nn.Dense(3, name="head")(nn.sigmoid(x).reshape(x.shape[0], -1))

    module, example = Pools(), jnp.zeros((1, 7, 7, 2), jnp.float32)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = module.init(jax.random.key(0), example)
    network = Network.from_linen(module, variables, example)
    x = jax.random.normal(jax.random.key(1), (5, 7, 7, 2), jnp.float32)
    want = np.asarray(jax.jit(network.logits)(x))
    np.testing.assert_allclose(run(onnx_model(unquantized(network)), x), want, atol=1e-4)


class Shortcut(nn.Module):
    """A convolution and a shortcut without parameters: every other position, more channels."""

    sides: tuple[int, int]

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="stem")(x))
        skipped = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), self.sides))
        x = nn.relu(nn.Conv(8, (3, 3), (2, 2), name="conv")(x) + skipped)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


@pytest.mark.parametrize(("bits", "sides"), [(8, (2, 2)), (5, (1, 3))])
def test_shortcuts_and_means_stay_integers_on_the_stream(bits, sides):
    module, example = Shortcut(sides), jnp.zeros((1, 7, 7, 2), jnp.float32)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = module.init(jax.random.key(0), example)
    network = Network.from_linen(module, variables, example)
    x = jax.random.normal(jax.random.key(1), (5, 7, 7, 2), jnp.float32)
    want = np.asarray(jax.jit(network.logits)(x))
    floats = onnx_model(unquantized(network))
    np.testing.assert_allclose(run(floats, x), want, atol=1e-4)
    kinds = [node.op_type for node in floats.graph.node]
    assert {"Pad", "Slice", "GlobalAveragePool"} < {*kinds}
    assert not {"Div", "Mul"} & {*kinds}

    activations = InputSpec(placement="stream")
    found = jmpq.calibrate_quantizers(
        network, (8,), (bits,), [x], weights=KernelSpec(), activations=activations
    )
    names = [layer.name for layer in network.layers]
    allocation = Allocation.uniform(names, Choice(8, bits))
    model = onnx_model(take_codes(network, found, allocation))
    arrays = map(jnp.asarray, bit_arrays(names, [allocation])[0])
    want = np.asarray(jax.jit(corrected_logits)(network, found, *arrays, x, {}))
    assert np.abs(run(model, x) - want).mean() < 5e-3 * np.abs(want).max()
    kinds = [node.op_type for node in model.graph.node]
    assert not {"Pad", "Slice"} & {*kinds}
    assert kinds.count("Conv") == 3


class ClassToken(nn.Module):
    """A learned token in front of the positions of every example."""

    @nn.compact
    def __call__(self, x):
        token = self.param("token", nn.initializers.normal(1.0), (1, 1, x.shape[-1]))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, x.shape[-1])), x], axis=1)
        return nn.Dense(3, name="head")(x.reshape(len(x), -1))


def test_a_token_is_repeated_for_every_example():
    module, example = ClassToken(), jnp.zeros((1, 3, 4), jnp.float32)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = module.init(jax.random.key(0), example)
    variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), variables)
    network = Network.from_linen(module, variables, example)
    model = onnx_model(unquantized(network))
    for count in (1, 5):
        x = jax.random.normal(jax.random.key(1), (count, 3, 4), jnp.float32)
        want = np.asarray(jax.jit(network.logits)(x))
        np.testing.assert_allclose(run(model, x), want, atol=1e-5)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_what_a_runtime_cannot_open_is_said_in_one_line(runtime):
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    with pytest.raises(ValueError, match=rf"^{runtime} \S+ cannot run the file: .+$"):
        ONNX_RUNNERS[runtime](b"no model")(np.zeros((1, 2), np.float32))


class AlongTime(nn.Module):
    """Convolution along one dimension, batch normalisation after it."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3,), name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True, name="norm")(x))
        return nn.Dense(3, name="head")(x.mean(axis=1))


def test_a_kernel_of_one_dimension_is_scaled_along_its_channels():
    module, example = AlongTime(), jnp.zeros((1, 6, 2), jnp.float32)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = module.init(jax.random.key(0), example)
    variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), variables)
    stats = helpers.shake(variables["batch_stats"], 1)
    network = Network.from_linen(module, {**variables, "batch_stats": stats}, example)
    x = jax.random.normal(jax.random.key(1), (5, 6, 2), jnp.float32)
    want = np.asarray(jax.jit(network.logits)(x))
    np.testing.assert_allclose(run(onnx_model(unquantized(network)), x), want, atol=1e-5)
