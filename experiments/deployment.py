"""ONNX files in their runtimes beside jmpq's evaluation: agreement, bytes, speed (table T10).

For every network the float file and files of W8A8, with activations quantized at the inputs of
layers and on the stream, are run on the same examples and timed in turn; of ResNet-20 files of
7-bit and of mixed weights too. Calibration examples are not among them. MiniLM has random
weights and reads random sentences: only differences of outputs and times say something there.

Run:     python -m experiments.deployment --data-dir DIR    (40 min on one core)
Smoke:   python -m experiments.deployment --smoke           (a minute, random weights)
Writes:  experiments/results/deployment.json after every file; run again, it goes on
Claims:  experiments/claims/deployment.py
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

from experiments.common.arguments import Arguments
from experiments.common.networks import weights_file
from experiments.common.provenance import machine, made_by, versions, weights_of
from jmpq.allocation import Allocation
from jmpq.formats import Choice
from jmpq.quantizers.spec import InputSpec, KernelSpec, Placement

if TYPE_CHECKING:
    from jmpq.export.check import OnnxRuntime, Runner
    from jmpq.network.network import Network

    Runners = tuple[Runner, Runner]  # of the exported file and of the float one
Evaluation = Callable[[bool], Sequence[np.ndarray]]  # with int32 biases or not: logits by batch

NAMES = {
    "resnet20": "ResNet-20",
    "mobilenet_v1_0.75": "MobileNetV1-0.75",
    "squeezenet1_1": "SqueezeNet 1.1",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "vit_cifar": "small ViT (CIFAR-10)",
    "minilm_l6": "MiniLM-L6 (random weights)",
    "vit_ti16": "ViT-Ti/16 (random weights)",
}


VOCABULARY = 1000  # of random tokens


@dataclasses.dataclass(frozen=True)
class Subject:
    """One network.

    Attributes:
        model: Built-in network.
        weights: Published weights (`weights_file`); None for random ones.
        data: Data set; None for random inputs.
        examples: Examples that files are run on; none: only the float file is checked.
        litert: Whether LiteRT runs it too, one example a call.
        widths: Whether files of all weights of the experiment are written, or the first alone.
        length: Tokens of a random sentence, where the network reads text.
    """

    model: str
    weights: str | None
    data: str | None
    examples: int
    litert: bool = False
    widths: bool = False
    length: int = 0


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run; every field is in the result.

    Attributes:
        subjects: The networks.
        placements: Placements of activations.
        weights: Bits of the weights, the layers in turn; those at the ends have the most.
        runtimes: Programs that run the files.
        int32_biases: Runtimes that round biases to int32; jmpq's evaluation beside them too.
        calibration: Calibration examples.
        batch_size: Examples at once.
        float_examples: Examples that the float file is compared with JAX on.
        repeats: Calls whose processor time is taken, by size of the batch.
        seed: Seed of the calibration examples and of random weights.
    """

    subjects: tuple[Subject, ...] = (
        Subject(
            "resnet20",
            "cifar10/resnet20.safetensors",
            "cifar10",
            1000,
            litert=True,
            widths=True,
        ),
        *(
            Subject(model, f"imagenet/{file}.safetensors", "imagenet_sample", 1000)
            for model, file in (
                ("mobilenet_v1_0.75", "mobilenet_v1_0.75_224"),
                ("squeezenet1_1", "squeezenet1_1"),
                ("efficientnet_lite0", "efficientnet_lite0"),
            )
        ),
        Subject("vit_cifar", "vit_cifar.safetensors", "cifar10", 1000),
        Subject("minilm_l6", None, None, 256, length=128),
        Subject("vit_ti16", None, None, 0),
    )
    placements: tuple[Placement, ...] = ("inputs", "stream")
    weights: tuple[tuple[int, ...], ...] = ((8,), (8, 4), (7,))
    runtimes: tuple["OnnxRuntime", ...] = ("onnxruntime", "openvino")
    int32_biases: tuple[str, ...] = ("onnxruntime", "ai_edge_litert")
    calibration: int = 64
    batch_size: int = 32
    float_examples: int = 8
    repeats: tuple[tuple[int, int], ...] = ((1, 40), (32, 6))
    seed: int = 0


SMOKE = Config(
    subjects=(
        Subject("digits_resnet", None, "digits", 32),
        Subject("bert_tiny", None, None, 32, length=16),
    ),
    weights=((8,),),
    runtimes=("onnxruntime",),
    calibration=16,
    batch_size=16,
    float_examples=2,
    repeats=((1, 2),),
)


def run(
    config: Config, data_dir: pathlib.Path | None, output: pathlib.Path | None = None
) -> dict[str, Any]:
    """Every file of every network; those that `output` has are not made again."""
    from jmpq.export.check import overflows_here
    from jmpq.files import write_json

    record = json.loads(json.dumps(dataclasses.asdict(config)))
    old = None
    if output is not None and output.is_file():
        old = json.loads(output.read_text())
        old = old if _goes_on(old["config"], record) else None
    rows: list[dict[str, Any]] = [] if old is None else old["rows"]
    made = made_by("experiments.deployment", old=old)
    packages = "jax", "flax", "numpy", "onnx", *config.runtimes, "ai_edge_litert"
    here = {name: version for name, version in versions(*packages).items() if version}
    known_versions = {} if old is None else old["versions"]  # of a runtime that is not here

    def result() -> dict[str, Any]:
        return {
            "experiment": "deployment",
            "config": record,
            **made,
            "machine": machine() | {"cuts_sums_off": overflows_here()},
            "versions": known_versions | here,
            "rows": rows,
        }

    for subject in config.subjects:
        known = {(row["network"], row["file"]) for row in rows}
        for row in _files(config, subject, data_dir, known):
            rows.append({"network": subject.model, **row})
            if output is not None:
                write_json(output, result())
    return result()


def _goes_on(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether the rows of the old configuration are among those of the new one."""
    subjects = all(subject in new["subjects"] for subject in old["subjects"])
    return subjects and {**old, "subjects": ()} == {**new, "subjects": ()}


def _files(
    config: Config, subject: Subject, data_dir: pathlib.Path | None, known: set[tuple[str, str]]
) -> Any:
    """Rows of one network that are not `known`, one after the other."""
    import jax

    from jmpq.data.batches import batches
    from jmpq.data.splits import calibration_split
    from jmpq.export.codes import take_codes, unquantized
    from jmpq.export.onnx_graph import OnnxOptions, onnx_model
    from jmpq.export.packed import expected_bytes
    from jmpq.quantizers.calibrate import calibrate_quantizers

    names: dict[tuple[Placement, tuple[int, ...]], str] = {
        (placement, bits): f"{_label(bits)} {placement}"
        for placement in config.placements
        for bits in config.weights[: None if subject.widths else 1]
    }
    wanted = ["float", *(names.values() if subject.examples else ())]
    if all((subject.model, file) in known for file in wanted):
        return
    network, dataset = _network(config, subject, data_dir)
    floats = onnx_model(unquantized(network)).SerializeToString()
    if (subject.model, "float") not in known:
        inputs = _inputs(config, network, dataset)
        want = np.asarray(jax.jit(network.logits)(inputs))
        differences = {
            runtime: float(np.abs(make(floats)(inputs) - want).max())
            for runtime, make in _makers(config).items()
        }
        yield {
            "file": "float",
            **weights_of(network),
            "examples": len(want),
            "file_bytes": len(floats),
            "largest_logit": float(np.abs(want).max()),
            "largest_difference": differences,
        }
    if dataset is None:
        return
    calibration, rest = calibration_split(
        dataset, "heldout", examples=config.calibration, seed=config.seed
    )
    evaluation = rest.take(np.arange(min(subject.examples, len(rest))))
    loaded = batches(evaluation, config.batch_size)
    inputs = [b.inputs for b in batches(calibration, config.batch_size, last="keep")]
    layers = [layer.name for layer in network.layers]
    for (placement, bits), file in names.items():
        if (subject.model, file) in known:
            continue
        print(f"{subject.model}: {file}", flush=True)
        inner = [bits[i % len(bits)] for i in range(1, len(layers) - 1)]
        w_bits = [max(bits), *inner, max(bits)]
        allocation = Allocation(
            {name: Choice(b, 8) for name, b in zip(layers, w_bits, strict=True)}
        )
        quantizers = calibrate_quantizers(
            network,
            sorted(set(w_bits)),
            (8,),
            inputs,
            weights=KernelSpec(),
            activations=InputSpec(placement=placement),
            seed=config.seed,
        )
        coded = take_codes(network, quantizers, allocation)
        model = onnx_model(coded, OnnxOptions(smallest=4)).SerializeToString()
        runners = {
            runtime: (make(model), make(floats)) for runtime, make in _makers(config).items()
        }
        files = {runtime: len(model) for runtime in config.runtimes}
        if subject.litert:
            runners["ai_edge_litert"], files["ai_edge_litert"] = _litert(coded, inputs)
        evaluated = _evaluation(network, quantizers, allocation, loaded)
        yield {
            "file": file,
            **weights_of(network),
            "placement": placement,
            "weights": list(bits),
            "points": 0 if quantizers.stream is None else len(quantizers.stream.scale),
            "size_bytes": expected_bytes(coded),
            "file_bytes": files,
            "calibration": calibration.record(),
            "evaluation": evaluation.record(),
            "runtimes": _checked(config, runners, evaluated, loaded),
        }


def _checked(
    config: Config, runners: Mapping[str, "Runners"], evaluated: Evaluation, loaded: Any
) -> dict[str, Any]:
    """Agreement and processor time in every runtime."""
    from jmpq.export.check import compare, cpu_milliseconds, first_rows

    both = {
        (runtime, what): runner
        for runtime, own in runners.items()
        for what, runner in zip(("exported", "float"), own, strict=True)
    }
    times = {
        size: cpu_milliseconds(both, first_rows(loaded[0].inputs, size), repeats=repeats)
        for size, repeats in config.repeats
    }
    found = {}
    for runtime, (exported, _) in runners.items():
        wanted = iter(evaluated(runtime in config.int32_biases))  # of the same batches in order
        agreement = compare(exported, lambda _, wanted=wanted: next(wanted), loaded)
        found[runtime] = {
            "agreement": dataclasses.asdict(agreement),
            "cpu_ms": {
                str(size): {what: own[runtime, what] for what in ("exported", "float")}
                for size, own in times.items()
            },
        }
    return found


def _litert(coded: Any, inputs: Sequence[Any]) -> tuple["Runners", int]:
    """The same network and the float one in LiteRT; bytes of the file."""
    from jmpq.export.check import litert_runner
    from jmpq.export.codes import unquantized
    from jmpq.export.litert import float_litert, litert_model

    model, floats = litert_model(coded, inputs), float_litert(unquantized(coded.network))
    return (litert_runner(model), litert_runner(floats)), len(model)


def _evaluation(
    network: "Network", quantizers: Any, allocation: Allocation, loaded: Any
) -> Evaluation:
    """Logits of every batch as jmpq evaluates them, biases rounded to int32 or not."""
    import jax
    import jax.numpy as jnp

    from jmpq.allocation import bit_arrays
    from jmpq.quantizers.fake_quant import quantized_logits

    bits = [
        jnp.asarray(x) for x in bit_arrays([x.name for x in network.layers], [allocation])[0]
    ]
    logits = jax.jit(quantized_logits)

    @functools.cache
    def evaluated(int32_biases: bool) -> list[np.ndarray]:
        scales = quantizers.activations
        spec = dataclasses.replace(scales.spec, int32_biases=int32_biases)
        own = dataclasses.replace(
            quantizers, activations=dataclasses.replace(scales, spec=spec)
        )
        inputs = (jax.tree.map(jnp.asarray, batch.inputs) for batch in loaded)
        return [np.asarray(logits(network, own, *bits, x)) for x in inputs]

    return evaluated


def _makers(config: Config) -> dict[str, Any]:
    from jmpq.export.check import ONNX_RUNNERS

    return {runtime: ONNX_RUNNERS[runtime] for runtime in config.runtimes}


def _network(
    config: Config, subject: Subject, data_dir: pathlib.Path | None
) -> tuple["Network", Any]:
    """The network, and its data set where it has one."""
    import jax
    import jax.numpy as jnp

    from jmpq.data.dataset import Dataset
    from jmpq.data.load import load_dataset
    from jmpq.network.network import Network
    from jmpq.zoo.architectures import PREPROCESSINGS, architecture, build_module
    from jmpq.zoo.bert import example_tokens
    from jmpq.zoo.weights import load_weights

    known, dataset = architecture(subject.model), None
    if subject.length:
        module = build_module(subject.model, 2, VOCABULARY)
        example: Any = example_tokens(1, subject.length)
        count = config.calibration + subject.examples
        sentences = _sentences(count, subject.length, config.seed)
        labels = np.zeros(count, np.float32)  # of no class
        dataset = Dataset.from_arrays(sentences, labels, name="random_tokens")
    elif subject.data is None:
        module, example = build_module(subject.model, 1000), jnp.zeros((1, 224, 224, 3))
    else:
        rule = PREPROCESSINGS[known.preprocessing] if known.preprocessing else None
        dataset = load_dataset(subject.data, data_dir, rule)
        module = build_module(subject.model, len(dataset.classes))
        example = jnp.zeros((1, *dataset.heldout.inputs.shape[1:]), jnp.float32)
    if subject.weights is None:
        variables = _shaken(module.init(jax.random.key(config.seed), example), config.seed)
    else:
        path = weights_file(subject.weights, data_dir)
        variables = load_weights(path, module, architecture=subject.model)
    return Network.from_linen(module, variables, example, tied=known.tied), dataset


def _sentences(count: int, length: int, seed: int) -> dict[str, np.ndarray]:
    """Sentences of random tokens, the second half of each padded to a random length."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, VOCABULARY, (count, length)).astype(np.int32)
    lengths = rng.integers(length // 2, length + 1, (count, 1))
    mask = (np.arange(length) < lengths).astype(np.int32)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def _shaken(variables: Any, seed: int) -> Any:
    """Random weights with scales that are not one and biases that are not zero.

    Files leave out those that are, and would be faster than those of trained networks.
    """
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(seed)

    def moved(x: Any) -> Any:
        return jnp.asarray(x + 0.1 * rng.normal(size=x.shape), x.dtype) if x.ndim == 1 else x

    return {**variables, "params": jax.tree.map(moved, variables["params"])}


def _inputs(config: Config, network: "Network", dataset: Any) -> Any:
    """A few inputs: of the data set, or random ones."""
    import jax
    import jax.numpy as jnp

    from jmpq.data.batches import batches

    count = config.float_examples
    if dataset is not None:
        (batch,) = batches(dataset.heldout.take(np.arange(count)), count)
        return jax.tree.map(jnp.asarray, batch.inputs)
    shape = count, *network.tap.inputs.shape[1:]
    return jnp.asarray(np.random.default_rng(config.seed).normal(size=shape), jnp.float32)


def _label(bits: Sequence[int]) -> str:
    return f"W{'/'.join(map(str, bits))}A8"


def deployment_table(result: dict[str, Any]) -> str:
    """One row a file and runtime: agreement, bytes, milliseconds beside the float file."""
    sizes = [str(size) for size, _ in result["config"]["repeats"]]
    used = dict.fromkeys(r for row in result["rows"] for r in row.get("runtimes", {}))
    versions = ", ".join(f"{runtime} {result['versions'][runtime]}" for runtime in used)
    lines = [
        f"{versions}; {result['machine']['cpu']}, one thread, processor time, medians of calls "
        "that took turns with the float file.",
        "",
        "| network | file | runtime | same class | top-1: file, jmpq | logits: mean, largest "
        "difference | file over size_bytes | "
        + " | ".join(f"batch {size}: ms, faster by" for size in sizes)
        + " |",
        "| --- " * (7 + len(sizes)) + "|",
    ]
    for row in result["rows"]:
        for runtime, found in row.get("runtimes", {}).items():
            agreement = found["agreement"]
            times = [found["cpu_ms"][size] for size in sizes]
            cells = [
                NAMES.get(row["network"], row["network"]),
                row["file"],
                runtime,
                *_classes(agreement),
                f"{agreement['mean']:.2g}, {agreement['largest']:.2g}",
                f"{row['file_bytes'][runtime] / row['size_bytes']:.3f}",
                *(f"{t['exported']:.3g}, {t['float'] / t['exported']:.2f}×" for t in times),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _classes(agreement: dict[str, Any]) -> tuple[str, str]:
    """Cells of what only trained networks say: the same class, and top-1."""
    if agreement["top1"] is None:
        return "–", "–"
    both = f"{agreement['top1']:.3f}, {agreement['top1_jmpq']:.3f}"
    return f"{agreement['same_class']:.3f}", both


def float_table(result: dict[str, Any]) -> str:
    """Largest difference of a logit between JAX and the float file, by network."""
    runtimes = result["config"]["runtimes"]
    lines = [
        "| network | largest logit | " + " | ".join(runtimes) + " |",
        "| --- " * (2 + len(runtimes)) + "|",
    ]
    for row in result["rows"]:
        if row["file"] == "float":
            differences = (f"{row['largest_difference'][r]:.1g}" for r in runtimes)
            lines.append(
                f"| {NAMES.get(row['network'], row['network'])} | {row['largest_logit']:.3g} | "
                f"{' | '.join(differences)} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Run and write the result."""
    given = tyro.cli(Arguments, description=__doc__)
    output = given.result("deployment")
    run(SMOKE if given.smoke else Config(), given.data(), output)


if __name__ == "__main__":
    main()
