"""Export: a file that another program runs, and how it agrees with the evaluation."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmpq.allocation import Allocation, bit_arrays
from jmpq.data.batches import Batch, batches
from jmpq.deploy.correction import Corrections, find_corrections, output_moments
from jmpq.deploy.finetuned import load_finetuned
from jmpq.deploy.measure import corrected_logits
from jmpq.export.check import (
    Runner,
    compare,
    cpu_milliseconds,
    first_rows,
    need,
    overflow_warning,
    runtime_options,
)
from jmpq.export.codes import Coded, take_codes, unquantized
from jmpq.export.packed import expected_bytes
from jmpq.export.targets import TARGETS, Job, float_runner
from jmpq.files import file_sha256, versions
from jmpq.network.network import Network
from jmpq.quantizers.scales import Quantizers
from jmpq.run.artifacts import Checked, Exports
from jmpq.run.artifacts import Export as Exported
from jmpq.run.folder import EXPORT, EXPORTED, FINETUNED, RunFolder
from jmpq.run.lock import writes
from jmpq.run.options import Evaluate, Export
from jmpq.run.progress import QUIET, Reporter
from jmpq.run.subject import Subject, first_examples, load_subject

FLOAT = "float"  # name of the network as it is
RANGE_EXAMPLES = 128  # of which ranges are taken that no quantizer has
EXPORTED_FILE = "exported"  # what is timed beside the float network
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
        options: Allocation, format and check of the export.
        reporter: Listens.

    Returns:
        The record of this file.

    Raises:
        ImportError: If the runtime is not installed; it says which extra to install.
        ValueError: If the format cannot express the network, or artifacts do not belong
            together; it says what or which step to run again.
        FileNotFoundError: If a step is missing; it says which.
    """
    target = TARGETS[options.format]
    runtimes = [name for name in target.programs if name in (*options.runtimes, target.own)]
    need(*target.packages, *(runtimes if options.check else []))
    run = RunFolder(folder, plan=options.plan)
    name, coded, reference = _chosen(run, options, subject := load_subject(run), reporter)
    run.check_writable(EXPORT)
    table = run.layers
    job = Job(
        coded=coded,
        path=run.file(EXPORTED) / f"{name.replace('/', '_')}{target.suffix}",
        architecture=table.network.model,
        metadata={"name": name, "weights_sha256": table.weights_sha256},
        native=options.native,
        runtimes=options.runtimes,
        smallest=options.smallest,
        examples=_calibration(subject) if target.calibrates else (),
    )
    known = _known(run, reporter)
    file, written = job.path, target.write(job)
    checks = {}
    if options.check and runtimes:
        examples = first_examples(subject.evaluation, options.check)
        loaded = batches(examples, min(options.batch_size, len(examples)))
        runners = {
            runtime: target.programs[runtime](file, subject.network) for runtime in runtimes
        }
        with reporter.bar(f"Checking in {' and '.join(runners)}", "batches"):
            checks = _checked(runners, reference, loaded, options.repeats)
        if options.format == "onnx" and (warning := overflow_warning(coded, [*runners])):
            reporter.say(warning)
    record = Exported(
        format=options.format,
        file=str(file.relative_to(run.plan_folder)),
        file_sha256=file_sha256(file),
        allocation=coded.allocation,
        name=name,
        size_bytes=expected_bytes(coded),
        payload_bytes=written.payload_bytes,
        file_bytes=file.stat().st_size,
        widened=dict(written.widened),
        widened_bytes=written.widened_bytes,
        reason=written.reason if written.widened else "",
        left_out=[*written.left_out, *_untold(options)],
        placement=coded.activations.placement,
        checks=checks,
    )
    Exports(
        weights_sha256=run.layers.weights_sha256,
        device=jax.devices()[0].device_kind,
        versions=versions("jax", "flax"),
        files=known | {f"{options.format}/{name}": record},
    ).write(run.file(EXPORT))
    reporter.say(f"Wrote {file} and {run.file(EXPORT)}")
    return record


def _known(run: RunFolder, reporter: Reporter) -> dict[str, Exported]:
    """The files that were written before; none where the record of them is stale or spoilt."""
    try:
        return {} if run.exports is None else dict(run.exports.files)
    except ValueError as error:
        reporter.say(f"{error} It is begun anew.")
        return {}


def _calibration(subject: Subject) -> list[PyTree]:
    """Calibration inputs, one batch."""
    examples = first_examples(subject.calibration, RANGE_EXAMPLES)
    return [batch.inputs for batch in batches(examples, len(examples))]


def _untold(options: Export) -> list[str]:
    """What no file of a format tells."""
    if options.finetuned and not TARGETS[options.format].programs and options.format != "aimet":
        return [f"Trained weights: not in the file; give them to {options.format} yourself."]
    return []


def _chosen(
    run: RunFolder, options: Export, subject: Subject, reporter: Reporter
) -> tuple[str, Coded, Runner]:
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
        return FLOAT, unquantized(network), float_runner(network)
    planned = run.planned(options.allocation)
    corrections = _corrections(run, options, subject, planned.allocation, reporter)
    coded = take_codes(network, quantizers, planned.allocation, corrections)
    return planned.name, coded, _evaluation(coded, quantizers)


def _corrections(
    run: RunFolder,
    options: Export,
    subject: Subject,
    allocation: Allocation,
    reporter: Reporter,
) -> Corrections:
    """Corrections of an allocation: those that the evaluation of the plan found for it."""
    kind, count = options.correct, Evaluate().correct_examples
    if kind is None:
        kind = "none"
        try:
            if run.is_evaluated:
                kind, count = run.evaluation.correct, run.evaluation.correct_examples
        except ValueError as error:
            reporter.say(f"{error} No correction is taken from it.")
    if kind == "none":
        return {}
    examples = first_examples(subject.calibration, count)
    network, names = subject.network, [layer.name for layer in subject.network.layers]
    inputs = jax.tree.map(jnp.asarray, batches(examples, len(examples))[0].inputs)
    bits = map(jnp.asarray, bit_arrays(names, [allocation])[0])
    reporter.say(f"Outputs are corrected by {kind} on {len(examples)} calibration examples.")
    moments = output_moments(network, inputs)
    find = jax.jit(find_corrections, static_argnames="kind")
    return find(network, subject.quantizers, *bits, inputs, moments, kind=kind)


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


def _checked(
    runners: Mapping[str, tuple[Runner, Runner]],
    reference: Runner,
    loaded: Sequence[Batch],
    repeats: int,
) -> dict[str, Checked]:
    """Agreement in every runtime, and processor time of all artifacts in turn."""
    both = {
        (runtime, what): runner
        for runtime, pair in runners.items()
        for what, runner in zip((EXPORTED_FILE, FLOAT), pair, strict=True)
    }
    times = {
        str(size): cpu_milliseconds(both, first_rows(loaded[0].inputs, size), repeats=repeats)
        for size in BATCH_SIZES
    }
    found = {}
    for runtime, (runner, _) in runners.items():
        agreement = dataclasses.asdict(compare(runner, reference, loaded))
        found[runtime] = Checked(
            version=versions(runtime)[runtime],
            options=runtime_options(runtime),
            agreement={k: None if x is None else float(x) for k, x in agreement.items()},
            cpu_ms={
                size: {what: own[runtime, what] for what in (EXPORTED_FILE, FLOAT)}
                for size, own in times.items()
            },
        )
    return found
