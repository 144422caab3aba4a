"""Figure 21, and figure 10 against measured latency."""

import pytest

from jmpq.report.figure_accuracy import accuracy_figure
from jmpq.report.figure_latency import latency_figure, latency_points, measured_latency
from jmpq.report.style import NothingToDrawError
from tests.report import synthetic_run


def timed(predicted, cpu, **more):
    return {"predicted_s": predicted, "cpu_s": cpu, "wall_s": 2 * cpu, **more}


RECORD = {
    "clock": "cpu",
    "networks": [
        timed(1e-3, 1.1e-3, role="uniform"),
        timed(2e-3, 1.9e-3, role="designed"),
        timed(3e-3, 3.2e-3, role="held_out"),
    ],
}
CHECK = {
    "clock": "wall",
    "allocations": {
        "exact/gauss_newton": timed(None, 1e-3, cost_s=2.5e-3),
        "uniform/W4A4": timed(1.5e-3, 1e-3, cost_s=2.5e-3),
        "uniform/W8A8": timed(None, 1e-3, cost_s=None),
    },
}


@pytest.fixture(scope="module")
def plan():
    return synthetic_run.plan(synthetic_run.sensitivities())


def test_every_network_is_a_point_by_the_clock_of_its_record(plan):
    points = latency_points(RECORD, CHECK, plan)
    assert points == [
        ("designed", 1e-3, 1.1e-3),
        ("designed", 2e-3, 1.9e-3),
        ("held_out", 3e-3, 3.2e-3),
        ("solution", 2.5e-3, 2e-3),  # by the table, where no model predicts
        ("baseline", 1.5e-3, 2e-3),
    ]
    (axes,) = latency_figure(RECORD, CHECK, plan).axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["fitted", "held out", "uniform", "solution of the plan"]
    assert axes.get_xlabel() == "predicted latency (ms)"
    assert axes.lines[1].get_ydata().tolist() == pytest.approx([3.2])
    with pytest.raises(NothingToDrawError, match="no whole network was measured"):
        latency_figure(None, None, plan)


def test_accuracy_is_drawn_against_measured_latency(plan):
    seconds = measured_latency(CHECK)
    assert seconds["uniform/W4A4"] == 2e-3
    assert measured_latency(None) == {}
    evaluation = synthetic_run.evaluation(plan, "")
    figure = accuracy_figure(plan, evaluation, latency=seconds)
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert "latency (ms)" in labels
    axes = figure.axes[labels.index("latency (ms)")]
    drawn = {float(x) for line in axes.lines for x in line.get_xdata()}
    assert 2.0 in drawn
    assert "latency (ms)" not in [
        axes.get_xlabel() for axes in accuracy_figure(plan, evaluation).axes
    ]
