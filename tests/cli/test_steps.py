import csv
import hashlib
import html.parser
import json
import math
import shutil

import jax
import numpy as np
import pytest

from jmpq.allocation import Allocation
from jmpq.cli import commands
from jmpq.data.batches import batches
from jmpq.data.splits import calibration_split
from jmpq.sensitivity.logits.composed import Composed
from jmpq.sensitivity.logits.superposed import Superposed
from jmpq.sensitivity.table import load_sensitivities
from tests.cli import losses
from tests.cli.command import (
    EVERY,
    FEW,
    SMALL,
    TINY,
    contents,
    finish,
    jmpq,
    opened,
    process,
    works,
)
from tests.helpers import rewritten

LAYERS = (
    "conv1",
    "layer1/0/conv1",
    "layer1/0/conv2",
    "layer2/0/conv1",
    "layer2/0/conv2",
    "layer3/0/conv1",
    "layer3/0/conv2",
    "linear",
)


def read(path):
    """JSON as any other program would read it: no NaN."""

    def refuse(constant):
        raise AssertionError(f"{constant} in {path}")

    return json.loads(path.read_text(), parse_constant=refuse)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_step_leaves_its_artifact_and_nothing_else(digits_run):
    assert sorted(path.name for path in digits_run.iterdir()) == [
        "checkpoints",
        "evaluation.json",
        "figures",
        "layers.json",
        "plan.json",
        "report.html",
        "sensitivity.npz",
        "store",
        "tables",
        "weights.safetensors",
    ]
    hidden = [p for p in digits_run.rglob(".*") if "checkpoints" not in p.parts]
    assert hidden == []


def test_plan_reads_without_jmpq(digits_run):
    plan = read(digits_run / "plan.json")
    assert (plan["schema"], plan["version"], plan["seed"]) == ("jmpq/plan", 3, 0)
    assert tuple(plan["layers"]) == LAYERS
    assert plan["choices"] == ["W2A4", "W2A8", "W4A4", "W4A8", "W8A4", "W8A8"]
    assert {"jmpq", "python", "numpy", "cvxpy", "highspy"} <= set(plan["versions"])
    record = read(digits_run / "layers.json")
    assert plan["weights_sha256"] == record["weights_sha256"]
    assert plan["sensitivity_sha256"] == sha256(digits_run / "sensitivity.npz")
    assert plan["rules"] == ["pin conv1=W8A8", "pin linear=W8A8"]
    assert set(plan["budgets"]) == {"size_bytes", "bops"}
    allocations = {a["name"]: a for a in plan["allocations"]}
    for solver in ("exact", "greedy"):
        found = allocations[f"{solver}/gauss_newton"]
        assert tuple(found["allocation"]) == LAYERS
        assert set(found["allocation"].values()) <= set(plan["choices"])
        assert found["status"] in ("optimal", "feasible")
        assert found["bound"] <= found["predicted_loss"] * (1 + 1e-9)
        assert 0 <= found["gap"] <= 1
        for name, budget in plan["budgets"].items():
            assert found["costs"][name] <= budget["limit"] * (1 + 1e-12)
            assert budget["least"] <= budget["limit"] <= budget["most"]
    exact, greedy = (allocations[f"{s}/gauss_newton"] for s in ("exact", "greedy"))
    assert exact["predicted_loss"] <= greedy["predicted_loss"] * (1 + 1e-9)
    assert [allocations[f"random/{i}"]["seed"] for i in range(2)] == [0, 1]


def test_evaluation_belongs_to_the_plan_and_measures_what_it_lists(digits_run):
    plan, found = read(digits_run / "plan.json"), read(digits_run / "evaluation.json")
    assert found["plan_sha256"] == sha256(digits_run / "plan.json")
    by_role = {}
    for allocation in plan["allocations"]:
        by_role.setdefault(allocation["role"], set()).add(allocation["name"])
    assert set(by_role) == {"solution", "baseline", "sweep", "random", "single"}
    assert set(found["measured"]) == set().union(*by_role.values())
    evaluated = by_role["solution"] | by_role["baseline"] | by_role["sweep"]
    for name, outcomes in found["measured"].items():
        assert set(outcomes) == (
            {"calibration", "evaluation"} if name in evaluated else {"calibration"}
        )
        assert outcomes["calibration"]["examples"] == 40
        assert all(math.isfinite(value) for value in outcomes["calibration"].values())
    splits = found["splits"]
    assert (splits["calibration"]["examples"], splits["evaluation"]["examples"]) == (40, 100)
    assert splits["calibration"]["source"] == splits["evaluation"]["source"] == "heldout"
    assert splits["calibration"]["sha256"] != splits["evaluation"]["sha256"]
    assert found["float"]["evaluation"]["increase"] == 0
    measured = {k: v["calibration"]["increase"] for k, v in found["measured"].items()}
    assert abs(measured["uniform/W8A8"]) < measured["uniform/W2A4"]


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.loads = []

    def handle_starttag(self, tag, attrs):
        self.loads += [
            (tag, value)
            for key, value in attrs
            if key in ("src", "href", "xlink:href", "srcset", "data")
            and not (value or "").startswith(("#", "data:"))
            and tag != "a"
        ]


def test_report_needs_nothing_beside_itself(digits_run):
    text = (digits_run / "report.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.loads == []
    assert "@import" not in text
    assert "exact/gauss_newton" in text
    figures = {path.stem for path in (digits_run / "figures").glob("*.svg")}
    assert figures == {"accuracy", "bits", "prediction", "sensitivity", "gap"}


def test_fine_tuning_recovers_most_of_a_heavy_drop_and_is_reported(digits_run, tmp_path):
    digits = shutil.copytree(digits_run, tmp_path / "run")
    out = works(
        "finetune", digits, "--allocation", "uniform/W2A4", "--epochs", 2, "--examples", 300
    ).out
    found = read(digits / "finetuning.json")
    top1 = {name: outcome["top1"] for name, outcome in found["outcomes"].items()}
    drop = top1["float"] - top1["post_training"]
    assert drop > 0.2
    assert top1["finetuned"] - top1["post_training"] > 0.5 * drop
    assert f"fine-tuned {100 * top1['finetuned']:.2f} %" in out
    measured = read(digits / "evaluation.json")
    assert found["weights_sha256"] == read(digits / "layers.json")["weights_sha256"]
    assert measured["splits"]["evaluation"]["source"] == "heldout"
    assert found["splits"]["training"]["source"] == "train"
    assert len(found["curve"]) <= 100
    assert found["curve"][-1]["step"] == found["steps"]
    works("report", digits)
    page = (digits / "report.html").read_text()
    assert "fine-tuned" in page
    with (digits / "tables" / "finetuning.csv").open() as file:
        rows = {row["name"]: float(row["top1"]) for row in csv.DictReader(file)}
    assert rows["fine-tuned"] == pytest.approx(top1["finetuned"])
    other = {"weights_sha256": "of another network"}
    rewritten(digits / "finetuning.json", lambda record: record.update(other))
    result = jmpq("report", digits)
    assert result.code == 1
    assert "finetuning.json was made from another" in result.err


def without_clock(value):
    """A record without what differs from one call to the next."""
    clock = ("created", "wall_s", "timing", "plan_sha256", "sensitivity_sha256", "seconds",
             "content_sha256")  # fmt: skip
    if isinstance(value, dict):
        return {
            k: without_clock(v) for k, v in value.items() if k not in (*clock, "batch_seconds")
        }
    return [without_clock(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("artifact", "args"),
    [
        ("layers.json", ("layers", *TINY)),
        (
            "sensitivity.npz",
            ("sensitivity", *FEW, "--metrics", "gauss_newton", "squared_error"),
        ),
        ("plan.json", ("solve", *SMALL)),
        ("evaluation.json", ("evaluate", *EVERY, "--examples", 100)),
    ],
)
def test_a_step_called_again_gives_the_same_result(run, artifact, args):
    before = (run / artifact).read_bytes()
    others = {k: v for k, v in contents(run).items() if k != artifact}
    step, *options = args
    works(step, run, *options)
    if artifact.endswith(".json"):
        assert without_clock(read(run / artifact)) == without_clock(json.loads(before))
    else:
        (run / "before.npz").write_bytes(before)
        with np.load(run / artifact) as now, np.load(run / "before.npz") as then:
            assert sorted(now) == sorted(then)
            for name in set(now) - {"header"}:
                np.testing.assert_array_equal(now[name], then[name])
            headers = [json.loads(str(x["header"])) for x in (now, then)]
        assert without_clock(headers[0]) == without_clock(headers[1])
        (run / "before.npz").unlink()
    assert {k: v for k, v in contents(run).items() if k != artifact} == others


def test_new_budgets_and_the_report_need_neither_jax_nor_network_nor_data(run):
    gone = {"model": "gone:gone", "data_dir": "gone"}
    rewritten(run / "layers.json", lambda record: record["network"].update(gone))
    code = """
import pathlib, sys
from jmpq.cli.main import main
run = sys.argv[1]
main(["solve", run, "--replace", "--budget", "average_bits=60%"])
main(["report", sys.argv[2]])
heavy = {"jax", "flax", "optax", "orbax", "sklearn", "tensorflow_datasets"} & set(sys.modules)
assert not heavy, heavy
"""
    old = shutil.copytree(run, run.parent / "old")  # its evaluation fits its plan
    result = finish(process(run, old, code=code))
    assert (result.code, result.err) == (0, "")
    plan = read(run / "plan.json")
    assert set(plan["budgets"]) == {"average_bits"}
    assert (old / "report.html").is_file()
    assert not (run / "report.html").exists()


def test_allocations_of_other_roles_can_be_left_out(run):
    shutil.rmtree(run / "store")
    works("evaluate", run, "--roles", "solution", "--calibration-roles", "solution")
    measured = read(run / "evaluation.json")["measured"]
    plan = {a["name"]: a for a in read(run / "plan.json")["allocations"]}
    solved = [a["allocation"] for a in plan.values() if a["role"] == "solution"]
    assert {"exact/gauss_newton", "greedy/gauss_newton"} <= set(measured)
    assert all(plan[name]["allocation"] in solved for name in measured)


def test_budgets_that_conflict_in_the_sweep_are_left_out_of_it(run):
    bits = ("--w-bits", 4, 8, "--a-bits", 2, 8, "--examples", 16)
    works("sensitivity", run, *bits, "--metrics", "squared_error")
    rule = "allow .*=W4A8,W8A2"  # the first has the least size, the second the least bops
    budgets = ("--budget", "size_bytes=99%", "bops=99%")
    works(
        "solve",
        run,
        "--replace",
        "--rule",
        rule,
        *budgets,
        "--first-last-bits",
        0,
        "--comparison",
        "full",
    )
    names = [a["name"] for a in read(run / "plan.json")["allocations"]]
    sweep = [name for name in names if name.startswith("sweep/exact")]
    assert 0 < len(sweep) < 8


def test_kl_needs_no_labels_and_its_hessian_is_the_gauss_newton_matrix(run):
    works("sensitivity", run, *FEW, "--metrics", "hessian", "gauss_newton", "--loss", "kl")
    found = load_sensitivities(run / "sensitivity.npz")
    newton, exact = found["gauss_newton"].second, found["hessian"].second
    np.testing.assert_allclose(exact, newton, atol=1e-4 * np.abs(newton).max())
    assert np.abs(found["hessian"].first).max() < 1e-5 * found["hessian"].losses.max()
    assert found["hessian"].provenance["loss"] == "kl"
    works("solve", run, *SMALL)
    works("evaluate", run, "--examples", 20, "--calibration-roles", "solution")
    assert read(run / "evaluation.json")["loss"] == "cross_entropy"


def test_traces_of_hawq_are_said_to_be_exact_or_by_probes(run):
    out = works("sensitivity", run, *FEW, "--metrics", "hawq_trace").out
    assert "hawq_trace: traces: exact (piecewise linear, 10 outputs cost less than 50" in out
    probes = ("--traces", "probes", "--probes", 2)
    out = works("sensitivity", run, *FEW, "--metrics", "hawq_trace", *probes).out
    assert "hawq_trace: traces: 2 probes a batch (asked for)" in out
    found = load_sensitivities(run / "sensitivity.npz")["hawq_trace"]
    assert found.provenance["prepared"]["traces"] == "probes"


def test_a_loss_of_the_users_is_predicted_and_measured(run):
    loss, solve = "tests.cli.losses:brier", ("solve", run, *SMALL)
    options = (*FEW, "--loss", loss, "--metrics", "gauss_newton")
    works("sensitivity", run, *options, "composed")
    works(*solve)
    roles = ("--calibration-roles", "single", "random", "--roles", "solution")
    works("evaluate", run, "--examples", 100, *roles)
    works("report", run)
    found, plan = read(run / "evaluation.json"), read(run / "plan.json")
    assert found["loss"] == loss
    network, dataset = opened(run)
    _, split = calibration_split(dataset, "heldout", examples=40, seed=0)
    (batch,) = batches(split.take(np.arange(100)), 100)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        z = np.asarray(network.apply(network.params, batch.inputs), np.float64)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    want = np.square(p - np.eye(10)[batch.labels]).sum(axis=1).mean()
    np.testing.assert_allclose(found["float"]["evaluation"]["loss"], want, rtol=1e-5)

    # Joint predictions stand beside what was measured, allocation by allocation.
    predictions = {a["name"]: a["predictions"] for a in plan["allocations"]}
    superposed = Superposed.load(run / "superposed.npz")
    composed = Composed(superposed=superposed)
    for allocation in plan["allocations"][::5]:
        row = [Allocation.from_json(allocation["allocation"])]
        got = predictions[allocation["name"]]
        np.testing.assert_allclose(
            got["superposed_kl"], superposed.predict(row)[0], rtol=1e-3, atol=1e-7
        )
        for name, predictor in (("superposed_loss", superposed), ("composed_loss", composed)):
            brier = predictor.predict(row, "loss", loss=losses.brier)[0]
            np.testing.assert_allclose(got[name], brier, rtol=1e-3, atol=1e-7)
    names = [a["name"] for a in plan["allocations"] if a["role"] in ("single", "random")]
    measured = [found["measured"][name]["calibration"] for name in names]
    for predictor, key in (
        ("superposed_kl", "kl"),
        ("superposed_loss", "increase"),
        ("composed_kl", "kl"),
        ("composed_loss", "increase"),
    ):
        x = [predictions[name][predictor] for name in names]
        assert np.corrcoef(x, [row[key] for row in measured])[0, 1] > 0.95

    # The search on whole allocations starts from the best sum and keeps the budgets.
    by_name = {a["name"]: a for a in plan["allocations"]}
    searched, started = by_name["search/composed_loss"], by_name["exact/composed"]
    assert searched["predicted_loss"] <= predictions[started["name"]]["composed_loss"] + 1e-7
    np.testing.assert_allclose(
        searched["predicted_loss"], predictions[searched["name"]]["composed_loss"], rtol=1e-3
    )
    assert searched["bound"] is searched["gap"] is searched["status"] is None
    for name, budget in plan["budgets"].items():
        assert searched["costs"][name] <= budget["limit"]

    works(
        "sensitivity", run, *FEW, *options[-2:]
    )  # another loss; the logit changes stay behind
    result = jmpq(*solve)
    assert result.code == 1
    assert "was not measured with" in result.err
    assert "(loss differs): run `jmpq sensit" in result.err


def test_demo_runs_all_steps_in_order(tmp_path, monkeypatch):
    called = {}
    for name in ("train", "layers", "sensitivity", "solve", "evaluate", "report"):
        monkeypatch.setattr(
            commands, name, lambda *args, name=name: called.setdefault(name, args)
        )
    works("demo", tmp_path, "--epochs", 3, "--seed", 5)
    assert list(called) == ["train", "layers", "sensitivity", "solve", "evaluate", "report"]
    assert {args[0] for args in called.values()} == {tmp_path}
    train, layers, sensitivity, solve = (
        called[n][1] for n in ("train", "layers", "sensitivity", "solve")
    )
    assert (train.epochs, train.seed, sensitivity.seed, solve.seed) == (3, 5, 5, 5)
    assert (layers.model, layers.data) == (train.model, train.data)


def test_ready_made_ties_are_printed_and_kept(digits_run, tmp_path):
    run = shutil.copytree(digits_run, tmp_path / "run")
    result = works("solve", run, "--replace", *SMALL, "--tie", "residual")
    tied = ("layer1/0/conv2", "layer2/0/conv2", "layer3/0/conv2")  # conv1, the first, is pinned
    assert f"rule: tie {' '.join(tied)}: {', '.join(tied)}" in result.out
    plan = read(run / "plan.json")
    for allocation in plan["allocations"]:
        if allocation["role"] in ("solution", "sweep"):
            assert len({allocation["allocation"][name] for name in tied}) == 1
    assert f"tie {' '.join(tied)}" in plan["rules"]
    result = jmpq("solve", run, "--replace", *SMALL, "--tie", "downsample")
    assert result.code == 1
    assert "nothing to tie by 'downsample'" in result.err
    assert "it has residual" in result.err


def test_equalised_ranges_are_another_network_of_the_same_logits(digits_run, tmp_path):
    same = ("--model", "digits_resnet", "--data", "digits")
    weights = ("--weights", digits_run / "weights.safetensors")
    equal = ("--fold-batch-norm", "--equalize-ranges")
    told = works("layers", tmp_path, *same, *weights, *equal).out
    assert "layer1/0/conv1 - layer1/0/conv2, layer2/0/conv1 -" in " ".join(told.split())
    (network, dataset), (other, _) = opened(digits_run), opened(tmp_path)
    images = jax.numpy.asarray(batches(dataset.heldout, 8)[0].inputs)
    np.testing.assert_allclose(
        other.apply(other.params, images),
        network.apply(network.params, images),
        rtol=1e-3,
        atol=1e-4,
    )
    before, after = (n.params["layer1"]["0"]["conv1"]["kernel"] for n in (network, other))
    assert not np.allclose(before, after)


def test_single_layers_have_costs_too(digits_run):
    plan, table = read(digits_run / "plan.json"), read(digits_run / "layers.json")
    singles = {a["name"]: a for a in plan["allocations"] if a["role"] == "single"}
    costs = next(a["costs"] for a in plan["allocations"] if a["role"] == "solution")
    assert {frozenset(a["costs"]) for a in singles.values()} == {frozenset(costs)}
    for layer in table["layers"]:
        size = {
            bits: singles[f"single/{layer['name']}/W{bits}A8"]["costs"]["size_bytes"]
            for bits in (2, 4)
        }
        count = layer["parameters"]
        assert size[4] - size[2] == -(-4 * count // 8) - -(-2 * count // 8)
        assert (
            size[4]
            < 4 * sum(each["parameters"] for each in table["layers"])
            + 4 * (table["other_parameters"])
        )
