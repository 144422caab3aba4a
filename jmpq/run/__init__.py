"""A run: a folder of artifacts, and the steps that fill it, one after another.

    train ─► layers ─► sensitivity ─► solve ─┬─► evaluate ─► jmpq.write_report
                                      ▲      └─► finetune
                race, refine, floor ──┘

For everybody who wants the whole flow without writing it: notebooks, experiments and studies
call these functions, and the command line is a thin layer over them. The stages before this
one are for those who bring their own data, metric or solver.

    from jmpq import run
    run.train(folder, run.Train(epochs=1))
    run.layers(folder, run.Layers(model="digits_resnet", data="digits"))
    run.sensitivity(folder)
    plan = run.solve(folder, run.Solve(budget=("size_bytes=W4A4",)))
    evaluation = run.evaluate(folder)

`RunFolder` is the one home of file names, schemas and of the rule which artifact must have
been made from which; `predictions` that of everything predicted of an allocation, which the
plan then carries. Steps are quiet; ``reporter=run.TERMINAL`` shows lines and bars. Names are
imported when they are first used: `solve` needs no JAX, except for logit changes.
"""

import importlib
from typing import Any

_HOME = {
    **{
        name: "options"
        for name in (
            "Train", "Layers", "Sensitivity", "Compute", "Solve", "Inverse", "Comparison",
            "Refine", "Race", "Floor", "Evaluate", "Finetune",
        )
    },
    **{
        name: f"steps.{name}"
        for name in (
            "train", "layers", "sensitivity", "solve", "race", "refine", "floor", "evaluate",
            "finetune",
        )
    },
    "RunFolder": "folder",
    "NetworkSpec": "artifacts",
    "LayerTable": "artifacts",
    "Sensitivities": "artifacts",
    "Evaluation": "artifacts",
    "Finetuning": "artifacts",
    "load_data": "network",
    "load_network": "network",
    "network_of": "network",
    "load_subject": "subject",
    "training_curve": "steps.finetune",
    "Reporter": "progress",
    "TERMINAL": "progress",
    "QUIET": "progress",
    "bar": "progress",
}  # fmt: skip

__all__ = list(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'jmpq.run' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jmpq.run.{_HOME[name]}"), name)
