"""Measurement: what any allocations cost, example by example; for studies and notebooks."""

import dataclasses
import os
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float, Int

from jmpq.allocation import Allocation
from jmpq.deploy.measure import Outcome
from jmpq.run.compute import join_devices
from jmpq.run.folder import RunFolder
from jmpq.run.lock import writes
from jmpq.run.options import Compute, Evaluate
from jmpq.run.outcomes import Measured
from jmpq.run.progress import QUIET, Reporter
from jmpq.run.subject import first_examples, load_subject

# Rows of the scores: what `Evaluator.scores` says of an example.
SCORES = ("loss", "kl", "top1", "top5", "agreement", "float_loss")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Measurements:
    """Outcomes of allocations on the same examples.

    Attributes:
        outcomes: Outcome of every allocation.
        scores: Loss, KL, in the top one and five, agreement and the float network's loss, of
            every allocation and example.
        indices: Positions of the examples in their split of the data set.
        float_outcome: Outcome of the float network.
        examples_sha256: Hash of the examples.
        device: Kind of device that measured.
    """

    outcomes: tuple[Outcome, ...]
    scores: Float[np.ndarray, "allocations 6 examples"]
    indices: Int[np.ndarray, " examples"]
    float_outcome: Outcome
    examples_sha256: str
    device: str


@writes
def measure(
    folder: str | os.PathLike[str],
    allocations: Sequence[Allocation],
    options: Evaluate = Evaluate(),
    *,
    reporter: Reporter = QUIET,
) -> Measurements:
    """Measure allocations on the evaluation examples; no plan is needed.

    Every outcome is kept in the folder's store, with what every example became: the same
    allocation is measured once, and an interrupted call goes on.

    Args:
        folder: The run folder, with sensitivities.
        allocations: Allocations to measure.
        options: Examples, batches, correction, devices; what speaks of a plan is not looked at.
        reporter: Listens.

    Raises:
        ValueError: If an allocation does not fit the network, or artifacts do not belong
            together.
        FileNotFoundError: If a step is missing; it says which.
    """
    mesh = join_devices(Compute(devices=options.devices))
    subject = load_subject(run := RunFolder(folder))
    corrected = None
    if options.correct != "none":
        corrected = first_examples(subject.calibration, options.correct_examples)
    split = first_examples(subject.evaluation, options.examples)
    measured = Measured(
        run, subject, split, options.batch_size,
        correct=options.correct, corrected=corrected, mesh=mesh, each=True,
    )  # fmt: skip
    with reporter.bar("Measuring", "allocations") as progress:
        outcomes = measured(allocations, progress=progress)
    scores = [measured.of_examples(allocation) for allocation in allocations]
    return Measurements(
        outcomes=tuple(outcomes),
        scores=np.stack(scores) if scores else np.zeros((0, len(SCORES), len(split))),
        indices=split.indices,
        float_outcome=measured.float_outcome(),
        examples_sha256=split.sha256,
        device=jax.devices()[0].device_kind,
    )
