"""Measured outcomes and their store: an allocation is measured once on the same examples."""

import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from jmpq.allocation import Allocation, bit_arrays
from jmpq.data.dataset import Split
from jmpq.deploy.correction import Correct
from jmpq.deploy.measure import Evaluator, Outcome
from jmpq.files import versions
from jmpq.journal import Journal
from jmpq.run.folder import RunFolder
from jmpq.run.loss import loss_code
from jmpq.run.subject import Subject

FLOAT, SECONDS = "float", "seconds per allocation"  # keys beside those of allocations
SCORES = "scores"  # array of an entry


class Measured:
    """Outcomes of allocations on some examples: what the store lacks is measured and kept.

    The store is a journal named by all that decides the numbers: weights, examples, loss,
    correction, versions and device. In it an outcome is found by the bits of every layer and
    the scales of these bits, so that new bit-widths and new plans leave it valid.

    Args:
        folder: The run folder.
        subject: Network, quantizers and loss.
        split: Examples to measure on.
        batch_size: Most of them at once.
        correct: Correction of the layers' outputs.
        corrected: Examples that the correction looks at.
        mesh: Devices over which examples are spread.
        each: Whether what every example became is kept beside the means (`of_examples`).

    Attributes:
        evaluator: Measures what the store lacks.
    """

    def __init__(
        self,
        folder: RunFolder,
        subject: Subject,
        split: Split,
        batch_size: int,
        *,
        correct: Correct = "none",
        corrected: Split | None = None,
        mesh: Mesh | None = None,
        each: bool = False,
    ) -> None:
        of = {
            "network": folder.layers.identity,
            "examples": split.sha256,
            "loss": subject.loss,
            **loss_code(subject.loss),
            "correct": correct,
            "corrected": None if corrected is None else corrected.sha256,
            "versions": versions("jax", "jaxlib", "flax"),
            "device": jax.devices()[0].device_kind,
        }
        self._journal = Journal(folder.store("outcomes", of), of)
        self.evaluator: Evaluator = subject.evaluator(
            split,
            batch_size,
            correct=correct,
            corrected=corrected,
            mesh=mesh,
            journal=self._journal,
        )
        self._layers = [layer.name for layer in subject.network.layers]
        self._quantizers, self._each = subject.quantizers, each

    def known(self, allocation: Allocation) -> Outcome | None:
        """The outcome in the store, or None where the allocation was not measured."""
        entry = self._journal.get(self._key(allocation))
        if entry is None or (self._each and SCORES not in entry.arrays):
            return None
        return Outcome.from_json(entry.value)

    def keep(
        self,
        allocation: Allocation,
        outcome: Outcome,
        scores: Float[np.ndarray, "6 examples"] | None = None,
    ) -> None:
        """Add an outcome, measured on all examples, to the store."""
        arrays = {} if scores is None else {SCORES: scores.astype(np.float32)}
        self._journal.keep(self._key(allocation), outcome.to_json(), arrays)

    def of_examples(self, allocation: Allocation) -> Float[np.ndarray, "6 examples"]:
        """What `Evaluator.scores` said of every example, of an allocation measured so."""
        entry = self._journal.get(self._key(allocation))
        assert entry is not None, "measure it first, with each=True"
        return entry.arrays[SCORES]

    def __call__(
        self,
        allocations: Sequence[Allocation],
        *,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Outcome]:
        """Outcomes of allocations; equal ones are measured once, known ones not again.

        Args:
            allocations: The allocations.
            progress: Callback, called with the number measured and the number to measure.

        Raises:
            ValueError: If an allocation names a layer that the network does not have, or
                gives one bits that were not calibrated.
        """
        self.evaluator.bits(allocations)  # refused before anything is measured
        keys = [self._key(allocation) for allocation in allocations]
        known: dict[str, Outcome] = {}
        todo: dict[str, Allocation] = {}
        for key, allocation in zip(keys, allocations, strict=True):
            if (outcome := self.known(allocation)) is None:
                todo.setdefault(key, allocation)
            else:
                known[key] = outcome
        lacking, ends = list(todo), list[float]()
        progress(0, len(lacking))

        scores: dict[int, Float[np.ndarray, "6 examples"]] = {}

        def keep(index: int, outcome: Outcome) -> None:
            known[lacking[index]] = outcome
            self.keep(todo[lacking[index]], outcome, scores.pop(index, None))
            progress(index + 1, len(lacking))
            ends.append(time.perf_counter())

        if todo:
            keep_scores = scores.__setitem__ if self._each else lambda index, rows: None
            self.evaluator(list(todo.values()), done=keep, scored=keep_scores)
        chunk = self.evaluator.candidates_per_call  # the first one compiles
        if len(ends) > chunk:
            seconds = (ends[-1] - ends[chunk - 1]) / (len(ends) - chunk)
            self._journal.keep(SECONDS, seconds)
        return [known[key] for key in keys]

    @property
    def seconds_per_allocation(self) -> float | None:
        """Seconds per allocation without compilation; None where too few were measured."""
        entry = self._journal.get(SECONDS)
        return None if entry is None else entry.value

    def float_outcome(self) -> Outcome:
        """Outcome of the float network."""
        if (entry := self._journal.get(FLOAT)) is not None:
            return Outcome.from_json(entry.value)
        outcome = self.evaluator.float_outcome()
        self._journal.keep(FLOAT, outcome.to_json())
        return outcome

    def _key(self, allocation: Allocation) -> str:
        """The bits of every layer of the network, and a hash of their scales and codes."""
        (bits,) = bit_arrays(self._layers, [allocation])
        scales = self._quantizers.sha256_at(*(frozenset(row.tolist()) for row in bits))
        return f"{Allocation.from_bits(self._layers, bits).label} {scales[:16]}"
