"""Mixed-precision quantization as a constrained optimisation, in JAX.

model, params, batch ─┬─► δ(layer, choice) ─┬─► losses ─┐
                      ├─► H·v ──────────────┘           ├─► Problem ─► Solution ─► Allocation
                      └─► layer table ─► costs, budgets ┘                              │
                       report ◄── plan, evaluation ◄── measured loss, KL, accuracy ◄───┘

`jmpq.run` takes these steps one after another in a folder of artifacts.

To add a metric, a solver, a cost, a grid, a network, a figure or a step, read the last
paragraph of its folder's page. A new file is named on that page, which has 20 to 40 lines; a
folder holds fifteen files at most.

Public names in the order of the flow; each is imported when it is first used, so that the
stages without JAX stay without it.
"""

from importlib.metadata import version

from jmpq.lazy import attach

__version__ = version("jmpq")  # from pyproject.toml
# Names by their home, in the order of the flow; then what completion finds besides them.
_HOMES = {
    "network.layers": ("Layer",),
    "network.network": ("Network",),
    "zoo.architectures": ("build_module",),
    "zoo.weights_torchvision": ("load_published",),
    "network.fold": ("fold_batch_norm",),
    "network.equalize": ("equalize_ranges",),
    "data.dataset": ("Dataset",),
    "data.image_folder": ("image_folder",),
    "zoo.bert": ("Bert",),
    "zoo.weights_bert": ("read_bert",),
    "zoo.weights_decoder": ("read_decoder",),
    "data.splits": ("calibration_split",),
    "data.load": ("load_dataset",),
    "data.text.tokens": ("read_tokenizer",),
    "data.text.glue": ("glue",),
    "quantizers.spec": (
        "KernelSpec",
        "InputSpec",
    ),
    "formats": (
        "Choice",
        "choice_grid",
    ),
    "allocation": ("Allocation",),
    "quantizers.scales": ("Quantizers",),
    "quantizers.calibrate": (
        "calibrate_quantizers",
        "calibrate_weights",
        "calibrate_activations",
    ),
    "quantizers.fake_quant": ("quantized_logits",),
    "quantizers.products": (
        "quantize_products",
        "with_cache",
    ),
    "curvature.hvp": (
        "hvp",
        "hessian",
        "second_order_increase",
    ),
    "curvature.ggn": ("ggn_product",),
    "curvature.trace": ("block_traces",),
    "curvature.eigen": ("top_eigenpairs",),
    "curvature.spectrum": ("lanczos_spectrum",),
    "sensitivity.moves": ("MoveNetwork",),
    "sensitivity.table": (
        "Sensitivity",
        "load_sensitivities",
        "save_sensitivities",
    ),
    "sensitivity.metrics.taylor": ("GaussNewton",),
    "sensitivity.analyse": ("analyse",),
    "sensitivity.logits.measure": ("measure_superposed",),
    "sensitivity.logits.superposed": ("Superposed",),
    "sensitivity.logits.composed": ("Composed",),
    "problem": (
        "Problem",
        "transformer_units",
        "build_problem",
        "Solution",
        "Plan",
        "read_plan",
    ),
    "solvers": (
        "Greedy",
        "Exact",
        "CoreSearch",
        "LocalSearch",
        "BranchAndBound",
        "ObjectiveSearch",
        "solve",
        "refine",
    ),
    "deploy.measure": ("Evaluator",),
    "deploy.similarity": ("SimilarityEvaluator",),
    "deploy.race": ("race",),
    "deploy.finetune": (
        "FinetuneConfig",
        "finetune",
    ),
    "deploy.finetuned": ("load_finetuned",),
    "export.packed": ("load_packed",),
    "latency.table": ("LatencyTable",),
    "latency.whole_networks": ("measure_latency",),
    "study": ("read_study", "run_study"),
    "report.report": ("write_report",),
}
_MODULES = (
    "network",
    "zoo",
    "data",
    "training",
    "quantizers",
    "curvature",
    "sensitivity",
    "problem",
    "solvers",
    "deploy",
    "export",
    "latency",
    "run",
    "study",
    "report",
    "allocation",
    "formats",
)

__getattr__, __dir__, __all__ = attach(__name__, _HOMES, _MODULES)  # pyright: ignore[reportUnsupportedDunderAll]
