"""ImageNet-1k and its small substitutes; images stay encoded until a batch asks for them.

``imagenet2012`` (train, validation), ``imagenet_v2`` (test) and ``imagenette`` (ten of the
classes, train and validation) as tensorflow-datasets prepared them in array_record, read
without TensorFlow; ``imagenet_sample`` is one image a class from an archive of JPEG files.
Labels are the indices of the 1,000 classes in all of them.
"""

import dataclasses
import pathlib
import threading
from typing import Any

import numpy as np

from jmpq.data.dataset import Dataset, Source, Split
from jmpq.data.image_folder import encoded_split, image_folder
from jmpq.data.images import EncodedImages, EncodedLabels
from jmpq.zoo.architectures import Preprocessing

SAMPLE_NOTE = (
    "one image a class from ImageNet's training set: accuracy is above validation accuracy, "
    "only the difference to the float network tells"
)
SAMPLE = "images224.zip"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedData:
    """A data set of tensorflow-datasets.

    Attributes:
        config: Variant, and folder below the name's; none where empty.
        version: The version read.
        splits: Name of our sources there.
        how: Preprocessing of the image.
    """

    config: str
    version: str
    splits: dict[Source, str]
    how: str


BUILDER = "python -m jmpq.data.imagenet_builder"
PREPARED = {
    "imagenet2012": PreparedData(
        config="",
        version="5.1.0",
        splits={"train": "train", "heldout": "validation"},
        how=(
            "Its archives need an account: get ILSVRC2012_img_train.tar and "
            "ILSVRC2012_img_val.tar from https://image-net.org/download-images (the second "
            "alone will do for held-out images), put them into MANUAL, install the extra "
            "'prep', and run: tfds build imagenet2012 --manual_dir MANUAL --data_dir DATA "
            "--file_format array_record. imagenette and imagenet_v2 need no account"
        ),
    ),
    "imagenet_v2": PreparedData(
        config="matched-frequency",
        version="3.0.0",
        splits={"heldout": "test"},
        how=f"Download and prepare it (1.2 GB) with: {BUILDER} imagenet_v2",
    ),
    "imagenette": PreparedData(
        config="full-size-v2",
        version="1.0.0",
        splits={"train": "train", "heldout": "validation"},
        how=f"Download and prepare it (1.5 GB) with: {BUILDER} imagenette",
    ),
}


def imagenet_sample(
    data_dir: pathlib.Path | str | None, preprocessing: Preprocessing
) -> Dataset:
    """1,000 images, already resized and cropped to 224 pixels, all of them held out.

    Args:
        data_dir: The folder (or the one that has it as ``imagenet/``) with ``images224.zip``,
            JPEG files ``NNNN_wnid.jpg`` by class index, and ``classes.txt``.
        preprocessing: Preprocessing of the network; only its crop and normalisation matter.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If the network wants images larger than 224 pixels.
    """
    folders = [pathlib.Path(data_dir), pathlib.Path(data_dir) / "imagenet"] if data_dir else []
    archives = [f / SAMPLE for f in folders if (f / SAMPLE).is_file()]
    if not archives:
        places = " or ".join(map(str, folders)) or "no folder"
        raise FileNotFoundError(
            f"No {SAMPLE} in {places}: give the folder of the images with --data-dir."
        )
    if preprocessing.crop > 224:
        raise ValueError(
            f"The sample has images of 224 pixels; the network wants {preprocessing.crop}."
        )
    cropped = dataclasses.replace(preprocessing, resize=preprocessing.crop)
    return image_folder(archives[0], cropped, name="imagenet_sample", note=SAMPLE_NOTE)


def prepared_imagenet(
    name: str, data_dir: pathlib.Path | str | None, preprocessing: Preprocessing
) -> Dataset:
    """A data set prepared as array_record by tensorflow-datasets, in its stored order.

    Args:
        name: One of `PREPARED`.
        data_dir: Data folder of tensorflow-datasets; None for the usual one.
        preprocessing: Size and normalisation that the network expects.

    Raises:
        FileNotFoundError: If it is not prepared (the message says how to), or has not the
            part that is asked for.
        ValueError: If it is prepared in another format (raised when a split is read).
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import constants

    known = PREPARED[name]
    place = pathlib.Path(data_dir or constants.DATA_DIR).expanduser()
    folder = place / name / known.config / known.version
    if not (folder / "dataset_info.json").is_file():
        raise FileNotFoundError(f"{name} is not prepared in {place}. {known.how}.")
    wnids = _words("datasets/imagenet2012/labels.txt")
    index = {wnid: i for i, wnid in enumerate(wnids)}

    def read(source: Source) -> Split:
        if source not in known.splits:
            has = ", ".join(known.splits)
            raise FileNotFoundError(f"{name} has no {source} images, only {has}.")
        try:
            records: Any = tfds.data_source(
                f"{name}/{known.config}:{known.version}".replace("/:", ":"),
                split=known.splits[source],
                data_dir=place,
                download=False,
                decoders={"image": tfds.decode.SkipDecoding()},
            )
        except (NotImplementedError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"{folder} cannot be read ({reason}). Prepare it as array_record. {known.how}."
            ) from error
        to_index = np.array([index[wnid] for wnid in wnids])
        if name == "imagenette":
            own = _words("image_classification/imagenette_labels.txt")
            to_index = np.array([index[wnid] for wnid in own])
        lock = threading.Lock()

        def record(i: int) -> dict[str, Any]:
            with lock:
                return records[i]

        images = EncodedImages(
            read=lambda i: bytes(record(i)["image"]),
            name=lambda i: f"{name} {known.splits[source]} record {i}",
            indices=np.arange(len(records)),
            preprocessing=preprocessing,
        )
        labels = EncodedLabels(
            read=lambda i: int(to_index[record(i)["label"]]), count=len(records)
        )
        whole = labels if source == "train" else labels[np.arange(len(records))]
        return encoded_split(name, source, images, whole)

    return Dataset(name=name, classes=tuple(wnids), read=read)


def _words(path: str) -> list[str]:
    """Lines of a file of the package tensorflow-datasets: names of classes."""
    import tensorflow_datasets as tfds

    return pathlib.Path(tfds.core.tfds_path(path)).read_text().split()
