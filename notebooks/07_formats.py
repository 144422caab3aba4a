# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# # Which number format is best at equal size?
#
# A format's block scales take space too. This notebook compares formats at their effective bits
# per weight, scales included, and lets the solver mix them.

# %%
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jmpq
from jmpq.data.batches import batches
from jmpq.formats import Scheme
from jmpq.training.loop import TrainConfig
from jmpq.training.train import train
from jmpq.zoo.architectures import build_module

data = jmpq.load_dataset("digits")
module = build_module("digits_resnet")
variables = train(module, data.train, TrainConfig(epochs=3))
network = jmpq.Network.from_linen(module, variables, jnp.zeros((1, 8, 8, 1)))
some, others = jmpq.calibration_split(data, "heldout", examples=128)
calibration = [(b.inputs, b.labels) for b in batches(some, 128)]
evaluation = [(b.inputs, b.labels) for b in batches(others, 256)][:1]

# %% [markdown]
# A format says how one value is coded. A scheme adds the scales: one per output channel, per
# group of 32 values (`_g32`), a power of two per 32 (`mx`), or an fp8 number per 16 (`nv`).

# %%
names = ["int2", "int3", "int3_g32", "int4", "int4_g32", "fp4_e2m1", "mxfp4", "nvfp4", "int6",
         "fp6_e2m3", "mxfp6_e2m3"]  # fmt: skip
quantizers = jmpq.calibrate_quantizers(network, names)
spec, choices = jmpq.KernelSpec(), jmpq.choice_grid(names)
moves = jmpq.MoveNetwork(network=network, quantizers=quantizers)
table = jmpq.analyse(moves, jmpq.GaussNewton(), calibration, choices)
problem = jmpq.build_problem(network, table, overhead=spec)
weights = sum(layer.parameters for layer in network.layers)
rest = problem.constants["size_bytes"]


def effective_bits(size_bytes):
    """Bits per weight, scales included, other parameters not."""
    return 8 * (size_bytes - rest) / weights


# %% [markdown]
# Every scheme in all layers, and the best mix of schemes at five sizes.

# %%
uniform = {
    choice.weights.name: jmpq.Allocation.from_columns(
        problem.layers, problem.choices, problem.uniform(choice)
    )
    for choice in choices
}
sizes = {name: problem.evaluate(a)[1]["size_bytes"] for name, a in uniform.items()}
limits = [sizes[name] for name in ("int3", "int4", "nvfp4", "fp6_e2m3")]
mixed = [
    jmpq.solve(
        jmpq.build_problem(network, table, overhead=spec, budgets=[f"size_bytes={int(limit)}"])
    )
    for limit in limits
]
allocations = [*uniform.values(), *(solution.allocation for solution in mixed)]
measured = [o.kl for o in jmpq.Evaluator(network, quantizers, evaluation)(allocations)]
chosen = {scheme.weights.name for solution in mixed for scheme in solution.allocation.values()}
print("schemes in the mixes:", ", ".join(sorted(chosen)))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
for row, name in enumerate(["int4", "fp4_e2m1", "fp6_e2m3"]):
    form = Scheme.of(name).format
    if Scheme.of(name).is_float:
        exponents = np.arange(form.e_min, form.e_max + 1)
        parts = np.arange(2**form.mantissa_bits) / 2**form.mantissa_bits
        normal = (2.0 ** exponents[:, None] * (1 + parts)).ravel()
        line = np.concatenate([2.0**form.e_min * parts, normal])
        line = line[line <= form.largest] / form.largest
    else:
        line = np.arange(2 ** (form.bits - 1)) / (2 ** (form.bits - 1) - 1)
    left.plot(line[line <= 1], np.full((line <= 1).sum(), row), "|", ms=14)
left.set(yticks=range(3), yticklabels=["int4", "fp4_e2m1", "fp6_e2m3"], ylim=(-0.6, 2.6))
left.set(xlabel="positive values, relative to the largest")
for name, kl in zip(uniform, measured, strict=False):
    right.semilogy(effective_bits(sizes[name]), kl, "o")
    place, align = ((-5, -2), "right") if name.startswith("fp") else ((5, -2), "left")
    right.annotate(name, (effective_bits(sizes[name]), kl), fontsize=7, xytext=place, ha=align,
                   textcoords="offset points")  # fmt: skip
bits = [effective_bits(solution.costs["size_bytes"]) for solution in mixed]
right.semilogy(bits, measured[len(uniform) :], "k*--", label="mix by the solver")
right.set(xlabel="bits per weight, scales included", ylabel="measured KL (nats per example)")
right.legend()
figure.tight_layout()
figure
