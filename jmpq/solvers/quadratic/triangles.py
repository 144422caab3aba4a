"""Triangle inequalities between sets of options of three groups, priced and found.

With x(S) the sum of indicators over a set S of options of one group, a 0 or a 1, every
allocation satisfies

    x(S)x(T) + x(S)x(U) − x(T)x(U) ≤ x(S)

for sets S, T, U of three groups, and complements give the other triangles. A relaxation of
y yᵀ with pairs of groups alone need not: it knows nothing of three groups at once. Cut number
k is a matrix with ⟨C_k, y yᵀ⟩ ≤ 0, so M + Σ price·C_k with prices ≥ 0 is nowhere above the
loss, and whatever bounds it bounds the loss.

References:
    Padberg (1989), The Boolean quadric polytope: some characteristics, facets and relatives;
    Sontag, Jaakkola (2007), New outer bounds on the marginal polytope (sets of values in place
    of single ones).
"""

import dataclasses
import functools
import itertools
import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jmpq.solvers.quadratic.lifted import Lifted, Matrix, Restriction

Sparse = Any  # a scipy.sparse.csr_array; scipy is imported where one is made

_TRIPLES = 40_000  # triples of groups looked at in a round; of more a random sample
_STARTS = 2  # choices of sets that a search for cuts starts from
_ROUNDS = 3  # times that each set is chosen anew
_VIOLATED = 2e-3  # least violation of a new cut
_NEW = 2000  # new cuts in a round, the most violated
_SLACK = 1e-3  # slack from which a cut without a price is dropped


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Triangles:
    """Cuts with their prices.

    Attributes:
        rows: Cuts by entries (r, c) of y yᵀ with r ≤ c, numbered r·size + c.
        prices: Price of every cut, nats per example.
        size: Length of y.
    """

    rows: Sparse
    prices: Float[np.ndarray, " cuts"]
    size: int

    @classmethod
    def none(cls, size: int) -> "Triangles":
        """No cuts."""
        rows = _csr((0, size**2), dtype=np.float32)
        return cls(rows=rows, prices=np.zeros(0), size=size)

    def at(self, prices: Float[np.ndarray, " cuts"]) -> "Triangles":
        """The same cuts at other prices."""
        return dataclasses.replace(self, prices=prices)

    def moved(
        self, prices: Float[np.ndarray, " cuts"], product: Matrix, step: float
    ) -> Float[np.ndarray, " cuts"]:
        """Prices after a step along the excess, at least 0."""
        return np.maximum(prices + step * self._steps * self.excess(product), 0.0)

    @functools.cached_property
    def _columns(self) -> Sparse:
        return _csr(self.rows.T)

    def excess(self, product: Matrix) -> Float[np.ndarray, " cuts"]:
        """Excess ⟨C_k, Y⟩ of every cut, at most 0 for Y = y yᵀ."""
        return self.rows @ product.ravel()

    def matrix(self, prices: Float[np.ndarray, " cuts"]) -> Matrix:
        """The sum of price·C_k, a symmetric form in y."""
        upper = (self._columns @ prices).reshape(self.size, self.size)
        own = np.diagonal(upper) / 3
        out = 0.5 * (upper + upper.T)
        # An option's share stands in three places of y yᵀ: a third of its weight at each.
        np.fill_diagonal(out, own)
        out[0, 1:] = out[1:, 0] = own[1:]
        return out

    @functools.cached_property
    def _steps(self) -> Float[np.ndarray, " cuts"]:
        """Step of every price, so short that the map from prices to excess has norm ≤ 1.

        References:
            Pock, Chambolle (2011), Diagonal preconditioning for first order primal-dual
            algorithms in convex optimization, lemma 2.
        """
        weights = np.full((self.size, self.size), 0.5, np.float32)
        np.fill_diagonal(weights, 1 / 3)
        size = abs(self.rows)
        through = weights.ravel() * (size.T @ np.ones(len(self.prices), np.float32))
        return 1 / np.maximum(size @ through, 1e-30)

    def restrict(self, to: Restriction) -> "Triangles":
        """The cuts of a part of the problem.

        A cut loses the options that are ruled out, whose indicators are 0. One with an option
        that is taken says no more about the rest than that products are not negative.
        """
        new = np.full(self.size, -1)
        new[to.rows] = np.arange(len(to.rows))
        taken = np.zeros(self.size, dtype=bool)
        taken[to.top[1:]] = True
        entries = self.rows.tocoo()
        cut, (row, column) = entries.row, np.divmod(entries.col, self.size)
        gone = np.zeros(len(self.prices), dtype=bool)
        gone[cut[taken[row] | taken[column]]] = True
        stays = (new[row] >= 0) & (new[column] >= 0) & ~gone[cut]
        size = len(to.rows)
        at = new[row[stays]] * size + new[column[stays]]
        shape = (len(self.prices), size**2)
        rows = _csr((entries.data[stays], (cut[stays], at)), shape=shape)
        rows = _csr(rows[~gone])
        return Triangles(rows=rows, prices=self.prices[~gone], size=size)

    def renewed(self, lifted: Lifted, product: Matrix, rng: np.random.Generator) -> "Triangles":
        """The cuts that bind at a matrix, and the most violated others that are found.

        Args:
            lifted: The problem.
            product: Relaxed y yᵀ, symmetric.
            rng: Random generator of the sets that the search starts from.
        """
        kept = (self.prices > 0) | (self.excess(product) > -_SLACK)
        found = _found(lifted, product, rng)
        rows = _csr(_sparse().vstack([self.rows[kept], found]))
        rows.sort_indices()
        new = np.zeros(len(rows.indptr) - 1 - kept.sum(), self.prices.dtype)
        prices = np.concatenate([self.prices[kept], new])
        ends = itertools.pairwise(rows.indptr)
        first = {rows.indices[a:b].tobytes(): k for k, (a, b) in reversed([*enumerate(ends)])}
        once = np.array(sorted(first.values()), dtype=np.int64)
        rows = _csr(rows[once])
        return Triangles(rows=rows, prices=prices[once], size=self.size)


def _found(lifted: Lifted, product: Matrix, rng: np.random.Generator) -> Sparse:
    """Violated cuts, by choosing one of the three sets at a time.

    The excess is linear in the indicators of each set, so the best S for given T and U is the
    options that add to it, and likewise for T and U.
    """
    # Options by group and rank, padded to the largest group with entries that are 0.
    options = len(lifted.of)
    counts = np.bincount(lifted.of, minlength=lifted.groups)
    slots = np.full((lifted.groups, int(counts.max(initial=0))), options)
    slots[lifted.of, np.arange(options) - np.searchsorted(lifted.of, lifted.of)] = np.arange(
        options
    )
    inner = np.zeros((options + 1, options + 1))
    inner[:-1, :-1] = product[1 : 1 + options, 1 : 1 + options]
    shares = np.diagonal(inner)[slots]
    blocks = inner[slots[:, None, :, None], slots[None, :, None, :]]
    parts = []
    triples = _triples(lifted.groups, rng)
    for turn in range(3):
        a, b, c = np.roll(triples, -turn, axis=1).T
        ab, ac, bc, own = blocks[a, b], blocks[a, c], blocks[b, c], shares[a]
        for start in range(_STARTS):
            if start == 0:
                t, u = (np.eye(slots.shape[1])[shares[g].argmax(axis=1)] for g in (b, c))
            else:
                t, u = rng.integers(2, size=(2, *own.shape)).astype(np.float64)
            s = np.zeros_like(t)
            for _ in range(_ROUNDS):
                s = _positive(_times(ab, t) + _times(ac, u) - own)
                t = _positive(_times(ab.swapaxes(1, 2), s) - _times(bc, u))
                u = _positive(_times(ac.swapaxes(1, 2), s) - _times(bc.swapaxes(1, 2), t))
            excess = (s * (_times(ab, t) + _times(ac, u) - own) - t * _times(bc, u)).sum(axis=1)
            at = np.flatnonzero(excess > _VIOLATED)
            parts.append((excess[at], *(each[at] for each in (a, b, c, s, t, u))))
    excess, *rest = (np.concatenate(each) for each in zip(*parts, strict=True))
    top = np.argsort(-excess, kind="stable")[:_NEW]
    return _rows(slots, len(product), *(each[top] for each in rest))


def _triples(groups: int, rng: np.random.Generator) -> Int[np.ndarray, "triples 3"]:
    if math.comb(groups, 3) <= _TRIPLES:
        every = itertools.chain.from_iterable(itertools.combinations(range(groups), 3))
        return np.fromiter(every, dtype=np.int64).reshape(-1, 3)
    drawn = np.sort(rng.integers(groups, size=(_TRIPLES, 3)), axis=1)
    return drawn[(drawn[:, 0] < drawn[:, 1]) & (drawn[:, 1] < drawn[:, 2])]


def _times(
    blocks: Float[np.ndarray, "triples rows columns"],
    sets: Float[np.ndarray, "triples columns"],
) -> Float[np.ndarray, "triples rows"]:
    return (blocks @ sets[:, :, None])[:, :, 0]


def _positive(
    adds: Float[np.ndarray, "triples choices"],
) -> Float[np.ndarray, "triples choices"]:
    return (adds > 1e-9).astype(np.float64)


def _rows(
    slots: Int[np.ndarray, "groups choices"],
    size: int,
    a: Int[np.ndarray, " cuts"],
    b: Int[np.ndarray, " cuts"],
    c: Int[np.ndarray, " cuts"],
    s: Float[np.ndarray, "cuts choices"],
    t: Float[np.ndarray, "cuts choices"],
    u: Float[np.ndarray, "cuts choices"],
) -> Sparse:
    """Cuts of three groups each, S in the first, as rows over the entries of y yᵀ."""
    one, other, third = (1 + slots[group] for group in (a, b, c))
    cuts, entries, weights = [], [], []
    pairs = ((one, s, other, t, 1.0), (one, s, third, u, 1.0), (other, t, third, u, -1.0))
    for left, some, right, others, weight in pairs:
        cut, p, q = np.nonzero(some[:, :, None] * others[:, None, :])
        row, column = left[cut, p], right[cut, q]
        entries.append(np.minimum(row, column) * size + np.maximum(row, column))
        cuts.append(cut)
        weights.append(np.full(len(cut), weight))
    cut, p = np.nonzero(s)
    cuts.append(cut)
    entries.append(one[cut, p] * (size + 1))
    weights.append(np.full(len(cut), -1.0))
    placed = (np.concatenate(cuts), np.concatenate(entries))
    values = np.concatenate(weights).astype(np.float32)
    return _csr((values, placed), shape=(len(a), size**2))


def _sparse() -> Any:
    import scipy.sparse  # what needs no cuts needs none of it

    return scipy.sparse


def _csr(*entries: Any, **options: Any) -> Sparse:
    return _sparse().csr_array(*entries, **options)
