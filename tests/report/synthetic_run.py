"""A run folder with made-up numbers: 20 layers, 8 choices, solved, "measured", saved.

The numbers are a model of their own (no network): losses fall by 4 per bit, measured
increases are 1.6 times the predicted ones with noise.
"""

import dataclasses
from pathlib import Path
from typing import get_args

import numpy as np
import scipy.optimize

from jmpq.files import file_sha256
from jmpq.formats import choice_grid
from jmpq.network.layers import Layer, TieKind
from jmpq.problem.plan import KIND as PLAN
from jmpq.quantizers.spec import KernelSpec
from jmpq.run.artifacts import EVALUATION, OUTCOME, LayerTable, NetworkSpec
from jmpq.sensitivity.table import Move, Sensitivity, save_sensitivities

WEIGHTS, ACTIVATIONS = (2, 3, 4, 8), (4, 8)
EXAMPLES = {"calibration": 256, "evaluation": 1000}
SPLITS = tuple(EXAMPLES)
FLOAT_LOSS, FLOAT_TOP1 = 0.31, 0.917
WEIGHTS_SHA256, CODE_SHA256 = "w" * 64, "c" * 64
OTHER_PARAMETERS = 1386
OTHER_BYTES = 4.0 * OTHER_PARAMETERS


CHOICES = choice_grid(WEIGHTS, ACTIVATIONS)


def layer_names(count):
    stages = [f"stage{1 + 3 * i // count}/block{i // 2}/conv{1 + i % 2}" for i in range(count)]
    return ("stem/conv", *stages[1:-1], "head/dense")


def sensitivities(count=20, *, seed=0, metrics=("gauss_newton", "empirical_fisher")):
    rng = np.random.default_rng(seed)
    w = np.array([c.w_bits for c in CHOICES])
    a = np.array([c.a_bits for c in CHOICES])
    base = 10 ** rng.uniform(-1, 0.6, count)[:, None]
    truth = base * (4.0 ** (1 - w) + 0.3 * 4.0**-a)
    found = {}
    for metric in metrics:
        losses = truth * 10 ** rng.normal(0, 0.15, truth.shape)
        sem = losses * rng.uniform(0.03, 0.2, truth.shape)
        found[metric] = sensitivity(metric, layer_names(count), losses, sem)
    return found


def sensitivity(metric, layers, losses, sem):
    """A metric with given losses and standard errors: two batches at losses ± sem."""
    moves = [Move(i, kind, b) for i in layers
             for kind, bits in (("w", WEIGHTS), ("a", ACTIVATIONS)) for b in bits]  # fmt: skip
    batches = np.stack([losses - sem, losses + sem])
    return Sensitivity(
        metric=metric,
        unit="nats per example" if metric != "squared_error" else "squared error",
        layers=tuple(layers),
        choices=CHOICES,
        moves=tuple(moves),
        first=np.zeros(len(moves)),
        second=np.zeros(len(moves)),
        batch_first=np.zeros_like(batches),
        batch_second=batches,
        batch_examples=np.array([64.0, 64.0]),
        provenance={
            "weights_sha256": WEIGHTS_SHA256,
            "code_sha256": CODE_SHA256,
            "data": "cifar10",
            "preprocessing": None,
            "loss": "cross_entropy",
            "quantizers": {"weights": dataclasses.asdict(KernelSpec()), "activations": {}},
            "calibration": {
                "source": "heldout",
                "examples": 128,
                "seed": 0,
                "sha256": "c" * 64,
            },
        },
    )


def parameters(count):
    return np.linspace(400, 37_000, count).astype(int)


def costs(count):
    """Size (with one scale a layer) and bops ``[layers, choices]`` of the made-up layers."""
    n = parameters(count)[:, None]
    w = np.array([c.w_bits for c in CHOICES])
    a = np.array([c.a_bits for c in CHOICES])
    return np.ceil(n * w / 8) + 4, n * 256.0 * w * a


def solve(losses, sizes, limit):
    """The exact answer and its bound, by SciPy's mixed-integer solver."""
    layers, choices = losses.shape
    once = np.kron(np.eye(layers), np.ones(choices))
    result = scipy.optimize.milp(
        losses.ravel(),
        integrality=np.ones(losses.size),
        bounds=scipy.optimize.Bounds(0, 1),
        constraints=[
            scipy.optimize.LinearConstraint(once, 1, 1),
            scipy.optimize.LinearConstraint(sizes.reshape(1, -1), -np.inf, limit),
        ],
    )
    return result.x.reshape(layers, choices).argmax(1)


def greedy(losses, sizes, limit):
    """Upgrade the layer with the best ratio while it fits."""
    rows = np.arange(len(losses))
    choice = sizes.argmin(1) + 1
    while True:
        saved = losses[rows, choice][:, None] - losses
        extra = sizes - sizes[rows, choice][:, None]
        fits = (saved > 0) & (extra > 0) & (sizes[rows, choice].sum() + extra <= limit)
        if not fits.any():
            return choice
        ratio = np.where(fits, saved / np.where(extra > 0, extra, 1), -1)
        layer, better = np.unravel_index(ratio.argmax(), ratio.shape)
        choice[layer] = better


def plan(found, *, randoms=40, seed=1, sweep=6):
    metrics = list(found)
    layers = found[metrics[0]].layers
    count = len(layers)
    sizes, bops = costs(count)
    rows = np.arange(count)
    limit = OTHER_BYTES + float(sizes[:, 4].sum())  # W4A4
    allocations = []
    rng = np.random.default_rng(seed)

    def add(name, role, choice, *, metric=None, solver=None, bound=None, seed=None,
            budget=None):  # fmt: skip
        loss = None if metric is None else float(found[metric].losses[rows, choice].sum())
        status = None
        if bound is not None:
            status = "optimal" if loss - bound <= 1e-9 * loss else "feasible"
        allocations.append(
            {
                "name": name,
                "role": role,
                "metric": metric,
                "asked": solver,
                "status": status,
                "predicted_loss": loss,
                "bound": bound,
                "gap": None if bound is None else (loss - bound) / loss,
                "wall_s": 0.01,
                "seed": seed,
                "budgets": {} if budget is None else {"size_bytes": budget},
                "costs": {
                    "size_bytes": OTHER_BYTES + float(sizes[rows, choice].sum()),
                    "bops": float(bops[rows, choice].sum()),
                    "average_bits": 8
                    * float(sizes[rows, choice].sum())
                    / float(parameters(count).sum()),
                },
                "predictions": {m: float(found[m].losses[rows, choice].sum()) for m in metrics},
                "allocation": {
                    name: CHOICES[c].label for name, c in zip(layers, choice, strict=True)
                },
            }
        )

    def add_solutions(role, budget, end=""):
        for metric in metrics:
            losses = found[metric].losses
            best = solve(losses, sizes, budget - OTHER_BYTES)
            bound = float(losses[rows, best].sum())
            add(f"exact/{metric}{end}", role, best, metric=metric, solver="exact",
                bound=bound, budget=budget)  # fmt: skip
            add(f"greedy/{metric}{end}", role, greedy(losses, sizes, budget - OTHER_BYTES),
                metric=metric, solver="greedy", bound=0.9 * bound, budget=budget)  # fmt: skip

    add_solutions("solution", limit)
    for i, choice in enumerate(CHOICES):
        add(f"uniform/{choice.label}", "baseline", np.full(count, i), solver="uniform")
    reverse = np.argsort(np.argsort(-found[metrics[0]].losses[:, 4]))
    add("reversed/" + metrics[0], "baseline", np.where(reverse < count // 2, 0, 5),
        solver="reversed", budget=limit)  # fmt: skip
    for s in range(10):
        add(f"random/{s}", "baseline", np.repeat([0, 2, 4], 7)[rng.permutation(21)][:count]
            if count == 20 else rng.integers(0, 6, count), solver="random", seed=s,
            budget=limit)  # fmt: skip
    for i, fraction in enumerate(np.linspace(0.15, 0.95, sweep)):
        low, high = sizes.min(1).sum(), sizes.max(1).sum()
        add_solutions(
            "sweep", float(OTHER_BYTES + low + fraction * (high - low)), f"/budget{i}"
        )
    for s in range(randoms):
        add(f"joint/{s}", "random", rng.integers(0, len(CHOICES), count), seed=s)
    for layer in range(count):
        for i, choice in enumerate(CHOICES):
            add(f"single/{layers[layer]}/{choice.label}", "single", np.full(count, i))
            row = allocations[-1]
            row["allocation"] = dict.fromkeys(layers, "W32") | {layers[layer]: choice.label}
            row["costs"] = {}
            row["predictions"] = {m: float(found[m].losses[layer, i]) for m in metrics}
    return {
        "jmpq": "0.1.0",
        "versions": {"numpy": np.__version__},
        "seed": 0,
        "created": "2026-01-01T00:00:00Z",
        "weights_sha256": WEIGHTS_SHA256,
        "sensitivity_sha256": "s" * 64,
        "quantizers": {"weights": {"grid": "symmetric", "granularity": "channel"},
                       "activations": {"grid": "affine"}},
        "layers": list(layers),
        "choices": [choice.label for choice in CHOICES],
        "rules": ["pin first: W8A8", "pin last: W8A8"],
        "budgets": {
            "size_bytes": {
                "limit": limit,
                "asked": "W4A4",
                "least": OTHER_BYTES + float(sizes.min(1).sum()),
                "most": OTHER_BYTES + float(sizes.max(1).sum()),
            }
        },
        "unquantized": {"size_bytes": OTHER_BYTES},
        "allocations": allocations,
    }  # fmt: skip


def evaluation(made, plan_sha256, *, seed=2):
    rng = np.random.default_rng(seed)
    measured = {}
    metric = next(iter(made["allocations"][0]["predictions"]))
    for allocation in made["allocations"]:
        kl = 1.6 * allocation["predictions"][metric] * 10 ** rng.normal(0, 0.08)
        measured[allocation["name"]] = {}
        for split in SPLITS:
            increase = kl * (1 + rng.normal(0, 0.1)) - 2e-4 * rng.random()
            top1 = 0.1 + (FLOAT_TOP1 - 0.1) * np.exp(-0.35 * kl)
            measured[allocation["name"]][split] = {
                "examples": EXAMPLES[split],
                "loss": FLOAT_LOSS + increase,
                "loss_sem": 0.03,
                "increase": increase,
                "increase_sem": 0.1 * kl,
                "kl": kl,
                "kl_sem": 0.08 * kl,
                "top1": top1,
                "top1_sem": float(np.sqrt(top1 * (1 - top1) / 1000)),
                "top5": 1.0,
                "top5_sem": 0.0,
                "agreement": top1,
            }
    within = [
        a["name"]
        for a in made["allocations"]
        if a["role"] == "solution"
        and all(a["costs"][cost] <= b["limit"] for cost, b in made["budgets"].items())
    ]
    best = min(within, key=lambda name: measured[name]["calibration"]["kl"], default=None)
    return {
        "plan_sha256": plan_sha256,
        "versions": {"jax": "0"},
        "loss": "cross_entropy",
        "correct": "none",
        "correct_examples": 0,
        "timing": {},
        "device": "cpu",
        "splits": {
            split: {"source": "heldout", "examples": examples, "seed": 0, "sha256": "c" * 64}
            for split, examples in EXAMPLES.items()
        },
        "float": {
            split: {
                **dict.fromkeys(OUTCOME, 0.0),
                "examples": EXAMPLES[split],
                "loss": FLOAT_LOSS,
                "loss_sem": 0.02,
                "top1": FLOAT_TOP1,
                "top5": 1.0,
                "agreement": 1.0,
            }
            for split in SPLITS
        },
        "measured": measured,
        "reference": best,
        "differences": {
            name: {
                **{key: found["evaluation"][key] - measured[best]["evaluation"][key]
                   for key in ("kl", "increase")},
                "kl_sem": 0.05 * found["evaluation"]["kl"],
                "increase_sem": 0.05 * found["evaluation"]["kl"],
            }
            for name, found in measured.items()
            if best not in (None, name)
        },
    }  # fmt: skip


def layer_table(count=20):
    layers = tuple(
        Layer(name=name, kind="conv", kernel=f"{name}/kernel", kernel_shape=(1, int(n)),
              output_axes=(0,), input_axes=(1,), parameters=int(n), macs=int(n) * 256,
              input_shape=(8, 8, 1), output_shape=(8, 8, int(n)))
        for name, n in zip(layer_names(count), parameters(count), strict=True)
    )  # fmt: skip
    return LayerTable(
        network=NetworkSpec(model="resnet20", weights=None, data="cifar10", data_dir=None),
        weights_sha256=WEIGHTS_SHA256,
        code_sha256=CODE_SHA256,
        versions={},
        layers=layers,
        other_parameters=OTHER_PARAMETERS,
        ties={kind: [] for kind in get_args(TieKind)},
    )


def write_run(folder: Path, found, *, count=20, made=None):
    """Write the four artifacts as the steps would."""
    made = plan(found) if made is None else made
    folder.mkdir(parents=True, exist_ok=True)
    layer_table(count).write(folder / "layers.json")
    save_sensitivities(folder / "sensitivity.npz", found)
    made["sensitivity_sha256"] = file_sha256(folder / "sensitivity.npz")
    PLAN.write_json(folder / "plan.json", made)
    sha = file_sha256(folder / "plan.json")
    EVALUATION.write_json(folder / "evaluation.json", evaluation(made, sha))
    return made
