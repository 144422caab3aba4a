"""Studies: ablations as data. A grid of runs, each cell done once, one tidy table.

For whoever asks which metric, solver, rounding or budget is better, and wants to know how sure
that is. A study is a TOML file (or a `Study`); what varies are lists, and every combination is
run:

    draws = [0, 1, 2]                   # seeds of the calibration examples
    metrics = ["gauss_newton", "hawq_trace", "squared_error"]
    budgets = ["size_bytes=W3", "size_bytes=W4"]
    [networks.digits]
    model = "digits_resnet"
    data = "digits"
    train.epochs = 15

`jmpq study FILE` does it; in Python, ``study.run_study(study.read_study(FILE), FOLDER)``.

- `grid`: the study as data, read and checked. `options`: those of the command.
- `layout`: the cells that it consists of, and the lines of its table.
- `cells`: steps of `jmpq.run` by content: options, inputs, and the source of the step
  (`source`). Equal work of any study in the folder is done once; stale work is never mixed in.
- `engines`: in this process (the default: compiled programs serve all cells), a pool of
  processes, or Slurm through submitit.
- `study`: does the cells and writes the table: CSV, parquet where pyarrow is installed, and
  beside it what every example became, so that methods can be compared in pairs.
- `statistics`: paired differences with standard errors over draws and examples, bootstrap
  intervals of rank correlations, ranks within budgets, Holm's correction. `pivot`: tables by
  two axes, which tell what is level with the best.

To add an axis, add a tuple to `grid.Study`, a name to ``grid.AXES``, and what it changes to
`layout`.
"""

from jmpq.lazy import attach

_HOMES = {
    "grid": ("Study", "StudiedNetwork", "read_study"),
    "study": ("StudyTable", "run_study"),
    "engines": ("make_engine",),
    "pivot": ("Pivot", "tabulate"),
    "source": ("source_sha256",),
    "statistics": (
        "Estimate",
        "holm",
        "mean_ranks",
        "paired_difference",
        "rank_correlation",
        "rank_correlation_difference",
        "two_level_mean",
    ),
}
__getattr__, __dir__, __all__ = attach(__name__, _HOMES)  # pyright: ignore[reportUnsupportedDunderAll]
