"""Fine-tuning: the network trained for the bits of an allocation."""

import dataclasses
import math
import os
import time
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jmpq.data.batches import batches
from jmpq.data.dataset import Split
from jmpq.deploy.finetune import FinetuneConfig
from jmpq.deploy.finetune import finetune as finetune_network
from jmpq.deploy.finetuned import Finetuned, save_finetuned
from jmpq.deploy.measure import Outcome
from jmpq.files import json_sha256, versions
from jmpq.run.artifacts import Finetuning
from jmpq.run.compute import join_devices
from jmpq.run.folder import FINETUNED, FINETUNING, RunFolder
from jmpq.run.lock import writes
from jmpq.run.network import check_classes
from jmpq.run.options import Compute, Finetune
from jmpq.run.progress import QUIET, Reporter
from jmpq.run.steps.evaluate import check_positive
from jmpq.run.subject import Subject, first_examples, load_subject
from jmpq.training.loop import TrainConfig

POINTS = 100  # of the training curve, at most


@writes
def finetune(
    folder: str | os.PathLike[str],
    options: Finetune = Finetune(),
    *,
    reporter: Reporter = QUIET,
) -> Finetuning:
    """Train the network under an allocation of the plan, quantized in every forward pass.

    Writes ``finetuned.safetensors`` (weights, scales, bits) and ``finetuning.json``. Batch
    statistics are frozen; their scale and bias are trained. If interrupted, the same call
    resumes from the last checkpoint.

    Args:
        folder: The run folder, with a plan.
        options: Allocation and options of training.
        reporter: Listens.

    Returns:
        The training curve; loss, KL to the float network and top-1 before and after, on the
        evaluation examples.

    Raises:
        ValueError: If options do not fit, or artifacts do not belong together.
        FileNotFoundError: If a step is missing; it says which.
    """
    mesh = join_devices(Compute(devices=options.devices))
    check_positive(options, "training_examples", "examples", "correct_examples")
    run, config = RunFolder(folder, plan=options.plan), _config(options)
    chosen = run.planned(options.allocation)
    subject = load_subject(run)
    check_classes(subject.network, "Fine-tuning", "Fine-tune in a loop of your own.")
    run.check_writable(FINETUNING)
    training = first_examples(subject.dataset.train, options.training_examples)
    evaluation = first_examples(subject.evaluation, options.examples)
    corrected = first_examples(subject.calibration, options.correct_examples)
    of = {"config": dataclasses.asdict(config), "seed": options.seed,
          "allocation": chosen.allocation.to_json(), "data": training.sha256,
          "examples": corrected.sha256, "quantizers": subject.quantizers.sha256}  # fmt: skip
    began = time.perf_counter()
    with reporter.bar(f"Fine-tuning {chosen.name}", "steps") as progress:
        tuned = finetune_network(
            subject.network,
            subject.quantizers,
            chosen.allocation,
            training,
            config,
            examples=batches(corrected, len(corrected))[0].inputs,
            seed=options.seed,
            checkpoints=run.path / "checkpoints_finetune" / json_sha256(of)[:12],
            mesh=mesh,
            progress=lambda done, total, loss: progress(
                done, total, "" if math.isnan(loss) else f"loss {loss:.4f}"
            ),
        )
    seconds = time.perf_counter() - began
    outcomes = _outcomes(subject, tuned, evaluation, corrected, options)
    save_finetuned(
        run.file(FINETUNED),
        tuned,
        architecture=run.layers.network.model,
        metadata={"allocation": chosen.name, "seed": options.seed,
                  "config": dataclasses.asdict(config)},
    )  # fmt: skip
    finetuning = Finetuning(
        weights_sha256=run.layers.weights_sha256,
        code_sha256=run.layers.code_sha256,
        quantizers_sha256=subject.quantizers.sha256,
        finetuned_sha256=run.sha256(FINETUNED),
        name=chosen.name,
        allocation=chosen.allocation,
        costs=chosen.costs,
        config=dataclasses.asdict(config),
        seed=options.seed,
        devices=options.devices or 1,
        device=jax.devices()[0].device_kind,
        versions=versions("jax", "jaxlib", "flax", "optax"),
        splits={
            "training": training.record(),
            "evaluation": evaluation.record(),
            "correction": None if config.correct == "none" else corrected.record(),
        },
        loss=subject.loss,
        steps=len(tuned.losses),
        curve=training_curve(tuned.losses),
        outcomes=outcomes,
        seconds=seconds,
    )
    finetuning.write(run.file(FINETUNING))
    top1 = {k: f"{100 * Outcome.from_json(o).top1:.2f} %" for k, o in outcomes.items()}
    reporter.say(
        f"Top-1 on {len(evaluation)} evaluation examples: float {top1['float']}, "
        f"post-training {top1['post_training']}, fine-tuned {top1['finetuned']}."
    )
    reporter.say(f"Wrote {run.file(FINETUNED)} and {run.file(FINETUNING)}")
    return finetuning


def _config(options: Finetune) -> FinetuneConfig:
    def fields(kind: type) -> dict[str, Any]:
        names = {field.name for field in dataclasses.fields(kind)}
        return {k: v for k, v in vars(options).items() if k in names}

    training = TrainConfig(**fields(TrainConfig))
    return FinetuneConfig(**fields(FinetuneConfig), training=training)


def _outcomes(
    subject: Subject,
    tuned: Finetuned,
    evaluation: Split,
    corrected: Split,
    options: Finetune,
) -> dict[str, dict[str, Any]]:
    """Float, post-training (as it comes, and with the corrections), fine-tuned."""
    size, one = options.batch_size, [tuned.allocation]
    plain = subject.evaluator(evaluation, size, candidates_per_call=1)
    outcomes = {"float": plain.float_outcome(), "post_training": plain(one)[0]}
    if options.correct != "none":
        evaluator = subject.evaluator(
            evaluation,
            size,
            correct=options.correct,
            corrected=corrected,
            candidates_per_call=1,
        )
        outcomes["post_training_corrected"] = evaluator(one)[0]
    outcomes["finetuned"] = tuned.evaluator(plain)(one)[0]
    return {name: outcome.to_json() for name, outcome in outcomes.items()}


def training_curve(
    losses: Float[np.ndarray, " steps"], points: int = POINTS
) -> list[dict[str, Any]]:
    """Mean losses of at most so many equal runs of steps; `step` is the last of each."""
    parts = np.array_split(losses, min(points, len(losses)))
    ends = np.cumsum([len(part) for part in parts])
    return [
        {"step": int(end), "loss": float(part.mean())}
        for end, part in zip(ends, parts, strict=True)
    ]
