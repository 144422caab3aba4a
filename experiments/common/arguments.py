"""What experiments take on the command line."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar

RESULTS = pathlib.Path(__file__).parents[1] / "results"
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Where the data are, and what is run."""

    data_dir: pathlib.Path | None = None
    """Folder of the data; weights lie below it."""
    smoke: bool = False
    """Run the small configuration, on data that are made or embedded."""
    output: pathlib.Path | None = None
    """File of the result; default experiments/results/NAME.json, or NAME_smoke.json."""

    def data(self) -> pathlib.Path | None:
        """The folder of the data; None for the small configuration.

        Raises:
            SystemExit: Without a folder, where one is needed.
        """
        return data_folder(self.data_dir, self.smoke)

    def result(self, name: str) -> pathlib.Path:
        """The file of the result of an experiment."""
        return self.output or RESULTS / f"{self._run(name)}.json"

    def _run(self, name: str) -> str:
        return f"{name}_smoke" if self.smoke else name


@dataclasses.dataclass(frozen=True)
class ResumableArguments(Arguments):
    """Where the data are, what is run, and where finished parts are kept."""

    folder: pathlib.Path | None = None
    """Where finished parts are kept; default runs/NAME, or runs/NAME_smoke."""

    def work(self, name: str) -> pathlib.Path:
        """The folder of an experiment's finished parts."""
        return self.folder or pathlib.Path("runs") / self._run(name)


@dataclasses.dataclass(frozen=True)
class NetworksArguments(ResumableArguments):
    """As above, and which networks are run; what the result has of others stays."""

    networks: tuple[str, ...] = ()
    """Networks to run, by name; all by default."""

    def chosen(self, known: Mapping[str, T]) -> tuple[T, ...]:
        """The networks to run, in the order of the experiment.

        Raises:
            ValueError: If there is no such network.
        """
        if unknown := [name for name in self.networks if name not in known]:
            raise ValueError(f"networks={unknown[0]!r}: the experiment has {', '.join(known)}.")
        return tuple(x for name, x in known.items() if name in (self.networks or known))


def data_folder(data_dir: pathlib.Path | None, smoke: bool) -> pathlib.Path | None:
    """The folder of the data; None for the small configuration, which needs none.

    Raises:
        SystemExit: Without a folder, where one is needed.
    """
    if smoke:
        return None
    if data_dir is None:
        raise SystemExit(
            "--data-dir: the folder of the data and weights is needed. The small configuration "
            "(--smoke) runs without one."
        )
    if not data_dir.is_dir():
        raise SystemExit(f"--data-dir {data_dir}: there is no such folder.")
    return data_dir


def check_output(
    path: pathlib.Path, config: Mapping[str, Any], apart: tuple[str, ...] = ("networks",)
) -> None:
    """Check that a result may be written: not over one of another configuration.

    Args:
        path: File of the result.
        config: Configuration that is run.
        apart: Fields that may differ, as they do not change what is in the file.

    Raises:
        ValueError: If the file holds a result of another configuration.
    """
    if not path.is_file():
        return
    old, new = json.loads(path.read_text())["config"], json.loads(json.dumps(config))
    other = [k for k in new if k in old and k not in apart and old[k] != new[k]]
    if other:
        found = ", ".join(f"{k} is {old[k]!r}, not {new[k]!r}" for k in other)
        raise ValueError(
            f"{path} holds another configuration: {found}. Give --output another folder, or "
            "move the file away."
        )
