"""Cross-layer range equalisation: channels scaled in one layer and back in the next."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array, Float, PyTree

from jmpq.network.network import Network
from jmpq.network.tap import (
    CUSTOM_RULES,
    INLINED,
    LAYOUT,
    Path,
    Site,
    Tap,
    bind,
    evaluate_jaxpr,
    kernel_first,
    sub_jaxpr,
)

# Of degree one in each channel wherever channels are not mixed.
POOLING = {"reduce_window_sum", "reduce_window_max"}
REDUCTIONS = {"reduce_sum", "reduce_max"}


class Pair(NamedTuple):
    """Two layers between which channels may be scaled: the first's output, all of the second's
    input, with nothing between that is not homogeneous channel by channel.

    Attributes:
        first: Site whose output channels are divided.
        second: Site whose input channels are multiplied.
        addends: Leaves added to the first one's output, which are divided too; each a vector.
    """  # noqa: D205

    first: int
    second: int
    addends: frozenset[int]


def equalization_pairs(network: Network) -> list[tuple[str, str]]:
    """Names of the layers that `equalize_ranges` equalises, in the order of execution."""
    name = [network.layers[layer].name for layer, _ in network.sites]
    return [(name[pair.first], name[pair.second]) for pair in _Walk(network).pairs()]


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
        network: Not changed.
        tolerance: Of the scales of the last pass.
        max_passes: Most passes.

    Returns:
        A network with the same logits up to rounding, and other parameters.

    Raises:
        ValueError: If no two layers can be equalised; the message says what stands between.

    References:
        Nagel, van Baalen, Blankevoort, Welling (2019), Data-Free Quantization Through Weight
        Equalization and Bias Correction, section 4.1.
    """
    walk = _Walk(network)
    pairs = walk.pairs()
    if not pairs:
        after: dict[str, list[str]] = {}
        for name, why in walk.reasons().items():
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
    scales = _scales(walk.sites, pairs, jax.tree.leaves(network.params), tolerance, max_passes)
    leaves, tree = jax.tree.flatten(network.params)
    for (first, second, addends), scale in zip(pairs, scales, strict=True):
        one, two = walk.sites[first], walk.sites[second]
        leaves[one.leaf] = _multiplied(one, one.output_axes[0], leaves[one.leaf], 1 / scale)
        leaves[two.leaf] = _multiplied(two, _input_axis(two), leaves[two.leaf], scale)
        for leaf in addends:
            divided = np.asarray(leaves[leaf]) / scale.reshape(leaves[leaf].shape)
            leaves[leaf] = jnp.asarray(divided, leaves[leaf].dtype)
    return dataclasses.replace(network, params=jax.tree.unflatten(tree, leaves))


def without_caps(network: Network) -> Network:
    """The network with min(x, c), c a constant, taken as x: ReLU6 becomes ReLU.

    Another function wherever a cap is reached: measure what that costs before quantizing.

    Raises:
        ValueError: If nothing is capped.
    """
    taken: set[int] = set()

    def rule(eqn: Any, ins: Sequence[Any]) -> list:
        name = eqn.primitive.name
        if name in INLINED or name in CUSTOM_RULES:
            inner, consts = sub_jaxpr(eqn)
            return evaluate_jaxpr(inner, consts, ins, rule)
        if name == "min" and any(isinstance(v, core.Literal) for v in eqn.invars):
            taken.add(id(eqn))
            return [x for x, v in zip(ins, eqn.invars, strict=True) if _is_variable(v)]
        if name == "clamp" and isinstance(eqn.invars[2], core.Literal):
            taken.add(id(eqn))
            return [jnp.maximum(ins[1], ins[0])]
        return bind(eqn, ins)

    def apply(params: PyTree, inputs: PyTree) -> Array:
        return network.tap.run(params, inputs, lambda site, x, leaf, op: op(x, leaf), rule)

    capless = Tap(apply, network.tap.params, network.tap.inputs)
    if not taken:
        raise ValueError("Nothing in the network is capped: there is no min(x, constant).")
    return dataclasses.replace(network, apply=apply, tap=capless)


def _scales(
    sites: Sequence[Site],
    pairs: Sequence[Pair],
    leaves: Sequence[Array],
    tolerance: float,
    max_passes: int,
) -> list[Float[np.ndarray, " channels"]]:
    """S of every pair, from the largest magnitude of every input-output channel pair."""
    largest = {site: _magnitudes(sites[site], leaves) for p in pairs for site in p[:2]}
    scales = [
        np.ones(sites[p.first].kernel_shape[sites[p.first].output_axes[0]]) for p in pairs
    ]
    for _ in range(max_passes):
        changes = []
        for number, (first, second, _addends) in enumerate(pairs):
            ends = (first, sites[first].output_axes[0]), (second, _input_axis(sites[second]))
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


def _magnitudes(site: Site, leaves: Sequence[Array]) -> Float[np.ndarray, "..."]:
    """Of the kernel's operand, the largest over positions; axes stay."""
    operand = np.abs(np.asarray(site.see(leaves[site.leaf]), np.float64))
    positions = {*range(operand.ndim)} - {*site.output_axes, *site.input_axes}
    return operand.max(axis=tuple(positions), keepdims=True)


def _others(ndim: int, axis: int) -> tuple[int, ...]:
    return tuple(a for a in range(ndim) if a != axis)


def _multiplied(site: Site, axis: int, leaf: Array, factor: np.ndarray) -> Array:
    """A kernel leaf with the channels of its operand multiplied."""
    operand = np.asarray(site.see(leaf), np.float64)
    scaled = operand * np.expand_dims(factor, _others(operand.ndim, axis))
    return site.unsee(jnp.asarray(scaled, leaf.dtype), leaf)


def _input_axis(site: Site) -> int:
    """Axis of the operand along the input's channels, the output's where it is depthwise."""
    return site.output_axes[0] if _is_depthwise(site) else site.input_axes[0]


def _is_depthwise(site: Site) -> bool:
    groups = site.eqn.params.get("feature_group_count", 1)
    return groups > 1 and groups == site.features == site.kernel_shape[site.output_axes[0]]


@dataclasses.dataclass(frozen=True)
class _Scaled:
    """A value of degree one, channel by channel, in the output of a site and the addends."""

    site: int
    axis: int
    addends: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True)
class _Fixed:
    """A value that does not depend on the inputs.

    Attributes:
        leaf: The parameter that it is, rearranged or broadcast; None otherwise.
        axis: The only axis longer than one.
        zero: Whether it is known to be zero.
    """

    leaf: int | None = None
    axis: int | None = None
    zero: bool = False


_Value = _Scaled | _Fixed | None  # None: an input, or nothing that can be followed


class _Walk:
    """One walk over a network's jaxpr: between which sites channels may be scaled."""

    def __init__(self, network: Network) -> None:
        self.names = [network.layers[layer].name for layer, _ in network.sites]
        self._single = [len(network.leaves[layer]) == 1 for layer, _ in network.sites]
        self.sites: list[Site] = [site for _, site in network.sites]
        self._of_path: dict[Path, Site] = {site.path: site for site in network.tap.sites}
        self._index = {site.path: i for i, site in enumerate(self.sites)}
        self._reads: collections.Counter[int] = collections.Counter()
        self._found: list[Pair] = []
        self._reasons: dict[int, str] = {}
        jaxpr, consts = network.tap.jaxpr, network.tap.consts
        leaves = len(jax.tree.leaves(network.params))
        args: list[_Value] = [
            _Fixed(leaf=i, axis=_long_axis(v.aval.shape)) for i, v in enumerate(jaxpr.invars)
        ]
        self._walk(jaxpr, consts, [*args[:leaves], *[None] * (len(args) - leaves)], ())

    def pairs(self) -> list[Pair]:
        """What can be equalised: every parameter of it is used there and nowhere else."""
        used = collections.Counter(site.leaf for site in self._of_path.values())

        def alone(site: int) -> bool:
            leaf = self.sites[site].leaf
            return used[leaf] == 1 and not self._reads[leaf] and self._single[site]

        return [
            pair
            for pair in self._found
            if alone(pair.first)
            and alone(pair.second)
            and all(self._reads[leaf] == 1 and not used[leaf] for leaf in pair.addends)
        ]

    def reasons(self) -> dict[str, str]:
        """What stopped the walk after each layer."""
        return {self.names[site]: why for site, why in self._reasons.items()}

    def _walk(
        self, jaxpr: Any, consts: Sequence[Any], args: Sequence[_Value], at: Path
    ) -> list[_Value]:
        env: dict[Any, _Value] = dict(zip(jaxpr.invars, args, strict=True))
        for v, const in zip(jaxpr.constvars, consts, strict=True):
            env[v] = _Fixed(zero=not np.any(const))
        count = collections.Counter(
            v
            for variables in (*(e.invars for e in jaxpr.eqns), jaxpr.outvars)
            for v in variables
            if _is_variable(v)
        )

        def read(v: Any) -> _Value:
            if not _is_variable(v):
                return _Fixed(zero=not np.any(v.val))
            value = env.get(v)
            if isinstance(value, _Scaled) and count[v] > 1:
                self._reasons.setdefault(value.site, "its output is read more than once")
                return None
            return value

        for index, eqn in enumerate(jaxpr.eqns):
            path, ins = (*at, index), [read(v) for v in eqn.invars]
            name = eqn.primitive.name
            if path in self._of_path:
                outs = [self._visit(self._of_path[path], eqn, ins)]
            elif name in INLINED or name in CUSTOM_RULES:
                inner, inner_consts = sub_jaxpr(eqn)
                outs = self._walk(inner, inner_consts, ins, path)
            else:
                outs = [self._apply(eqn, ins)] * len(eqn.outvars)
                if name not in LAYOUT:
                    self._reads.update(
                        x.leaf for x in ins if isinstance(x, _Fixed) and x.leaf is not None
                    )
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _visit(self, site: Site, eqn: Any, ins: Sequence[_Value]) -> _Value:
        data, index = ins[1 - site.operand], self._index.get(site.path)
        if isinstance(data, _Scaled):
            whole = len(site.input_axes) == 1 and site.feature_axes == (data.axis,)
            grouped = eqn.params.get("feature_group_count", 1) > 1 and not _is_depthwise(site)
            if whole and not grouped and index is not None:
                self._found.append(Pair(data.site, index, data.addends))
            else:
                self._reasons.setdefault(data.site, f"`{eqn.primitive.name}` mixes channels")
        if index is None or len(site.output_axes) != 1 or site.kind == "embedding":
            return None
        if site.kind == "conv":
            return _Scaled(index, eqn.params["dimension_numbers"].out_spec[1])
        _, (batch, _) = kernel_first(eqn, site.operand)
        last = eqn.outvars[0].aval.ndim - 1
        return _Scaled(index, len(batch) if site.operand == 0 else last)

    def _apply(self, eqn: Any, ins: Sequence[_Value]) -> _Value:
        """What an operation without a kernel makes of its operands."""
        scaled = [x for x in ins if isinstance(x, _Scaled)]
        fixed = [x for x in ins if isinstance(x, _Fixed)]
        if len(fixed) == len(ins):
            return self._fixed(eqn, fixed)
        if not scaled:
            return None
        value, found = scaled[0], None
        if len(scaled) == 1 and len(fixed) == len(ins) - 1:
            found = _homogeneous(eqn, value, fixed, first=ins[0] is value)
        if found is None:
            for x in scaled:
                self._reasons.setdefault(
                    x.site, f"`{eqn.primitive.name}` does not pass scales on"
                )
        return found

    def _fixed(self, eqn: Any, ins: Sequence[_Fixed]) -> _Fixed:
        if eqn.primitive.name not in LAYOUT or len(ins) != 1:
            return _Fixed()
        before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
        axis = _long_axis(after)
        same = ins[0].axis is not None and axis is not None
        same = same and before[ins[0].axis or 0] == after[axis or 0]
        return _Fixed(leaf=ins[0].leaf, axis=axis if same else None, zero=ins[0].zero)


def _homogeneous(eqn: Any, value: _Scaled, fixed: Sequence[_Fixed], *, first: bool) -> _Value:
    """The value after an operation of degree one in every channel, else None; `first` where it
    is the operation's first operand.
    """  # noqa: D205
    name, params = eqn.primitive.name, eqn.params
    match name:
        case "add" | "sub":
            (other,) = fixed
            if other.zero:
                return value
            if other.leaf is not None and other.axis == value.axis:
                return dataclasses.replace(value, addends=value.addends | {other.leaf})
        case "mul":
            return value
        case "div" if first:
            return value
        case "max" if fixed[0].zero:
            return value
        case "neg" | "copy" | "convert_element_type":
            return value
        case _ if name in POOLING:
            if params["window_dimensions"][value.axis] == 1:
                return value
        case _ if name in REDUCTIONS:
            if value.axis not in params["axes"]:
                before = sum(a < value.axis for a in params["axes"])
                return dataclasses.replace(value, axis=value.axis - before)
        case "transpose":
            return dataclasses.replace(value, axis=params["permutation"].index(value.axis))
        case "squeeze":
            before = sum(d < value.axis for d in params["dimensions"])
            return dataclasses.replace(value, axis=value.axis - before)
        case "reshape":
            return _reshaped(eqn, value)
    return None


def _reshaped(eqn: Any, value: _Scaled) -> _Value:
    """The channels' axis after others of length one came or went."""
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    kept = [a for a, size in enumerate(after) if size != 1]
    longer = [a for a, size in enumerate(before) if size != 1]
    if [before[a] for a in longer] != [after[a] for a in kept] or value.axis not in longer:
        return None
    return dataclasses.replace(value, axis=kept[longer.index(value.axis)])


def _long_axis(shape: Sequence[int]) -> int | None:
    """The only axis longer than one."""
    long = [axis for axis, size in enumerate(shape) if size > 1]
    return long[0] if len(long) == 1 else None


def _is_variable(v: Any) -> bool:
    return not isinstance(v, core.Literal)
