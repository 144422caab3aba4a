"""The built-in networks by name: module and preprocessing of its inputs."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn

from jmpq.text import did_you_mean
from jmpq.zoo.bert import BERTS, Bert, BertConfig
from jmpq.zoo.mobilenet import MobileNetV1, MobileNetV2
from jmpq.zoo.resnet import ResNet, ResNetCIFAR
from jmpq.zoo.squeezenet import SqueezeNet
from jmpq.zoo.vgg import STAGES, VGG


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From an RGB image of any size to the input of a network.

    The shorter side becomes `resize` pixels (bilinear, antialiased), the middle `crop` by
    `crop` pixels are taken, and x becomes (x / scale − mean) / std.

    Attributes:
        resize: Shorter side before the crop, pixels; equal to `crop` for images whose shorter
            side already has that many.
        crop: Height and width of the input, pixels.
        scale: Divisor of the 8-bit values.
        mean: Mean of every channel, subtracted.
        std: Standard deviation of every channel, divided by.
        origin: Place where the published weights say so.
    """

    resize: int
    crop: int
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    origin: str

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise ValueError(
                f"resize={self.resize}, crop={self.crop}: expected 1 <= crop <= resize pixels."
            )


PREPROCESSINGS: Mapping[str, Preprocessing] = MappingProxyType(
    {
        "torchvision": Preprocessing(
            resize=256,
            crop=224,
            scale=255.0,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            origin="torchvision, presets.ImageClassification of the weights IMAGENET1K_V1",
        ),
        # x / 127.5 - 1; seven eighths of the image, which is 224 of 256 pixels.
        "tensorflow": Preprocessing(
            resize=256,
            crop=224,
            scale=255.0,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            origin="TensorFlow-Slim, inception_preprocessing.preprocess_for_eval",
        ),
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """A built-in network.

    Attributes:
        make: The module, from ``num_classes=``, and ``vocab_size=`` where it takes tokens.
        preprocessing: Name in `PREPROCESSINGS`; None where the data set has its own.
        tokens: Whether it takes tokens of sentences instead of images.
    """

    make: Callable[..., nn.Module]
    preprocessing: str | None = None
    tokens: bool = False


def _table() -> dict[str, Architecture]:
    def made(module: Any, preprocessing: str | None = None, **fields: Any) -> Architecture:
        return Architecture(
            make=lambda num_classes: module(num_classes=num_classes, **fields),
            preprocessing=preprocessing,
        )

    def classifier(config: BertConfig) -> Architecture:
        def make(num_classes: int, vocab_size: int) -> Bert:
            sizes = dataclasses.replace(config, vocab_size=vocab_size)
            return Bert(sizes, "classification", num_classes)

        return Architecture(make=make, tokens=True)

    table = {"digits_resnet": made(ResNetCIFAR, depth=8)}  # 75k parameters
    for depth in (20, 32, 44, 56, 110):
        table[f"resnet{depth}"] = made(ResNetCIFAR, depth=depth)
    published = "torchvision"
    for depth, blocks in ((18, (2, 2, 2, 2)), (34, (3, 4, 6, 3))):
        table[f"resnet{depth}"] = made(ResNet, published, blocks=blocks)
    for depth, blocks in ((50, (3, 4, 6, 3)), (101, (3, 4, 23, 3))):
        table[f"resnet{depth}"] = made(ResNet, published, blocks=blocks, bottleneck=True)
    for depth, stages in STAGES.items():
        table[f"vgg{depth}"] = made(VGG, published, stages=stages)
        table[f"vgg{depth}_bn"] = made(VGG, published, stages=stages, norm=True)
    for width in (0.25, 0.5, 0.75, 1.0):
        table[f"mobilenet_v1_{width:g}"] = made(MobileNetV1, "tensorflow", width=width)
    table["mobilenet_v2"] = made(MobileNetV2, published)
    table["squeezenet1_1"] = made(SqueezeNet, published)
    for name, config in BERTS.items():
        table[name] = classifier(config)
    return table


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(_table())


def architecture(name: str) -> Architecture:
    """The architecture of a name in `ARCHITECTURES`.

    Raises:
        ValueError: If there is no such name.
    """
    if name not in ARCHITECTURES:
        hint = did_you_mean(name, ARCHITECTURES)
        raise ValueError(
            f"There is no architecture {name!r}.{hint} Choose one of "
            f"{', '.join(ARCHITECTURES)}."
        )
    return ARCHITECTURES[name]


def build_module(name: str, num_classes: int = 10, vocab_size: int | None = None) -> nn.Module:
    """The network of a name, its variables still to be made or loaded.

    Args:
        name: Name in `ARCHITECTURES`.
        num_classes: Logits.
        vocab_size: Tokens that the tokenizer knows; None of a network that takes images.

    Raises:
        ValueError: If there is no such name, or it takes images where there are tokens, or
            tokens where there are none.
    """
    chosen = architecture(name)
    if chosen.tokens and vocab_size is None:
        raise ValueError(
            f"Network {name!r} takes sentences, but the data are images. Choose "
            "data of sentences, as sst2, or a network that takes images."
        )
    if vocab_size is None:
        return chosen.make(num_classes=num_classes)
    if not chosen.tokens:
        known = ", ".join(name for name, x in ARCHITECTURES.items() if x.tokens)
        raise ValueError(
            f"Network {name!r} takes images, but the data are sentences. Choose one of {known}."
        )
    return chosen.make(num_classes=num_classes, vocab_size=vocab_size)
