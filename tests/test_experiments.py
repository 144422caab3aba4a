"""Experiments and notebooks run as they are, on small configurations."""

import json
import pathlib

import jupytext
import nbclient
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_resnet20_experiment_runs_on_a_small_configuration(tmp_path):
    import jax

    from experiments import resnet20_cifar10

    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        result = resnet20_cifar10.run(resnet20_cifar10.SMOKE, tmp_path, None)
    assert json.loads(json.dumps(result, allow_nan=False))["experiment"] == "resnet20_cifar10"
    (run,) = result["runs"].values()
    rows = {row["name"]: row for row in run["allocations"]}
    for metric in resnet20_cifar10.SMOKE.metrics:
        exact, greedy = rows[f"exact/{metric}"], rows[f"greedy/{metric}"]
        slack = 1e-9 * abs(greedy["predicted_loss"])
        assert exact["predicted_loss"] <= greedy["predicted_loss"] + slack
        assert {"calibration", "evaluation"} <= set(exact["measured"])


def test_solver_bench_runs_on_a_small_configuration_and_goes_on(tmp_path, shared_data):
    from experiments.bench import solvers as bench_solvers
    from experiments.figures import draw as figures
    from experiments.figures.solving import solvers as figure_solvers

    output = tmp_path / "bench.json"
    result = bench_solvers.run(bench_solvers.SMOKE, shared_data, output)
    best = {row["family"]: row["loss"] for row in result["rows"] if row["solver"] == "core"}
    for row in result["rows"]:
        if row["solver"] != "greedy":
            assert row["loss"] == pytest.approx(best[row["family"]], rel=1e-9)
            assert row["status"] == ("no bound" if row["solver"] == "CBC" else "optimal")
        assert row["loss"] >= best[row["family"]] * (1 - 1e-12 * np.sign(best[row["family"]]))
    assert all(row["same_allocation"] for row in result["published"])
    assert [p["problem"] for p in result["curves"] if p["water_filling"] is not None] == (
        ["synthetic, 6 layers x 8"] * 3 + ["ResNet-20, Gauss-Newton"] * 3
    )
    for point in (*result["curves"], *result["published"]):
        assert point["lp_bound"] <= point["optimum"] <= min(point["losses"].values())
    again = bench_solvers.run(bench_solvers.SMOKE, shared_data, output)
    assert again["rows"] == json.loads(output.read_text())["rows"] == result["rows"]
    assert all(svg.startswith("<svg") for svg in figures.solver_figures(result).values())
    assert figure_solvers.published_table(result).count("the same") == 9
    (header,) = (x for x in figure_solvers.time_table(result).splitlines() if "| family" in x)
    assert "| core (jmpq) |" in header
    assert "| cvxpy + HiGHS, plain |" in header
    assert "| downgrade, stops |" in figure_solvers.ablation_table(result)


def test_the_leaderboard_runs_on_a_small_configuration_and_goes_on(tmp_path):
    from experiments.bench.leaderboard import measure as leaderboard
    from experiments.figures.solving import leaderboard as figures

    output = tmp_path / "leaderboard.json"
    result = leaderboard.run(leaderboard.SMOKE, None, output)
    again = leaderboard.run(leaderboard.SMOKE, None, output)
    assert again["rows"] == json.loads(output.read_text())["rows"] == result["rows"]
    best = figures.best_known(result)
    for row in result["rows"]:
        if row["loss"] is not None:
            assert row["loss"] >= best[row["problem"]] * (1 - 1e-9)
        if row["bound"] is not None:
            assert row["bound"] <= best[row["problem"]] * (1 + 1e-6)
    first = {
        row["solver"]: row
        for row in result["rows"]
        if row["problem"] == leaderboard.SMOKE.names[0]
    }
    for solver in ("jmpq", "HiGHS", "HiGHS by cvxpy", "Pareto front"):
        assert first[solver]["loss"] == pytest.approx(
            best[leaderboard.SMOKE.names[0]], rel=1e-6
        )
        assert figures.is_proven(first[solver], best[leaderboard.SMOKE.names[0]])
    summary = figures.summary_table(result).splitlines()
    assert summary[2].startswith("| jmpq | 3 | ")
    table = figures.leaderboard_table(result)
    assert all(name in table for name in leaderboard.SMOKE.names)


def test_public_problems_agree_with_what_their_sources_say(shared_data):
    from experiments.mpq_lib.public import public

    index = json.loads((shared_data / "solvers" / "index.json").read_text())
    rows, seen = {row["name"]: row for row in index}, 0
    for instance in public(shared_data):
        row, sign = rows[instance.name], 1 if rows[instance.name]["sense"] == "min" else -1
        loss, costs = instance.problem.evaluate(instance.known.columns)
        assert sign * loss == pytest.approx(row["best_assignment"], rel=1e-9, abs=1e-9)
        assert not instance.problem.violated(costs)
        assert instance.known.loss <= loss + 1e-9 * abs(loss)
        seen += 1
    assert seen == len(index) == 52


def test_mpq_lib_is_written_as_files_that_read_back(tmp_path):
    from experiments.mpq_lib import export
    from jmpq.problem import read_instance

    for kind in ("json", "npz", "lp", "mps"):
        export.main(tmp_path, smoke=True, kind=kind)
    for instance in export.every(None, export.SMOKE):
        for kind in ("json", "npz"):
            loaded = read_instance(tmp_path / f"{instance.name}.{kind}")
            columns = np.zeros(len(loaded.problem.layers), int)
            want, got = (p.evaluate(columns) for p in (instance.problem, loaded.problem))
            assert got == want


def test_several_budgets_bench_runs_on_a_small_configuration_and_goes_on(tmp_path):
    from experiments.bench.several_budgets import measure
    from experiments.figures.solving.several_budgets import several_budgets_table

    output = tmp_path / "bench.json"
    result = measure.run(measure.SMOKE, None, output)
    rows = {row["solver"]: row for row in result["rows"]}
    assert rows["several_budgets, 5 s"]["status"] == "optimal"
    best = rows["several_budgets, 5 s"]["loss"]
    for name, row in rows.items():
        assert row["bound"] <= best * (1 + 1e-9) <= row["loss"] * (1 + 2e-9), name
    for gap in measure.SMOKE.gaps:
        assert rows[f"several_budgets to {100 * gap:g} %"]["gap"] <= 1.01 * gap
    again = measure.run(measure.SMOKE, None, output)
    assert again["rows"] == json.loads(output.read_text())["rows"] == result["rows"]
    table = several_budgets_table(result)
    assert "| scaled 20 x 8 x 2, seed 0 | 20 × 8 × 2 |" in table
    assert table.count("times on the 1 tables of ResNet-20") == len(measure.SMOKE.gaps)


@pytest.mark.slow
def test_minilm_experiment_runs_on_a_random_encoder_and_goes_on(tmp_path):
    import jax

    from experiments.bert import minilm
    from experiments.figures.bert import minilm as figure_minilm

    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        result = minilm.run(minilm.SMOKE, tmp_path, None)
        before = (tmp_path / "rows.journal").read_text()
        again = minilm.run(minilm.SMOKE, tmp_path, None)
    assert (tmp_path / "rows.journal").read_text() == before  # nothing was measured twice
    result = json.loads(json.dumps(result, allow_nan=False))
    assert again["joint"] == result["joint"]
    for row in result["joint"]:
        assert row["size_bytes"] <= row["budget_bytes"]
        if row["method"].startswith("exact/gauss_newton"):
            uniform = next(
                r
                for r in result["joint"]
                if all(r[k] == row[k] for k in ("groups", "bits", "mode"))
                and r["method"] == "uniform"
            )
            better = row["predicted"]["gauss_newton"] <= uniform["predicted"]["gauss_newton"]
            assert better or row["mode"] == "wa"
    assert all(svg.startswith("<svg") for svg in figure_minilm.minilm_figures(result).values())
    rows = len({(r["groups"], r["method"]) for r in result["joint"]})
    assert figure_minilm.spearman_table(result).count("\n| ") == 2 + rows
    assert figure_minilm.minilm_tables(result).count("| --- |") >= 4


@pytest.mark.slow
def test_sst2_experiment_runs_on_a_random_classifier_and_goes_on(tmp_path):
    import jax

    from experiments.bert import sst2
    from experiments.figures.bert import sst2 as figure_sst2

    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        result = sst2.run(sst2.SMOKE, tmp_path, None)
        before = (tmp_path / "rows.journal").read_text()
        again = sst2.run(sst2.SMOKE, tmp_path, None)
    assert (tmp_path / "rows.journal").read_text() == before  # nothing was measured twice
    result = json.loads(json.dumps(result, allow_nan=False))
    assert again["joint"] == result["joint"]
    found = {r["method"]: r for r in result["joint"] if r["mode"] == "w"}
    assert all(row["size_bytes"] <= row["budget_bytes"] for row in found.values())
    for metric in ("gauss_newton", "empirical_fisher"):
        exact, free = (found[f"exact/{metric}{end}"] for end in ("", "/embeddings"))
        losses = [row["predicted"][metric] for row in (free, exact, found["qbert"])]
        assert losses == sorted(losses)  # what is free is no worse than what is pinned
    assert {b for n, b in found["qbert"]["w_bits"].items() if "layer/1/" in n} == {3}
    (tuned,) = result["tuned"]
    assert tuned["measured"]["kl"] < 1
    page = figure_sst2.sst2_tables(result)
    assert page.count("\n| ") == (2 + 6) + (2 + 2) + (2 + 2)
    assert figure_sst2.tuned_table({**result, "tuned": []}) == "Not measured yet."


@pytest.mark.slow
def test_quadratic_bench_runs_on_a_small_configuration():
    from experiments.bench import iqp as bench_iqp
    from experiments.figures.solving import iqp as figure_iqp

    result = bench_iqp.run(bench_iqp.SMOKE)
    result = json.loads(json.dumps(result, allow_nan=False))
    assert len(result["instances"]) == 4
    for row in result["instances"]:
        solved = row["branch_and_bound"], row["linearized"]
        bounds = [found["bound"] for found in row["bounds"].values()]
        tolerance = 1e-9 * abs(row["best_loss"])
        assert all(s["status"] == "optimal" for s in solved)
        assert solved[0]["loss"] == pytest.approx(solved[1]["loss"], rel=1e-9)
        assert max(bounds) <= row["best_loss"] + tolerance
        assert row["best_loss"] <= row["local_search"]["loss"]
        assert 0 <= row["local_gap"] < 1e-6
    assert figure_iqp.iqp_table(result).count("\n| ") == 1 + 4


def test_convolution_bench_runs_on_a_small_configuration():
    from experiments.bench import convolution as bench_convolution

    result = bench_convolution.run(bench_convolution.SMOKE)
    assert bench_convolution.convolution_table(result).count("\n| ") == 2 + 4 + 1


def test_the_matrices_of_the_quadratic_bench_are_made_as_they_say(tmp_path):
    import jax

    from experiments.bench import iqp as bench_iqp
    from experiments.quadratic import iqp_matrices
    from jmpq import load_sensitivities

    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        iqp_matrices.run(iqp_matrices.SMOKE, tmp_path, None)
    (found,) = load_sensitivities(tmp_path / "iqp_digits_resnet.npz").values()
    assert np.linalg.eigvalsh(found.second)[0] >= -1e-6 * np.abs(found.second).max()
    problem = bench_iqp.network_problem("resnet20", "50%")  # a committed one
    assert problem.losses.shape == (20, 4)
    assert problem.interactions is not None


@pytest.mark.slow
def test_curvature_benchmark_runs_without_peers(tmp_path, monkeypatch):
    import jax

    from experiments.bench import curvature as bench_curvature
    from experiments.figures.curvature import curvature_table

    monkeypatch.setattr(bench_curvature, "PEERS", ("no_such_peer",))
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        result = bench_curvature.run(bench_curvature.SMOKE, tmp_path, None)
    result = json.loads(json.dumps(result, allow_nan=False))
    assert result["absent"] == ["no_such_peer"]
    run = result["threads"]["1"]
    assert {side for sides in run["parts"].values() for side in sides} == {"jmpq"}
    assert "| MPQCO table | 1 |" in curvature_table(result)
    values = {
        part: sides["jmpq"]["values"]
        for part, sides in run["parts"].items()
        if part != "forward"
    }
    # A ReLU network: within a layer the Hessian is the Gauss-Newton matrix, by two ways.
    np.testing.assert_allclose(values["exact_hessian"], values["gauss_newton"], rtol=1e-4)
    one = values["hvp"]
    for other in ("hvp_forward_over_reverse", "hvp_reverse_over_forward"):
        for name, value in values[other].items():
            assert value == pytest.approx(one[name], rel=1e-3, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fidelity", "outcome"])
def test_study_runs_on_a_small_configuration_and_goes_on(name, tmp_path):
    import importlib

    import jax

    from experiments.figures import outcome as figure_outcome
    from experiments.figures.predicting import fidelity as figure_fidelity

    study = importlib.import_module(f"experiments.{name}")
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        result = study.run(study.SMOKE, "digits_resnet", tmp_path, None)
        again = study.run(study.SMOKE, "digits_resnet", tmp_path, None)
    text, repeated = (json.dumps(r, allow_nan=False) for r in (result, again))
    if name == "outcome":
        drop = lambda r: [{k: v for k, v in row.items() if k != "wall_s"} for row in r["rows"]]  # noqa: E731
        assert drop(result) == drop(again)
        assert figure_outcome.outcome_table(result).count("\n| ") > 12
        assert figure_outcome.curse_table(result).count("\n| ") == 4
        drawn = figure_outcome.outcome_figures({"outcome_digits": result})
    else:
        assert text == repeated
        assert "exact Hessian" in figure_fidelity.cost_table(result)
        assert "composed logits" in figure_fidelity.closer_table(result)
        drawn = figure_fidelity.fidelity_figures([result])
    assert all(svg.startswith("<svg") for svg in drawn.values())


def test_evaluation_benchmark_runs_without_torch():
    import jax

    from experiments.bench import evaluation as bench_evaluation
    from experiments.bench.evaluation import evaluation_table

    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        result = bench_evaluation.run(bench_evaluation.SMOKE, None)
    result = json.loads(json.dumps(result, allow_nan=False))
    assert set(result["sides"]) == {"jmpq", "rebuilt"}
    ours, theirs = (result["sides"][name]["losses"] for name in ("jmpq", "rebuilt"))
    assert theirs == pytest.approx(ours[:1], rel=1e-5)
    assert "| PyTorch, eager fake quantization | absent |" in evaluation_table(result)


@pytest.mark.slow
def test_evaluation_benchmark_takes_every_kind_of_format():
    import jax

    from experiments.bench import evaluation_formats as bench

    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        result = json.loads(json.dumps(bench.run(bench.SMOKE, None), allow_nan=False))
    (network,) = result["networks"].values()
    assert len(network["rows"]) == 2 * len(bench.KINDS)
    losses = [row["loss"] for row in network["rows"].values()]
    assert len(set(losses)) == len(losses)  # every kind is another network
    for row in network["rows"]:
        ours, rebuilt = (bench.passes(network, row, s) for s in ("jmpq_s", "rebuilt_s"))
        assert 0.5 < ours < rebuilt  # compiling takes longer
    table = bench.evaluation_formats_table(result)
    assert all(f"| {row} | " in table for row in network["rows"])


def test_losses_that_differ_stop_the_evaluation_benchmark():
    from experiments.bench.evaluation import check_parity

    ours = np.array([1.0, 2.0])
    check_parity({"jmpq": ours, "rebuilt": np.array([1.001])})
    for wrong in (1.1, np.nan):
        with pytest.raises(ValueError, match="losses of torch differ from jmpq's by"):
            check_parity({"jmpq": ours, "torch": np.array([1.0, wrong])})


@pytest.mark.slow
def test_post_training_experiment_runs_on_a_small_configuration():
    import jax

    from experiments import post_training
    from experiments.figures.post_training import post_training_table

    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        result = post_training.run(post_training.SMOKE, None)
    result = json.loads(json.dumps(result, allow_nan=False))
    rows = {(r["allocation"], r["rounding"], r["correct"]): r for r in result["rows"]}
    assert len(rows) == 2 * 2 * 2
    uniform, exact = (
        rows[name, "gptq", "none"] for name in ("uniform W2", "exact, size of W2")
    )
    assert exact["size_bytes"] <= uniform["size_bytes"]
    assert post_training_table(result).count("\n| ") == 2 + 2


@pytest.mark.slow
def test_equalization_experiment_runs_on_a_small_configuration():
    import jax

    from experiments import equalization
    from experiments.figures.equalization import equalization_table

    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        result = equalization.run(equalization.SMOKE, None)
    result = json.loads(json.dumps(result, allow_nan=False))
    assert len(result["rows"]) == 4 * 2
    folded, published = (result["float"][name]["loss"] for name in ("folded", "published"))
    assert folded == pytest.approx(published, rel=1e-4)
    equal, capless = (result["float"][name]["loss"] for name in ("equalised", "without caps"))
    assert equal == pytest.approx(capless, rel=1e-4)
    assert equalization_table(result).count("\n| ") == 2 + 4


@pytest.mark.slow
def test_whole_flow_runs_on_a_small_configuration_and_goes_on(tmp_path):
    from experiments import whole_flow
    from experiments.figures.whole_flow import whole_flow_tables

    seen = []
    result = whole_flow.run(whole_flow.SMOKE, tmp_path, None, done=seen.append)
    cell = tmp_path / "digits_resnet" / "nearest" / "0" / "cell.json"
    written = cell.stat().st_mtime_ns
    again = whole_flow.run(whole_flow.SMOKE, tmp_path, None)
    assert cell.stat().st_mtime_ns == written
    assert json.dumps(result, allow_nan=False) == json.dumps(again)
    (found,) = again["cells"].values()
    assert min(found["memory_bytes"].values()) > 2e7  # of a process with Python alone
    for inputs in ("A8", ""):
        rows = {r["name"]: r for r in found["allocations"] if r["inputs"] == inputs}
        exact, greedy = (rows[f"{solver}/gauss_newton"] for solver in ("exact", "greedy"))
        assert exact["predicted_loss"] <= greedy["predicted_loss"] * (1 + 1e-9)
        assert exact["bound"] <= exact["predicted_loss"] * (1 + 1e-9)
        limit = rows[f"uniform/W4{inputs}"]["costs"]["size_bytes"]
        assert exact["costs"]["size_bytes"] <= limit
    # two metrics by two solvers, uniform, reversed, random; and two lines of heading
    assert whole_flow_tables(again).count("\n| ") == 2 + 4 + 3


@pytest.mark.slow
def test_imagenet_experiment_runs_on_a_small_configuration_and_goes_on(tmp_path):
    import jax

    from experiments import imagenet
    from experiments.figures import imagenet as figure_imagenet

    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        result = imagenet.run(imagenet.SMOKE, tmp_path, None)
        plan = tmp_path / "digits_resnet" / "W4" / "plan.json"
        written = plan.stat().st_mtime_ns
        again = imagenet.run(imagenet.SMOKE, tmp_path, None)
    assert plan.stat().st_mtime_ns == written
    for (found,) in (result["networks"].values(), again["networks"].values()):
        del found["machine"]  # its load
    text = json.dumps(result, allow_nan=False)
    assert text == json.dumps(again)
    result = json.loads(text)
    (found,) = result["networks"].values()
    assert found["whole"]["examples"] == 597
    assert set(found["negative_layers"]) == set(imagenet.SMOKE.metrics)
    rows = {row["name"]: row for row in found["budgets"]["W4"]["allocations"]}
    limit = rows["uniform/W4"]["costs"]["size_bytes"]
    for metric in imagenet.SMOKE.metrics:
        exact, greedy = (rows[f"{solver}/{metric}"] for solver in ("exact", "greedy"))
        assert exact["predicted_loss"] <= greedy["predicted_loss"] * (1 + 1e-9)
        assert max(exact["costs"]["size_bytes"], greedy["costs"]["size_bytes"]) <= limit
    assert 0 < found["sampling_error"]["gauss_newton"] < 1
    assert figure_imagenet.imagenet_table(result).count("\n| ") == 2 + 6 + 2
    assert all(
        svg.startswith("<svg") for svg in figure_imagenet.imagenet_figures(result).values()
    )


@pytest.mark.slow
def test_flow_benchmark_runs_on_a_small_configuration_and_goes_on(tmp_path):
    import jax

    from experiments.bench import flow as bench_flow

    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        result = bench_flow.run(bench_flow.SMOKE, tmp_path, None)
        again = bench_flow.run(bench_flow.SMOKE, tmp_path, None)
    assert again["networks"] == result["networks"]  # nothing was measured twice
    result = json.loads(json.dumps(result, allow_nan=False))
    (found,) = result["networks"].values()
    assert list(found["stages"]) == list(bench_flow.STAGES)
    for stage, at in found["stages"].items():
        assert at["wall_s"] > 0
        planned = 0 if at["planned"] is None else at["planned"]["bytes"]
        assert at["peak_rss_bytes"] > max(planned, 1e8)  # the interpreter and JAX
        assert (planned > 0) == (stage in bench_flow.METRICS)
    assert found["allocations"] == 2 + 3 + 1 + 1  # solved, uniform, reversed, random
    assert bench_flow.flow_table(result).count("\n| ") == 2 + 1 + len(bench_flow.STAGES)


def test_a_stage_is_measured_in_a_process_of_its_own(tmp_path):
    from experiments.bench import flow as bench_flow
    from experiments.bench.flow_part import RandomImages, measure
    from jmpq import load_dataset
    from jmpq.zoo.architectures import PREPROCESSINGS

    config = bench_flow.Config()
    step = RandomImages(tmp_path / "images", classes=3)
    found = bench_flow._measured(config, tmp_path, "images", step)
    assert 1e6 < found["peak_rss_bytes"] < 1e9
    data = load_dataset("imagenet_sample", tmp_path / "images", PREPROCESSINGS["torchvision"])
    json.dumps(measure(lambda: data))  # what a step returns need not be JSON
    assert data.heldout.labels.tolist() == [0, 1, 2]
    assert data.heldout.inputs[np.arange(3)].shape == (3, 224, 224, 3)


def test_flow_benchmark_refuses_other_networks_than_the_published():
    from experiments.bench import flow as bench_flow

    right = {"layers": 21, "parameters": 11_689_512, "macs": 1_814_073_344}
    bench_flow.check_published("resnet18", right)
    for key, value in (("layers", 20), ("parameters", 11_689_511), ("macs", 1.83e9)):
        with pytest.raises(ValueError, match=r"published are 21, 11,689,512 and 1\.81"):
            bench_flow.check_published("resnet18", right | {key: value})
    with pytest.raises(ValueError, match="images=vgg=8: expected NETWORK=IMAGES, with one of"):
        bench_flow.FlowArguments(images=("vgg=8",)).config()


def test_one_network_of_the_imagenet_experiment_leaves_the_others():
    from experiments import imagenet

    config = imagenet.ImagenetArguments(networks=("squeezenet1_1",), examples=64).config()
    assert config.networks == (("squeezenet1_1", "imagenet/squeezenet1_1.safetensors"),)
    assert config.examples == 64
    old = {"experiment": "imagenet", "networks": {"a": {"seed": 0}, "b": {"seed": 0}}}
    new = {"experiment": "imagenet", "networks": {"b": {"seed": 1}, "b/gptq": {"seed": 1}}}
    kept = imagenet.merged(old, new)["networks"]
    assert {name: found["seed"] for name, found in kept.items()} == {
        "a": 0,
        "b": 1,
        "b/gptq": 1,
    }
    with pytest.raises(ValueError, match="'resnet18': the experiment has mobilenet_v1_0"):
        imagenet.ImagenetArguments(networks=("resnet18",)).config()


def test_accuracy_on_all_images_is_that_of_the_parts_by_their_size():
    from experiments import imagenet

    rng = np.random.default_rng(0)
    hits = rng.random((2, 1000)) < np.array([[0.6], [0.8]])  # top-1, top-5
    parts = [
        {"examples": len(x[0]), "top1": x[0].mean(), "top5": x[1].mean()}
        for x in (hits[:, :256], hits[:, 256:])
    ]
    got = imagenet.whole(parts)
    assert got["examples"] == 1000
    np.testing.assert_allclose([got["top1"], got["top5"]], hits.mean(1), rtol=1e-12)


@pytest.mark.slow
def test_fine_tuning_experiment_runs_on_a_small_configuration_and_goes_on(tmp_path):
    import jax

    from experiments import finetune
    from experiments.figures.finetune import finetune_figures, finetune_table, recovered

    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        result = finetune.run(finetune.SMOKE, tmp_path, None)
        again = finetune.run(finetune.SMOKE, tmp_path, None)
    result, again = (json.loads(json.dumps(r, allow_nan=False)) for r in (result, again))
    assert again["rows"] == result["rows"]
    assert len(result["rows"]) == 2 * 4 + 3 + 1
    exact, uniform = result["allocations"].values()
    assert uniform["size_bytes"] <= exact["size_bytes"]
    (tuned,) = (
        row for row in result["rows"]
        if (row["allocation"], row["method"]) == ("uniform W2", "lsq")
    )  # fmt: skip
    assert recovered(result, "uniform W2", tuned["measured"]["top1"]) > 0.5
    assert finetune_table(result).count("\n| ") == 2 + 7 + 5
    assert all(svg.startswith("<svg") for svg in finetune_figures(result).values())


def test_logits_that_differ_stop_the_benchmark():
    from experiments.bench.curvature import check_parity

    check_parity({"jmpq": {"values": [[1.0, 2.0]]}, "torch": {"values": [[1.0, 2.00001]]}})
    with pytest.raises(ValueError, match=r"logits of the two sides differ by 0.01"):
        check_parity({"jmpq": {"values": [[1.0]]}, "torch": {"values": [[1.01]]}})


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


# `make docs` runs them all.
@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.slow] * (i > 0)) for i, p in enumerate(NOTEBOOKS)],
    ids=[path.stem for path in NOTEBOOKS],
)
def test_notebook_runs(path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # as users compile, which trains faster
    notebook = jupytext.read(path)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert any(cell.get("outputs") for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.slow
def test_deployment_experiment_runs_on_a_small_configuration_and_goes_on(tmp_path):
    import jax

    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra onnx)")
    from experiments import deployment

    output = tmp_path / "deployment.json"
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        result = deployment.run(deployment.SMOKE, None, output)
        assert deployment.run(deployment.SMOKE, None, output)["rows"] == result["rows"]
    assert json.loads(output.read_text())["rows"] == result["rows"]
    rows = {(row["network"], row["file"]): row for row in result["rows"]}
    assert rows["bert_tiny", "float"]["largest_difference"]["onnxruntime"] < 1e-4
    inputs, stream = (rows["digits_resnet", f"W8A8 {p}"] for p in ("inputs", "stream"))
    assert (inputs["points"], stream["points"]) == (0, 7)
    sizes = [row["file_bytes"]["onnxruntime"] for row in (inputs, stream)]
    assert inputs["size_bytes"] == stream["size_bytes"] < min(sizes)
    assert rows["bert_tiny", "W8A8 inputs"]["points"] == 0
    table = deployment.deployment_table(result)
    assert table.count("\n| ") == 2 + 4
    assert table.count("| – | – |") == 2  # classes of random weights say nothing
    assert deployment.float_table(result).count("\n| ") == 1 + 2


def test_highs_runs_after_a_run_with_another_number_of_threads():
    """Threads are fixed by the first run of a process; a run with others would not start."""
    import highspy

    from experiments.bench.leaderboard import measure, rivals

    first = highspy.Highs()
    for name, value in {"output_flag": False, "threads": 2}.items():
        first.setOptionValue(name, value)
    first.maximize(first.addBinary())
    (instance,) = measure.networks(measure.SMOKE.names[:1])
    found = rivals.highs(instance.problem, 8.0)
    assert found.remark == "Optimal"
    assert found.loss == pytest.approx(found.bound, rel=1e-9)
