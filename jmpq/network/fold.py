"""Batch normalisation folded into the kernels before it: the same function, other variables."""

import collections
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jmpq.kinds import check_kinds
from jmpq.network.tap import called_on

Path = tuple[str, ...]


@check_kinds
def fold_batch_norm(
    module: nn.Module, variables: Mapping[str, PyTree], example: PyTree, **call: Any
) -> dict[str, PyTree]:
    """Variables of the same module in which batch normalisation only adds a bias.

    Where a normalisation reads the output of an ``nn.Conv`` or ``nn.Dense`` itself, kernel and
    bias of that layer are scaled by γ/σ, channel by channel; the normalisation keeps scale 1,
    variance 1, and the shift β − μγ/σ as its bias. Nothing is folded where a normalisation
    or a layer is called another time without the other. Layers of a loop (``nn.scan``) are
    folded where variables are stacked along the first axis.

    Args:
        module: Flax module, called as ``module.apply(variables, inputs, **call)``.
        variables: Variables with frozen statistics; not changed.
        example: Inputs of any batch size, or their shapes.
        call: Arguments of evaluation mode, as ``train=False``.

    Returns:
        Variables of the same tree and shapes. The logits are the same up to rounding, provided
        that the layer's output is read by nothing but the normalisation.

    Raises:
        ValueError: If there is no batch normalisation to fold, or layers are stacked otherwise.
    """
    folded = {collection: _copied(tree) for collection, tree in variables.items()}
    pairs = _pairs(module, variables, example, call)
    if not pairs:
        raise ValueError(
            f"{type(module).__name__} has no batch normalisation that reads the output of a "
            "convolution or a dense layer: there is nothing to fold."
        )
    for layer, norm, epsilon in pairs:
        params, stats = _at(folded["params"], norm), _at(folded["batch_stats"], norm)
        mean, var = stats["mean"], stats["var"]
        kernel, scale = _at(folded["params"], layer), params.get("scale", jnp.ones_like(var))
        if scale.shape != var.shape:
            raise _stacked_otherwise(layer, scale, var)
        factor = scale / jnp.sqrt(var + epsilon)
        for leaf in kernel.keys() & {"kernel", "bias"}:
            scaled = kernel[leaf] * _along(kernel[leaf], factor, layer)
            kernel[leaf] = scaled.astype(kernel[leaf].dtype)
        shift = mean * factor
        if "bias" in params:
            params["bias"] = (params["bias"] - shift).astype(params["bias"].dtype)
            shift = jnp.zeros_like(shift)
        if "scale" in params:
            params["scale"] = jnp.ones_like(params["scale"])
        stats["mean"] = shift.astype(mean.dtype)
        stats["var"] = jnp.full_like(var, 1.0 - epsilon)
    return folded


def _pairs(
    module: nn.Module, variables: Mapping[str, PyTree], example: PyTree, call: Mapping[str, Any]
) -> list[tuple[Path, Path, float]]:
    """Layer, normalisation that reads its very output, epsilon; in the order of execution."""
    outputs: dict[int, tuple[Path, Array]] = {}  # kept, so that ids stay their own
    calls: dict[Path, int] = {}
    pairs: list[tuple[Path, Path, float]] = []

    def follow(next_call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layer, path = context.module, context.module.path
        result = next_call(*args, **kwargs)
        if context.method_name != "__call__":
            return result
        calls[path] = calls.get(path, 0) + 1
        if isinstance(layer, nn.Conv | nn.Dense):
            outputs[id(result)] = path, result
        elif isinstance(layer, nn.BatchNorm) and args and id(args[0]) in outputs:
            pairs.append((outputs[id(args[0])][0], path, float(layer.epsilon)))
        return result

    def run(variables: PyTree, inputs: PyTree) -> Any:
        with nn.intercept_methods(follow):
            return module.apply(variables, inputs, **call)

    promoting = jax.numpy_dtype_promotion("standard")
    with called_on(example), promoting, jax.numpy_rank_promotion("allow"):
        jax.eval_shape(run, variables, example)
    # A loop's body may be traced several times: each time all that is in it is called.
    counts = collections.Counter(pairs)
    return [pair for pair, n in counts.items() if calls[pair[0]] == calls[pair[1]] == n]


def _stacked_otherwise(layer: Path, one: Array, other: Array) -> ValueError:
    return ValueError(
        f"Cannot fold a normalisation into {'/'.join(layer)!r}: shapes {one.shape} and "
        f"{other.shape} are stacked along different axes. Stack all variables along the first."
    )


def _along(leaf: Array, factor: Array, layer: Path) -> Array:
    """A factor of every output channel, of every layer of a stack, in the rank of a leaf."""
    *stack, channels = factor.shape
    if leaf.shape[: len(stack)] != tuple(stack) or leaf.shape[-1] != channels:
        raise _stacked_otherwise(layer, leaf, factor)
    between = (1,) * (leaf.ndim - len(stack) - 1)
    return jnp.broadcast_to(factor.reshape((*stack, *between, channels)), leaf.shape)


def _copied(tree: PyTree) -> PyTree:
    """The same leaves in new dicts."""
    return jax.tree.map(lambda leaf: leaf, dict(tree))


def _at(tree: PyTree, path: Path) -> dict[str, Any]:
    for key in path:
        tree = tree[key]
    return tree
