"""The tap: layers of any JAX function, found in its jaxpr, their inputs within reach.

The function is traced once. Every ``conv_general_dilated``, ``dot_general`` or embedding
``gather`` with exactly one operand that *is* a parameter leaf, its elements at most
rearranged or cast, is a `Site`; the other operand is the layer's input. The jaxpr can then be
evaluated again with a callback at each site, which may record, perturb or quantize what
flows there. The evaluation is an ordinary JAX function: ``jit``, ``grad``, ``jvp`` and
``vmap`` compose with it, and with an idle callback it is bit-identical to the original.

What the tap cannot see is refused by name: layers inside ``scan``, ``while``, ``cond`` or a
custom derivative rule, kernels that are computed from parameters, kernels used twice.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core
from jaxtyping import Array, PyTree

from jmpq.network.layers import Kind

Op = Callable[[Array, Array], Array]  # (input, kernel leaf) -> output of the site
Transform = Callable[["Site", Any, Array, Op], Any]
Rule = Callable[[Any, Sequence[Any]], list]  # (equation, inputs) -> outputs
Path = tuple[int, ...]  # position of an equation: one index per level of nesting

# Primitives that only rearrange or cast elements, where the element count stays.
LAYOUT = {
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
    "reshape",
    "rev",
    "squeeze",
    "transpose",
}
INLINED = {"jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint"}
CUSTOM_RULES = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Site:
    """One operation with a kernel: where a layer touches the data.

    Attributes:
        path: Position of the equation in the jaxpr.
        eqn: The equation, traced with two examples: its parameters hold for any number.
        leaf: Index of the kernel among the flattened parameters.
        kind: Kind of operation.
        view: Equations between the leaf and the operand, in order.
        operand: Which operand of the equation is the kernel.
        kernel_shape: Shape of the operand.
        output_axes: Axes of the operand along output features.
        input_axes: Axes of the operand along input features.
        feature_axes: Axes of the input along which features lie.
        features: Number of input features.
        input_shape: Input shape for one example; the batch axis is left out.
        output_shape: Output shape for one example; the batch axis is left out.
        input_batch_axis: Batch axis of the input.
        output_batch_axis: Batch axis of the output.
        repeat: Rows of the batch axis per example (more than one where the function
            merged another axis into it).
        macs: Multiply-accumulates per example; those with padding count, those with the zeros
            between the inputs of a transposed convolution do not.
    """

    path: Path
    eqn: Any
    leaf: int
    kind: Kind
    view: tuple[Any, ...]
    operand: int
    kernel_shape: tuple[int, ...]
    output_axes: tuple[int, ...]
    input_axes: tuple[int, ...]
    feature_axes: tuple[int, ...]
    features: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    input_batch_axis: int
    output_batch_axis: int
    repeat: int
    macs: int

    def see(self, leaf: Array) -> Array:
        """The leaf as the operation sees it: rearranged, perhaps cast."""
        for eqn in self.view:
            leaf = bind(eqn, [leaf])[0]
        return leaf

    def unsee(self, operand: Array, leaf: Array) -> Array:
        """Inverse of `see`; `leaf` gives shape and dtype."""
        struct = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        return jax.linear_transpose(self.see, struct)(operand)[0]

    @property
    def has_input(self) -> bool:
        """Whether the input is an activation (an embedding's are indices)."""
        return self.kind != "embedding"


class Source(NamedTuple):
    """Where a value of the jaxpr comes from."""

    leaves: frozenset[int] = frozenset()  # parameter leaves it is computed from
    data: bool = False  # whether it depends on the inputs
    view: tuple[Any, ...] | None = None  # not None: it *is* the one leaf, rearranged
    last: str = ""  # name of the primitive that made it

    @property
    def is_leaf(self) -> bool:
        return self.view is not None

    @property
    def is_parameter(self) -> bool:
        return bool(self.leaves) and not self.data


@dataclasses.dataclass(eq=False)
class Tap:
    """The sites of a function ``apply(params, inputs)``.

    Attributes:
        apply: The function; its first output leaf is what `run` returns.
        params: Parameters as shapes and dtypes.
        inputs: Example inputs as shapes and dtypes, batch axis first in every leaf.
        sites: The sites in the order of execution.
        unseen: For each kernel the tap cannot reach: leaf index, reason.
    """

    apply: Callable[..., Array]
    params: PyTree
    inputs: PyTree

    def __post_init__(self) -> None:
        self._traces: dict[Any, Any] = {}
        # Two batch sizes tell the batch axis of every value apart from the others.
        small, large = (self._analyse(size) for size in (2, 3))
        self.unseen: dict[int, str] = small.unseen
        self.sites: tuple[Site, ...] = tuple(
            site
            for path in small.found
            if (site := self._measure(small, small.found[path], large.found[path])) is not None
        )
        self._by_path = {site.path: site for site in self.sites}

    def run(
        self,
        params: PyTree,
        inputs: PyTree,
        transform: Transform,
        rule: Rule | None = None,
    ) -> Any:
        """Evaluate the function with ``transform(site, input, leaf, op)`` at each site.

        ``op(input, leaf)`` is the original operation; `leaf` is the parameter as it stands in
        `params`, rearranged inside `op`. With a `rule` for all other equations anything may
        flow that `transform` and it understand, tangents beside values for one.
        """
        rule = rule or bind
        jaxpr = self._trace(inputs)
        leaves = jax.tree.leaves(params)
        values = [*leaves, *jax.tree.leaves(inputs)]

        def evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], at: Path) -> list:
            env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
            env.update(zip(jaxpr.invars, args, strict=True))
            for index, eqn in enumerate(jaxpr.eqns):
                path = (*at, index)
                ins = [v.val if isinstance(v, core.Literal) else env[v] for v in eqn.invars]
                if path in self._by_path:
                    site = self._by_path[path]
                    op = functools.partial(_operate, rule, eqn, site, ins)
                    data = ins[1 - site.operand]
                    outs = [transform(site, data, leaves[site.leaf], op)]
                elif any(site.path[: len(path)] == path for site in self.sites):
                    inner, inner_consts = sub_jaxpr(eqn)
                    outs = evaluate(inner, inner_consts, ins, path)
                else:
                    outs = rule(eqn, ins)
                env.update(zip(eqn.outvars, outs, strict=True))
            return [v.val if isinstance(v, core.Literal) else env[v] for v in jaxpr.outvars]

        return evaluate(*_open(jaxpr), values, ())[0]

    @property
    def jaxpr(self) -> Any:
        """Of the function, at the shapes of the example inputs."""
        return _open(self._trace(self.inputs))[0]

    @property
    def consts(self) -> Sequence[Any]:
        """The arrays that the function closes over, in the order of ``jaxpr.constvars``."""
        return _open(self._trace(self.inputs))[1]

    def _trace(self, inputs: PyTree) -> Any:
        structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
        key = (
            jax.config.read("jax_enable_x64"),
            *((s.shape, s.dtype) for s in jax.tree.leaves(structs)),
        )
        if key not in self._traces:
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                self._traces[key] = jax.make_jaxpr(self.apply)(self.params, structs)
        return self._traces[key]

    def _analyse(self, batch_size: int) -> "_Analysis":
        inputs = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype), self.inputs
        )
        jaxpr, consts = _open(self._trace(inputs))
        count = len(jax.tree.leaves(self.params))
        sources = [Source(frozenset({i}), view=()) for i in range(count)]
        sources += [Source(data=True)] * (len(jaxpr.invars) - count)
        analysis = _Analysis()
        analysis.walk(jaxpr, [Source()] * len(consts), sources, ())
        return analysis

    def _measure(self, analysis: "_Analysis", small: "_Found", large: "_Found") -> Site | None:
        """Shapes per example, from the same site at batch sizes two and three."""
        eqn = small.eqn
        shapes = []
        for one, two in (
            (eqn.invars[1 - small.operand].aval, large.eqn.invars[1 - small.operand].aval),
            (eqn.outvars[0].aval, large.eqn.outvars[0].aval),
        ):
            axes = [
                a for a, (m, n) in enumerate(zip(one.shape, two.shape, strict=True)) if m != n
            ]
            if len(axes) != 1 or one.shape[axes[0]] * 3 != two.shape[axes[0]] * 2:
                shape = one.str_short()
                analysis.refuse(
                    small.leaf,
                    f"its input or output ({shape} for two examples) has no batch axis",
                )
                return None
            repeat = one.shape[axes[0]] // 2
            rest = (repeat,) * (repeat > 1) + tuple(np.delete(one.shape, axes[0]).tolist())
            shapes.append((axes[0], rest, repeat))
        (in_axis, in_shape, repeat), (out_axis, out_shape, _) = shapes
        kernel, data = eqn.invars[small.operand].aval, eqn.invars[1 - small.operand].aval
        geometry = _geometry(eqn, small.operand)
        match small.kind:
            case "conv":
                dims = eqn.params["dimension_numbers"]
                image, spatial = eqn.outvars[0].aval, dims.out_spec[2:]
                if max(eqn.params["lhs_dilation"]) > 1:  # the zeros between cost nothing
                    image, spatial = data, dims.lhs_spec[2:]
                macs = kernel.size * math.prod(image.shape[a] for a in spatial)
            case "dense":
                (contract, _), (batch, _) = kernel_first(eqn, small.operand)
                shared = [kernel.shape[a] for a in (*contract, *batch)]
                macs = kernel.size * int(np.prod(in_shape)) // int(np.prod(shared))
            case "embedding":
                macs = 0
        return Site(
            path=small.path,
            eqn=eqn,
            leaf=small.leaf,
            kind=small.kind,
            view=small.view,
            operand=small.operand,
            kernel_shape=tuple(kernel.shape),
            **geometry,
            features=math.prod(data.shape[a] for a in geometry["feature_axes"]),
            input_shape=in_shape,
            output_shape=out_shape,
            input_batch_axis=in_axis,
            output_batch_axis=out_axis,
            repeat=repeat,
            macs=macs,
        )


class _Found(NamedTuple):
    """A site before its shapes are known."""

    path: Path
    eqn: Any
    kind: Kind
    operand: int
    leaf: int
    view: tuple[Any, ...]


class _Analysis:
    """One walk over a jaxpr that follows the parameters to the operations they meet."""

    def __init__(self) -> None:
        self.found: dict[Path, _Found] = {}
        self.unseen: dict[int, str] = {}

    def walk(self, jaxpr: Any, consts: list, args: list, at: Path) -> list:
        env: dict[Any, Source] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))
        read = lambda v: Source() if isinstance(v, core.Literal) else env[v]  # noqa: E731
        for index, eqn in enumerate(jaxpr.eqns):
            ins = [read(v) for v in eqn.invars]
            outs = self._visit(eqn, ins, (*at, index))
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def refuse(self, leaf: int, reason: str) -> None:
        """Note why a kernel cannot be quantized; the first reason is the nearest one."""
        self.unseen.setdefault(leaf, reason)

    def _visit(self, eqn: Any, ins: list[Source], path: Path) -> list[Source]:
        name = eqn.primitive.name
        merged = Source(
            frozenset[int]().union(*(s.leaves for s in ins)),
            any(s.data for s in ins),
            None,
            name,
        )
        if name in INLINED or name in CUSTOM_RULES:
            before = set(self.found)
            inner, consts = sub_jaxpr(eqn)
            outs = self.walk(inner, [Source()] * len(consts), ins, path)
            if name in CUSTOM_RULES:
                for inside in set(self.found) - before:
                    site = self.found.pop(inside)
                    self.refuse(
                        site.leaf, f"it is used inside a custom derivative rule ({name})"
                    )
            return outs
        if any(True for _ in core.jaxprs_in_params(eqn.params)):
            if any(_has_product(sub) for sub in core.jaxprs_in_params(eqn.params)):
                for source in ins:
                    for leaf in source.leaves if source.is_parameter else ():
                        self.refuse(leaf, f"it is used inside `{name}`: unroll the loop")
        elif name in ("conv_general_dilated", "dot_general"):
            self._product(eqn, ins, path, "conv" if name.startswith("conv") else "dense")
        elif name == "gather" and ins[0].is_parameter and ins[1].data:
            self._gather(eqn, ins, path)
        elif name in LAYOUT and len(ins) == 1 and ins[0].view is not None:
            if eqn.invars[0].aval.size == eqn.outvars[0].aval.size:  # none repeated
                return [merged._replace(view=(*ins[0].view, eqn))]
        return [merged] * len(eqn.outvars)

    def _product(self, eqn: Any, ins: list[Source], path: Path, kind: Kind) -> None:
        kernels = [i for i, source in enumerate(ins) if source.is_parameter]
        if not kernels:
            return
        if len(kernels) == 2 or not ins[1 - kernels[0]].data:
            reason = "it is multiplied with another parameter or a constant"
        elif not ins[kernels[0]].is_leaf:
            reason = f"it reaches its layer only after `{ins[kernels[0]].last}`"
        elif kind == "conv" and (kernels[0] != 1 or eqn.params["batch_group_count"] != 1):
            reason = "it is the left operand of a convolution, or groups run over the batch"
        else:
            self._add(path, eqn, kind, kernels[0], ins[kernels[0]])
            return
        for operand in kernels:
            for leaf in ins[operand].leaves:
                self.refuse(leaf, reason)

    def _gather(self, eqn: Any, ins: list[Source], path: Path) -> None:
        dims, table = eqn.params["dimension_numbers"], eqn.invars[0].aval
        rows = dims.collapsed_slice_dims == (0,) and dims.start_index_map == (0,)
        if ins[0].is_leaf and rows and eqn.params["slice_sizes"] == (1, *table.shape[1:]):
            self._add(path, eqn, "embedding", 0, ins[0])
            return
        for leaf in ins[0].leaves:
            self.refuse(leaf, "it is looked up otherwise than by whole rows")

    def _add(self, path: Path, eqn: Any, kind: Kind, operand: int, source: Source) -> None:
        (leaf,), view = source.leaves, source.view
        assert view is not None
        self.found[path] = _Found(path, eqn, kind, operand, leaf, view)


def _geometry(eqn: Any, operand: int) -> dict[str, tuple[int, ...]]:
    """Feature axes of the kernel and of the input, from the dimension numbers."""
    match eqn.primitive.name:
        case "conv_general_dilated":
            dims = eqn.params["dimension_numbers"]
            out, features = (dims.rhs_spec[0],), (dims.rhs_spec[1],)
            return {
                "output_axes": out,
                "input_axes": features,
                "feature_axes": (dims.lhs_spec[1],),
            }
        case "dot_general":
            (contract, other), (batch, _) = kernel_first(eqn, operand)
            rank = eqn.invars[operand].aval.ndim
            free = tuple(a for a in range(rank) if a not in (*contract, *batch))
            return {
                "output_axes": (*batch, *free),
                "input_axes": tuple(contract),
                "feature_axes": tuple(other),
            }
        case _:
            rank = eqn.invars[operand].aval.ndim
            return {
                "output_axes": (0,),
                "input_axes": tuple(range(1, rank)),
                "feature_axes": (),
            }


def kernel_first(eqn: Any, operand: int) -> tuple[Any, Any]:
    """Dimension numbers of a ``dot_general`` with the kernel's axes first in each pair."""
    contract, batch = eqn.params["dimension_numbers"]
    return (contract, batch) if operand == 0 else (contract[::-1], batch[::-1])


def _operate(rule: Rule, eqn: Any, site: Site, ins: list, data: Any, leaf: Array) -> Any:
    args = list(ins)
    args[site.operand], args[1 - site.operand] = site.see(leaf), data
    return rule(eqn, args)[0]


def bind(eqn: Any, ins: Sequence[Any]) -> list:
    """Evaluate an equation."""
    outs = eqn.primitive.bind(*ins, **eqn.primitive.get_bind_params(eqn.params))
    return list(outs) if eqn.primitive.multiple_results else [outs]


def evaluate_jaxpr(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], rule: Rule) -> list:
    """Every equation by a rule, which sees the bodies of ``jit`` and the like as one."""
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    read = lambda v: v.val if isinstance(v, core.Literal) else env[v]  # noqa: E731
    for eqn in jaxpr.eqns:
        outs = rule(eqn, [read(v) for v in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _open(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """Jaxpr and constants, of a closed or an open one (one class since JAX 0.12)."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def sub_jaxpr(eqn: Any) -> tuple[Any, Sequence[Any]]:
    """Body and constants of an equation that has one."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in eqn.params:
            return _open(eqn.params[name])
    raise NotImplementedError(
        f"`{eqn.primitive.name}` keeps its body where JAX never did before."
    )


def _has_product(jaxpr: Any) -> bool:
    return any(
        eqn.primitive.name in ("conv_general_dilated", "dot_general") for eqn in _all(jaxpr)
    )


def _all(jaxpr: Any) -> Iterator[Any]:
    for eqn in jaxpr.eqns:
        yield eqn
        for sub in core.jaxprs_in_params(eqn.params):
            yield from _all(sub)
