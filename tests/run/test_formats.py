"""A run over formats by name: candidates, plan, outcomes, an allocation written by hand."""

import json

import jax
import numpy as np
import pytest

from jmpq import run
from jmpq.formats import Choice
from jmpq.problem.plan import read_plan
from jmpq.run.planning.problems import default_budgets
from jmpq.sensitivity.table import load_sensitivities

FORMATS = {
    "w_formats": ("int3", "int4_g4", "mxfp4", "nvfp4", "fp8_e4m3"),
    "a_formats": ("int8", "mxfp8_e4m3", "none"),
}


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


def options(**others):
    few = {"metrics": ("gauss_newton",), "examples": 24, "batch_size": 24}
    return run.Sensitivity(**(few | others))


@pytest.mark.slow
def test_formats_go_through_the_whole_run(tmp_path):
    folder = tmp_path / "run"
    run.layers(folder, run.Layers(model="tests.cli.networks:tiny", data="digits"))
    run.sensitivity(folder, options(**FORMATS))
    (table,) = load_sensitivities(folder / "sensitivity.npz").values()
    assert len(table.choices) == 15
    assert (
        np.array([len({m.bits for m in table.moves if m.kind == k}) for k in "wa"]) == [5, 2]
    ).all()
    solve = run.Solve(
        budget=("average_bits=nvfp4",), first_last_bits=0, search_evaluations=0,
        rule=("pin head=Wfp8_e4m3Amxfp8_e4m3", "allow body=mxfp4,int4_g4"),
    )  # fmt: skip
    run.solve(folder, solve, comparison=run.Comparison(random=1))
    plan = read_plan(folder / "plan.json")
    exact = next(a for a in plan.allocations if a.role == "solution")
    assert str(exact.allocation["head"]) == "Wfp8_e4m3Amxfp8_e4m3"
    assert exact.allocation["body"].weights.name in ("mxfp4", "int4_g4")
    own = tmp_path / "mine.json"
    own.write_text(
        json.dumps({"stem": "Wnvfp4A8", "body": "Wmxfp4", "head": "Wfp8_e4m3Amxfp8_e4m3"})
    )
    run.evaluate(folder, run.Evaluate(allocation=own, examples=50))
    run.evaluate(folder, run.Evaluate(examples=50))
    measured = json.loads((folder / "evaluation.json").read_text())["measured"]
    assert {"given/mine", exact.name} <= set(measured)


def test_unknown_formats_are_refused_before_anything_is_loaded():
    with pytest.raises(ValueError, match=r"'mxfp5' is not a number format. Did you mean 'mxfp"):
        options(w_formats=("mxfp5",))
    with pytest.raises(ValueError, match="1 bits on the 'symmetric' grid: expected 2 to 16"):
        options(w_formats=("int1_g64",))
    assert options(w_bits=(2, 8), a_bits=(8,)).w_schemes == (2, 8)
    assert [str(c) for c in options(w_formats=("mxfp4", "int2"), a_bits=(32,)).choices] == [
        "W2",
        "Wmxfp4",
    ]


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """A run whose layer table has keys and values, with their sensitivities."""
    folder = tmp_path_factory.mktemp("cached") / "run"
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        run.layers(
            folder,
            run.Layers(model="tests.cli.networks:attention", data="digits", kv_cache=True),
        )
        metrics = (
            "gauss_newton", "composed", "empirical_fisher", "squared_error", "hawq_trace",
            "measured_kl",
        )  # fmt: skip
        run.sensitivity(
            folder,
            options(
                metrics=metrics, w_formats=("int3", "int8"), a_formats=("none",),
                kv_formats=("int2", "int4", "int8", "mxfp4"),
            ),
        )  # fmt: skip
    return folder


def test_kernels_keys_and_values_share_a_run_and_its_budgets(cached):
    tables = load_sensitivities(cached / "sensitivity.npz")
    keys = [move for move in tables["gauss_newton"].moves if move.layer == "key:keys"]
    assert {move.kind for move in keys} == {"a"}
    assert {m.kind for m in tables["gauss_newton"].moves if m.layer == "value"} == {"w"}
    row = tables["measured_kl"].layers.index("key:keys")
    column = tables["measured_kl"].choices.index
    exact, predicted = (tables[n].losses[row] for n in ("measured_kl", "gauss_newton"))
    small = column(Choice("none", "int8"))
    assert 0.5 * predicted[small] < exact[small] < 2 * predicted[small]
    solve = run.Solve(budget=("average_bits=10.5", "kv_bytes=6"), search_evaluations=50)
    run.solve(cached, solve, comparison=run.Comparison(random=1))
    plan = read_plan(cached / "plan.json")
    best = next(a for a in plan.allocations if a.role == "solution")
    kept = [best.allocation[name] for name in ("key:keys", "value:values")]
    assert {c.w_bits for c in kept} == {32}
    assert sum(8 * c.a_bits // 8 for c in kept) == best.costs["kv_bytes"] == 6
    run.evaluate(cached, run.Evaluate(examples=50))
    measured = json.loads((cached / "evaluation.json").read_text())["measured"]
    assert best.name in measured
    record = run.export(cached, run.Export(check=50, repeats=1))
    assert record.allocation == best.allocation
    assert record.payload_bytes == record.size_bytes == best.costs["size_bytes"]
    assert record.checks["jax"].agreement["largest"] < 1e-4
    with pytest.raises(
        ValueError, match=r"A file for qwix .*\('key:keys', ...\): export 'pack"
    ):
        run.export(cached, run.Export(format="qwix", check=0))


def test_default_budgets_hold_keys_and_values_too(cached):
    table = load_sensitivities(cached / "sensitivity.npz")["gauss_newton"]
    assert default_budgets(table.choices) == ("size_bytes=W3", "kv_bytes=W32A4")
    assert default_budgets([Choice(4), Choice(8)]) == ("size_bytes=W4",)
    assert default_budgets([Choice(32), Choice(32, 4)]) == ("kv_bytes=W32A4",)


def test_keys_and_values_without_formats_or_rows_are_refused(tmp_path, cached):
    with pytest.raises(
        ValueError, match=r"Keys and values \(key:keys, ...\) have no cand.*kv-f"
    ):
        run.sensitivity(cached, options(w_formats=("int3",)))
    folder = tmp_path / "plain"
    run.layers(folder, run.Layers(model="tests.cli.networks:tiny", data="digits"))
    with pytest.raises(
        ValueError, match="kv_formats are of keys and values, which have no row"
    ):
        run.sensitivity(folder, options(kv_formats=("int4",)))
    run.sensitivity(folder, options(w_formats=("int8",), a_formats=("none",)))
    with pytest.raises(ValueError, match="A budget on kv_bytes needs rows of keys and values"):
        run.solve(folder, run.Solve(budget=("kv_bytes=6",)))
    with pytest.raises(ValueError, match="keeps no keys and values"):
        run.layers(
            tmp_path / "no",
            run.Layers(model="tests.cli.networks:tiny", data="digits", kv_cache=True),
        )
    with pytest.raises(ValueError, match="leave 'none' out of w_formats"):
        options(w_formats=("int4", "none"), kv_formats=("int4",))
    with pytest.raises(ValueError, match=r"'int44' is not|integers have 1 to 16 bits"):
        options(kv_formats=("int44",))
