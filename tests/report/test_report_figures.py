import dataclasses
import itertools
import math

import numpy as np
import pytest
import scipy.stats
from matplotlib.patches import Rectangle

from jmpq.formats import Choice
from jmpq.report.figure_accuracy import accuracy_figure, accuracy_points
from jmpq.report.figure_bits import bits_figure, reference_uniform
from jmpq.report.figure_gap import gap_figure
from jmpq.report.figure_prediction import prediction_figure
from jmpq.report.figure_sensitivity import sensitivity_figure
from jmpq.report.style import (
    MARKERS,
    OTHERS,
    PALETTE,
    NothingToDrawError,
    layer_labels,
    log_limits,
    metric_colors,
    signed_scale,
    solver_markers,
    write_svg,
)
from tests.report import synthetic_run


@pytest.fixture(scope="module")
def found():
    return synthetic_run.sensitivities(metrics=("gauss_newton", "squared_error"))


@pytest.fixture(scope="module")
def plan(found):
    return synthetic_run.plan(found)


@pytest.fixture(scope="module")
def evaluation(plan):
    return synthetic_run.evaluation(plan, "")


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_synthetic_solutions_meet_their_bound_and_budget(plan):
    for row in plan["allocations"]:
        if row["asked"] == "exact":
            assert row["gap"] == 0.0
        if row["asked"] in ("exact", "greedy"):
            assert row["costs"]["size_bytes"] <= row["budgets"]["size_bytes"]
            assert row["predicted_loss"] >= row["bound"]


def test_bits_figure_draws_the_bits_of_the_plan(plan):
    figure = bits_figure(plan, names=["exact/gauss_newton"])
    (axes,) = figure.axes
    row = next(a for a in plan["allocations"] if a["name"] == "exact/gauss_newton")
    weights = [int(row["allocation"][layer][1]) for layer in plan["layers"]]
    tops = [bar.get_y() + bar.get_height() for bar in axes.patches[: len(weights)]]
    np.testing.assert_allclose(np.exp2(tops), weights)
    np.testing.assert_allclose(
        np.exp2(axes.lines[0].get_ydata()),
        [int(row["allocation"][layer][3]) for layer in plan["layers"]],
    )


def test_bits_figure_shares_a_row_between_equal_allocations(plan):
    same = [a for a in plan["allocations"] if a["role"] == "solution"]
    twin = {**same[0], "name": "twin", "asked": "twin"}
    both = {**plan, "allocations": [same[0], twin]}
    (axes,) = bits_figure(both).axes
    assert "twin" in axes.get_title("left")


def test_bits_figure_names_as_many_equal_allocations_as_fit_the_width(plan):
    first = next(a for a in plan["allocations"] if a["role"] == "solution")
    twins = [{**first, "name": f"twin{i}", "asked": f"twin{i}"} for i in range(9)]
    figure = bits_figure({**plan, "allocations": [first, *twins]})
    (axes,) = figure.axes
    figure.canvas.draw()
    title = axes._left_title
    assert " more   (" in title.get_text()
    assert title.get_window_extent().x1 <= figure.bbox.x1


def test_reference_uniform_is_the_largest_within_the_budget(plan):
    reference = reference_uniform(plan)
    assert reference is not None
    assert reference["name"] in ("uniform/W4A4", "uniform/W4A8")
    assert reference["costs"]["size_bytes"] <= plan["budgets"]["size_bytes"]["limit"]


def test_weights_only_plans_have_no_activation_marks(plan):
    row = dict(plan["allocations"][0], allocation=dict.fromkeys(plan["layers"], "W4"))
    (axes,) = bits_figure({**plan, "allocations": [row]}).axes
    assert not [line for line in axes.lines if line.get_marker() == "o"]


def test_bits_figure_draws_the_bits_of_a_format_not_its_number(plan):
    labels = ["Wmxfp4Amxfp8_e4m3", "Wint3_g64A8"]
    names = dict(zip(plan["layers"], itertools.cycle(labels), strict=False))
    row = dict(plan["allocations"][0], allocation=names)
    (axes,) = bits_figure({**plan, "allocations": [row]}).axes
    tops = [bar.get_y() + bar.get_height() for bar in axes.patches[: len(names)]]
    want = [4 if name == labels[0] else 3 for name in names.values()]
    np.testing.assert_allclose(np.exp2(tops), want)
    (marks,) = [line for line in axes.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(np.exp2(marks.get_ydata()), 8)


def test_sensitivity_figure_draws_what_was_predicted_signs_and_all(found):
    result = found["gauss_newton"]
    losses = result.losses.copy()
    losses[2, 7], losses[4, 7], losses[5, 7] = -1e-3, 0.0, 0.0  # W8A8
    changed = synthetic_run.sensitivity("gauss_newton", result.layers, losses, result.sem)
    weights, activations = sensitivity_figure({"gauss_newton": changed}).axes
    assert weights.get_yscale() == activations.get_yscale() == "symlog"  # linear around zero
    for label, column in (("W3A8", 3), ("W8A8", 7)):
        drawn = {line.get_label(): line for line in weights.lines}[label]
        np.testing.assert_array_equal(drawn.get_ydata(), losses[:, column])
    labels = [text.get_text() for text in activations.get_legend().get_texts()]
    assert labels == ["W8A4", "W8A8"]
    positive = sensitivity_figure({"gauss_newton": result}).axes[0]
    assert positive.get_yscale() == ("log" if (result.losses > 0).all() else "symlog")


def test_sensitivity_figure_shows_every_format_of_as_many_bits(found):
    result = found["gauss_newton"]
    names = ["Wint4_g64", "Wmxfp4", "W4", "Wnvfp4", "W8", "Wfp8_e4m3", "W3", "W2"]
    shown = dataclasses.replace(result, choices=tuple(map(Choice.parse, names)))
    (axes,) = sensitivity_figure({"gauss_newton": shown}).axes
    drawn = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(drawn) == sorted(names)


def test_sensitivity_figure_survives_all_zeros_one_batch_and_110_layers(found):
    deep = synthetic_run.sensitivities(110, metrics=("gauss_newton",))
    assert len(sensitivity_figure(deep).axes) == 2
    result = found["gauss_newton"]
    nothing = np.zeros_like(result.losses)
    flat = synthetic_run.sensitivity("zero", result.layers, nothing, np.nan * nothing)
    assert "<svg" in write_svg(sensitivity_figure({"zero": flat}), "F2", "zeros")


def test_sensitivity_figure_names_an_unknown_metric(found):
    with pytest.raises(ValueError, match="No metric 'hessian'; there are: gauss_newton"):
        sensitivity_figure(found, metrics=["hessian"])


@pytest.mark.parametrize("target", ["increase", "kl"])
def test_prediction_panels_state_the_rank_correlation_of_scipy(plan, evaluation, target):
    figure = prediction_figure(plan, evaluation, target=target, relative=["squared_error"])
    for axes, metric, role in zip(
        figure.axes,
        np.repeat(["gauss_newton", "squared_error"], 2),
        ["single", "random"] * 2,
        strict=True,
    ):
        rows = [a for a in plan["allocations"] if a["role"] == role]
        measured = [evaluation["measured"][a["name"]]["evaluation"] for a in rows]
        reference = evaluation["float"]["evaluation"]["loss"]
        y = [m["kl"] if target == "kl" else m["loss"] - reference for m in measured]
        x = [a["predictions"][metric] for a in rows]
        rho = scipy.stats.spearmanr(x, y).statistic
        (note,) = texts(axes)
        assert note.startswith(f"ρ = {rho:.2f}, n = {len(rows)}")
        assert ("median" in note) == (metric == "gauss_newton")


def test_prediction_figure_leaves_out_a_column_without_measurements(plan, evaluation):
    joint = [a for a in plan["allocations"] if a["role"] != "single"]
    figure = prediction_figure({**plan, "allocations": joint}, evaluation)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles
    assert all(title.endswith("joint allocations") for title in titles)


def test_accuracy_axis_is_percent_over_megabytes(plan, evaluation):
    points = {p["name"]: p for p in accuracy_points(plan, evaluation, "evaluation")}
    name = "uniform/W8A8"
    measured = evaluation["measured"][name]["evaluation"]
    assert points[name]["top1"] == pytest.approx(100 * measured["top1"])
    figure = accuracy_figure(plan, evaluation)
    axes = figure.axes[0]
    (mb,) = {p["costs"]["size_bytes"] / 1e6 for p in points.values() if p["name"] == name}
    drawn = np.concatenate([np.column_stack(line.get_data()) for line in axes.lines])
    assert np.isclose(drawn, [mb, 100 * measured["top1"]]).all(axis=1).any()
    assert figure.axes[-2].get_xlabel() == "size (MB = 10⁶ bytes)"
    assert not any(name.startswith("single/") for name in points)


def test_gap_figure_sets_greedy_against_the_exact_bound(plan):
    axes = gap_figure(plan).axes[0]
    drawn = {line.get_label(): line for line in axes.lines}
    exact, greedy = drawn["exact, Gauss–Newton"], drawn["greedy, Gauss–Newton"]
    np.testing.assert_array_equal(exact.get_ydata(), 0.0)
    rows = {a["name"]: a for a in plan["allocations"] if a["metric"] == "gauss_newton"}
    expected = []
    for name, row in rows.items():
        if row["asked"] == "greedy":
            best = rows[name.replace("greedy", "exact")]["predicted_loss"]
            gap = 100 * (row["predicted_loss"] - best) / row["predicted_loss"]
            expected.append((row["budgets"]["size_bytes"] / 1e6, gap))
    np.testing.assert_allclose(np.column_stack(greedy.get_data()), sorted(expected), atol=1e-9)


def test_gap_figure_shows_the_time_of_every_solver(plan):
    gaps, seconds = gap_figure(plan).axes
    assert seconds.get_ylabel() == "time (s)"
    assert seconds.get_yscale() == "log"
    assert len(seconds.lines) == len(gaps.lines)
    times = {a["wall_s"] for a in plan["allocations"] if a["asked"] == "greedy"}
    drawn = {line.get_label(): line for line in seconds.lines}["greedy, Gauss–Newton"]
    assert set(drawn.get_ydata()) <= {max(t, 1e-6) for t in times}


def test_figures_without_data_say_what_is_missing(plan, evaluation):
    empty = {**plan, "allocations": []}
    for draw in (
        lambda: bits_figure(empty),
        lambda: sensitivity_figure({}),
        lambda: prediction_figure(empty, evaluation),
        lambda: accuracy_figure(plan, {**evaluation, "measured": {}}),
        lambda: gap_figure(empty),
    ):
        with pytest.raises(NothingToDrawError):
            draw()


def test_svg_is_deterministic_prefixed_and_undated(plan):
    first, second = (write_svg(gap_figure(plan), name, "gap <1 %") for name in ("a", "a"))
    assert first == second
    assert "gap &lt;1 %" in first
    assert "<metadata" not in first
    assert 'id="a-' in first
    assert ' href="#a-' in first or 'xlink:href="#a-' in first
    assert write_svg(gap_figure(plan), "b", "gap <1 %").replace("b-", "a-") == first


def test_layer_labels_drop_what_all_share_and_cut_long_names():
    assert layer_labels(["net/a/x", "net/b/x"]) == ["a/x", "b/x"]
    assert layer_labels(["net/conv"]) == ["net/conv"]
    (label,) = layer_labels(["a" * 50], longest=10)
    assert label == "…" + "a" * 9


def test_known_metrics_keep_their_colour():
    assert (
        metric_colors(["gauss_newton"])["gauss_newton"]
        == (metric_colors(["zzz", "gauss_newton", "hessian"])["gauss_newton"])
    )


def test_no_two_metrics_and_no_two_solvers_look_alike():
    metrics = [f"m{i}" for i in range(9)]
    colors = metric_colors(["gauss_newton", "hawq_trace", *metrics])
    own = [color for color in colors.values() if color != OTHERS]
    assert len(set(own)) == len(own) == len(PALETTE) - 1
    markers = solver_markers(["exact", "greedy", "race", "refine", "core", "local_search"])
    assert len(set(markers.values())) == 6
    assert markers["exact"] == MARKERS["exact"]


def test_an_axis_is_linear_around_zero_only_where_values_reach_it():
    assert signed_scale(np.array([1e-3, 1.0])) == {"value": "log"}
    scale = signed_scale(np.array([-1.0, 0.0, 1e-3, 10.0, math.nan]))
    assert scale["value"] == "symlog"
    assert 1e-3 < scale["linthresh"] < 1.0
    low, high = log_limits(np.array([1e-3, 1.0, -2.0, 0.0, math.nan]))
    assert low < 1e-3
    assert high > 1.0


def test_bits_of_a_transformer_stand_by_type(plan):
    layers = list(plan["layers"])
    kinds = ["q", "k", "v", "o"] * (len(layers) // 4)
    types = dict(zip(layers, kinds, strict=True))
    name = "exact/gauss_newton"
    (axes,) = bits_figure(plan, names=[name], types=types).axes
    assert [text.get_text() for text in axes.texts] == ["q", "k", "v", "o"]
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    drawn = [bar.get_height() - 1 for bar in bars]
    allocation = next(a["allocation"] for a in plan["allocations"] if a["name"] == name)
    ordered = [layer for kind in "qkvo" for layer in layers if types[layer] == kind]
    bits = [Choice.parse(allocation[layer]).w_bits for layer in ordered]
    np.testing.assert_allclose(drawn, np.log2(bits))
