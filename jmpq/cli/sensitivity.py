"""`jmpq sensitivity`: the predicted loss increase of every choice of every layer."""

import dataclasses
import pathlib
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jmpq.cli.run_folder import SENSITIVITY, network_of, versions
from jmpq.quantizers.spec import Clipping, Granularity, Grid, QuantizerSpec

if TYPE_CHECKING:
    from jmpq.models.network import Network
    from jmpq.quantizers.fake_quant import Quantizers
    from jmpq.sensitivity.metric import Metric

MetricName = Literal[
    "gauss_newton",
    "gauss_newton_difference",
    "empirical_fisher",
    "first_order",
    "hessian",
    "hawq_trace",
    "squared_error",
]
DEFAULT_METRICS: tuple[MetricName, ...] = (
    "gauss_newton",
    "empirical_fisher",
    "hawq_trace",
    "squared_error",
)


@dataclasses.dataclass(frozen=True)
class WeightQuantizer:
    """How weights are put on a grid."""

    grid: Grid = "symmetric"
    """symmetric: clip/(2^(b-1) - 1); half: clip/(2^(b-1) - 0.5); affine: with zero point."""
    granularity: Granularity = "channel"
    """One scale per tensor, per output channel, or per group."""
    group_size: int | None = None
    """Features per group (granularity group)."""
    group_count: int | None = None
    """Groups per channel (along input) or per kernel (along output)."""
    along: Literal["input", "output"] = "input"
    """Axis along which groups run."""
    clipping: Clipping = "mse"
    """Range: min-max, percentile, or least mean squared error."""
    percentile: float = 99.9
    """Percentile of percentile clipping."""

    def spec(self) -> QuantizerSpec:
        return QuantizerSpec(**vars(self))


@dataclasses.dataclass(frozen=True)
class ActivationQuantizer(WeightQuantizer):
    """How activations are put on a grid; channels and groups run along input features."""

    grid: Grid = "affine"
    granularity: Granularity = "tensor"


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """Write RUN/sensitivity.npz: losses of every layer and choice, in nats per example.

    Interrupted, it goes on from the last finished batch when called again.
    """

    run: Annotated[pathlib.Path, tyro.conf.Positional]
    """Folder of the run, with layers.json."""
    metrics: tuple[MetricName, ...] = DEFAULT_METRICS
    """Metrics to compute; the first is the one the report puts first."""
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
    probes: int = 1
    """Random probes per batch of hawq_trace."""
    seed: int = 0
    """Of calibration examples, sampled activations and probes."""
    weights: WeightQuantizer = dataclasses.field(default_factory=WeightQuantizer)
    activations: ActivationQuantizer = dataclasses.field(default_factory=ActivationQuantizer)

    def __call__(self) -> None:
        from jmpq.cli.progress import bar
        from jmpq.data.batches import batches
        from jmpq.data.splits import calibration_split
        from jmpq.quantizers.choice import choice_grid
        from jmpq.sensitivity.metric import analyse
        from jmpq.sensitivity.moves import MoveNetwork
        from jmpq.sensitivity.result import save_sensitivities

        choices = choice_grid(self.w_bits, self.a_bits)
        network, dataset, record = network_of(self.run)
        split, _ = calibration_split(
            dataset, self.calibration_from, examples=self.examples, seed=self.seed
        )
        data = [(b.inputs, b.labels) for b in batches(split, self.batch_size, last="keep")]
        quantizers = self.calibrate(network, [inputs for inputs, _ in data])
        provenance = {
            "weights_sha256": record["weights_sha256"],
            "calibration": split.record(),
            "quantizers_sha256": quantizers.sha256,
            "quantizers": {
                "weights": self.weights.spec().to_json(),
                "activations": self.activations.spec().to_json(),
            },
            "batch_size": self.batch_size,
            "versions": versions(),
        }
        moves = MoveNetwork(network=network, quantizers=quantizers)
        print(
            f"{len(network.layers)} layers, {len(choices)} choices, {len(moves.moves)} moves; "
            f"{len(split)} examples of the {split.source} split in {len(data)} batches."
        )
        found, partials = {}, []
        for name in dict.fromkeys(self.metrics):
            partials.append(self.run / f".{SENSITIVITY}.{name}.partial")
            metric = make_metric(name, probes=self.probes)
            start = time.perf_counter()
            with bar(f"{name:24s}", "batches") as progress:
                found[name] = analyse(
                    moves,
                    metric,
                    data,
                    choices,
                    seed=self.seed,
                    partial=partials[-1],
                    provenance=provenance,
                    progress=progress,
                )
            print(f"{name}: {time.perf_counter() - start:.1f} s with compilation")
        save_sensitivities(self.run / SENSITIVITY, found, quantizers.to_arrays())
        for partial in partials:
            partial.unlink(missing_ok=True)
        print(f"Wrote {self.run / SENSITIVITY}")

    def calibrate(self, network: "Network", inputs: list[Any]) -> "Quantizers":
        """Scales of weights and activations."""
        import jax

        from jmpq.quantizers.choice import FLOAT_BITS
        from jmpq.quantizers.fake_quant import (
            Quantizers,
            calibrate_activations,
            calibrate_weights,
        )

        key = jax.random.key(self.seed)
        activations = None
        if set(self.a_bits) - {FLOAT_BITS}:
            activations = calibrate_activations(
                network, self.activations.spec(), self.a_bits, inputs, key=key
            )
        weights = calibrate_weights(network, self.weights.spec(), self.w_bits)
        return Quantizers(weights=weights, activations=activations)


def make_metric(name: MetricName, *, probes: int = 1) -> "Metric":
    """A metric by its name."""
    from jmpq.sensitivity.hawq import HawqTrace
    from jmpq.sensitivity.squared_error import SquaredError
    from jmpq.sensitivity.taylor import EmpiricalFisher, ExactHessian, FirstOrder, GaussNewton

    match name:
        case "gauss_newton":
            return GaussNewton()
        case "gauss_newton_difference":
            return GaussNewton(changes="difference")
        case "empirical_fisher":
            return EmpiricalFisher()
        case "first_order":
            return FirstOrder()
        case "hessian":
            return ExactHessian()
        case "hawq_trace":
            return HawqTrace(num_probes=probes)
        case "squared_error":
            return SquaredError()
