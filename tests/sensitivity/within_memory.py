"""Gauss-Newton of a convolutional network within a limit of memory, as a program.

Prints the limit, the peak of the process while it computed, and what was planned.
"""

import json
import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jmpq
from jmpq.sensitivity.batch_memory import resident_bytes

EXAMPLES = 48


class Depthwise(nn.Module):
    """Convolutions of whole and of single channels, as in MobileNet."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        for _ in range(2):
            x = nn.relu(nn.Conv(32, (3, 3), feature_group_count=32)(x))
            x = nn.relu(nn.Conv(32, (1, 1))(x))
        return nn.Dense(10)(x.mean((1, 2)))


def watch(peaks, done):
    """The most that is resident, by looking every few milliseconds."""
    while not done.wait(0.003):
        peaks[0] = max(peaks[0], resident_bytes())


def main():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(EXAMPLES, 64, 64, 3)).astype(np.float32)
    labels = np.zeros(EXAMPLES, np.int64)  # as NumPy counts; JAX computes with int32
    variables = Depthwise().init(jax.random.key(0), jnp.asarray(images[:1]))
    network = jmpq.Network.from_linen(Depthwise(), variables, images[:1])
    bits, spec = [2, 3, 4, 6, 8], jmpq.KernelSpec(clipping="minmax")
    quantizers = jmpq.calibrate_quantizers(network, bits, weights=spec)
    moves = jmpq.MoveNetwork(network=network, quantizers=quantizers)
    limit, told = resident_bytes() + 250_000_000, []
    peaks, done = [0], threading.Event()
    watcher = threading.Thread(target=watch, args=(peaks, done))
    watcher.start()
    jmpq.analyse(
        moves,
        jmpq.GaussNewton(),
        [(images, labels)],
        jmpq.choice_grid(bits),
        memory_bytes=limit,
        of_process=True,
        announce=told.append,
    )
    done.set()
    watcher.join()
    (fits,) = told
    found = {"limit": limit, "peak_bytes": peaks[0], "examples": fits.examples}
    print(json.dumps({**found, "all": EXAMPLES, "plan_bytes": fits.bytes}))


if __name__ == "__main__":
    main()
