"""An archive, downloaded or local, prepared as array_record: what all builders share."""

import pathlib
import sys
from collections.abc import Callable
from typing import Any

import tensorflow_datasets as tfds


def prepare(
    builder: Any,
    archive: pathlib.Path | str | None,
    data_dir: pathlib.Path | str | None,
    **attributes: Any,
) -> pathlib.Path:
    """Prepare a data set as array_record; nothing is done if it is there already.

    Args:
        builder: Class of a builder with the attributes `archive` and `URL`.
        archive: Archive of the data set; None downloads it.
        data_dir: Data folder; None: that of tensorflow-datasets.
        attributes: Further attributes of the builder.

    Returns:
        The folder of the prepared data.

    Raises:
        FileNotFoundError: If there is no such archive.
        OSError: If it cannot be downloaded, or the data folder cannot be written.
        ValueError: If the archive is another one.
    """
    if archive is not None and not pathlib.Path(archive).is_file():
        raise FileNotFoundError(
            f"There is no archive {archive}. Download {builder.URL}, or leave --archive out."
        )
    made = builder(
        data_dir=None if data_dir is None else str(data_dir), file_format="array_record"
    )
    attributes["archive"] = None if archive is None else pathlib.Path(archive)
    for name, value in attributes.items():
        setattr(made, name, value)
    made.download_and_prepare()
    return pathlib.Path(made.data_path)


def download(dl_manager: tfds.download.DownloadManager, url: str) -> pathlib.Path:
    """Download an archive.

    Raises:
        OSError: If that fails.
    """
    try:
        return pathlib.Path(dl_manager.download(url))
    except (OSError, tfds.download.DownloadError) as error:
        raise OSError(
            f"Cannot download {url} ({type(error).__name__}). Download it elsewhere and give "
            "the file with --archive."
        ) from error


def report(name: str, prepared: Callable[[], pathlib.Path]) -> int:
    """Prepare, say where the data are or what is wrong; returns the exit code."""
    try:
        print(f"{name} is in {prepared()}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
