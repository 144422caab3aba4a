"""Channels that can be followed: between which layers they may be scaled."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from jmpq.network.network import Network
from jmpq.network.sites import Operation, kernel_first
from jmpq.network.tap import is_zero
from jmpq.network.walk import LAYOUT, Path, walk

# Homogeneous of degree one in each channel wherever channels are not mixed.
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
        leaf: The piece of the parameters that it is, rearranged or broadcast; None otherwise.
        axis: The only axis longer than one.
        zero: Whether it is known to be zero.
    """

    leaf: int | None = None
    axis: int | None = None
    zero: bool = False


_Value = _Scaled | _Fixed | None  # None: an input, or nothing that can be followed


class Channels:
    """Pairs of sites between which channels may be scaled, and the obstacles to it."""

    def __init__(self, network: Network) -> None:
        self.sites = network.sites
        self._single = [len(network.leaves[site.layer_index]) == 1 for site in self.sites]
        self._operations = {o.path: o for o in network.tap.operations}
        self._index = {site.operation.path: site.index for site in self.sites}
        self._reads: collections.Counter[int] = collections.Counter()
        self._pairs: list[Pair] = []
        self._reasons: dict[int, str] = {}
        jaxpr, consts = network.tap.jaxpr, network.tap.consts
        args: list[_Value] = [
            _Fixed(leaf=i, axis=_long_axis(v.aval.shape)) for i, v in enumerate(jaxpr.invars)
        ]
        count = len(jaxpr.invars) - len(jax.tree.leaves(network.tap.inputs))
        args[count:] = [None] * (len(args) - count)
        constant = lambda array: _Fixed(zero=is_zero(array))  # noqa: E731
        walk(jaxpr, consts, args, self._visit, constant=constant, read=self._read)

    def pairs(self) -> list[Pair]:
        """Pairs that can be equalised: all their parameters are used there and nowhere else."""
        used = collections.Counter(o.leaf for o in self._operations.values())

        def alone(site: int) -> bool:
            leaf = self.sites[site].operation.leaf
            return used[leaf] == 1 and not self._reads[leaf] and self._single[site]

        return [
            pair
            for pair in self._pairs
            if alone(pair.first)
            and alone(pair.second)
            and all(self._reads[leaf] == 1 and not used[leaf] for leaf in pair.addends)
        ]

    def reasons(self) -> dict[str, str]:
        """Reason that stopped the scales, by the layer before."""
        return {self.sites[site].layer.name: why for site, why in self._reasons.items()}

    def _read(self, value: _Value, uses: int) -> _Value:
        if isinstance(value, _Scaled) and uses > 1:
            self._reasons.setdefault(value.site, "its output is read more than once")
            return None
        return value

    def _visit(self, eqn: Any, ins: Sequence[_Value], path: Path) -> list[_Value]:
        if path in self._operations:
            return [self._apply_kernel(self._operations[path], eqn, ins)]
        if eqn.primitive.name not in LAYOUT:
            self._reads.update(
                x.leaf for x in ins if isinstance(x, _Fixed) and x.leaf is not None
            )
        return [self._apply(eqn, ins)] * len(eqn.outvars)

    def _apply_kernel(self, operation: Operation, eqn: Any, ins: Sequence[_Value]) -> _Value:
        data, index = ins[1 - operation.operand], self._index.get(operation.path)
        if isinstance(data, _Scaled):
            whole = len(operation.input_axes) == 1 and operation.feature_axes == (data.axis,)
            groups = eqn.params.get("feature_group_count", 1)
            grouped = groups > 1 and not keeps_channels(operation)
            if whole and not grouped and index is not None:
                self._pairs.append(Pair(data.site, index, data.addends))
            else:
                self._reasons.setdefault(data.site, f"`{eqn.primitive.name}` mixes channels")
        if index is None or len(operation.output_axes) != 1 or operation.kind == "embedding":
            return None
        if operation.kind == "conv":
            return _Scaled(index, eqn.params["dimension_numbers"].out_spec[1])
        _, (batch, _) = kernel_first(eqn, operation.operand)
        last = eqn.outvars[0].aval.ndim - 1
        return _Scaled(index, len(batch) if operation.operand == 0 else last)

    def _apply(self, eqn: Any, ins: Sequence[_Value]) -> _Value:
        """Results of an operation without a kernel."""
        scaled = [x for x in ins if isinstance(x, _Scaled)]
        fixed = [x for x in ins if isinstance(x, _Fixed)]
        if len(fixed) == len(ins):
            return self._fixed(eqn, fixed)
        if not scaled:
            return None
        value, after = scaled[0], None
        if len(scaled) == 1 and len(fixed) == len(ins) - 1:
            after = _homogeneous(eqn, value, fixed, first=ins[0] is value)
        if after is None:
            for x in scaled:
                self._reasons.setdefault(
                    x.site, f"`{eqn.primitive.name}` does not pass scales on"
                )
        return after

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


def keeps_channels(operation: Operation) -> bool:
    """Whether it is depthwise, with one output channel for every input channel."""
    if not operation.is_depthwise:
        return False
    return operation.features == operation.kernel_shape[operation.output_axes[0]]
