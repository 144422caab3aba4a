"""Latency: seconds of every layer under every choice, in a runtime or by a hardware model."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator
from typing import Any

from jmpq.allocation import Allocation
from jmpq.data.batches import batches
from jmpq.export.check import first_rows
from jmpq.files import file_sha256, versions
from jmpq.formats import Choice
from jmpq.journal import Journal
from jmpq.latency.hardware import model_table, preset
from jmpq.latency.measure import host
from jmpq.latency.record import LatencyCheck, LatencyRecord, TimedAllocation, TimedNetwork
from jmpq.latency.runtimes import Runtime, runtime
from jmpq.latency.table import LatencyTable
from jmpq.latency.whole_networks import (
    MeasuredLatency,
    Timing,
    Told,
    measure_latency,
    time_allocations,
)
from jmpq.problem import PlannedAllocation
from jmpq.run.folder import LATENCY, LATENCY_CHECK, LATENCY_TABLE, PLAN, RunFolder
from jmpq.run.lock import writes
from jmpq.run.options import Latency
from jmpq.run.progress import QUIET, Reporter
from jmpq.run.subject import Subject, first_examples, load_subject
from jmpq.text import plural

FLOAT = "float"  # name of the unquantized network
_MODEL = "model:"

# What a measurement is made under, apart from the machine.
CONDITIONS = ("runtime", "clock", "batch_size", "threads")


@writes
def latency(
    folder: str | os.PathLike[str],
    options: Latency = Latency(),
    *,
    reporter: Reporter = QUIET,
) -> LatencyRecord | LatencyCheck:
    """Write ``latency.csv`` and ``latency.json``; or measure the solutions of a plan.

    Whole networks at a designed set of allocations are exported and timed in turns; one term a
    layer, and terms for borders between integer and float kernels, are fitted to them. From
    then on ``latency_s`` is a cost of every allocation and may have a budget.

    Args:
        folder: The run folder, with sensitivities; with a plan, to check it.
        options: Runtime of the networks, and the number of runs.
        reporter: Listens.

    Returns:
        The record; with ``check`` that of the plan's allocations, ``latency_check.json``.

    Raises:
        ImportError: If the runtime is not installed; it says which extra to install.
        NotExportable: If the network cannot be written as ONNX; it says which layer.
        ValueError: If artifacts do not belong together; it says which step to run again.
        FileNotFoundError: If a step is missing; it says which.
    """
    run = RunFolder(folder, plan=options.plan)
    if options.around is not None:
        return _around(run, options.around, reporter)
    if options.runtime.startswith(_MODEL):
        return _modelled(run, options, reporter)
    program = runtime(options.runtime)  # type: ignore[arg-type]  # options know the names
    return (_checked if options.check else _measured)(run, options, program, reporter)


def _modelled(run: RunFolder, options: Latency, reporter: Reporter) -> LatencyRecord:
    """The table of a hardware model."""
    name = options.runtime.removeprefix(_MODEL)
    model, source = preset(name, batch=options.batch_size)
    layers = run.layers.layers
    table = model_table(model, layers, _candidates(run))
    if lacking := [layer.name for layer in layers if not table.seconds[layer.name]]:
        raise ValueError(
            f"The hardware model {name} cannot run layer {lacking[0]!r} at any candidate: "
            "compute sensitivities with widths that it has."
        )
    return _write(run, options, reporter, table, f"{name}: {source}", None, None)


def _measured(
    run: RunFolder, options: Latency, program: Runtime, reporter: Reporter
) -> LatencyRecord:
    """The table of a runtime, from whole networks."""
    choices, subject = _candidates(run), load_subject(run)
    run.check_writable(LATENCY_TABLE)
    with _told(reporter) as told:
        found = measure_latency(
            subject.network,
            subject.quantizers,
            choices,
            _inputs(subject, options),
            program,
            networks=options.networks,
            held_out=options.held_out,
            timing=_timing(options),
            journal=_journal(run, options, subject, program),
            progress=told,
        )
    reporter.say(_accuracy(found))
    return _write(run, options, reporter, found.table, program.version, subject, found)


def _accuracy(found: MeasuredLatency) -> str:
    """What is known of the accuracy of a fitted table."""
    error, again = _known(found.held_out_error), _known(found.repeatability)
    return (
        "No network was held out, so that the error of the table is unknown; "
        if error is None
        else f"Mean error on {found.held_out} held-out networks {100 * error:.1f} %; "
    ) + (
        "how well a network is measured again takes two rounds or more."
        if again is None
        else f"measuring a network again differs by {100 * again:.1f} %."
    )


def _around(run: RunFolder, name: str, reporter: Reporter) -> LatencyRecord:
    """The table of the fitted model once more, exact at an allocation of the plan: at what
    ``latency_check.json`` measured of it, if it is there.
    """  # noqa: D205
    planned, record = run.planned(name), run.latency
    if record is None or (model := record.model) is None:
        raise ValueError(
            f"{run.file(LATENCY)} has no fitted model of {run.file(LATENCY_TABLE)}: run `jmpq "
            f"latency {run.path}` first."
        )
    (columns,) = model.columns([planned.allocation])
    measured = _seconds(run, record, planned)
    table = model.table(_candidates(run), around=columns, measured=measured)
    table.write(run.file(LATENCY_TABLE))
    anew = dataclasses.replace(record, table_sha256=file_sha256(run.file(LATENCY_TABLE)))
    anew.write(run.file(LATENCY))
    known = "predicted" if measured is None else "measured"
    reporter.say(f"Wrote {run.file(LATENCY_TABLE)} around {name}, as {known}: solve again.")
    return anew


def _conditions(values: tuple[Any, ...]) -> str:
    program, clock, batch_size, threads = values
    return f"{program}, {clock} time, batch {batch_size}, {plural(threads, 'thread')}"


def _seconds(run: RunFolder, record: LatencyRecord, planned: PlannedAllocation) -> float | None:
    """What was measured of an allocation, under the conditions of the fit."""
    if not (path := run.file(LATENCY_CHECK)).is_file():
        return None
    check = LatencyCheck.read(path)  # of whatever plan: a measurement is of its allocation
    same = (*CONDITIONS, "weights_sha256", "quantizers_sha256")
    timed = check.allocations.get(planned.name)
    if timed is None or timed.allocation != planned.allocation:
        return None
    if any(getattr(check, key) != getattr(record, key) for key in same):
        return None
    if check.host.get("processor") != record.host.get("processor"):
        return None
    return timed.cpu_s if record.clock == "cpu" else timed.wall_s


def _write(
    run: RunFolder,
    options: Latency,
    reporter: Reporter,
    table: LatencyTable,
    program: str,
    subject: Subject | None,
    found: MeasuredLatency | None,
) -> LatencyRecord:
    """The two files; `subject` and `found` are None of a hardware model."""
    table.write(run.file(LATENCY_TABLE))
    packages = () if found is None else ("jax", "onnx", options.runtime)
    fitted = {} if found is None or subject is None else _fitted(found, subject)
    record = LatencyRecord(
        table_sha256=file_sha256(run.file(LATENCY_TABLE)),
        weights_sha256=run.layers.weights_sha256,
        runtime=program,
        clock=options.clock,
        batch_size=options.batch_size,
        threads=options.threads,
        rounds=options.rounds,
        seed=options.seed,
        host=host(),
        versions=versions(*packages),
        layers=list(run.layers.names),
        **fitted,
    )
    record.write(run.file(LATENCY))
    reporter.say(f"Wrote {run.file(LATENCY_TABLE)} and {run.file(LATENCY)}")
    return record


def _fitted(found: MeasuredLatency, subject: Subject) -> dict:
    """What a record says of measured networks and of the model."""
    terms, model = found.model.terms, found.model
    uniform, fitted = len(terms.kernels), len(found.columns) - found.held_out
    rows = zip(
        found.columns.tolist(),
        found.timings.seconds("cpu").tolist(),
        found.timings.seconds("wall").tolist(),
        model.predict(found.columns).tolist(),
        strict=True,
    )
    return {
        "quantizers_sha256": subject.quantizers.sha256,
        "kernels": [kernel.label for kernel in terms.kernels],
        "edges": terms.edges.tolist(),
        "networks": [
            TimedNetwork(
                role="uniform" if i < uniform else "designed" if i < fitted else "held_out",
                kernels=kernels,
                cpu_s=cpu,
                wall_s=wall,
                predicted_s=predicted,
            )
            for i, (kernels, cpu, wall, predicted) in enumerate(rows)
        ],
        "unquantized_s": model.unquantized,
        "gains_s": model.gains.tolist(),
        "borders_s": model.borders.tolist(),
        "fit_error": found.fit_error,
        "held_out_error": _known(found.held_out_error),
        "table_error": _known(found.table_error),
        "repeatability": _known(found.repeatability),
    }


def _checked(
    run: RunFolder, options: Latency, program: Runtime, reporter: Reporter
) -> LatencyCheck:
    """The plan's solutions and uniform baselines as whole networks, beside the float one."""
    plan, record = run.plan, run.latency
    if record is not None and record.model is not None:
        asked = (program.version, options.clock, options.batch_size, options.threads)
        fitted = tuple(getattr(record, name) for name in CONDITIONS)
        if asked != fitted:
            raise ValueError(
                f"{run.file(LATENCY)} is of {_conditions(fitted)}, and the check asks for "
                f"{_conditions(asked)}: give the same options, so that what is measured can be "
                "held against what is predicted."
            )
        here, there = host()["processor"], record.host.get("processor")
        if here != there:
            raise ValueError(
                f"{run.file(LATENCY)} was measured on {there}, and this is {here}: run `jmpq "
                f"latency {run.path}` here first."
            )
    planned = [a for a in plan.allocations if _is_checked(a)]
    named = {FLOAT: Allocation({})} | {a.name: a.allocation for a in planned}
    different = list(dict.fromkeys(named.values()))
    run.check_writable(LATENCY_CHECK)
    subject = load_subject(run)
    with _told(reporter) as told:
        timings = time_allocations(
            subject.network,
            subject.quantizers,
            different,
            _inputs(subject, options),
            program,
            timing=_timing(options),
            journal=_journal(run, options, subject, program),
            progress=told,
        )
    model = None if record is None else record.model
    predicted = None if model is None else model.predict(model.columns(different))
    costs = {a.name: a.costs.get("latency_s") for a in planned}
    if (table := run.latency_table) is not None:
        costs[FLOAT] = table.unquantized
    cpu, wall = timings.seconds("cpu"), timings.seconds("wall")
    check = LatencyCheck(
        plan_sha256=run.sha256(PLAN),
        table_sha256=plan.latency_sha256,
        weights_sha256=run.layers.weights_sha256,
        quantizers_sha256=subject.quantizers.sha256,
        runtime=program.version,
        clock=options.clock,
        batch_size=options.batch_size,
        threads=options.threads,
        rounds=options.rounds,
        host=host(),
        versions=versions("jax", "onnx", program.name),
        allocations={
            name: TimedAllocation(
                allocation=allocation,
                cost_s=costs.get(name),
                predicted_s=None if predicted is None else float(predicted[i]),
                cpu_s=float(cpu[i]),
                wall_s=float(wall[i]),
            )
            for name, allocation in named.items()
            for i in [different.index(allocation)]
        },
        repeatability=_known(timings.repeatability(options.clock)),
    )
    check.write(run.file(LATENCY_CHECK))
    reporter.say(f"Wrote {run.file(LATENCY_CHECK)}")
    return check


def _is_checked(planned: PlannedAllocation) -> bool:
    return planned.role == "solution" or planned.asked == "uniform"


def _candidates(run: RunFolder) -> tuple[Choice, ...]:
    """The choices of the sensitivities."""
    return next(iter(run.sensitivities.tables.values())).choices


def _inputs(subject: Subject, options: Latency) -> object:
    """One batch of evaluation examples."""
    examples = first_examples(subject.evaluation, options.batch_size)
    return first_rows(batches(examples, len(examples))[0].inputs, options.batch_size)


def _timing(options: Latency) -> Timing:
    return Timing(
        rounds=options.rounds,
        threads=options.threads,
        clock=options.clock,
        seed=options.seed,
    )


def _journal(run: RunFolder, options: Latency, subject: Subject, program: Runtime) -> Journal:
    """What is measured, by all that it depends on."""
    of = {
        "network": run.layers.identity,
        "quantizers": subject.quantizers.sha256,
        "runtime": program.version,
        "versions": versions("jax", "onnx"),
        "batch_size": options.batch_size,
        "threads": options.threads,
        "processor": host()["processor"],
    }
    return Journal(run.store("latency", of), of)


@contextlib.contextmanager
def _told(reporter: Reporter) -> Iterator[Told]:
    """One bar after the other, by what is done."""
    with contextlib.ExitStack() as stack:
        bars = {}

        def told(what: str, done: int, total: int) -> None:
            if what not in bars:
                stack.pop_all().close()
                bars[what] = stack.enter_context(reporter.bar(what, "networks"))
            bars[what](done, total)

        yield told


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
