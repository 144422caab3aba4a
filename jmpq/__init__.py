"""Mixed-precision quantization as a constrained optimisation, in JAX.

model, params, batch ─┬─► δ(layer, choice) ─┬─► losses ─┐
                      ├─► H·v ──────────────┘           ├─► Problem ─► Solution ─► Allocation
                      └─► layer table ─► costs, budgets ┘                              │
                       report ◄── plan, evaluation ◄── measured loss, KL, accuracy ◄───┘

Public names in the order of the flow; each is imported when it is first used, so that the
stages without JAX stay without it.
"""

import importlib
from typing import Any

_HOME = {
    "Layer": "jmpq.models.layers",
    "Network": "jmpq.models.network",
    "build_module": "jmpq.models.architectures",
    "load_published": "jmpq.models.weights",
    "fold_batch_norm": "jmpq.models.fold",
    "equalize_ranges": "jmpq.models.equalize",
    "without_caps": "jmpq.models.equalize",
    "architecture_ties": "jmpq.models.ties",
    "image_folder": "jmpq.data.image_folder",
    "Bert": "jmpq.models.bert",
    "read_bert": "jmpq.models.weights_bert",
    "calibration_split": "jmpq.data.splits",
    "load_dataset": "jmpq.data.load",
    "read_tokenizer": "jmpq.data.tokens",
    "train_tokenizer": "jmpq.data.tokens",
    "glue": "jmpq.data.glue",
    "QuantizerSpec": "jmpq.quantizers.spec",
    "Choice": "jmpq.quantizers.choice",
    "choice_grid": "jmpq.quantizers.choice",
    "Quantizers": "jmpq.quantizers.fake_quant",
    "calibrate_quantizers": "jmpq.quantizers.calibrated",
    "calibrate_weights": "jmpq.quantizers.fake_quant",
    "calibrate_activations": "jmpq.quantizers.fake_quant",
    "quantize_params": "jmpq.quantizers.fake_quant",
    "quantize_products": "jmpq.quantizers.products",
    "quantized_logits": "jmpq.quantizers.fake_quant",
    "hvp": "jmpq.curvature.hvp",
    "hessian": "jmpq.curvature.hvp",
    "second_order_increase": "jmpq.curvature.hvp",
    "ggn_product": "jmpq.curvature.ggn",
    "block_traces": "jmpq.curvature.trace",
    "top_eigenpairs": "jmpq.curvature.eigen",
    "lanczos_spectrum": "jmpq.curvature.spectrum",
    "hutch_plus_plus": "jmpq.curvature.hutchpp",
    "ggn_block_traces": "jmpq.curvature.ggn_trace",
    "MoveNetwork": "jmpq.sensitivity.moves",
    "Sensitivity": "jmpq.sensitivity.result",
    "GaussNewton": "jmpq.sensitivity.taylor",
    "analyse": "jmpq.sensitivity.metric",
    "Superposed": "jmpq.sensitivity.superposed",
    "Composed": "jmpq.sensitivity.composed",
    "PredictedLoss": "jmpq.sensitivity.superposed",
    "JointPredictor": "jmpq.sensitivity.joint",
    "Quadratic": "jmpq.sensitivity.joint",
    "Saturated": "jmpq.sensitivity.joint",
    "load_sensitivities": "jmpq.sensitivity.result",
    "save_sensitivities": "jmpq.sensitivity.result",
    "Problem": "jmpq.problem",
    "transformer_units": "jmpq.problem",
    "build_problem": "jmpq.problem",
    "Solution": "jmpq.problem",
    "Plan": "jmpq.problem",
    "read_plan": "jmpq.problem",
    "Greedy": "jmpq.solvers",
    "Exact": "jmpq.solvers",
    "CoreSearch": "jmpq.solvers",
    "DynamicProgramming": "jmpq.solvers",
    "MultiplierSearch": "jmpq.solvers",
    "LocalSearch": "jmpq.solvers",
    "BranchAndBound": "jmpq.solvers",
    "ObjectiveSearch": "jmpq.solvers",
    "solve": "jmpq.solvers",
    "least_cost": "jmpq.solvers",
    "refine": "jmpq.solvers",
    "bits_of": "jmpq.deploy.measure",
    "Evaluator": "jmpq.deploy.measure",
    "SimilarityEvaluator": "jmpq.deploy.similarity",
    "race": "jmpq.deploy.race",
    "FinetuneConfig": "jmpq.deploy.finetune",
    "finetune": "jmpq.deploy.finetune",
    "Finetuned": "jmpq.deploy.finetuned",
    "load_finetuned": "jmpq.deploy.finetuned",
    "save_finetuned": "jmpq.deploy.finetuned",
    "write_report": "jmpq.report.report",
}

__all__ = list(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'jmpq' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
