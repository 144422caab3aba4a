"""What a long search has found so far, kept from an interruption to the next call."""

import io
import pathlib
import zipfile
from collections.abc import Mapping

import numpy as np

from jmpq.devices import is_main_process, same_everywhere
from jmpq.files import atomic_file


class Notes:
    """Groups of arrays by name, in a file that is rewritten with every new group.

    Args:
        path: The file; None keeps nothing. The caller removes it when the result is safe. Of
            several processes 0 alone reads and writes it, and tells the others.
        fingerprint: Of everything the notes depend on; those of another one are not used.
    """

    def __init__(self, path: pathlib.Path | None = None, fingerprint: str = "") -> None:
        self.path, self.fingerprint = path, fingerprint
        self._found: dict[str, dict[str, np.ndarray]] = {}
        here = path is not None and is_main_process() and path.is_file()
        if (data := same_everywhere(path.read_bytes() if here and path else None)) is None:
            return
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as stored:
                if str(stored["fingerprint"]) == fingerprint:
                    for key in set(stored) - {"fingerprint"}:
                        name, _, field = key.rpartition("#")
                        self._found.setdefault(name, {})[field] = stored[key]
        except (zipfile.BadZipFile, KeyError, ValueError, EOFError):
            self._found = {}

    def get(self, name: str) -> Mapping[str, np.ndarray] | None:
        """The arrays that were kept under a name, if any."""
        return self._found.get(name)

    def keep(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Add a group and write the file."""
        self._found[name] = dict(arrays)
        if self.path is None or not is_main_process():
            return
        flat = {f"{n}#{k}": v for n, group in self._found.items() for k, v in group.items()}
        with atomic_file(self.path) as file:
            np.savez(file, fingerprint=np.array(self.fingerprint), **flat)  # type: ignore[arg-type]
