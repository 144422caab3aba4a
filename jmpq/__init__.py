"""Mixed-precision quantization as a constrained optimisation, in JAX.

model, params, batch ─┬─► δ(layer, choice) ─┬─► losses ─┐
                      ├─► H·v ──────────────┘           ├─► Problem ─► Solution ─► Allocation
                      └─► layer table ─► costs, budgets ┘                              │
                       report ◄── plan, evaluation ◄── measured loss, KL, accuracy ◄───┘

`jmpq.run` takes these steps one after another in a folder of artifacts.

To add a metric, a solver, a cost, a grid, a network, a figure or a step, read the last
paragraph of its folder's page. A new file is named on that page; a folder holds fifteen at
most.

Public names in the order of the flow; each is imported when it is first used, so that the
stages without JAX stay without it.
"""

import importlib
from typing import Any

_HOME = {
    "Layer": "jmpq.network.layers",
    "Network": "jmpq.network.network",
    "build_module": "jmpq.zoo.architectures",
    "load_published": "jmpq.zoo.weights_torchvision",
    "fold_batch_norm": "jmpq.network.fold",
    "equalize_ranges": "jmpq.network.equalize",
    "image_folder": "jmpq.data.image_folder",
    "Bert": "jmpq.zoo.bert",
    "read_bert": "jmpq.zoo.weights_bert",
    "calibration_split": "jmpq.data.splits",
    "load_dataset": "jmpq.data.load",
    "read_tokenizer": "jmpq.data.tokens",
    "glue": "jmpq.data.glue",
    "KernelSpec": "jmpq.quantizers.spec",
    "InputSpec": "jmpq.quantizers.spec",
    "Choice": "jmpq.formats",
    "choice_grid": "jmpq.formats",
    "Allocation": "jmpq.allocation",
    "Quantizers": "jmpq.quantizers.fake_quant",
    "calibrate_quantizers": "jmpq.quantizers.calibrate",
    "calibrate_weights": "jmpq.quantizers.fake_quant",
    "calibrate_activations": "jmpq.quantizers.fake_quant",
    "quantize_products": "jmpq.quantizers.products",
    "quantized_logits": "jmpq.quantizers.fake_quant",
    "hvp": "jmpq.curvature.hvp",
    "hessian": "jmpq.curvature.hvp",
    "second_order_increase": "jmpq.curvature.hvp",
    "ggn_product": "jmpq.curvature.ggn",
    "block_traces": "jmpq.curvature.trace",
    "top_eigenpairs": "jmpq.curvature.eigen",
    "lanczos_spectrum": "jmpq.curvature.spectrum",
    "MoveNetwork": "jmpq.sensitivity.moves",
    "Sensitivity": "jmpq.sensitivity.table",
    "GaussNewton": "jmpq.sensitivity.metrics.taylor",
    "analyse": "jmpq.sensitivity.analyse",
    "Superposed": "jmpq.sensitivity.logits.superposed",
    "Composed": "jmpq.sensitivity.logits.composed",
    "load_sensitivities": "jmpq.sensitivity.table",
    "save_sensitivities": "jmpq.sensitivity.table",
    "Problem": "jmpq.problem",
    "transformer_units": "jmpq.problem",
    "build_problem": "jmpq.problem",
    "Solution": "jmpq.problem",
    "Plan": "jmpq.problem",
    "read_plan": "jmpq.problem",
    "Greedy": "jmpq.solvers",
    "Exact": "jmpq.solvers",
    "CoreSearch": "jmpq.solvers",
    "LocalSearch": "jmpq.solvers",
    "BranchAndBound": "jmpq.solvers",
    "ObjectiveSearch": "jmpq.solvers",
    "solve": "jmpq.solvers",
    "refine": "jmpq.solvers",
    "Evaluator": "jmpq.deploy.measure",
    "SimilarityEvaluator": "jmpq.deploy.similarity",
    "race": "jmpq.deploy.race",
    "FinetuneConfig": "jmpq.deploy.finetune",
    "finetune": "jmpq.deploy.finetune",
    "load_finetuned": "jmpq.deploy.finetuned",
    "write_report": "jmpq.report.report",
}

__all__ = list(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'jmpq' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
