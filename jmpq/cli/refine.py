"""`jmpq refine`: allocations decided by measurement, added to the plan."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jmpq.cli.run_folder import PLAN
from jmpq.cli.scale import Scale
from jmpq.cli.search import composed_objective

if TYPE_CHECKING:
    import numpy as np
    from jax.sharding import Mesh

    from jmpq.cli.planned import Planned
    from jmpq.deploy.measure import Evaluator, Outcome
    from jmpq.problem import PlannedAllocation, Problem
    from jmpq.sensitivity.table import Sensitivity

RACE_BATCH = 64  # examples between two looks at who is hopeless


@dataclasses.dataclass(frozen=True)
class Refine:
    """Improve an allocation of RUN/plan.json by measuring on the calibration examples, or find
    the cheapest one whose measured top-1 stays above a floor; add it to the plan.

    Composed logits, where superposed.npz has them, else the metric, propose changes and swaps
    within the budgets; the measurement accepts them.
    Every measurement is kept as it comes (RUN/.refine.*.jsonl): interrupted or called again
    with more evaluations, it goes on from there. Run `jmpq evaluate` afterwards.
    """  # noqa: D205

    run: Annotated[pathlib.Path, tyro.conf.Positional]
    """Folder of the run, with layers.json, sensitivity.npz and plan.json."""
    allocation: str | None = None
    """Where to start; the first solution of the plan by default."""
    race: bool = False
    """Start from the best of all solutions under the budgets of --allocation, found by racing:
    they are measured batch by batch, and one that cannot be the best any more is dropped."""
    measure: Literal["kl", "loss"] = "kl"
    """What is to become small: the KL divergence to the float network, or the loss."""
    max_evaluations: int = 200
    """Allocations measured at most, those of an interrupted run included."""
    patience: int = 40
    """Proposals that fail in a row before the search ends."""
    max_drop: float | None = None
    """Instead of refining: the cheapest allocation, without budgets, whose top-1 on the
    calibration examples is at most so many points (of 100) below the float network's."""
    minimize: str = "size_bytes"
    """The cost, named as in `jmpq solve --budget`, that --max-drop minimises, along the
    allocations that the metric of --allocation calls best for their cost."""
    batch_size: int = 256
    """Examples per batch."""
    devices: int | None = None
    """Devices over which the examples of a batch are spread. A CPU appears as that many: one
    for each core is fastest. One by default."""

    def __call__(self) -> None:
        mesh = Scale(devices=self.devices).mesh()

        from jmpq.cli.planned import chosen_allocation, read_planned
        from jmpq.files import check_writable
        from jmpq.problem import additive_cost, write_plan

        additive_cost(self.minimize)
        planned = read_planned(self.run)
        start = chosen_allocation(self.run, planned.plan, self.allocation, with_budgets=True)
        check_writable(self.run / PLAN)
        if self.race:
            start = self._raced(planned, start, mesh)
        if self.max_drop is None:
            new = self._refined(planned, start, mesh)
        else:
            new = self._floored(planned, start, mesh)
        kept = [a for a in planned.plan.allocations if a.name != new.name]
        write_plan(
            self.run / PLAN,
            dataclasses.replace(planned.plan, allocations=(*kept, new)),
        )
        print(
            f"Wrote {self.run / PLAN} with {new.name}; `jmpq evaluate {self.run}` measures it."
        )

    def _raced(
        self, planned: "Planned", start: "PlannedAllocation", mesh: "Mesh | None"
    ) -> "PlannedAllocation":
        """The solution of least measured KL or loss among those under the same budgets."""
        from jmpq.deploy.measure import bits_of
        from jmpq.deploy.race import race

        named = {
            str(a.bits): a  # equal ones race once, under the last one's name
            for a in planned.plan.allocations
            if a.role == "solution" and a.budgets == start.budgets
        }
        runners = list(named.values())
        evaluator = planned.evaluator(
            planned.calibration, min(self.batch_size, RACE_BATCH), mesh=mesh
        )
        bits = [{layer: (c.w_bits, c.a_bits) for layer, c in a.bits.items()} for a in runners]
        found = race(evaluator, *bits_of(evaluator.network, bits), by=self.measure)
        best, outcome = runners[found.best], found.outcomes[found.best]
        value = outcome.kl if self.measure == "kl" else outcome.loss
        print(
            f"{len(runners)} solutions raced, {100 * found.share:.0f} % of the work of "
            f"measuring all: {best.name} has {self.measure} {value:.5g} nats per example on "
            f"{outcome.examples} calibration examples; {int(found.finished.sum())} finished."
        )
        return best

    def _refined(
        self, planned: "Planned", start: "PlannedAllocation", mesh: "Mesh | None"
    ) -> "PlannedAllocation":
        """Swaps proposed by the model, accepted by measured KL or loss."""
        import numpy as np

        from jmpq.cli.progress import bar
        from jmpq.problem import PlannedAllocation
        from jmpq.solvers import refine

        problem = problem_of_plan(planned, _table(planned, start), start.budgets)
        columns = [problem.choices.index(start.bits[layer]) for layer in problem.layers]
        field = "kl" if self.measure == "kl" else "increase"
        evaluator = planned.evaluator(planned.calibration, self.batch_size, mesh=mesh)
        evaluate = _measurer(evaluator, problem, lambda o: getattr(o, field))
        key = _key(planned, problem, field)
        model = composed_objective(self.run, planned.origin)
        record = self.run / f".refine.{key}.jsonl"
        with bar("Refining", "allocations") as progress:
            found = refine(
                problem,
                np.array(columns),
                evaluate,
                max_evaluations=self.max_evaluations,
                patience=self.patience,
                predict=model and model[1](problem),
                record=record,
                progress=lambda done, best: progress(done, self.max_evaluations),
            )
        print(
            f"{start.name}: measured {self.measure} {found.start:.5g} -> {found.measured:.5g} "
            f"nats per example on {len(planned.calibration)} calibration examples, "
            f"{len(found.path) - 1} accepted of {found.evaluations} measured"
            + ("." if found.finished else "; the evaluations ran out.")
        )
        _, costs = problem.evaluate(found.choice)
        return PlannedAllocation(
            name=f"refined/{start.name}",
            role="solution",
            bits=problem.bits(found.choice),
            costs=costs,
            metric=start.metric,
            solver="refine",
            budgets=dict(start.budgets),
        )

    def _floored(
        self, planned: "Planned", start: "PlannedAllocation", mesh: "Mesh | None"
    ) -> "PlannedAllocation":
        """Bisection along the model's front by measured top-1."""
        import numpy as np

        from jmpq.cli.progress import bar
        from jmpq.problem import PlannedAllocation
        from jmpq.solvers import cheapest_above, pareto_hull

        assert self.max_drop is not None
        problem = problem_of_plan(planned, table := _table(planned, start), {})
        hull = pareto_hull(problem, self.minimize)
        evaluator = planned.evaluator(planned.calibration, self.batch_size, mesh=mesh)
        top1 = evaluator.float_outcome().top1
        floor = top1 - self.max_drop / 100
        steps = int(np.ceil(np.log2(max(len(hull.costs), 2))))
        evaluate = _measurer(evaluator, problem, lambda o: o.top1)
        with bar("Bisecting", "allocations") as progress:
            done = [0]

            def told(point: int, quality: float) -> None:
                done[0] += 1
                progress(done[0], max(steps + 2, done[0]))

            # Half an example: fractions of a count are compared.
            slack = 0.5 / len(planned.calibration)
            found = cheapest_above(hull, evaluate, floor - slack, steps=steps, progress=told)
        print(
            f"{self.minimize} {found.cost:.10g} at a top-1 of {100 * found.quality:.2f} % "
            f"(float {100 * top1:.2f} %, floor {100 * floor:.2f} %) on "
            f"{len(planned.calibration)} calibration examples, {len(found.measured)} measured."
        )
        loss, costs = problem.evaluate(found.choice)
        return PlannedAllocation(
            name=f"floor_{self.max_drop:g}/{table.metric}/{self.minimize}",
            role="solution",
            bits=problem.bits(found.choice),
            costs=costs,
            metric=table.metric,
            solver="floor",
            predicted_loss=loss,
        )


def problem_of_plan(
    planned: "Planned", table: "Sensitivity", budgets: dict[str, float]
) -> "Problem":
    """The problem that a plan was made of, by one metric and under given limits."""
    from jmpq.network.layers import layers_from_json
    from jmpq.problem import Overhead, build_problem
    from jmpq.problem.rules import rules_from_json
    from jmpq.quantizers.spec import KernelSpec, read_spec

    layers = layers_from_json(planned.record["layers"])
    spec = read_spec(KernelSpec, planned.plan.quantizers["weights"])
    return build_problem(
        layers,
        table,
        overhead=Overhead.of(layers, spec),
        rules=rules_from_json(planned.plan.rules),
        budgets=budgets,
        unquantized_parameters=planned.record["other_parameters"],
    )


def _table(planned: "Planned", start: "PlannedAllocation") -> "Sensitivity":
    """The sensitivities that propose: those of the allocation's metric."""
    metric = (start.metric or "").removesuffix("_kl").removesuffix("_loss")
    for name in (start.metric, metric):
        if name in planned.tables:
            return planned.tables[name]
    return next(iter(planned.tables.values()))


def _measurer(
    evaluator: "Evaluator", problem: "Problem", value: "Callable[[Outcome], float]"
) -> "Callable[[np.ndarray], np.ndarray]":
    """A measured number of allocations, rows of columns of the problem, for the searches."""
    import numpy as np

    from jmpq.deploy.measure import bits_of

    def evaluate(rows: "Sequence[np.ndarray] | np.ndarray") -> "np.ndarray":
        bits = [
            {layer: (c.w_bits, c.a_bits) for layer, c in problem.bits(row).items()}
            for row in rows
        ]
        return np.array([value(o) for o in evaluator(*bits_of(evaluator.network, bits))])

    return evaluate


def _key(planned: "Planned", problem: "Problem", field: str) -> str:
    """Names the record of one kind of measurement on one set of examples."""
    from jmpq.files import json_sha256

    return (
        json_sha256(
            {
                "examples": planned.calibration.sha256,
                "quantizers": planned.quantizers.sha256,
                "loss": planned.loss if field == "increase" else None,
                "layers": list(problem.layers),
                "choices": json.dumps([choice.label for choice in problem.choices]),
                "weights": planned.record["weights_sha256"],
            }
        )[:12]
        + f".{field}"
    )
