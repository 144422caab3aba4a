"""Prepare CIFAR-10 for tensorflow-datasets from its original archive, without TensorFlow.

Download and prepare:  python -m jmpq.data.cifar10_builder
From an archive:       python -m jmpq.data.cifar10_builder --archive cifar-10-python.tar.gz

The result is the data set ``cifar10:3.0.2`` in array_record, as ``tfds.data_source`` reads it.
"""

import argparse
import hashlib
import io
import pathlib
import pickle
import sys
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image
from tensorflow_datasets.core import registered

from jmpq.data.archives import download, prepare, report
from jmpq.data.cifar10 import CLASSES, TFDS_VERSION

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
FOLDER = "cifar-10-batches-py"
BATCHES = {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)}
MD5 = {  # of the official files
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
}

# Not registered: `cifar10` stays the name of the builder of tensorflow-datasets itself.
with registered.skip_registration():

    class Cifar10(tfds.core.GeneratorBasedBuilder):
        """CIFAR-10 with name, version and features of tensorflow-datasets' own builder.

        That one encodes images by TensorFlow; this one hands over PNG bytes from Pillow.
        """

        name = "cifar10"
        VERSION = tfds.core.Version(TFDS_VERSION)
        URL = URL
        archive: pathlib.Path | None = None
        md5: Mapping[str, str] | None = MD5

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                description="CIFAR-10: 60,000 colour images of 32x32 pixels in 10 classes.",
                features=tfds.features.FeaturesDict(
                    {
                        "id": tfds.features.Text(),
                        "image": tfds.features.Image(shape=(32, 32, 3)),
                        "label": tfds.features.ClassLabel(names=CLASSES),
                    }
                ),
                supervised_keys=("image", "label"),
                homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
            )

        def _split_generators(
            self, dl_manager: tfds.download.DownloadManager
        ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            archive = self.archive or download(dl_manager, self.URL)
            return {name: self._generate_examples(archive, name) for name in BATCHES}

        def _generate_examples(
            self, archive: pathlib.Path, split: str
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            index = 0
            for images, labels in read_archive(archive, BATCHES[split], md5=self.md5):
                for image, label in zip(images, labels, strict=True):
                    example = {
                        "id": f"{split}_{index:05d}",
                        "image": io.BytesIO(_png(image)),
                        "label": int(label),
                    }
                    yield index, example
                    index += 1


def prepare_cifar10(
    archive: pathlib.Path | str | None = None,
    data_dir: pathlib.Path | str | None = None,
    *,
    verify: bool = True,
) -> pathlib.Path:
    """Prepare CIFAR-10 from ``cifar-10-python.tar.gz`` (170 MB), as `archives.prepare` does.

    Args:
        archive: The archive; None downloads it.
        data_dir: Data folder; None: that of tensorflow-datasets.
        verify: Compare the batch files with their official MD5 sums.
    """
    return prepare(Cifar10, archive, data_dir, md5=MD5 if verify else None)


def read_archive(
    archive: pathlib.Path, names: tuple[str, ...], *, md5: Mapping[str, str] | None = MD5
) -> Iterator[tuple[UInt8[np.ndarray, "examples 32 32 3"], list[int]]]:
    """Images and labels of batch files of the original archive, in their order.

    Raises:
        ValueError: If it is not such an archive, or a file's MD5 differs from `md5`.
    """
    try:
        with tarfile.open(archive) as tar:
            for name in names:
                file = tar.extractfile(f"{FOLDER}/{name}")
                data = b"" if file is None else file.read()
                if md5 is not None and hashlib.md5(data).hexdigest() != md5[name]:
                    raise ValueError(
                        f"{name} in {archive} is not the official file (MD5 differs). "
                        f"Download {URL} again."
                    )
                batch = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
                images = np.asarray(batch[b"data"]).reshape(-1, 3, 32, 32)
                yield images.transpose(0, 2, 3, 1), list(batch[b"labels"])
    except (tarfile.TarError, KeyError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(
            f"{archive} is not the CIFAR-10 archive in its Python version ({error}). "
            f"Download {URL} again."
        ) from error


class _ArraysOnly(pickle.Unpickler):
    """Unpickles arrays and plain values and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"unexpected {module}.{name}")


def _png(image: UInt8[np.ndarray, "32 32 3"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png")
    return buffer.getvalue()


def main() -> int:
    """Run the command line of this module; returns the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--archive", help="cifar-10-python.tar.gz; default: download (170 MB)")
    parser.add_argument("--data-dir", help="default: the folder of tensorflow-datasets")
    given = parser.parse_args()
    return report("CIFAR-10", lambda: prepare_cifar10(given.archive, given.data_dir))


if __name__ == "__main__":
    sys.exit(main())
