"""A plan together with what it is measured by: network, quantizers, examples."""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

from jmpq.cli.run_folder import PLAN, SENSITIVITY, network_of, read_layers

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jmpq.data.dataset import Dataset, Split
    from jmpq.deploy.correction import Correct
    from jmpq.deploy.measure import Evaluator
    from jmpq.network.network import Network
    from jmpq.problem import Plan, PlannedAllocation
    from jmpq.quantizers.fake_quant import Quantizers
    from jmpq.sensitivity.table import Sensitivity


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Planned:
    """What a run folder holds after `jmpq solve`, checked to belong together.

    Attributes:
        record: The layer record.
        plan: The plan.
        tables: Sensitivities by metric.
        network: The network.
        quantizers: Its calibrated quantizers.
        dataset: The data set.
        calibration: The examples of the sensitivities.
        evaluation: Those that accuracy is reported on.
        loss: What the sensitivities are of, by name.
    """

    record: dict[str, Any]
    plan: "Plan"
    tables: "dict[str, Sensitivity]"
    network: "Network"
    quantizers: "Quantizers"
    dataset: "Dataset"
    calibration: "Split"
    evaluation: "Split"
    loss: str

    @property
    def origin(self) -> Any:
        """Provenance of the sensitivities."""
        return next(iter(self.tables.values())).provenance

    def evaluator(
        self,
        split: "Split",
        batch_size: int,
        *,
        correct: "Correct" = "none",
        corrected: "Split | None" = None,
        mesh: "Mesh | None" = None,
        candidates_per_call: int = 8,
    ) -> "Evaluator":
        """Measures the loss of the sensitivities; the KL divergence is measured anyway.

        Args:
            split: Examples to measure on.
            batch_size: Most of them at once.
            correct: Correction of the layers' outputs.
            corrected: Examples that the correction looks at.
            mesh: Devices over which examples are spread.
            candidates_per_call: Allocations per call of the compiled program.
        """
        from jmpq.cli.losses import find_loss
        from jmpq.data.batches import batches
        from jmpq.deploy.measure import Evaluator

        size = min(batch_size, len(split))
        measured = find_loss("cross_entropy" if self.loss == "kl" else self.loss)
        examples = None
        if corrected is not None:
            examples = batches(corrected, len(corrected))[0].inputs
        return Evaluator(
            self.network,
            self.quantizers,
            lambda: batches(split, size),
            loss=measured,
            candidates_per_call=candidates_per_call,
            correct=correct,
            examples=examples,
            mesh=mesh,
        )


def chosen_allocation(
    run: pathlib.Path, plan: "Plan", name: str | None, *, with_budgets: bool = False
) -> "PlannedAllocation":
    """An allocation of a plan by its name, or its first solution.

    Args:
        run: The run folder.
        plan: Its plan.
        name: Name; None for the first solution.
        with_budgets: Whether a solution has to have budgets.

    Raises:
        ValueError: If there is none of that name, or no solution.
    """
    if name is not None:
        return plan.named(name)
    for allocation in plan.allocations:
        if allocation.role == "solution" and (allocation.budgets or not with_budgets):
            return allocation
    raise ValueError(
        f"{run / PLAN} has no solution to start from: run `jmpq solve {run}`, or name one with "
        "--allocation."
    )


def read_planned(run: pathlib.Path) -> Planned:
    """Read a run folder.

    Raises:
        FileNotFoundError: If a step is missing; it says which.
        ValueError: If artifacts do not belong together; it says which step to run again.
    """
    from jmpq.data.splits import calibration_split
    from jmpq.files import file_sha256
    from jmpq.problem import read_plan
    from jmpq.quantizers.fake_quant import Quantizers
    from jmpq.sensitivity.table import load_arrays, load_sensitivities

    record = read_layers(run)
    arrays = load_arrays(run / SENSITIVITY)
    if not (run / PLAN).is_file():
        raise FileNotFoundError(f"{run / PLAN} not found: run `jmpq solve {run}` first.")
    plan = read_plan(run / PLAN)
    if plan.weights_sha256 != record["weights_sha256"]:
        raise ValueError(
            f"{run / PLAN} belongs to other weights than layers.json: run `jmpq solve {run}` "
            "again."
        )
    if plan.sensitivity_sha256 != file_sha256(run / SENSITIVITY):
        raise ValueError(
            f"{run / PLAN} belongs to another sensitivity.npz: run `jmpq solve {run}` again."
        )
    tables = load_sensitivities(run / SENSITIVITY)
    origin = next(iter(tables.values())).provenance
    network, dataset, _ = network_of(run)
    drawn = origin["calibration"]
    calibration, evaluation = calibration_split(
        dataset, drawn["source"], examples=drawn["examples"], seed=drawn["seed"]
    )
    if calibration.sha256 != drawn["sha256"]:
        raise ValueError(
            "The calibration examples are not those of the sensitivities: the data set has "
            f"changed. Run `jmpq sensitivity {run}` again."
        )
    return Planned(
        record=record,
        plan=plan,
        tables=tables,
        network=network,
        quantizers=Quantizers.from_arrays(arrays),
        dataset=dataset,
        calibration=calibration,
        evaluation=evaluation,
        loss=origin.get("loss", "cross_entropy"),
    )
