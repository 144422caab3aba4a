import dataclasses
import math
import types

import numpy as np
import pytest

from jmpq.allocation import Allocation
from jmpq.formats import Choice
from jmpq.problem import (
    Allow,
    Exclude,
    Infeasible,
    Overhead,
    Pin,
    Tie,
    build_problem,
    first_and_last,
    problem_of,
    solution_from_columns,
    with_budgets,
)
from jmpq.problem.budgets import limit_of, parse_budget
from jmpq.problem.costs import COSTS, Cost
from jmpq.problem.rules import apply_rules
from jmpq.problem.solution import infeasible
from jmpq.quantizers.spec import KernelSpec
from tests.problem.tables import GRID, LAYERS, NAMES, losses_of, reference_costs

OVERHEAD = Overhead.of(LAYERS, KernelSpec())


def built(rules=(), budgets=(), **options):
    options = {"unquantized_parameters": 7, **options}
    return build_problem(
        LAYERS, losses_of(), overhead=OVERHEAD, rules=rules, budgets=budgets, **options
    )


def small(**changes):
    fields = {
        "losses": np.array([[3.0, 1.0], [5.0, 2.0]]),
        "costs": {"size_bytes": np.array([[1.0, 2.0], [1.0, 4.0]])},
        "budgets": {"size_bytes": 5.0},
        "layers": ("a", "b"),
    }
    return problem_of(**{**fields, **changes})


def test_a_built_problem_agrees_with_the_definitions():
    rules = (*first_and_last(NAMES, GRID), Exclude("block1/conv1"), Tie(("block0/.*",)))
    problem = built(rules)
    assert problem.layers == ("stem/conv", "block0/conv1", "block0/down", "head")
    assert problem.groups.tolist() == [0, 1, 1, 2]
    columns = problem.uniform(Choice(4, 4))
    allocation = problem.allocation(columns)
    assert [str(c) for c in allocation.values()] == ["W8A8", "W4A4", "W4A4", "W8A8"]
    assert problem.columns(allocation).tolist() == columns.tolist()
    loss, costs = problem.evaluate(columns)
    assert problem.evaluate(allocation) == (loss, costs)
    want = reference_costs(allocation, OVERHEAD, 7)
    assert costs == pytest.approx({k: want[k] for k in costs}, rel=1e-14)
    rows = [losses_of().losses[NAMES.index(n), GRID.index(c)] for n, c in allocation.items()]
    assert loss == pytest.approx(sum(rows), rel=1e-14)


def test_a_problem_of_a_network_is_that_of_its_layer_table():
    network = types.SimpleNamespace(layers=LAYERS, other_parameters=7)
    want = built(budgets=["size_bytes=W4A4"])
    for options in ({}, {"unquantized_parameters": 7}):
        got = build_problem(
            network,
            losses_of(),
            overhead=KernelSpec(),
            budgets=["size_bytes=W4A4"],
            **options,
        )
        assert dict(got.constants) == dict(want.constants)
        assert dict(got.budgets) == dict(want.budgets)
        np.testing.assert_array_equal(got.costs["size_bytes"], want.costs["size_bytes"])
    none = build_problem(LAYERS, losses_of(), overhead=OVERHEAD)
    assert none.constants["size_bytes"] == 0


def test_losses_are_found_by_name_and_candidates_may_be_fewer():
    table = losses_of()
    shuffled = dataclasses.replace(table, layers=table.layers[::-1], losses=table.losses[::-1])
    choices = (GRID[4], GRID[1])
    problem = build_problem(LAYERS, shuffled, overhead=OVERHEAD, choices=choices)
    np.testing.assert_array_equal(problem.losses, table.losses[:, [4, 1]])
    with pytest.raises(ValueError, match="No losses for W3A8: the table has W2A4"):
        built(choices=(Choice(3, 8),))
    with pytest.raises(ValueError, match="No losses for layer 'stem/conv'"):
        build_problem(LAYERS, losses_of(names=("x", *NAMES[1:])), overhead=OVERHEAD)
    with pytest.raises(ValueError, match="Every layer is excluded"):
        built([Exclude(".*")])


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("bops=1.2G", 1.2e9),
        ("bops=5e3", 5000.0),
        ("bops = 12k", 12000.0),
        ("size_bytes=120kB", 120e3),
        ("size_bytes=0.27MB", 0.27e6),
        ("size_bytes=2KiB", 2048.0),
        ("size_bytes=100", 100.0),
        ("size_bytes=.5x", 0.5 * 4 * (463 + 7)),
        ("bops=0.25x", 0.25 * 1024 * (1728 + 2304 + 256 + 2880 + 15)),
        ("bops=0%", 8 * (1728 + 2304 + 256 + 2880 + 15)),
        ("bops=100%", 64 * (1728 + 2304 + 256 + 2880 + 15)),
        ("bops=50%", 36 * (1728 + 2304 + 256 + 2880 + 15)),
        ("bops=W4A4", 16 * (1728 + 2304 + 256 + 2880 + 15)),
    ],
)
def test_budgets_are_read_in_every_form(text, limit):
    problem = built(budgets=[text])
    ((name, got),) = problem.budgets.items()
    assert got == pytest.approx(limit, rel=1e-14)
    assert problem.asked[name] == text.partition("=")[2].strip()


def test_a_uniform_budget_keeps_pins():
    problem = built([Pin("head", Choice(8, 8))], ["bops=W4A4"])
    assert problem.budgets["bops"] == 16 * (1728 + 2304 + 256 + 2880) + 64 * 15


def test_a_uniform_budget_by_weights_alone():
    weights = (Choice(4), Choice(4, 8))
    table = losses_of(weights)
    problem = build_problem(LAYERS, table, overhead=OVERHEAD, budgets=["bops=W4"])
    assert problem.budgets["bops"] == 128 * 7183
    one = build_problem(LAYERS, losses_of(GRID[2:3]), overhead=OVERHEAD, budgets=["bops=W4"])
    assert one.budgets["bops"] == 16 * 7183
    with pytest.raises(ValueError, match=r"uniform allocation that is not a candidate.*W2A4"):
        built(budgets=["bops=W4"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bops", "is not a valid budget: expected NAME=VALUE"),
        ("bops=", "is not a valid budget"),
        ("bops=many", "cannot be read: expected a number.*0.13x.*40%.*W4A4"),
        ("bops=12XB", "cannot be read"),
        ("bops=-1", "finite and not negative"),
        ("bops=1kB", "leave the B out"),
        ("bops=1Mi", "write MiB for bytes"),
        ("latency_s=1", "unknown cost. Expected one of size_bytes, average_bits, bops"),
    ],
)
def test_a_wrong_budget_says_what_is_accepted(text, message):
    with pytest.raises(ValueError, match=message):
        built(budgets=[text])


def test_budgets_twice_or_without_reference_are_errors():
    with pytest.raises(ValueError, match="'bops' is given more than once"):
        built(budgets=["bops=1", "bops=2"])
    with pytest.raises(ValueError, match="not known here: give a number"):
        limit_of(parse_budget("size_bytes=0.5x"), small())
    assert with_budgets(small(), {}).budgets == {}
    assert with_budgets(small(), {"size_bytes": 3.0}).asked == {"size_bytes": "3"}


def test_range_respects_rules_and_constants():
    problem = small(
        constants={"size_bytes": 10.0}, allowed=np.array([[True, True], [False, True]])
    )
    assert problem.range("size_bytes") == (15.0, 16.0)
    assert small(ties=[[0, 1]]).range("size_bytes") == (2.0, 6.0)


def test_uniform_takes_the_nearest_below_where_rules_forbid_it():
    problem = built([Allow("head", ("W8A8", "W2A4")), Pin("stem/conv", Choice(8, 8))])
    nearest = problem.allocation(problem.uniform(Choice(4, 8)))
    assert (nearest["head"], nearest["stem/conv"]) == (Choice(2, 4), Choice(8, 8))
    with pytest.raises(ValueError, match="W3 is not a candidate"):
        problem.uniform(Choice(3))


def test_reduced_sums_over_ties_and_forbids():
    problem = small(ties=[[0, 1]], allowed=np.array([[True, True], [False, True]]))
    reduced = problem.reduced()
    np.testing.assert_array_equal(reduced.losses, [[np.inf, 3.0]])
    np.testing.assert_array_equal(reduced.costs, [[[0.0, 6.0]]])
    assert problem.members(0) == ("a", "b")
    assert reduced.expand(np.array([1])).tolist() == [1, 1]


def test_limits_are_strict_on_integers_and_rounded_otherwise():
    assert small().rounding("size_bytes") == 0.0
    thirds = {"size_bytes": np.array([[0.1, 2.0], [0.2, 4.0]])}
    problem = small(costs=thirds, budgets={"size_bytes": 0.3})  # 0.1 + 0.2 > 0.3
    assert not problem.violated(problem.evaluate(np.array([0, 0]))[1])
    assert problem.violated({"size_bytes": 0.3001}) == pytest.approx({"size_bytes": 0.0001})


NAN = np.array([[3.0, math.nan], [5.0, 2.0]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": NAN}, "Layer 'a' at W2 has loss nan: expected finite"),
        ({"losses": np.where(np.isnan(NAN), np.inf, NAN)}, "'a' at W2 has loss inf"),
        ({"costs": {"size_bytes": -NAN[::-1]}}, "'a' at W1 has size_bytes -5.*not negative"),
        ({"costs": {"size_bytes": np.ones((2, 3))}}, r"size_bytes has shape \(2, 3\)"),
        ({"budgets": {"bops": 1.0}}, "'bops' has no cost table: the costs are size_bytes"),
        ({"budgets": {"size_bytes": math.nan}}, "give a number or leave it out"),
        ({"constants": {"size_bytes": -1.0}}, "must be finite and not negative"),
        ({"allowed": np.array([[True, True], [False, False]])}, "Layer 'b' has no candidate"),
        (
            {"allowed": np.eye(2, dtype=bool), "ties": [[0, 1]]},
            "in common: a allows W1",
        ),
        ({"layers": ("a", "a")}, "Layer 'a' appears more than once"),
        ({"choices": (Choice(4), Choice(4))}, "Choice 'W4' appears more than once"),
        ({"losses": np.ones((0, 2)), "layers": ()}, "Nothing to choose"),
    ],
)
def test_a_wrong_problem_names_the_layer(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_a_forbidden_choice_may_have_no_loss():
    assert small(losses=NAN, allowed=~np.isnan(NAN)).reduced().losses[0, 1] == np.inf


def test_groups_are_numbered_without_gaps():
    with pytest.raises(ValueError, match="numbered from 0 without gaps"):
        dataclasses.replace(small(), groups=np.array([0, 2]))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([0], "one choice for each of the 2 layers"),
        ([0, 2], "'b' has column 2: expected 0 to 1"),
        ([-1, 0], "'a' has column -1"),
        ([0, 1], "'b' is tied to 'a'"),
    ],
)
def test_evaluate_refuses_what_is_no_allocation(columns, message):
    with pytest.raises(ValueError, match=message):
        small(ties=[[0, 1]]).evaluate(np.array(columns))


def test_evaluate_refuses_a_forbidden_choice():
    problem = small(allowed=np.array([[True, True], [False, True]]))
    with pytest.raises(ValueError, match="'b' may not take W1: it allows W2"):
        problem.evaluate(np.array([0, 0]))
    with pytest.raises(ValueError, match=r"'b' is not named by .*: expected one of W1, W2"):
        problem.columns(Allocation({"a": Choice(1)}))


def test_a_forbidden_choice_names_the_rule_or_the_budget_that_forbids_it():
    problem = built(["pin head=W8A8", "allow stem.*=A8"])
    for choice, match in (
        (Choice(4, 8), "'head' may not take W4A8: it allows W8A8, by the rule 'pin head=W8A8'"),
        (Choice(8, 4), r"'stem/conv' may not take W8A4: .*by the rule 'allow stem.\*=A8'"),
    ):
        with pytest.raises(ValueError, match=match):
            problem.evaluate(Allocation.uniform(NAMES, choice))
    peak = built(budgets=["activation_bytes=0%"])
    with pytest.raises(ValueError, match=r"may not take .*, by the budget on activation_bytes"):
        peak.evaluate(Allocation.uniform(NAMES, Choice(8, 8)))


def test_a_budget_that_does_not_bind_says_what_is_possible():
    most = reference_costs(dict.fromkeys(NAMES, Choice(8, 8)), OVERHEAD, 7)["size_bytes"]
    says = f"not binding: at most {most} possible"
    for budget in ("size_bytes=120%", "size_bytes=1MB", "size_bytes=W8A8"):
        problem = built(budgets=[budget])
        assert problem.room("size_bytes") == says
        assert says in " ".join(repr(problem).split())
    least = reference_costs(dict.fromkeys(NAMES, Choice(2, 4)), OVERHEAD, 7)["size_bytes"]
    assert built(budgets=["size_bytes=99%"]).room("size_bytes") == f"{least} to {most} possible"


def solved(columns, bound, **changes):
    return solution_from_columns(
        small(**changes), np.array(columns), bound=bound, solver="test", wall_s=0.0
    )


def test_status_follows_from_loss_and_bound():
    assert solved([0, 1], 5.0).status == "optimal"
    feasible = solved([0, 1], 4.0)
    assert (feasible.status, feasible.gap, feasible.costs) == (
        "feasible",
        pytest.approx(0.2),
        {"size_bytes": 5.0},
    )
    assert solved([0, 1], -math.inf).bound == 3.0  # the least loss of every layer
    assert solved([0, 1], 5.0 + 1e-12).bound == 5.0


def test_the_gap_is_defined_for_zero_and_negative_losses():
    zero = solved([0, 1], -math.inf, losses=np.zeros((2, 2)))
    assert (zero.gap, zero.status) == (0.0, "optimal")
    mixed = np.array([[0.0, -1.0], [0.0, -3.0]])
    assert solved([0, 0], -math.inf, losses=mixed).gap == 1.0
    assert solved([1, 0], -4.0, losses=mixed).gap == pytest.approx(0.75)


def test_a_solution_within_budget_and_above_its_bound_only():
    with pytest.raises(ValueError, match="breaks its budgets: size_bytes by 1"):
        solved([1, 1], 0.0)
    with pytest.raises(AssertionError, match=r"bound 6.0 above loss 5.0"):
        solved([0, 1], 6.0)


def test_infeasible_tells_target_range_and_cheapest():
    problem = built(budgets=["size_bytes=W2A4"])
    problem = with_budgets(problem, ["size_bytes=100"])
    error = infeasible(problem, ("size_bytes",))
    assert isinstance(error, Infeasible)
    least, most = problem.range("size_bytes")
    assert f"size_bytes=100 cannot be met: the allowed choices cost from {least:g}" in str(
        error
    )
    assert "Cheapest size_bytes per layer: block1/conv1 W2A4 65, " in str(error)
    assert "28 outside the search" in str(error)
    assert error.ranges == {"size_bytes": (least, most)}
    assert error.cheapest["size_bytes"]["head"] == ("W2A4", 16.0)
    asked = infeasible(with_budgets(problem, ["bops=0.001x"]), ("bops",))
    assert "(asked: 0.001x)" in str(asked)


def test_a_cost_of_ones_own_has_a_table_of_layers_and_candidates():
    by_layer = Cost(
        name="mine", title="mine", unit="", table=lambda layers, *_: np.ones(len(layers))
    )
    message = r"Cost 'mine' has a table of shape \(5,\): expected \[layers, candidates\]"
    with pytest.raises(ValueError, match=message):
        build_problem(
            LAYERS, losses_of(), overhead=KernelSpec(), costs={**COSTS, "mine": by_layer}
        )


def test_the_default_rule_pins_layers_with_blanks_in_their_names():
    names = ("first layer", "middle", "last layer")
    ruling = apply_rules(first_and_last(names, GRID), names, GRID)
    assert ruling.allowed.sum(axis=1).tolist() == [1, len(GRID), 1]
