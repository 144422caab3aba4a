"""Tables and figures of a study, from a table made by hand."""

import numpy as np
import pytest
from scipy import stats

from jmpq.report.figure_study import STYLES, study_figure, write_figure
from jmpq.report.style import NothingToDrawError
from jmpq.study.pivot import tabulate
from jmpq.study.study import StudyTable

METHODS = {"gauss_newton": 0.0, "alike": 0.001, "far_off": 0.3, "random": 0.6}


def made(methods=METHODS, draws=3, examples=40, budgets=("size_bytes=W3", "size_bytes=W4")):
    """Two budgets; every method has a mean of its own, on shared examples."""
    rng, rows, scores = np.random.default_rng(0), [], {}
    for draw in range(draws):
        shared, values = rng.gamma(2.0, size=examples), []
        for number, (method, offset) in enumerate(methods.items()):
            for place, budget in enumerate(budgets):
                kl = shared + offset + 0.05 * rng.normal(size=examples) + place
                rows.append({
                    "network": "tiny", "examples": 8, "draw": draw, "bits": "W2,4",
                    "rounding": "nearest", "metric": method, "solver": "exact",
                    "budget": budget, "refine": 0, "correct": "none", "finetune": 0,
                    "kl": kl.mean(), "evaluated": examples, "size_bytes": 100.0 + 10 * place,
                    "outcomes": f"cell{draw}", "row": number * len(budgets) + place,
                })  # fmt: skip
                values.append(kl)
        scores[f"cell{draw}"] = {"kl": np.array(values), "indices": np.arange(examples)}
    return StudyTable(rows=tuple(rows), scores=scores)


def test_entries_are_means_and_the_best_is_told_from_others_in_pairs():
    table = made()
    shown = tabulate(table, "metric", "budget")
    assert shown.down == ("metric",)
    assert shown.across == ("size_bytes=W3", "size_bytes=W4")
    means = {}
    for row in table.rows:
        means.setdefault((row["metric"], row["budget"]), []).append(row["kl"])
    for (metric,), entries in shown.rows.items():
        for budget, entry in zip(shown.across, entries, strict=True):
            assert entry.estimate.mean == pytest.approx(np.mean(means[metric, budget]))
    # By itself every mean is uncertain by far more than what tells the methods apart.
    far = shown.rows["far_off",][0]
    best = next(own[0] for own in shown.rows.values() if own[0].best)
    assert far.estimate.interval()[0] < best.estimate.mean
    assert far.level is False
    assert {key for key, own in shown.rows.items() if own[0].best or own[0].level} == {
        ("gauss_newton",),
        ("alike",),
    }
    best_mean = min(np.mean(v) for (_, b), v in means.items() if b == "size_bytes=W3")
    assert best.estimate.mean == pytest.approx(best_mean)


def test_other_axes_that_vary_stand_beside_the_one_down():
    table = made({"gauss_newton": 0.0})
    rows = [row | {"solver": s} for row in table.rows for s in ("exact", "greedy")]
    shown = tabulate(StudyTable(rows=tuple(rows), scores=table.scores), "metric", "budget")
    assert shown.down == ("metric", "solver")
    assert set(shown.rows) == {("gauss_newton", "exact"), ("gauss_newton", "greedy")}


def test_a_method_that_was_not_measured_example_by_example_is_not_compared():
    table = made({"gauss_newton": 0.0, "tuned": 0.3})
    rows = [
        row | ({"outcomes": None, "row": None} if row["metric"] == "tuned" else {})
        for row in table.rows
    ]
    shown = tabulate(StudyTable(rows=tuple(rows), scores=table.scores), "metric", "budget")
    tuned = shown.rows["tuned",][0]
    assert tuned.level is None
    values = [row["kl"] for row in rows if row["metric"] == "tuned"][::2]
    assert tuned.estimate.mean == pytest.approx(np.mean(values))
    assert tuned.estimate.sem == pytest.approx(stats.sem(values))
    (line,) = (line for line in shown.markdown().splitlines() if "tuned" in line)
    assert line.count("†") == 2
    assert "†: not tested" in shown.caption
    assert "†" not in tabulate(table, "metric", "budget").markdown()


def test_every_network_has_a_best_of_its_own():
    table = made()
    rows = [
        row | {"network": name, "kl": row["kl"]} for row in table.rows for name in ("a", "b")
    ]
    shown = tabulate(StudyTable(rows=tuple(rows), scores=table.scores), "metric", "budget")
    best = [key for key, own in shown.rows.items() if own[0].best]
    assert sorted(network for _, network in best) == ["a", "b"]
    assert all(e.best or e.level is not None for own in shown.rows.values() for e in own)
    assert "Best of a column and network" in shown.caption


def test_ways_of_rounding_on_the_same_draws_are_compared():
    table = made({"gauss_newton": 0.0, "alike": 0.001})
    of = {"gauss_newton": "nearest", "alike": "gptq"}
    rows = [row | {"rounding": of[row["metric"]], "metric": "one"} for row in table.rows]
    shown = tabulate(StudyTable(rows=tuple(rows), scores=table.scores), "rounding", "budget")
    assert [own[0].level for own in shown.rows.values() if not own[0].best] == [True]


def test_tables_are_markdown_latex_and_csv():
    shown = tabulate(made(), "metric", "budget")
    head, rule, *body = [x for x in shown.markdown().splitlines() if x.startswith("|")]
    assert head == "| metric | size_bytes=W3 | size_bytes=W4 |"
    assert rule == "| --- | --- | --- |"
    assert len(body) == len(METHODS)
    assert "**" in shown.markdown()
    latex = shown.latex()
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"gauss\_newton", r"\textbf{",
                 r"size\_bytes=W3", r"$\pm$"):  # fmt: skip
        assert part in latex
    assert all(x.endswith(r"\\") for x in latex.splitlines() if "&" in x)
    lines = shown.csv().splitlines()
    assert lines[0] == "metric,across,mean,sem,df,draws,best,level"
    assert len(lines) == 1 + 2 * len(METHODS)


@pytest.mark.parametrize(
    ("down", "across", "value", "message"),
    [
        ("metrics", "budget", "kl", "Did you mean 'metric'"),
        ("metric", "draw", "kl", "draws are averaged over"),
        ("metric", "metric", "kl", "choose two"),
        ("metric", "budget", "accuracy", "not a value of a table"),
    ],
)
def test_wrong_tables_are_refused(down, across, value, message):
    with pytest.raises(ValueError, match=message):
        tabulate(made(), down, across, value)


def test_figures_have_the_width_of_a_column_and_are_the_same_bytes_again(tmp_path):
    figure = study_figure(made(), "kl", "icml")
    assert figure.get_figwidth() == STYLES["icml"].width == 3.25
    paths = write_figure(figure, tmp_path / "one", "kl")
    assert [path.suffix for path in paths] == [".svg", ".pdf", ".png"]
    again = write_figure(study_figure(made(), "kl", "icml"), tmp_path / "two", "kl")
    for one, two in zip(paths, again, strict=True):
        assert one.read_bytes() == two.read_bytes()
        assert len(one.read_bytes()) > 1000
    with pytest.raises(NothingToDrawError, match="measured nothing"):
        study_figure(StudyTable(rows=(), scores={}))


def test_a_method_with_a_destroyed_draw_is_not_best():
    table = made()
    rows = [dict(row) for row in table.rows]
    spoilt = next(row for row in rows if row["metric"] == "gauss_newton")
    spoilt["kl"] = None  # as a value that is not finite comes back from a file
    table.scores[spoilt["outcomes"]]["kl"][spoilt["row"]] = np.nan
    shown = tabulate(StudyTable(rows=tuple(rows), scores=table.scores), "metric", "budget")
    column = shown.across.index(spoilt["budget"])
    entry = shown.rows[("gauss_newton",)][column]
    assert np.isnan(entry.estimate.mean)
    assert not entry.best
    assert shown.rows[("alike",)][column].best
    assert "of 1 outcomes the value is not finite" in shown.caption
