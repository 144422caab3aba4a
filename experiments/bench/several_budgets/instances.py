"""Problems with several budgets: real tables of sensitivity scaled up to many layers."""

import json
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.common.arguments import RESULTS
from jmpq.problem import Problem, problem_of

# Of ResNet-20 for CIFAR-10, layer by layer: parameters, output positions, input elements.
PARAMETERS = np.array([432, *[2304] * 6, 4608, *[9216] * 5, 18432, *[36864] * 5, 640.0])
POSITIONS = np.array([*[1024] * 7, *[256] * 6, *[64] * 6, 1.0])
INPUTS = np.array([3072, *[16384] * 7, *[8192] * 6, *[4096] * 5, 64.0])
BUDGETS: tuple[str, ...] = ("size_bytes", "bops", "latency_s", "activation_bytes")


def scaled(layers: int, choices: int, budgets: int, seed: int) -> Problem:
    """The committed Gauss-Newton table of ResNet-20, its layers over and over, scattered.

    Losses are scaled by a log-normal factor a layer (sigma 1) and up to 25 % an entry, sizes
    by up to 20 % a layer, latencies (of a roofline) by 5 % an entry. Every budget is what the
    best choices use at random prices, less 0.1 %: so that all of them bind.

    Args:
        layers: Number of layers.
        choices: 12 for weights of 2, 3, 4, 5, 6, 8 and activations of 4, 8 bits; 8 for weights
            of 2, 3, 4, 8. Losses at 5 bits are the geometric mean of those at 4 and 6.
        budgets: The first of `BUDGETS`.
        seed: Seed of all of these draws.
    """
    rng = np.random.default_rng(seed)
    run = json.loads((RESULTS / "resnet20_cifar10.json").read_text())["runs"]["heldout"]
    table = np.array(run["sensitivities"]["gauss_newton"]["losses"])
    losses = {choice: table[:, k] for k, choice in enumerate(run["choices"])}
    for a_bits in (4, 8):
        losses[f"W5A{a_bits}"] = np.sqrt(losses[f"W4A{a_bits}"] * losses[f"W6A{a_bits}"])
    weights = {12: (2, 3, 4, 5, 6, 8), 8: (2, 3, 4, 8)}[choices]
    w_bits, a_bits = np.array([(w, a) for w in weights for a in (4, 8)]).T
    row, shape = np.resize(np.arange(len(table)), layers), (layers, choices)
    loss = np.stack([losses[f"W{w}A{a}"][row] for w, a in zip(w_bits, a_bits, strict=True)])
    loss = loss.T * rng.lognormal(0, 1, (layers, 1)) * rng.uniform(0.8, 1.25, shape)
    parameters, positions, inputs = (
        np.round(values[row] * rng.uniform(0.8, 1.2, layers))[:, None]
        for values in (PARAMETERS, POSITIONS, INPUTS)
    )
    size, activations = np.ceil(parameters * w_bits / 8), np.ceil(inputs * a_bits / 8)
    bops = parameters * positions * w_bits * a_bits
    latency = np.maximum(bops / 3.2e13, (size + activations) / 2e10) + 1e-6
    latency = latency * rng.uniform(0.95, 1.05, shape)
    costs = dict(zip(BUDGETS[:budgets], (size, bops, latency, activations), strict=False))
    priced = loss.copy()
    for cost in costs.values():
        price = np.ptp(loss, axis=1).sum() / np.ptp(cost, axis=1).sum()
        priced += rng.uniform(0.05, 0.15) * price * cost
    best = priced.argmin(axis=1)
    used = [cost[np.arange(layers), best].sum() for cost in costs.values()]
    return _problem(loss, costs, 0.999 * np.array(used))


def _problem(
    losses: Float[np.ndarray, "layers choices"],
    costs: dict[str, Any],
    limits: Float[np.ndarray, " budgets"],
) -> Problem:
    return problem_of(losses, costs, dict(zip(costs, limits.tolist(), strict=True)))
