"""The built-in networks have the published layers, parameters and operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.data.imagenet import imagenet_sample
from jmpq.network.network import Network
from jmpq.network.tap import Tap
from jmpq.training.evaluate import logits
from jmpq.zoo.architectures import ARCHITECTURES, PREPROCESSINGS, Preprocessing, build_module
from jmpq.zoo.bert import example_tokens
from jmpq.zoo.blocks import adaptive_mean, max_pool
from jmpq.zoo.weights_torchvision import load_published

# Parameters as torchvision lists them with its weights (num_params), multiply-accumulates in
# 10⁹ at 224x224 (GFLOPS there), layers with a kernel.
PUBLISHED = {
    "resnet18": (11_689_512, 1.81, 21),
    "resnet34": (21_797_672, 3.66, 37),
    "resnet50": (25_557_032, 4.09, 54),
    "resnet101": (44_549_160, 7.80, 105),
    "vgg11": (132_863_336, 7.61, 11),
    "vgg13": (133_047_848, 11.31, 13),
    "vgg16": (138_357_544, 15.47, 16),
    "vgg19": (143_667_240, 19.63, 19),
    "vgg11_bn": (132_868_840, 7.61, 11),
    "vgg13_bn": (133_053_736, 11.31, 13),
    "vgg16_bn": (138_365_992, 15.47, 16),
    "vgg19_bn": (143_678_248, 19.63, 19),
    "mobilenet_v2": (3_504_872, 0.30, 53),
    "squeezenet1_1": (1_235_496, 0.35, 26),
    # Howard et al. (2017), table 6: million parameters and multiply-adds, rounded
    "mobilenet_v1_1": (4.2e6, 0.569, 28),
    "mobilenet_v1_0.75": (2.6e6, 0.325, 28),
    "mobilenet_v1_0.5": (1.3e6, 0.149, 28),
    "mobilenet_v1_0.25": (0.5e6, 0.041, 28),
    # tensorflow/tpu, efficientnet/lite: 4.7 million parameters, statistics included; 407
    # million operations, normalisation and additions included: 5 % more than the kernels'
    "efficientnet_lite0": (4_652_008, 0.385, 50),
}


def shaped(name, classes=1000, size=224):
    """Parameters and statistics as shapes, the function of both, an example."""
    module = build_module(name, classes)
    example = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = jax.eval_shape(module.init, jax.random.key(0), example)
    return variables, module.apply, example


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_operations_are_the_published_ones(name):
    parameters, macs, layers = PUBLISHED[name]
    variables, apply, example = shaped(name)
    tap = Tap(lambda params, x: apply(params, x), variables, example)
    assert not tap.unseen
    assert len(tap.operations) == layers
    if isinstance(parameters, int):
        assert count(variables["params"]) == parameters
    else:
        assert count(variables["params"]) == pytest.approx(parameters, abs=0.05e6)
    rounding = 0.0005 if macs < 1 and name.startswith("mobilenet_v1") else 0.006
    assert sum(operation.macs for operation in tap.operations) / 1e9 == pytest.approx(
        macs, abs=rounding
    )


def zeros(struct):
    """As large as it should be, in four bytes."""
    return np.broadcast_to(np.zeros((), struct.dtype), struct.shape)


TABLES = ("resnet18", "resnet50", "mobilenet_v2", "squeezenet1_1")


@pytest.mark.parametrize("name", TABLES)
def test_layer_table_adds_up_to_the_published_numbers(name):
    variables, _, example = shaped(name)
    network = Network.from_linen(
        build_module(name, 1000),
        jax.tree.map(zeros, variables),
        jnp.zeros(example.shape, jnp.float32),
    )
    parameters, macs, layers = PUBLISHED[name]
    assert len(network.layers) == layers
    kernels = sum(layer.parameters for layer in network.layers)
    assert kernels + network.other_parameters == parameters
    assert sum(layer.macs for layer in network.layers) / 1e9 == pytest.approx(macs, abs=0.006)
    by_name = {layer.name: layer for layer in network.layers}
    match name:
        case "resnet50":
            assert by_name["layer2/0/conv2"].input_shape == (56, 56, 128)  # strided here
            assert by_name["layer2/0/downsample/0"].kernel_shape == (1, 1, 256, 512)
        case "mobilenet_v2":
            depthwise = by_name["features/2/conv/1/0"]
            assert depthwise.kernel_shape == (3, 3, 1, 96)
            assert depthwise.macs == 56 * 56 * 9 * 96
        case "squeezenet1_1":
            assert by_name["features/4/squeeze"].input_shape == (55, 55, 128)
            assert by_name["classifier/1"].kernel_shape == (1, 1, 512, 1000)


@pytest.mark.parametrize("name", ["resnet34", "vgg16_bn", "mobilenet_v2", "squeezenet1_1"])
def test_paths_follow_torchvision(name):
    names = {
        "resnet34": (
            "layer2/0/downsample/1/scale",
            "layer4/2/bn2/bias",
            "fc/bias",
            "bn1/scale",
        ),
        "vgg16_bn": ("features/41/scale", "features/40/kernel", "classifier/6/kernel"),
        "mobilenet_v2": (
            "features/0/0/kernel",
            "features/1/conv/0/0/kernel",
            "features/1/conv/2/bias",
            "features/17/conv/3/scale",
            "features/18/1/scale",
            "classifier/1/bias",
        ),
        "squeezenet1_1": ("features/0/bias", "features/12/expand3x3/kernel"),
    }
    params = shaped(name)[0]["params"]
    for path in names[name]:
        tree = params
        for key in path.split("/"):
            tree = tree[key]


@pytest.mark.parametrize("size", [7, 14, 1, 3, 10])
def test_adaptive_mean_is_the_mean_over_even_windows(size):
    x = np.arange(2.0 * size * size * 3).reshape(2, size, size, 3)
    got = adaptive_mean(jnp.asarray(x), 7)
    for i in range(7):
        for j in range(7):
            rows = slice(i * size // 7, -((-(i + 1) * size) // 7))
            columns = slice(j * size // 7, -((-(j + 1) * size) // 7))
            np.testing.assert_allclose(got[:, i, j], x[:, rows, columns].mean((1, 2)))


@pytest.mark.parametrize(("length", "windows"), [(6, 3), (7, 3), (8, 4)])
def test_pooling_rounded_up_reaches_beyond_the_image(length, windows):
    x = -np.arange(1.0, length + 1)[None, :, None, None] * np.ones((1, 1, length, 1))
    got = max_pool(jnp.asarray(x), 3, 2, ceil=True)
    assert got.shape == (1, windows, windows, 1)
    np.testing.assert_array_equal(got[0, :, 0, 0], -1.0 - 2 * np.arange(windows))


@pytest.mark.parametrize("name", ["mobilenet_v1_0.75", "squeezenet1_1", "efficientnet_lite0"])
def test_logits_equal_the_reference(shared_data, name):
    folder = shared_data / "imagenet"
    stem = {"mobilenet_v1_0.75": "mobilenet_v1_0.75_224"}.get(name, name)
    module = build_module(name, 1000)
    variables = load_published(folder / f"{stem}.safetensors", module)
    rule = PREPROCESSINGS[ARCHITECTURES[name].preprocessing]
    first = imagenet_sample(shared_data, rule).heldout.take(np.arange(8))
    got = logits(module.apply, variables, first, batch_size=8)
    want = np.load(folder / "reference_logits.npz")[stem][:8]
    assert np.linalg.norm(got - want) < 1e-2 * np.linalg.norm(want)
    assert (got.argmax(1) == want.argmax(1)).all()


def test_unknown_architecture_lists_the_names():
    with pytest.raises(ValueError, match=r"no architecture 'resnet19'. Did you mean 'resnet"):
        build_module("resnet19")


# Million parameters of the encoders and poolers as Turc et al. (2019) list them.
@pytest.mark.parametrize(("name", "millions"), [("bert_tiny", 4.4), ("bert_mini", 11.3)])
def test_small_berts_have_the_published_parameters(name, millions):
    module = build_module(name, 2, 30522)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = jax.eval_shape(module.init, jax.random.key(0), example_tokens(1, 4))
    head = variables["params"].pop("classifier")
    assert count(variables) == pytest.approx(1e6 * millions, rel=0.02)
    assert head["kernel"].shape[1] == 2


def test_sentences_and_images_are_not_taken_for_each_other():
    with pytest.raises(
        ValueError, match="'bert_tiny' takes sentences, but the data are images"
    ):
        build_module("bert_tiny", inputs="images")
    match = "takes images, but the data are sentences. Choose other data, or one of bert_base"
    with pytest.raises(ValueError, match=match):
        build_module("resnet20", 2, 100, "sentences")


def test_crop_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="1 <= crop <= resize"):
        Preprocessing(
            resize=200, crop=224, scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3, origin=""
        )
