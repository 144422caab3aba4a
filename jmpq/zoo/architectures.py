"""The built-in networks by name: module and preprocessing of its inputs."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import flax.linen as nn

from jmpq.kinds import check_kinds
from jmpq.text import did_you_mean
from jmpq.zoo.bert import BERTS, Bert, BertConfig
from jmpq.zoo.decoder import DECODERS, TIED, Decoder, DecoderConfig
from jmpq.zoo.efficientnet import EfficientNetLite
from jmpq.zoo.mobilenet import MobileNetV1, MobileNetV2
from jmpq.zoo.resnet import ResNet, ResNetCIFAR
from jmpq.zoo.squeezenet import SqueezeNet
from jmpq.zoo.vgg import STAGES, VGG
from jmpq.zoo.vit import VITS, ViT

InputKind = Literal["images", "sentences", "text"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From an image of any size, in colour or grey, to the input of a network.

    The shorter side becomes `resize` pixels (bilinear, antialiased), the middle `crop` by
    `crop` pixels are taken, and x becomes (x / scale − mean) / std.

    Attributes:
        resize: Shorter side before the crop, pixels; equal to `crop` for images whose shorter
            side already has that many.
        crop: Height and width of the input, pixels.
        scale: Divisor of the 8-bit values.
        mean: Mean of every channel, subtracted; one channel is grey, three are RGB.
        std: Standard deviation of every channel, divided by.
        origin: Place where the published weights say so.
    """

    resize: int
    crop: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise ValueError(
                f"resize={self.resize}, crop={self.crop}: expected 1 <= crop <= resize pixels."
            )

    def fitted(self, size: int, channels: int) -> "Preprocessing":
        """The same rule for another size, in the same ratio of resize to crop, or for grey.

        Args:
            size: Height and width of the input, pixels.
            channels: 1 or 3.

        Raises:
            ValueError: If there is one channel, and the rule treats three colours differently.
        """
        mean, std = self.mean, self.std
        if channels < len(mean):
            if len(set(mean)) > 1 or len(set(std)) > 1:
                alike = [n for n, rule in PREPROCESSINGS.items() if len(set(rule.mean)) == 1]
                raise ValueError(
                    f"The network takes {channels} channel, and the preprocessing has a mean "
                    f"for each of {len(mean)} colours ({self.origin}). Choose one of "
                    f"{', '.join(alike)}."
                )
            mean, std = mean[:channels], std[:channels]
        resize = max(size, round(size * self.resize / self.crop))
        return dataclasses.replace(self, resize=resize, crop=size, mean=mean, std=std)


PREPROCESSINGS: Mapping[str, Preprocessing] = MappingProxyType(
    {
        # x / 255; nothing is cut off but what makes the image square.
        "unit": Preprocessing(
            resize=224,
            crop=224,
            scale=255.0,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            origin="pixels from 0 to 1",
        ),
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
        # (x - 127) / 128; the original resizes bicubically.
        "efficientnet_lite": Preprocessing(
            resize=256,
            crop=224,
            scale=1.0,
            mean=(127.0, 127.0, 127.0),
            std=(128.0, 128.0, 128.0),
            origin="tensorflow/tpu, efficientnet/lite/efficientnet_lite_builder",
        ),
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """A built-in network.

    Attributes:
        make: The module, from ``num_classes=`` and ``vocab_size=``, of which it uses what it
            has; a ``vocab_size`` of None is that of the published network.
        preprocessing: Name in `PREPROCESSINGS`; None where the data set has its own.
        inputs: Kind of its inputs.
        tied: Kernels that several layers share, as `Network.from_linen` takes them.
    """

    make: Callable[..., nn.Module]
    preprocessing: str | None = None
    inputs: InputKind = "images"
    tied: tuple[str, ...] = ()


def _table() -> dict[str, Architecture]:
    def made(module: Any, preprocessing: str | None = None, **fields: Any) -> Architecture:
        return Architecture(
            make=lambda num_classes, vocab_size: module(num_classes=num_classes, **fields),
            preprocessing=preprocessing,
        )

    def classifier(config: BertConfig) -> Architecture:
        def make(num_classes: int, vocab_size: int | None) -> Bert:
            sizes = dataclasses.replace(config, vocab_size=vocab_size or config.vocab_size)
            return Bert(sizes, "classification", num_classes)

        return Architecture(make=make, inputs="sentences")

    def decoder(config: DecoderConfig) -> Architecture:
        def make(num_classes: int, vocab_size: int | None) -> Decoder:
            sizes = dataclasses.replace(config, vocab_size=vocab_size or config.vocab_size)
            return Decoder(sizes)

        return Architecture(make=make, inputs="text", tied=TIED if config.tied else ())

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
    table["efficientnet_lite0"] = made(EfficientNetLite, "efficientnet_lite")
    table["squeezenet1_1"] = made(SqueezeNet, published)
    for name, config in VITS.items():
        own = None if config.image_size < 224 else published
        table[name] = made(ViT, own, config=config)
    for name, config in BERTS.items():
        table[name] = classifier(config)
    for name, sizes in DECODERS.items():
        table[name] = decoder(sizes)
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


@check_kinds
def build_module(
    name: str,
    num_classes: int = 10,
    vocab_size: int | None = None,
    inputs: InputKind | None = None,
) -> nn.Module:
    """The network of a name, its variables still to be made or loaded.

    Args:
        name: Name in `ARCHITECTURES`.
        num_classes: Logits; a decoder has one for every token.
        vocab_size: Tokens that the tokenizer knows, for networks that take some; None for the
            number of the published network.
        inputs: Kind of the data; None for whatever the network takes.

    Raises:
        ValueError: If there is no such name, or it takes other inputs.
    """
    chosen = architecture(name)
    if inputs not in (None, chosen.inputs):
        known = ", ".join(name for name, x in ARCHITECTURES.items() if x.inputs == inputs)
        raise ValueError(
            f"Network {name!r} takes {chosen.inputs}, but the data are {inputs}. Choose other "
            f"data, or one of {known}."
        )
    return chosen.make(num_classes=num_classes, vocab_size=vocab_size)
