"""The measured outcome of allocations: loss, KL, accuracy, in one compiled program.

An example whose output has several positions counts by the mean over its positions
(`jmpq.training.losses`). What takes class probabilities is NaN where a network has none, and
what takes labels of classes where they are another kind of target.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from jmpq.allocation import AllocationLike, bit_arrays
from jmpq.data.batches import CHECK_LOGITS, Batch, check_finite, check_pairs
from jmpq.deploy.correction import (
    Correct,
    Corrections,
    Moments,
    corrected_logits,
    find_corrections,
    output_moments,
)
from jmpq.devices import EXAMPLES, mesh_for, replicate, spread, to_host
from jmpq.journal import Journal
from jmpq.kinds import check_kinds
from jmpq.network.network import Network
from jmpq.quantizers.scales import Quantizers
from jmpq.text import plural, printed
from jmpq.training.evaluate import standard_error
from jmpq.training.labels import check_labels, check_unnormalised, label_array
from jmpq.training.losses import (
    ExampleLoss,
    check_loss,
    cross_entropy,
    has_classes,
    increase,
    position_mean,
)

CANDIDATES_PER_CALL = 8
REFERENCE_BYTES = 2**26  # of float logits that a journal keeps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Measurements on some examples; `*_sem` are standard errors over examples.

    Attributes:
        examples: Number of examples.
        loss: Mean loss, nats per example.
        increase: Mean loss minus the float network's on the same examples; its error is that
            of the paired difference.
        kl: Mean KL(p_float ‖ p_quantized), nats per example.
        top1: Fraction of examples (of positions, the mean over examples) whose label has the
            greatest logit.
        top5: Fraction of examples whose label has one of the five greatest logits; 1 where
            there are no more classes.
        agreement: Fraction of examples whose greatest logit is the float network's.

    `kl` and `agreement` are NaN where the output is not one of classes, `top1` and `top5`
    there and where labels are not classes.
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
    top5: float
    top5_sem: float
    agreement: float

    def __repr__(self) -> str:
        facts = [
            f"loss {self.loss:.4g} ± {self.loss_sem:.2g}",
            f"increase {self.increase:.4g} ± {self.increase_sem:.2g}",
            f"KL divergence {self.kl:.4g} ± {self.kl_sem:.2g}",
        ]
        shares = [
            f"top-1 {100 * self.top1:.2f} ± {100 * self.top1_sem:.2f} %",
            f"top-5 {100 * self.top5:.2f} %",
            f"agrees with the float network on {100 * self.agreement:.2f} %",
        ]
        if math.isnan(self.agreement):  # no classes
            del facts[2], shares[:]
        elif math.isnan(self.top1):
            del shares[:2]
        title = f"Outcome on {plural(self.examples, 'example')}"
        return printed(f"{title}: {', '.join(facts)} nats per example", ", ".join(shares))

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN and infinite numbers (a destroyed network) become None."""
        values = dataclasses.asdict(self)
        return {k: v if math.isfinite(v) else None for k, v in values.items()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Outcome":
        """Inverse of `to_json`; None becomes NaN."""
        values: dict[str, Any] = {k: math.nan if v is None else v for k, v in record.items()}
        return cls(**values)


class Reference(NamedTuple):
    """The float network's answer to a batch: `logits` and the class of the `greatest` (None
    without classes), the loss of every example in float64, and which examples count.
    """  # noqa: D205

    logits: Float[Array, "batch *output"]
    greatest: Int[Array, "batch ..."] | None
    losses: Float[np.ndarray, " batch"]
    counts: Bool[np.ndarray, " batch"]


@check_kinds
class Evaluator:
    """Measures allocations of one network.

    One compilation serves all allocations, and other examples in batches of the same size.

    Args:
        network: The float network.
        quantizers: Calibrated quantizers of the network.
        batches: Function that returns the examples; batches of one size, padding with weight
            zero. Or (inputs, labels) of every batch, as `analyse` takes them, nothing of it
            padding.
        loss: Loss of one example, nats.
        candidates_per_call: Allocations per call of the compiled program.
        correct: Correction of the layers' outputs, found anew for every allocation: its
            ``bias``, or ``batch_norm`` statistics (see `jmpq.deploy.correction`).
        examples: Calibration inputs in one batch, for corrections.
        corrections: Instead of those, corrections that are the same for every allocation.
        reference: The network that losses and logits are compared with; `network` itself if
            nothing else is said.
        mesh: Devices over which the examples of a batch are spread
            (`jmpq.devices.device_mesh`); outcomes are the same up to rounding.
        journal: Keeps the float logits of the batches, up to `REFERENCE_BYTES`.

    Raises:
        ValueError: If there is something to correct and no examples, or the quantizers are
            those of another network.
    """

    def __init__(
        self,
        network: Network,
        quantizers: Quantizers,
        batches: Callable[[], Iterable[Batch]] | Sequence[tuple[PyTree, Any]],
        *,
        loss: ExampleLoss = cross_entropy,
        candidates_per_call: int = CANDIDATES_PER_CALL,
        correct: Correct = "none",
        examples: PyTree = None,
        corrections: Corrections | None = None,
        reference: Network | None = None,
        mesh: Mesh | None = None,
        journal: Journal | None = None,
    ) -> None:
        if correct != "none" and examples is None:
            raise ValueError(
                f"correct={correct!r} compares layers on calibration inputs: pass them as "
                "`examples`, or correct 'none'."
            )
        quantizers.check_network(network)
        self.network, self.quantizers = network, quantizers
        if not callable(batches):
            check_pairs(batches)
        self.batches = batches if callable(batches) else lambda: _unpadded(batches)
        if candidates_per_call < 1:
            raise ValueError(f"candidates_per_call={candidates_per_call}: give at least 1.")
        self.loss, self.candidates_per_call = loss, candidates_per_call
        self.correct, self.examples, self.mesh = correct, examples, mesh
        self.fixed = corrections or {}
        self.float_network = network if reference is None else reference
        self._placed: dict[int, tuple[Network, Network, Quantizers]] = {}  # by shards
        self._journal = Journal(None, None) if journal is None else journal
        self._reference: list[Reference] | None = None

    def __repr__(self) -> str:
        devices = 1 if self.mesh is None else self.mesh.size
        return printed(
            f"Evaluator of {plural(len(self.network.layers), 'layer')}: loss, KL divergence "
            "and accuracy of allocations",
            f"{self.quantizers!r}",
            f"loss {getattr(self.loss, '__name__', self.loss)}, correction "
            f"{'given' if self.fixed else self.correct}, "
            f"{self.candidates_per_call} allocations a call, {plural(devices, 'device')}",
        )

    def _place(self, tree: PyTree) -> PyTree:
        """Rows of examples on the devices."""
        if self.mesh is None:
            return tree
        return spread(mesh_for(self.mesh, jax.tree.leaves(tree)[0].shape[0]), tree)

    def _models(self, rows: PyTree) -> tuple[Network, Network, Quantizers]:
        """Network, float network and quantizers where such rows of examples are placed."""
        models = self.network, self.float_network, self.quantizers
        if self.mesh is None:
            return models
        grid = mesh_for(self.mesh, jax.tree.leaves(rows)[0].shape[0])
        if (shards := grid.shape[EXAMPLES]) not in self._placed:
            self._placed[shards] = replicate(grid, models)
        return self._placed[shards]

    @functools.cached_property
    def _moments(self) -> dict[int, Moments]:
        # Waited for: sums over devices of two programs at a time can wait for each other.
        network, _, _ = self._models(self.examples)
        return jax.block_until_ready(output_moments(network, self._place(self.examples)))

    def reference(self) -> list[Reference]:
        """The float network's answer to every batch."""
        if self._reference is None:
            self._reference = []
            left = REFERENCE_BYTES
            for number, batch in enumerate(self.batches()):
                counts = np.asarray(batch.weights) > 0
                key = f"float logits {len(counts)} {number}"
                if (entry := self._journal.get(key)) is not None:
                    z, losses = (
                        self._place(jnp.asarray(entry.arrays["z"])),
                        entry.arrays["losses"],
                    )
                else:
                    inputs, labels = self._place((batch.inputs, batch.labels))
                    _, network, _ = self._models(inputs)
                    network.output_shape(inputs, "the examples")
                    z = _float_logits(network, inputs)
                    classes = self.loss is cross_entropy
                    check_labels(batch.labels, z.shape, "the examples", classes=classes)
                    _check_logits(z, counts)
                    if classes:
                        check_unnormalised(to_host(z)[counts], "the examples")
                    output = jax.ShapeDtypeStruct(z.shape[1:], z.dtype)
                    check_loss(self.loss, output, batch.labels[0])
                    losses = to_host(_losses(self.loss, z, labels)).astype(np.float64)
                    if (left := left - z.nbytes) >= 0:
                        self._journal.keep(key, arrays={"z": to_host(z), "losses": losses})
                self._reference.append(Reference(z, _greatest(z), losses, counts))
            if not any(known.counts.any() for known in self._reference):
                raise ValueError(
                    "There are no examples to measure on: give batches of one or more."
                )
        return self._reference

    def float_outcome(self) -> Outcome:
        """The float network itself (the `reference`)."""
        rows = []
        for batch, known in zip(self.batches(), self.reference(), strict=True):
            own = self._place(jnp.asarray(batch.labels))
            classes = _class_scores(known.logits, known.logits, known.greatest, own)
            rows.append(
                np.stack([known.losses, *to_host(classes).astype(np.float64), known.losses])[
                    :, known.counts
                ]
            )
        return outcome_of(np.concatenate(rows, axis=1))

    @check_kinds
    def __call__(
        self,
        allocations: Sequence[AllocationLike],
        *,
        done: Callable[[int, Outcome], None] = lambda index, outcome: None,
        scored: Callable[[int, Float[np.ndarray, "6 examples"]], None] = lambda i, scores: None,
    ) -> list[Outcome]:
        """Measure allocations.

        Args:
            allocations: The allocations, each an `Allocation` or a mapping of layers to choices
                or labels; a layer that it does not name stays unquantized.
            done: Callback, called with (index of the allocation, outcome) as soon as one is
                known.
            scored: Callback, called before that with (index of the allocation, its `scores`).

        Raises:
            ValueError: If an allocation names a layer that the network does not have, or
                gives one bits that were not calibrated.
        """
        bits = self.bits(allocations)
        if not len(bits):
            return []
        self.reference()  # what is wrong with the examples is said before anything is measured
        outcomes: list[Outcome] = []
        for start in range(0, len(bits), self.candidates_per_call):
            chunk = bits[start : start + self.candidates_per_call]
            corrections = self.corrections(chunk)
            rows = [self.scores(chunk, n, b, corrections) for n, b in enumerate(self.batches())]
            for scores in np.concatenate(rows, axis=2):
                outcomes.append(outcome_of(scores))
                scored(len(outcomes) - 1, scores)
                done(len(outcomes) - 1, outcomes[-1])
        return outcomes

    def bits(
        self, allocations: Sequence[AllocationLike]
    ) -> Int[np.ndarray, "allocations 2 layers"]:
        """Weight and activation bits of every layer, checked.

        Raises:
            ValueError: If an allocation names a layer that the network does not have, or
                gives one bits that were not calibrated.
        """
        bits = bit_arrays([layer.name for layer in self.network.layers], allocations)
        for w_bits, a_bits in bits.tolist():
            self.quantizers.check(self.network, w_bits, a_bits)
        return bits

    def corrections(self, bits: Int[np.ndarray, "allocations 2 layers"]) -> Corrections:
        """Corrections of at most `candidates_per_call` allocations: the first axis."""
        if self.correct == "none":
            count = len(bits)
            return jax.tree.map(lambda x: np.broadcast_to(x, (count, *x.shape)), self.fixed)
        network, _, quantizers = self._models(self.examples)
        corrections = _corrections(
            network,
            quantizers,
            self.correct,
            jnp.array(self._padded(bits)),
            len(bits),
            self._place(self.examples),
            self._moments,
        )
        return jax.tree.map(lambda x: to_host(x)[: len(bits)], corrections)

    def _padded(self, array: np.ndarray) -> np.ndarray:
        """With as many rows as allocations in a call: one shape, one compilation."""
        return np.resize(array, (self.candidates_per_call, *array.shape[1:]))

    def scores(
        self,
        bits: Int[np.ndarray, "allocations 2 layers"],
        number: int,
        batch: Batch,
        corrections: Corrections,
    ) -> Float[np.ndarray, "allocations 6 examples"]:
        """Scores of at most `candidates_per_call` allocations on one batch, example by example.

        Args:
            bits: Weight and activation bits.
            number: Position of the batch.
            batch: The batch.
            corrections: Corrections for these allocations.

        Returns:
            Loss, KL, whether the label is among the top one and the top five, whether the
            greatest logit is the float network's, and the float network's loss.
        """
        known = self.reference()[number]
        inputs, labels = self._place((batch.inputs, batch.labels))
        network, _, quantizers = self._models(inputs)
        scores = _scores(
            network,
            quantizers,
            self.loss,
            jnp.array(self._padded(bits)),
            len(bits),
            jax.tree.map(self._padded, corrections),
            inputs,
            labels,
            known.logits,
            known.greatest,
        )
        scores = to_host(scores)[: len(bits)].astype(np.float64)
        base = np.broadcast_to(known.losses, (len(bits), 1, len(known.losses)))
        return np.concatenate([scores, base], axis=1)[:, :, known.counts]


def _unpadded(batches: Sequence[tuple[PyTree, Any]]) -> Iterator[Batch]:
    """Batches in which every example counts."""
    for inputs, labels in batches:
        labels = label_array(labels, "the examples")
        check_finite((inputs, labels), "the examples")
        yield Batch(inputs, labels, np.ones(len(labels), np.float32))


def _check_logits(
    logits: Float[Array, "batch *output"], counts: Bool[np.ndarray, " batch"]
) -> None:
    """Raise `ValueError` where the float network's own logits are not finite."""
    finite = to_host(jnp.isfinite(logits).reshape(len(logits), -1).all(axis=1))
    if bad := int(np.sum(counts & ~finite)):
        raise ValueError(
            f"The float network's own logits are NaN or infinite for {bad} of {counts.sum()} "
            f"examples of a batch. {CHECK_LOGITS}"
        )


@jax.jit
def _float_logits(network: Network, inputs: PyTree) -> Float[Array, "batch *output"]:
    """Logits of the float network."""
    return network.logits(inputs)


@functools.partial(jax.jit, static_argnums=0)
def _losses(
    loss: ExampleLoss, z: Float[Array, "batch *output"], labels: Array
) -> Float[Array, " batch"]:
    return jax.vmap(loss)(z, labels)


@functools.partial(jax.jit, static_argnums=2)
def _scores(
    network: Network,
    quantizers: Quantizers,
    loss: ExampleLoss,
    bits: Int[Array, "candidates 2 layers"],
    count: Int[Array, ""] | int,
    corrections: Corrections,
    inputs: PyTree,
    labels: Array,
    z: Float[Array, "batch *output"],
    top: Int[Array, "batch ..."] | None,
) -> Float[Array, "candidates 5 batch"]:
    """Loss, KL, in the top one and five, agrees, of the first candidates and every example."""

    def score(candidate: tuple[Array, Corrections]) -> Float[Array, "5 batch"]:
        (w_bits, a_bits), corrections = candidate
        q = corrected_logits(network, quantizers, w_bits, a_bits, inputs, corrections)
        return jnp.stack(
            [jax.vmap(loss)(q, labels).astype(q.dtype), *_class_scores(q, z, top, labels)]
        )

    return _map_first(score, count, (bits, corrections))


@jax.jit
def _class_scores(
    q: Float[Array, "batch *output"],
    z: Float[Array, "batch *output"],
    top: Int[Array, "batch ..."] | None,
    labels: Array,
) -> Float[Array, "4 batch"]:
    """KL, in the top one and five, agrees, of every example; NaN where undefined."""
    undefined = jnp.full((q.shape[0],), jnp.nan, q.dtype)
    if top is None:
        return jnp.stack([undefined] * 4)

    def share(classes: Array, count: int) -> Float[Array, " batch"]:
        among_them = among(q, classes, count).astype(q.dtype)
        return jax.vmap(position_mean)(among_them, labels)

    divergence = jax.vmap(functools.partial(increase, "kl", cross_entropy))(q, z, labels)
    right = [undefined, undefined]
    if labels.shape == q.shape[:-1] and jnp.issubdtype(labels.dtype, jnp.integer):
        right = [share(labels, 1), share(labels, 5)]
    return jnp.stack([divergence, *right, share(top, 1)])


@jax.jit
def _greatest(z: Float[Array, "batch *output"]) -> Int[Array, "batch ..."] | None:
    """Class of the greatest logit of every example or position; None without classes."""
    return greatest(z) if has_classes(z.shape[1:]) else None


def greatest(logits: Float[Array, "*batch classes"]) -> Int[Array, "*batch"]:
    """Class of the greatest logit, the first of equal ones; no class where one is NaN.

    Two reductions that XLA vectorizes on a CPU; its `argmax` is several times slower.
    """
    count = logits.shape[-1]
    classes = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    top = logits.max(axis=-1, keepdims=True)
    return jnp.where(logits == top, classes, count).min(axis=-1)


@functools.partial(jax.jit, static_argnums=2)
def _corrections(
    network: Network,
    quantizers: Quantizers,
    kind: Literal["bias", "batch_norm"],
    bits: Int[Array, "candidates 2 layers"],
    count: Int[Array, ""] | int,
    inputs: PyTree,
    moments: dict[int, Moments],
) -> Corrections:
    """Corrections of the first candidates, which are the first axis."""
    return _map_first(
        lambda b: find_corrections(network, quantizers, b[0], b[1], inputs, moments, kind),
        count,
        bits,
    )


def _map_first(
    function: Callable[[PyTree], PyTree], count: Int[Array, ""] | int, rows: PyTree
) -> PyTree:
    """`jax.lax.map` over the first `count` rows, a traced number; zeros for the others."""

    def row(i: Int[Array, ""] | int) -> PyTree:
        return jax.tree.map(lambda x: x[i], rows)

    size = jax.tree.leaves(rows)[0].shape[0]
    zeros = jax.tree.map(
        lambda y: jnp.zeros((size, *y.shape), y.dtype), jax.eval_shape(function, row(0))
    )

    def step(i: Int[Array, ""], made: PyTree) -> PyTree:
        return jax.tree.map(lambda all_, y: all_.at[i].set(y), made, function(row(i)))

    return jax.lax.fori_loop(0, count, step, zeros)


def among(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"], count: int
) -> Bool[Array, "*batch"]:
    """Whether the label has one of the `count` greatest logits; never where it is NaN.

    Of equal logits those of the first classes are the greatest.
    """
    labels = labels[..., None]
    own = jnp.take_along_axis(logits, labels, axis=-1)
    classes = jnp.arange(logits.shape[-1], dtype=labels.dtype)
    classes = classes.reshape(*[1] * (logits.ndim - 1), -1)
    ahead = ~(logits < own) & ((logits != own) | (classes < labels))
    ahead &= classes != labels  # compiled code may have it twice, with another last digit
    return (ahead.sum(axis=-1) < count) & ~jnp.isnan(own[..., 0])


def difference_of(
    scores: Float[np.ndarray, "6 examples"], reference: Float[np.ndarray, "6 examples"]
) -> dict[str, float | None]:
    """What an allocation costs more than another, example by example.

    Args:
        scores: Scores of the allocation, as `Evaluator.scores` orders them.
        reference: Scores of the other one on the same examples.

    Returns:
        Mean of the paired differences of the KL divergence ``kl`` and the loss ``increase``,
        nats per example, with their standard errors ``kl_sem`` and ``increase_sem``; None
        where a score is not finite.
    """
    with np.errstate(invalid="ignore"):  # of infinite scores
        increase, kl = (scores.astype(np.float64) - reference.astype(np.float64))[:2]
    found = {
        "kl": float(kl.mean()),
        "kl_sem": standard_error(kl),
        "increase": float(increase.mean()),
        "increase_sem": standard_error(increase),
    }
    return {k: v if math.isfinite(v) else None for k, v in found.items()}


def outcome_of(scores: Float[np.ndarray, "6 examples"]) -> Outcome:
    """Means and standard errors over examples, in float64."""
    loss, kl, top1, top5, agrees, base = scores
    return Outcome(
        examples=len(loss),
        loss=float(loss.mean()),
        loss_sem=standard_error(loss),
        increase=float((loss - base).mean()),
        increase_sem=standard_error(loss - base),
        kl=float(kl.mean()),
        kl_sem=standard_error(kl),
        top1=float(top1.mean()),
        top1_sem=standard_error(top1),
        top5=float(top5.mean()),
        top5_sem=standard_error(top5),
        agreement=float(agrees.mean()),
    )
