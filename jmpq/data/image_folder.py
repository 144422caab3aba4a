"""Images in a folder or a zip archive, classified by folder or by the number before ``_``.

::

    train/n01440764/a.jpg    validation/n01440764/b.jpg    by folder, two parts
    n01440764/a.jpg                                        by folder, all held out
    0000_a.jpg    0001_b.jpg                               by number, all held out

In the folder, in the archive or beside the archive, ``classes.txt`` may list the classes:
index, name of the folder (or WordNet id), name to show, separated by tabs. Without it classes
are numbered in the order of their folders' names, and `Dataset.guessed` says so. Files whose
path has a part that begins with a dot or is ``__MACOSX`` are not looked at.
"""

import functools
import itertools
import pathlib
import re
import threading
import zipfile
from collections.abc import Callable, Sequence

import numpy as np

from jmpq.data.dataset import MOST_CLASSES, Dataset, Normalization, Source, Split
from jmpq.data.images import EncodedImages, EncodedLabels
from jmpq.kinds import check_kinds
from jmpq.zoo.architectures import Preprocessing

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
PARTS: dict[str, Source] = {
    "train": "train",
    "val": "heldout",
    "valid": "heldout",
    "validation": "heldout",
    "test": "heldout",
}
CLASSES = "classes.txt"
HOW_TO_LIST = (
    f"Write {CLASSES} there, a line for each of the network's classes: index, folder, name, "
    "separated by tabs."
)
_NUMBERED = re.compile(r"(\d+)_")

Read = Callable[[str], bytes]


@check_kinds
def image_folder(
    path: pathlib.Path | str,
    preprocessing: Preprocessing,
    *,
    name: str = "image_folder",
    note: str = "",
) -> Dataset:
    """The images of a folder or zip archive; they are decoded when a batch asks for them.

    Args:
        path: The folder, or the archive.
        preprocessing: Size and normalisation that the network expects.
        name: Name of the data set.
        note: See `Dataset`.

    Raises:
        FileNotFoundError: If it is not there, or a part is asked for that it has not.
        ValueError: If there is no image, an image has no class or lies beside the parts (it is
            named), or names of folders are numbers whose order is not that of the names.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        names, read = _folder(path)
        listed = path / CLASSES
    elif zipfile.is_zipfile(path):
        names, read = _archive(path)
        listed = path.with_name(CLASSES)
    else:
        raise FileNotFoundError(
            f"{path} is neither a folder nor a zip archive. Give one with --data-dir."
        )
    images = [n for n in names if _is_image(pathlib.PurePosixPath(n))]
    if not images:
        raise ValueError(
            f"There is no image in {path}: expected names that end in "
            f"{', '.join(sorted(SUFFIXES))}."
        )
    if CLASSES in names:
        text: str | None = read(CLASSES).decode()
    else:
        text = listed.read_text() if listed.is_file() else None
    parts = _parts(images)
    members = [label for part in parts.values() for _, label in part]
    classes, index = _numbering(members, text, path)

    def read_part(source: Source) -> Split:
        if source not in parts:
            raise FileNotFoundError(
                f"{path} has no {source} images: expected a folder "
                f"{' or '.join(p for p, s in PARTS.items() if s == source)} in it."
            )
        files = [file for file, _ in parts[source]]
        labels = [_label_of(label, index, file) for file, label in parts[source]]
        encoded = EncodedImages(
            read=lambda i: read(files[i]),
            name=lambda i: f"{path}/{files[i]}",
            indices=np.arange(len(files)),
            preprocessing=preprocessing,
        )
        return encoded_split(name, source, encoded, np.array(labels), note=note)

    guessed = text is None and any(isinstance(label, str) for label in members)
    return Dataset(name=name, classes=classes, read=read_part, note=note, guessed=guessed)


def encoded_split(
    dataset: str,
    source: Source,
    images: EncodedImages,
    labels: np.ndarray | EncodedLabels,
    *,
    note: str = "",
) -> Split:
    """A whole split of encoded images."""
    rule = images.preprocessing
    return Split(
        dataset=dataset,
        source=source,
        inputs=images,
        labels=labels if isinstance(labels, EncodedLabels) else labels.astype(np.int32),
        indices=np.arange(len(images)),
        normalization=Normalization(scale=rule.scale, mean=rule.mean, std=rule.std),
        note=note,
    )


def _is_image(name: pathlib.PurePosixPath) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in name.parts)
    return name.suffix.lower() in SUFFIXES and not hidden


def _folder(path: pathlib.Path) -> tuple[list[str], Read]:
    files = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    return files, lambda name: (path / name).read_bytes()


def _archive(path: pathlib.Path) -> tuple[list[str], Read]:
    lock = threading.Lock()  # one handle, read by many threads

    @functools.cache
    def archive() -> zipfile.ZipFile:
        return zipfile.ZipFile(path)

    def read(name: str) -> bytes:
        with lock:
            return archive().read(name)

    return sorted(n for n in archive().namelist() if not n.endswith("/")), read


def _parts(images: Sequence[str]) -> dict[Source, list[tuple[str, str | int]]]:
    """Per part (file, its folder's name or its own number), in the order of names."""
    in_parts = all(PARTS.get(name.partition("/")[0]) for name in images)
    deep = next((n for n in images if n.count("/") > 1 and n.partition("/")[0] in PARTS), None)
    if deep is not None and not in_parts:
        other = next(name for name in images if name.partition("/")[0] not in PARTS)
        raise ValueError(
            f"Image {deep!r} lies in the part {deep.partition('/')[0]!r} and {other!r} in "
            f"none: put all images into parts ({', '.join(PARTS)}), or none."
        )
    parts: dict[Source, list[tuple[str, str | int]]] = {}
    for name in images:
        first, _, rest = name.partition("/")
        source, rest = (PARTS[first], rest) if in_parts else ("heldout", name)
        folder, _, file = rest.rpartition("/")
        number = _NUMBERED.match(file)
        label: str | int | None = folder or (int(number[1]) if number else None)
        if label is None:
            raise ValueError(
                f"Image {name!r} has no class: expected a folder of its class, or a number and "
                "'_' before its name."
            )
        parts.setdefault(source, []).append((name, label))
    return parts


def _numbering(
    labels: Sequence[str | int], text: str | None, path: pathlib.Path
) -> tuple[tuple[str, ...], dict[str | int, int]]:
    """Names of the classes, and the index of every label."""
    if text is not None:
        return parse_classes(text, f"{CLASSES} of {path}")
    names = sorted({label for label in labels if isinstance(label, str)})
    if names:
        if all(name.isdecimal() for name in names) and names != sorted(names, key=int):
            first, second = next(
                (a, b) for a, b in itertools.pairwise(names) if int(a) > int(b)
            )
            raise ValueError(
                f"The class folders of {path} are numbers, and by name {first!r} comes before "
                f"{second!r}: say which class each of them is. {HOW_TO_LIST}"
            )
        return tuple(names), {name: i for i, name in enumerate(names)}
    count = 1 + max(label for label in labels if isinstance(label, int))
    if count > MOST_CLASSES:
        raise ValueError(
            f"An image of {path} would be of class {count - 1}: the number and '_' before a "
            "name are its class. Put the images into a folder per class."
        )
    return tuple(map(str, range(count))), {i: i for i in range(count)}


def parse_classes(text: str, where: str) -> tuple[tuple[str, ...], dict[str | int, int]]:
    """Names of the classes, and the index by number, by folder and by name.

    Raises:
        ValueError: If a line is not index, folder, name, or the indices are not 0, 1, ...
    """
    rows = [line.split("\t") for line in text.splitlines() if line.strip()]
    numbers = [row[0] for row in rows]
    if numbers != [str(i) for i in range(len(rows))] or min(map(len, rows), default=0) < 2:
        raise ValueError(
            f"{where} must list the classes 0, 1, ... in order, a line each: index, folder (or "
            "WordNet id), name, separated by tabs."
        )
    index: dict[str | int, int] = {}
    for i, row in enumerate(rows):
        for key in (i, *reversed(row[1:])):
            index.setdefault(key, i)
    return tuple(row[-1] for row in rows), index


def _label_of(label: str | int, index: dict[str | int, int], file: str) -> int:
    if label not in index:
        raise ValueError(
            f"Image {file!r} is of class {label!r}, which {CLASSES} does not list. Add it, or "
            "move the image away."
        )
    return index[label]
