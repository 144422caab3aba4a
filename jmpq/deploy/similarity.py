"""The measured outcome of a sentence encoder: rank correlation with people's scores."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jaxtyping import Array, Float, Int, PyTree

from jmpq.allocation import AllocationLike, bit_arrays
from jmpq.data.batches import Batch
from jmpq.formats import FLOAT_BITS
from jmpq.kinds import check_kinds
from jmpq.network.network import Network
from jmpq.network.sites import Op, Site
from jmpq.quantizers.fake_quant import quantize_params, quantize_site_input, run_quantized
from jmpq.quantizers.scales import Quantizers
from jmpq.text import plural, printed
from jmpq.training.evaluate import standard_error

RESAMPLES = 200  # of the bootstrap
Examples = Float[np.ndarray, " examples"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimilarityOutcome:
    """Measurements on some pairs of sentences.

    Attributes:
        examples: Number of pairs.
        spearman: Rank correlation of the network's similarity with the label.
        pearson: Linear correlation of the two.
        drop: Spearman of the float network minus `spearman`.
        drop_sem: Standard error of `drop` over bootstrap samples of the pairs, the same for
            both networks.
        loss: Mean ½(similarity − that of the float network)², nats per example (see
            `jmpq.training.losses.squared_error`).
        loss_sem: Standard error of `loss` over pairs.
    """

    examples: int
    spearman: float
    pearson: float
    drop: float
    drop_sem: float
    loss: float
    loss_sem: float

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not finite (a destroyed network) becomes None."""
        values = dataclasses.asdict(self)
        return {k: v if math.isfinite(v) else None for k, v in values.items()}


@check_kinds
class SimilarityEvaluator:
    """Measures allocations of a network whose one output is the similarity of two sentences.

    Kernels are quantized once an allocation, by one compiled program; another runs a batch,
    one for every length of sentences.

    Args:
        network: The float network: one output an example.
        quantizers: Calibrated quantizers of the network.
        batches: Function that returns the examples; padding has weight zero. Labels in any
            linear scale.
        seed: Seed of the bootstrap.
    """

    def __init__(
        self,
        network: Network,
        quantizers: Quantizers,
        batches: Callable[[], Iterable[Batch]],
        *,
        seed: int = 0,
    ) -> None:
        self.network, self.quantizers = network, quantizers
        self.batches, self.seed = batches, seed

    def __repr__(self) -> str:
        return printed(
            f"SimilarityEvaluator of {plural(len(self.network.layers), 'layer')}: rank "
            "correlation of allocations with people's scores",
            f"{self.quantizers!r}",
        )

    @functools.cached_property
    def reference(self) -> tuple[Examples, Examples]:
        """Similarities by the float network, and labels."""
        labels = [np.asarray(b.labels, np.float64)[b.weights > 0] for b in self.batches()]
        idle = np.full((2, len(self.network.layers)), FLOAT_BITS)
        return self._similarities(self.network.params, idle, None), np.concatenate(labels)

    def similarities(self, allocation: AllocationLike) -> Float[np.ndarray, " examples"]:
        """Similarity of every pair under an allocation, float64.

        Raises:
            ValueError: If the allocation names a layer that the network does not have, or
                gives one bits that were not calibrated; if the network has not one output.
        """
        names = [layer.name for layer in self.network.layers]
        (bits,) = bit_arrays(names, [allocation])
        w_bits, a_bits = bits
        self.quantizers.check(self.network, w_bits.tolist(), a_bits.tolist())
        params = quantize_params(self.network, self.quantizers.weights, jnp.asarray(w_bits))
        moved = np.any(a_bits != FLOAT_BITS)
        return self._similarities(params, bits, self.quantizers if moved else None)

    def float_outcome(self) -> SimilarityOutcome:
        """The float network itself."""
        return outcome_of(self.reference[0], *self.reference, seed=self.seed)

    @check_kinds
    def __call__(self, allocations: Sequence[AllocationLike]) -> list[SimilarityOutcome]:
        """Measure allocations; raises as `similarities` does."""
        return [
            outcome_of(self.similarities(allocation), *self.reference, seed=self.seed)
            for allocation in allocations
        ]

    def _similarities(
        self,
        params: PyTree,
        bits: Int[np.ndarray, "2 layers"],
        quantizers: Quantizers | None,
    ) -> Float[np.ndarray, " examples"]:
        rows = []
        for batch in self.batches():
            z = _outputs(self.network, quantizers, params, jnp.asarray(bits), batch.inputs)
            if z.ndim != 2 or z.shape[1] != 1:
                raise ValueError(
                    f"The network returns shape {z.shape}; expected one similarity an example, "
                    "[batch, 1], as of a BERT with head='similarity'."
                )
            rows.append(np.asarray(z[:, 0], np.float64)[np.asarray(batch.weights) > 0])
        return np.concatenate(rows)


def outcome_of(
    similarities: Float[np.ndarray, " examples"],
    reference: Float[np.ndarray, " examples"],
    labels: Float[np.ndarray, " examples"],
    *,
    seed: int = 0,
) -> SimilarityOutcome:
    """Correlations and losses; NaN where similarities are not finite or all the same."""
    count = len(labels)
    losses = 0.5 * np.square(similarities - reference)
    quantized, exact = _spearman(similarities, labels), _spearman(reference, labels)
    drops = []
    rng = np.random.default_rng(seed)
    for _ in range(RESAMPLES):
        at = rng.integers(0, count, count)
        drops.append(
            _spearman(reference[at], labels[at]) - _spearman(similarities[at], labels[at])
        )
    return SimilarityOutcome(
        examples=count,
        spearman=quantized,
        pearson=_pearson(similarities, labels),
        drop=exact - quantized,
        drop_sem=float(np.std(drops, ddof=1)),
        loss=float(losses.mean()),
        loss_sem=standard_error(losses),
    )


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    if not np.isfinite(x).all():
        return math.nan
    return _pearson(scipy.stats.rankdata(x), scipy.stats.rankdata(y))


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    norm = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / norm if norm > 0 and math.isfinite(norm) else math.nan


@jax.jit
def _outputs(
    network: Network,
    quantizers: Quantizers | None,
    params: PyTree,
    bits: Int[Array, "2 layers"],
    inputs: PyTree,
) -> Float[Array, "batch ..."]:
    if quantizers is None:
        return network.logits(inputs, params)

    w_bits, a_bits = bits

    def at_site(site: Site, x: Array, op: Op) -> Array:
        return op(quantize_site_input(network, quantizers, a_bits, site, x))

    return run_quantized(network, quantizers, w_bits, a_bits, inputs, at_site, params)
