"""Terms of one batch: from the journal as far as it has them, computed where it has not."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from jmpq.data.batches import CHECK_LOGITS, check_finite
from jmpq.devices import to_host
from jmpq.files import json_sha256
from jmpq.formats import Choice
from jmpq.journal import Journal
from jmpq.sensitivity.batch_memory import Placement, cuts
from jmpq.sensitivity.by_width import Made, MoveResults
from jmpq.sensitivity.metric import Changes, FromChanges, Metric
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.sensitivity.table import Move, choice_members

# Most that the changes of a `FromChanges` may take on disk; of more only the terms are kept.
STORED_BYTES = 2**30

Batch = tuple[PyTree, Any]
Load = Callable[[], Batch]


class BatchTerms:
    """Terms of a batch by any metric: kept move by move where the metric allows it.

    Args:
        metric: The metric, prepared.
        moves: Network, quantizers and their moves.
        choices: Candidates of every layer.
        journal: Records of the same metric, network and examples.
        mesh: Devices over which the examples of a batch are spread.

    Attributes:
        most: Examples of a pass on each device; to be set before the first call.
    """

    def __init__(
        self,
        metric: Metric,
        moves: MoveNetwork,
        choices: Sequence[Choice],
        journal: Journal,
        *,
        mesh: Mesh | None = None,
    ) -> None:
        self.metric, self.moves, self.most = metric, moves, 2**62
        self._journal, self._place = journal, Placement(moves, mesh)
        layers = tuple(layer.name for layer in moves.network.layers)
        self.members = choice_members(layers, choices, moves.moves)
        self._results = MoveResults(moves, journal, mesh)
        self._by_move = metric.about.independent or isinstance(metric, FromChanges)
        whole = [[width.key for width in self._results.widths], [c.label for c in choices]]
        self._whole = json_sha256(whole)[:16]

    def limit_store(self, load: Load, examples: int) -> None:
        """Keep terms alone where changes of so many examples exceed `STORED_BYTES`."""
        metric, todo = self.metric, self.todo([0])
        if not (self._by_move and isinstance(metric, FromChanges)) or todo is None:
            return
        inputs, targets = load()
        key = self._keys(jax.random.key(0), targets.shape[0])
        made = jax.eval_shape(metric.move_changes, todo, inputs, targets, key).by_move
        each = math.prod(made.shape[2:]) * made.dtype.itemsize  # of a move and example
        self._by_move = each * len(self.moves.moves) * examples <= STORED_BYTES

    def todo(self, batches: Sequence[int]) -> MoveNetwork | None:
        """The network with those moves that are still to be made on a batch; None for none.

        Of several batches, where the most moves are.
        """
        if not self._by_move:
            known = set(self._journal.keys)
            return self.moves if any(self._key(n) not in known for n in batches) else None
        lacking = [lacking for n in batches if (lacking := self._results.lacking(n))]
        networks = [self._results.place(widths).moves for widths in set(lacking)]
        return max(networks, key=lambda moves: len(moves.moves), default=None)

    def __call__(
        self, index: int, load: Load, key: Array
    ) -> tuple[dict[str, np.ndarray], float]:
        """Terms of all moves, float64, and the seconds that their passes took.

        Args:
            index: Index of the batch.
            load: Function that returns inputs and targets; not called if nothing is to be
                computed.
            key: Random numbers of the batch.

        Returns:
            ``first``, ``second``, and ``variance`` of every choice by sampling, if any.
        """
        if not self._by_move:
            return self._all(index, load, key)
        compute = self._changes if isinstance(self.metric, FromChanges) else self._independent
        found, seconds = self._results.get(index, lambda place: compute(place, load, key))
        if not isinstance(self.metric, FromChanges):
            return found, seconds
        of = self.metric
        changes = Changes(np.moveaxis(found["changes"], 0, 1), found["shared"])  # type: ignore
        means = self._means(
            lambda _, changes, targets, key: of.terms(changes, targets),
            self._place,
            (changes, found["targets"]),
            key,
        )
        return self._terms(means, self.moves.moves), seconds

    def _all(self, index: int, load: Load, key: Array) -> tuple[dict[str, np.ndarray], float]:
        """Terms of all moves at once."""
        if (entry := self._journal.get(self._key(index))) is not None:
            return entry.arrays, entry.value["seconds"]
        start = time.perf_counter()
        means = self._means(self.metric, self._place, _checked(load), key)
        terms, seconds = self._terms(means, self.moves.moves), time.perf_counter() - start
        self._journal.keep(self._key(index), {"seconds": seconds}, terms)
        return terms, seconds

    def _independent(self, place: Placement, load: Load, key: Array) -> Made:
        """Terms of the moves of a network."""
        means = self._means(self.metric, place, _checked(load), key)
        return Made(self._terms(means, place.moves.moves))

    def _changes(self, place: Placement, load: Load, key: Array) -> Made:
        """What each move of a network does to each example."""
        assert isinstance(self.metric, FromChanges)
        parts = []
        inputs, targets = _checked(load)
        for _, here, keys in self._parts(place, (inputs, targets), key):
            made = self.metric.move_changes(*place(*here), keys)
            parts.append(tuple(map(to_host, made)))
        by_move, shared = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        by_move = np.moveaxis(by_move, 1, 0)
        _check_terms(self.metric, place.moves.moves, by_move)
        return Made({"changes": by_move}, {"shared": shared, "targets": np.asarray(targets)})

    def _means(
        self, call: Callable[..., Any], place: Placement, batch: Batch, key: Array
    ) -> list[np.ndarray]:
        """First and second terms and samples of a batch, float64 on the host."""
        means = [np.zeros(()), np.zeros(()), np.zeros(())]
        for share, here, keys in self._parts(place, batch, key):
            for i, term in enumerate(call(*place(*here), keys)):
                if term is not None:
                    means[i] = means[i] + share * to_host(term).astype(np.float64)
        return means

    def _parts(
        self, place: Placement, batch: Batch, key: Array
    ) -> Iterator[tuple[float, Batch, Array]]:
        """Parts of a batch that fit (see `cuts`), if the metric allows it, and their shares."""
        count, additive = batch[1].shape[0], self.metric.about.additive
        ends = cuts(count, place.size, self.most) if additive else [0, count]
        key = self._keys(key, count)
        for part in itertools.starmap(slice, itertools.pairwise(ends)):
            here = jax.tree.map(lambda x, part=part: x[part], batch)
            yield (part.stop - part.start) / count, here, key[part] if additive else key

    def _keys(self, key: Array, count: int) -> Array:
        return jax.random.split(key, count) if self.metric.about.additive else key

    def _terms(
        self, means: Sequence[np.ndarray], moves: Sequence[Move]
    ) -> dict[str, np.ndarray]:
        first, second, samples = means
        _check_terms(self.metric, moves, first, second)
        terms = {"first": first, "second": second}
        if samples.ndim:
            terms["variance"] = _sampling_variance(samples, self.members)
        return terms

    def _key(self, index: int) -> str:
        return f"{index} {self._whole}"


def of_choices(second: np.ndarray, members: np.ndarray) -> np.ndarray:
    """½ eᵀSe of every layer's choices."""
    if second.ndim == 1:
        return 0.5 * (members @ second)
    return 0.5 * np.einsum("icm,mk,ick->ic", members, second, members, optimize=True)


def _sampling_variance(samples: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Variance of every choice's loss by sampling; NaN from a single sample."""
    losses = np.array([of_choices(sample, members) for sample in samples])
    few = len(losses) < 2
    spread = np.full_like(losses[0], np.nan) if few else losses.var(axis=0, ddof=1)
    return spread / len(losses)


def _checked(load: Load) -> Batch:
    batch = load()
    check_finite(batch, "the calibration examples")
    return batch


def _check_terms(metric: Metric, moves: Sequence[Move], *by_move: np.ndarray) -> None:
    name = metric.about.name
    finite = [np.isfinite(x.reshape(len(moves), -1)).all(axis=1) for x in by_move]
    bad = ~np.all(finite, axis=0)
    if bad.all():
        raise ValueError(
            f"Metric {name!r} is NaN or infinite for every layer: the network's own logits or "
            f"its loss are. {CHECK_LOGITS}"
        )
    if bad.any():
        move = moves[int(np.argmax(bad))]
        raise ValueError(
            f"Metric {name!r} is NaN or infinite at layer {move.layer!r} "
            f"({move.kind}{move.bits}). Check this layer's weights and inputs for huge values."
        )
