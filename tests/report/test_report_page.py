import csv
import html
import html.parser
import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from jmpq.files import file_sha256
from jmpq.network.layers import Layer
from jmpq.report.contents import read_contents
from jmpq.report.measured import compare, gap_rows, gap_to, rank_correlation
from jmpq.report.report import write_report
from jmpq.report.summary import answer, summary
from jmpq.report.tables import (
    Column,
    all_tables,
    allocation_rows,
    cell,
    correlation_rows,
    csv_text,
    type_rows,
)
from jmpq.run.folder import RunFolder
from tests.helpers import rewritten
from tests.report import synthetic_run


@pytest.fixture(scope="module")
def found():
    return synthetic_run.sensitivities()


@pytest.fixture(scope="module")
def run(found, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits & <co>"
    synthetic_run.write_run(folder, found)
    write_report(folder)
    return folder


@pytest.fixture
def copy(run, tmp_path):
    for name in ("layers.json", "sensitivity.npz", "plan.json", "evaluation.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    return tmp_path


@pytest.fixture
def undrawn(monkeypatch):
    """Every figure is an empty one: drawing takes most of the time of a report."""
    monkeypatch.setattr("jmpq.report.report.write_svg", lambda *args: "<svg></svg>")


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.attributes = []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, key, value or "") for key, value in attrs]


def parsed(run):
    tags = Tags()
    tags.feed((run / "report.html").read_text(encoding="utf-8"))
    return tags.attributes


def test_report_has_every_figure_inline_and_as_a_file(run):
    names = ("accuracy", "bits", "prediction", "sensitivity", "gap")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == len(names)
    for name in names:
        text = (run / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        ElementTree.fromstring(text)  # well-formed XML
        assert text.split("\n", 1)[1] in page
    assert not [path.name for path in run.rglob(".*")], "a temporary file is left"
    assert "digits &amp; &lt;co&gt;" in page


def test_report_loads_nothing_from_a_network(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    for tag, key, value in parsed(run):
        if not key.startswith("xmlns"):
            assert "//" not in value, f"<{tag} {key}={value!r}>"
    assert page.count("<script>") == page.count("<script") == 1  # it sorts tables
    assert "@import" not in page
    assert set(re.findall(r"https?://[^\"'\s<)]*", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_report_identifiers_are_unique_and_references_meet_them(run):
    attributes = parsed(run)
    ids = [value for _, key, value in attributes if key == "id"]
    assert len(ids) == len(set(ids)) > 50
    page = (run / "report.html").read_text(encoding="utf-8")
    used = {value[1:] for _, key, value in attributes
            if key in ("href", "xlink:href") and value.startswith("#")}  # fmt: skip
    used |= set(re.findall(r"url\(#([^)]+)\)", page))
    assert used <= set(ids)


def test_report_links_are_files_that_exist(run):
    links = [v for t, k, v in parsed(run) if t == "a" and k == "href" and v[0] != "#"]
    assert links
    assert all((run / link).is_file() for link in links)


def test_report_is_redrawn_byte_for_byte(run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    write_report(run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def unmeasured(folder, *names):
    """Take allocations out of an evaluation, as if they had not been asked for."""

    def drop(value):
        for name in names:
            value["measured"].pop(name, None)
            value["differences"].pop(name, None)
        if value["reference"] in names:
            value |= {"reference": None, "differences": {}}

    rewritten(folder / "evaluation.json", drop)


@pytest.mark.usefixtures("undrawn")
def test_partly_evaluated_plan_shows_what_is_there_and_says_so(copy):
    (copy / "figures").mkdir()
    (copy / "figures" / "F6-loss.svg").write_text("of an earlier report")

    unmeasured(copy, *json.loads((copy / "evaluation.json").read_text())["measured"])
    page = write_report(copy).read_text(encoding="utf-8")
    assert "Partly evaluated" in page
    assert "Not drawn: no joint allocation was measured on the evaluation split." in page
    assert page.count("<svg") == 3
    assert not (copy / "figures" / "F6-loss.svg").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_plan_of_which_only_comparisons_are_unmeasured_has_no_warning(copy):
    plan = json.loads((copy / "plan.json").read_text())
    others = [a["name"] for a in plan["allocations"] if a["role"] in ("random", "single")]

    unmeasured(copy, *others)
    page = write_report(copy).read_text(encoding="utf-8")
    assert "Partly evaluated" not in page
    assert "allocations were not evaluated and are left out" in page  # among the details


def test_joint_predictions_stand_beside_what_was_measured(copy):
    measured = json.loads((copy / "evaluation.json").read_text())["measured"]
    kl = {name: found["calibration"]["kl"] for name, found in measured.items()}

    def add(plan):
        for allocation in plan["allocations"]:
            allocation["predictions"]["superposed_kl"] = kl[allocation["name"]] / 2

    def headings():
        table = next(
            t for t in all_tables(read_contents(RunFolder(copy))) if t.name == "allocations"
        )
        return [column.heading for column in table.columns]

    head = "predicted KL by superposed logits (nats)"
    assert head not in headings()
    assert "predicted loss increase by gauss_newton (nats)" in headings()
    rewritten(copy / "plan.json", add)
    sha = file_sha256(copy / "plan.json")
    rewritten(copy / "evaluation.json", lambda value: value.update(plan_sha256=sha))
    assert head in headings()
    contents = read_contents(RunFolder(copy))
    rows = correlation_rows(contents.plan, contents.evaluation)
    ((row),) = [
        row
        for row in rows
        if row["metric"] == "superposed_kl"
        and (row["allocations"], row["measured"], row["split"])
        == ("joint", "KL", "calibration")
    ]
    np.testing.assert_allclose(row["spearman"], 1)
    np.testing.assert_allclose(row["median_measured_over_predicted"], 2)
    for row in allocation_rows(contents.plan, contents.evaluation):
        np.testing.assert_allclose(row["superposed_kl"], kl[row["name"]] / 2)


def test_summary_names_what_was_not_measured(copy):
    unmeasured(copy, "exact/gauss_newton")
    found = dict(summary(read_contents(RunFolder(copy))))
    assert "not evaluated" in found["Not measured"]
    assert "exact/gauss_newton" in found["Not measured"]


def test_summary_names_network_budget_and_examples(run):
    found = dict(summary(read_contents(RunFolder(run))))
    assert set(found) == {"Network", "Budget", "Examples"}
    assert "asked as W4A4" in found["Budget"]
    assert "1000 examples" in found["Examples"]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("layers.json", "layers"),
        ("sensitivity.npz", "sensitivity"),
        ("plan.json", "solve"),
    ],
)
def test_missing_artifact_names_the_step_to_run(copy, name, step):
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} not found: run `jmpq {step} "):
        write_report(copy)
    assert not (copy / "report.html").exists()


@pytest.mark.usefixtures("undrawn")
def test_before_evaluation_the_page_shows_what_a_plan_alone_can_show(copy):
    (copy / "evaluation.json").unlink()
    (copy / "figures").mkdir()
    (copy / "figures" / "F6-loss.svg").write_text("of an earlier report")
    page = write_report(copy).read_text(encoding="utf-8")
    names = ("bits", "sensitivity", "gap")
    assert page.count("<svg") == len(names)
    assert sorted(path.stem for path in (copy / "figures").iterdir()) == sorted(names)
    assert "Not evaluated: everything on this page is predicted." in page
    assert "Nothing is measured yet: run `jmpq evaluate`." in html.unescape(page)
    assert "Not drawn" not in page
    for word in ("evaluation.json", "top-1 (%)", ">float</th>", "Partly evaluated"):
        assert word not in page


def test_the_page_starts_with_what_to_take_what_it_costs_and_what_uniform_bits_lose(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    contents = read_contents(RunFolder(run))
    lead, found = contents.recommendation, answer(contents)
    assert found.title == f"Take {lead.name}"
    assert found.columns == ("take this", lead.uniform.name.replace("/", " "), "float")
    top1 = dict(found.rows)["top-1 (%)"]
    for said, name in zip(top1, (lead.name, lead.uniform.name), strict=False):
        value = contents.evaluation["measured"][name]["evaluation"]["top1"]
        assert said.startswith(f"{100 * value:.2f} ± ")
    assert lead.proof in found.sentences
    assert lead.uniform.verdict == "better"
    assert found.sentences[0].startswith("It loses less than the best uniform allocation, by")
    assert any("the evaluation examples had no part in it" in s for s in found.sentences)
    at = [page.index(html.escape(text)) for text in (found.title, *found.sentences)]
    assert at == sorted(at)
    assert at[-1] < page.index("<figure>")
    assert len(page.encode()) < 1e6


def test_sizes_of_the_first_screen_have_the_unit_of_the_table(run):
    contents = read_contents(RunFolder(run))
    table = all_tables(contents)[0]
    (heading,) = [c.heading for c in table.columns if c.key == "size_bytes"]
    assert heading in dict(answer(contents).rows)


@pytest.mark.usefixtures("undrawn")
def test_a_destroyed_network_is_called_so(copy):
    contents = read_contents(RunFolder(copy))
    plan = json.loads((copy / "plan.json").read_text())
    same = [a["name"] for a in plan["allocations"] if a["role"] == "solution"]

    def spoil(value):
        value["splits"]["evaluation"]["chance"] = 0.1
        for name in same:
            value["measured"][name]["evaluation"]["top1"] = 0.11

    rewritten(copy / "evaluation.json", spoil)
    page = write_report(copy).read_text(encoding="utf-8")
    found = answer(read_contents(RunFolder(copy)))
    assert found.destroyed
    assert found.title.startswith(f"Do not deploy {contents.recommendation.name}")
    assert 'id="answer" class="destroyed"' in page
    (row,) = [
        r for r in all_tables(read_contents(RunFolder(copy)))[0].shown if r["recommended"]
    ]
    assert row["mark"] == "destroyed"


def test_the_winner_does_not_depend_on_the_evaluation_split(copy):
    before = answer(read_contents(RunFolder(copy))).title
    plan = json.loads((copy / "plan.json").read_text())

    def favour(value):
        for a in plan["allocations"]:
            if a["role"] == "solution":
                best = a["metric"] == "empirical_fisher"
                value["measured"][a["name"]]["evaluation"]["kl"] = 1e-6 if best else 1.0

    rewritten(copy / "evaluation.json", favour)
    assert answer(read_contents(RunFolder(copy))).title == before


def test_columns_hold_one_quantity_with_its_unit_and_equal_allocations_a_row(run):
    contents = read_contents(RunFolder(run))
    table = next(t for t in all_tables(contents) if t.name == "allocations")
    keys = [column.key for column in table.columns]
    assert "predicted_loss" not in keys  # by different metrics
    assert "predicted loss increase by gauss_newton (nats)" in [
        column.heading for column in table.columns
    ]
    names = [name for row in table.shown for name in row["name"].split(" = ")]
    main = [a for a in contents.plan["allocations"] if a["role"] in ("solution", "baseline")]
    random = [a for a in main if a["asked"] == "random"]
    main = [a for a in main if a not in random]
    mean = f"random, mean of {len(random)}"
    assert sorted(names) == sorted([*(a["name"] for a in main), mean])
    different = {json.dumps(a["allocation"], sort_keys=True) for a in main}
    assert len(table.shown) == len(different) + 1
    measured = [contents.evaluation["measured"][a["name"]]["evaluation"]["kl"] for a in random]
    (row,) = [row for row in table.shown if row["name"] == mean]
    np.testing.assert_allclose(row["kl_evaluation"], np.mean(measured))


def test_mismatching_artifacts_are_refused(copy):
    plan = (copy / "plan.json").read_text()
    again = "and the steps after it"
    rewritten(copy / "evaluation.json", lambda value: value.update(plan_sha256="other"))
    with pytest.raises(ValueError, match=rf"made from another .*run `jmpq evaluate .*{again}"):
        write_report(copy)
    rewritten(copy / "plan.json", lambda value: value.update(sensitivity_sha256="other"))
    with pytest.raises(ValueError, match=rf"made from another .*run `jmpq solve .*{again}"):
        write_report(copy)
    rewritten(copy / "plan.json", lambda value: value.update(weights_sha256="other"))
    with pytest.raises(ValueError, match=r"layers.json \(weights differ\): run `jmpq solve"):
        write_report(copy)
    rewritten(copy / "layers.json", lambda value: value.update(weights_sha256="other"))
    with pytest.raises(ValueError, match=r"npz was made from .*run `jmpq sensitivity .*"):
        write_report(copy)
    rewritten(
        copy / "layers.json", lambda v: v.update(weights_sha256=synthetic_run.WEIGHTS_SHA256)
    )
    (copy / "plan.json").write_text(plan[:100])
    with pytest.raises(ValueError, match=r"not readable JSON: .*run `jmpq solve"):
        write_report(copy)
    (copy / "plan.json").write_text('{"schema": "jmpq/plan", "version": 1}')
    with pytest.raises(ValueError, match=r"'jmpq/plan' version 1; .*version 3: run `jmpq solv"):
        write_report(copy)
    (copy / "plan.json").write_text('{"schema": "jmpq/plan", "version": 3}')
    with pytest.raises(ValueError, match=r"lacks jmpq, .*layers, choices.*run `jmpq solve"):
        write_report(copy)


def test_plan_and_sensitivity_must_know_the_same_layers(copy):
    def rename(plan):
        plan["layers"][3] = "ghost"
        for row in plan["allocations"]:
            row["allocation"] = dict(
                zip(plan["layers"], row["allocation"].values(), strict=True)
            )

    rewritten(copy / "plan.json", rename)
    with pytest.raises(ValueError, match=r"layers\.json lacks \(ghost\)"):
        write_report(copy)
    rewritten(copy / "layers.json", lambda value: value["layers"][3].update(name="ghost"))
    with pytest.raises(ValueError, match=r"sensitivity\.npz lacks \(ghost\)"):
        write_report(copy)


def test_csv_holds_every_allocation_with_full_precision(run):
    plan = json.loads((run / "plan.json").read_text())
    with (run / "tables" / "allocations.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert list(rows) == [a["name"] for a in plan["allocations"]]
    for allocation in plan["allocations"]:
        row = rows[allocation["name"]]
        costs = allocation["costs"]  # none where one layer alone is quantized
        assert row["size_bytes"] == str(costs.get("size_bytes", ""))
        if allocation["gap"] is not None:
            assert float(row["gap"]) == allocation["gap"]
            assert float(row["bound"]) == allocation["bound"]
        else:
            assert row["gap"] == ""


def test_allocation_rows_subtract_the_float_loss_and_take_the_ratio(found):
    plan = synthetic_run.plan(found)
    evaluation = synthetic_run.evaluation(plan, "")
    row = allocation_rows(plan, evaluation)[0]
    measured = evaluation["measured"][row["name"]]["calibration"]["loss"]
    increase = measured - evaluation["float"]["calibration"]["loss"]
    assert row["increase_calibration"] == increase
    assert row["measured_over_predicted"] == increase / plan["allocations"][0]["predicted_loss"]
    relative = allocation_rows(plan, evaluation, relative=["gauss_newton"])[0]
    assert relative["measured_over_predicted"] is None


def test_gap_uses_the_scale_of_the_plan_and_the_best_bound():
    greedy = {"predicted_loss": -1.0, "bound": -3.0, "gap": 0.5}  # scale 4
    assert gap_to(greedy, -2.0) == pytest.approx(0.25)
    assert gap_to({"predicted_loss": 2.0, "bound": None, "gap": None}, 1.0) == 0.5
    assert gap_to(greedy, -1.0) == 0.0
    assert math.isnan(gap_to(greedy, math.nan))
    row = {"role": "sweep", "metric": "m", "budgets": {"size_bytes": 1.0}, "name": "",
           "wall_s": 0.0}  # fmt: skip
    exact = {**row, "asked": "exact", "predicted_loss": 2.0, "bound": 2.0, "gap": 0.0}
    other = {**row, "asked": "greedy", "predicted_loss": 2.5, "bound": 1.0, "gap": 0.6}
    gaps = [r["gap"] for r in gap_rows({"allocations": [exact, other]})]
    assert gaps == [0.0, pytest.approx(0.2)]


def test_comparison_counts_random_joint_allocations_only(found):
    plan = synthetic_run.plan(found, randoms=12)
    evaluation = synthetic_run.evaluation(plan, "")
    what = {"metric": "gauss_newton", "group": "joint", "target": "kl", "split": "evaluation"}
    result = compare(plan, evaluation, **what)
    assert result.counted.sum() == 12
    ratios = result.measured[result.counted] / result.predicted[result.counted]
    assert result.ratio == np.median(ratios)
    few = synthetic_run.plan(found, randoms=2)
    result = compare(few, synthetic_run.evaluation(few, ""), **what)
    assert result.counted.all()


def test_rank_correlation_of_constants_and_of_two_points_is_unknown():
    assert math.isnan(rank_correlation(np.ones(5), np.arange(5.0)))
    assert math.isnan(rank_correlation(np.arange(2.0), np.arange(2.0)))
    assert rank_correlation(np.arange(5.0), np.arange(5.0) ** 3) == pytest.approx(1.0)


def test_cells_show_units_errors_and_what_is_unknown():
    row = {"size_bytes": 1_234_567.0, "top1": 0.91234, "sem": 0.004, "loss": -0.00123,
           "none": None, "nan": math.nan, "flag": True}  # fmt: skip
    assert cell(row, Column(key="size_bytes", heading="", format="cost", divisor=1e6)) == (
        "1.235"
    )
    assert cell(row, Column(key="top1", heading="", format="percent", sem="sem")) == (
        "91.23 ± 0.40"
    )
    assert cell(row, Column(key="loss", heading="", format="loss")) == "−0.00123"
    for key in ("none", "nan", "absent"):
        assert cell(row, Column(key=key, heading="", format="loss")) == "–"
    assert cell(row, Column(key="flag", heading="")) == "yes"


def test_csv_text_joins_rows_of_different_keys():
    assert csv_text([{"a": 1}, {"a": math.nan, "b": "x,y"}]) == 'a,b\n1,\n,"x,y"\n'


def test_report_imports_no_jax():
    code = "import sys, jmpq.report.report; print({'jax', 'cvxpy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_bits_are_averaged_over_the_parameters_of_a_type():
    def layer(name, parameters):
        return Layer(
            name=name, kind="dense", kernel=name, kernel_shape=(1, parameters),
            output_axes=(1,), input_axes=(0,), parameters=parameters, macs=1, input_shape=(1,),
            output_shape=(parameters,),
        )  # fmt: skip

    chosen = {"0/attn/q": "W2A8", "1/attn/q": "W4A8"}
    plan = {"allocations": [{"role": "solution", "name": "a", "allocation": chosen}]}
    layers = [layer("0/attn/q", 10), layer("1/attn/q", 30), layer("head", 5)]
    assert type_rows(plan, layers) == [
        {"type": "q", "layers": 2, "parameters": 40, "a": (2 * 10 + 4 * 30) / 40},
        {"type": "head", "layers": 1, "parameters": 5, "a": 32.0},
    ]
