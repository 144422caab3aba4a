# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# # Which sensitivity predicts best?
#
# Four predictions of the same random allocations, beside the measured KL divergence. The
# yardstick is the rank correlation: does a prediction order allocations as measurement does?

# %%
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.stats

import jmpq
from jmpq.data.batches import batches
from jmpq.sensitivity.logits.measure import measure_superposed
from jmpq.sensitivity.metrics.squared_error import SquaredError
from jmpq.sensitivity.metrics.taylor import EmpiricalFisher
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
# All metrics fill the same table: layers × choices.

# %%
bits = [2, 3, 4, 8]
choices = jmpq.choice_grid(bits)
quantizers = jmpq.calibrate_quantizers(network, bits)
moves = jmpq.MoveNetwork(network=network, quantizers=quantizers)
metrics = {
    "squared error": SquaredError(),
    "empirical Fisher": EmpiricalFisher(),
    "Gauss-Newton": jmpq.GaussNewton(),
}
predictors = {
    name: jmpq.analyse(moves, metric, calibration, choices) for name, metric in metrics.items()
}
superposed = measure_superposed(moves, calibration, choices)
predictors["composed logits"] = jmpq.Composed(superposed=superposed)

# %% [markdown]
# Random allocations, measured on other images than those that calibrated.

# %%
random = np.random.default_rng(0)
names = [layer.name for layer in network.layers]
drawn = [
    jmpq.Allocation.from_columns(names, choices, random.integers(0, len(choices), len(names)))
    for _ in range(40)
]
measured = np.array([o.kl for o in jmpq.Evaluator(network, quantizers, evaluation)(drawn)])

# %%
figure, panels = plt.subplots(1, 4, figsize=(11, 3), sharey=True)
for axes, (name, predictor) in zip(panels, predictors.items(), strict=True):
    predicted = np.asarray(predictor.predict(drawn))
    rho = scipy.stats.spearmanr(predicted, measured).statistic
    axes.loglog(predicted, measured, "o", ms=3)
    axes.set(title=f"{name}\nrank correlation {rho:.2f}", xlabel="predicted")
panels[0].set_ylabel("measured KL (nats per example)")
figure
