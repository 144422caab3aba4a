"""Problems of real networks, from tables that the experiments here have committed.

- ResNet-20 on CIFAR-10, weights and activations, Gauss-Newton sums (`resnet20_cifar10`): one
  budget (size), two (size and bit operations).
- The same tables scaled to many layers under three and four budgets
  (`bench.several_budgets.instances.scaled`).
- ResNet-20, -32 and -44, weights, whole Gauss-Newton matrices (`iqp_matrices`): a size budget
  with cross-layer terms, and without.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator

from experiments.bench.iqp import network_problem
from experiments.bench.several_budgets.instances import scaled
from experiments.common.arguments import RESULTS
from jmpq.problem import Instance, Known, Problem

MATRICES = ("resnet20@25%", "resnet20@50%", "resnet32@50%", "resnet44@50%")
# Layers, candidates, budgets and seed of `scaled`.
TABLES = ((20, 12, 1, 0), (20, 12, 2, 0), (100, 12, 4, 0), (1000, 12, 4, 0))


def networks(names: tuple[str, ...] = ()) -> Iterator[Instance]:
    """The problems of networks, those of some names only where these are given.

    What is known of them is what the leaderboard has recorded.
    """
    recorded = known()
    for name, make in problems().items():
        if not names or name in names:
            yield Instance(name=name, problem=make(), known=recorded.get(name))


def known() -> dict[str, Known]:
    """The best loss and bound of every problem of the committed leaderboard."""
    path = RESULTS / "leaderboard.json"
    found: dict[str, Known] = {}
    for row in json.loads(path.read_text())["rows"] if path.is_file() else ():
        if row["loss"] is None:
            continue
        best = found.get(row["problem"])
        if best is None or row["loss"] < best.loss:
            best = Known(loss=row["loss"], source=f"leaderboard: {row['solver']}")
        bounds = [best.bound, -math.inf if row["bound"] is None else row["bound"]]
        if (old := found.get(row["problem"])) is not None:
            bounds.append(old.bound)
        # Solvers prove up to their tolerances, which the best loss need not respect.
        found[row["problem"]] = dataclasses.replace(best, bound=min(max(bounds), best.loss))
    return found


def problems() -> dict[str, Callable[[], Problem]]:
    """Every problem by name, made when it is asked for."""
    made: dict[str, Callable[[], Problem]] = {}
    for key in TABLES:
        layers, choices, budgets, seed = key
        name = f"resnet20_table_{layers}x{choices}x{budgets}_{seed}"
        made[name] = lambda key=key: scaled(*key)
    for matrix in MATRICES:
        network, _, size = matrix.partition("@")
        name = f"{network}_{size.rstrip('%')}"
        made[f"{name}_full"] = lambda n=network, s=size: network_problem(n, s)
        made[name] = lambda n=network, s=size: network_problem(n, s).separable()
    return made
