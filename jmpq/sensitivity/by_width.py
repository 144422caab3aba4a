"""Results of moves, batch by batch: bits that were there before are not computed again."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from jmpq.journal import Entry, Journal
from jmpq.quantizers.widths import restricted
from jmpq.sensitivity.batch_memory import Placement
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.sensitivity.table import Move


class Width(NamedTuple):
    """All moves of one kind and bit-width; their key tells scales and codes too."""

    kind: str
    bits: int
    key: str


class Made(NamedTuple):
    """What one pass gives: arrays whose first axis is the moves, and arrays that they share."""

    by_move: Mapping[str, np.ndarray]
    shared: Mapping[str, np.ndarray] = {}


class MoveResults:
    """Arrays of every move, from a journal as far as it has them.

    The moves that one pass computes for a batch are one record: after an interruption what is
    missing is computed by the program that would have computed it.

    Args:
        moves: Network, quantizers and their moves.
        journal: Records of the same network and examples.
        mesh: Devices over which the examples of a batch are spread.
    """

    def __init__(self, moves: MoveNetwork, journal: Journal, mesh: Mesh | None = None) -> None:
        self.moves, self.widths = moves, by_width(moves)
        self._journal, self._mesh = journal, mesh
        self._places: dict[tuple[Width, ...], Placement] = {}
        self._records: dict[tuple[int, str], str] = {}  # by batch and key of a width
        for record in journal.keys:
            batch, _, keys = record.partition(" ")
            self._records |= {(int(batch), key): record for key in keys.split(" ")}

    def lacking(self, batch: int) -> tuple[Width, ...]:
        """The widths whose moves are still to be made on a batch."""
        return tuple(w for w in self.widths if (batch, w.key) not in self._records)

    def place(self, widths: tuple[Width, ...]) -> Placement:
        """Puts the network with the moves of some widths alone where it belongs."""
        if widths not in self._places:
            whole = len(widths) == len(self.widths)
            alone = self.moves if whole else only(self.moves, widths)
            self._places[widths] = Placement(alone, self._mesh)
        return self._places[widths]

    def get(
        self, batch: int, compute: Callable[[Placement], Made]
    ) -> tuple[dict[str, np.ndarray], float]:
        """Arrays of all moves of a batch, and the seconds that they took.

        Args:
            batch: Index of the batch.
            compute: Makes the moves of the network that it is given.
        """
        records: dict[str, list[Width]] = {}
        for width in self.widths:
            if (record := self._records.get((batch, width.key))) is not None:
                records.setdefault(record, []).append(width)
        found: list[tuple[Entry, Sequence[Width]]] = []
        for record, widths in records.items():
            if (entry := self._journal.get(record)) is not None:
                found.append((entry, widths))
                continue
            for width in widths:  # spoilt
                del self._records[batch, width.key]
        if lacking := self.lacking(batch):
            start, place = time.perf_counter(), self.place(lacking)
            made = compute(place)
            value = {
                "moves": place.moves.moves,
                "by_move": list(made.by_move),
                "seconds": time.perf_counter() - start,
            }
            entry = Entry(value, {**made.by_move, **made.shared})
            record = " ".join([str(batch), *(width.key for width in lacking)])
            self._journal.keep(record, *entry)
            self._records |= {(batch, width.key): record for width in lacking}
            found.append((entry, lacking))
        seconds = sum(entry.value["seconds"] for entry, _ in found)
        return self._joined(found), seconds

    def _joined(self, found: Sequence[tuple[Entry, Sequence[Width]]]) -> dict[str, np.ndarray]:
        """All moves' rows, each from the record that its width was found in, and the rest."""
        arrays: dict[str, np.ndarray] = {}
        count = len(self.moves.moves)
        for entry, widths in found:
            to = [m for width in widths for m in self.widths[width]]
            rows = {Move(*move): i for i, move in enumerate(entry.value["moves"])}
            of = [rows[self.moves.moves[m]] for m in to]
            for name, array in entry.arrays.items():
                if name not in entry.value["by_move"]:
                    arrays.setdefault(name, array)
                    continue
                if name not in arrays:
                    arrays[name] = np.empty((count, *array.shape[1:]), array.dtype)
                arrays[name][to] = array[of]
        return arrays


def by_width(moves: MoveNetwork) -> dict[Width, list[int]]:
    """Indices of the moves of every width."""
    rows: dict[tuple[str, int], list[int]] = {}
    for m, move in enumerate(moves.moves):
        rows.setdefault((move.kind, move.bits), []).append(m)
    keyed = {}
    for (kind, bits), own in rows.items():
        used = ([bits], []) if kind == "w" else ([], [bits])
        key = f"{kind}{bits}:{moves.quantizers.sha256_at(*used)[:16]}"
        keyed[Width(kind, bits, key)] = own
    return keyed


def only(moves: MoveNetwork, widths: Sequence[Width]) -> MoveNetwork:
    """The same network with the moves of some widths."""
    bits = {kind: [each.bits for each in widths if each.kind == kind] for kind in "wa"}
    quantizers = restricted(moves.quantizers, bits["w"], bits["a"])
    return dataclasses.replace(moves, quantizers=quantizers)
