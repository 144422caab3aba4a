"""Measured sensitivities: the network is run with moves made, alone or in pairs.

Forward passes only: all bits are traced values, so one compiled program measures every set of
moves, activations quantized as they come out of the perturbed layers before them.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jmpq.allocation import bit_arrays
from jmpq.devices import to_host
from jmpq.network.network import Network
from jmpq.quantizers.fake_quant import quantized_logits
from jmpq.sensitivity.metric import About, Program, Terms
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.training.losses import ExampleLoss, Increase, cross_entropy, increase

SETS_PER_CALL = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasuredMoves:
    """The measured increase when moves are made alone and in pairs, all else untouched.

    With D the measured increase, ``S_mm = 2 D(m)`` and ``S_mk = D({m, k}) − D(m) − D(k)``:
    ½ eᵀSe reproduces every measured move and pair exactly (up to rounding) and extrapolates to
    more. Two bit-widths of one tensor exclude each other, their entry is zero. S may be
    indefinite; it is not projected here.

    Within a layer, a choice makes a weight move and an input move together, and is measured.
    That costs ``1 + Σ_layers (w + a + w·a)`` forward passes for w and a bit-widths: 341 for
    ResNet-20 with five and two. All M moves and their P possible pairs, about M²/2, cost
    ``1 + M + P``: 9651 there (M = 140), where `GaussNewton` by difference takes 141.

    Attributes:
        kind: Increase of the ``loss`` (as CLADO), or ``kl``, KL(p_float ‖ p_quantized), which
            needs no labels.
        pairs: Pairs that are measured: within a ``layer``, zero across layers; or ``all``.
        loss: Loss of one example, for kind ``loss``.

    References:
        CLADO, arXiv 2307.05657: measured losses of all pairs, for an integer quadratic program.
    """

    kind: Increase = "loss"
    pairs: Literal["layer", "all"] = "layer"
    loss: ExampleLoss = cross_entropy

    @property
    def about(self) -> About:
        name = f"measured_{'pairs_' if self.pairs == 'all' else ''}{self.kind}"
        return About(name=name, kl=self.kind == "kl")

    def programs(
        self, moves: MoveNetwork, inputs: PyTree, targets: Any, key: Array
    ) -> list[Program]:
        bits = np.zeros((SETS_PER_CALL, 2, len(moves.network.layers)), int)
        reference = Program(float_logits, (moves.network, inputs))
        args = (moves, self.kind, self.loss, bits, inputs, targets, reference.results())
        return [reference, Program(_increases, args)]

    def __call__(self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array) -> Terms:
        count, pairs = len(moves.moves), possible_pairs(moves)
        if self.pairs == "layer":
            layers = [move.layer for move in moves.moves]
            pairs = [(m, k) for m, k in pairs if layers[m] == layers[k]]
        sets = [*((m,) for m in range(count)), *pairs]
        increases = measured_increases(
            moves, sets, inputs, targets, kind=self.kind, loss=self.loss
        )
        single, pair = increases[:count], increases[count:]
        second = np.diag(2 * single)
        if pairs:
            m, k = np.array(pairs).T
            second[m, k] = second[k, m] = pair - single[m] - single[k]
        dtype = jax.tree.leaves(moves.network.params)[0].dtype
        return Terms(jnp.zeros(count, dtype), jnp.asarray(second, dtype))


def possible_pairs(moves: MoveNetwork) -> list[tuple[int, int]]:
    """Pairs of moves that one allocation can make: not two bit-widths of one tensor."""
    tensors = [(move.layer, move.kind) for move in moves.moves]
    count = len(tensors)
    return [
        (m, k) for m in range(count) for k in range(m + 1, count) if tensors[m] != tensors[k]
    ]


def measured_increases(
    moves: MoveNetwork,
    sets: Sequence[Sequence[int]],
    inputs: PyTree,
    targets: Array,
    *,
    kind: Increase = "loss",
    loss: ExampleLoss = cross_entropy,
) -> Float[np.ndarray, " sets"]:
    """Measured increase of loss or KL when just the moves of each set are made.

    Args:
        moves: Network and quantizers.
        sets: Indices of moves; at most one per tensor.
        inputs: One batch.
        targets: One per example; for ``kl`` they say only which positions count.
        kind: Quantity that is measured, mean over the batch, nats per example.
        loss: Loss of one example.
    """
    z = float_logits(moves.network, inputs)
    names = [layer.name for layer in moves.network.layers]
    bits = bit_arrays(names, [moves.allocation(made) for made in sets])
    chunks = []
    for start in range(0, len(sets), SETS_PER_CALL):
        chunk = bits[start : start + SETS_PER_CALL]
        padded = np.resize(chunk, (SETS_PER_CALL, *chunk.shape[1:]))  # one compilation
        increases = _increases(moves, kind, loss, padded, inputs, targets, z)
        chunks.append(to_host(increases)[: len(chunk)].astype(np.float64).mean(axis=1))
    return np.concatenate(chunks) if chunks else np.zeros(0)


@jax.jit
def float_logits(network: Network, inputs: PyTree) -> Float[Array, "batch *output"]:
    """Logits of the network as it is."""
    return network.logits(inputs)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _increases(
    moves: MoveNetwork,
    kind: Increase,
    loss: ExampleLoss,
    bits: Int[Array, "sets 2 layers"],
    inputs: PyTree,
    targets: Array,
    z: Float[Array, "batch *output"],
) -> Float[Array, "sets batch"]:
    def measured(bits: Int[Array, "2 layers"]) -> Float[Array, " batch"]:
        q = quantized_logits(moves.network, moves.quantizers, bits[0], bits[1], inputs)
        return jax.vmap(functools.partial(increase, kind, loss))(q, z, targets)

    return jax.lax.map(measured, bits)
