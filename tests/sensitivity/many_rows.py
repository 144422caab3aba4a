"""Composed predictions of many allocations at once beside NumPy, compiled as users compile."""

import jax.numpy as jnp
import numpy as np

from jmpq.sensitivity.logits.composed import _increases
from jmpq.sensitivity.logits.superposed import SAFE_ROWS, in_chunks
from jmpq.training.losses import cross_entropy

ALLOCATIONS, EXAMPLES, CLASSES, STEPS, OPTIONS = 256, 256, 10, 20, 4


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def main() -> None:
    """Print the largest error of the mean KL divergence of an allocation, nats."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    z = draw(EXAMPLES, CLASSES)
    maps = 0.05 * draw(STEPS, OPTIONS, CLASSES, CLASSES)
    rests = 0.05 * draw(STEPS, OPTIONS, EXAMPLES, CLASSES)
    taken = rng.integers(0, OPTIONS, (ALLOCATIONS, STEPS)).astype(np.int32)
    arrays = [jnp.asarray(x) for x in (maps, rests, z, np.zeros(EXAMPLES, np.int32))]
    found = in_chunks(
        lambda rows: _increases("kl", cross_entropy, jnp.asarray(rows), *arrays),
        taken,
        SAFE_ROWS // EXAMPLES,
    )
    q = np.repeat(z[None].astype(np.float64), ALLOCATIONS, axis=0)
    for s in range(STEPS):
        q = q + q @ maps[s][taken[:, s]] + rests[s][taken[:, s]]
    p = log_softmax(z.astype(np.float64))
    want = (np.exp(p) * (p - log_softmax(q))).sum(axis=-1)
    print(float(np.abs(found - want).max()))


if __name__ == "__main__":
    main()
