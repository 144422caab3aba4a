"""Kinds of artifacts: the header that every file carries, and one way to refuse a wrong one.

An artifact is what a step leaves in a run folder. Its header names its schema and version; a
file of another one is refused in one line that says which step to run again.
"""

import dataclasses
import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

PLANS = "plans"  # folder of a run with a folder for every plan that has a name


@dataclasses.dataclass(frozen=True)
class ArtifactKind:
    """One kind of artifact.

    Attributes:
        name: Name of the schema, without ``jmpq/``.
        version: Version that this jmpq writes and reads.
        step: Step of the command line that writes it.
    """

    name: str
    version: int
    step: str

    @property
    def header(self) -> dict[str, Any]:
        """Schema and version, as the file carries them."""
        return {"schema": f"jmpq/{self.name}", "version": self.version}

    def existing(self, path: pathlib.Path) -> pathlib.Path:
        """The path itself.

        Raises:
            FileNotFoundError: If there is no such file; it says which step writes it.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path} not found: {self.command(path)} first.")
        return path

    def check(self, path: pathlib.Path, header: Any) -> None:
        """Refuse what is not of this kind and version.

        Raises:
            ValueError: If it is not; it says which step to run again.
        """
        known = isinstance(header, Mapping)
        schema, version = (header.get(k) if known else None for k in self.header)
        if (schema, version) != tuple(self.header.values()):
            raise ValueError(
                f"{path} has schema {schema!r} version {version!r}; this jmpq reads "
                f"'jmpq/{self.name}' version {self.version}: {self.command(path)} again."
            )

    def read_json(self, path: pathlib.Path) -> dict[str, Any]:
        """The content of a JSON file of this kind, without its header.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it is not JSON, or of another kind or version.
        """
        try:
            record = json.loads(self.existing(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise self.unusable(path, f"not readable JSON: {error}") from error
        self.check(path, record)
        return {key: value for key, value in record.items() if key not in self.header}

    def unusable(self, path: pathlib.Path, reason: object) -> ValueError:
        """The error for a file that cannot be used."""
        why = str(reason).rstrip(".")
        return ValueError(f"{path} cannot be used ({why}): {self.command(path)} again.")

    def command(self, path: pathlib.Path) -> str:
        """What to do about a file, but for when."""
        folder = path.parent
        if folder.parent.name != PLANS:
            return f"run `jmpq {self.step} {folder}`"
        option = "--name" if self.step == "solve" else "--plan"
        return f"run `jmpq {self.step} {folder.parent.parent} {option} {folder.name}`"


def fields_of(
    kind: type, record: Any, what: str, ignore: Collection[str] = ()
) -> dict[str, Any]:
    """The fields of a dataclass in a JSON object.

    Args:
        kind: The dataclass.
        record: The JSON value.
        what: What it is, for messages.
        ignore: Keys that are no fields and may be there.

    Raises:
        ValueError: If it is not an object, or fields are missing or unknown.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"{what} is {type(record).__name__}, expected a JSON object.")
    fields = dataclasses.fields(kind)
    missing = dataclasses.MISSING
    required = [f.name for f in fields if f.default is missing and f.default_factory is missing]
    if lacking := [name for name in required if name not in record]:
        raise ValueError(f"{what} lacks {', '.join(lacking)}.")
    known = {field.name for field in fields}
    if unknown := sorted(set(record) - known - set(ignore)):
        raise ValueError(f"{what} has unknown fields: {', '.join(unknown)}.")
    return {key: value for key, value in record.items() if key in known}
