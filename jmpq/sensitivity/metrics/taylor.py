"""Taylor terms of the loss in ε: first order, empirical Fisher, Gauss-Newton, Hessian."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jmpq.curvature.ggn import ggn_of_changes, gradient_of_changes
from jmpq.data.positions import counted
from jmpq.kinds import check_kinds
from jmpq.network.piecewise import piecewise_linear
from jmpq.sensitivity.metric import About, Changes, Program, Terms
from jmpq.sensitivity.metrics.tangent_hessian import exact_programs, exact_terms
from jmpq.sensitivity.moves import MoveNetwork, by_shard, micro_batches
from jmpq.training.losses import ExampleLoss, cross_entropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstOrder:
    """⟨∇L, δ⟩: one backward pass for all moves."""

    loss: ExampleLoss = cross_entropy

    @property
    def about(self) -> About:
        return About(name="first_order", use_first=True, independent=True)

    @functools.partial(jax.jit, static_argnums=0)
    def __call__(self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array) -> Terms:
        first = example_gradients(moves, self.loss, inputs, targets).mean(axis=0)
        return Terms(first, jnp.zeros_like(first))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmpiricalFisher:
    """½ mean (∂L_n/∂ε)²: MPQCO's approximation, all moves and pairs from one backward pass.

    References:
        Chen, Wang, Cheng (2021), MPQCO, section 3.2: the Hessian of −log p_y with the second
        derivative of p dropped is the outer product of the gradient, example by example.
    """

    loss: ExampleLoss = cross_entropy

    @property
    def about(self) -> About:
        return About(name="empirical_fisher")

    def __call__(self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array) -> Terms:
        return self.terms(self.move_changes(moves, inputs, targets, key), targets)

    @functools.partial(jax.jit, static_argnums=0)
    def move_changes(
        self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array
    ) -> Changes:
        """Slope of every example's loss along every move."""
        slopes = example_gradients(moves, self.loss, inputs, targets)
        return Changes(slopes, jnp.zeros(slopes.shape[:1], slopes.dtype))

    @functools.partial(jax.jit, static_argnums=0)
    def terms(self, changes: Changes, targets: Array) -> Terms:
        """Mean slopes, and their Gram matrix."""
        slopes = changes.by_move
        return Terms(slopes.mean(axis=0), slopes.T @ slopes / slopes.shape[0])


@check_kinds
@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussNewton:
    """½ mean Var_p(u) with its cross terms; the Hessian of KL(p ‖ p_quantized) at zero.

    Where there are more classes than backward passes are worth, `class_samples` K draws
    random s with E[ssᵀ] = diag p − ppᵀ for every example: mean (s·u)² is then unbiased, one
    backward pass each instead of one per class or move, and its standard error is returned.
    Of outputs with positions one pass serves all positions, and takes the memory of one
    backward pass, whatever the number of samples, classes, positions and moves.

    Attributes:
        changes: Logit changes u by ``derivative`` (J_z δ), or by ``difference``
            (z(w + δ) − z(w)), which keeps each move's own nonlinearity.
        class_samples: ``all`` classes, exactly, or the number K of samples per example (two
            at least for a standard error). For cross-entropy alone.
    """

    changes: Literal["derivative", "difference"] = "derivative"
    loss: ExampleLoss = cross_entropy
    class_samples: int | Literal["all"] = "all"

    def __post_init__(self) -> None:
        if self.class_samples == "all":
            return
        if self.class_samples < 1:
            raise ValueError(
                f"class_samples={self.class_samples}: give at least 1, or 'all' classes."
            )
        if self.changes == "difference":
            raise ValueError(
                "class_samples saves nothing by difference, where every forward pass gives all "
                "classes. Leave it at 'all', or take changes='derivative'."
            )
        if self.loss is not cross_entropy:
            raise ValueError(
                "class_samples knows the curvature of cross-entropy alone. Use "
                "class_samples='all' with another loss."
            )

    @property
    def about(self) -> About:
        by_difference = self.changes == "difference"
        return About(name="gauss_newton_difference" if by_difference else "gauss_newton")

    def __call__(self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array) -> Terms:
        return self.terms(self.move_changes(moves, inputs, targets, key), targets)

    @functools.partial(jax.jit, static_argnums=0)
    def move_changes(
        self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array
    ) -> Changes:
        """Logits, and their change by every move; of sampled classes see `_slopes`."""
        if self.class_samples != "all":
            return self._slopes(moves, inputs, targets, key)
        by = {
            "derivative": moves.changes_by_derivative,
            "difference": moves.changes_by_difference,
        }
        z, changes = by[self.changes](inputs)
        return Changes(changes, z)

    @functools.partial(jax.jit, static_argnums=0)
    def terms(self, changes: Changes, targets: Array) -> Terms:
        """Gradient and Gauss-Newton matrix, or its samples."""
        if self.class_samples != "all":
            first, drawn = changes.by_move[..., 0], changes.by_move[..., 1:]
            samples = jnp.einsum("nmk,njk->kmj", drawn, drawn) / drawn.shape[0]
            return Terms(first.mean(axis=0), samples.mean(axis=0), samples)
        u, z = changes
        first = gradient_of_changes(self.loss, z, targets, u).mean(axis=0)
        return Terms(first, ggn_of_changes(self.loss, z, targets, u))

    def _slopes(
        self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array
    ) -> Changes:
        """Slopes of the loss itself along every move, then of every sample s: sᵀu."""
        assert self.class_samples != "all"
        count = self.class_samples
        keys = key if key.ndim else jax.random.split(key, targets.shape[0])

        def slopes(
            batch: tuple[PyTree, Array, Array],
        ) -> tuple[Float[Array, "batch moves seeds"], Float[Array, "batch *output"]]:
            inputs, targets, keys = batch
            z, pull = moves.pullback(inputs)
            own = jax.vmap(jax.grad(self.loss))(z, targets)
            if z.ndim == 2:
                draw = functools.partial(_random_factors, count)
                seeds = jnp.concatenate(
                    [own[:, None], jax.vmap(draw)(keys, z, targets)], axis=1
                )
                return jax.vmap(pull, in_axes=1, out_axes=2)(seeds), z

            # Of positions one sample at a time: there may be millions of outputs an example.
            def one(keys: Array) -> Float[Array, "batch moves"]:
                return pull(
                    jax.vmap(functools.partial(_random_factors, 1))(keys, z, targets)[:, 0]
                )

            each = jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(keys)
            drawn = jnp.moveaxis(jax.lax.map(one, each), 0, 2)
            return jnp.concatenate([pull(own)[..., None], drawn], axis=2), z

        return Changes(*by_shard(slopes, (inputs, targets, keys), moves.shards))


def _random_factors(
    count: int, key: Array, z: Float[Array, "*positions classes"], target: Array
) -> Float[Array, "samples *positions classes"]:
    """Random s of one example, E[ssᵀ] the Hessian of its cross-entropy in its logits.

    Of positions, each with its own signs: what two of them have in common is zero on average,
    and each has the weight 1/number of those that count.
    """
    signs = jax.random.rademacher(key, (count, *z.shape), z.dtype)
    factors = class_factors(z, signs)
    if z.ndim == 1:
        return factors
    counts = counted(target, z.shape[:-1])
    counts = jnp.ones(z.shape[:-1], bool) if counts is None else counts
    weights = counts.astype(z.dtype) / jnp.maximum(counts.sum(), 1).astype(z.dtype)
    return factors * jnp.sqrt(weights)[None, ..., None]


def class_factors(
    z: Float[Array, "*positions classes"], signs: Float[Array, "samples *positions classes"]
) -> Float[Array, "samples *positions classes"]:
    """Random s = Σ_c ξ_c √p_c (e_c − p) by signs ξ: E[ssᵀ] = diag p − ppᵀ.

    That is the Hessian of cross-entropy in the logits. (s·u)² has a variance of at most twice
    its mean squared, whatever p; with sampled labels, s = e_y − p and y ~ p, the variance is
    that of a rare class where p is nearly certain, and a class that was never drawn is missed
    by the estimate and by its standard error.

    References:
        Derived here: E[ξξᵀ] = I, and Σ_c p_c (e_c − p)(e_c − p)ᵀ = diag p − ppᵀ.
    """
    p = jax.nn.softmax(z)[None]
    scaled = signs * jnp.sqrt(p)
    return scaled - scaled.sum(axis=-1, keepdims=True) * p


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExactHessian:
    """½ δᵀHδ with the exact Hessian, all cross terms.

    Where the network is piecewise linear (`jmpq.network.piecewise`), by tangents alone: about
    one forward pass of the later layers per move (`jmpq.sensitivity.metrics.tangent_hessian`).
    Otherwise by ``jvp`` over ``grad`` per move, on the host: inside a compiled loop the CPU is
    far slower on the gradient of a convolution's kernel.

    Attributes:
        micro_batch: Examples at a time; few stay in a CPU's cache. Memory is flat in the
            number of bits, and that of one tangent per layer for so many examples.
    """

    micro_batch: int = 4
    loss: ExampleLoss = cross_entropy

    @property
    def about(self) -> About:
        return About(name="hessian")

    def programs(
        self, moves: MoveNetwork, inputs: PyTree, targets: Any, key: Array
    ) -> list[Program]:
        count = min(targets.shape[0], self.micro_batch * moves.shards)

        def few(x: Any) -> jax.ShapeDtypeStruct:
            place = getattr(x, "sharding", None)
            return jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype, sharding=place)

        inputs, targets = jax.tree.map(few, (inputs, targets))
        if piecewise_linear(moves.network.tap):
            return exact_programs(moves, self.loss, inputs, targets)
        tangent = self._basis(moves)[0]
        return [Program(ExactHessian.product, (self, moves, inputs, targets, tangent))]

    def __call__(self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array) -> Terms:
        terms = self._by_tangents if piecewise_linear(moves.network.tap) else self._by_products
        parts = []
        for rows, some in micro_batches((inputs, targets), self.micro_batch, moves.shards):
            share = some.shape[0] / targets.shape[0]
            # One at a time: the collectives of several passes in flight may wait for each
            # other for ever where many devices share few cores.
            part = jax.block_until_ready(terms(moves, rows, some))
            parts.append(jax.tree.map(lambda x, s=share: s * x, part))
        return jax.tree.map(lambda *x: sum(x[1:], x[0]), *parts)

    def _by_tangents(self, moves: MoveNetwork, inputs: PyTree, targets: Array) -> Terms:
        return Terms(*exact_terms(moves, self.loss, inputs, targets))

    def _by_products(self, moves: MoveNetwork, inputs: PyTree, targets: Array) -> Terms:
        basis = self._basis(moves)
        rows = [
            jax.block_until_ready(self.product(moves, inputs, targets, tangent))
            for tangent in basis
        ]
        return Terms(rows[0][0], jnp.stack([row for _, row in rows]))

    def _basis(self, moves: MoveNetwork) -> Float[np.ndarray, "moves moves"]:
        dtype = jax.tree.leaves(moves.network.params)[0].dtype
        return np.eye(len(moves.moves), dtype=dtype)

    @functools.partial(jax.jit, static_argnums=0)
    def product(
        self,
        moves: MoveNetwork,
        inputs: PyTree,
        targets: Array,
        tangent: Float[Array, " moves"],
    ) -> tuple[Float[Array, " moves"], Float[Array, " moves"]]:
        """Gradient, and Hessian times `tangent`, with respect to ε at zero."""

        def mean_loss(epsilon: Float[Array, " moves"]) -> Float[Array, ""]:
            return jax.vmap(self.loss)(moves.logits(epsilon, inputs), targets).mean()

        return jax.jvp(jax.grad(mean_loss), (jnp.zeros_like(tangent),), (tangent,))


def example_gradients(
    moves: MoveNetwork, loss: ExampleLoss, inputs: PyTree, targets: Array
) -> Float[Array, "batch moves"]:
    """∂L_n/∂ε_m of every example and move at ε = 0, by one backward pass."""

    def summed_loss(epsilon: Float[Array, "batch moves"]) -> Float[Array, ""]:
        return jax.vmap(loss)(moves.logits_per_example(epsilon, inputs), targets).sum()

    dtype = jax.tree.leaves(moves.network.params)[0].dtype
    return jax.grad(summed_loss)(jnp.zeros((targets.shape[0], len(moves.moves)), dtype))
