"""`jmpq finetune`: training a network for the bits of an allocation."""

import dataclasses
import math
import pathlib
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jmpq.cli.run_folder import FINETUNED, FINETUNING, versions
from jmpq.cli.scale import Scale

if TYPE_CHECKING:
    import numpy as np

    from jmpq.cli.planned import Planned
    from jmpq.data.dataset import Split
    from jmpq.deploy.finetune import FinetuneConfig
    from jmpq.deploy.finetuned import Finetuned

POINTS = 100  # of the training curve, at most


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Train the network under an allocation of RUN/plan.json, quantized in every forward pass;
    write RUN/finetuned.safetensors (weights, scales, bits) and RUN/finetuning.json (curve;
    loss, KL to the float network and top-1 before and after, on the evaluation examples).

    Batch statistics are frozen; their scale and bias are trained. Interrupted, it goes on from
    the last checkpoint when called again.
    """  # noqa: D205

    run: Annotated[pathlib.Path, tyro.conf.Positional]
    """Folder of the run, with layers.json, sensitivity.npz and plan.json."""
    allocation: str | None = None
    """Name of the allocation; the first solution of the plan by default."""
    method: Literal["lsq", "ste"] = "lsq"
    """Learned scales (lsq), or scales as calibrated (ste); gradients straight-through."""
    epochs: int = 5
    """Passes over the training examples."""
    batch_size: int = 64
    """Examples per step."""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    """Nesterov momentum, or AdamW."""
    learning_rate: float = 1e-3
    """Peak learning rate; it falls to 0 along a cosine."""
    scale_learning_rate: float = 0.1
    """Learning rate of scales (lsq), as a multiple of --learning-rate."""
    warmup: float = 0.1
    """Fraction of all steps in which the learning rate rises."""
    momentum: float = 0.9
    """Of sgd."""
    weight_decay: float = 1e-4
    """On kernels only."""
    distillation: float = 1.0
    """Weight of the KL divergence to the float network's output on the training examples; the
    rest is cross entropy with the labels. With 1 no label is looked at."""
    temperature: float = 1.0
    """Of distillation: logits are divided by it, the KL divergence multiplied by its square."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of convolutions and matrix products; parameters and scales stay float32."""
    correct: Literal["none", "bias", "batch_norm"] = "batch_norm"
    """Before the first step, bring every layer's output back to the mean (bias), or mean and
    spread (batch_norm), that it has in the float network: the statistics that stay frozen."""
    correct_examples: int = 256
    """Calibration examples for it, the first so many; they go through the network at once."""
    shift: int = 0
    """Augmentation: random shifts by up to so many pixels."""
    flip: bool = False
    """Augmentation: random mirroring left to right."""
    training_examples: int | None = None
    """Training examples, the first so many; all by default."""
    examples: int | None = None
    """Evaluation examples, the first so many; all by default."""
    checkpoint_steps: int | None = None
    """Steps between checkpoints, besides those after every epoch."""
    devices: int | None = None
    """Devices over which the examples of a batch are spread; the result is the same up to
    rounding. A CPU appears as that many. One by default."""
    seed: int = 0
    """Of the order of examples and augmentation."""

    def config(self) -> "FinetuneConfig":
        """The options of the method."""
        from jmpq.deploy.finetune import FinetuneConfig
        from jmpq.training.loop import TrainConfig

        def of(kind: type, **others: Any) -> dict[str, Any]:
            names = {field.name for field in dataclasses.fields(kind)}
            return {k: v for k, v in vars(self).items() if k in names} | others

        return FinetuneConfig(**of(FinetuneConfig, training=TrainConfig(**of(TrainConfig))))

    def __call__(self) -> None:
        mesh = Scale(devices=self.devices).mesh()
        import jax

        from jmpq.cli.planned import chosen_allocation, read_planned
        from jmpq.cli.progress import bar
        from jmpq.data.batches import batches
        from jmpq.deploy.finetune import finetune
        from jmpq.deploy.finetuned import save_finetuned
        from jmpq.files import check_writable, file_sha256, json_sha256, write_json

        for option in ("training_examples", "examples", "correct_examples"):
            if (value := getattr(self, option)) is not None and value < 1:
                raise ValueError(f"{option}={value}: give at least 1.")
        config = self.config()
        planned = read_planned(self.run)
        chosen = chosen_allocation(self.run, planned.plan, self.allocation)
        check_writable(self.run / FINETUNING)
        training = _first(planned.dataset.train, self.training_examples)
        evaluation = _first(planned.evaluation, self.examples)
        corrected = _first(planned.calibration, self.correct_examples)
        key = {"config": dataclasses.asdict(config), "seed": self.seed,
               "bits": chosen.allocation.to_json(), "data": training.sha256,
               "examples": corrected.sha256,
               "quantizers": planned.quantizers.sha256}  # fmt: skip
        began = time.perf_counter()
        with bar(f"Fine-tuning {chosen.name}", "steps") as progress:
            found = finetune(
                planned.network,
                planned.quantizers,
                chosen.allocation,
                training,
                config,
                examples=batches(corrected, len(corrected))[0].inputs,
                seed=self.seed,
                checkpoints=(self.run / "checkpoints_finetune" / json_sha256(key)[:12]),
                mesh=mesh,
                progress=lambda done, total, loss: progress(
                    done, total, "" if math.isnan(loss) else f"loss {loss:.4f}"
                ),
            )
        seconds = time.perf_counter() - began
        outcomes = self._outcomes(planned, found, evaluation, corrected)
        save_finetuned(
            self.run / FINETUNED,
            found,
            architecture=planned.record["network"]["name"],
            metadata={"allocation": chosen.name, "seed": self.seed,
                      "config": dataclasses.asdict(config)},
        )  # fmt: skip
        write_json(
            self.run / FINETUNING,
            {
                "schema": "jmpq/finetuning",
                "version": 1,
                "weights_sha256": planned.record["weights_sha256"],
                "quantizers_sha256": planned.quantizers.sha256,
                "finetuned_sha256": file_sha256(self.run / FINETUNED),
                "allocation": chosen.name,
                "bits": chosen.allocation.to_json(),
                "costs": chosen.costs,
                "config": dataclasses.asdict(config),
                "seed": self.seed,
                "devices": self.devices or 1,
                "device": jax.devices()[0].device_kind,
                "versions": versions("jax", "jaxlib", "flax", "optax"),
                "splits": {
                    "training": training.record(),
                    "evaluation": evaluation.record(),
                    "correction": None if config.correct == "none" else corrected.record(),
                },
                "loss": "cross_entropy" if planned.loss == "kl" else planned.loss,
                "steps": len(found.losses),
                "curve": training_curve(found.losses),
                "outcomes": outcomes,
                "seconds": seconds,
            },
        )
        top1 = {name: f"{100 * o['top1']:.2f} %" for name, o in outcomes.items()}
        print(
            f"Top-1 on {len(evaluation)} evaluation examples: float {top1['float']}, "
            f"post-training {top1['post_training']}, fine-tuned {top1['finetuned']}."
        )
        print(f"Wrote {self.run / FINETUNED} and {self.run / FINETUNING}")

    def _outcomes(
        self, planned: "Planned", found: "Finetuned", evaluation: "Split", corrected: "Split"
    ) -> dict[str, dict[str, Any]]:
        """Float, post-training (as it comes, and with the corrections), fine-tuned."""
        plain = planned.evaluator(evaluation, self.batch_size, candidates_per_call=1)
        outcomes = {
            "float": plain.float_outcome(),
            "post_training": plain([found.allocation])[0],
        }
        if self.correct != "none":
            evaluator = planned.evaluator(
                evaluation,
                self.batch_size,
                correct=self.correct,
                corrected=corrected,
                candidates_per_call=1,
            )
            outcomes["post_training_corrected"] = evaluator([found.allocation])[0]
        trained = found.evaluator(plain)
        outcomes["finetuned"] = trained([found.allocation])[0]
        return {name: outcome.to_json() for name, outcome in outcomes.items()}


def training_curve(losses: "np.ndarray", points: int = POINTS) -> list[dict[str, Any]]:
    """Mean losses of at most so many equal runs of steps; `step` is the last of each."""
    import numpy as np

    parts = np.array_split(losses, min(points, len(losses)))
    ends = np.cumsum([len(part) for part in parts])
    return [
        {"step": int(end), "loss": float(part.mean())}
        for end, part in zip(ends, parts, strict=True)
    ]


def _first(split: "Split", count: int | None) -> "Split":
    import numpy as np

    return split if count is None else split.take(np.arange(min(count, len(split))))
