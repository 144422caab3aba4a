"""The loop over batches that serves all metrics."""

import dataclasses
import itertools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from jmpq.data.batches import check_finite
from jmpq.data.stream import Stream
from jmpq.devices import shared_journal, to_host
from jmpq.formats import Choice
from jmpq.sensitivity.batch_memory import PassMemory, Placement, cuts, estimate_memory
from jmpq.sensitivity.calibration_batches import batch_sizes, checked_batches
from jmpq.sensitivity.metric import Metric, Prepares
from jmpq.sensitivity.metrics.by_name import check_output
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.sensitivity.table import Sensitivity, choice_members


def analyse(
    moves: MoveNetwork,
    metric: Metric,
    batches: Sequence[tuple[PyTree, Any]],
    choices: Sequence[Choice],
    *,
    seed: int = 0,
    mesh: Mesh | None = None,
    memory_bytes: int | None = None,
    announce: Callable[[PassMemory | None], None] | None = None,
    partial: pathlib.Path | None = None,
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
        seed: Decides random probes, batch by batch.
        mesh: Devices over which the examples of a batch are spread (`device_mesh`); the same
            result up to rounding. With several processes each calls this with the same
            arguments and gets the result; process 0 alone writes `partial`.
        memory_bytes: Most that a pass may take on one device, as `estimate_memory` foretells
            it: the batches of an additive metric are cut into parts that fit. No limit by
            default.
        announce: Called before the start with what a pass takes, or None where the metric
            does not tell.
        partial: File of a journal of finished batches: those of the same analysis
            (`analysis_identity`) are not computed again. A metric that `Prepares` keeps a
            ``*.prepared`` beside it.
        provenance: Identity of network, data and quantizers (a partial file of another one
            is not used), kept in the result.
        progress: Called with (finished batches, all batches); before, by a metric that
            `Prepares`, with its own steps.

    Raises:
        ValueError: If there is no example or no move, labels do not fit the network's output
            (`jmpq.training.labels.check_labels`), not even one example fits into the memory, a
            term is NaN or infinite (the layer is named), or there is one batch where the
            metric asks for a spread over them.
    """
    if not batches or not moves.moves:
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
    if about.kl:
        output = jax.eval_shape(moves.network.logits, batches[0][0]).shape[1:]
        check_output(about.name, output)
    loss = None if about.kl else getattr(metric, "loss", None)
    batches = checked_batches(batches, moves.network, loss)
    sizes = batch_sizes(batches)
    identity = analysis_identity(
        moves, metric, batches, choices, seed=seed, provenance=provenance
    )
    moves.quantizers.check_network(moves.network)
    layers = tuple(layer.name for layer in moves.network.layers)
    members = choice_members(layers, choices, moves.moves)
    journal, sums = shared_journal(partial, identity), _Sums()

    key, total = jax.random.key(seed), len(batches)
    place, most = Placement(moves, mesh), max(sizes)  # examples of a pass on each device
    if memory_bytes is not None or announce is not None:
        memory = estimate_batch(metric, moves, batches, mesh=mesh, memory_bytes=memory_bytes)
        most = most if memory is None else memory.examples
        if announce is not None:
            announce(memory)
    ready, told = metric, {}
    if isinstance(metric, Prepares):
        start = time.perf_counter()
        path = partial and partial.with_name(f"{partial.name}.prepared")
        finished = shared_journal(path, identity)
        placed = Stream(tuple(sizes), lambda i: place(*batches[i]))
        prepared = metric.prepare(moves, placed, key, progress=progress, journal=finished)
        ready, seconds = prepared.metric, time.perf_counter() - start
        told = {"prepared": prepared.record, "prepare_seconds": seconds, "note": prepared.note}
    progress(len(journal.keys), total)
    for index in range(total):
        if (entry := journal.get(str(index))) is not None:
            sums.add(entry.value, entry.arrays, members)
            continue
        start = time.perf_counter()
        inputs, targets = batches[index]
        check_finite((inputs, targets), "the calibration examples")
        batch_key = jax.random.fold_in(key, index)
        first, second, samples = _batch_terms(ready, place, inputs, targets, batch_key, most)
        _check_finite(about.name, moves, first, second)
        terms = {"first": first, "second": second}
        if samples.ndim:
            terms["variance"] = _sampling_variance(samples, members)
        seconds = time.perf_counter() - start
        batch = {"examples": int(targets.shape[0]), "seconds": seconds}
        journal.keep(str(index), batch, terms)
        sums.add(batch, terms, members)
        progress(index + 1, total)
    weight = sum(sums.examples)
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
            **identity,
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
        "metric": _options(metric),
        "batches": batch_sizes(batches),
        "moves": [list(move) for move in moves.moves],
        "choices": [choice.label for choice in choices],
        "seed": seed,
        **(provenance or {}),
    }


def _batch_terms(
    metric: Metric, place: Placement, inputs: PyTree, targets: Any, key: Array, most: int
) -> list[np.ndarray]:
    """First and second terms of one batch and its samples, float64 on the host.

    If the metric allows it, the batch goes in parts (see `cuts`).
    """
    count, additive = targets.shape[0], metric.about.additive
    ends = cuts(count, place.size, most) if additive else [0, count]
    key = jax.random.split(key, count) if additive else key
    means = [np.zeros(()), np.zeros(()), np.zeros(())]
    for part in itertools.starmap(slice, itertools.pairwise(ends)):
        here = jax.tree.map(lambda x, part=part: x[part], (inputs, targets))
        terms = metric(*place(*here), key[part] if additive else key)
        share = (part.stop - part.start) / count
        for i, term in enumerate(terms):
            if term is not None:
                means[i] = means[i] + share * to_host(term).astype(np.float64)
    return means


def estimate_batch(
    metric: Metric,
    moves: MoveNetwork,
    batches: Sequence[tuple[PyTree, Any]],
    *,
    mesh: Mesh | None = None,
    memory_bytes: int | None = None,
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
    return f"{option.__module__}.{option.__qualname__}" if callable(option) else option


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
        self, batch: Mapping[str, Any], terms: Mapping[str, np.ndarray], members: np.ndarray
    ) -> None:
        """Add the next batch: its examples and seconds, and its terms."""
        count, first, second = batch["examples"], terms["first"], terms["second"]
        self.first, self.second = self.first + count * first, self.second + count * second
        self.examples.append(count)
        self.seconds.append(batch["seconds"])
        self.batch_first.append(members @ first)
        self.batch_second.append(_of_choices(second, members))
        if "variance" in terms:
            self.batch_variance.append(terms["variance"])


def _sampling_variance(samples: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Variance of every choice's loss by sampling; NaN from a single sample."""
    losses = np.array([_of_choices(sample, members) for sample in samples])
    few = len(losses) < 2
    spread = np.full_like(losses[0], np.nan) if few else losses.var(axis=0, ddof=1)
    return spread / len(losses)


def _of_choices(second: np.ndarray, members: np.ndarray) -> np.ndarray:
    """½ eᵀSe of every layer's choices."""
    if second.ndim == 1:
        return 0.5 * (members @ second)
    return 0.5 * np.einsum("icm,mk,ick->ic", members, second, members, optimize=True)


def _check_finite(name: str, moves: MoveNetwork, first: np.ndarray, second: np.ndarray) -> None:
    bad = ~np.isfinite(first) | ~np.isfinite(second.reshape(len(first), -1)).all(axis=1)
    if bad.all():
        raise ValueError(
            f"Metric {name!r} is NaN or infinite for every layer, as the network's own logits "
            "are. Check the weights and the normalisation of the inputs."
        )
    if bad.any():
        move = moves.moves[int(np.argmax(bad))]
        raise ValueError(
            f"Metric {name!r} is NaN or infinite at layer {move.layer!r} "
            f"({move.kind}{move.bits}). Check this layer's weights and inputs for huge values."
        )
