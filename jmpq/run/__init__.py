"""A run: a folder of artifacts, and the steps that fill it, one after another.

::

    train ─► layers ─► sensitivity ─► solve ─┬─► evaluate ─► jmpq.write_report
                             │        ▲      ├─► finetune
                 latency ◄───┴────────┤      ├─► export
                race, refine, floor ──┘      └─► instance

For everybody who wants the whole flow without writing it: notebooks, experiments and studies
call these functions, and the command line is a thin layer over them. The stages before this
one are for those who bring their own data, metric or solver::

    from jmpq import run
    run.train(folder, run.Train(epochs=1))
    run.layers(folder, run.Layers(model="digits_resnet", data="digits"))
    run.sensitivity(folder)
    plan = run.solve(folder, run.Solve(budget=("size_bytes=W4A4",)))
    evaluation = run.evaluate(folder)
    print(run.recommend(plan, evaluation))

Whatever was computed or measured stays in the folder's ``store``, by all that it depends on, so
that a step computes only what is missing; ``Solve(name=...)`` adds a plan beside others. Steps
are quiet; ``reporter=run.TERMINAL`` shows lines and bars. Names are imported when they are
first used: `solve` loads no JAX, unless the loss is a function of yours.

- `steps`: the functions. `options`: their options; `ranges` checks them. `planning`: what a
  plan holds, with everything that is predicted of an allocation.
- `folder`: which artifact lies where and from which it must have been made; `artifacts`: their
  formats. `lock`: one writer at a time. `outcomes`: what was measured, by allocation.
- `network`, `loss`, `calibrated`, `subject`: the network, its loss, its quantizers and its data
  as a folder describes them. `float_quality`: what the float network does on its examples.
  `compute`: devices and processes. `progress`: lines and bars.
"""

from jmpq.lazy import attach

_STEPS = ("train", "layers", "sensitivity", "latency", "solve", "instance", "race", "refine",
          "floor", "evaluate", "measure", "finetune", "export")  # fmt: skip
_OPTIONS = ("Train", "Layers", "Sensitivity", "Latency", "Compute", "Solve", "Comparison",
            "Inverse", "Instance", "Race", "Refine", "Floor", "Evaluate", "Finetune",
            "Export")  # fmt: skip
_HOMES = {
    **{f"steps.{name}": (name,) for name in _STEPS if name != "finetune"},
    "steps.finetune": ("finetune", "training_curve"),
    "options": _OPTIONS,
    "folder": ("RunFolder",),
    "artifacts": (
        "NetworkSpec",
        "LayerTable",
        "Sensitivities",
        "Evaluation",
        "Finetuning",
        "Exports",
    ),
    "network": ("load_data", "load_network", "network_of"),
    "subject": ("Subject", "load_subject"),
    "progress": ("Reporter", "QUIET", "TERMINAL", "bar"),
    "planning.recommendation": ("Recommendation", "recommend"),
}
__getattr__, __dir__, __all__ = attach(__name__, _HOMES, ("planning", "options"))
