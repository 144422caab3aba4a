import dataclasses
import types

import pytest

from jmpq.allocation import Allocation
from jmpq.cli.show import show_plan
from jmpq.formats import Choice
from jmpq.problem import Plan, PlannedAllocation
from jmpq.problem.plan import PlannedBudget
from jmpq.problem.shown import shown_prediction
from jmpq.run.planning.recommendation import recommend

W2, W4, W8 = Choice(2), Choice(4), Choice(8)
SIZES = {W2: 100.0, W4: 200.0, W8: 400.0}


def planned(name, first, second, role="solution", *, gauss=1.0, joint=None, **more):
    predictions = {"gauss_newton": gauss}
    if joint is not None:
        predictions["composed_kl"] = joint
    fields = {"metric": "gauss_newton", "asked": name.split("/")[0], "predictions": predictions}
    return PlannedAllocation(
        name=name, role=role, allocation=Allocation({"a": first, "b": second}),
        costs={"size_bytes": SIZES[first] + SIZES[second]}, **(fields | more),
    )  # fmt: skip


def plan(*allocations, limit=500.0):
    return Plan(
        jmpq="0.1.0", versions={}, seed=0, created="2026-01-01", weights_sha256="w",
        sensitivity_sha256="s", quantizers={}, layers=("a", "b"), choices=(W2, W4, W8),
        rules=(), unquantized={}, allocations=allocations,
        budgets={"size_bytes": PlannedBudget(limit=limit, asked="", least=200.0, most=800.0)},
    )  # fmt: skip


def row(kl, *, kl_sem=0.01, top1=0.9):
    return {"loss": 0.3 + kl, "increase_sem": kl_sem, "kl": kl, "kl_sem": kl_sem,
            "top1": top1, "top1_sem": 0.01}  # fmt: skip


def evaluation(measured, *, chance=0.1, reference=None, sem=0.01):
    """`measured` has (calibration, evaluation) by name; the first is the reference."""
    reference = reference or next(iter(measured))
    kl = {name: both[1]["kl"] for name, both in measured.items()}
    differences = {
        name: {
            "kl": kl[name] - kl[reference], "kl_sem": sem,
            "increase": None, "increase_sem": None,
        }
        for name in measured
        if name != reference and None not in (kl[name], kl[reference])
    }  # fmt: skip
    return types.SimpleNamespace(
        float={split: {"loss": 0.3, "top1": 0.95} for split in ("calibration", "evaluation")},
        splits={"calibration": {"examples": 64}, "evaluation":
                {"examples": 500, "chance": chance}},
        measured={name: dict(zip(("calibration", "evaluation"), both, strict=True))
                  for name, both in measured.items()},
        reference=reference,
        differences=differences,
    )  # fmt: skip


EXACT = planned("exact/gauss_newton", W4, W2, gauss=0.2, gap=0.0, status="optimal")
GREEDY = planned("greedy/gauss_newton", W8, W2, gauss=0.3, gap=0.25, status="feasible")
UNIFORM = planned("uniform/W4", W4, W4, "baseline", gauss=0.4)
LARGE = planned("uniform/W8", W8, W8, "baseline", gauss=0.01)
FREE = planned("cheapest/gauss_newton", W8, W8, gauss=0.01)


def test_before_evaluation_the_leading_metric_chooses_within_the_budgets():
    chosen = recommend(plan(GREEDY, FREE, EXACT, UNIFORM, LARGE))
    assert chosen.name == "exact/gauss_newton"
    assert chosen.costs == {"size_bytes": 300.0}
    assert chosen.measured is None
    assert "run `jmpq evaluate`" in chosen.lines[-1]


def test_calibration_examples_choose_and_the_evaluation_split_never_does():
    small = planned("exact/gauss_newton", W4, W2, gauss=0.2, gap=0.0)
    other = planned("search/composed_kl", W2, W4, gauss=0.3)
    measured = {small.name: (row(0.5), row(0.1)), other.name: (row(0.4), row(0.6))}
    chosen = recommend(plan(small, other), evaluation(measured, reference=other.name))
    assert chosen.name == "search/composed_kl"
    assert chosen.measured.kl == 0.6
    assert chosen.runner_up.name == "exact/gauss_newton"
    assert chosen.runner_up.verdict == "worse"
    assert "on 64 calibration examples; the evaluation examples had no part" in str(chosen)


@pytest.mark.parametrize(
    ("theirs", "verdict", "words"),
    [
        (0.10 + 0.003, "level", "not distinguishable from the recommended one"),
        (0.10 + 0.005, "better", "the recommended one is better"),
        (0.10 - 0.005, "worse", "use uniform/W4 instead"),
    ],
)
def test_uniform_is_told_apart_by_two_standard_errors_of_the_difference(theirs, verdict, words):
    """Paired by example it is 0.002, where unpaired it would be sqrt(2) * 0.01 = 0.014."""
    mine = planned("exact/gauss_newton", W4, W2, gauss=0.2, gap=0.0)
    measured = {mine.name: (row(0.1), row(0.1)), "uniform/W4": (row(0.2), row(theirs))}
    chosen = recommend(plan(mine, UNIFORM, LARGE), evaluation(measured, sem=0.002))
    assert chosen.uniform.name == "uniform/W4"
    assert chosen.uniform.verdict == verdict
    assert words in str(chosen)
    assert chosen.uniform.difference == pytest.approx(theirs - 0.1)
    side = "lower" if theirs < 0.1 else "higher"
    told = f"KL divergence {abs(theirs - 0.1):.3g} ± 0.002 {side} for uniform/W4, paired by"
    assert told in str(chosen)


def test_a_difference_to_another_allocation_than_the_recommended_one_says_nothing():
    mine = planned("exact/gauss_newton", W4, W2, gauss=0.2, gap=0.0)
    measured = {mine.name: (row(0.1), row(0.1)), "uniform/W4": (row(0.2), row(0.3))}
    found = evaluation(measured, reference="uniform/W4")
    assert recommend(plan(mine, UNIFORM), found).uniform.verdict == "unknown"


def test_the_answer_says_which_at_what_cost_how_sure_and_what_uniform_gives():
    mine = planned("exact/gauss_newton", W4, W2, gauss=0.2, gap=0.0)
    again = dataclasses.replace(mine, name="greedy/gauss_newton", gap=0.1)
    measured = {
        mine.name: (row(0.1), row(0.12, top1=0.875)),
        "uniform/W4": (row(0.2), row(0.3, top1=0.8)),
    }
    chosen = recommend(plan(mine, again, UNIFORM), evaluation(measured))
    text = str(chosen)
    assert chosen.aliases == ("greedy/gauss_newton",)
    for words in (
        "Use exact/gauss_newton (the same as greedy/gauss_newton)",
        "size 0.3 kB (budget 0.5 kB)",
        "Layers by bits of weights (W) and inputs (A): W2 b; W4 a.",
        "top-1 87.50 ± 1.00 %, KL divergence 0.12 ± 0.01 nats, loss increase 0.12 ± 0.01 nats",
        "float network: top-1 95.00 %",
        "Uniform W4, the best uniform allocation within the budgets (size 0.4 kB): "
        "top-1 80.00 ± 1.00 %",
        "no allocation within the budgets has a smaller predicted loss by gauss_newton",
    ):
        assert words in text
    assert 3 <= len(chosen.lines) <= 7


def test_layers_are_counted_where_they_are_many():
    many = Allocation({f"layer{i}": W2 if i % 3 else W8 for i in range(13)})
    chosen = dataclasses.replace(recommend(plan(EXACT)), allocation=many)
    assert "inputs (A): 8 W2, 5 W8." in str(chosen)


def test_a_uniform_allocation_with_other_layers_says_so():
    pinned = planned("uniform/W4", W4, W8, "baseline", gauss=0.1)
    text = str(recommend(plan(EXACT, pinned, limit=900.0)))
    assert "Uniform W4 but for b (W8), the best uniform" in text


@pytest.mark.parametrize(
    ("mine", "words"),
    [(W2, "which takes 25.0 % less size"), (W4, "which takes no less: use either")],
)
def test_level_with_uniform_it_says_what_is_saved(mine, words):
    first = planned("exact/gauss_newton", W4, mine, gauss=0.2, gap=0.0)
    other = planned("uniform/W4", W4, W4, "baseline", gauss=0.4)
    if mine == W4:  # another allocation of the same size
        first = dataclasses.replace(first, allocation=Allocation({"a": W2, "b": W8}))
    level = {first.name: (row(0.1), row(0.1)), other.name: (row(0.1), row(0.1))}
    assert words in str(recommend(plan(first, other), evaluation(level)))


def test_a_gap_that_is_left_is_told_in_percent():
    lines = recommend(plan(planned("greedy/gauss_newton", W2, W2, gap=0.25))).lines
    assert (
        "at most 25 % of its predicted loss by gauss_newton could still be saved"
        in " ".join(lines)
    )
    searched = planned("search/composed_kl", W2, W2, objective="composed_kl")
    assert "found by a search that minimises composed_kl" in str(recommend(plan(searched)))


@pytest.mark.parametrize(
    ("top1", "chance", "destroyed"),
    [
        (0.18, 0.1, True),
        (0.19, 0.1, False),
        (0.55, 0.5, False),
        (0.52, 0.5, True),
        (0.90, 0.96, False),  # nothing above chance that could be lost
    ],
)
def test_a_destroyed_network_is_named_with_what_to_do(top1, chance, destroyed):
    """A tenth of what 95 % has above chance: up to 0.185 of ten classes, 0.545 of two."""
    mine = planned("exact/gauss_newton", W2, W2, gap=0.0)
    measured = {
        mine.name: (row(2.0), row(2.0, top1=top1)),
        "uniform/W8": (row(0.0), row(0.0, top1=0.95)),
    }
    chosen = recommend(plan(mine, LARGE), evaluation(measured, chance=chance))
    assert chosen.destroyed == destroyed
    assert ("This network is destroyed" in str(chosen)) == destroyed
    assert chosen.remedy == ("uniform/W8" if destroyed else None)
    assert len(chosen.lines) <= 7


def test_outputs_that_are_not_finite_are_destroyed():
    mine = planned("exact/gauss_newton", W2, W2, gap=0.0)
    nothing = dict.fromkeys(row(1.0)) | {"top1": 0.95}
    chosen = recommend(plan(mine), evaluation({mine.name: (nothing, nothing)}))
    assert chosen.destroyed
    assert chosen.chosen_by == "prediction by gauss_newton"


def test_without_a_solution_within_the_budgets_there_is_no_recommendation():
    assert recommend(plan(FREE, UNIFORM)) is None
    assert recommend(plan()) is None


def test_the_solution_that_is_uniform_says_so():
    mine = planned("exact/gauss_newton", W4, W4, gap=0.0)
    chosen = recommend(plan(mine, UNIFORM))
    assert chosen.uniform.verdict == "same"
    assert "is the same allocation" in str(chosen)


def test_predictions_are_shown_in_nats_only_if_they_can_be_nats():
    sums = [{"gauss_newton": 0.1}, {"gauss_newton": 0.2}]
    assert shown_prediction(sums).heading == "predicted loss increase by gauss_newton (nats)"
    below = [*sums, {"gauss_newton": -0.508}]
    assert shown_prediction(below).heading == "score by gauss_newton (no unit)"
    joint = [{"composed": -0.5, "composed_kl": 0.3}]
    assert shown_prediction(joint).heading == "predicted KL by composed logits (nats)"
    some = [*joint, {"composed": 0.2}]  # one without a joint prediction
    assert shown_prediction(some).heading == "score by composed (no unit)"
    assert not shown_prediction([{"squared_error": 3.0}]).nats
    assert shown_prediction([]) is None


def test_the_table_of_a_plan_has_one_row_an_allocation_and_marks_what_is_over(capsys):
    again = dataclasses.replace(UNIFORM, name="exact/gauss_newton", role="solution", gap=0.0)
    show_plan(plan(again, UNIFORM, LARGE, GREEDY))
    printed = capsys.readouterr().out
    (line,) = [text for text in printed.splitlines() if text.startswith(" exact/")]
    assert "optimal" in line
    assert line.rstrip().endswith("0.4")
    assert " = uniform/W4" in printed
    (line,) = [text for text in printed.splitlines() if text.startswith(" uniform/W8")]
    assert line.rstrip().endswith("0.8*")
    assert "* over the budget of the plan" in printed
