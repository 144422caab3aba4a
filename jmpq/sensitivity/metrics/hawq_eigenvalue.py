"""Largest Hessian eigenvalues times squared perturbations: HAWQ (V1) and Q-BERT."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jmpq.curvature.eigen import EigenPairs, top_eigenpairs
from jmpq.curvature.power import power_iteration
from jmpq.devices import to_host
from jmpq.journal import Journal
from jmpq.network.network import Network
from jmpq.network.piecewise import reverse_only
from jmpq.network.sites import Op, Site
from jmpq.sensitivity.calibration_batches import batch_sizes
from jmpq.sensitivity.metric import About, Preparation, Program, Terms
from jmpq.sensitivity.metrics.hawq_trace import shifted_losses, zero_shifts
from jmpq.sensitivity.metrics.output_fisher import output_gradients
from jmpq.sensitivity.metrics.squared_error import squared_norms
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.training.losses import ExampleLoss, cross_entropy

Method = Literal["power", "lanczos"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EigenSearch:
    """Search for the eigenvalues of the blocks: method and when to stop.

    Attributes:
        method: For kernels: ``power`` iteration from a normal start, as HAWQ and Q-BERT, which
            finds the eigenvalue of largest magnitude; or ``lanczos``, which finds the
            algebraically largest, so that ½ λ‖δ‖² bounds ½ δᵀHδ from above. The examples of
            an input are iterated side by side, always by power.
        tolerance: Power: stop at this relative change (1 % in their code). Lanczos: residual
            relative to the eigenvalue.
        max_products: Products per block at most; what has not settled is taken as it is (for
            the kernels of `HawqEigenvalue` the provenance has residuals).
    """

    method: Method = "power"
    tolerance: float = 1e-2
    max_products: int = 100

    def kernels(
        self,
        product: Callable[[list[Array], list[Array]], list[Array]],
        kernels: list[Array],
        key: Array,
    ) -> EigenPairs:
        """The leading eigenpair of a block, from its ``product(kernels, tangents)``."""
        if self.method == "power":
            return power_iteration(
                product,
                kernels,
                key=key,
                tolerance=self.tolerance,
                max_products=self.max_products,
            )
        return top_eigenpairs(
            product,
            kernels,
            key=key,
            which="largest",
            tolerance=self.tolerance,
            max_products=self.max_products,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class HawqEigenvalue:
    """½ λ_max(H_i) ‖δ_i‖², weights and activations.

    A kernel's λ is that of the Hessian of the mean loss over *all* batches: the mean of the
    batches' own eigenvalues would be larger, since λ_max is convex. With v its eigenvector,
    the batches' vᵀH_b v average to λ exactly and their scatter is its standard error to first
    order; `prepare` finds v, the metric it returns takes vᵀH_b v batch by batch.

    An input is perturbed example by example and its Hessian has one block each, so the term is
    ½ mean_n λ_n ‖δ_n‖²: one product of an input iterates all examples at once.

    λ keeps its sign: where negative curvature dominates, the predicted increase is negative.
    HAWQ leaves out the ½, which ranks alike.

    Costs one product per iteration and kernel: blocks cannot share one, the others' parts of
    the tangent would leak in through the cross terms. See `block_product`.

    References:
        Dong et al. (2019), HAWQ, arXiv 1905.03696: Ω_i = λ_max(H_i) ‖Q(w_i) − w_i‖²
        (reported). Ours: whole set and its error, examples of activations by themselves.
    """

    search: EigenSearch = EigenSearch()
    loss: ExampleLoss = cross_entropy

    @property
    def about(self) -> About:
        return About(name="hawq_eigenvalue", additive=False, independent=True)

    def prepare(
        self,
        moves: MoveNetwork,
        batches: Sequence[tuple[MoveNetwork, PyTree, Any]],
        key: Array,
        *,
        progress: Callable[[int, int], None] = lambda done, total: None,
        journal: Journal | None = None,
    ) -> Preparation:
        """Find the leading eigenvector of every kernel over all batches.

        A layer that is in the journal is not searched again.
        """
        network, vectors, record = moves.network, {}, {}
        journal = journal or Journal(None, None)
        layers = _layers_of(moves, "w")
        progress(0, len(layers))
        for done, i in enumerate(layers):
            name = network.layers[i].name
            if (entry := journal.get(name)) is None:
                product = block_product(network, self.loss, batches, [i])
                pairs = self.search.kernels(
                    product, [network.kernels()[i]], jax.random.fold_in(key, i)
                )
                vector = to_host(pairs.vectors[0][0])
                record[name] = {
                    "eigenvalue": float(pairs.values[0]),
                    "residual": float(pairs.residuals[0]),
                    "converged": bool(pairs.converged[0]),
                    "products": int(pairs.products),
                }
                journal.keep(name, record[name], {"vector": vector})
            else:
                vector, record[name] = entry.arrays["vector"], entry.value
            vectors[i] = jnp.asarray(vector)
            progress(done + 1, len(layers))
        return Preparation(_AlongEigenvectors(of=self, vectors=vectors), record)

    def programs(
        self, moves: MoveNetwork, inputs: PyTree, targets: Any, key: Array
    ) -> list[Program]:
        return _programs(moves, self.loss, inputs, targets)

    def __call__(self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array) -> Terms:
        """Terms of one batch taken for the whole set."""
        metric = self.prepare(moves, [(moves, inputs, targets)], key).metric
        return metric(moves, inputs, targets, key)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _AlongEigenvectors:
    """`HawqEigenvalue` once its kernels' eigenvectors are known."""

    of: HawqEigenvalue
    vectors: dict[int, Array]  # by layer, norm one

    @property
    def about(self) -> About:
        return self.of.about

    def __call__(self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array) -> Terms:
        zeros = [jnp.zeros_like(kernel) for kernel in moves.network.kernels()]
        curvature = {
            i: curvature_along(
                moves.network,
                self.of.loss,
                inputs,
                targets,
                [*zeros[:i], vector, *zeros[i + 1 :]],
            )
            for i, vector in self.vectors.items()
        }
        return _terms(moves, self.of.search, self.of.loss, curvature, inputs, targets, key)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QBert:
    r"""½ (mean λ + c · spread of λ) ‖δ‖² over data subsets, weights and activations.

    The subsets are the batches: λ of a kernel is that of each batch's own Hessian, of an input
    as in `HawqEigenvalue`. The spread is the standard deviation of a choice's term over the
    batches (for weights alone exactly that of λ times ½‖δ‖²); `Sensitivity.spread` adds it,
    and its standard error is that of the mean. λ keeps its sign. Needs two batches.

    Attributes:
        spread: c, the weight of the spread. How Q-BERT weighs it is only reported.
        block: Regular expression (fullmatch) of layer names: the kernels of layers that match
            with the same captured text are one block with one λ, as an encoder layer is in
            Q-BERT: ``(encoder/layer/\d+)/.*``. Other kernels, and all without it, are a block
            each. The largest eigenvalue of a block is at least that of each of its kernels.
        search: Search for eigenvalues: power iteration to 1 % as in their code.

    References:
        Shen et al. (2020), Q-BERT, arXiv 1909.05840: sensitivity from mean and spread of λ
        over 10 % subsets of the data.
    """

    spread: float = 1.0
    block: str | None = None
    search: EigenSearch = EigenSearch()
    loss: ExampleLoss = cross_entropy

    @property
    def about(self) -> About:
        return About(name="qbert", additive=False, spread=self.spread, independent=True)

    def blocks(self, network: Network) -> list[list[int]]:
        """The layers of every block.

        Raises:
            ValueError: If `block` matches no layer.
        """
        blocks: dict[Any, list[int]] = {}
        for i, layer in enumerate(network.layers):
            match = re.fullmatch(self.block, layer.name) if self.block else None
            blocks.setdefault(match.groups() if match else i, []).append(i)
        if self.block and all(isinstance(key, int) for key in blocks):
            raise ValueError(
                f"block={self.block!r} matches no layer; there are "
                f"{', '.join(layer.name for layer in network.layers)}."
            )
        return list(blocks.values())

    def eigenvalues(
        self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array
    ) -> list[EigenPairs | None]:
        """The leading eigenpair of every block on one batch; None where nothing can move."""
        network, searched, pairs = moves.network, set(_layers_of(moves, "w")), []
        for block in self.blocks(network):
            if not searched.issuperset(block):
                pairs.append(None)
                continue
            product = block_product(network, self.loss, [(moves, inputs, targets)], block)
            kernels = [network.kernels()[i] for i in block]
            pairs.append(
                self.search.kernels(product, kernels, jax.random.fold_in(key, block[0]))
            )
        return pairs

    def programs(
        self, moves: MoveNetwork, inputs: PyTree, targets: Any, key: Array
    ) -> list[Program]:
        return _programs(moves, self.loss, inputs, targets)

    def __call__(self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array) -> Terms:
        pairs_of_blocks = self.eigenvalues(moves, inputs, targets, key)
        curvature = {
            i: pairs.values[0]
            for block, pairs in zip(self.blocks(moves.network), pairs_of_blocks, strict=True)
            for i in block
            if pairs is not None
        }
        return _terms(moves, self.search, self.loss, curvature, inputs, targets, key)


def _programs(
    moves: MoveNetwork, loss: ExampleLoss, inputs: PyTree, targets: Any
) -> list[Program]:
    """Programs of the eigenvalues of kernels and inputs for a batch."""
    network = moves.network
    kernels = [jnp.zeros_like(kernel) for kernel in network.kernels()]
    programs = [Program(squared_norms, (moves, inputs))]
    if layers := _layers_of(moves, "w"):
        slopes = Program(_slopes, (network, loss, inputs, targets, kernels))
        along = slopes.results()
        programs += [
            slopes,
            Program(curvature_along, (network, loss, inputs, targets, kernels)),
            *(
                Program(_kernel_gradient, (network, i, inputs, along.x, along.dg))
                for i in layers
            ),
        ]
    if _layers_of(moves, "a"):
        shifts = zero_shifts(network, inputs)
        programs.append(Program(input_products, (network, loss, inputs, targets, shifts)))
    return programs


def _layers_of(moves: MoveNetwork, kind: Literal["w", "a"]) -> list[int]:
    """Layers that have moves of a kind."""
    return [i for i in range(len(moves.network.layers)) if moves.columns(i, kind).size]


def _terms(
    moves: MoveNetwork,
    search: EigenSearch,
    loss: ExampleLoss,
    curvature: Mapping[int, Array | float],
    inputs: PyTree,
    targets: Array,
    key: Array,
) -> Terms:
    """λ‖δ‖² of every move; `curvature` by layer is that of the kernels."""
    network = moves.network
    dtype = network.kernels()[0].dtype
    second = np.zeros(len(moves.moves))
    norms = squared_norms(moves, inputs)
    for i, value in curvature.items():
        second[moves.columns(i, "w")] = float(value) * to_host(norms.kernels[i])
    moved = set(_layers_of(moves, "a"))
    for site in network.sites:
        if not (site.has_input and site.layer_index in moved):
            continue
        if site.repeat > 1:
            raise ValueError(
                f"Layer {site.layer.name!r}: its input merges the batch with "
                "another axis, so that examples have no eigenvalues of their own. Keep the "
                "batch axis, quantize weights only, or use hawq_trace."
            )
        own = jax.random.fold_in(key, len(network.layers) + site.index)
        values = input_eigenvalues(network, loss, inputs, targets, site.index, own, search)
        columns = moves.columns(site.layer_index, "a")
        second[columns] += (
            to_host(norms.inputs[site.index]).astype(np.float64) @ values / len(values)
        )
    return Terms(jnp.zeros(len(second), dtype), jnp.asarray(second, dtype))


def block_product(
    network: Network,
    loss: ExampleLoss,
    batches: Sequence[tuple[MoveNetwork, PyTree, Any]],
    layers: Sequence[int],
) -> Callable[[list[Array], list[Array]], list[Array]]:
    """``product(kernels, tangents)`` with the block of some layers of the Hessian of the mean
    loss over all examples of the batches, each of which comes with the network where it is.

    A layer is bilinear in its input and its kernel, so the product is the layer's own kernel
    gradient at the tangent of its output's gradient, and that at the tangent of its input:
    one compiled program to the outputs serves all layers, the costly gradients of all other
    kernels are not taken.
    """  # noqa: D205
    zeros = [jnp.zeros_like(kernel) for kernel in network.kernels()]
    uses = [sum(site.layer_index == layer for site in network.sites) for layer in layers]
    count = sum(batch_sizes(batches))
    still = uses == [1]  # the input of the only layer does not depend on its kernel

    def product(kernels: list[Array], tangents: list[Array]) -> list[Array]:
        total = [jnp.zeros_like(tangent) for tangent in tangents]
        along = list(zeros)
        for layer, tangent in zip(layers, tangents, strict=True):
            along[layer] = tangent
        for moves, inputs, targets in batches:
            here = moves.network
            slopes = _slopes(here, loss, inputs, jnp.asarray(targets), along)
            for n, layer in enumerate(layers):
                total[n] += _kernel_gradient(here, layer, inputs, slopes.x, slopes.dg)
                if not still:
                    total[n] += _kernel_gradient(here, layer, inputs, slopes.dx, slopes.g)
        return [part / count for part in total]

    return product


class _Slopes(NamedTuple):
    """By site: its input, the gradient of the summed loss at its output, and their tangents."""

    x: list[Array]
    g: list[Array]
    dx: list[Array | None]  # None where the site has no input to perturb
    dg: list[Array]


@functools.partial(jax.jit, static_argnums=1)
def _slopes(
    network: Network, loss: ExampleLoss, inputs: PyTree, targets: Array, tangents: list[Array]
) -> _Slopes:
    """Along kernel `tangents`, without any gradient with respect to a kernel."""

    def at(kernels: list[Array]) -> tuple[list[Array | None], list[Array]]:
        params = network.with_kernels(kernels)
        g, seen = output_gradients(network, loss, inputs, targets, params)
        x = [x if s.has_input else None for x, s in zip(seen, network.sites, strict=True)]
        return x, g

    (x, g), (dx, dg) = jax.jvp(at, (network.kernels(),), (tangents,))
    _, recorded = network.record(inputs)  # indices have no tangent
    x = [r if x is None else x for x, r in zip(x, recorded, strict=True)]
    return _Slopes(x, g, dx, dg)


@functools.partial(jax.jit, static_argnums=1)
def _kernel_gradient(
    network: Network,
    layer: int,
    inputs: PyTree,
    x: Sequence[Array | None],
    g: Sequence[Array],
) -> Array:
    """Σ over a layer's sites of ∂⟨op(x, w), g⟩/∂w; a site whose x is None is left out.

    Compiled for each layer, but only the layer's own operation is left of the network.
    """
    kernel = network.kernels()[layer]
    total = jnp.zeros_like(kernel)

    def add(site: Site, unused: Array, op: Op) -> Array:
        nonlocal total
        if site.layer_index == layer and (seen := x[site.index]) is not None:
            total = total + jax.vjp(lambda w: op(seen, w), kernel)[1](g[site.index])[0]
        return op(unused)

    network.run(inputs, add)
    return total


@functools.partial(jax.jit, static_argnums=1)
def curvature_along(
    network: Network, loss: ExampleLoss, inputs: PyTree, targets: Array, tangents: list[Array]
) -> Float[Array, ""]:
    """vᵀHv of the batch's mean loss for kernel tangents v.

    Without a backward pass, unless there is no forward mode.
    """
    shifts = zero_shifts(network, inputs)

    def mean_loss(kernels: list[Array]) -> Float[Array, ""]:
        return shifted_losses(network, loss, kernels, shifts, inputs, targets).mean()

    def slope(kernels: list[Array]) -> Float[Array, ""]:
        if reverse_only(network.tap):
            gradients = jax.grad(mean_loss)(kernels)
            return sum(map(jnp.vdot, gradients, tangents), jnp.zeros((), gradients[0].dtype))
        return jax.jvp(mean_loss, (kernels,), (tangents,))[1]

    return jax.jvp(slope, (network.kernels(),), (tangents,))[1]


@functools.partial(jax.jit, static_argnums=1)
def input_products(
    network: Network, loss: ExampleLoss, inputs: PyTree, targets: Array, tangents: list[Array]
) -> list[Array]:
    """Hessians of each example's loss with respect to its inputs of all sites, times
    `tangents`; no kernel gradient.
    """  # noqa: D205
    shifts = zero_shifts(network, inputs)

    def summed_loss(shifts: list[Array]) -> Float[Array, ""]:
        return shifted_losses(network, loss, network.kernels(), shifts, inputs, targets).sum()

    return jax.jvp(jax.grad(summed_loss), (shifts,), (tangents,))[1]


def input_eigenvalues(
    network: Network,
    loss: ExampleLoss,
    inputs: PyTree,
    targets: Array,
    site: int,
    key: Array,
    search: EigenSearch,
) -> Float[np.ndarray, " batch"]:
    """λ_n of the block of every example's input of one site: of largest magnitude, by power
    iteration of all examples side by side, until Σ_n |change of λ_n| is below the tolerance.
    """  # noqa: D205
    zeros = zero_shifts(network, inputs)
    axis = network.sites[site].input_batch_axis
    image = jax.random.normal(key, zeros[site].shape, zeros[site].dtype)
    values = np.zeros(image.shape[axis])
    for products in range(search.max_products):
        vector = _unit(image, axis)
        tangents = [*zeros[:site], vector, *zeros[site + 1 :]]
        image = input_products(network, loss, inputs, targets, tangents)[site]
        quotients = to_host(_quotients(vector, image, axis))
        last, values = values, quotients.astype(np.float64)
        if products and abs(values - last).sum() <= search.tolerance * abs(values).sum():
            break
    return values


@functools.partial(jax.jit, static_argnums=1)
def _unit(vectors: Array, axis: int) -> Array:
    """Every example's vector with norm one; zero stays zero."""
    others = tuple(a for a in range(vectors.ndim) if a != axis)
    norms = jnp.sqrt(jnp.square(vectors).sum(axis=others, keepdims=True))
    return vectors / jnp.where(norms > 0, norms, 1)


@functools.partial(jax.jit, static_argnums=2)
def _quotients(vectors: Array, images: Array, axis: int) -> Float[Array, " batch"]:
    others = tuple(a for a in range(vectors.ndim) if a != axis)
    return (vectors * images).sum(axis=others)
