"""The network every stage works on: a pure function, its parameters, its layer table."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import errors as flax_errors
from flax import nnx
from jaxtyping import Array, Float, PyTree

from jmpq.network.layers import Layer
from jmpq.network.precision import held_in_float32, is_half, widened
from jmpq.network.sites import Op, Operation, Site, Transform
from jmpq.network.tap import Tap
from jmpq.network.tree_paths import leaf_paths
from jmpq.network.walk import Rule, bind

# Names of a kernel inside its layer: left out of the layer's name.
KERNEL_NAMES = {"kernel", "weight", "w", "W", "embedding"}
BOX_NAME = "value"  # the array in an NNX variable, after the kernel's own name


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "state"],
    meta_fields=["apply", "layers", "other_parameters", "tap", "leaves"],
)
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Network:
    """A trained network, unwrapped: `apply` is the user's own function.

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
        leaves: Per layer the index of its kernel among the flattened parameters, then the
            indices of its aliases.
    """

    apply: Callable[[PyTree, PyTree], Array]
    params: PyTree
    state: PyTree
    layers: tuple[Layer, ...]
    other_parameters: int
    tap: Tap
    leaves: tuple[tuple[int, ...], ...]

    @classmethod
    def from_function(
        cls,
        apply: Callable[[PyTree, PyTree], Array],
        params: PyTree,
        example: PyTree,
        *,
        state: PyTree = None,
        tied: Sequence[str] = (),
        ignore: Sequence[str] = (),
    ) -> "Network":
        """Find the layers of any pure JAX function.

        Args:
            apply: ``apply(params, inputs) -> logits [batch, classes]``.
            params: Pytree of float arrays, NumPy's too. Half precision is held in float32, the
                same values, and so is the output: the function itself computes as before.
            example: Inputs of any batch size, batch axis first in every leaf.
            state: Other arrays the function closes over (for hashes only).
            tied: Regular expressions (fullmatch) of kernel paths that the function uses
                several times: such a kernel is one layer, quantized once.
            ignore: Regular expressions (fullmatch) of kernel paths to leave unquantized,
                among them kernels the tap cannot see.

        Raises:
            ValueError: If a parameter is not finite, a pattern matches nothing, no layer is
                found, or a kernel is used where the tap cannot follow (named, with reason).
        """
        paths = leaf_paths(params)
        leaves = jax.tree.leaves(params)
        _check_parameters(paths, leaves)
        own, held = apply, held_in_float32(apply, params)
        if any(is_half(leaf.dtype) for leaf in leaves):
            apply = held
        # Shared ones stay shared.
        arrays = {id(leaf): widened(jnp.asarray(leaf)) for leaf in leaves}
        params = jax.tree.map(lambda leaf: arrays[id(leaf)], params)
        leaves = jax.tree.leaves(params)
        patterns = {"tied": tied, "ignore": ignore}
        for option, expressions in patterns.items():
            for expression in expressions:
                if not any(re.fullmatch(expression, path) for path in paths):
                    raise ValueError(
                        f"{option}={expression!r} matches no parameter; "
                        f"there are {_some(paths)}."
                    )
        structs = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (params, example)
        )
        tap = Tap(apply, *structs)
        if apply is own and is_half(tap.jaxpr.outvars[0].aval.dtype):
            apply, tap = held, Tap(held, *structs)
        ignored = {i for i, path in enumerate(paths) if _matches(path, ignore)}
        _check_seen(tap, paths, ignored)

        buffers: dict[int, int] = {}  # shared buffers are one layer
        canonical = {
            o.leaf: buffers.setdefault(id(leaves[o.leaf]), o.leaf) for o in tap.operations
        }
        uses: dict[int, list[Operation]] = {}
        for operation in tap.operations:
            if operation.leaf not in ignored:
                uses.setdefault(canonical[operation.leaf], []).append(operation)
        for leaf, own in uses.items():
            if len({o.leaf for o in own}) < len(own) and not _matches(paths[leaf], tied):
                raise ValueError(
                    f"Kernel {paths[leaf]!r} is used {len(own)} times. Pass "
                    f"tied=({paths[leaf]!r},) to quantize it once for all uses, or ignore it."
                )
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
        distinct = {id(leaf): leaf.size for leaf in leaves}
        return cls(
            apply=apply,
            params=params,
            state=state,
            layers=tuple(layers),
            other_parameters=sum(distinct.values()) - sum(layer.parameters for layer in layers),
            tap=tap,
            leaves=groups,
        )

    @classmethod
    def from_linen(
        cls,
        module: nn.Module,
        variables: Mapping[str, PyTree],
        example: PyTree,
        *,
        tied: Sequence[str] = (),
        ignore: Sequence[str] = (),
        **call: Any,
    ) -> "Network":
        """A linen module with its variables; everything but ``params`` is frozen.

        Args:
            module: The module, called as ``module.apply(variables, inputs, **call)``.
            variables: Variables that ``module.init`` returned or training left.
            example: Inputs of any batch size.
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

        def apply(params: PyTree, inputs: PyTree) -> Array:
            return module.apply({"params": params, **state}, inputs, **call)  # type: ignore

        params = variables["params"]
        try:
            return cls.from_function(
                apply, params, example, state=state, tied=tied, ignore=ignore
            )
        except (flax_errors.ModifyScopeVariableError, flax_errors.InvalidRngError) as error:
            raise ValueError(
                f"{type(module).__name__} is not in evaluation mode (it updates statistics or "
                "draws random numbers). Pass the argument that freezes it, as train=False."
            ) from error

    @classmethod
    def from_nnx(
        cls,
        model: nnx.Module,
        example: PyTree,
        *,
        tied: Sequence[str] = (),
        ignore: Sequence[str] = (),
    ) -> "Network":
        """An NNX module with its parameters; every other variable is frozen.

        Args:
            model: Called as ``model(inputs)``, in evaluation mode (``model.eval()``). It is
                copied, not changed.
            example: Inputs of any batch size.
            tied: See `from_function`.
            ignore: See `from_function`.

        Raises:
            ValueError: As `from_function`; also if a call changes variables of the model, that
                is, if it is not in evaluation mode.
        """
        graph, variables, rest = nnx.split(model, nnx.Param, ...)
        params, state = nnx.to_pure_dict(variables), nnx.to_pure_dict(rest)

        def apply(params: PyTree, inputs: PyTree) -> Array:
            # New variables in each call: what the model does to them is not seen outside.
            fresh, frozen = jax.tree.map(lambda leaf: leaf, (variables, rest))
            nnx.replace_by_pure_dict(fresh, params)
            copy = nnx.merge(graph, fresh, frozen)
            before = jax.tree.leaves(nnx.split(copy, nnx.Param, ...)[2])
            logits = copy(inputs)  # type: ignore[operator]
            after = jax.tree.leaves(nnx.split(copy, nnx.Param, ...)[2])
            if any(a is not b for a, b in zip(before, after, strict=True)):
                raise ValueError(
                    f"{type(model).__name__} is not in evaluation mode (it updates statistics "
                    "or draws random numbers). Call model.eval() first."
                )
            return logits

        return cls.from_function(apply, params, example, state=state, tied=tied, ignore=ignore)

    @functools.cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every use of a quantizable kernel, in the order of execution."""
        layer_of = {leaf: i for i, group in enumerate(self.leaves) for leaf in group}
        kernels = jax.tree.leaves(self.params)
        used = [0] * len(self.layers)
        sites = []
        for operation in self.tap.operations:
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
            transform: Called as ``transform(site, input, op)``, in the order of `sites`;
                ``op(input)`` is the site's original operation with `site.kernel`, and
                ``op(input, kernel)`` the same with another kernel leaf.
            params: Parameters instead of the network's own.
            rule: Evaluation of single equations (see `Tap.run`).
        """
        params = self.params if params is None else params
        leaves = jax.tree.leaves(params)
        sites = {site.operation.path: site for site in self.sites}

        def at(operation: Operation, x: Any, op: Op) -> Any:
            if (site := sites.get(operation.path)) is None:
                return op(x)
            return transform(dataclasses.replace(site, kernel=leaves[operation.leaf]), x, op)

        return self.tap.run(params, inputs, at, rule)

    def logits(self, inputs: PyTree, params: PyTree | None = None, rule: Rule = bind) -> Array:
        """Logits of the network as it is; for `params` and `rule` see `run`."""
        return self.tap.run(self.params if params is None else params, inputs, rule=rule)

    def record(self, inputs: PyTree, params: PyTree | None = None) -> tuple[Array, list[Array]]:
        """Logits and the input of every site, in the order of `sites`."""
        recorded: list[Array] = []

        def keep(site: Site, x: Array, op: Op) -> Array:
            recorded.append(x)
            return op(x)

        return self.run(inputs, keep, params), recorded

    def kernels(self, params: PyTree | None = None) -> list[Array]:
        """The kernel leaf of every layer."""
        leaves = jax.tree.leaves(self.params if params is None else params)
        return [leaves[group[0]] for group in self.leaves]

    def with_kernels(self, kernels: Sequence[Array], params: PyTree | None = None) -> PyTree:
        """The parameters with other kernels (shapes as `kernels`), aliases included."""
        leaves, tree = jax.tree.flatten(self.params if params is None else params)
        for group, kernel in zip(self.leaves, kernels, strict=True):
            for leaf in group:
                leaves[leaf] = kernel
        return jax.tree.unflatten(tree, leaves)

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
    """
    names = []
    for kernel in kernels:
        parts = kernel.split("/")
        for endings in ({BOX_NAME}, KERNEL_NAMES):
            if len(parts) > 1 and parts[-1] in endings:
                parts.pop()
        names.append("/".join(parts))
    return [n if names.count(n) == 1 else k for n, k in zip(names, kernels, strict=True)]


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


def _check_seen(tap: Tap, paths: list[str], ignored: set[int]) -> None:
    unseen = {i: reason for i, reason in sorted(tap.unseen.items()) if i not in ignored}
    if unseen:
        reasons = "; ".join(f"{paths[i]!r}: {reason}" for i, reason in unseen.items())
        raise ValueError(
            f"Some kernels cannot be quantized where they stand. {reasons}. Rewrite these, "
            f"or leave them unquantized with ignore=({paths[next(iter(unseen))]!r}, ...)."
        )


def _matches(path: str, expressions: Sequence[str]) -> bool:
    return any(re.fullmatch(expression, path) for expression in expressions)


def _some(names: Sequence[str], most: int = 8) -> str:
    listed = ", ".join(names[:most])
    return f"{listed}, ... ({len(names)} in all)" if len(names) > most else listed
