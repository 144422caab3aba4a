"""Prepare Imagenette or ImageNetV2 from their archives for tensorflow-datasets.

Download and prepare:  python -m jmpq.data.imagenet_builder imagenette
From an archive:       python -m jmpq.data.imagenet_builder imagenette --archive imagenette2.tgz

The results are ``imagenette/full-size-v2:1.0.0`` and ``imagenet_v2/matched-frequency:3.0.0`` in
array_record, as ``tfds.data_source`` reads them; no TensorFlow is needed. The JPEG files are
stored as they are.
"""

import argparse
import io
import pathlib
import sys
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered

from jmpq.data.archives import download, prepare, report
from jmpq.data.imagenet import PREPARED

# Not registered: the names stay those of the builders of tensorflow-datasets itself.
with registered.skip_registration():

    class ImageTar(tfds.core.GeneratorBasedBuilder):
        """A tar archive of folders of images, one folder a class."""

        URL: ClassVar[str]
        LABELS: ClassVar[str]  # file of the package that names the classes
        PARTS: ClassVar[Mapping[str, str]]  # split: the folder of its classes in the archive
        archive: pathlib.Path | None = None

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"The images of {self.URL}.",
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(encoding_format="jpeg"),
                        "label": tfds.features.ClassLabel(
                            names_file=tfds.core.tfds_path(self.LABELS)
                        ),
                    }
                ),
                supervised_keys=("image", "label"),
            )

        def _split_generators(
            self, dl_manager: tfds.download.DownloadManager
        ) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
            archive = self.archive or download(dl_manager, self.URL)
            return {split: self._generate_examples(archive, split) for split in self.PARTS}

        def _generate_examples(
            self, archive: pathlib.Path, split: str
        ) -> Iterator[tuple[str, dict[str, Any]]]:
            for label, file, data in read_tar(archive, self.PARTS[split]):
                yield f"{label}/{file}", {"image": io.BytesIO(data), "label": self.label(label)}

        def label(self, folder: str) -> str | int:
            """The class of a folder."""
            return folder

    class Imagenette(ImageTar):
        """Ten easily told classes of ImageNet (fastai)."""

        name = "imagenette"
        VERSION = tfds.core.Version(PREPARED["imagenette"].version)
        BUILDER_CONFIGS: ClassVar = [
            tfds.core.BuilderConfig(name=PREPARED["imagenette"].config)
        ]
        URL = "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2.tgz"
        LABELS = "image_classification/imagenette_labels.txt"
        PARTS: ClassVar = {"train": "imagenette2/train", "validation": "imagenette2/val"}

    class ImagenetV2(ImageTar):
        """A test set collected again like ImageNet's (Recht et al. 2019)."""

        name = "imagenet_v2"
        VERSION = tfds.core.Version(PREPARED["imagenet_v2"].version)
        BUILDER_CONFIGS: ClassVar = [
            tfds.core.BuilderConfig(name=PREPARED["imagenet_v2"].config)
        ]
        URL = (
            "https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/"
            "imagenetv2-matched-frequency.tar.gz"
        )
        LABELS = "datasets/imagenet2012/labels.txt"
        PARTS: ClassVar = {"test": "imagenetv2-matched-frequency-format-val"}

        def label(self, folder: str) -> str | int:
            return int(folder)


BUILDERS = {"imagenette": Imagenette, "imagenet_v2": ImagenetV2}


def prepare_images(
    name: str,
    archive: pathlib.Path | str | None = None,
    data_dir: pathlib.Path | str | None = None,
) -> pathlib.Path:
    """Prepare ``"imagenette"`` or ``"imagenet_v2"``, as `archives.prepare` does."""
    return prepare(BUILDERS[name], archive, data_dir)


def read_tar(archive: pathlib.Path, folder: str) -> Iterator[tuple[str, str, bytes]]:
    """Class folder, file name and bytes of the images below a folder of an archive.

    Raises:
        ValueError: If it is not a tar archive, or has no such folder.
    """
    count = 0
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = pathlib.PurePosixPath(member.name)
                if str(path.parent.parent) != folder or not member.isfile():
                    continue
                if path.suffix.lower() not in (".jpg", ".jpeg"):
                    continue
                file = tar.extractfile(member)
                assert file is not None
                count += 1
                yield path.parent.name, path.name, file.read()
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{archive} is not a readable tar archive: {error}.") from error
    if not count:
        raise ValueError(
            f"{archive} has no images in {folder}/CLASS/: it is another one, or newer."
        )


def main() -> int:
    """Run the command line of this module; returns the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("name", choices=sorted(BUILDERS))
    parser.add_argument("--archive", help="the tar archive; default: download it")
    parser.add_argument("--data-dir", help="default: the folder of tensorflow-datasets")
    given = parser.parse_args()
    return report(given.name, lambda: prepare_images(given.name, given.archive, given.data_dir))


if __name__ == "__main__":
    sys.exit(main())
