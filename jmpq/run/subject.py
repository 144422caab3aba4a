"""The subject of measurements: network, quantizers and examples of a run."""

import dataclasses

import numpy as np
from jax.sharding import Mesh

from jmpq.data.batches import batches
from jmpq.data.dataset import Dataset, Split
from jmpq.data.splits import calibration_split
from jmpq.deploy.correction import Correct
from jmpq.deploy.measure import CANDIDATES_PER_CALL, Evaluator
from jmpq.journal import Journal
from jmpq.network.network import Network
from jmpq.quantizers.scales import Quantizers
from jmpq.run.artifacts import Sensitivities
from jmpq.run.folder import RunFolder
from jmpq.run.loss import find_loss, measured_loss
from jmpq.run.network import check_targets, network_of
from jmpq.sensitivity.table import KIND as SENSITIVITY


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Subject:
    """What the allocations of a plan are measured on.

    Attributes:
        network: The float network.
        quantizers: Calibrated quantizers of the network.
        dataset: The data set.
        calibration: The examples of the sensitivities.
        evaluation: The examples that accuracy is reported on.
        loss: Name of the loss that is measured; the KL divergence always is.
    """

    network: Network
    quantizers: Quantizers
    dataset: Dataset
    calibration: Split
    evaluation: Split
    loss: str

    def evaluator(
        self,
        split: Split,
        batch_size: int,
        *,
        correct: Correct = "none",
        corrected: Split | None = None,
        mesh: Mesh | None = None,
        candidates_per_call: int = CANDIDATES_PER_CALL,
        journal: Journal | None = None,
    ) -> Evaluator:
        """Measures allocations.

        Args:
            split: Examples to measure on.
            batch_size: Most of them at once.
            correct: Correction of the layers' outputs.
            corrected: Examples that the correction looks at.
            mesh: Devices over which examples are spread.
            candidates_per_call: Allocations per call of the compiled program.
            journal: Keeps the float network's logits; of the same network and examples.
        """
        size = min(batch_size, len(split))
        examples = None
        if corrected is not None:
            examples = batches(corrected, len(corrected))[0].inputs
        return Evaluator(
            self.network,
            self.quantizers,
            lambda: batches(split, size),
            loss=find_loss(self.loss),
            candidates_per_call=candidates_per_call,
            correct=correct,
            examples=examples,
            mesh=mesh,
            journal=journal,
        )


def load_subject(folder: RunFolder) -> Subject:
    """The subject of a run folder with sensitivities; it loads the network and the data.

    Raises:
        FileNotFoundError: If a step is missing; it says which.
        ValueError: If artifacts do not belong together; it says which step to run again.
    """
    sensitivities = folder.sensitivities
    network, dataset = network_of(folder)
    drawn = sensitivities.provenance["calibration"]
    if lacking := {"source", "examples", "seed", "sha256"} - set(drawn):
        reason = f"calibration lacks {', '.join(sorted(lacking))}"
        raise SENSITIVITY.unusable(sensitivities.path, reason)
    calibration, evaluation = calibration_split(
        dataset, drawn["source"], examples=drawn["examples"], seed=drawn["seed"]
    )
    if calibration.sha256 != drawn["sha256"]:
        raise ValueError(
            "The calibration examples are not those of the sensitivities: the data set has "
            f"changed. Run `jmpq sensitivity {folder.path}` again."
        )
    loss = measured_loss(sensitivities.loss)
    check_targets(network, (calibration, evaluation), find_loss(loss))
    return Subject(
        network=network,
        quantizers=_quantizers(sensitivities, network),
        dataset=dataset,
        calibration=calibration,
        evaluation=evaluation,
        loss=loss,
    )


def _quantizers(sensitivities: Sensitivities, network: Network) -> Quantizers:
    """The quantizers of the sensitivities.

    Raises:
        ValueError: If the file's are spoilt, or not those that its losses were computed with.
    """
    try:
        quantizers = Quantizers.from_arrays(sensitivities.arrays)
        if quantizers.sha256 != sensitivities.provenance["quantizers_sha256"]:
            raise ValueError("its quantizers are not those of its losses")
        quantizers.check_network(network)
    except (KeyError, TypeError, ValueError) as error:
        raise SENSITIVITY.unusable(sensitivities.path, error) from error
    return quantizers


def first_examples(split: Split, count: int | None) -> Split:
    """The first so many examples of a split; all of them for None."""
    return split if count is None else split.take(np.arange(min(count, len(split))))
