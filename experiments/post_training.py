"""What rounding and corrections save before any fine-tuning: ResNet-20, weights alone.

Uniform bits (first and last layer at 8) and, at the same sizes, the allocations that exact
search finds on Gauss-Newton sensitivities, which see the rounding; each rounded to nearest and
by the layer Hessian, and each with the layers' outputs uncorrected, with their means corrected
and with the statistics of batch normalisation estimated again. Calibrated on images set aside
from the test set, measured on the others.

Run:     python -m experiments.post_training --data-dir DIR     (10 min on 2 cores)
Smoke:   python -m experiments.post_training --smoke            (seconds, digits)
Writes:  experiments/results/post_training.json
Claims:  experiments/claims/post_training.py
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import tyro

from experiments.common.arguments import Arguments
from experiments.common.provenance import machine, made_by, versions, weights_of
from jmpq.allocation import Allocation
from jmpq.deploy.correction import Correct
from jmpq.formats import Choice, choice_grid
from jmpq.quantizers.spec import Rounding


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run; every field is in the result.

    Attributes:
        model: Built-in network.
        weights: Published weights, below the data folder; None for random ones.
        data: Data set.
        w_bits: Candidate bits of weights.
        uniform: Uniform bits, whose sizes are the budgets.
        roundings: Ways to round.
        corrections: Corrections of the layers' outputs.
        examples: Calibration images, for everything.
        correct_examples: Number of them that the corrections see.
        evaluation_examples: Images measured on; None for all others.
        batch_size: Images per batch.
        seed: Seed of the calibration images.
    """

    model: str = "resnet20"
    weights: str | None = "cifar10/resnet20.safetensors"
    data: str = "cifar10"
    w_bits: tuple[int, ...] = (2, 3, 4, 6, 8)
    uniform: tuple[int, ...] = (4, 3, 2)
    roundings: tuple[Rounding, ...] = ("nearest", "gptq")
    corrections: tuple[Correct, ...] = ("none", "bias", "batch_norm")
    examples: int = 1024
    correct_examples: int = 512
    evaluation_examples: int | None = None
    batch_size: int = 64
    seed: int = 0


SMOKE = Config(
    model="digits_resnet",
    weights=None,
    data="digits",
    w_bits=(2, 8),
    uniform=(2,),
    corrections=("none", "batch_norm"),
    examples=32,
    correct_examples=32,
    evaluation_examples=32,
    batch_size=32,
)


def run(config: Config, data_dir: pathlib.Path | None) -> dict[str, Any]:
    """Every allocation under every rounding and correction."""
    import jax
    import jax.numpy as jnp

    from jmpq.data.batches import batches
    from jmpq.data.load import load_dataset
    from jmpq.data.splits import calibration_split
    from jmpq.deploy.measure import Evaluator
    from jmpq.network.network import Network
    from jmpq.quantizers.calibrate import calibrate_weights
    from jmpq.quantizers.scales import Quantizers
    from jmpq.quantizers.spec import KernelSpec
    from jmpq.sensitivity.analyse import analyse
    from jmpq.sensitivity.metrics.taylor import GaussNewton
    from jmpq.sensitivity.moves import MoveNetwork
    from jmpq.zoo.architectures import build_module
    from jmpq.zoo.weights import load_weights

    dataset = load_dataset(config.data, data_dir)
    example = jnp.zeros((1, *dataset.heldout.inputs.shape[1:]), jnp.float32)
    module = build_module(config.model)
    if config.weights is None:
        variables = module.init(jax.random.key(config.seed), example)
    else:
        assert data_dir is not None
        variables = load_weights(data_dir / config.weights, module, architecture=config.model)
    network = Network.from_linen(module, variables, example)
    calibration, rest = calibration_split(
        dataset, "heldout", examples=config.examples, seed=config.seed
    )
    evaluation = rest.take(np.arange(config.evaluation_examples or len(rest)))
    data = [(b.inputs, b.labels) for b in batches(calibration, config.batch_size, last="keep")]
    corrected = calibration.take(np.arange(config.correct_examples))
    examples = batches(corrected, len(corrected))[0].inputs
    choices = choice_grid(config.w_bits)

    rows, outcome = [], None
    for rounding in config.roundings:
        spec = KernelSpec(rounding=rounding)
        weights = calibrate_weights(network, spec, config.w_bits, [x for x, _ in data])
        quantizers = Quantizers(weights=weights, activations=None)
        moves = MoveNetwork(network=network, quantizers=quantizers)
        table = analyse(moves, GaussNewton(), data, choices)
        allocations = {}
        for bits in config.uniform:
            problem = _problem(network, table, spec, bits)
            uniform = _uniform(network, bits)
            size = problem.evaluate(uniform)[1]["size_bytes"]
            allocations[f"uniform W{bits}"] = uniform, size
            found = _exact(problem)
            allocations[f"exact, size of W{bits}"] = found.allocation, found.costs["size_bytes"]
        chosen = [allocation for allocation, _ in allocations.values()]
        for correct in config.corrections:
            print(f"{rounding}, {correct}: {len(chosen)} allocations", flush=True)
            evaluator = Evaluator(
                network,
                quantizers,
                lambda: batches(evaluation, config.batch_size),
                correct=correct,
                examples=None if correct == "none" else examples,
            )
            outcome = evaluator.float_outcome()
            for (name, (allocation, size)), measured in zip(
                allocations.items(), evaluator(chosen), strict=True
            ):
                rows.append(
                    {
                        "rounding": rounding,
                        "correct": correct,
                        "allocation": name,
                        "w_bits": {layer: c.w_bits for layer, c in allocation.items()},
                        "size_bytes": size,
                        "measured": measured.to_json(),
                    }
                )
    assert outcome is not None
    return {
        "experiment": "post_training",
        "config": dataclasses.asdict(config),
        **made_by("experiments.post_training"),
        **weights_of(network),
        "machine": machine(),
        "versions": versions("jax", "jaxlib", "numpy"),
        "splits": {"calibration": calibration.record(), "evaluation": evaluation.record()},
        "float": outcome.to_json(),
        "rows": rows,
    }


def _uniform(network: Any, bits: int) -> Allocation:
    """The same bits everywhere, 8 in the first and the last layer."""
    names = [layer.name for layer in network.layers]
    ends = (names[0], names[-1])
    return Allocation({name: Choice(8 if name in ends else bits) for name in names})


def _problem(network: Any, table: Any, spec: Any, bits: int) -> Any:
    """Allocation at the size of uniform `bits`, first and last layer at 8 bits."""
    from jmpq.problem import Overhead, build_problem, first_and_last

    names = [layer.name for layer in network.layers]
    return build_problem(
        network.layers,
        table,
        overhead=Overhead.of(network.layers, spec),
        rules=first_and_last(names, table.choices),
        budgets=[f"size_bytes=W{bits}"],
        unquantized_parameters=network.other_parameters,
    )


def _exact(problem: Any) -> Any:
    from jmpq.solvers import Exact

    return Exact()(problem)


def main() -> None:
    """Run and write the result."""
    from jmpq.files import write_json

    given = tyro.cli(Arguments, description=__doc__)
    result = run(SMOKE if given.smoke else Config(), given.data_dir)
    write_json(given.result("post_training"), result)


if __name__ == "__main__":
    main()
