"""Seconds by layer and choice, from a file to a budget."""

import itertools

import numpy as np
import pytest

from jmpq.formats import UNQUANTIZED, Choice
from jmpq.latency.table import LatencyTable
from jmpq.problem import (
    COSTS,
    Exclude,
    Overhead,
    allocation_costs,
    build_problem,
    parse_rule,
    problem_of,
)
from jmpq.problem.budgets import parse_budget
from jmpq.problem.costs import additive_cost, known_costs
from jmpq.quantizers.spec import KernelSpec
from jmpq.solvers import Exact, solve
from tests.problem.tables import LAYERS, NAMES, losses_of
from tests.solvers.instances import hawq_v3

CHOICES = (Choice(4, 8), Choice(8, 8), UNQUANTIZED)


def table(**options):
    rng = np.random.default_rng(0)
    rows = np.sort(rng.uniform(1e-4, 1e-3, (len(NAMES), 3)), axis=1)
    seconds = {
        n: dict(zip(CHOICES, map(float, r), strict=True))
        for n, r in zip(NAMES, rows, strict=True)
    }
    return LatencyTable(seconds=seconds, **options)


def with_latency(made):
    return {**COSTS, "latency_s": made.cost}


def test_a_table_survives_its_file_and_another_tool_may_write_bits(tmp_path):
    made = table(fixed=0.002, unquantized=0.0055)
    made.write(tmp_path / "latency.csv")
    read = LatencyTable.read(tmp_path / "latency.csv")
    assert (read.seconds, read.fixed, read.unquantized) == (made.seconds, 0.002, 0.0055)
    assert read.choices == CHOICES
    text = "layer,w_bits,a_bits,seconds\nconv,4,8,1e-3\nconv,32,,2e-3\n,,,5e-4\n"
    (tmp_path / "other.csv").write_text(text, encoding="utf-8-sig")  # as spreadsheets do
    other = LatencyTable.read(tmp_path / "other.csv")
    assert other.seconds == {"conv": {Choice(4, 8): 1e-3, UNQUANTIZED: 2e-3}}
    assert (other.fixed, other.unquantized) == (5e-4, None)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("name,seconds\na,1\n", "has the columns name, seconds: expected layer, choice"),
        ("", "has the columns none: expected"),
        ("layer,choice,seconds\na,W4A8,fast\n", "line 2, cannot be read .*float.*fast"),
        (
            "layer,choice,seconds\na,4 bits,1\n",
            "line 2, cannot be read .*'4 bits' is not a choice",
        ),
        ("layer,choice,seconds\na,W4,1\na,W4,2\n", "line 3, .*a second time"),
        ("layer,choice,seconds\na,,1\n", "line 2, .*layer 'a' has no choice"),
        ("layer,choice,seconds\na,W4,-1\n", "seconds of layer 'a' at W4 are -1.0: expected"),
        ("layer,choice,seconds\na,W4,nan\n", "seconds of layer 'a' at W4 are nan"),
        ("layer,choice,seconds\n,W4,1\n", "row without a layer at W4: give the whole"),
    ],
)
def test_a_table_that_cannot_be_used_says_where(tmp_path, text, match):
    (tmp_path / "latency.csv").write_text(text)
    with pytest.raises(ValueError, match=match):
        LatencyTable.read(tmp_path / "latency.csv")


def test_layers_of_another_network_are_refused():
    with pytest.raises(ValueError, match=r"has layer 'stem/conv'. Did you mean 'stem/conv1'"):
        table().check_layers(["stem/conv1", *NAMES[1:]])


def test_a_budget_on_latency_is_kept_and_optimal():
    made = table(fixed=1e-3, unquantized=5e-3)
    losses = losses_of(CHOICES)
    problem = build_problem(
        LAYERS,
        losses,
        overhead=KernelSpec(),
        budgets=["latency_s=0.7x", "size_bytes=W8A8"],
        costs=with_latency(made),
    )
    assert problem.budgets["latency_s"] == 0.7 * 5e-3
    solution = solve(problem)
    seconds = made.array(NAMES, CHOICES)
    size = problem.costs["size_bytes"]
    best, rows = np.inf, np.arange(len(NAMES))
    for columns in itertools.product(range(3), repeat=len(NAMES)):
        at = rows, list(columns)
        within = 1e-3 + seconds[at].sum() <= 3.5e-3
        within &= (
            size[at].sum() + problem.constants["size_bytes"] <= problem.budgets["size_bytes"]
        )
        if within:
            best = min(best, losses.losses[at].sum())
    assert solution.loss == pytest.approx(best, rel=1e-12)
    chosen = [CHOICES.index(solution.allocation[name]) for name in NAMES]
    assert solution.costs["latency_s"] == pytest.approx(1e-3 + seconds[rows, chosen].sum())
    got = allocation_costs(
        LAYERS,
        solution.allocation,
        Overhead.of(LAYERS, KernelSpec()),
        costs=with_latency(made),
    )
    assert got["latency_s"] == pytest.approx(solution.costs["latency_s"], rel=1e-12)


def test_what_is_not_in_the_table_is_named():
    made = table()
    part = LatencyTable(
        seconds={
            k: {c: s for c, s in v.items() if c != UNQUANTIZED} for k, v in made.seconds.items()
        }
    )
    options = {"overhead": KernelSpec(), "costs": with_latency(part)}
    with pytest.raises(ValueError, match="latency_s of layer 'stem/conv' at W32 is not in the"):
        build_problem(LAYERS, losses_of(CHOICES), **options)
    quantized = losses_of(CHOICES[:2])
    with pytest.raises(
        ValueError, match="is a ratio to the unquantized network, whose latency_s"
    ):
        build_problem(LAYERS, quantized, budgets=["latency_s=0.5x"], **options)
    problem = build_problem(LAYERS, quantized, budgets=["latency_s=50%"], **options)
    assert solve(problem).costs["latency_s"] <= problem.budgets["latency_s"]
    with pytest.raises(ValueError, match="latency_s of an excluded layer"):
        build_problem(LAYERS, quantized, rules=[Exclude("head")], **options)
    forbidden = [parse_rule("allow .*=W4A8,W8A8")]
    build_problem(LAYERS, losses_of(CHOICES), rules=forbidden, **options)
    alone = problem.allocation(problem.uniform(CHOICES[1]))
    alone = type(alone)({k: v for k, v in alone.items() if k != "head"})
    got = allocation_costs(
        LAYERS, alone, Overhead.of(LAYERS, KernelSpec()), costs=with_latency(part)
    )
    assert "latency_s" not in got
    assert "size_bytes" in got


def test_times_are_written_and_read_with_their_unit():
    latency = known_costs()["latency_s"]
    assert additive_cost("latency_s") == latency
    texts = [latency.text(x) for x in (1.5, 2.04e-3, 5e-5)]
    assert texts == ["1.5 s", "2.04 ms", "50 µs"]
    assert latency.label(0.01) == "latency (ms)"
    for text, value in (("2.5ms", 2.5e-3), ("300us", 3e-4), ("0.1s", 0.1), ("0.002", 0.002)):
        assert parse_budget(f"latency_s={text}").value == value
    with pytest.raises(ValueError, match="given in ms, but size_bytes is not a time"):
        parse_budget("size_bytes=3ms")
    with pytest.raises(ValueError, match="given in bytes, but latency_s is not"):
        parse_budget("latency_s=3MB")
    # A cost that only a run has has the unit that its name ends with.
    assert parse_budget("startup_s=5ms").value == 0.005
    assert parse_budget("scratch_bytes=3MB").value == 3e6
    with pytest.raises(ValueError, match="given in ms, but energy_pj is not a time"):
        parse_budget("energy_pj=5ms")
    with pytest.raises(ValueError, match="given in bytes, but energy_pj is not"):
        parse_budget("energy_pj=5MB")


def test_published_t4_latencies_of_resnet18_are_a_table(tmp_path):
    """HAWQ-V3's instances, their latencies through a file of this project."""
    data = hawq_v3()
    choices = [Choice(bits, bits) for bits in data["bits"]]
    seconds = {
        layer: {c: ms / 1e3 for c, ms in zip(choices, row, strict=True)}
        for layer, row in zip(data["layers"], data["costs"]["latency_ms"], strict=True)
    }
    LatencyTable(seconds=seconds).write(tmp_path / "t4.csv")
    read = LatencyTable.read(tmp_path / "t4.csv")
    costs = {k: np.array(v) for k, v in data["costs"].items() if k != "latency_ms"}
    costs["latency_s"] = read.array(data["layers"], choices)
    assert len(data["instances"]) == 9
    for instance in data["instances"]:
        timed = instance["constraint"] == "latency_ms"
        name = "latency_s" if timed else instance["constraint"]
        problem = problem_of(
            np.array(data["losses"]),
            costs,
            {name: instance["budget"] * (1e-3 if timed else 1.0)},
            layers=data["layers"],
            choices=choices,
            ties=data["ties"],
        )
        assert Exact()(problem).loss == pytest.approx(instance["optimum"], rel=1e-9)


@pytest.mark.parametrize("row", [b"conv,W4A8,\xff\n", b'conv,W4A8,"' + b"1" * 200_000])
def test_what_is_no_table_is_named(row, tmp_path):
    (tmp_path / "latency.csv").write_bytes(b"layer,choice,seconds\n" + row)
    with pytest.raises(ValueError, match=r"latency\.csv is not a CSV table"):
        LatencyTable.read(tmp_path / "latency.csv")
