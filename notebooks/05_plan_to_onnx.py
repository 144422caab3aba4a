# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# # How does a plan become a file that runs elsewhere?
#
# The integer codes that were measured are written as a packed file and as ONNX, and onnxruntime
# runs them.

# %%
import pathlib
import tempfile

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jmpq
from jmpq.data.batches import batches
from jmpq.export.check import onnx_runner
from jmpq.export.codes import take_codes
from jmpq.export.onnx_graph import save_onnx
from jmpq.export.packed import save_packed
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
((inputs, labels),) = evaluation

# %% [markdown]
# An allocation at the size of uniform 4 bits.

# %%
bits, spec = [2, 3, 4, 6, 8], jmpq.KernelSpec()
quantizers = jmpq.calibrate_quantizers(network, bits, weights=spec)
moves = jmpq.MoveNetwork(network=network, quantizers=quantizers)
table = jmpq.analyse(moves, jmpq.GaussNewton(), calibration, jmpq.choice_grid(bits))
problem = jmpq.build_problem(network, table, overhead=spec, budgets=["size_bytes=W4"])
solution = jmpq.solve(problem)
(outcome,) = jmpq.Evaluator(network, quantizers, evaluation)([solution.allocation])
print(f"measured: top-1 {100 * outcome.top1:.2f} %")

# %% [markdown]
# The packed file holds the codes at their bits: as many bytes as `size_bytes` says.

# %%
folder = pathlib.Path(tempfile.mkdtemp())
coded = take_codes(network, quantizers, solution.allocation)
payload = save_packed(folder / "net.safetensors", coded, architecture="digits_resnet")
assert payload == solution.costs["size_bytes"]
packed = jmpq.load_packed(folder / "net.safetensors").logits(inputs)
print(f"packed:   top-1 {100 * np.mean(packed.argmax(1) == labels):.2f} %")

# %% [markdown]
# ONNX runs in a program that knows nothing of jmpq.

# %%
save_onnx(folder / "net.onnx", coded)
logits = onnx_runner(folder / "net.onnx")(inputs)
print(f"ONNX:     top-1 {100 * np.mean(logits.argmax(1) == labels):.2f} %")

# %%
figure, axes = plt.subplots(figsize=(5, 2.6))
floats = 4 * (sum(layer.parameters for layer in network.layers) + network.other_parameters)
onnx_bytes = (folder / "net.onnx").stat().st_size
names = ["float32", "packed, payload", "ONNX file"]
axes.barh(names, [floats / 1e3, payload / 1e3, onnx_bytes / 1e3])
axes.set(xlabel="kB")
figure
