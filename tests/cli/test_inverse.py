import csv
import json

import pytest

from tests.cli.command import SMALL, jmpq, works


def test_least_cost_and_front_are_found_from_saved_sensitivities(run):
    plan = json.loads((run / "plan.json").read_text())
    rows = {row["name"]: row for row in plan["allocations"]}
    exact = rows["exact/gauss_newton"]
    ceiling = exact["predicted_loss"]
    result = works("solve", run, "--replace", *SMALL, "--loss-ceiling", ceiling, "--front")
    assert "least size_bytes, gauss_newton: " in result.out
    plan = json.loads((run / "plan.json").read_text())
    rows = {row["name"]: row for row in plan["allocations"]}
    found = rows["least_size_bytes/gauss_newton"]
    assert found["predicted_loss"] <= ceiling * (1 + 1e-9)
    assert found["costs"]["size_bytes"] <= exact["costs"]["size_bytes"]
    assert found["predictions"]["gauss_newton"] == pytest.approx(found["predicted_loss"])
    with (run / "front.csv").open() as file:
        points = list(csv.DictReader(file))
    costs = [float(point["size_bytes"]) for point in points]
    losses = [float(point["loss"]) for point in points]
    assert costs == sorted(costs)
    assert losses == sorted(losses, reverse=True)
    assert set(exact["allocation"]) <= set(points[0])
    # no point of the hull beats the exact answer at its own cost
    inside = [loss for cost, loss in zip(costs, losses, strict=True)
              if cost <= exact["costs"]["size_bytes"]]  # fmt: skip
    assert min(inside) >= found["predicted_loss"] * (1 - 1e-9) or min(inside) >= 0


def test_a_ceiling_that_no_metric_meets_is_an_error_of_one_line(run):
    result = jmpq("solve", run, "--replace", *SMALL, "--loss-ceiling", "-1e9")
    assert result.code == 1
    assert "jmpq: A loss of at most -1000000000 cannot be met" in result.err
    assert result.err.count("\n") == 1
