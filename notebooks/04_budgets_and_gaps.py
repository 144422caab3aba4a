# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# # What does a proof add?
#
# The exact optimum, the paper's greedy search and uniform bits at every budget. A problem is a
# plain table, so this notebook needs no network and no data.

# %%
import matplotlib.pyplot as plt
import numpy as np

import jmpq
from jmpq.problem import problem_of, with_budgets
from jmpq.solvers import pareto_hull

# %% [markdown]
# Sixteen layers of different size. Losses fall by about four with every bit, and layers differ
# by orders of magnitude.

# %%
random = np.random.default_rng(0)
bits = np.array([2, 3, 4, 5, 6, 8])
parameters = random.integers(500, 8000, (16, 1))
scale = 10.0 ** random.uniform(-3, 0, (16, 1))
problem = problem_of(
    scale * 4.0**-bits * random.uniform(0.5, 2, (16, 6)),
    {"size_bytes": np.ceil(parameters * bits / 8)},
    {},
    choices=jmpq.choice_grid(bits.tolist()),
)

# %% [markdown]
# Another budget is another call: nothing is measured again.

# %%
budgets = [f"size_bytes={percent}%" for percent in range(5, 100, 5)]
exact = [jmpq.solve(with_budgets(problem, [budget])) for budget in budgets]
greedy = [jmpq.Greedy()(with_budgets(problem, [budget])) for budget in budgets]
assert all(solution.status == "optimal" for solution in exact)
hull = pareto_hull(problem, "size_bytes")
print(f"{len(hull.costs)} allocations are optimal for their own size")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
sizes = np.array([solution.costs["size_bytes"] / 1e3 for solution in exact])
uniform = [problem.evaluate(problem.uniform(choice)) for choice in problem.choices]
left.semilogy(sizes, [s.loss for s in exact], "o-", label="exact, proven")
left.semilogy([c["size_bytes"] / 1e3 for _, c in uniform], [x for x, _ in uniform], "s--",
              label="uniform bits")  # fmt: skip
left.set(xlabel="size (kB)", ylabel="predicted loss (nats)")
left.legend()
above = [100 * (g.loss / e.loss - 1) for g, e in zip(greedy, exact, strict=True)]
right.bar(sizes, above, width=0.6)
right.set(xlabel="size (kB)", ylabel="greedy above the optimum (%)")
figure
