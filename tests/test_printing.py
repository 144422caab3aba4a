"""Objects print themselves in a few lines, and completion finds all public names."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import jmpq
from jmpq.allocation import Allocation
from jmpq.deploy.measure import Evaluator, Outcome
from jmpq.formats import Choice
from jmpq.quantizers.scales import Quantizers, Scales
from jmpq.quantizers.spec import KernelSpec
from jmpq.run.folder import RunFolder
from jmpq.sensitivity.logits.composed import Composed
from jmpq.sensitivity.logits.superposed import Superposed
from jmpq.sensitivity.metrics.by_name import TITLES, make_metric
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.sensitivity.table import Move, Sensitivity
from jmpq.text import did_you_mean
from tests import helpers
from tests.problem.test_plan import plan, solved

CHOICES = (Choice(2), Choice(8))


@pytest.fixture(scope="module")
def network():
    return helpers.residual_cnn(3)


def quantizers(network):
    scales = tuple(jnp.ones((1, 1)) for _ in network.layers)
    weights = Scales(spec=KernelSpec(), bits=(8,), scale=scales, zero_point=scales)
    return Quantizers(weights=weights, activations=None)


def superposed():
    moves = tuple(Move(layer, "w", bits) for layer in "ab" for bits in (2, 8))
    return Superposed(
        layers=("a", "b"),
        choices=CHOICES,
        moves=moves,
        logits=np.zeros((6, 3)),
        changes=np.zeros((6, 4, 3)),
        targets=np.zeros(6, np.int32),
    )


def sensitivity(layers=30, widths=(2, 3, 8)):
    names = tuple(f"block{i}/conv" for i in range(layers))
    moves = tuple(Move(name, "w", bits) for name in names for bits in widths)
    losses = np.arange(layers)[:, None] / np.array(widths)
    return Sensitivity(
        metric="gauss_newton",
        unit="nats per example",
        layers=names,
        choices=tuple(map(Choice, widths)),
        moves=moves,
        first=np.zeros(len(moves)),
        second=np.zeros(len(moves)),
        batch_first=np.zeros((2, layers, len(widths))),
        batch_second=np.array([losses, losses]),
        batch_examples=np.array([16.0, 8.0]),
    )


def outcome():
    return Outcome(
        examples=1000, loss=0.5, loss_sem=0.01, increase=0.125, increase_sem=0.02, kl=0.25,
        kl_sem=0.003, top1=0.75, top1_sem=0.014, top5=0.9, top5_sem=0.01, agreement=0.8,
    )  # fmt: skip


def folder(tmp_path):
    (tmp_path / "layers.json").write_text("{}")
    (tmp_path / "plans" / "tight").mkdir(parents=True)
    (tmp_path / "plans" / "tight" / "plan.json").write_text("{}")
    return RunFolder(tmp_path)


@pytest.fixture
def objects(network, tmp_path):
    own = quantizers(network)
    return {
        "network": network,
        "quantizers": own,
        "moves": MoveNetwork(network=network, quantizers=own),
        "sensitivity": sensitivity(),
        "superposed": superposed(),
        "composed": Composed(superposed=superposed()),
        "problem": solved()[0],
        "solution": solved()[1],
        "plan": plan(),
        "planned": plan().allocations[0],
        "outcome": outcome(),
        "evaluator": Evaluator(network, own, []),
        "allocation": Allocation({str(i): CHOICES[i % 2] for i in range(300)}),
        "folder": folder(tmp_path),
    }


SAID = {
    "network": ["4 layers", "1 dense", "stem", "multiply-accumulates"],
    "quantizers": ["4 tensors", "at [8]"],
    "moves": ["4 moves of 4 layers", "[8] bits"],
    "sensitivity": ["gauss_newton", "30 layers x 3 choices", "nats per example", "90 moves",
                    "24 examples in 2 batches", "no cross-layer", "W2", "block29/conv", "14.5",
                    "25 less sensitive layers"],
    "superposed": ["2 layers x 2 choices", "W2, W8", "4 moves", "6 examples", "3 classes",
                   "nats per example"],
    "composed": ["Composed", "ridge 1", "2 layers x 2 choices"],
    "problem": ["2 layers in 2 groups x 2 choices", "W2A4, W8", "size_bytes <= 5",
                "2 to 6 possible", "4 of 4 choices"],
    "solution": ["core", "optimal", "loss 5", "bound 5", "size_bytes 5", "W2A4", "0.5 s"],
    "plan": ["2 layers x 2 choices", "2 allocations", "1 solution", "1 random", "exact/gn",
             "size_bytes <= 5", "2026-01-01"],
    "planned": ["exact/gn", "solution", "loss 5", "by gn", "size_bytes 5", "W2A4"],
    "outcome": ["1,000 examples", "0.125 ± 0.02", "nats per example", "75.00 ± 1.40 %"],
    "evaluator": ["4 layers", "[8] bits", "cross_entropy", "correction none", "8 allocations"],
    "allocation": ["300 layers: 150xW2 150xW8"],
    "folder": ["layers.json", "tight", "0 journals"],
}  # fmt: skip


@pytest.mark.parametrize("columns", [60, 200])
def test_objects_say_what_they_are_in_few_lines(objects, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert objects.keys() == SAID.keys()
    for name, found in objects.items():
        lines = repr(found).splitlines()
        flat = " ".join(repr(found).split())
        for words in SAID[name]:
            assert words in flat, (name, words, flat)
        assert len(lines) <= 12, (name, lines)
        assert max(map(len, lines)) <= min(columns, 100), (name, lines)
        assert "array(" not in flat
        assert " at 0x" not in flat
        assert str(found) == repr(found) or name == "allocation"


def test_an_empty_folder_says_what_comes_first(tmp_path):
    assert "no artifact yet: `jmpq layers`" in repr(RunFolder(tmp_path / "none"))


@pytest.mark.parametrize(
    "package",
    [
        "jmpq",
        "jmpq.network",
        "jmpq.sensitivity",
        "jmpq.sensitivity.metrics",
        "jmpq.problem",
        "jmpq.solvers",
        "jmpq.run",
    ],
)
def test_completion_finds_every_public_name_and_each_is_there(package):
    module = sys.modules["jmpq"]
    for part in package.split(".")[1:]:
        module = getattr(module, part)
    assert set(module.__all__) <= set(dir(module))
    assert not [name for name in dir(module) if name.startswith("_") and name[:2] != "__"]
    for name in dir(module):
        assert getattr(module, name) is not None or name.startswith("__")


def test_metrics_rules_and_solvers_are_reachable_from_one_import():
    code = (
        "import jmpq, sys\n"
        "assert 'jax' not in sys.modules\n"
        "assert len(jmpq.__all__) <= 70\n"
        "jmpq.solvers.SeveralBudgets, jmpq.problem.Pin, jmpq.run.RunFolder\n"
        "assert 'jax' not in sys.modules\n"
        "jmpq.sensitivity.metrics.QBert, jmpq.sensitivity.metrics.make_metric\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    public = {getattr(jmpq.sensitivity.metrics, n) for n in jmpq.sensitivity.metrics.__all__
              if isinstance(getattr(jmpq.sensitivity.metrics, n), type)}  # fmt: skip
    for name in set(TITLES) - {"composed"}:
        assert type(make_metric(name)) in public


def test_a_name_that_is_not_there_is_told_the_nearest():
    with pytest.raises(AttributeError, match=r"'analyze'. Did you mean 'analyse'"):
        jmpq.analyze
    with pytest.raises(
        ValueError, match=r"no metric 'gaus_newton'. Did you mean 'gauss_newton'"
    ):
        make_metric("gaus_newton")
    with pytest.raises(ValueError, match=r"solvers=.cor.\. Did you mean .core."):
        jmpq.solvers.make_solver(solved()[0], "cor")
    with pytest.raises(ValueError, match=r"no data set 'cifar'. Did you mean 'cifar10'"):
        jmpq.load_dataset("cifar")
    with pytest.raises(
        ValueError, match=r"no architecture 'resnet-20'. Did you mean 'resnet20'"
    ):
        jmpq.build_module("resnet-20")
    with pytest.raises(ValueError, match=r"unknown cost. Did you mean 'size_bytes'"):
        jmpq.run.Solve(budget=("size_byte=1",))
    assert did_you_mean("RESNET20", ["resnet20"]) == " Did you mean 'resnet20'?"


def test_no_number_of_a_wide_table_is_cut(capsys, monkeypatch):
    from rich.table import Table

    from jmpq.cli.show import _printed

    monkeypatch.setenv("COLUMNS", "40")
    table = Table(*(f"cost {i}" for i in range(12)))
    table.add_row(*(f"{1.5e5 + i:.7g}" for i in range(12)))
    _printed(table)
    printed = capsys.readouterr().out
    assert all(f"{1.5e5 + i:.7g}" in printed for i in range(12))
