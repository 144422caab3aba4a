"""The interface of all metrics, and the loop over batches that serves them."""

import dataclasses
import pathlib
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jmpq.files import atomic_file, json_sha256
from jmpq.quantizers.choice import Choice
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.sensitivity.notes import Notes
from jmpq.sensitivity.result import Sensitivity, choice_members


class Terms(NamedTuple):
    """Means over one batch: first order, and the second-order matrix or its diagonal."""

    first: Float[Array, " moves"]
    second: Float[Array, "moves moves"] | Float[Array, " moves"]


@runtime_checkable
class Metric(Protocol):
    """A sensitivity metric: a frozen dataclass whose fields are its options.

    Its call is compiled by itself (``@functools.partial(jax.jit, static_argnums=0)``), so
    that a metric may also loop on the host over compiled parts.
    """

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str: ...

    @property
    def use_first(self) -> bool: ...

    def __call__(
        self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array
    ) -> Terms: ...


class Prepared(NamedTuple):
    """What a metric found in all batches: the metric to average, and values for people."""

    metric: Metric
    record: dict[str, Any]  # JSON values, kept in the provenance


@runtime_checkable
class NeedsAllBatches(Protocol):
    """A metric of which something is to be found in all batches before the first is added."""

    def prepare(
        self,
        moves: MoveNetwork,
        batches: Sequence[tuple[PyTree, Any]],
        key: Array,
        *,
        progress: Callable[[int, int], None],
        notes: Notes,
    ) -> Prepared: ...


def analyse(
    moves: MoveNetwork,
    metric: Metric,
    batches: Sequence[tuple[PyTree, Any]],
    choices: Sequence[Choice],
    *,
    seed: int = 0,
    partial: pathlib.Path | None = None,
    provenance: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sensitivity:
    """Average a metric over batches; finished batches survive an interruption.

    Args:
        moves: Network, quantizers and their moves.
        metric: What to compute.
        batches: (inputs, targets) of the calibration examples; sizes may differ.
        choices: Candidates of every layer.
        seed: Decides random probes, batch by batch.
        partial: File for the sums so far, rewritten after every batch; if it is there and
            fits, the analysis goes on from it. The caller removes it when the result is safe,
            and the ``*.notes.partial`` beside it that a metric which `NeedsAllBatches` leaves.
        provenance: What identifies network, data and quantizers (a partial file of another
            one is not used), kept in the result.
        progress: Called with (finished batches, all batches); before, by a metric that
            `NeedsAllBatches`, with its own steps.

    Raises:
        ValueError: If there is no example or no move, a term is NaN or infinite (the layer
            is named), or there is one batch where the metric asks for a spread over them.
    """
    if not batches or not moves.moves:
        raise ValueError(
            f"Nothing to analyse: {len(batches)} batches, {len(moves.moves)} moves. Give "
            "calibration examples and candidate bits below 32."
        )
    if getattr(metric, "spread", 0.0) and len(batches) < 2:
        raise ValueError(
            f"Metric {metric.name!r} takes the spread over batches, and there is one. Use a "
            "smaller batch size."
        )
    identity = {
        "metric": _options(metric),
        "batches": [int(targets.shape[0]) for _, targets in batches],
        "moves": [list(move) for move in moves.moves],
        "choices": [choice.label for choice in choices],
        "seed": seed,
        **(provenance or {}),
    }
    layers = tuple(layer.name for layer in moves.network.layers)
    members = choice_members(layers, choices, moves.moves)
    state = _State.resume(partial, json_sha256(identity))

    key, total = jax.random.key(seed), len(batches)
    ready, prepared = metric, {}
    if isinstance(metric, NeedsAllBatches):
        start = time.perf_counter()
        path = partial and partial.with_name(f"{partial.stem}.notes.partial")
        notes = Notes(path, json_sha256(identity))
        ready, record = metric.prepare(moves, batches, key, progress=progress, notes=notes)
        prepared = {"prepared": record, "prepare_seconds": time.perf_counter() - start}
    progress(state.done, total)
    for index in range(state.done, total):
        start = time.perf_counter()
        inputs, targets = batches[index]
        targets = jnp.asarray(targets)
        found = ready(moves, inputs, targets, jax.random.fold_in(key, index))
        first, second = (np.asarray(x, np.float64) for x in found)
        _check_finite(metric.name, moves, first, second)
        state.add(targets.shape[0], first, second, members, time.perf_counter() - start)
        if partial is not None:
            state.save(partial)
        progress(index + 1, total)
    weight = sum(state.examples)
    return Sensitivity(
        metric=metric.name,
        unit=metric.unit,
        layers=layers,
        choices=tuple(choices),
        moves=moves.moves,
        first=state.first / weight,
        second=state.second / weight,
        batch_first=np.array(state.batch_first),
        batch_second=np.array(state.batch_second),
        batch_examples=np.array(state.examples, np.float64),
        use_first=metric.use_first,
        spread=getattr(metric, "spread", 0.0),
        provenance={
            **identity,
            **prepared,
            "seconds": sum(state.seconds),
            "batch_seconds": state.seconds,
        },
    )


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
class _State:
    """Sums so far, and each finished batch's terms by choice."""

    fingerprint: str
    first: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(()))
    second: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(()))
    examples: list[int] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    batch_first: list[np.ndarray] = dataclasses.field(default_factory=list)
    batch_second: list[np.ndarray] = dataclasses.field(default_factory=list)

    @property
    def done(self) -> int:
        return len(self.examples)

    def add(
        self, count: int, first: np.ndarray, second: np.ndarray, members: np.ndarray, s: float
    ) -> None:
        self.first, self.second = self.first + count * first, self.second + count * second
        self.examples.append(count)
        self.seconds.append(s)
        self.batch_first.append(members @ first)
        if second.ndim == 1:
            quadratic = members @ second
        else:
            quadratic = np.einsum("icm,mk,ick->ic", members, second, members, optimize=True)
        self.batch_second.append(0.5 * quadratic)

    def save(self, path: pathlib.Path) -> None:
        with atomic_file(path) as file:
            arrays = {k: np.asarray(v) for k, v in vars(self).items()}
            np.savez(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def resume(cls, path: pathlib.Path | None, fingerprint: str) -> "_State":
        if path is None or not path.is_file():
            return cls(fingerprint=fingerprint)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                if str(stored["fingerprint"]) != fingerprint:
                    return cls(fingerprint=fingerprint)
                return cls(
                    fingerprint=fingerprint,
                    first=stored["first"],
                    second=stored["second"],
                    examples=stored["examples"].tolist(),
                    seconds=stored["seconds"].tolist(),
                    batch_first=list(stored["batch_first"]),
                    batch_second=list(stored["batch_second"]),
                )
        except (zipfile.BadZipFile, KeyError, ValueError, EOFError):
            return cls(fingerprint=fingerprint)


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
