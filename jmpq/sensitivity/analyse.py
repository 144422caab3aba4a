"""The loop over batches that serves all metrics."""

import dataclasses
import functools
import hashlib
import inspect
import pathlib
import time
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from jmpq.data.batches import check_pairs
from jmpq.data.stream import Stream
from jmpq.devices import shared_journal
from jmpq.formats import Choice
from jmpq.kinds import check_kinds
from jmpq.network.piecewise import ends_in_softmax
from jmpq.sensitivity.batch_memory import PassMemory, Placement, estimate_memory
from jmpq.sensitivity.batch_terms import BatchTerms, of_choices
from jmpq.sensitivity.calibration_batches import batch_sizes, checked_batches
from jmpq.sensitivity.metric import Metric, Prepares
from jmpq.sensitivity.metrics.by_name import check_output
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.sensitivity.table import Sensitivity
from jmpq.training.labels import WITHOUT_SOFTMAX
from jmpq.training.losses import cross_entropy


@check_kinds
def analyse(
    moves: MoveNetwork,
    metric: Metric,
    batches: Sequence[tuple[PyTree, Any]],
    choices: Sequence[Choice],
    *,
    seed: int = 0,
    mesh: Mesh | None = None,
    memory_bytes: int | None = None,
    of_process: bool = False,
    announce: Callable[[PassMemory | None], None] | None = None,
    partial: pathlib.Path | None = None,
    of: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sensitivity:
    """Average a metric over batches; finished batches survive an interruption.

    Args:
        moves: Network, quantizers and their moves.
        metric: Metric to compute.
        batches: (inputs, targets) of the calibration examples; sizes may differ. Asked for
            one by one and not kept. An attribute `sizes`, the number of examples in each,
            saves loading them all beforehand.
        choices: Candidates of every layer.
        seed: Seed of random probes, batch by batch.
        mesh: Devices over which the examples of a batch are spread (`device_mesh`); the same
            result up to rounding. With several processes each calls this with the same
            arguments and gets the result; process 0 alone writes `partial`.
        memory_bytes: Most that a pass may take on one device, as `estimate_memory` foretells
            it: the batches of an additive metric are cut into parts that fit. No limit by
            default.
        of_process: Whether `memory_bytes` bounds the whole process where devices are CPUs.
        announce: Callback, called with what a pass takes before the first one, or with None
            where the metric does not tell.
        partial: File of a journal of finished batches: those of the same metric, examples and
            moves are not computed again. Where the metric takes moves by themselves
            (`About.independent`, `FromChanges`) that is so for every bit-width, whatever
            others there are. A metric that `Prepares` keeps a ``*.prepared`` beside it.
        of: Identity of network and examples in the journal (one of something else is begun
            anew); the provenance by default.
        provenance: Identity of network, data and quantizers, kept in the result.
        progress: Callback, called with (finished batches, all batches); before, by a metric
            that `Prepares`, with its own steps.

    Raises:
        ValueError: If there is no example or no move, the network ends in a softmax where
            logits are asked for, labels do not fit its output
            (`jmpq.training.labels.check_labels`), not even one example fits into the memory, a
            term is NaN or infinite (the layer is named), or there is one batch where the
            metric asks for a spread over them.
    """
    if not len(batches) or not moves.moves:
        raise ValueError(
            f"Nothing to analyse: {len(batches)} batches, {len(moves.moves)} moves. Give "
            "calibration examples and candidate bits below 32."
        )
    about = metric.about
    if about.spread and len(batches) < 2:
        raise ValueError(
            f"Metric {about.name!r} takes the spread over batches, and there is one. Use a "
            "smaller batch size."
        )
    check_pairs(batches)
    if about.kl:
        output = moves.network.output_shape(batches[0][0], "the calibration examples")
        check_output(about.name, output)
    loss = None if about.kl else getattr(metric, "loss", None)
    if (about.kl or loss is cross_entropy) and ends_in_softmax(moves.network.tap):
        raise ValueError(f"The network's outputs are those of a softmax. {WITHOUT_SOFTMAX}")
    batches = checked_batches(batches, moves.network, loss)
    moves.quantizers.check_network(moves.network)
    layers = tuple(layer.name for layer in moves.network.layers)
    sizes = batch_sizes(batches)
    known = journal_identity(metric, sizes, seed=seed, of=of or provenance or {})
    journal = shared_journal(partial, known)
    terms_of = BatchTerms(metric, moves, choices, journal, mesh=mesh)
    terms_of.limit_store(lambda: batches[0], sum(sizes))
    key, total, told = jax.random.key(seed), len(batches), {}
    todo = terms_of.todo(range(total))
    if memory_bytes is not None or (announce is not None and todo):
        memory = estimate_batch(
            metric,
            todo or moves,
            batches,
            mesh=mesh,
            memory_bytes=memory_bytes,
            of_process=of_process,
        )
        terms_of.most = max(sizes) if memory is None else memory.examples
        if announce is not None:
            announce(memory)
    if isinstance(metric, Prepares):
        start = time.perf_counter()
        path = partial and partial.with_name(f"{partial.name}.prepared")
        finished, place = shared_journal(path, known), Placement(moves, mesh)
        placed = Stream(tuple(sizes), lambda i: place(*batches[i]))
        prepared = metric.prepare(moves, placed, key, progress=progress, journal=finished)
        terms_of.metric, seconds = prepared.metric, time.perf_counter() - start
        told = {"prepared": prepared.record, "prepare_seconds": seconds, "note": prepared.note}
    sums = _Sums()
    done = sum(terms_of.todo([n]) is None for n in range(total))
    progress(done, total)
    for index, examples in enumerate(sizes):
        was_done = terms_of.todo([index]) is None
        batch_key = jax.random.fold_in(key, index)
        terms, seconds = terms_of(index, lambda n=index: batches[n], batch_key)
        sums.add(examples, seconds, terms, terms_of.members)
        if not was_done:
            done += 1
            progress(done, total)
    weight = sum(sums.examples)
    if not (sums.first.any() or sums.second.any()):
        warnings.warn(
            f"Metric {about.name!r} is zero for every candidate of every layer: allocations "
            "chosen by it are arbitrary. Check the weights, and the loss: one without a slope, "
            "such as the number of errors, needs a metric that measures.",
            stacklevel=2,
        )
    return Sensitivity(
        metric=about.name,
        unit=about.unit,
        layers=layers,
        choices=tuple(choices),
        moves=moves.moves,
        first=sums.first / weight,
        second=sums.second / weight,
        batch_first=np.array(sums.batch_first),
        batch_second=np.array(sums.batch_second),
        batch_examples=np.array(sums.examples, np.float64),
        use_first=about.use_first,
        spread=about.spread,
        sampling_sem=sums.sampling_sem,
        provenance={
            **analysis_identity(
                moves, metric, batches, choices, seed=seed, provenance=provenance
            ),
            **told,
            "seconds": sum(sums.seconds),
            "batch_seconds": sums.seconds,
        },
    )


def analysis_identity(
    moves: MoveNetwork,
    metric: Metric,
    batches: Sequence[tuple[PyTree, Any]],
    choices: Sequence[Choice],
    *,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All that decides the result of `analyse`, as JSON; arguments are those of `analyse`."""
    return {
        "moves": [list(move) for move in moves.moves],
        "choices": [choice.label for choice in choices],
        **journal_identity(metric, batch_sizes(batches), seed=seed, of=provenance or {}),
    }


def journal_identity(
    metric: Metric, sizes: Sequence[int], *, seed: int, of: Mapping[str, Any]
) -> dict[str, Any]:
    """What all records of a journal of `analyse` share, whatever moves they are of."""
    return {"metric": _options(metric), "batches": list(sizes), "seed": seed, **of}


def estimate_batch(
    metric: Metric,
    moves: MoveNetwork,
    batches: Sequence[tuple[PyTree, Any]],
    *,
    mesh: Mesh | None = None,
    memory_bytes: int | None = None,
    of_process: bool = False,
) -> PassMemory | None:
    """Memory that `analyse` will take on each device for its largest batch.

    See `estimate_memory`.

    Raises:
        ValueError: If not even one example fits into the memory, or there is a limit and the
            metric does not tell what it compiles.
    """
    inputs, targets = batches[0]
    memory = estimate_memory(
        metric,
        Placement(moves, mesh),
        inputs,
        targets,
        count=max(batch_sizes(batches)),
        divisible=metric.about.additive,
        memory_bytes=memory_bytes,
        of_process=of_process,
    )
    if memory is None and memory_bytes is not None:
        raise ValueError(
            f"Metric {metric.about.name!r} loops on the host and does not tell what it "
            "compiles, so that no limit of memory can be kept. Leave out memory_bytes, or give "
            "the metric a method `programs`."
        )
    return memory


def _options(metric: Metric) -> dict[str, Any]:
    """Class and fields of a metric, functions by name: the same in every process."""
    fields = dataclasses.fields(metric)  # type: ignore[arg-type]
    values = {field.name: getattr(metric, field.name) for field in fields}
    return {"class": type(metric).__name__, **{k: _plain(v) for k, v in values.items()}}


def _plain(option: Any) -> Any:
    if dataclasses.is_dataclass(option) and not isinstance(option, type):
        return dataclasses.asdict(option)
    if isinstance(option, functools.partial):
        given = {name: _plain(value) for name, value in option.keywords.items()}
        return [_plain(option.func), [_plain(value) for value in option.args], given]
    if callable(option):
        named = option if hasattr(option, "__qualname__") else type(option)
        code = getattr(inspect.unwrap(option), "__code__", None)  # tells two lambdas apart
        made = "" if code is None else f" {hashlib.sha256(_code(code)).hexdigest()}"
        return f"{named.__module__}.{named.__qualname__}{made}"
    return option


def _code(code: types.CodeType) -> bytes:
    """The instructions of a function and their constants, those of functions in it too."""
    parts = [code.co_code, repr(code.co_names).encode()]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            parts.append(_code(constant))
        else:  # sets have no order of their own
            plain = sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant
            parts.append(repr(plain).encode())
    return b"\0".join(parts)


@dataclasses.dataclass(kw_only=True)
class _Sums:
    """Sums over batches, and the terms of each of them by choice."""

    first: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(()))
    second: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(()))
    examples: list[int] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    batch_first: list[np.ndarray] = dataclasses.field(default_factory=list)
    batch_second: list[np.ndarray] = dataclasses.field(default_factory=list)
    batch_variance: list[np.ndarray] = dataclasses.field(default_factory=list)  # by sampling

    @property
    def sampling_sem(self) -> np.ndarray | None:
        """Standard error of the choices' losses by sampling alone."""
        if not self.batch_variance:
            return None
        weights = np.array(self.examples) / sum(self.examples)
        return np.sqrt(np.tensordot(np.square(weights), np.array(self.batch_variance), 1))

    def add(
        self,
        examples: int,
        seconds: float,
        terms: Mapping[str, np.ndarray],
        members: np.ndarray,
    ) -> None:
        """Add the terms of the next batch."""
        first, second = terms["first"], terms["second"]
        self.first = self.first + examples * first
        self.second = self.second + examples * second
        self.examples.append(examples)
        self.seconds.append(seconds)
        self.batch_first.append(members @ first)
        self.batch_second.append(of_choices(second, members))
        if "variance" in terms:
            self.batch_variance.append(terms["variance"])
