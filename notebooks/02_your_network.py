# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# # How do I bring my own network?
#
# A small NNX network that jmpq has never seen is trained, analysed and quantized. Only its call
# and a few hundred examples are needed.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import jmpq

data = jmpq.load_dataset("digits")
images, labels = (jnp.asarray(x) for x in (data.train.inputs / 16.0, data.train.labels))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(8, 16, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(x))))
        return self.head(x.reshape(len(x), -1))


model = Net(nnx.Rngs(0))

# %% [markdown]
# Training is ordinary JAX: jmpq takes no part in it.

# %%
graph, params = nnx.split(model)
optimizer = optax.adam(0.01)


def loss(params):
    logits = nnx.merge(graph, params)(images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@jax.jit
def step(carry, _):
    params, state = carry
    updates, state = optimizer.update(jax.grad(loss)(params), state)
    return (optax.apply_updates(params, updates), state), None


(params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), None, 60)
model = nnx.merge(graph, params)

# %% [markdown]
# One trace finds the layers. Check that they are the ones you expect.

# %%
network = jmpq.Network.from_nnx(model, jnp.zeros((1, 8, 8, 1)))
print(network)

# %% [markdown]
# Half of the held-out images calibrate, the other half measure.

# %%
inputs, targets = (np.asarray(x) for x in (data.heldout.inputs / 16.0, data.heldout.labels))
calibration = [(inputs[:256], targets[:256])]
evaluation = [(inputs[256:], targets[256:])]
bits, spec = [2, 3, 4, 6, 8], jmpq.KernelSpec()
quantizers = jmpq.calibrate_quantizers(network, bits, weights=spec)
moves = jmpq.MoveNetwork(network=network, quantizers=quantizers)
table = jmpq.analyse(moves, jmpq.GaussNewton(), calibration, jmpq.choice_grid(bits))
print(table)

# %% [markdown]
# 40 % of the way from the smallest to the largest network: which layer gets how many bits?

# %%
problem = jmpq.build_problem(network, table, overhead=spec, budgets=["size_bytes=40%"])
solution = jmpq.solve(problem)
uniform = problem.allocation(problem.uniform(jmpq.choice_grid([4])[0]))
ours, theirs = jmpq.Evaluator(network, quantizers, evaluation)([solution.allocation, uniform])
print(f"mixed:     top-1 {100 * ours.top1:.1f} %, KL {ours.kl:.3f} ± {ours.kl_sem:.3f}")
print(f"uniform 4: top-1 {100 * theirs.top1:.1f} %, KL {theirs.kl:.3f} ± {theirs.kl_sem:.3f}")

# %%
figure, axes = plt.subplots(figsize=(5, 3))
layers = list(solution.allocation)
axes.bar(layers, [solution.allocation[layer].w_bits for layer in layers])
axes.axhline(4, ls="--", color="k", label="uniform 4 bits, a little smaller")
axes.set(ylabel="weight bits")
axes.legend()
figure
