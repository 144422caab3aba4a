"""The tap: layers of any JAX function, found in its jaxpr, their inputs within reach.

The function is traced once, and loops over stacked layers are unrolled (`unroll`). Every
``conv_general_dilated``, ``dot_general`` or embedding ``gather`` with exactly one operand that
*is* a parameter leaf or a slice of a stack, its elements at most rearranged or cast, is an
`Operation` of a layer; the other operand is the layer's input. The
jaxpr can then be evaluated again with a callback at each operation, which may record, perturb
or quantize what flows there. The evaluation is an ordinary JAX function: ``jit``, ``grad``,
``jvp`` and ``vmap`` compose with it, and with an idle callback it is bit-identical to the
original.

What the tap cannot see is refused by name: layers inside ``while``, ``cond``, a custom
derivative rule or a ``scan`` that uses one kernel in every step, kernels that are computed
from parameters, kernels used twice.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import errors as flax_errors
from jax.extend import core
from jaxtyping import Array, PyTree

from jmpq.network.independence import mixing
from jmpq.network.layers import Kind
from jmpq.network.sites import (
    Cached,
    NoBatchAxis,
    Op,
    Operation,
    Product,
    Use,
    cache_operation,
    operation_of,
)
from jmpq.network.tree_paths import Pieces, leaf_paths
from jmpq.network.unroll import find_stacks, unrolled
from jmpq.network.walk import (
    CUSTOM_RULES,
    INLINED,
    LAYOUT,
    Path,
    Rule,
    bind,
    body,
    is_call,
    opened,
    scan_counts,
    walk,
    without_dead_code,
)
from jmpq.text import some


class NotEvaluatingError(ValueError):
    """The network is not in evaluation mode."""


class NotOneOutputError(ValueError):
    """The array to analyse is not chosen, or is not there."""


NOT_EVALUATING = (
    NotEvaluatingError,
    flax_errors.ModifyScopeVariableError,
    flax_errors.InvalidRngError,
)

NOT_ITS_VARIABLES = (
    flax_errors.ScopeCollectionNotFound,
    flax_errors.ScopeParamNotFoundError,
    flax_errors.ScopeParamShapeError,
)

NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


@contextlib.contextmanager
def called_on(example: PyTree) -> Iterator[None]:
    """Turn errors of shapes and arguments of a network, called on its example, into one line.

    Other errors of the network come as they are.

    Raises:
        ValueError: If there is such an error.
    """
    try:
        yield
    except (*NOT_EVALUATING, NotOneOutputError):
        raise
    except NEEDS_VALUES as error:
        raise ValueError(
            f"The network cannot be traced ({type(error).__name__}): it needs the value of an "
            "array where only shapes are known, as `.item()`, `int(x)` and `if x > 0` do on "
            "what depends on inputs or parameters, so that jax.jit fails on it too. Compute "
            "such numbers with NumPy, or before the call."
        ) from error
    except (flax_errors.FlaxError, TypeError, ValueError) as error:
        shapes = some([str(tuple(x.shape)) for x in jax.tree.leaves(example)], 4)
        foreign = isinstance(error, NOT_ITS_VARIABLES)
        also = "the variables of this very network" if foreign else (
            "by name what else the call needs, as train=False"
        )  # fmt: skip
        raise ValueError(
            f"The network cannot be called on the example, of shape {shapes} "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]}). Pass a batch of "
            f"inputs, as images[:1] or image[None], and {also}."
        ) from error


@dataclasses.dataclass(eq=False)
class Tap:
    """The operations with a kernel of a function ``apply(params, inputs)``.

    Attributes:
        apply: The function; it returns one array. What does not reach it is left out.
        params: Parameters as shapes and dtypes.
        inputs: Example inputs as shapes and dtypes, batch axis first in every leaf.
        given: Pieces of the parameters; found in the function where not given.
        cached: Operands of products that are kept as keys and values; none by default.
        pieces: Leaves of the parameters, and slices of those that are stacks of kernels: what
            is indexed below, and what the jaxpr takes.
        operations: The operations with a kernel in the order of execution.
        products: Products of two activations in the order of execution.
        caches: The operations of `cached`, in their order.
        unseen: For each kernel the tap cannot reach: index of its piece, reason.
        unused: Indices of the pieces that do not reach the output.
        output_shapes: Shape of the output for two examples and for three.
        mixing: Operation by which an example's output depends on other examples, if any.

    Raises:
        ValueError: If the function takes no batches but of one size.
    """

    apply: Callable[..., Array]
    params: PyTree
    inputs: PyTree
    given: Pieces | None = None
    cached: tuple[Cached, ...] = ()

    def __post_init__(self) -> None:
        self._traces: dict[Any, Any] = {}
        self._placed: dict[int, dict[Path, Operation]] = {}  # by the jaxpr, which is kept
        # Two batch sizes tell the batch axis of every value apart from the others.
        two, three = (self._analyse(self._examples(count)) for count in (2, 3))
        pair, triple = (self._trace(self._examples(count)) for count in (2, 3))
        self.output_shapes = [opened(x)[0].outvars[0].aval.shape for x in (pair, triple)]
        self.mixing: str | None = mixing(pair, triple, len(jax.tree.leaves(self.inputs)))
        operations = []
        for path, use in two.uses.items():
            try:
                operations.append(operation_of(use, three.uses[path]))
            except NoBatchAxis as error:
                two.refuse(use.leaf, str(error))
        self.operations: tuple[Operation, ...] = tuple(operations)
        self.products: tuple[Product, ...] = tuple(two.products.values())
        others = list(three.products.values())
        first = len(jax.tree.leaves(jax.eval_shape(self.pieces.split, self.params)))
        self.caches: tuple[Operation, ...] = tuple(
            cache_operation(leaf, kept, self.products[kept.product], others[kept.product])
            for leaf, kept in enumerate(self.cached, first)
        )
        self.unseen: dict[int, str] = two.unseen
        self.unused = frozenset(two.unread)
        self._uses = tuple(self._paths(two))
        self._at = {operation.path: operation for operation in self.every}

    @property
    def every(self) -> list[Operation]:
        """All operations, those of caches too, in the order of execution."""
        return sorted((*self.operations, *self.caches), key=lambda operation: operation.path)

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
            transform: Function that returns the operation's output. ``op(input, kernel)`` is
                the original operation on a kernel leaf, by default that of `params`, which is
                rearranged inside. None: the original operation on the original input.
            rule: Function that returns the outputs of all other equations, and of the operation
                inside ``op``. Anything may flow that it and `transform` understand, tangents
                beside values for one.
            enter_all: Whether the rule sees the equations in all bodies of ``jit`` and the
                like, not only in those around an operation; the others are one equation.
        """
        leaves = self.pieces.split(params)
        jaxpr, consts, places = self.traced(inputs)

        def visit(eqn: Any, ins: Sequence[Any], path: Path) -> list:
            if (operation := places.get(path)) is None:
                return rule(eqn, ins, path)

            def op(x: Any, kernel: Any = None) -> Any:
                args = list(ins)
                if operation.kind != "cache":
                    kernel = leaves[operation.leaf] if kernel is None else kernel
                    args[operation.operand] = operation.see(kernel)
                args[1 - operation.operand] = x
                return rule(eqn, args, path)[0]

            x = ins[1 - operation.operand]
            return [op(x) if transform is None else transform(operation, x, op)]

        around = bodies_of(places)
        enter = is_call if enter_all else lambda eqn, path: path in around
        return walk(jaxpr, consts, [*leaves, *jax.tree.leaves(inputs)], visit, enter=enter)[0]

    def traced(self, inputs: PyTree) -> tuple[Any, Sequence[Any], dict[Path, Operation]]:
        """What `run` evaluates at the shapes of `inputs`: jaxpr, constants, and the operations
        by their paths there. It goes into the `bodies_of` the operations and into no others.
        """  # noqa: D205
        return *opened(self._trace(inputs)), self._places(inputs)

    @property
    def jaxpr(self) -> Any:
        """Jaxpr of the function for two examples, where the paths of the operations hold."""
        return opened(self._trace(self._examples(2)))[0]

    @property
    def consts(self) -> Sequence[Any]:
        """Arrays that the function closes over, in the order of ``jaxpr.constvars``."""
        return opened(self._trace(self._examples(2)))[1]

    def _places(self, inputs: PyTree) -> dict[Path, Operation]:
        """The operations by their paths in the trace at the shapes of `inputs`.

        JAX traces some functions otherwise for a batch of one (`jnp.matmul` takes the axis
        away), but the kernels meet the data in the same order.
        """
        jaxpr, _ = opened(self._trace(inputs))
        if (known := self._placed.get(id(jaxpr))) is None:
            uses = self._paths(self._analyse(inputs))
            assert len(uses) == len(self._uses)
            known = {
                path: self._at[two]
                for path, two in zip(uses, self._uses, strict=True)
                if two in self._at
            }
            self._placed[id(jaxpr)] = known
        return known

    def _paths(self, analysis: "_Analysis") -> list[Path]:
        """Paths of kernels and of what is kept, in the order of execution."""
        products = list(analysis.products)
        return sorted([*analysis.uses, *(products[kept.product] for kept in self.cached)])

    def _trace(self, inputs: PyTree) -> Any:
        structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
        key = (
            jax.config.read("jax_enable_x64"),
            *((s.shape, s.dtype) for s in jax.tree.leaves(structs)),
        )
        if key not in self._traces:
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                self._traces[key] = self._taken_apart(structs)
        return self._traces[key]

    def _taken_apart(self, inputs: PyTree) -> Any:
        """The function of pieces and inputs: loops over stacks unrolled, nothing dead."""
        closed = without_dead_code(_jaxpr(self.apply, self.params, inputs))
        stacks = find_stacks(closed, len(jax.tree.leaves(self.params)))
        self.pieces = self.given or stacks.pieces
        if not self.pieces.stacked:
            return closed
        stacks = stacks._replace(pieces=self.pieces)
        pieces = jax.eval_shape(self.pieces.split, self.params)
        apart = jax.make_jaxpr(functools.partial(unrolled, closed, stacks))
        return without_dead_code(apart(pieces, jax.tree.leaves(inputs)))

    def _examples(self, count: int) -> PyTree:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), self.inputs
        )

    def _analyse(self, inputs: PyTree) -> "_Analysis":
        try:
            jaxpr, consts = opened(self._trace(inputs))
        except Exception as error:  # whatever the function raises
            with called_on(self.inputs):  # raises it again, unless the size alone is wrong
                self._trace(self.inputs)
            own, examples = (jax.tree.leaves(x)[0].shape[0] for x in (self.inputs, inputs))
            raise ValueError(
                f"The network is fixed to batches of {own}: with {examples} examples it fails "
                f"({str(error).partition(chr(10))[0]}). Write sizes with x.shape[0], as in "
                "x.reshape(x.shape[0], -1); if the example is one without a batch axis, pass "
                "example[None]."
            ) from error
        count = len(jaxpr.invars) - len(jax.tree.leaves(inputs))
        sources = [Source(frozenset({i}), view=()) for i in range(count)]
        sources += [Source(data=True)] * (len(jaxpr.invars) - count)
        analysis = _Analysis([v.aval.ndim for v in jaxpr.invars[:count]])
        analysis.follow(jaxpr, consts, sources, ())
        read = {v for eqn in jaxpr.eqns for v in eqn.invars if isinstance(v, core.Var)}
        read.update(v for v in jaxpr.outvars if isinstance(v, core.Var))
        analysis.unread = [i for i, v in enumerate(jaxpr.invars[:count]) if v not in read]
        return analysis


def _jaxpr(apply: Callable[..., Array], params: PyTree, inputs: PyTree) -> Any:
    """The jaxpr of a function, also of one that reads values that depend on neither argument.

    Stochastic depths are often spread by ``[x.item() for x in jnp.linspace(...)]``, which fails
    under ``jit``: the second attempt computes everything of the kind while it traces.
    """
    try:
        return jax.make_jaxpr(apply)(params, inputs)
    except NEEDS_VALUES:
        return jax.make_jaxpr(jax.ensure_compile_time_eval()(apply))(params, inputs)


def bodies_of(places: Iterable[Path]) -> set[Path]:
    """Paths of the equations in whose bodies, at any depth, some places are."""
    return {path[:i] for path in places for i in range(1, len(path))}


def with_output(
    apply: Callable[[PyTree, PyTree], Any], output: str | int | None
) -> Callable[[PyTree, PyTree], Array]:
    """The function that returns one array of what `apply` returns.

    Args:
        apply: Function of parameters and inputs that returns any pytree of arrays.
        output: Path of the array in the tree, '/'-joined, or that of a part that holds no other
            array: names in dictionaries, positions in tuples and lists. None where there is one
            array only.

    Raises:
        ValueError: When the function is called, if `output` does not choose exactly one array;
            the message lists them.
    """

    def one(params: PyTree, inputs: PyTree) -> Array:
        return _chosen(apply(params, inputs), output)

    return one


def _chosen(tree: PyTree, output: str | int | None) -> Array:
    leaves, paths = jax.tree.leaves(tree), leaf_paths(tree)
    if not leaves:
        raise NotOneOutputError(
            "The network returns no array; expected one row of outputs per example."
        )
    listed = ", ".join(
        f"{path or 'one array'} {np.shape(leaf)}"
        for path, leaf in zip(paths, leaves, strict=True)
    )
    if output is None:
        if len(leaves) > 1:
            last = "0" if "0" in paths else paths[-1]
            likely = next((path for path in paths if "logit" in path), last)
            raise NotOneOutputError(
                f"The network returns {len(leaves)} arrays: {listed}. Pass the one to analyse "
                f"where the network is made, as in from_linen(..., output={likely!r}). Or "
                f"write `def network(output=None)`, pass output=output there, and give "
                f"--output {likely} on the command line."
            )
        return leaves[0]
    name = str(output)
    found = [i for i, path in enumerate(paths) if path == name or path.startswith(f"{name}/")]
    if len(found) != 1:
        many = f"is {len(found)} arrays" if found else "is not there"
        raise NotOneOutputError(
            f"output={name!r} {many}: the network returns {listed}. "
            + ("Choose one of these names." if paths[0] else "Leave `output` out.")
        )
    return leaves[found[0]]


class Source(NamedTuple):
    """Where a value of the jaxpr comes from."""

    leaves: frozenset[int] = frozenset()  # pieces of parameters it is computed from
    data: bool = False  # whether it depends on the inputs
    view: tuple[Any, ...] | None = None  # not None: it *is* the one piece, rearranged
    last: str = ""  # name of the primitive that made it
    zero: bool = False  # whether it is known to be zero, as a recurrent layer's first state
    origin: frozenset[Path] = frozenset()  # kernels it comes from, no other kernel between
    passed: bool = False  # whether a product of activations lies between

    @property
    def is_leaf(self) -> bool:
        return self.view is not None

    @property
    def is_parameter(self) -> bool:
        return bool(self.leaves) and not self.data


class _Analysis:
    """Follows the parameters to the equations where they meet the data."""

    def __init__(self, ranks: Sequence[int]) -> None:
        self.ranks = ranks  # of the pieces
        self.uses: dict[Path, Use] = {}
        self.products: dict[Path, Product] = {}
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
            constant=lambda array: Source(zero=is_zero(array)),
        )

    def refuse(self, leaf: int, reason: str) -> None:
        """Note why a kernel cannot be quantized; the first reason is the nearest one."""
        self.unseen.setdefault(leaf, reason)

    def _visit(self, eqn: Any, ins: Sequence[Source], path: Path) -> list[Source]:
        name = eqn.primitive.name
        if name in CUSTOM_RULES:
            before, products = set(self.uses), dict(self.products)
            outs = self.follow(*body(eqn), ins, path)
            self.products = products
            for inside in set(self.uses) - before:
                use = self.uses.pop(inside)
                self.refuse(use.leaf, f"it is used inside a custom derivative rule ({name})")
            return outs
        merged = Source(
            frozenset[int]().union(*(s.leaves for s in ins)),
            any(s.data for s in ins),
            None,
            name,
            name in LAYOUT and all(s.zero for s in ins),
            frozenset[Path]().union(*(s.origin for s in ins)),
            any(s.passed for s in ins),
        )
        if list(core.jaxprs_in_params(eqn.params)):
            self._refuse_inside(eqn, ins, path)
        elif name in ("conv_general_dilated", "dot_general"):
            if any(s.zero for s in ins):  # zero whatever the kernel: no use of it
                return [Source(zero=True)]
            self._product(eqn, ins, path, "conv" if name.startswith("conv") else "dense")
            if path in self.products:
                merged = merged._replace(passed=True)
        elif name == "gather" and ins[0].is_parameter and ins[1].data:
            self._gather(eqn, ins, path)
        elif name in LAYOUT and len(ins) == 1 and ins[0].view is not None:
            if eqn.invars[0].aval.size == eqn.outvars[0].aval.size:  # none repeated
                return [merged._replace(view=(*ins[0].view, eqn))]
        if path in self.uses:
            merged = merged._replace(origin=frozenset({path}), passed=False)
        return [merged] * len(eqn.outvars)

    def _refuse_inside(self, eqn: Any, ins: Sequence[Source], path: Path) -> None:
        """Refuse the kernels of a loop, of a branch or of whatever else has a body."""
        name = eqn.primitive.name
        reason, rows = f"it is used inside `{name}`", set[int]()
        if name == "scan":
            first = sum(scan_counts(eqn.params))
            rows.update(leaf for source in ins[first:] for leaf in source.leaves)
            reason = (
                "every step of a `scan` uses it (a recurrent layer: to quantize it once for "
                "all steps, write the loop in Python and tie it)"
            )
        ins = [source._replace(zero=False) for source in ins]  # a carry is zero at first only
        for jaxpr, args in _bodies(eqn, ins):
            inside = _Analysis(self.ranks)
            inside.follow(*opened(jaxpr), args, path)
            for use in inside.uses.values():
                self.refuse(use.leaf, reason)
            for leaf, why in inside.unseen.items():
                self.refuse(leaf, f"inside `{name}` {why}" if leaf in rows else reason)

    def _product(self, eqn: Any, ins: Sequence[Source], path: Path, kind: Kind) -> None:
        kernels = [i for i, source in enumerate(ins) if source.is_parameter]
        if not kernels:
            if kind == "dense" and all(source.data for source in ins):
                origins = tuple(source.origin for source in ins)
                passed = tuple(source.passed for source in ins)
                self.products[path] = Product(path, eqn, origins, passed)
            return
        if len(kernels) == 2 or not ins[1 - kernels[0]].data:
            reason = "it is multiplied with another parameter or a constant"
        elif not ins[kernels[0]].is_leaf:
            reason = (
                f"it reaches its layer only after `{ins[kernels[0]].last}` (to quantize the "
                "result, compute it once and make that the parameter)"
            )
        elif kind == "conv" and (kernels[0] != 1 or eqn.params["batch_group_count"] != 1):
            reason = "it is the left operand of a convolution, or groups run over the batch"
        else:
            self._add(path, eqn, kind, kernels[0], ins[kernels[0]])
            return
        for operand in kernels:
            leaves = ins[operand].leaves
            most = max(self.ranks[leaf] for leaf in leaves)
            for leaf in leaves:
                if self.ranks[leaf] == most:  # the others scale or shift the kernel
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


def is_zero(array: Any) -> bool:
    """Whether all numbers of a floating array are zero; never of a random key."""
    dtype = array.dtype if hasattr(array, "dtype") else np.dtype(type(array))
    return bool(jnp.issubdtype(dtype, np.floating)) and not np.any(np.asarray(array))


def _bodies(eqn: Any, ins: Sequence[Source]) -> Iterator[tuple[Any, list[Source]]]:
    """Jaxprs of a loop or a branch, each with what it is called with."""
    params, data = eqn.params, any(source.data for source in ins)

    def carried(jaxpr: Any, start: int, sources: Sequence[Source]) -> list[Source]:
        """Values after the first step: data, unless the body hands them on as they came."""
        jaxpr, _ = opened(jaxpr)
        taken = jaxpr.invars[start : start + len(sources)]
        same = [one is other for one, other in zip(taken, jaxpr.outvars, strict=False)]
        return [
            source if kept else Source(source.leaves, data, None, eqn.primitive.name)
            for source, kept in zip(sources, same, strict=True)
        ]

    match eqn.primitive.name:
        case "scan":
            first, carries = scan_counts(params)
            second = first + carries
            carry = carried(params["jaxpr"], first, ins[first:second])
            yield params["jaxpr"], [*ins[:first], *carry, *ins[second:]]
        case "while":
            first = params["cond_nconsts"]
            second = first + params["body_nconsts"]
            carry = carried(params["body_jaxpr"], second - first, ins[second:])
            yield params["cond_jaxpr"], [*ins[:first], *carry]
            yield params["body_jaxpr"], [*ins[first:second], *carry]
        case "cond":
            for branch in params["branches"]:
                yield branch, list(ins[1:])
        case _:
            for inner in core.jaxprs_in_params(params):
                if len(opened(inner)[0].invars) == len(ins):
                    yield inner, list(ins)
