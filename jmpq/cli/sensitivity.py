"""`jmpq sensitivity`: the predicted loss increase of every choice of every layer."""

import dataclasses
import pathlib
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jmpq.cli.run_folder import (
    SENSITIVITY,
    SUPERPOSED,
    network_of,
    read_layers,
    versions,
)
from jmpq.cli.scale import Scale
from jmpq.quantizers.spec import InputSpec, KernelSpec, check_bits
from jmpq.sensitivity.metrics.by_name import DEFAULT_METRICS, MetricName, make_metric

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jmpq.formats import Choice
    from jmpq.network.network import Network
    from jmpq.quantizers.fake_quant import Quantizers
    from jmpq.sensitivity.batch_memory import Estimate
    from jmpq.sensitivity.moves import MoveNetwork
    from jmpq.sensitivity.table import Sensitivity as SensitivityTable
    from jmpq.training.losses import ExampleLoss

HERE = Scale()


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """Write RUN/sensitivity.npz: losses of every layer and choice, in nats per example.

    Interrupted, it goes on from the last finished batch when called again.
    """

    run: Annotated[pathlib.Path, tyro.conf.Positional]
    """Folder of the run, with layers.json."""
    metrics: tuple[MetricName, ...] = DEFAULT_METRICS
    """Metrics to compute; the first is the one the report puts first. composed also writes
    RUN/superposed.npz: what every move alone does to the logits, with which `jmpq solve`
    searches and `jmpq evaluate` predicts joint allocations."""
    w_bits: tuple[int, ...] = (2, 3, 4, 6, 8)
    """Candidate bits of weights: 1 to 16, or 32 for unquantized."""
    a_bits: tuple[int, ...] = (4, 8)
    """Candidate bits of activations: 1 to 16; 32 leaves them unquantized."""
    calibration_from: Literal["train", "heldout"] = "heldout"
    """Where calibration examples come from: training data, or a part of the held-out data
    set aside for it (accuracy is then reported on the rest only)."""
    examples: int = 256
    """Number of calibration examples."""
    batch_size: int = 64
    """Examples per batch; a smaller last batch is kept."""
    loss: str = "cross_entropy"
    """What increases: cross_entropy; kl, the KL divergence to the float network's own logits,
    which needs no labels; squared_error, of a regression; or package.module:function, of the
    logits of one example and its label, in nats."""
    class_samples: int | None = None
    """Of gauss_newton with many classes: backward passes per example, in random directions
    of the logits, instead of one per class. Unbiased; the standard error is printed."""
    traces: Literal["auto", "exact", "probes"] = "auto"
    """Traces of hawq_trace: exact, in a network that is piecewise linear (ReLU), by a backward
    pass for every output; by random probes, as HAWQ-V2; or auto, whichever is worth more. The
    step prints which."""
    probes: int = 1
    """Random probes per batch of hawq_trace, where it takes probes."""
    qbert_spread: float = 1.0
    """c of qbert: mean + c · standard deviation of the eigenvalue over batches."""
    seed: int = 0
    """Of calibration examples, sampled activations and probes."""
    weights: KernelSpec = KernelSpec()
    """How weights are put on a grid."""
    activations: InputSpec = InputSpec()
    """How activations are put on a grid."""
    scale: Annotated[Scale, tyro.conf.arg(name="")] = HERE
    """Where it computes."""

    def __call__(self) -> None:
        memory_bytes, mesh = self.scale.memory_bytes(), self.scale.mesh()

        import jax.numpy as jnp
        import numpy as np

        from jmpq.cli.losses import ZERO_FOR_KL, check_loss, find_loss
        from jmpq.cli.progress import bar
        from jmpq.data.batches import batches
        from jmpq.data.splits import calibration_split
        from jmpq.data.stream import Stream
        from jmpq.devices import is_main_process
        from jmpq.files import check_writable
        from jmpq.formats import choice_grid
        from jmpq.sensitivity.analyse import analyse
        from jmpq.sensitivity.metrics.measured_moves import float_logits
        from jmpq.sensitivity.moves import MoveNetwork
        from jmpq.sensitivity.table import save_sensitivities

        choices = choice_grid(self.w_bits, self.a_bits)
        self.check_bits()
        loss = find_loss(self.loss)
        if zero := [name for name in self.metrics if self.loss == "kl" and name in ZERO_FOR_KL]:
            raise ValueError(
                f"Metric {zero[0]!r} is zero with --loss kl, whose gradient vanishes at the "
                "float network. Leave it out, or choose another loss."
            )
        class_samples = "all" if self.class_samples is None else self.class_samples
        if class_samples != "all" and "gauss_newton" not in self.metrics:
            raise ValueError("class_samples is for gauss_newton: add it to the metrics.")
        make_metric("gauss_newton", loss=loss, class_samples=class_samples)  # refused early
        read_layers(self.run)
        main = is_main_process()
        if main:
            check_writable(self.run / SENSITIVITY)
        network, dataset, record = network_of(self.run)
        split, _ = calibration_split(
            dataset, self.calibration_from, examples=self.examples, seed=self.seed
        )
        examples = batches(split, self.batch_size, last="keep")
        inputs, data = examples.map(lambda b: b.inputs), examples.map(lambda b: b[:2])
        quantizers = self.calibrate(network, inputs, hidden=not main)
        provenance = {
            "weights_sha256": record["weights_sha256"],
            "calibration": split.record(),
            "quantizers_sha256": quantizers.sha256,
            "quantizers": {
                "weights": dataclasses.asdict(self.weights),
                "activations": dataclasses.asdict(self.activations),
            },
            "batch_size": self.batch_size,
            "loss": self.loss,
            "versions": versions("jax", "jaxlib", "flax"),
        }
        moves = MoveNetwork(network=network, quantizers=quantizers)
        if self.loss == "kl":
            logits = [np.asarray(float_logits(moves, x)) for x in inputs]
            data = Stream(inputs.sizes, lambda i: (inputs[i], logits[i]))
        first, targets = data[0]
        check_loss(self.loss, loss, float_logits(moves, first), jnp.asarray(targets))
        say = print if main else lambda text: None
        say(
            f"{len(network.layers)} layers, {len(choices)} choices, {len(moves.moves)} moves; "
            f"{len(split)} examples of the {split.source} split in {len(data)} batches"
            f"{'' if mesh is None else f' on {mesh.size} devices'}."
            f"{f' {split.dataset}: {split.note}.' if split.note else ''}"
        )
        found = {}
        for name in dict.fromkeys(self.metrics):
            start = time.perf_counter()
            if name == "composed":
                found[name] = self.composed(moves, data, choices, provenance, loss, mesh)
                say(f"{name}: {time.perf_counter() - start:.1f} s with compilation")
                continue
            metric = make_metric(
                name,
                loss=loss,
                traces=self.traces,
                probes=self.probes,
                qbert_spread=self.qbert_spread,
                class_samples=class_samples,
            )
            with bar(f"{name:24s}", "batches", hidden=not main) as progress:
                found[name] = analyse(
                    moves,
                    metric,
                    data,
                    choices,
                    seed=self.seed,
                    mesh=mesh,
                    memory_bytes=memory_bytes,
                    announce=lambda pass_, name=name: say(f"{name}: {in_words(pass_)}"),
                    partial=self.run / f".{SENSITIVITY}.{name}.partial",
                    provenance=provenance,
                    progress=progress,
                )
            say(f"{name}: {time.perf_counter() - start:.1f} s with compilation")
            if note := found[name].provenance.get("note"):
                say(f"{name}: {note}")
            if (sem := found[name].sampling_sem) is not None:
                share = 100 * np.linalg.norm(sem) / np.linalg.norm(found[name].losses)
                error = f"{share:.2g} % of the losses" if share < np.inf else "unknown"
                say(f"{name}: standard error by sampled classes {error}")
        if not main:
            return
        save_sensitivities(self.run / SENSITIVITY, found, quantizers.to_arrays())
        for partial in self.run.glob(f".{SENSITIVITY}.*.partial"):
            shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
        print(f"Wrote {self.run / SENSITIVITY}")

    def composed(
        self,
        moves: "MoveNetwork",
        data: Sequence[tuple[Any, Any]],
        choices: Sequence["Choice"],
        provenance: Mapping[str, Any],
        loss: "ExampleLoss",
        mesh: "Mesh | None",
    ) -> "SensitivityTable":
        """Measure and write the logit changes of every move; return their main effects.

        Of the KL divergence where the loss is cross-entropy: it predicts the rank of joint
        allocations better than the increase of the loss on few examples.
        """
        from jmpq.cli.progress import bar
        from jmpq.devices import is_main_process
        from jmpq.formats import FLOAT_BITS, Choice
        from jmpq.sensitivity.analyse import batch_sizes
        from jmpq.sensitivity.logits.composed import Composed, ridge_for
        from jmpq.sensitivity.logits.superposed import Superposed

        start = time.perf_counter()
        partial = self.run / f".{SENSITIVITY}.composed.partial"
        unquantized = Choice(FLOAT_BITS)  # what layers are that a plan excludes
        main = is_main_process()
        with bar(f"{'composed':24s}", "batches", hidden=not main) as progress:
            measured = Superposed.measure(
                moves,
                data,
                tuple(dict.fromkeys((*choices, unquantized))),
                mesh=mesh,
                partial=partial,
                provenance=provenance,
                progress=progress,
            )
        if main:
            measured.save(self.run / SUPERPOSED)
            print(f"Wrote {self.run / SUPERPOSED}: {measured.changes.nbytes / 1e6:.3g} MB")
        table = Composed(
            superposed=dataclasses.replace(measured, choices=tuple(choices)),
            ridge=ridge_for(measured.logits.shape[1]),
        ).main_effects(
            batch_sizes(data),
            kind="kl" if self.loss in ("cross_entropy", "kl") else "loss",
            loss=loss,
            seed=self.seed,
        )
        seconds = time.perf_counter() - start
        return dataclasses.replace(table, provenance={**table.provenance, "seconds": seconds})

    def check_bits(self) -> None:
        """Raise `ValueError` for bits that are not on the grid, before anything is loaded."""
        for quantizer, widths in ((self.weights, self.w_bits), (self.activations, self.a_bits)):
            for bits in widths:
                check_bits(quantizer, bits)

    def calibrate(
        self, network: "Network", inputs: Sequence[Any], *, hidden: bool = False
    ) -> "Quantizers":
        """Scales of weights and activations, and codes of weights; goes on where it stopped."""
        from jmpq.cli.progress import bar
        from jmpq.quantizers.calibrate import calibrate_quantizers

        rounding = self.weights.rounding
        with bar(f"{rounding:24s}", "layers", hidden=hidden or rounding == "nearest") as told:
            return calibrate_quantizers(
                network,
                self.w_bits,
                self.a_bits,
                inputs,
                weights=self.weights,
                activations=self.activations,
                seed=self.seed,
                partial=None if hidden else self.run / f".{SENSITIVITY}.{rounding}.partial",
                progress=told,
            )


def in_words(needed: "Estimate | None") -> str:
    """What a pass takes, for people."""
    if needed is None:
        return "memory is not known before the start"
    examples = "1 example" if needed.examples == 1 else f"{needed.examples} examples"
    return f"about {needed.bytes / 1e6:.3g} MB on each device, {examples} at a time"
