"""Transferred logits: changes from few calibration examples, applied to many other examples.

What a mean over 200 examples says of an allocation is uncertain mostly because of the examples:
measuring the allocation itself on them would say it no better. The float logits of thousands of
examples cost one forward pass each, whatever the number of moves. So the predicted change of
the logits of a calibration example is taken as a draw from what quantization does to any
example like it, and applied to the float logits of others:

- **coupled by certainty**: an example takes its change from calibration examples whose margin
  (greatest logit minus the second) is in the same bin, because uncertain examples change in
  another way than certain ones;
- **class by class in the order of the logits**: the change of the greatest logit goes to the
  greatest logit, that of the second to the second, and so on, so that attenuation stays
  attenuation whatever the class is called.

Which examples are predicted is then no longer which moves were made on them. Nothing is run but
the float network.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from jmpq.allocation import Allocation, column_table
from jmpq.formats import Choice
from jmpq.sensitivity.logits.composed import Composed
from jmpq.sensitivity.logits.increases import increases
from jmpq.sensitivity.logits.superposed import MEMORY_BYTES, WORKING_COPIES, in_chunks
from jmpq.text import plural, printed


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Transferred:
    """Predicts the KL divergence of joint allocations on many examples; a `JointPredictor`.

    Attributes:
        composed: Changes of the logits of calibration examples, one output of classes each.
        logits: Float logits of other examples, any number of them.
        bins: Bins of certainty, of equally many calibration examples.
        seed: Seed of who takes whose change.

    Raises:
        ValueError: If outputs are not classes, or there are more bins than calibration
            examples.
    """

    composed: Composed
    logits: Float[np.ndarray, "_ _"]
    bins: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        z = self.composed.superposed.logits
        if z.ndim != 2 or z.shape[1] < 2 or self.logits.shape[1:] != z.shape[1:]:
            raise ValueError(
                f"Logits of shape {list(self.logits.shape[1:])} an example do not go with "
                f"changes of shape {list(z.shape[1:])}: transfer takes one output of two "
                "classes or more."
            )
        if not 1 <= self.bins <= len(z):
            raise ValueError(
                f"bins={self.bins}: give 1 to {len(z)}, the number of calibration examples."
            )

    def __repr__(self) -> str:
        return printed(
            f"Transferred logits: KL divergence on {plural(len(self.logits), 'example')}, nats "
            f"per example, {plural(self.bins, 'bin')} of certainty",
            f"by {self.composed!r}",
        )

    @property
    def layers(self) -> tuple[str, ...]:
        return self.composed.layers

    @property
    def choices(self) -> tuple[Choice, ...]:
        return self.composed.choices

    def predict(self, allocations: Sequence[Allocation]) -> Float[np.ndarray, " allocations"]:
        """Predicted KL divergence from the float network, nats per example."""
        return self.predict_columns(column_table(self.layers, self.choices, allocations))

    def predict_columns(
        self, table: Int[np.ndarray, "allocations layers"]
    ) -> Float[np.ndarray, " allocations"]:
        """`predict` for searches: of rows of columns of `choices`, one per layer."""
        return self.predict_examples(table).mean(axis=1)

    def predict_examples(
        self, table: Int[np.ndarray, "allocations layers"]
    ) -> Float[np.ndarray, "allocations examples"]:
        """`predict_columns`, example by example."""
        data = self.composed.superposed
        z, own = _in_order(data.logits)
        many, _ = _in_order(self.logits)
        nothing = np.zeros(len(many), np.intp)  # a divergence looks at no label

        def predicted(
            rows: Int[np.ndarray, "chunk layers"],
        ) -> Float[np.ndarray, "chunk examples"]:
            q = np.take_along_axis(self.composed.joint_logits(rows), own[None], axis=2)
            return increases("kl", "kl", many + (q - z)[:, self.partners], many, nothing)

        each = WORKING_COPIES * self.logits.size * self.logits.itemsize
        return in_chunks(predicted, data.checked(table), max(1, MEMORY_BYTES // each))

    def standard_errors(
        self, table: Int[np.ndarray, "allocations layers"]
    ) -> Float[np.ndarray, " allocations"]:
        """Standard errors of `predict_columns`: other calibration examples, other examples.

        Predictions that take the change of the same calibration example are one observation.
        """
        predicted = self.predict_examples(table)
        rest = predicted - predicted.mean(axis=1, keepdims=True)
        clusters = len(self.composed.superposed.logits)
        sums = np.stack([np.bincount(self.partners, row, clusters) for row in rest])
        factor = clusters / max(clusters - 1, 1)
        return np.sqrt(factor * (sums**2).sum(axis=1)) / rest.shape[1]

    @functools.cached_property
    def partners(self) -> Int[np.ndarray, " examples"]:
        """The calibration example whose change every example takes.

        Within a bin all calibration examples are taken equally often, up to one.
        """
        rng = np.random.default_rng(self.seed)
        ours = _margins(self.composed.superposed.logits)
        order = np.argsort(ours, kind="stable")
        parts = np.array_split(order, self.bins)
        edges = [(ours[a[-1]] + ours[b[0]]) / 2 for a, b in itertools.pairwise(parts)]
        bins = np.searchsorted(edges, _margins(self.logits))
        partners = np.empty(len(self.logits), np.int64)
        for number, part in enumerate(parts):
            here = rng.permutation(np.flatnonzero(bins == number))
            partners[here] = np.resize(rng.permutation(part), len(here))
        return partners


def _in_order(
    z: Float[np.ndarray, "examples classes"],
) -> tuple[Float[np.ndarray, "examples classes"], Int[np.ndarray, "examples classes"]]:
    """Logits of every example from the greatest to the least, and their classes."""
    order = np.argsort(-z, axis=1, kind="stable")
    return np.take_along_axis(z, order, axis=1), order


def _margins(z: Float[np.ndarray, "examples classes"]) -> Float[np.ndarray, " examples"]:
    """Greatest logit minus the second: how certain the network is."""
    greatest = np.partition(z, -2, axis=1)[:, -2:]
    return greatest[:, 1] - greatest[:, 0]
