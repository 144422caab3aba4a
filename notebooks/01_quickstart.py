# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# # How many bits does each layer need?
#
# A small residual network on handwritten digits is given 2 to 8 bits per layer, first by the
# curvature of its loss, then by an integer program, and the answer is measured.

# %%
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jmpq
from jmpq.data.batches import batches
from jmpq.problem import first_and_last, with_budgets
from jmpq.training.loop import TrainConfig
from jmpq.training.train import train
from jmpq.zoo.architectures import build_module

data = jmpq.load_dataset("digits")
module = build_module("digits_resnet")
variables = train(module, data.train, TrainConfig(epochs=5))

# %% [markdown]
# The network is used as it is: one trace of it finds its layers.

# %%
network = jmpq.Network.from_linen(module, variables, jnp.zeros((1, 8, 8, 1)))
[(layer.name, layer.parameters, layer.macs) for layer in network.layers]

# %% [markdown]
# Calibration examples are set aside from the held-out data; accuracy is measured on the rest.
# The Gauss-Newton matrix of all (layer, bits) perturbations is the Hessian of the KL
# divergence that quantization causes.

# %%
calibration, evaluation = jmpq.calibration_split(data, "heldout", examples=128)
examples = [(b.inputs, b.labels) for b in batches(calibration, 64)]
choices = jmpq.choice_grid([2, 3, 4, 6, 8])
spec = jmpq.KernelSpec()  # symmetric, a scale per output channel, least squared error
quantizers = jmpq.calibrate_quantizers(network, [2, 3, 4, 6, 8], weights=spec)
moves = jmpq.MoveNetwork(network=network, quantizers=quantizers)
sensitivity = jmpq.analyse(moves, jmpq.GaussNewton(), examples, choices)
sensitivity.losses.round(5)

# %% [markdown]
# A budget needs no data any more: every point below is one integer program.

# %%
problem = jmpq.build_problem(
    network,
    sensitivity,
    overhead=spec,
    rules=first_and_last([layer.name for layer in network.layers], choices),
)
fractions = np.linspace(0.05, 0.95, 10)
solutions = [
    jmpq.Exact()(with_budgets(problem, [f"size_bytes={100 * f:.3g}%"])) for f in fractions
]
uniform = [problem.allocation(problem.uniform(choice)) for choice in problem.choices]
[(s.status, round(s.gap, 12)) for s in solutions]

# %% [markdown]
# What the allocations really cost, on examples that were used for nothing else.

# %%
evaluate = jmpq.Evaluator(network, quantizers, lambda: batches(evaluation, 256))


def measured(allocations):
    return [outcome.kl for outcome in evaluate(allocations)]


figure, axes = plt.subplots(figsize=(6, 4))
size = [s.costs["size_bytes"] / 1e3 for s in solutions]
axes.plot(size, measured([s.allocation for s in solutions]), "o-", label="exact, Gauss-Newton")
size = [problem.evaluate(a)[1]["size_bytes"] / 1e3 for a in uniform]
axes.plot(size, measured(uniform), "s--", label="uniform")
axes.set(xlabel="size (kB)", ylabel="measured KL (nats per example)", yscale="log")
axes.legend()
figure
