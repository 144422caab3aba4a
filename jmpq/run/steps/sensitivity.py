"""Sensitivities: the predicted loss increase of every choice of every layer."""

import dataclasses
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jmpq.data.batches import batches
from jmpq.data.dataset import Split
from jmpq.data.positions import reference_logits
from jmpq.data.splits import calibration_split
from jmpq.data.stream import Stream
from jmpq.devices import is_main_process
from jmpq.files import versions
from jmpq.formats import UNQUANTIZED, Choice
from jmpq.journal import Journal
from jmpq.network.network import Network
from jmpq.problem import Pin, first_and_last
from jmpq.problem.rules import of_kernels
from jmpq.quantizers.spec import check_bits
from jmpq.run.artifacts import Sensitivities
from jmpq.run.calibrated import calibrated
from jmpq.run.compute import join_devices, parse_bytes
from jmpq.run.float_quality import FloatQuality, float_quality, guessing
from jmpq.run.folder import SENSITIVITY, SUPERPOSED, RunFolder
from jmpq.run.lock import writer_lock
from jmpq.run.loss import ZERO_FOR_KL, find_loss, loss_code, measured_loss, try_loss
from jmpq.run.network import check_targets, network_of
from jmpq.run.options import Compute
from jmpq.run.options import Sensitivity as Options
from jmpq.run.planning.predictions import SEARCHED_BY_KL, loss_to_predict
from jmpq.run.progress import QUIET, Reporter
from jmpq.sensitivity.analyse import analyse, journal_identity
from jmpq.sensitivity.batch_memory import PassMemory
from jmpq.sensitivity.calibration_batches import batch_sizes
from jmpq.sensitivity.logits.composed import Composed, ridge_for
from jmpq.sensitivity.logits.measure import measure_superposed
from jmpq.sensitivity.metrics.by_name import (
    OF_CLASSES,
    RIVALS,
    MetricName,
    check_output,
    make_metric,
)
from jmpq.sensitivity.metrics.measured_moves import float_logits
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.sensitivity.table import Sensitivity, load_sensitivities, save_sensitivities
from jmpq.training.losses import ExampleLoss


def sensitivity(
    folder: str | os.PathLike[str],
    options: Options = Options(),
    *,
    compute: Compute = Compute(),
    reporter: Reporter = QUIET,
) -> Sensitivities:
    """Predict losses of every layer and choice, nats per example; write ``sensitivity.npz``.

    Metric ``composed`` also writes ``superposed.npz``. What the store has is not computed
    again: scales and logit changes by bit-width, losses by metric, options and candidates. If
    interrupted, the same call resumes from the last finished batch.

    Args:
        folder: The run folder, with ``layers.json``.
        options: Metrics, candidates, examples and grids.
        compute: Devices, processes and memory.
        reporter: Listens.

    Raises:
        ValueError: If options do not fit each other, the network or the data, or a metric is
            not finite; it names the layer.
        FileNotFoundError: If there is no layer table, or the data are not there.
    """
    memory = None if compute.memory is None else parse_bytes(compute.memory)
    mesh = join_devices(compute)
    if not is_main_process():  # only process 0 writes
        return _sensitivity(RunFolder(folder), options, mesh, memory, QUIET)
    with writer_lock(folder, "sensitivity"):
        return _sensitivity(RunFolder(folder), options, mesh, memory, reporter)


def _sensitivity(
    run: RunFolder,
    options: Options,
    mesh: Mesh | None,
    memory: int | None,
    reporter: Reporter,
) -> Sensitivities:
    main = is_main_process()
    choices = options.choices
    loss, class_samples = _check(options)
    work = _Work(run, options, choices, loss, class_samples, mesh, memory, reporter)
    pinned = first_and_last(run.layers.names, choices)
    if lacking := [r.choice for r in pinned if isinstance(r, Pin) and r.choice not in choices]:
        reporter.say(
            f"{lacking[0].label} is not a candidate, and `jmpq solve` pins the first and last "
            "layer to it: add these bits, or solve with other --first-last-bits."
        )
    caches = [layer.name for layer in run.layers.layers if layer.kind == "cache"]
    if bool(caches) != bool(options.kv_formats):
        what = (
            f"Keys and values ({caches[0]}, ...) have no candidates: give --kv-formats, as "
            f"int4 int8 mxfp4, or leave out --kv-cache of `jmpq layers {run.path}`."
            if caches
            else "kv_formats are of keys and values, which have no rows in the layer table: "
            f"run `jmpq layers {run.path}` with --kv-cache first."
        )
        raise ValueError(what)
    origin = run.layers.origin  # read before anything that takes long
    if main:
        run.check_writable(SENSITIVITY)
    network, dataset = network_of(run)
    split, rest = calibration_split(
        dataset, options.calibration_from, examples=options.examples, seed=options.seed
    )
    check_targets(network, (split, rest), find_loss(measured_loss(options.loss)))
    for name in set(_metrics(options)) & set(OF_CLASSES):
        check_output(name, network.tap.jaxpr.outvars[0].aval.shape[1:])
    examples = batches(split, options.batch_size, last="keep")
    inputs, data = examples.map(lambda b: b.inputs), examples.map(lambda b: b[:2])
    drawn = {"split": split.record(), "batch_size": options.batch_size}
    quantizers = calibrated(run, network, options, inputs, drawn, reporter)
    provenance = {
        **origin,
        "calibration": split.record(),
        "quantizers_sha256": quantizers.sha256,
        "quantizers": {
            "weights": dataclasses.asdict(options.weights),
            "activations": dataclasses.asdict(options.activations),
        },
        "batch_size": options.batch_size,
        "loss": options.loss,
        **loss_code(options.loss),
        "versions": versions("jax", "jaxlib", "flax"),
    }
    alone = all(choice.activations.is_none for choice in of_kernels(choices))
    moves = MoveNetwork(network=network, quantizers=quantizers, only_caches=alone)
    if options.loss == "kl":  # the targets are the float network's own logits
        own = [
            reference_logits(np.asarray(float_logits(network, x)), np.asarray(labels))
            for x, labels in data
        ]
        data = Stream(inputs.sizes, lambda i: (inputs[i], own[i]))
    first, targets = data[0]
    try_loss(options.loss, loss, float_logits(network, first), jnp.asarray(targets))
    reporter.say(
        f"{len(network.layers)} layers, {len(choices)} choices, {len(moves.moves)} moves; "
        f"{len(split)} examples of the {split.source} split in {len(data)} batches"
        f"{'' if mesh is None else f' on {mesh.size} devices'}."
        f"{f' {split.dataset}: {split.note}.' if split.note else ''}"
    )
    if main:
        _say_float_quality(work, network, split, provenance)
    earlier = _earlier(run, choices, provenance)
    tables = {}
    for name in _metrics(options):
        start = time.perf_counter()
        make = _composed if name == "composed" else _analysed
        tables[name] = make(work, name, moves, data, provenance)
        reporter.say(f"{name}: {time.perf_counter() - start:.1f} s with compilation")
        if note := tables[name].provenance.get("note"):
            reporter.say(f"{name}: {note}")
        _report_sampling(tables[name], reporter)
    tables |= {name: table for name, table in earlier.items() if name not in tables}
    if main:
        save_sensitivities(run.path / SENSITIVITY, tables, quantizers.to_arrays())
        for journal in run.path.glob(f".{SENSITIVITY}.*"):
            journal.unlink()
    reporter.say(f"Wrote {run.path / SENSITIVITY}")
    return Sensitivities(path=run.path / SENSITIVITY, tables=tables)


@dataclasses.dataclass(frozen=True)
class _Work:
    """What all metrics share."""

    run: RunFolder
    options: Options
    choices: tuple[Choice, ...]
    loss: ExampleLoss
    class_samples: int | Literal["all"]
    mesh: Mesh | None
    memory_bytes: int | None
    reporter: Reporter

    def identity(self, provenance: Mapping[str, Any]) -> dict[str, Any]:
        """What stored results of moves depend on, beside their scales."""
        examples = {key: provenance[key] for key in ("calibration", "batch_size", "versions")}
        return {"network": self.run.layers.identity, **examples}


def _say_float_quality(
    work: _Work, network: Network, split: Split, provenance: Mapping[str, Any]
) -> None:
    """Say what the float network does on the calibration examples, and what to doubt."""
    options = work.options
    loss = find_loss(measured_loss(options.loss))
    named = measured_loss(options.loss)
    of = work.identity(provenance) | {"loss": named, **loss_code(named)}
    journal = Journal(work.run.store("float", of), of)
    if (known := journal.get("quality")) is not None:
        found = FloatQuality(**known.value)
    else:
        padded = batches(split, min(options.batch_size, len(split)))  # one compilation
        found = float_quality(lambda x: float_logits(network, x), padded, loss)
        if math.isfinite(found.loss):
            journal.keep("quality", dataclasses.asdict(found))
    work.reporter.say(f"Float {found}.")
    classes = network.tap.jaxpr.outvars[0].aval.shape[-1]
    if warning := guessing(found.loss, found.top1, split, measured=loss, classes=classes):
        work.reporter.say(warning)


def _earlier(
    run: RunFolder, choices: Sequence[Choice], provenance: Mapping[str, Any]
) -> dict[str, Sensitivity]:
    """The metrics that the file already has of the same quantizers, examples and loss."""
    try:
        tables = load_sensitivities(run.path / SENSITIVITY)
    except (OSError, ValueError):
        return {}
    asked = json.loads(json.dumps(provenance))
    return {
        name: table
        for name, table in tables.items()
        if table.choices == tuple(choices)
        and all(table.provenance.get(key) == value for key, value in asked.items())
    }


def _metrics(options: Options) -> list[MetricName]:
    return list(dict.fromkeys((*options.metrics, *(RIVALS if options.rivals else ()))))


def _check(options: Options) -> tuple[ExampleLoss, int | Literal["all"]]:
    """The loss and the sampled classes; options are refused before anything is loaded."""
    for spec, widths in (
        (options.weights, options.w_schemes),
        (options.activations, options.a_schemes),
    ):
        for bits in widths:
            check_bits(spec, bits)
    loss = find_loss(options.loss)
    if options.loss == "kl":
        for name in _metrics(options):
            if name in ZERO_FOR_KL:
                raise ValueError(
                    f"Metric {name!r} is zero with --loss kl, whose gradient vanishes at the "
                    "float network. Leave it out, or choose another loss."
                )
    class_samples = "all" if options.class_samples is None else options.class_samples
    if class_samples != "all" and "gauss_newton" not in _metrics(options):
        raise ValueError("class_samples is for gauss_newton: add it to the metrics.")
    make_metric("gauss_newton", loss=loss, class_samples=class_samples)
    return loss, class_samples


def _analysed(
    work: _Work,
    name: Any,
    moves: MoveNetwork,
    data: Sequence[tuple[Any, Any]],
    provenance: dict[str, Any],
) -> Sensitivity:
    """One metric, averaged over batches."""
    metric = make_metric(
        name,
        loss=work.loss,
        traces=work.options.traces,
        probes=work.options.probes,
        qbert_spread=work.options.qbert_spread,
        class_samples=work.class_samples,
    )
    of = work.identity(provenance) | {"loss": work.options.loss, **loss_code(work.options.loss)}
    seed = work.options.seed
    known = journal_identity(metric, batch_sizes(data), seed=seed, of=of)
    with work.reporter.bar(f"{name:24s}", "batches") as progress:
        return analyse(
            moves,
            metric,
            data,
            work.choices,
            seed=seed,
            mesh=work.mesh,
            memory_bytes=work.memory_bytes,
            of_process=True,
            announce=lambda needed: work.reporter.say(f"{name}: {_in_words(needed)}"),
            partial=work.run.store(f"losses-{name}", known),
            of=of,
            provenance=provenance,
            progress=progress,
        )


def _composed(
    work: _Work,
    name: str,
    moves: MoveNetwork,
    data: Sequence[tuple[Any, Any]],
    provenance: dict[str, Any],
) -> Sensitivity:
    """Measure and write the logit changes of every move; return their main effects."""
    start, path = time.perf_counter(), work.run.path / SUPERPOSED
    of = work.identity(provenance)
    with work.reporter.bar(f"{name:24s}", "batches") as progress:
        measured = measure_superposed(
            moves,
            data,
            tuple(
                dict.fromkeys((*work.choices, UNQUANTIZED))
            ),  # of layers that a plan excludes
            loss=work.loss,
            mesh=work.mesh,
            process_bytes=work.memory_bytes,
            announce=lambda needed: work.reporter.say(f"{name}: {_in_words(needed)}"),
            partial=work.run.store("moves", of),
            of=of,
            provenance=provenance,
            progress=progress,
        )
    if is_main_process():
        measured.save(path)
    work.reporter.say(f"Wrote {path}: {measured.changes.nbytes / 1e6:.3g} MB")
    table = Composed(
        superposed=dataclasses.replace(measured, choices=work.choices),
        ridge=ridge_for(measured.logits[:1].shape[-1]),
    ).main_effects(
        batch_sizes(data),
        kind="kl" if work.options.loss in SEARCHED_BY_KL else "loss",
        loss=loss_to_predict(work.options.loss),
        seed=work.options.seed,
    )
    seconds = time.perf_counter() - start
    return dataclasses.replace(table, provenance={**table.provenance, "seconds": seconds})


def _in_words(needed: PassMemory | None) -> str:
    """What a pass takes, for people."""
    if needed is None:
        return "memory is not known before the start"
    examples = "1 example" if needed.examples == 1 else f"{needed.examples} examples"
    said = f"about {needed.bytes / 1e6:.3g} MB on each device, {examples} at a time"
    if needed.resident is None:
        return said
    return f"{said}; the process takes up to about {needed.resident / 1e6:.3g} MB"


def _report_sampling(table: Sensitivity, reporter: Reporter) -> None:
    if (sem := table.sampling_sem) is not None:
        share = 100 * np.linalg.norm(sem) / np.linalg.norm(table.losses)
        error = f"{share:.2g} % of the losses" if share < np.inf else "unknown"
        reporter.say(f"{table.metric}: standard error by sampled classes {error}")
