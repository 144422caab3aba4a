"""The journal of long work: what is finished survives an interruption at any moment.

Every piece of work that takes long keeps one: batches of an analysis, rounded layers, measured
allocations. It asks the journal for an entry, does the work where there is none, and keeps
the result. The same call again then goes on where it stopped, to identical numbers.
"""

import json
import math
import pathlib
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jmpq.files import atomic_file, json_sha256, named_errors

SCHEMA, VERSION = "jmpq/journal", 2
_START = rb'\{"key": '  # of the line of an entry


class Entry(NamedTuple):
    """One finished part: a JSON value, and arrays by name."""

    value: Any
    arrays: dict[str, np.ndarray]


class Journal:
    """Entries by key in one file, appended as they come.

    The file is a line of JSON for each entry, followed by the bytes of its arrays, if any.
    The first line says what the entries belong to. An entry that was cut off is dropped,
    and so is one that is not as it was written, by its checksums; those after it count. The
    file appears with the first entry; arrays stay in it until they are asked for.

    Args:
        path: The file; None keeps nothing.
        of: JSON value of everything the entries depend on. A file of something else is begun
            anew at the first entry that is kept.
        share: Function that gives the bytes of process 0 to all processes, if several do the
            same work (`jmpq.devices.shared_journal`): 0 alone has a path.
        anew: Whether a file of something else is begun anew; it is refused otherwise.

    Attributes:
        keys: Keys of the entries that were there when the journal was opened.

    Raises:
        ValueError: If the file belongs to something else and `anew` is false.
    """

    def __init__(
        self,
        path: pathlib.Path | None,
        of: Any,
        *,
        share: Callable[[bytes | None], bytes | None] = lambda data: data,
        anew: bool = True,
    ) -> None:
        self.path, self._share = path, share
        self._header = {"schema": SCHEMA, "version": VERSION, "of": json_sha256(of)}
        self._places: dict[str, tuple[int, int]] = {}  # first byte and end of every entry
        self._end = 0  # of the last whole entry; 0 where the file is still to be begun
        if path is not None and path.is_file():
            self._scan(path)
            if self._end == 0 and not anew:
                raise ValueError(
                    f"{path} belongs to other work: choose another file, or remove it."
                )
        keys = share(json.dumps(list(self._places)).encode())
        self.keys: list[str] = json.loads(keys or b"[]")

    def get(self, key: str) -> Entry | None:
        """The entry of a key, or None where the work is still to be done.

        Several processes must ask for the same keys in the same order.
        """
        record = self._share(self._read(key))
        return None if record is None else _parsed(record)

    def keep(
        self, key: str, value: Any = None, arrays: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Append an entry; one of the same key is replaced.

        Raises:
            OSError: One line, if the file cannot be written.
            ValueError: If the value is not JSON, or holds NaN.
        """
        if self.path is None:
            return
        record = _record(key, value, arrays or {})
        if self._end == 0:
            header = json.dumps(self._header).encode() + b"\n"
            with atomic_file(self.path) as file:
                file.write(header + record)
            self._end = len(header)
        else:
            with named_errors(self.path), self.path.open("r+b") as file:
                file.truncate(self._end)  # what was cut off
                file.seek(self._end)
                file.write(record)
        self._places[key] = (self._end, self._end + len(record))
        self._end += len(record)

    def remove(self) -> None:
        """Remove the file, once the result of the work is safe."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _scan(self, path: pathlib.Path) -> None:
        """Find the whole entries of a file that belongs to this work."""
        size = path.stat().st_size
        with path.open("rb") as file:
            if _line(file.readline()) != self._header:
                return
            self._end = file.tell()
            while text := file.readline():
                # Bytes that are no entry are passed over. An entry begins anywhere in a line,
                # behind the arrays of one that was spoilt, and is known by its checksum.
                starts = (found.start() for found in re.finditer(_START, text))
                entries = ((start, _entry(text[start:])) for start in starts)
                start, line = next((x for x in entries if x[1] is not None), (0, None))
                if line is None:
                    continue
                begin, end = file.tell() - len(text) + start, file.tell() + _array_bytes(line)
                if end > size:
                    return
                self._places[line["key"]] = (begin, end)
                self._end = end
                file.seek(end)

    def _read(self, key: str) -> bytes | None:
        if self.path is None or key not in self._places:
            return None
        start, end = self._places[key]
        with self.path.open("rb") as file:
            file.seek(start)
            record = file.read(end - start)
        line, _, data = record.partition(b"\n")
        found = _entry(line + b"\n")
        if found is None or found["key"] != key or zlib.crc32(data) != found["crc32"]:
            return None
        return record


def _record(key: str, value: Any, arrays: Mapping[str, np.ndarray]) -> bytes:
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    data = b"".join(array.tobytes() for array in contiguous.values())
    line = {
        "key": key,
        "value": value,
        "arrays": [[name, x.dtype.str, x.shape] for name, x in contiguous.items()],
        "crc32": zlib.crc32(data),
    }
    line["line_crc32"] = _checksum(line)
    return json.dumps(line, allow_nan=False).encode() + b"\n" + data


def _parsed(record: bytes) -> Entry:
    text, _, data = record.partition(b"\n")
    line, arrays, start = json.loads(text), {}, 0
    for name, dtype, shape in line["arrays"]:
        view = np.ndarray(shape, dtype, data, start)
        arrays[name] = view.copy()  # may be written to, as what was kept
        start += view.nbytes
    return Entry(line["value"], arrays)


def _line(text: bytes) -> Any:
    """The JSON value of a whole line, else None."""
    try:
        return json.loads(text) if text.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None


def _entry(text: bytes) -> dict[str, Any] | None:
    """What the line of a whole entry says, else None."""
    line = _line(text)
    try:
        whole = isinstance(line, dict) and line.pop("line_crc32", None) == _checksum(line)
    except ValueError:  # NaN, which no entry has
        return None
    return line if whole else None


def _checksum(line: Mapping[str, Any]) -> int:
    """Checksum of an entry's line; a value that was read gives that of the one written."""
    return zlib.crc32(json.dumps(line, allow_nan=False).encode())


def _array_bytes(line: Mapping[str, Any]) -> int:
    return sum(np.dtype(d).itemsize * math.prod(shape) for _, d, shape in line["arrays"])
