"""Export: a file that another program runs, and how it agrees with the evaluation."""

import dataclasses
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmpq.allocation import bit_arrays
from jmpq.data.batches import batches
from jmpq.deploy.correction import Corrections
from jmpq.deploy.finetuned import load_finetuned
from jmpq.deploy.measure import corrected_logits
from jmpq.export.check import (
    Runner,
    compare,
    cpu_milliseconds,
    first_rows,
    need,
    onnx_runner,
    packed_runner,
)
from jmpq.export.codes import Coded, stored_bits, take_codes, unquantized
from jmpq.export.packed import expected_bytes, save_packed
from jmpq.files import file_sha256, versions
from jmpq.network.network import Network
from jmpq.quantizers.fake_quant import Quantizers
from jmpq.run.artifacts import Export as Exported
from jmpq.run.artifacts import Exports
from jmpq.run.folder import EXPORT, EXPORTED, FINETUNED, RunFolder
from jmpq.run.lock import writes
from jmpq.run.options import Export
from jmpq.run.progress import QUIET, Reporter
from jmpq.run.subject import Subject, first_examples, load_subject

FLOAT = "float"  # name of the network as it is
SUFFIX = {"packed": ".safetensors", "onnx": ".onnx"}
BATCH_SIZES = (1, 32)


@writes
def export(
    folder: str | os.PathLike[str],
    options: Export = Export(),
    *,
    reporter: Reporter = QUIET,
) -> Exported:
    """Write an allocation as a file that another program runs, and run it.

    The file lies in ``exported``; ``export.json`` tells of every file there. On evaluation
    examples the file, in its own runtime, is compared with jmpq's evaluation of the same
    allocation, and timed beside the float network in the same format.

    Args:
        folder: The run folder, with a plan.
        options: Which allocation, as what, and how it is checked.
        reporter: Listens.

    Returns:
        The record of this file.

    Raises:
        ImportError: If the runtime is not installed; it says which extra to install.
        ValueError: If the format cannot express the network, or artifacts do not belong
            together; it says what or which step to run again.
        FileNotFoundError: If a step is missing; it says which.
    """
    if options.format == "onnx":
        need("onnx", *(["onnxruntime"] if options.check else []))
    run = RunFolder(folder, plan=options.plan)
    name, coded, reference = _chosen(run, options, subject := load_subject(run))
    run.check_writable(EXPORT)
    file = run.file(EXPORTED) / f"{name.replace('/', '_')}{SUFFIX[options.format]}"
    payload, floats = _written(run, options, name, coded, file)
    runtime, cpu_ms = "", {}
    agreement: dict[str, float | None] = {}
    if options.check:
        examples = first_examples(subject.evaluation, options.check)
        loaded = batches(examples, min(options.batch_size, len(examples)))
        if options.format == "onnx":
            runner, runtime = onnx_runner(file), "onnxruntime"
            floats = onnx_runner(_float_model(subject.network))
        else:
            runner, runtime = packed_runner(file, subject.network), "jax"
        with reporter.bar(f"Checking in {runtime}", "batches"):
            found = dataclasses.asdict(compare(runner, reference, loaded))
            agreement = {k: None if x is None else float(x) for k, x in found.items()}
            runners = {"exported": runner, FLOAT: floats}
            cpu_ms = {
                str(size): cpu_milliseconds(
                    runners, first_rows(loaded[0].inputs, size), repeats=options.repeats
                )
                for size in BATCH_SIZES
            }
        runtime = f"{runtime} {versions(runtime)[runtime]}"
    record = Exported(
        format=options.format,
        file=str(file.relative_to(run.plan_folder)),
        file_sha256=file_sha256(file),
        allocation=coded.allocation,
        name=name,
        size_bytes=expected_bytes(coded),
        payload_bytes=payload,
        file_bytes=file.stat().st_size,
        widened=_widened(coded, options),
        runtime=runtime,
        agreement=agreement,
        cpu_ms=cpu_ms,
    )
    known = {} if run.exports is None else dict(run.exports.files)
    Exports(
        weights_sha256=run.layers.weights_sha256,
        device=jax.devices()[0].device_kind,
        versions=versions("jax", "flax"),
        files=known | {f"{options.format}/{name}": record},
    ).write(run.file(EXPORT))
    reporter.say(f"Wrote {file} and {run.file(EXPORT)}")
    return record


def _chosen(run: RunFolder, options: Export, subject: Subject) -> tuple[str, Coded, Runner]:
    """Name, codes, and logits of jmpq's own evaluation."""
    network, quantizers = subject.network, subject.quantizers
    if options.finetuned:
        if run.finetuning is None:
            raise FileNotFoundError(
                f"{run.file(FINETUNED)} not found: run `jmpq finetune {run.path}` first."
            )
        tuned = load_finetuned(run.file(FINETUNED), network)
        coded = take_codes(tuned.network, tuned.quantizers, tuned.allocation, tuned.corrections)
        return "finetuned", coded, _evaluation(coded, tuned.quantizers)
    if options.allocation == FLOAT:
        return FLOAT, unquantized(network), _float(network)
    planned = run.planned(options.allocation)
    coded = take_codes(network, quantizers, planned.allocation)
    return planned.name, coded, _evaluation(coded, quantizers)


def _evaluation(coded: Coded, quantizers: Quantizers) -> Runner:
    names = [layer.name for layer in coded.network.layers]
    w_bits, a_bits = map(jnp.asarray, bit_arrays(names, [coded.allocation])[0])

    @jax.jit
    def logits(
        network: Network, quantizers: Quantizers, inputs: PyTree, corrections: Corrections
    ) -> Any:
        return corrected_logits(network, quantizers, w_bits, a_bits, inputs, corrections)

    corrections = dict(coded.corrections)
    return lambda inputs: np.asarray(
        logits(coded.network, quantizers, jax.tree.map(jnp.asarray, inputs), corrections)
    )


def _float(network: Network) -> Runner:
    logits = jax.jit(lambda network, inputs: network.logits(inputs))
    return lambda inputs: np.asarray(logits(network, jax.tree.map(jnp.asarray, inputs)))


def _float_model(network: Network) -> bytes:
    from jmpq.export.onnx_graph import onnx_model

    return onnx_model(unquantized(network)).SerializeToString()


def _written(
    run: RunFolder, options: Export, name: str, coded: Coded, file: pathlib.Path
) -> tuple[int, Runner]:
    """Write the file; bytes of its payload, and the float network to time beside it."""
    floats = _float(coded.network)
    if options.format == "onnx":
        from jmpq.export.onnx_graph import OnnxOptions, save_onnx

        how = OnnxOptions(native=options.native, smallest=options.smallest)
        model = save_onnx(file, coded, how)
        return sum(len(x.raw_data) for x in model.graph.initializer), floats
    table = run.layers
    metadata = {"name": name, "weights_sha256": table.weights_sha256}
    payload = save_packed(file, coded, architecture=table.network.model, metadata=metadata)
    return payload, floats


def _widened(coded: Coded, options: Export) -> dict[str, int]:
    """Layers whose codes the format stores at more bits than they have."""
    if options.format == "packed":
        return {}
    pairs = zip(coded.network.layers, coded.kernels, strict=True)
    widths = {
        layer.name: (kernel.bits, stored_bits(kernel.bits, options.smallest))
        for layer, kernel in pairs
        if kernel is not None
    }
    return {name: stored for name, (bits, stored) in widths.items() if stored != bits}
