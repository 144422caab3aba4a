"""The built-in networks compute what independent PyTorch networks of random weights do.

Run in the environment of `make bench-env`; elsewhere they are skipped.
"""

import importlib.util
import re
import sys
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jmpq.zoo.architectures import build_module
from jmpq.zoo.vit import ViT, ViTConfig
from jmpq.zoo.weights_torchvision import load_published

ABSENT = [n for n in ("torch", "torchvision") if not importlib.util.find_spec(n)]
pytestmark = [
    pytest.mark.skipif(bool(ABSENT), reason=f"{', '.join(ABSENT)} not installed"),
    pytest.mark.filterwarnings("ignore"),  # of the rivals
]
SIZE, CLASSES = 64, 7


@pytest.fixture(scope="module")
def torchvision():
    """The package; where its compiled operators do not fit PyTorch's build, without them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module("torchvision")
        except RuntimeError:  # they are of detection, and not used here
            for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
                del sys.modules[name]
            registrations = "torchvision._meta_registrations"
            sys.modules[registrations] = types.ModuleType(registrations)
            return importlib.import_module("torchvision")


def randomized(network, seed=0):
    """Random weights, and statistics that are not those of a fresh network."""
    import torch

    torch.manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.2)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5)
    return network.eval()


def torch_logits(network, images):
    import torch

    with torch.no_grad():
        out = network(torch.tensor(images.transpose(0, 3, 1, 2)).contiguous())
    return getattr(out, "logits", out).numpy()


def images(seed=1, size=SIZE):
    return np.random.default_rng(seed).normal(size=(2, size, size, 3)).astype(np.float32)


def our_logits(name, path, x, classes=CLASSES):
    module = build_module(name, classes)
    variables = load_published(path, module)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return jax.jit(module.apply)(variables, jnp.asarray(x))


def assert_close(got, want):
    assert np.abs(want).max() > 1e-3
    assert np.linalg.norm(got - want) < 1e-4 * np.linalg.norm(want)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet50", "vgg11", "vgg13_bn", "mobilenet_v2", "squeezenet1_1"],
)
def test_logits_equal_torchvision(name, tmp_path, torchvision):
    import torch

    network = randomized(getattr(torchvision.models, name)(num_classes=CLASSES))
    torch.save({"state_dict": network.state_dict()}, tmp_path / "weights.pth")
    x = images()
    assert_close(our_logits(name, tmp_path / "weights.pth", x), torch_logits(network, x))


@pytest.mark.parametrize("size", [224, 63])
def test_poolings_and_paddings_are_torchvisions_at_other_sizes(size, tmp_path, torchvision):
    import torch

    for name in ("squeezenet1_1", "resnet18"):
        network = randomized(getattr(torchvision.models, name)(num_classes=CLASSES))
        torch.save(network.state_dict(), tmp_path / "weights.pt")
        x = images(size=size)
        assert_close(our_logits(name, tmp_path / "weights.pt", x), torch_logits(network, x))


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("resnet34", "resnet34"),
        ("mobilenet_v2", "mobilenetv2_100"),
        ("efficientnet_lite0", "tf_efficientnet_lite0"),
        ("vgg11_bn", "vgg11_bn"),
    ],
)
def test_weights_of_timm_are_read(name, theirs, tmp_path, torchvision):
    timm = pytest.importorskip("timm")
    network = randomized(timm.create_model(theirs, num_classes=CLASSES))
    tensors = {f"module.{k}": v.numpy() for k, v in network.state_dict().items()}
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors.numpy.save(tensors))
    x = images(size=224 if name == "vgg11_bn" else SIZE)
    assert_close(our_logits(name, path, x), torch_logits(network, x))


def test_tensorflow_padding_of_mobilenet_v1_equals_transformers(tmp_path, torchvision):
    transformers = pytest.importorskip("transformers")
    config = transformers.MobileNetV1Config(depth_multiplier=0.25, num_labels=CLASSES)
    network = randomized(transformers.MobileNetV1ForImageClassification(config))
    tensors = {}
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        name = re.sub(r"^mobilenet_v1\.conv_stem\.", "features.0.", name)
        if found := re.match(r"mobilenet_v1\.layer\.(\d+)\.", name):
            number = int(found[1])
            kind = ("dw_", "pw_")[number % 2]
            name = f"features.{number // 2 + 1}.{kind}{name[found.end() :]}"
        name = name.replace("convolution", "conv").replace("normalization", "bn")
        tensors[name] = tensor.numpy()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors.numpy.save(tensors))
    for size in (64, 224):
        x = images(size=size)
        assert_close(our_logits("mobilenet_v1_0.25", path, x), torch_logits(network, x))


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_vision_transformers_equal_both_packages(package, tmp_path, torchvision):
    timm = pytest.importorskip("timm")
    import torch

    config = ViTConfig(
        image_size=32, patch=8, hidden_size=48, num_layers=2, num_heads=4, intermediate_size=96
    )
    if package == "timm":
        network = timm.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=4, mlp_ratio=2.0,
            num_classes=CLASSES,
        )  # fmt: skip
    else:
        network = torchvision.models.VisionTransformer(
            image_size=32, patch_size=8, hidden_dim=48, num_layers=2, num_heads=4, mlp_dim=96,
            num_classes=CLASSES,
        )  # fmt: skip
    network = randomized(network)
    torch.nn.init.normal_(next(p for n, p in network.named_parameters() if "head" in n))
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    module, x = ViT(config, CLASSES), images(size=32)
    variables = load_published(tmp_path / "weights.pth", module, input_shape=(32, 32, 3))
    assert_close(jax.jit(module.apply)(variables, jnp.asarray(x)), torch_logits(network, x))


def test_preprocessing_equals_torchvision(torchvision):
    from PIL import Image
    from torchvision.transforms._presets import ImageClassification

    from jmpq.data.dataset import Normalization
    from jmpq.data.images import resized_crop
    from jmpq.zoo.architectures import PREPROCESSINGS

    rule = PREPROCESSINGS["torchvision"]
    for width, height in ((300, 411), (500, 333), (256, 256), (100, 57)):
        rng = np.random.default_rng(width)
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        want = ImageClassification(crop_size=224, resize_size=256)(image).numpy()
        normalize = Normalization(scale=rule.scale, mean=rule.mean, std=rule.std)
        got = normalize(resized_crop(image, rule)[None])[0]
        np.testing.assert_allclose(got, want.transpose(1, 2, 0), atol=1e-5)


def test_pickles_that_are_no_state_dict_are_refused(tmp_path):
    import torch

    module = build_module("squeezenet1_1", CLASSES)
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="expected names to tensors"):
        load_published(tmp_path / "a.pth", module)
    (tmp_path / "b.pth").write_bytes(b"weights")
    with pytest.raises(ValueError, match="not a readable PyTorch state dict"):
        load_published(tmp_path / "b.pth", module)
