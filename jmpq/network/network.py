"""The network every stage works on: a pure function, its parameters, its layer table."""

import dataclasses
import fnmatch
import functools
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import errors as flax_errors
from flax import nnx
from jaxtyping import Array, Float, PyTree

from jmpq.kinds import check_kinds
from jmpq.network.layers import Layer
from jmpq.network.precision import held_in_float32, is_half, widened
from jmpq.network.sites import Op, Operation, Site, Transform
from jmpq.network.tap import NotEvaluatingError, Tap, with_output
from jmpq.network.tree_paths import leaf_paths
from jmpq.network.walk import Rule, bind, equations
from jmpq.text import plural, printed, quantity, some

# Names of a kernel inside its layer: left out of the layer's name.
KERNEL_NAMES = {"kernel", "weight", "w", "W", "embedding"}
RANDOM = {"random_bits", "random_gamma", "threefry2x32", "rng_bit_generator"}
BOX_NAME = "value"  # the array in an NNX variable, after the kernel's own name


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "state"],
    meta_fields=["apply", "layers", "other_parameters", "tap", "leaves", "output", "unused"],
)
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Network:
    """A trained network, unwrapped: `apply` is the user's own function, its one output.

    Make one with `from_linen`, `from_nnx` or `from_function`. A pytree whose leaves are the
    parameters, so that compiled functions take it as an argument.

    Attributes:
        apply: ``apply(params, inputs) -> logits [batch, classes]``, deterministic, batch
            statistics frozen.
        params: Parameters: any pytree of float arrays.
        state: Arrays that `apply` holds besides the parameters (batch statistics), for hashes.
        layers: The layer table, in the order of execution.
        other_parameters: Number of parameters outside the table (biases, normalisation):
            they stay unquantized.
        tap: Operations of the layers, found in the traced function, and its evaluation.
        leaves: Per layer the index of its kernel among the pieces of the parameters
            (`Tap.pieces`), then the indices of its aliases.
        output: Name of the array that is analysed, where the function returns several.
        unused: Paths of parameters that do not reach the output. They are no layers, and count
            among the other parameters.
    """

    apply: Callable[[PyTree, PyTree], Array]
    params: PyTree
    state: PyTree
    layers: tuple[Layer, ...]
    other_parameters: int
    tap: Tap
    leaves: tuple[tuple[int, ...], ...]
    output: str | None = None
    unused: tuple[str, ...] = ()

    def __repr__(self) -> str:
        kernels = sum(layer.parameters for layer in self.layers)
        macs = sum(layer.macs for layer in self.layers)
        kinds = Counter(layer.kind for layer in self.layers)
        return printed(
            f"Network: {plural(len(self.layers), 'layer')} "
            f"({', '.join(f'{count} {kind}' for kind, count in kinds.items())})",
            f"{kernels:,} parameters in kernels, {self.other_parameters:,} others that stay "
            f"unquantized; {quantity(macs, 'multiply-accumulates')} per example",
            f"layers: {some([layer.name for layer in self.layers], 6)}",
        )

    @classmethod
    @check_kinds
    def from_function(
        cls,
        apply: Callable[[PyTree, PyTree], Any],
        params: PyTree,
        example: PyTree,
        *,
        output: str | int | None = None,
        state: PyTree = None,
        tied: Sequence[str] = (),
        ignore: Sequence[str] = (),
    ) -> "Network":
        """Find the layers of any pure JAX function.

        Args:
            apply: ``apply(params, inputs) -> logits [batch, classes]``, or a pytree with them.
            params: Pytree of float arrays, NumPy's too. Half precision is held in float32, the
                same values, and so is the output: the function itself computes as before.
            example: Inputs of any batch size, batch axis first in every leaf.
            output: Array to analyse, where the function returns several: its name in a
                dictionary or its position in a tuple or list, as ``"logits"`` or ``1``; one
                inside another by its path, as ``"heads/1"``. Computations that do not reach
                it are left out.
            state: Other arrays the function closes over (for hashes only).
            tied: Regular expressions (fullmatch) of kernel paths that the function uses
                several times: such a kernel is one layer, quantized once.
            ignore: Regular expressions (fullmatch) of kernel paths to leave unquantized,
                among them kernels the tap cannot see.

        Raises:
            ValueError: If a parameter is not finite, a pattern matches nothing, `output` does
                not choose one array of several, no layer is found, a kernel is used where the
                tap cannot follow (named, with reason), the batch has a fixed size, or an
                example's output is not its own.
        """
        paths = leaf_paths(params)
        leaves = jax.tree.leaves(params)
        _check_parameters(paths, leaves)
        _check_example(example)
        if any(is_half(leaf.dtype) for leaf in leaves):
            apply = held_in_float32(apply, params)
        # Shared ones stay shared.
        arrays = {id(leaf): widened(jnp.asarray(leaf)) for leaf in leaves}
        params = jax.tree.map(lambda leaf: arrays[id(leaf)], params)
        structs = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (params, example)
        )
        apply = with_output(apply, output)
        tap = Tap(apply, *structs)
        if is_half(tap.jaxpr.outvars[0].aval.dtype):
            apply = held_in_float32(apply, params)
            tap = Tap(apply, *structs)
        _check_examples(tap)
        paths = tap.pieces.names(params)
        whole = tap.pieces.paths(params)
        matches = functools.partial(_matching, list(zip(paths, whole, strict=True)))
        may_tie, ignored = matches(tied=tied), matches(ignore=ignore)
        _check_seen(tap, paths, ignored)

        buffers: dict[tuple, int] = {}  # shared buffers are one layer
        buffer = tap.pieces.buffers(params)
        canonical = {o.leaf: buffers.setdefault(buffer[o.leaf], o.leaf) for o in tap.operations}
        uses: dict[int, list[Operation]] = {}
        for operation in tap.operations:
            if operation.leaf not in ignored:
                uses.setdefault(canonical[operation.leaf], []).append(operation)
        _check_tied(paths, uses, may_tie)
        if not uses:
            raise ValueError(
                "The network has no quantizable layer: no convolution, matrix product or "
                f"embedding lookup with a parameter was found among {_some(paths)}."
            )
        names = layer_names([paths[leaf] for leaf in uses])
        layers = []
        for (leaf, own), name in zip(uses.items(), names, strict=True):
            first = own[0]
            others = [paths[i] for i in dict.fromkeys(o.leaf for o in own) if i != leaf]
            layers.append(
                Layer(
                    name=name,
                    kind=first.kind,
                    kernel=paths[leaf],
                    kernel_shape=first.kernel_shape,
                    output_axes=first.output_axes,
                    input_axes=first.input_axes,
                    parameters=math.prod(first.kernel_shape),
                    macs=sum(operation.macs for operation in own),
                    input_shape=first.input_shape,
                    output_shape=first.output_shape,
                    aliases=tuple(others),
                )
            )
        groups = tuple(
            tuple(dict.fromkeys([leaf, *(o.leaf for o in own)])) for leaf, own in uses.items()
        )
        distinct = {id(leaf): leaf.size for leaf in jax.tree.leaves(params)}
        return cls(
            apply=apply,
            params=params,
            state=state,
            layers=tuple(layers),
            other_parameters=sum(distinct.values()) - sum(layer.parameters for layer in layers),
            tap=tap,
            leaves=groups,
            output=None if output is None else str(output),
            unused=tuple(paths[i] for i in sorted(tap.unused)),
        )

    @classmethod
    @check_kinds
    def from_linen(
        cls,
        module: nn.Module,
        variables: Mapping[str, PyTree],
        example: PyTree,
        *,
        output: str | int | None = None,
        tied: Sequence[str] = (),
        ignore: Sequence[str] = (),
        **call: Any,
    ) -> "Network":
        """A linen module with its variables; everything but ``params`` is frozen.

        Args:
            module: The module, called as ``module.apply(variables, inputs, **call)``.
            variables: Variables that ``module.init`` returned or training left.
            example: Inputs of any batch size.
            output: See `from_function`.
            tied: See `from_function`.
            ignore: See `from_function`.
            call: Arguments that put the module into evaluation mode, as ``train=False``.

        Raises:
            ValueError: As `from_function`; also if the module changes its variables or asks
                for random numbers, that is, if it is not in evaluation mode.
        """
        state = {k: v for k, v in variables.items() if k != "params"}
        if "params" not in variables:
            raise ValueError(f"`variables` has no 'params', only {sorted(variables)}.")

        def apply(params: PyTree, inputs: PyTree) -> Any:
            return module.apply({"params": params, **state}, inputs, **call)  # type: ignore

        params = variables["params"]
        try:
            return cls.from_function(
                apply, params, example, output=output, state=state, tied=tied, ignore=ignore
            )
        except (flax_errors.ModifyScopeVariableError, flax_errors.InvalidRngError) as error:
            raise ValueError(
                f"{type(module).__name__} is not in evaluation mode (it updates statistics or "
                "draws random numbers). Pass the argument that freezes it, as train=False."
            ) from error

    @classmethod
    @check_kinds
    def from_nnx(
        cls,
        model: nnx.Module,
        example: PyTree,
        *,
        output: str | int | None = None,
        tied: Sequence[str] = (),
        ignore: Sequence[str] = (),
        method: str = "__call__",
        **call: Any,
    ) -> "Network":
        """An NNX module with its parameters; every other variable is frozen.

        Args:
            model: NNX model, called as ``model(inputs, **call)``, in evaluation mode
                (``model.eval()``). It is copied, not changed.
            example: Inputs of any batch size.
            output: See `from_function`.
            tied: See `from_function`.
            ignore: See `from_function`.
            method: Method to call instead.
            call: Other arguments of the call, as ``train=False``.

        Raises:
            ValueError: As `from_function`; also if a call changes variables of the model or
                random numbers reach the output, that is, if it is not in evaluation mode.
        """
        graph, variables, rest = nnx.split(model, nnx.Param, ...)
        params, state = nnx.to_pure_dict(variables), nnx.to_pure_dict(rest)

        def apply(params: PyTree, inputs: PyTree) -> Any:
            # New variables in each call: what the model does to them is not seen outside.
            fresh, frozen = jax.tree.map(lambda leaf: leaf, (variables, rest))
            nnx.replace_by_pure_dict(fresh, params)
            copy = nnx.merge(graph, fresh, frozen)
            before = _other_variables(copy)
            results = getattr(copy, method)(inputs, **call)
            after = _other_variables(copy)
            if changed := [path for path, x in before.items() if after.get(path) is not x]:
                raise NotEvaluatingError(
                    f"{type(model).__name__} is not in evaluation mode: a call changes its "
                    f"variables {_some(changed)}. Call model.eval() first, or pass the "
                    "argument that freezes them, as use_running_average=True."
                )
            return results

        network = cls.from_function(
            apply, params, example, output=output, state=state, tied=tied, ignore=ignore
        )
        if any(eqn.primitive.name in RANDOM for eqn in equations(network.tap.jaxpr)):
            raise ValueError(
                f"{type(model).__name__} is not in evaluation mode: random numbers reach its "
                "output. Call model.eval() first, or pass the argument that turns them off, as "
                "deterministic=True."
            )
        return network

    @functools.cached_property
    def code_sha256(self) -> str:
        """Hash of what `apply` computes: its traced operations, and the arrays in them.

        Comparable within one version of JAX and Flax. Names of functions count; parameters,
        comments and the way the code is written do not.
        """
        text = re.sub(r"0x[0-9a-f]+", "", str(self.tap.jaxpr))  # addresses of objects
        digest = hashlib.sha256(text.encode())
        for constant in self.tap.consts:
            dtype = getattr(constant, "dtype", np.float64)
            if jnp.issubdtype(dtype, jax.dtypes.prng_key):
                constant = jax.random.key_data(constant)  # a typed key is no array of numbers
            array = np.asarray(constant)
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    @functools.cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every use of a quantizable kernel or of a cache, in the order of execution."""
        layer_of = {leaf: i for i, group in enumerate(self.leaves) for leaf in group}
        kernels = self._pieces(self.params)
        used = [0] * len(self.layers)
        sites = []
        for operation in self.tap.every:
            if (layer := layer_of.get(operation.leaf)) is None:
                continue
            used[layer] += 1
            name = self.layers[layer].name
            sites.append(
                Site(
                    index=len(sites),
                    name=name if used[layer] == 1 else f"{name}#{used[layer]}",
                    layer=self.layers[layer],
                    layer_index=layer,
                    operation=operation,
                    kernel=kernels[operation.leaf],
                )
            )
        return tuple(sites)

    def run(
        self,
        inputs: PyTree,
        transform: Transform,
        params: PyTree | None = None,
        rule: Rule = bind,
    ) -> Any:
        """Logits, with the output of every site given by a transform.

        Args:
            inputs: Inputs of any batch size.
            transform: Function, called as ``transform(site, input, op)``, in the order of
                `sites`; ``op(input)`` is the site's original operation with `site.kernel`, and
                ``op(input, kernel)`` the same with another kernel.
            params: Parameters instead of the network's own.
            rule: Evaluation of single equations (see `Tap.run`).
        """
        params = self.params if params is None else params
        pieces = self._pieces(params)
        sites = {site.operation.path: site for site in self.sites}

        def at(operation: Operation, x: Any, op: Op) -> Any:
            if (site := sites.get(operation.path)) is None:
                return op(x)
            return transform(dataclasses.replace(site, kernel=pieces[operation.leaf]), x, op)

        return self.tap.run(params, inputs, at, rule)

    def logits(self, inputs: PyTree, params: PyTree | None = None, rule: Rule = bind) -> Array:
        """Logits of the network as it is; for `params` and `rule` see `run`."""
        return self.tap.run(self.params if params is None else params, inputs, rule=rule)

    def output_shape(self, inputs: PyTree, where: str) -> tuple[int, ...]:
        """Shape of the output for one example of a batch.

        Args:
            inputs: Inputs of a batch.
            where: Name of the arrays, for the message.

        Raises:
            ValueError: If the network does not take them.
        """
        try:
            return jax.eval_shape(self.logits, inputs).shape[1:]
        except Exception as error:  # whatever the network's code raises
            got, want = (
                f"{some(shapes, 4)}" if (shapes := _shapes(tree)) else "no array"
                for tree in (inputs, self.tap.inputs)
            )
            raise ValueError(
                f"The network does not take {where}, of shape {got}; its example has {want}, "
                f"the batch axis first ({str(error).partition(chr(10))[0]}). Choose the data "
                "or the network that fits; a batch holds inputs as the example does."
            ) from error

    def record(self, inputs: PyTree, params: PyTree | None = None) -> tuple[Array, list[Array]]:
        """Logits and the input of every site, in the order of `sites`."""
        recorded: list[Array] = []

        def keep(site: Site, x: Array, op: Op) -> Array:
            recorded.append(x)
            return op(x)

        return self.run(inputs, keep, params), recorded

    def kernels(self, params: PyTree | None = None) -> list[Array]:
        """The kernel of every layer: a leaf of the parameters, or a slice of a stack.

        A cache has none, and an array of one element in its place.
        """
        pieces = self._pieces(self.params if params is None else params)
        return [pieces[group[0]] for group in self.leaves]

    def with_kernels(self, kernels: Sequence[Array], params: PyTree | None = None) -> PyTree:
        """The parameters with other kernels (shapes as `kernels`), aliases included."""
        params = self.params if params is None else params
        pieces = self._pieces(params)
        for group, kernel in zip(self.leaves, kernels, strict=True):
            for piece in group:
                pieces[piece] = kernel
        return self.tap.pieces.join(pieces, params)

    def _pieces(self, params: PyTree) -> list[Array]:
        """The pieces of parameters, then what stands for the kernels of caches."""
        pieces = self.tap.pieces.split(params)
        return pieces + [jnp.ones(1, pieces[0].dtype)] * len(self.tap.caches)

    def to_matrix(self, layer: int, leaf: Array) -> Float[Array, "outputs inputs"]:
        """A kernel as a matrix: a row per output feature; input features, then positions,
        along the columns.
        """  # noqa: D205
        operand = self._operation(layer).see(leaf)
        return operand.transpose(self._axes(layer)).reshape(
            self.layers[layer].output_features, -1
        )

    def from_matrix(
        self, layer: int, matrix: Float[Array, "outputs inputs"], leaf: Array
    ) -> Array:
        """Inverse of `to_matrix`; `leaf` gives shape and dtype."""
        axes, operation = self._axes(layer), self._operation(layer)
        operand = matrix.reshape([operation.kernel_shape[a] for a in axes])
        return operation.unsee(operand.transpose(np.argsort(axes).tolist()), leaf)

    def _operation(self, layer: int) -> Operation:
        """First use of a layer, whose view of the kernel the layer table describes."""
        return next(site.operation for site in self.sites if site.layer_index == layer)

    def _axes(self, layer: int) -> list[int]:
        out, inputs = self.layers[layer].output_axes, self.layers[layer].input_axes
        rest = [
            a for a in range(len(self.layers[layer].kernel_shape)) if a not in (*out, *inputs)
        ]
        return [*out, *inputs, *rest]


def layer_names(kernels: Sequence[str]) -> list[str]:
    """Names of layers from the paths of their kernels, distinct.

    >>> layer_names(["conv1/kernel", "head/weight/value", "self/value/kernel", "w1"])
    ['conv1', 'head', 'self/value', 'w1']
    >>> layer_names(["layers/mlp/kernel[0]", "layers/mlp/kernel[1]", "stack[0]"])
    ['layers/mlp[0]', 'layers/mlp[1]', 'stack[0]']
    """
    names = []
    for kernel in kernels:
        path, bracket, index = (
            kernel.partition("[") if kernel.endswith("]") else (kernel, "", "")
        )
        parts = path.split("/")
        for endings in ({BOX_NAME}, KERNEL_NAMES):
            if len(parts) > 1 and parts[-1] in endings:
                parts.pop()
        names.append("/".join(parts) + bracket + index)
    return [n if names.count(n) == 1 else k for n, k in zip(names, kernels, strict=True)]


def _shapes(tree: PyTree) -> list[str]:
    """Shapes of the arrays, beside their paths where there are several."""
    leaves = jax.tree.leaves(tree)
    if len(leaves) == 1:
        return [str(np.shape(leaves[0]))]
    pairs = zip(leaf_paths(tree), leaves, strict=True)
    return [f"{path} {np.shape(leaf)}" for path, leaf in pairs]


def _other_variables(model: nnx.Module) -> dict[str, Any]:
    """Variables that are neither parameters nor states of random numbers, by path."""
    state = nnx.split(model, nnx.Param, nnx.RngState, ...)[3]
    return dict(zip(leaf_paths(state), jax.tree.leaves(state), strict=True))


def _check_parameters(paths: list[str], leaves: list[Any]) -> None:
    for path, leaf in zip(paths, leaves, strict=True):
        if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
            kind = getattr(leaf, "dtype", type(leaf))
            raise ValueError(
                f"Parameter {path!r} is not a float array but {kind}; "
                "keep counters and keys out of `params`."
            )
        if bad := int(np.sum(~np.isfinite(leaf))):
            raise ValueError(
                f"Parameter {path!r} has {bad} values of {leaf.size} that are NaN or infinite. "
                "Load or train the weights again."
            )


def _check_example(example: PyTree) -> None:
    leaves = jax.tree.leaves(example)
    wrong = [x for x in leaves if not (hasattr(x, "dtype") and getattr(x, "ndim", 0))]
    if wrong or not leaves:
        what = f"holds {type(wrong[0]).__name__} {wrong[0]}" if wrong else "is empty"
        raise ValueError(
            f"The example {what}: pass the inputs of a batch as arrays with the batch axis "
            "first, as jnp.zeros((1, 32, 32, 3))."
        )


def _check_examples(tap: Tap) -> None:
    """Raise `ValueError` where the output is not one row per example, each its own."""
    two, three = tap.output_shapes
    if two[:1] != (2,) or three[:1] != (3,) or two[1:] != three[1:]:
        raise ValueError(
            f"The network's output has no batch axis first: it is of shape {two} for two "
            f"examples and {three} for three. Return one row per example; write sizes with "
            "x.shape[0]."
        )
    if tap.mixing is not None:
        raise ValueError(
            f"An example's output depends on the other examples of its batch, by {tap.mixing}. "
            "Freeze batch statistics (train=False, use_running_average=True, model.eval()), "
            "reduce over later axes than the first, or map the network over examples with "
            "jax.vmap."
        )


def _check_seen(tap: Tap, paths: list[str], ignored: set[int]) -> None:
    unseen = {i: reason for i, reason in sorted(tap.unseen.items()) if i not in ignored}
    if unseen:
        by_reason: dict[str, list[str]] = {}
        for i, reason in unseen.items():
            by_reason.setdefault(reason, []).append(repr(paths[i]))
        reasons = "; ".join(f"{', '.join(own)}: {why}" for why, own in by_reason.items())
        raise ValueError(
            f"Some kernels cannot be quantized where they stand. {reasons}. Rewrite these, or "
            f"leave them unquantized with ignore={tuple(paths[i] for i in unseen)!r}."
        )


def _check_tied(
    paths: list[str], uses: Mapping[int, list[Operation]], may_tie: set[int]
) -> None:
    again = {
        paths[leaf]: len(own)
        for leaf, own in uses.items()
        if len({o.leaf for o in own}) < len(own) and leaf not in may_tie
    }
    if again:
        counts = ", ".join(f"kernel {path!r} is used {n} times" for path, n in again.items())
        advice = "it once for all uses, or ignore it"
        if len(again) > 1:
            advice = "each once for all its uses, or ignore them"
        raise ValueError(
            f"{counts[0].upper()}{counts[1:]}. Pass tied={tuple(again)!r} to quantize {advice}."
        )


def _matching(named: Sequence[tuple[str, str]], **option: Sequence[str]) -> set[int]:
    """Pieces that patterns match, by their own names or by those of their leaves.

    Raises:
        ValueError: If a pattern matches nothing.
    """
    ((name, expressions),) = option.items()
    found: set[int] = set()
    for expression in expressions:
        try:
            re.compile(expression)
        except re.error as error:
            raise ValueError(
                f"{name}={expression!r} is not a regular expression: {error}. Write a "
                "backslash before its special characters."
            ) from error
        own = {
            i
            for i, names in enumerate(named)
            if expression in names or any(re.fullmatch(expression, n) for n in names)
        }
        if not own:
            there = _some([path for path, _ in named])
            advice = ""
            if any(fnmatch.fnmatchcase(path, expression) for names in named for path in names):
                advice = f" It is a regular expression: {expression.replace('*', '.*')!r}?"
            raise ValueError(
                f"{name}={expression!r} matches no parameter; there are {there}.{advice}"
            )
        found |= own
    return found


def _some(names: Sequence[str], most: int = 8) -> str:
    listed = ", ".join(names[:most])
    return f"{listed}, ... ({len(names)} in all)" if len(names) > most else listed
