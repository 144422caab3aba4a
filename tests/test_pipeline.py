"""Every stage on a tiny network, through the public names and no file but the artifacts."""

import jax
import numpy as np

import jmpq
from jmpq.data.batches import Batch
from jmpq.problem import Overhead, first_and_last, write_plan
from jmpq.problem.plan import planned_allocation, planned_budgets
from jmpq.sensitivity.metrics.taylor import GaussNewton
from tests import helpers


def test_from_a_network_to_measured_allocations(tmp_path):
    network = helpers.residual_cnn(4)
    data = [helpers.images(seed, 8) for seed in (1, 2)]
    choices = jmpq.choice_grid([2, 4, 8], [4, 8])
    activations = jmpq.InputSpec()
    spec = jmpq.KernelSpec()
    quantizers = jmpq.Quantizers(
        weights=jmpq.calibrate_weights(network, spec, [2, 4, 8]),
        activations=jmpq.calibrate_activations(
            network, activations, [4, 8], [x for x, _ in data], key=jax.random.key(0)
        ),
    )
    moves = jmpq.MoveNetwork(network=network, quantizers=quantizers)
    found = jmpq.analyse(moves, GaussNewton(), data, choices)
    jmpq.save_sensitivities(tmp_path / "s.npz", {"gn": found}, quantizers.to_arrays())
    table = jmpq.load_sensitivities(tmp_path / "s.npz")["gn"]

    names = [layer.name for layer in network.layers]
    problem = jmpq.build_problem(
        network.layers,
        table,
        overhead=Overhead.of(network.layers, spec),
        rules=first_and_last(names, choices),
        budgets=["size_bytes=40%", "bops=50%"],
        unquantized_parameters=network.other_parameters,
    )
    solutions = {"exact": jmpq.Exact()(problem), "greedy": jmpq.Greedy()(problem)}
    assert solutions["exact"].loss <= solutions["greedy"].loss * (1 + 1e-9)
    assert solutions["exact"].bound <= solutions["exact"].loss * (1 + 1e-9)
    allocations = {name: s.allocation for name, s in solutions.items()}
    for allocation in allocations.values():
        assert allocation["stem"] == allocation["head"] == jmpq.Choice(8, 8)
    plan = jmpq.Plan(
        jmpq=jmpq.__version__,
        versions={},
        seed=0,
        created="2026-01-01",
        weights_sha256="",
        sensitivity_sha256="",
        quantizers={},
        layers=problem.layers,
        choices=problem.choices,
        rules=(),
        budgets=planned_budgets(problem),
        unquantized={},
        allocations=tuple(
            planned_allocation(name, "solution", problem, s, metric="gn")
            for name, s in solutions.items()
        ),
    )
    write_plan(tmp_path / "plan.json", plan)
    read = jmpq.read_plan(tmp_path / "plan.json")
    assert {a.name: a.allocation for a in read.allocations} == allocations

    def batches():
        for x, y in data:
            yield Batch(np.asarray(x), np.asarray(y), np.ones(len(y), np.float32))

    evaluator = jmpq.Evaluator(network, quantizers, batches)
    bits = jmpq.Choice(2, 4), jmpq.Choice(8, 8)
    uniform = [jmpq.Allocation.uniform(names, choice) for choice in bits]
    outcomes = evaluator([*uniform, *(a.allocation for a in read.allocations)])
    least, most, *rest = (outcome.kl for outcome in outcomes)
    assert most < min(rest)
    assert max(rest) < least
    predicted = table.predict(uniform[1:], interactions=True)
    np.testing.assert_allclose(most, predicted[0], rtol=0.2)  # small changes: quadratic
