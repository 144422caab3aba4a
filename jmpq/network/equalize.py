"""Cross-layer range equalisation: channels scaled in one layer and back in the next."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array, Float, PyTree

from jmpq.kinds import check_kinds
from jmpq.network.channels import Channels, Pair, keeps_channels
from jmpq.network.network import Network
from jmpq.network.sites import Operation
from jmpq.network.tap import Tap
from jmpq.network.walk import Path, bind


def equalization_pairs(network: Network) -> list[tuple[str, str]]:
    """Names of the layers that `equalize_ranges` equalises, in the order of execution."""
    name = [site.layer.name for site in network.sites]
    return [(name[pair.first], name[pair.second]) for pair in Channels(network).pairs()]


@check_kinds
def equalize_ranges(
    network: Network, *, tolerance: float = 1e-3, max_passes: int = 100
) -> Network:
    """The same function with the ranges of channels equal on both sides of an activation.

    Between two layers W₁ and W₂ with nothing but a positively homogeneous activation f,
    W₂ f(W₁x + b) = (W₂S) f(S⁻¹(W₁x + b)) for any positive diagonal S. With
    s_c = √(r₁c / r₂c), r the largest magnitude of a channel's weights, both ranges of channel c
    become √(r₁c r₂c). Pairs follow each other, so passes are repeated until no scale differs
    from 1 by more than `tolerance`. A channel without weights on one side stays.

    Batch normalisation has to be folded (`fold_batch_norm`), and an activation with a cap, as
    ReLU6, is not homogeneous: `without_caps` first. High biases are not absorbed.

    Args:
        network: Float network; it is not changed.
        tolerance: Largest difference from 1 of the last pass's scales.
        max_passes: Largest number of passes.

    Returns:
        A network with the same logits up to rounding, and other parameters.

    Raises:
        ValueError: If no two layers can be equalised; the message says what stands between.

    References:
        Nagel, van Baalen, Blankevoort, Welling (2019), Data-Free Quantization Through Weight
        Equalization and Bias Correction, section 4.1.
    """
    channels = Channels(network)
    pairs = channels.pairs()
    if not pairs:
        after: dict[str, list[str]] = {}
        for name, why in channels.reasons().items():
            after.setdefault(why, []).append(name)
        reasons = "; ".join(
            f"after {names[0]!r}{f' and {len(names) - 1} more' if names[1:] else ''}: {why}"
            for why, names in after.items()
        )
        raise ValueError(
            "No two layers can be equalised: nothing but max(x, 0), pooling and biases may "
            f"stand between them. {reasons}. Fold batch normalisation first, and take caps "
            "off (--without-caps; in Python `without_caps`)."
        )
    operations = [site.operation for site in network.sites]
    leaves = network.tap.pieces.split(network.params)
    scales = _scales(operations, pairs, leaves, tolerance, max_passes)
    for (first, second, addends), scale in zip(pairs, scales, strict=True):
        one, two = operations[first], operations[second]
        leaves[one.leaf] = _multiplied(one, one.output_axes[0], leaves[one.leaf], 1 / scale)
        leaves[two.leaf] = _multiplied(two, _input_axis(two), leaves[two.leaf], scale)
        for leaf in addends:
            divided = np.asarray(leaves[leaf]) / scale.reshape(leaves[leaf].shape)
            leaves[leaf] = jnp.asarray(divided, leaves[leaf].dtype)
    return dataclasses.replace(network, params=network.tap.pieces.join(leaves, network.params))


def without_caps(network: Network) -> Network:
    """The network with min(x, c), c a constant, taken as x: ReLU6 becomes ReLU.

    Another function wherever a cap is reached: measure what that costs before quantizing.

    Raises:
        ValueError: If nothing is capped.
    """
    taken: set[Path] = set()

    def rule(eqn: Any, ins: Sequence[Any], path: Path) -> list:
        name = eqn.primitive.name
        if name == "min" and any(isinstance(v, core.Literal) for v in eqn.invars):
            taken.add(path)
            variable = [not isinstance(v, core.Literal) for v in eqn.invars]
            return list(itertools.compress(ins, variable))
        if name == "clamp" and isinstance(eqn.invars[2], core.Literal):
            taken.add(path)
            return [jnp.maximum(ins[1], ins[0])]
        return bind(eqn, ins)

    def apply(params: PyTree, inputs: PyTree) -> Array:
        return network.tap.run(params, inputs, rule=rule, enter_all=True)

    capless = Tap(apply, network.tap.params, network.tap.inputs, network.tap.pieces)
    if not taken:
        raise ValueError("Nothing in the network is capped: there is no min(x, constant).")
    return dataclasses.replace(network, apply=apply, tap=capless)


def _scales(
    operations: Sequence[Operation],
    pairs: Sequence[Pair],
    leaves: Sequence[Array],
    tolerance: float,
    max_passes: int,
) -> list[Float[np.ndarray, " channels"]]:
    """S of every pair, from the largest magnitude of every input-output channel pair."""
    largest = {i: _magnitudes(operations[i], leaves) for p in pairs for i in p[:2]}
    scales = [
        np.ones(operations[p.first].kernel_shape[operations[p.first].output_axes[0]])
        for p in pairs
    ]
    for _ in range(max_passes):
        changes = []
        for number, (first, second, _addends) in enumerate(pairs):
            ends = (
                (first, operations[first].output_axes[0]),
                (second, _input_axis(operations[second])),
            )
            r1, r2 = (largest[i].max(axis=_others(largest[i].ndim, axis)) for i, axis in ends)
            known = (r1 > 0) & (r2 > 0)
            scale = np.sqrt(np.where(known, r1, 1) / np.where(known, r2, 1))
            for (i, axis), factor in zip(ends, (1 / scale, scale), strict=True):
                largest[i] = largest[i] * np.expand_dims(factor, _others(largest[i].ndim, axis))
            scales[number] = scales[number] * scale
            changes.append(np.abs(scale - 1).max())
        if max(changes) <= tolerance:
            break
    return scales


def _magnitudes(operation: Operation, leaves: Sequence[Array]) -> Float[np.ndarray, "..."]:
    """Largest magnitudes of the kernel's operand over positions; axes stay."""
    operand = np.abs(np.asarray(operation.see(leaves[operation.leaf]), np.float64))
    positions = {*range(operand.ndim)} - {*operation.output_axes, *operation.input_axes}
    return operand.max(axis=tuple(positions), keepdims=True)


def _others(ndim: int, axis: int) -> tuple[int, ...]:
    return tuple(a for a in range(ndim) if a != axis)


def _multiplied(operation: Operation, axis: int, leaf: Array, factor: np.ndarray) -> Array:
    """A kernel leaf with the channels of its operand multiplied."""
    operand = np.asarray(operation.see(leaf), np.float64)
    scaled = operand * np.expand_dims(factor, _others(operand.ndim, axis))
    return operation.unsee(jnp.asarray(scaled, leaf.dtype), leaf)


def _input_axis(operation: Operation) -> int:
    """Axis of the operand along the input's channels, the output's where it is depthwise."""
    return operation.output_axes[0] if keeps_channels(operation) else operation.input_axes[0]
