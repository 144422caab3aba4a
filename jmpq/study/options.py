"""The options of `jmpq study`; nothing here needs JAX."""

import dataclasses
import pathlib
from typing import Literal

from jmpq.run.ranges import counts

StyleName = Literal["page", "neurips", "icml", "cvpr", "ieee", "acm", "springer", "elsevier"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a study that do not decide its results."""

    out: pathlib.Path | None = None
    """Folder of the results; FILE without its suffix by default. Studies in one folder share
    their cells, each of which is a RUN."""
    engine: Literal["process", "pool", "slurm", "local"] = "process"
    """Where cells are done: process, one after another here; pool, in processes of this
    machine; slurm, as a job array through submitit (pip install 'jmpq[sweep]'; resources stand
    in the study's table [slurm]); local, submitit without Slurm."""
    jobs: int = 2
    """Cells at a time, with all engines but process."""
    table: tuple[str, ...] = ()
    """Two axes of a table, as metric x budget: printed, and written to OUT/tables as Markdown,
    LaTeX (booktabs) and CSV."""
    value: Literal["loss", "increase", "kl", "top1", "top5", "agreement"] = "kl"
    """Value in the table and the figure: loss, its increase or the KL divergence, nats per
    example; or top1, top5 or agreement, in percent."""
    style: StyleName | None = None
    """Also draw the value against size, at the column width and font size of a journal or
    conference, to OUT/figures as SVG, PDF and PNG."""

    def __post_init__(self) -> None:
        counts(self, "jobs")
        if self.table:
            _ = self.axes

    @property
    def axes(self) -> tuple[str, str]:
        """The axes of the table, down and across.

        Raises:
            ValueError: If there are not two.
        """
        words = [w for text in self.table for w in text.replace("×", " x ").split() if w != "x"]
        if len(words) != 2:
            raise ValueError(
                f"table={' '.join(self.table)!r}: give two axes, as metric x budget."
            )
        return words[0], words[1]
