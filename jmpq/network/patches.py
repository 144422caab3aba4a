"""A layer as a matrix product: the rows of its input, the feature axes of its output."""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jmpq.network.sites import Operation, Site, kernel_first


def input_rows(site: Site, x: Array) -> Float[Array, "groups positions columns"]:
    """The input of a site as matrices X with which its operation is ``X[g] @ W_g.T``.

    W is the kernel as `Network.to_matrix` gives it and W_g the g-th of equal parts of its
    rows: one part, unless a convolution has feature groups (as many) or a matrix product has
    batch axes on the kernel. The positions of X are the examples times the output positions;
    a convolution repeats every input value once for each offset of its kernel.

    Raises:
        ValueError: If the site is an embedding, whose input is indices.
    """
    operation = site.operation
    match operation.kind:
        case "conv":
            return _convolution_rows(operation, x)
        case "dense":
            _, (_, batch) = kernel_first(operation.eqn, operation.operand)
            rest = [a for a in range(x.ndim) if a not in (*batch, *site.feature_axes)]
            groups = math.prod(x.shape[a] for a in batch)
            ordered = x.transpose([*batch, *rest, *site.feature_axes])
            return ordered.reshape(groups, -1, site.features)
        case _:
            raise ValueError("An embedding has no input rows: its input is indices.")


def output_feature_axes(site: Site) -> tuple[int, ...]:
    """Axes of a site's output along output features, in the order of the kernel's rows.

    Raises:
        ValueError: If the site is an embedding, whose rows are looked up.
    """
    operation = site.operation
    if operation.kind == "conv":
        return (operation.eqn.params["dimension_numbers"].out_spec[1],)
    if operation.kind == "embedding":
        raise ValueError("An embedding has no output features: its rows are looked up.")
    (_, _), (batch, _) = kernel_first(operation.eqn, operation.operand)
    rank = len(operation.eqn.outvars[0].aval.shape)
    count = len(operation.output_axes) - len(batch)
    start = len(batch) if operation.operand == 0 else rank - count
    return (*range(len(batch)), *range(start, start + count))


def _convolution_rows(
    operation: Operation, x: Array
) -> Float[Array, "groups positions columns"]:
    """Patches of the input; columns are input features, then offsets in the kernel."""
    eqn = operation.eqn.params
    dims, groups = eqn["dimension_numbers"], eqn["feature_group_count"]
    sizes = [operation.kernel_shape[a] for a in dims.rhs_spec[2:]]
    x = x.transpose(dims.lhs_spec)  # examples, features, spatial axes
    within = [
        (lo, hi, d - 1) for (lo, hi), d in zip(eqn["padding"], eqn["lhs_dilation"], strict=True)
    ]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *within])
    strides, dilations = eqn["window_strides"], eqn["rhs_dilation"]
    reach = [(size - 1) * d for size, d in zip(sizes, dilations, strict=True)]
    counts = [
        (n - r - 1) // stride + 1
        for n, r, stride in zip(x.shape[2:], reach, strides, strict=True)
    ]

    def shifted(offset: Sequence[int]) -> Array:
        starts = [o * d for o, d in zip(offset, dilations, strict=True)]
        ends = [
            start + (count - 1) * stride + 1
            for start, count, stride in zip(starts, counts, strides, strict=True)
        ]
        whole = x.shape[:2]
        return jax.lax.slice(x, (0, 0, *starts), (*whole, *ends), (1, 1, *strides))

    offsets = list(itertools.product(*(range(size) for size in sizes)))
    # `Network.to_matrix` has the offsets in the order of the kernel's own axes.
    own = np.argsort(dims.rhs_spec[2:]).tolist()
    offsets.sort(key=lambda offset: [offset[a] for a in own])
    patches = jnp.stack([shifted(offset) for offset in offsets], axis=2)
    batch, features = x.shape[:2]
    patches = patches.reshape(batch, groups, features // groups * len(offsets), -1)
    return patches.transpose(1, 0, 3, 2).reshape(groups, -1, patches.shape[2])
