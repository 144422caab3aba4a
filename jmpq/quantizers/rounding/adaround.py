"""Rounding up or down, learned for the least error in a layer's output (AdaRound)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jmpq.quantizers.rounding.code_lines import CodeLines
from jmpq.quantizers.rounding.gptq import DAMPING, damped

STEPS, LEARNING_RATE, PENALTY = 1000, 0.03, 10.0
STRETCH = -0.1, 1.1  # range of the stretched sigmoid, clipped to [0, 1] (AdaRound, eq. (23))
WARM_UP, SHARPNESS = 0.2, (20.0, 2.0)  # share of steps without penalty; exponents after it


def learn_rounding(
    matrix: Float[np.ndarray, "rows columns"],
    hessian: Float[np.ndarray, "columns columns"],
    scale: Float[np.ndarray, "bits rows #columns"],
    zero_point: Float[np.ndarray, "bits rows #columns"],
    lines: CodeLines,
    *,
    damping: float = DAMPING,
    steps: int = STEPS,
) -> Float[np.ndarray, "bits rows columns"]:
    """Codes of small output error tr(ΔHΔᵀ), with every weight rounded up or down.

    Each weight has a soft choice between its two neighbouring codes. Adam minimises the output
    error and, after a warm-up, a sharpening penalty that pushes the choice to one of them. The
    error of a row is divided by that of rounding to nearest, so that one penalty suits all
    layers. A row that ends worse than rounding to nearest is rounded to nearest.

    Args:
        matrix: Kernel W, output features along rows.
        hessian: Matrix H = XᵀX of the input rows X.
        scale: Scale of every element.
        zero_point: Zero point of every element; zero if the grid has none.
        lines: Codes of every scheme.
        damping: Addition to the diagonal of H, as a multiple of its mean.
        steps: Steps of Adam.

    Returns:
        Codes of every scheme: integers, or values of a float format.

    References:
        Nagel, Amjad, van Baalen, Louizos, Blankevoort (2020), Up or Down? Adaptive rounding
        for post-training quantization: layer by layer, without the activation function.
    """
    hessian = damped(hessian, damping)
    ratio = matrix / scale
    exact, step = ratio + zero_point, lines.step(ratio)  # steps of 1 between integers
    plain = lines.clip(np.round(exact / step) * step)

    def error(codes: np.ndarray) -> np.ndarray:
        delta = scale * (codes - zero_point) - matrix
        return np.einsum("brc,brc->br", delta @ hessian, delta)

    reference = error(plain)
    target = np.where(reference > 0, reference, 1.0)
    ends = lines.least, lines.most
    arrays = (matrix, hessian, scale, zero_point, *ends, exact, step, target)
    with jax.numpy_dtype_promotion("standard"):  # as optax expects
        up = _learn(*(jnp.asarray(x, float) for x in arrays), steps)
    codes = lines.clip((np.floor(exact / step) + np.asarray(up, np.float64)) * step)
    better = error(codes) < reference
    return np.where(better[..., None], codes, plain)


@functools.partial(jax.jit, static_argnums=9)
def _learn(
    matrix: Float[Array, "rows columns"],
    hessian: Float[Array, "columns columns"],
    scale: Float[Array, "bits rows #columns"],
    zero_point: Float[Array, "bits rows #columns"],
    least: Float[Array, "bits 1 1"],
    most: Float[Array, "bits 1 1"],
    exact: Float[Array, "bits rows columns"],
    size: Float[Array, "bits rows columns"],
    target: Float[Array, "bits rows"],
    steps: int,
) -> Float[Array, "bits rows columns"]:
    """1 where a weight is rounded up, else 0."""
    low, high = STRETCH
    exact = exact / size
    down = jnp.floor(exact)

    def choice(v: Array) -> Array:
        return jnp.clip(low + (high - low) * jax.nn.sigmoid(v), 0, 1)

    def objective(v: Array, sharpness: Array, penalty: Array) -> Array:
        codes = jnp.clip((down + choice(v)) * size, least, most)
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
