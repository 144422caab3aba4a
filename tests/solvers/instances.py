"""The instances that every solver is run on, and an optimum found without jmpq's solvers."""

import itertools
import json
import math
import pathlib

import numpy as np

from jmpq.formats import Choice
from jmpq.problem import problem_of, with_budgets


def random_problem(seed, layers=6, choices=4, budgets=1, fraction=0.4, ties=(), integer=False):
    """Losses that fall and costs that rise with the bits, roughly."""
    rng = np.random.default_rng(seed)
    bits = np.arange(1, choices + 1)
    size = rng.lognormal(0, 1, (layers, 1))
    losses = rng.lognormal(0, 2, (layers, 1)) * 4.0**-bits * rng.uniform(0.5, 1.5, choices)
    costs = {}
    for k in range(budgets):
        table = size * bits ** (k + 1) * rng.uniform(0.8, 1.2, (layers, choices))
        costs[f"cost{k}"] = np.ceil(100 * table) if integer else table
    problem = problem_of(losses, costs, {}, ties=ties)
    spans = {name: problem.range(name) for name in costs}
    limits = {name: low + fraction * (high - low) for name, (low, high) in spans.items()}
    return with_budgets(problem, limits)


def quadratic_problem(
    seed, kind="psd", layers=6, choices=3, budgets=1, fraction=0.4, ties=(), allowed=None
):
    """Random moves u: half their Gram matrix (psd), or a random symmetric one (indefinite)."""
    rng = np.random.default_rng(seed)
    shape, size = (layers, choices, layers, choices), layers * choices
    if kind == "psd":
        scale = 2.0 ** -np.arange(choices) * rng.lognormal(0, 0.5, (layers, 1))
        moves = rng.normal(size=(size, layers)) * scale.reshape(-1, 1)
        matrix = moves @ moves.T
    else:
        matrix = rng.normal(size=(size, size))
        matrix = matrix + matrix.T
    losses = 0.5 * np.diag(matrix).reshape(layers, choices)
    interactions = matrix.reshape(shape).copy()
    interactions[np.arange(layers), :, np.arange(layers)] = 0.0
    separable = random_problem(seed, layers, choices, budgets, fraction, ties)
    problem = problem_of(
        losses,
        separable.costs,
        {},
        ties=ties,
        allowed=allowed,
        interactions=0.5 * (interactions + interactions.transpose(2, 3, 0, 1)),
    )
    return with_budgets(problem, [f"{name}={100 * fraction}%" for name in separable.costs])


def _plain(losses, costs, budget, **options):
    costs = {"cost": np.array(costs, dtype=np.float64)}
    return problem_of(np.array(losses, dtype=np.float64), costs, {"cost": budget}, **options)


def _huge(seed):
    rng = np.random.default_rng(seed)
    losses = 10.0 ** rng.uniform(-12, 6, (7, 4))
    costs = np.sort(10.0 ** rng.uniform(-3, 9, (7, 4)), axis=1)
    problem = problem_of(-np.sort(-losses, axis=1), {"cost": costs}, {})
    return with_budgets(problem, ["cost=30%"])


def _mixed():
    rng = np.random.default_rng(5)
    problem = problem_of(rng.normal(size=(6, 4)), {"cost": rng.uniform(1, 5, (6, 4))}, {})
    return with_budgets(problem, ["cost=40%"])


def _opposed():
    """Two costs that pull apart: the cheapest of neither is within budget."""
    a = np.array([[1.0, 5.0, 3.0]] * 4)
    losses = np.array([[3.0, 2.0, 1.5]] * 4) * np.arange(1, 5)[:, None]
    return problem_of(losses, {"a": a, "b": 6.0 - a}, {"a": 12.0, "b": 12.0})


def _one_binds():
    """Two budgets, of which one even the dearest allocation meets."""
    problem = random_problem(4, budgets=2)
    most = problem.range("cost1")[1]
    return with_budgets(problem, {"cost0": problem.budgets["cost0"], "cost1": most})


def pisinger(kind, *, seed, layers, choices, most=100, percent=50):
    """One of the classes of Pisinger (1995), section 6, as losses (negative profits)."""
    rng = np.random.default_rng(seed)
    shape = (layers, choices)
    match kind:
        case "uncorrelated":
            cost, profit = rng.integers(1, most + 1, shape), rng.integers(1, most + 1, shape)
        case "weakly_correlated":
            cost = rng.integers(1, most + 1, shape)
            profit = np.maximum(cost + rng.integers(-10, 11, shape), 1)
        case "strongly_correlated":
            cost = np.cumsum(rng.integers(1, most // choices + 1, shape), axis=1)
            profit = cost + 10 * np.arange(1, choices + 1)
        case "subset_sum":
            cost = profit = rng.integers(1, most + 1, shape)
        case "zig_zag":
            cost = np.sort(rng.integers(1, most + 1, shape), axis=1)
            profit = np.sort(rng.integers(1, most + 1, shape), axis=1)
    problem = problem_of(-profit.astype(float), {"cost": cost.astype(float)}, {})
    return with_budgets(problem, [f"cost={percent}%"])


PISINGER = (
    "uncorrelated",
    "weakly_correlated",
    "strongly_correlated",
    "subset_sum",
    "zig_zag",
)


WEIGHTS = np.outer([7, 11, 13, 17, 19], [0, 1])

SHORT = {
    **{f"random{seed}": random_problem(seed) for seed in range(4)},
    **{f"integer{seed}": random_problem(seed, integer=True) for seed in range(3)},
    **{f"two_budgets{seed}": random_problem(seed, budgets=2) for seed in range(3)},
    "three_budgets": random_problem(9, budgets=3, fraction=0.3),
    "tied": random_problem(7, layers=8, ties=[[0, 3], [1, 2, 5]]),
    "tight": random_problem(8, fraction=0.0),
    "loose": random_problem(8, fraction=1.0),
    "single_layer": random_problem(1, layers=1),
    "one_choice": random_problem(1, choices=1),
    "no_budget": random_problem(1, budgets=0),
    "degenerate": _plain(
        [[2, 1, 1, 0], [2, 2, 1, 1]] * 3, [[1, 2, 2, 3], [1, 1, 2, 2]] * 3, 11.0
    ),
    "equal_layers": _plain([[4, 2, 1]] * 6, [[1, 2, 4]] * 6, 13.0),
    "exactly_met": _plain([[4, 2, 1]] * 3, [[0.1, 0.2, 0.3]] * 3, 0.1 + 0.2 + 0.3),
    "subset_sum": _plain(-WEIGHTS, WEIGHTS, 33.0),
    "zero_losses": _plain(np.zeros((3, 3)), np.outer([1, 2, 3], [1, 2, 3]), 9.0),
    "negative_losses": _plain(
        -np.outer([1, 2, 3, 4], [1, 4, 5]), np.outer([2, 1, 3, 2], [1, 2, 4]), 20.0
    ),
    "mixed_signs": _mixed(),
    "forbidden": _plain(
        [[9, 4, 1], [8, 3, 1], [7, 2, 1]],
        [[1, 2, 3]] * 3,
        6.0,
        allowed=np.array([[1, 0, 1], [0, 1, 1], [1, 1, 0]], dtype=bool),
    ),
    "constants": _plain([[9, 4, 1]] * 3, [[1, 2, 3]] * 3, 106.0, constants={"cost": 100.0}),
    "opposed_costs": _opposed(),
    **{kind: pisinger(kind, seed=0, layers=6, choices=4) for kind in PISINGER},
    "one_binds": _one_binds(),
    "many_choices": random_problem(3, layers=3, choices=16),
    "common_divisor": _plain([[9, 4, 1]] * 4, [[60, 90, 120]] * 4, 365.0),
    **{f"huge_range{seed}": _huge(seed) for seed in range(3)},
}


FORBIDDEN = np.array([[1, 0, 1], [1, 1, 1], [0, 0, 1], [1, 1, 0], [1, 1, 1]], dtype=bool)
QUADRATIC = {
    **{f"psd{seed}": quadratic_problem(seed) for seed in range(4)},
    **{f"indefinite{seed}": quadratic_problem(seed, "indefinite") for seed in range(4)},
    "four_choices": quadratic_problem(5, "indefinite", layers=5, choices=4),
    "two_budgets": quadratic_problem(6, budgets=2),
    "two_budgets_indefinite": quadratic_problem(7, "indefinite", budgets=2, fraction=0.2),
    "tied": quadratic_problem(8, "indefinite", layers=8, ties=[[0, 3], [1, 2, 5]]),
    "forbidden": quadratic_problem(9, "indefinite", layers=5, allowed=FORBIDDEN),
    "tight": quadratic_problem(10, "indefinite", fraction=0.0),
    "loose": quadratic_problem(11, "indefinite", fraction=1.0),
    "no_budget": quadratic_problem(12, "indefinite", budgets=0),
    "single_layer": quadratic_problem(13, layers=1),
    "one_choice": quadratic_problem(14, choices=1),
}


def hawq_v3():
    """The public numbers of HAWQ-V3's ResNet-18."""
    folder = pathlib.Path(__file__).parents[2] / "experiments" / "published"
    return json.loads((folder / "hawq_v3_resnet18.json").read_text(encoding="utf-8"))


def published():
    """The nine HAWQ-V3 instances of ResNet-18 with their published assignments."""
    data = hawq_v3()
    choices = [Choice(bits, bits) for bits in data["bits"]]
    for instance in data["instances"]:
        name = instance["constraint"]
        problem = problem_of(
            np.array(data["losses"]),
            {name: np.array(data["costs"][name])},
            {name: instance["budget"]},
            layers=data["layers"],
            choices=choices,
            ties=data["ties"],
        )
        assignment = {
            layer: Choice(bits, bits)
            for layer, bits in zip(data["layers"], instance["published"], strict=True)
        }
        yield problem, assignment, instance["optimum"]


def loss_of(problem, columns):
    """Own losses and every pair's cross term, straight from the definition."""
    terms = [problem.losses[i, c] for i, c in enumerate(columns)]
    if problem.interactions is not None:
        for i, j in itertools.combinations(range(len(columns)), 2):
            terms.append(problem.interactions[i, columns[i], j, columns[j]])
    return math.fsum(terms)


def optimum(problem):
    """The least loss by plain enumeration of the layers, straight from the definition."""
    best = math.inf
    members = [np.flatnonzero(problem.groups == g) for g in range(problem.groups.max() + 1)]
    for picks in itertools.product(range(len(problem.choices)), repeat=len(members)):
        columns = np.array(picks)[problem.groups]
        rows = np.arange(len(columns))
        if not problem.allowed[rows, columns].all():
            continue
        within = []
        for name, limit in problem.budgets.items():
            cost = problem.constants.get(name, 0.0) + math.fsum(
                problem.costs[name][rows, columns]
            )
            whole = (problem.costs[name] == np.floor(problem.costs[name])).all()
            within.append(cost <= limit * (1.0 if whole else 1 + 1e-12))
        if all(within):
            best = min(best, loss_of(problem, columns))
    return best
