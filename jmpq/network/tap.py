"""The tap: layers of any JAX function, found in its jaxpr, their inputs within reach.

The function is traced once. Every ``conv_general_dilated``, ``dot_general`` or embedding
``gather`` with exactly one operand that *is* a parameter leaf, its elements at most
rearranged or cast, is an `Operation` of a layer; the other operand is the layer's input. The
jaxpr can then be evaluated again with a callback at each operation, which may record, perturb
or quantize what flows there. The evaluation is an ordinary JAX function: ``jit``, ``grad``,
``jvp`` and ``vmap`` compose with it, and with an idle callback it is bit-identical to the
original.

What the tap cannot see is refused by name: layers inside ``scan``, ``while``, ``cond`` or a
custom derivative rule, kernels that are computed from parameters, kernels used twice.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jaxtyping import Array, PyTree

from jmpq.network.layers import Kind
from jmpq.network.sites import NoBatchAxis, Op, Operation, Use, operation_of
from jmpq.network.walk import (
    CUSTOM_RULES,
    INLINED,
    LAYOUT,
    Path,
    Rule,
    bind,
    body,
    equations,
    is_call,
    opened,
    walk,
    without_dead_code,
)


@dataclasses.dataclass(eq=False)
class Tap:
    """The operations with a kernel of a function ``apply(params, inputs)``.

    Attributes:
        apply: The function; it returns one array. What does not reach it is left out.
        params: Parameters as shapes and dtypes.
        inputs: Example inputs as shapes and dtypes, batch axis first in every leaf.
        operations: The operations in the order of execution.
        unseen: For each kernel the tap cannot reach: leaf index, reason.
        unused: Indices of the parameter leaves that do not reach the output.
    """

    apply: Callable[..., Array]
    params: PyTree
    inputs: PyTree

    def __post_init__(self) -> None:
        self._traces: dict[Any, Any] = {}
        # Two batch sizes tell the batch axis of every value apart from the others.
        two, three = (self._analyse(examples) for examples in (2, 3))
        operations = []
        for path, use in two.uses.items():
            try:
                operations.append(operation_of(use, three.uses[path]))
            except NoBatchAxis as error:
                two.refuse(use.leaf, str(error))
        self.operations: tuple[Operation, ...] = tuple(operations)
        self.unseen: dict[int, str] = two.unseen
        self.unused = frozenset(two.unread)
        self._at = {operation.path: operation for operation in operations}
        self._around = {path[:i] for path in self._at for i in range(1, len(path))}

    def run(
        self,
        params: PyTree,
        inputs: PyTree,
        transform: Callable[[Operation, Any, Op], Any] | None = None,
        rule: Rule = bind,
        *,
        enter_all: bool = False,
    ) -> Any:
        """Evaluate the function with ``transform(operation, input, op)`` at each operation.

        Args:
            params: Parameters.
            inputs: Inputs of any batch size.
            transform: Gives the operation's output. ``op(input, kernel)`` is the original
                operation on a kernel leaf, by default that of `params`, which is rearranged
                inside. None: the original operation on the original input.
            rule: Gives the outputs of all other equations, and of the operation inside
                ``op``. Anything may flow that it and `transform` understand, tangents beside
                values for one.
            enter_all: Whether the rule sees the equations in all bodies of ``jit`` and the
                like, not only in those around an operation; the others are one equation.
        """
        leaves = jax.tree.leaves(params)

        def visit(eqn: Any, ins: Sequence[Any], path: Path) -> list:
            if (operation := self._at.get(path)) is None:
                return rule(eqn, ins, path)

            def op(x: Any, kernel: Any = None) -> Any:
                kernel = leaves[operation.leaf] if kernel is None else kernel
                args = list(ins)
                args[operation.operand] = operation.see(kernel)
                args[1 - operation.operand] = x
                return rule(eqn, args, path)[0]

            x = ins[1 - operation.operand]
            return [op(x) if transform is None else transform(operation, x, op)]

        enter = is_call if enter_all else lambda eqn, path: path in self._around
        jaxpr, consts = opened(self._trace(inputs))
        return walk(jaxpr, consts, [*leaves, *jax.tree.leaves(inputs)], visit, enter=enter)[0]

    @property
    def jaxpr(self) -> Any:
        """Jaxpr of the function, at the shapes of the example inputs."""
        return opened(self._trace(self.inputs))[0]

    @property
    def consts(self) -> Sequence[Any]:
        """Arrays that the function closes over, in the order of ``jaxpr.constvars``."""
        return opened(self._trace(self.inputs))[1]

    def _trace(self, inputs: PyTree) -> Any:
        structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
        key = (
            jax.config.read("jax_enable_x64"),
            *((s.shape, s.dtype) for s in jax.tree.leaves(structs)),
        )
        if key not in self._traces:
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                self._traces[key] = without_dead_code(
                    jax.make_jaxpr(self.apply)(self.params, structs)
                )
        return self._traces[key]

    def _analyse(self, examples: int) -> "_Analysis":
        inputs = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((examples, *x.shape[1:]), x.dtype), self.inputs
        )
        jaxpr, consts = opened(self._trace(inputs))
        count = len(jax.tree.leaves(self.params))
        sources = [Source(frozenset({i}), view=()) for i in range(count)]
        sources += [Source(data=True)] * (len(jaxpr.invars) - count)
        analysis = _Analysis()
        analysis.follow(jaxpr, consts, sources, ())
        read = {v for eqn in jaxpr.eqns for v in eqn.invars if isinstance(v, core.Var)}
        read.update(v for v in jaxpr.outvars if isinstance(v, core.Var))
        analysis.unread = [i for i, v in enumerate(jaxpr.invars[:count]) if v not in read]
        return analysis


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


class _Analysis:
    """Follows the parameters to the equations where they meet the data."""

    def __init__(self) -> None:
        self.uses: dict[Path, Use] = {}
        self.unseen: dict[int, str] = {}
        self.unread: list[int] = []

    def follow(
        self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Source], at: Path
    ) -> list[Source]:
        return walk(
            jaxpr,
            consts,
            args,
            self._visit,
            at=at,
            enter=lambda eqn, path: eqn.primitive.name in INLINED,
            constant=lambda array: Source(),
        )

    def refuse(self, leaf: int, reason: str) -> None:
        """Note why a kernel cannot be quantized; the first reason is the nearest one."""
        self.unseen.setdefault(leaf, reason)

    def _visit(self, eqn: Any, ins: Sequence[Source], path: Path) -> list[Source]:
        name = eqn.primitive.name
        if name in CUSTOM_RULES:
            before = set(self.uses)
            outs = self.follow(*body(eqn), ins, path)
            for inside in set(self.uses) - before:
                use = self.uses.pop(inside)
                self.refuse(use.leaf, f"it is used inside a custom derivative rule ({name})")
            return outs
        merged = Source(
            frozenset[int]().union(*(s.leaves for s in ins)),
            any(s.data for s in ins),
            None,
            name,
        )
        if bodies := list(core.jaxprs_in_params(eqn.params)):
            if any(_has_product(inner) for inner in bodies):
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

    def _product(self, eqn: Any, ins: Sequence[Source], path: Path, kind: Kind) -> None:
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

    def _gather(self, eqn: Any, ins: Sequence[Source], path: Path) -> None:
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
        self.uses[path] = Use(path, eqn, kind, operand, leaf, view)


def _has_product(jaxpr: Any) -> bool:
    return any(
        eqn.primitive.name in ("conv_general_dilated", "dot_general")
        for eqn in equations(jaxpr)
    )
