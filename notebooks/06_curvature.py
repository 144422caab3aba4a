# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# # How do Hessian, Gauss-Newton and Fisher differ?
#
# A second-order sensitivity is ½ δᵀMδ. This notebook computes M exactly for a network of 334
# parameters, in four ways, and compares each with the measured loss.

# %%
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import jmpq
from jmpq.training.losses import cross_entropy

data = jmpq.load_dataset("digits")
images, labels = (jnp.asarray(x[:512]) for x in (data.train.inputs, data.train.labels))
images = images.reshape(512, 4, 2, 4, 2).mean((2, 4)).reshape(512, 16) / 16  # 4 x 4 pixels


class MLP(nn.Module):
    """16 inputs, 12 hidden units, 10 classes."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.tanh(nn.Dense(12)(x)))


module = MLP()
first, unravel = ravel_pytree(module.init(jax.random.key(0), images))


def logits(w):
    return module.apply(unravel(w), images)


def losses(w):
    """Loss of every example, nats."""
    return jax.vmap(cross_entropy)(logits(w), labels)


def loss(w):
    return losses(w).mean()


# %% [markdown]
# Train until the loss is small but not zero, as in a real network.

# %%
optimizer = optax.adam(0.01)


def step(carry, _):
    w, state = carry
    updates, state = optimizer.update(jax.grad(loss)(w), state)
    return (optax.apply_updates(w, updates), state), None


(w, _), _ = jax.lax.scan(step, (first, optimizer.init(first)), None, 200)
print(f"{w.size} parameters, loss {loss(w):.3f} nats")

# %% [markdown]
# The four matrices, mean over examples:
#
# - **Hessian** ∂²loss/∂w²;
# - **Gauss-Newton** JᵀH_zJ, with J = ∂logits/∂w and H_z = ∂²loss/∂logits²;
# - **Fisher**: gradient outer products, labels weighted by the network's own probabilities;
# - **empirical Fisher**: gradient outer products with the true labels.

# %%
jacobian = jax.jacobian(logits)(w)  # [examples, classes, parameters]
p = jax.nn.softmax(logits(w))
curvature = jax.vmap(jnp.diag)(p) - jnp.einsum("nc,nd->ncd", p, p)  # ∂²loss/∂logits²
by_label = p[:, None] - jnp.eye(10)[None]  # ∂loss/∂logits if the label were l: [n, l, c]
per_label = jnp.einsum("nlc,ncp->nlp", by_label, jacobian)  # gradients by label
gradients = jax.jacobian(losses)(w)  # of the true labels
count = len(images)
matrices = {
    "Hessian": jax.hessian(loss)(w),
    "Gauss-Newton": jnp.einsum("ncp,ncd,ndq->pq", jacobian, curvature, jacobian) / count,
    "Fisher": jnp.einsum("nlp,nl,nlq->pq", per_label, p, per_label) / count,
    "empirical Fisher": gradients.T @ gradients / count,
}

# %% [markdown]
# For cross-entropy the Fisher **is** the Gauss-Newton matrix. jmpq never builds either: it
# multiplies by them.

# %%
size = np.abs(matrices["Gauss-Newton"]).max()
assert np.abs(matrices["Fisher"] - matrices["Gauss-Newton"]).max() < 1e-4 * size
direction = jax.random.normal(jax.random.key(1), w.shape)
products = {
    "Hessian": jmpq.hessian(loss)(w, direction),
    "Gauss-Newton": jmpq.ggn_product(logits, cross_entropy, labels, w, direction),
}
for name, product in products.items():
    error = np.linalg.norm(product - matrices[name] @ direction) / np.linalg.norm(product)
    print(f"{name}: relative error of the product {error:.0e}")
    assert error < 1e-3

# %% [markdown]
# Three comparisons: eigenvalues; the loss along the Hessian's top eigenvector; and the loss
# increase of random rounding errors of 2 to 6 bits against ½ δᵀMδ.

# %%
shown = {name: matrices[name] for name in ("Hessian", "Gauss-Newton", "empirical Fisher")}
values, vectors = np.linalg.eigh(shown["Hessian"])
top = jnp.asarray(vectors[:, -1])
random = np.random.default_rng(0)
deltas = []
for bits in (2, 3, 4, 5, 6):
    scale = float(jnp.abs(w).max()) / (2 ** (bits - 1) - 1)
    deltas += [
        jnp.asarray(random.uniform(-0.5, 0.5, w.size) * scale, w.dtype) for _ in range(8)
    ]
measured = np.array([loss(w + delta) - loss(w) for delta in deltas])

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.4))
steps = jnp.linspace(-0.5, 0.5, 41)
middle.plot(steps, [loss(w + t * top) - loss(w) for t in steps], "k", label="measured")
for (name, matrix), mark in zip(shown.items(), "os^", strict=True):
    spectrum = np.linalg.eigvalsh(matrix)[::-1]
    left.semilogy(np.arange(1, 101), np.maximum(spectrum[:100], 1e-9), mark, ms=3, label=name)
    middle.plot(steps, 0.5 * steps**2 * (top @ matrix @ top), "--", label=f"½δᵀMδ, {name}")
    predicted = [0.5 * float(delta @ matrix @ delta) for delta in deltas]
    right.loglog(predicted, np.maximum(measured, 1e-6), mark, ms=4, label=name)
print(f"negative eigenvalues of the Hessian: {(values < -1e-5).sum()} of {w.size}")
ends = [1e-5, 10]
right.plot(ends, ends, "k", lw=0.8)
left.set(xlabel="rank", ylabel="eigenvalue", ylim=(1e-7, None))
middle.set(
    xlabel="step along the top eigenvector", ylabel="loss increase (nats)", ylim=(-0.02, None)
)
right.set(xlabel="½δᵀMδ (nats)", ylabel="measured loss increase (nats)")
left.legend()
middle.legend(fontsize=7)
right.legend()
figure.tight_layout()
figure
