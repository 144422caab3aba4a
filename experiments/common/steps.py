"""Steps of a run as values: compared by their text, sent to other processes, called."""

import dataclasses
import importlib
import pathlib
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Step:
    """One call of a step of `jmpq.run`, or of the report.

    Attributes:
        name: Name of the step.
        folder: The run folder.
        options: Options of the step.
        others: Further groups of options, by name.
    """

    name: str
    folder: pathlib.Path
    options: Any = None
    others: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self) -> Any:
        """Run the step, with lines and bars on the terminal."""
        if self.name == "report":
            return importlib.import_module("jmpq").write_report(self.folder)
        run = importlib.import_module("jmpq.run")
        step = getattr(run, self.name)
        return step(self.folder, self.options, reporter=run.TERMINAL, **self.others)
