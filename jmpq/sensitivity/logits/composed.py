"""Composed logits: joint allocations predicted by composing what each move does to the logits.

A move is more than a vector that is added to the logits. Coarse kernels attenuate the signal
that passes through their layer, and with it the errors of the layers before; at two bits that
is most of what happens, and sums over moves (the quadratic form, superposed logits) miss it.
Here every move m is an affine map of the logits, fitted to what it does alone: the change

    u_m = z(δ_m) − z = z B_m + r_m,    B_m by ridge regression over the examples,

so that I + B_m is what the move transmits of the logits (linear in them, the same for all
examples) and r_m the rest, an error of its own for every example. Positions of an example are
rows of their own, with the weight that they have in its loss. Moves are composed in the
order of execution:

    q ← q + q B_m + r_m,    q = z at first,    predicted increase = loss(q) − loss(z).

Exact for every single move, whatever the loss; superposed logits are the case B_m = 0. It
costs the same forward passes, one a move, and allocations are predicted from the stored
changes without the network, and without JAX.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jmpq.allocation import Allocation, column_table
from jmpq.data.positions import counted
from jmpq.formats import Choice
from jmpq.kinds import check_kinds
from jmpq.sensitivity.logits.increases import Kind, Loss, increases
from jmpq.sensitivity.logits.superposed import MEMORY_BYTES, Superposed, in_chunks
from jmpq.sensitivity.table import NATS, Sensitivity, choice_members
from jmpq.text import printed

MOST_CLASSES = 64  # for which whole maps are fitted where nothing else is asked


@check_kinds
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Composed:
    """Predicts any joint allocation by composing the moves' maps of the logits.

    Attributes:
        superposed: The logit changes of every move alone.
        ridge: Weight of the penalty that draws B_m to a multiple of the identity (one
            attenuation of all classes), in units of the energy of one example's logits: with
            1 it counts as much as one more example. ``inf`` leaves one number per move, which
            is what many classes and few examples can support (`ridge_for`).

    Raises:
        ValueError: If `ridge` is not positive.
    """

    superposed: Superposed
    ridge: float = 1.0

    def __post_init__(self) -> None:
        if not self.ridge > 0:
            raise ValueError(f"ridge={self.ridge:g} must be positive, in examples.")

    def __repr__(self) -> str:
        return printed(
            f"Composed logits: maps of the logits by every move, ridge {self.ridge:g}",
            f"of {self.superposed!r}",
        )

    @functools.cached_property
    def maps(self) -> Float[np.ndarray, "moves classes classes"]:
        """B_m of every move, acting on rows of logits from the right, float64.

        With an infinite `ridge` ``[moves, 1, 1]``: multiples of the identity.
        """
        weights = np.sqrt(self._weights)[:, None]
        z = weights * self._rows.astype(np.float64)
        u = np.moveaxis(self.superposed.changes, 1, 0).astype(np.float64)
        u = weights * u.reshape(len(u), *z.shape)
        energy = float(np.vdot(z, z)) or 1.0  # logits that are all zero transmit nothing
        gains = np.einsum("nc,mnc->m", z, u)[:, None, None] / energy
        if math.isinf(self.ridge):
            return gains
        weight = self.ridge * energy / len(self.superposed.logits)
        identity = np.eye(z.shape[1])
        drawn = np.matmul(z.T, u) + weight * gains * identity
        return np.linalg.solve(z.T @ z + weight * identity, drawn)

    @property
    def _rows(self) -> Float[np.ndarray, "rows classes"]:
        """z, a row for every position of every example; of an output of one number that."""
        z = self.superposed.logits
        return z.reshape(-1, z.shape[-1] if z.ndim > 1 else 1)

    @property
    def _weights(self) -> Float[np.ndarray, " rows"]:
        """Weights of the rows: one an example, shared by the positions that count."""
        targets, positions = self.superposed.targets, self.superposed.logits.shape[1:-1]
        counts = counted(targets, (len(targets), *positions)) if positions else None
        if counts is None:
            return np.full(len(self._rows), len(targets) / len(self._rows))
        counts = np.asarray(counts, np.float64).reshape(len(targets), -1)
        return (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).ravel()

    @functools.cached_property
    def gains(self) -> Float[np.ndarray, " moves"]:
        """How much of the logits each move transmits: 1 + the mean diagonal of B_m."""
        return 1.0 + np.trace(self.maps, axis1=1, axis2=2) / self.maps.shape[1]

    @property
    def layers(self) -> tuple[str, ...]:
        return self.superposed.layers

    @property
    def choices(self) -> tuple[Choice, ...]:
        return self.superposed.choices

    def predict(
        self,
        allocations: Sequence[Allocation],
        kind: Kind = "kl",
        *,
        loss: Loss = "cross_entropy",
        memory_bytes: int = MEMORY_BYTES,
    ) -> Float[np.ndarray, " allocations"]:
        """Predicted increase of joint allocations: see `Superposed.predict`."""
        table = column_table(self.layers, self.choices, allocations)
        return self.predict_columns(table, kind, loss=loss, memory_bytes=memory_bytes)

    def predict_columns(
        self,
        table: Int[np.ndarray, "allocations layers"],
        kind: Kind = "kl",
        *,
        loss: Loss = "cross_entropy",
        memory_bytes: int = MEMORY_BYTES,
    ) -> Float[np.ndarray, " allocations"]:
        """`predict` for searches: of rows of columns of the choices, one per layer."""
        each = self.predict_examples(table, kind, loss=loss, memory_bytes=memory_bytes)
        return each.mean(axis=1)

    def predict_examples(
        self,
        table: Int[np.ndarray, "allocations layers"],
        kind: Kind = "kl",
        *,
        loss: Loss = "cross_entropy",
        memory_bytes: int = MEMORY_BYTES,
    ) -> Float[np.ndarray, "allocations examples"]:
        """`predict_columns`, example by example."""
        z, targets = self.superposed.logits, self.superposed.targets
        return in_chunks(
            lambda rows: increases(kind, loss, self.joint_logits(rows), z, targets),
            self.superposed.checked(table),
            self.superposed.allocations_per_chunk(memory_bytes),
        )

    def joint_logits(
        self, table: Int[np.ndarray, "allocations layers"]
    ) -> Float[np.ndarray, "allocations examples *output"]:
        """Predicted logits of allocations, rows of columns of the choices; all at once."""
        steps = np.arange(len(self._options))
        return self._logits(self._options[steps, table[:, self._layer]])

    def main_effects(
        self,
        batch_examples: Sequence[int],
        *,
        kind: Kind = "kl",
        loss: Loss = "cross_entropy",
        draws: int | None = None,
        seed: int = 0,
    ) -> Sensitivity:
        """The additive losses that come nearest to the composed prediction: a knapsack's.

        Least squares over random allocations: what a move adds on average over the choices
        of all other layers, where a Taylor term says what it adds to the float network. No
        measurement is needed: the allocations are predicted.

        Args:
            batch_examples: Number of examples in each batch, for the standard errors.
            kind: ``kl`` or ``loss``.
            loss: Loss of one example.
            draws: Random allocations, each choice of a layer equally often; 16 for every
                move where not given.
            seed: Seed of the allocations.

        Returns:
            Losses of every choice, nats per example. Where every layer always makes a move
            the constant of the fit is spread over the layers, so that sums are predictions;
            those of many bits may be negative.

        Raises:
            ValueError: If the batches do not add up to the examples, or there are fewer
                draws than moves.

        References:
            Sobol (1993), Sensitivity estimates for nonlinear mathematical models (main
            effects of a function of independent variables).
        """
        data = self.superposed
        if sum(batch_examples) != len(data.logits):
            raise ValueError(
                f"Batches of {sum(batch_examples)} examples in all, but {len(data.logits)} "
                "were measured."
            )
        moves = len(data.moves)
        draws = 16 * moves if draws is None else draws
        if draws < moves:
            raise ValueError(f"draws={draws}: {moves} moves take at least as many.")
        rng = np.random.default_rng(seed)
        even = np.arange(draws) % len(data.choices)
        table = np.stack([rng.permutation(even) for _ in data.layers], axis=1)
        predicted = self.predict_examples(table, kind, loss=loss)
        ends = np.cumsum([0, *batch_examples])
        means = np.stack([predicted[:, a:b].mean(axis=1) for a, b in itertools.pairwise(ends)])
        members = choice_members(data.layers, data.choices, data.moves)
        made = members[np.arange(len(data.layers)), table].sum(axis=1)
        gram = made.T @ made
        # Where every layer moves, columns are dependent: the least solution, up to rounding.
        gram += 1e-9 * np.trace(gram) / moves * np.eye(moves)
        effects = np.linalg.solve(gram, made.T @ means.T).T  # [batches, moves]
        weights = np.array(batch_examples, np.float64)
        return Sensitivity(
            metric="composed",
            unit=NATS,
            layers=data.layers,
            choices=data.choices,
            moves=data.moves,
            first=np.average(effects, axis=0, weights=weights),
            second=np.zeros(moves),
            batch_first=np.einsum("lcm,bm->blc", members, effects),
            batch_second=np.zeros((len(effects), *members.shape[:2])),
            batch_examples=weights,
            use_first=True,
            provenance={
                **data.provenance,
                "metric": {"class": "Composed", "ridge": self.ridge, "kind": kind},
                "draws": draws,
                "seed": seed,
            },
        )

    @functools.cached_property
    def _steps(self) -> list[tuple[str, str, list[int]]]:
        """(layer, kind, moves) in the order of execution: a layer's input, then its kernel."""
        steps: dict[tuple[str, str], list[int]] = {}
        for layer in self.superposed.layers:
            for kind in ("a", "w"):
                at = [
                    m
                    for m, move in enumerate(self.superposed.moves)
                    if (move.layer, move.kind) == (layer, kind)
                ]
                if at:
                    steps[layer, kind] = at
        return [(layer, kind, at) for (layer, kind), at in steps.items()]

    @functools.cached_property
    def _layer(self) -> Int[np.ndarray, " steps"]:
        return np.array([self.superposed.layers.index(layer) for layer, _, _ in self._steps])

    @functools.cached_property
    def _options(self) -> Int[np.ndarray, "steps choices"]:
        """Option of every step that a choice takes: 0 for no move, else 1 + its position."""
        table = np.zeros((len(self._steps), len(self.superposed.choices)), np.int32)
        for s, (_, kind, at) in enumerate(self._steps):
            bits = [self.superposed.moves[m].bits for m in at]
            for c, choice in enumerate(self.superposed.choices):
                wanted = (choice.weights if kind == "w" else choice.activations).number
                table[s, c] = bits.index(wanted) + 1 if wanted in bits else 0
        return table

    def _logits(
        self, taken: Int[np.ndarray, "allocations steps"]
    ) -> Float[np.ndarray, "allocations examples *output"]:
        """Logits after the options that every step takes, one step after another.

        Allocations that begin alike, as the neighbours of one do, share the steps until they
        differ.
        """
        maps, rests = self._maps_and_rests
        order = np.lexsort(taken.T[::-1])
        taken = taken[order]
        # Whether an allocation has differed from the one before it by a step.
        own = np.ones(taken.shape, bool)
        own[1:] = np.logical_or.accumulate(taken[1:] != taken[:-1], axis=1)
        q, prefix = self._rows[None].copy(), np.zeros(len(taken), int)  # row of each in q
        for options, begins, by_option, rest in zip(taken.T, own.T, maps, rests, strict=True):
            first = np.flatnonzero(begins)  # of those that begin alike
            if len(first) > len(q):
                q = q[prefix[first]]
                prefix = np.cumsum(begins) - 1
            change = _through(q, by_option[options[first]])
            change += rest[options[first]]
            q += change
        return q[prefix[np.argsort(order)]].reshape(-1, *self.superposed.logits.shape)

    @functools.cached_property
    def _maps_and_rests(
        self,
    ) -> tuple[
        Float[np.ndarray, "steps options map map"],
        Float[np.ndarray, "steps options rows classes"],
    ]:
        """B and r of all steps and options; option 0 changes nothing."""
        z = self._rows
        most = 1 + max(len(at) for _, _, at in self._steps)
        count = len(self._steps)
        maps = np.zeros((count, most, *self.maps.shape[1:]), z.dtype)
        rests = np.zeros((count, most, *z.shape), z.dtype)
        for s, (_, _, at) in enumerate(self._steps):
            for option, m in enumerate(at, start=1):
                maps[s, option] = self.maps[m]
                changes = self.superposed.changes[:, m].reshape(z.shape)
                rests[s, option] = changes - _through(z, self.maps[m])
        return maps, rests


def ridge_for(classes: int) -> float:
    """The `Composed.ridge` that so many classes can support: 1, or inf above `MOST_CLASSES`.

    A map has classes² numbers, which take as many products for every example of every
    prediction, and a few hundred examples do not determine more.
    """
    return 1.0 if classes <= MOST_CLASSES else math.inf


def _through(q: Any, maps: Any) -> Any:
    """Logits through maps ``[..., classes, classes]``, or multiples of it ``[..., 1, 1]``."""
    return q * maps if maps.shape[-1] == 1 else q @ maps
