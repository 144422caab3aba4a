"""Data sets by name, for the command line."""

import pathlib
from typing import Literal, get_args

from jmpq.data.cifar10 import cifar10
from jmpq.data.dataset import Dataset
from jmpq.data.digits import digits
from jmpq.data.image_folder import image_folder
from jmpq.data.imagenet import PREPARED, imagenet_sample, prepared_imagenet
from jmpq.data.text.glue import glue
from jmpq.data.text.tokens import Tokenizer
from jmpq.data.text.windows import documents, running_text
from jmpq.kinds import check_kinds
from jmpq.text import did_you_mean
from jmpq.zoo.architectures import Preprocessing

DatasetName = Literal[
    "digits",
    "cifar10",
    "imagenet2012",
    "imagenet_v2",
    "imagenette",
    "imagenet_sample",
    "image_folder",
    "sst2",
    "text",
    "documents",
]
ANY_SIZE = (*PREPARED, "imagenet_sample", "image_folder")  # images of any size
TEXTS = {"text": running_text, "documents": documents}
TEXT_LENGTH = 128  # tokens of a window


@check_kinds
def load_dataset(
    name: str,
    data_dir: pathlib.Path | str | None = None,
    preprocessing: Preprocessing | None = None,
    tokenizer: Tokenizer | None = None,
    *,
    text_length: int = TEXT_LENGTH,
) -> Dataset:
    """The data set of a name.

    Args:
        name: ``"digits"`` (embedded), ``"cifar10"``, one of `jmpq.data.imagenet`,
            ``"image_folder"``, ``"sst2"`` (sentences), ``"text"`` (windows of running text) or
            ``"documents"`` (documents one by one).
        data_dir: Local data folder, see `cifar10`, `imagenet_sample`, `prepared_imagenet`,
            `image_folder`, `glue` and `running_text`; digits need none and ignore it.
        preprocessing: Size and normalisation of the network's images; digits and CIFAR-10
            have their own.
        tokenizer: Tokenizer of the network.
        text_length: Tokens of a window of text, or most of a document.

    Raises:
        ValueError: If there is no data set of that name, or preprocessing or tokenizer are
            missing, or given for one that has no use for them.
        FileNotFoundError: If its data are not there.
    """
    if name not in get_args(DatasetName):
        known = get_args(DatasetName)
        raise ValueError(
            f"There is no data set {name!r}.{did_you_mean(name, known)} Choose one of "
            f"{', '.join(known)}, or bring your own: package.module:function."
        )
    if name in TEXTS:
        return TEXTS[name](data_dir, tokenizer, length=text_length)
    if name == "sst2":
        if tokenizer is None:
            raise ValueError(
                f"Data set {name!r} has sentences: say which tokenizer the network expects, "
                "with --tokenizer (`jmpq train` makes one, RUN/tokenizer.json)."
            )
        return glue(name, tokenizer, data_dir)
    if tokenizer is not None:
        raise ValueError(
            f"Data set {name!r} has images, of which no tokenizer makes tokens. Choose sst2, "
            "or a network that takes images."
        )
    if name in ("digits", "cifar10"):
        if preprocessing is not None:
            raise ValueError(
                f"Data set {name!r} has small images with their own preprocessing; the network "
                f"expects {preprocessing.crop} by {preprocessing.crop} pixels ("
                f"{preprocessing.origin}). Leave --preprocessing out, or choose another data "
                "set or network."
            )
        return digits() if name == "digits" else cifar10(data_dir)
    if preprocessing is None:
        raise ValueError(
            f"Data set {name!r} has images of any size: say what the network expects, with "
            "--preprocessing unit (x/255, from 0 to 1), tensorflow (x/127.5 - 1), torchvision "
            "(mean and deviation of ImageNet) or efficientnet_lite ((x - 127)/128); or bring "
            "arrays of your own, with --data package.module:function."
        )
    if name in PREPARED:
        return prepared_imagenet(name, data_dir, preprocessing)
    if name == "imagenet_sample":
        return imagenet_sample(data_dir, preprocessing)
    if data_dir is None:
        raise ValueError("image_folder needs the folder or zip archive: give --data-dir.")
    return image_folder(data_dir, preprocessing)
