"""Small networks and data that the tests share."""

import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jmpq.allocation import Allocation
from jmpq.artifact import CONTENT, content_hashes
from jmpq.network.network import Network
from jmpq.quantizers.fake_quant import quantized_logits

# Compiled as a whole: operation by operation takes many times as long.
fast_logits = jax.jit(quantized_logits)


class ResidualCNN(nn.Module):
    """Three convolutions with a residual connection, batch norm and a dense head."""

    activation: str = "softplus"
    classes: int = 3
    dtype: jnp.dtype = jnp.float64

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        act = getattr(nn, self.activation)
        conv = lambda c, name: nn.Conv(  # noqa: E731
            c, (3, 3), use_bias=False, name=name, dtype=self.dtype, param_dtype=self.dtype
        )
        norm = lambda name: nn.BatchNorm(  # noqa: E731
            use_running_average=not train, name=name, dtype=self.dtype, param_dtype=self.dtype
        )
        x = act(norm("bn0")(conv(2, "stem")(x)))
        y = act(norm("bn1")(conv(3, "conv1")(x)))
        y = norm("bn2")(conv(2, "conv2")(y))
        x = act(x + y).mean((1, 2))
        return nn.Dense(self.classes, name="head", dtype=self.dtype, param_dtype=self.dtype)(x)


def residual_cnn(seed: int = 0, activation: str = "softplus", dtype=jnp.float64) -> Network:
    """`ResidualCNN` with random weights and statistics, inputs 5x5x2."""
    module = ResidualCNN(activation=activation, dtype=dtype)
    example = jnp.zeros((1, 5, 5, 2), dtype)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = module.init(jax.random.key(seed), example)
    variables = jax.tree.map(lambda x: x.astype(dtype), variables)  # statistics too
    return Network.from_linen(module, shake(variables, seed + 1), example)


def allocations(network: Network, bits) -> list[Allocation]:
    """Allocations from arrays of weight bits and of activation bits, a row each."""
    names = [layer.name for layer in network.layers]
    return [Allocation.from_bits(names, row) for row in np.stack(bits, axis=1)]


def shake(tree: PyTree, seed: int) -> PyTree:
    """Every leaf plus positive noise, so that no statistic is trivial."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noisy = [
        leaf + 0.3 * jax.random.uniform(key, leaf.shape, leaf.dtype)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)


def images(
    seed: int, batch: int = 4, dtype=jnp.float64
) -> tuple[Float[Array, "batch 5 5 2"], Int[Array, " batch"]]:
    """Random images and labels for `residual_cnn`."""
    inputs, labels = jax.random.split(jax.random.key(seed))
    return (
        jax.random.normal(inputs, (batch, 5, 5, 2), dtype),
        jax.random.randint(labels, (batch,), 0, 3),
    )


def apply(network: Network, params: PyTree, inputs: Array) -> Array:
    """The network's own function, under the promotion rules that Flax expects."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return network.apply(params, inputs)


def manual_logits(
    network: Network,
    kernels: list[Array],
    shifts: list[Array],
    inputs: Array,
    act: Callable[[Array], Array] = lambda x: jnp.logaddexp(x, 0.0),
) -> tuple[Float[Array, "batch classes"], list[Array]]:
    """`ResidualCNN` written out by hand: no Flax, no tap; also the layers' inputs.

    `kernels` replace the network's, `shifts` are added to the layers' inputs.
    """
    params, stats = network.params, network.state["batch_stats"]
    seen = []

    def conv(x, i):
        seen.append(x)
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x + shifts[i], kernels[i], (1, 1), "SAME", dimension_numbers=dims
        )

    def norm(x, name):
        mean, var = (stats[name][k].astype(x.dtype)[None, None, None] for k in ("mean", "var"))
        scale, bias = (params[name][k][None, None, None] for k in ("scale", "bias"))
        return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias

    x = act(norm(conv(inputs, 0), "bn0"))
    y = act(norm(conv(x, 1), "bn1"))
    x = act(x + norm(conv(y, 2), "bn2")).mean((1, 2))
    seen.append(x)
    return (x + shifts[3]) @ kernels[3] + params["head"]["bias"][None], seen


def batch_seconds(partial):
    """Seconds of the batches that an interrupted analysis left in its journal, in order."""
    if not partial.exists():
        return []
    rows = re.findall(rb'{"key": .*?"line_crc32": \d+}', partial.read_bytes(), re.DOTALL)
    return [json.loads(row)["value"]["seconds"] for row in rows]


def rewritten(path: pathlib.Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the fields of a JSON artifact, or the header of an npz one, as its writer would.

    The hash of its content is that of the new content.
    """
    arrays = {}
    if path.suffix == ".npz":
        with np.load(path) as stored:
            arrays = dict(stored)
    record = json.loads(str(arrays.pop("header")) if arrays else path.read_text())
    change(record)
    if record.pop(CONTENT, None) is not None:
        fields = {k: v for k, v in record.items() if k not in ("schema", "version")}
        record[CONTENT] = content_hashes(fields, arrays)
    if path.suffix == ".npz":
        np.savez(path, header=np.array(json.dumps(record)), **arrays)
    else:
        path.write_text(json.dumps(record))
