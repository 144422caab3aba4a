"""`jmpq report`: figures, tables and one page from the artifacts alone."""

import dataclasses
import pathlib
from typing import Annotated

import tyro


@dataclasses.dataclass(frozen=True)
class Report:
    """Write RUN/report.html, RUN/figures/*.svg and RUN/tables/*.csv; needs no data."""

    run: Annotated[pathlib.Path, tyro.conf.Positional]
    """Folder of the run, with the artifacts of the steps before."""

    def __call__(self) -> None:
        from jmpq.report.report import write_report

        print(f"Wrote {write_report(self.run)}")
