"""`jmpq finetune`: its file, its interruption, its errors (its effect: test_steps)."""

import json
import shutil

import numpy as np
import pytest

from tests.cli.command import contents, jmpq, works
from tests.cli.test_interrupted import Bars

SHORT = ("--training-examples", 64, "--batch-size", 16, "--epochs", 2, "--examples", 20)


def read(path):
    return json.loads(path.read_text())


def test_saved_file_gives_the_measured_network(run):
    from jmpq.deploy.finetuned import load_finetuned
    from jmpq.run import RunFolder, load_subject

    works("finetune", run, *SHORT)
    found = read(run / "finetuning.json")
    plan = read(run / "plan.json")
    first = next(a for a in plan["allocations"] if a["role"] == "solution")
    assert (found["name"], found["allocation"]) == (first["name"], first["allocation"])
    import jax

    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        subject = load_subject(RunFolder(run))
        tuned = load_finetuned(run / "finetuned.safetensors", subject.network)
        split = subject.evaluation.take(np.arange(20))
        logits = np.asarray(tuned.logits(split.normalization(split.inputs)))
    assert tuned.allocation.to_json() == first["allocation"]
    right = (logits.argmax(1) == split.labels).mean()
    assert right == pytest.approx(found["outcomes"]["finetuned"]["top1"])


def test_interrupted_it_goes_on_from_the_last_checkpoint(run, monkeypatch, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    bars = Bars(monkeypatch)
    args = (*SHORT, "--checkpoint-steps", 2)
    bars.interrupts("Fine-tuning exact/gauss_newton", 7, "finetune", run, *args)
    assert not (run / "finetuning.json").exists()
    works("finetune", run, *args)
    assert [done for _, done, _ in bars.moves] == [6, 7, 8]
    works("finetune", other, *args)
    first, second = (read(folder / "finetuning.json") for folder in (run, other))
    for record in (first, second):
        record["content_sha256"].pop("seconds")
        record.pop("seconds")
    assert first == second


def test_what_cannot_be_fine_tuned_is_refused_and_leaves_nothing(run):
    before = contents(run)
    for code, options, says in (
        (1, ("--allocation", "exact/gauss"), "Did you mean 'exact/gauss_newton'?"),
        (1, ("--batch-size", 5000), "batch_size=5000 is more than the"),
        (
            2,
            ("--distillation", 2),
            "distillation=2.0: give a number of at least 0 and at most 1",
        ),
        (2, ("--examples", 0), "examples=0: give at least 1"),
    ):
        result = jmpq("finetune", run, *options)
        assert result.code == code, options
        assert says in result.err
    assert contents(run) == before
