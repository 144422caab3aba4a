"""The measured outcome of allocations: loss, KL, accuracy, in one compiled program."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jmpq.data.batches import Batch
from jmpq.models.network import Network
from jmpq.quantizers.fake_quant import Quantizers, quantized_logits
from jmpq.training.losses import ExampleLoss, cross_entropy, kl_divergence

CANDIDATES_PER_CALL = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was measured on some examples; `*_sem` are standard errors over examples.

    Attributes:
        examples: Number of examples.
        loss: Mean loss, nats per example.
        increase: Mean loss minus the float network's on the same examples; its error is that
            of the paired difference.
        kl: Mean KL(p_float ‖ p_quantized), nats per example.
        top1: Fraction of examples whose label has the greatest logit.
        agreement: Fraction of examples whose greatest logit is the float network's.
    """

    examples: int
    loss: float
    loss_sem: float
    increase: float
    increase_sem: float
    kl: float
    kl_sem: float
    top1: float
    top1_sem: float
    agreement: float

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN and infinite numbers (a destroyed network) become None."""
        values = dataclasses.asdict(self)
        return {k: v if math.isfinite(v) else None for k, v in values.items()}


class Evaluator:
    """Measures allocations of one network.

    One compilation serves all allocations, and other examples in batches of the same size.

    Args:
        network: The float network.
        quantizers: Its calibrated quantizers.
        batches: Called for the examples; batches of one size, padding with weight zero.
        loss: Loss of one example, nats.
        candidates_per_call: Allocations per call of the compiled program.
    """

    def __init__(
        self,
        network: Network,
        quantizers: Quantizers,
        batches: Callable[[], Iterable[Batch]],
        *,
        loss: ExampleLoss = cross_entropy,
        candidates_per_call: int = CANDIDATES_PER_CALL,
    ) -> None:
        self.network, self.quantizers, self.batches = network, quantizers, batches
        self.loss, self.candidates_per_call = loss, candidates_per_call
        self._reference: list[tuple[Array, np.ndarray, np.ndarray]] | None = None

    def reference(self) -> list[tuple[Array, np.ndarray, np.ndarray]]:
        """Per batch: float logits, float losses, and which examples count."""
        if self._reference is None:
            self._reference = []
            for batch in self.batches():
                z, losses = _float_scores(self.network, self.loss, batch.inputs, batch.labels)
                counts = np.asarray(batch.weights) > 0
                self._reference.append((z, np.asarray(losses, np.float64), counts))
        return self._reference

    def float_outcome(self) -> Outcome:
        """The float network itself."""
        rows = []
        for batch, (z, losses, counts) in zip(self.batches(), self.reference(), strict=True):
            correct = np.asarray(z).argmax(axis=1) == np.asarray(batch.labels)
            same = np.ones_like(losses)
            rows.append(np.stack([losses, 0 * losses, correct, same, losses])[:, counts])
        return _outcome(np.concatenate(rows, axis=1))

    def __call__(
        self,
        w_bits: Int[np.ndarray, "allocations layers"],
        a_bits: Int[np.ndarray, "allocations layers"],
        *,
        done: Callable[[int, Outcome], None] = lambda index, outcome: None,
    ) -> list[Outcome]:
        """Measure allocations.

        Args:
            w_bits: Weight bits of every layer; 32 leaves it as it is.
            a_bits: Activation bits of every layer's input.
            done: Called with (allocation, outcome) as soon as one is known.

        Raises:
            ValueError: If a layer is given bits that were not calibrated.
        """
        w_bits, a_bits = np.asarray(w_bits), np.asarray(a_bits)
        for w, a in zip(w_bits, a_bits, strict=True):
            self.quantizers.check(self.network, w.tolist(), a.tolist())
        outcomes: list[Outcome] = []
        for start in range(0, len(w_bits), self.candidates_per_call):
            chosen = np.arange(start, min(start + self.candidates_per_call, len(w_bits)))
            padded = np.resize(chosen, self.candidates_per_call)  # one shape, one compilation
            bits = jnp.array(np.stack([w_bits[padded], a_bits[padded]], axis=1))
            for outcome in self._chunk(bits, len(chosen)):
                done(len(outcomes), outcome)
                outcomes.append(outcome)
        return outcomes

    def _chunk(self, bits: Array, count: int) -> list[Outcome]:
        rows = []
        for batch, (z, losses, counts) in zip(self.batches(), self.reference(), strict=True):
            found = _scores(
                self.network, self.quantizers, self.loss, bits, batch.inputs, batch.labels, z
            )
            found = np.asarray(found, np.float64)[:count]
            base = np.broadcast_to(losses, (count, 1, len(losses)))
            rows.append(np.concatenate([found, base], axis=1)[:, :, counts])
        return [_outcome(scores) for scores in np.concatenate(rows, axis=2)]


def bits_of(
    network: Network, allocations: Sequence[dict[str, tuple[int, int]]]
) -> tuple[Int[np.ndarray, "allocations layers"], Int[np.ndarray, "allocations layers"]]:
    """Weight and activation bits by layer from {layer: (w_bits, a_bits)}; absent layers 32."""
    names = [layer.name for layer in network.layers]
    for allocation in allocations:
        if unknown := [name for name in allocation if name not in names]:
            raise ValueError(
                f"An allocation names layer {unknown[0]!r}, which the network does not have "
                f"({', '.join(names[:5])}, ...). Is it a plan of another network?"
            )
    pairs = [[a.get(name, (32, 32)) for name in names] for a in allocations]
    table = np.array(pairs, int).reshape(len(allocations), len(names), 2)
    return table[..., 0], table[..., 1]


@functools.partial(jax.jit, static_argnums=1)
def _float_scores(
    network: Network, loss: ExampleLoss, inputs: PyTree, labels: Array
) -> tuple[Float[Array, "batch classes"], Float[Array, " batch"]]:
    """Logits and losses of the float network."""
    z = network.run(inputs, lambda site, layer, x, leaf, op: op(x, leaf))
    return z, jax.vmap(loss)(z, labels)


@functools.partial(jax.jit, static_argnums=2)
def _scores(
    network: Network,
    quantizers: Quantizers,
    loss: ExampleLoss,
    bits: Int[Array, "candidates 2 layers"],
    inputs: PyTree,
    labels: Array,
    z: Float[Array, "batch classes"],
) -> Float[Array, "candidates 4 batch"]:
    """Loss, KL, correct and agrees, of every candidate and example."""

    def score(bits: Int[Array, "2 layers"]) -> Float[Array, "4 batch"]:
        q = quantized_logits(network, quantizers, bits[0], bits[1], inputs)
        top = q.argmax(axis=1).astype(labels.dtype)
        return jnp.stack(
            [
                jax.vmap(loss)(q, labels),
                jax.vmap(kl_divergence)(q, z),
                (top == labels).astype(q.dtype),
                (top == z.argmax(axis=1).astype(top.dtype)).astype(q.dtype),
            ]
        )

    return jax.lax.map(score, bits)


def _outcome(scores: Float[np.ndarray, "5 examples"]) -> Outcome:
    """Means and standard errors over examples, in float64."""
    loss, kl, correct, agrees, base = scores

    def sem(x: np.ndarray) -> float:
        return float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.nan

    return Outcome(
        examples=len(loss),
        loss=float(loss.mean()),
        loss_sem=sem(loss),
        increase=float((loss - base).mean()),
        increase_sem=sem(loss - base),
        kl=float(kl.mean()),
        kl_sem=sem(kl),
        top1=float(correct.mean()),
        top1_sem=sem(correct),
        agreement=float(agrees.mean()),
    )
