"""Rounding up or down, learned for the least error in a layer's output (AdaRound)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jmpq.quantizers.gptq import DAMPING, damped

STEPS, LEARNING_RATE, PENALTY = 1000, 0.03, 10.0
STRETCH = -0.1, 1.1  # the sigmoid is stretched to these and cut at 0 and 1, as in AdaRound
WARM_UP, SHARPNESS = 0.2, (20.0, 2.0)  # part of the steps without penalty; exponent after it


def learn_rounding(
    matrix: Float[np.ndarray, "rows columns"],
    hessian: Float[np.ndarray, "columns columns"],
    scale: Float[np.ndarray, "bits rows #columns"],
    zero_point: Float[np.ndarray, "bits rows #columns"],
    least: Float[np.ndarray, "bits 1 1"],
    most: Float[np.ndarray, "bits 1 1"],
    *,
    damping: float = DAMPING,
    steps: int = STEPS,
) -> Float[np.ndarray, "bits rows columns"]:
    """Integer codes with a small output error tr(ΔHΔᵀ), every weight rounded up or down.

    Each weight gets a soft choice between its two codes, moved by Adam down the output error
    and, after a warm-up, pushed to one of them by a penalty that sharpens. The error of a row
    is taken relative to that of rounding to nearest, so that one penalty suits all layers. A
    row that ends worse than rounded to nearest is rounded to nearest.

    Args:
        matrix: Kernel W, as in `round_by_hessian`; so are the other arrays.
        hessian: H = XᵀX, X the input rows: the squared output error needs no examples.
        scale: Scale of every element.
        zero_point: Zero point of every element.
        least: Least code.
        most: Greatest code.
        damping: Addition to the diagonal of H, as a multiple of its mean.
        steps: Steps of Adam.

    References:
        Nagel, Amjad, van Baalen, Louizos, Blankevoort (2020), Up or Down? Adaptive rounding
        for post-training quantization: layer by layer, without the activation function.
    """
    hessian = damped(hessian, damping)
    exact = matrix / scale + zero_point
    plain = np.clip(np.round(exact), least, most)

    def error(codes: np.ndarray) -> np.ndarray:
        delta = scale * (codes - zero_point) - matrix
        return np.einsum("brc,brc->br", delta @ hessian, delta)

    reference = error(plain)
    target = np.where(reference > 0, reference, 1.0)
    arrays = (matrix, hessian, scale, zero_point, least, most, exact, target)
    with jax.numpy_dtype_promotion("standard"):  # as optax expects
        up = _learn(*(jnp.asarray(x, float) for x in arrays), steps)
    codes = np.clip(np.floor(exact) + np.asarray(up, np.float64), least, most)
    better = error(codes) < reference
    return np.where(better[..., None], codes, plain)


@functools.partial(jax.jit, static_argnums=8)
def _learn(
    matrix: Float[Array, "rows columns"],
    hessian: Float[Array, "columns columns"],
    scale: Float[Array, "bits rows #columns"],
    zero_point: Float[Array, "bits rows #columns"],
    least: Float[Array, "bits 1 1"],
    most: Float[Array, "bits 1 1"],
    exact: Float[Array, "bits rows columns"],
    target: Float[Array, "bits rows"],
    steps: int,
) -> Float[Array, "bits rows columns"]:
    """Whether each weight is rounded up: 1, or 0."""
    low, high = STRETCH
    down = jnp.floor(exact)

    def choice(v: Array) -> Array:
        return jnp.clip(low + (high - low) * jax.nn.sigmoid(v), 0, 1)

    def objective(v: Array, sharpness: Array, penalty: Array) -> Array:
        codes = jnp.clip(down + choice(v), least, most)
        delta = scale * (codes - zero_point) - matrix[None]
        error = (jnp.einsum("brc,cd->brd", delta, hessian) * delta).sum(-1)
        soft = 1 - jnp.abs(2 * choice(v) - 1) ** sharpness
        return matrix.shape[1] * (error / target).sum() + penalty * soft.sum()

    optimizer = optax.adam(LEARNING_RATE)
    start = jnp.clip((exact - down - low) / (high - low), 0.01, 0.99)
    v = jnp.log(start / (1 - start))

    def step(carry: tuple, t: Array) -> tuple:
        v, state = carry
        progress = jnp.clip((t / steps - WARM_UP) / (1 - WARM_UP), 0, 1)
        sharpness = (
            SHARPNESS[1] + (SHARPNESS[0] - SHARPNESS[1]) * (1 + jnp.cos(jnp.pi * progress)) / 2
        )
        penalty = jnp.where(t < WARM_UP * steps, 0.0, PENALTY)
        gradient = jax.grad(objective)(v, sharpness, penalty)
        update, state = optimizer.update(gradient, state)
        return (optax.apply_updates(v, update), state), None

    (v, _), _ = jax.lax.scan(step, (v, optimizer.init(v)), jnp.arange(steps, dtype=v.dtype))
    return (choice(v) >= 0.5).astype(v.dtype)
