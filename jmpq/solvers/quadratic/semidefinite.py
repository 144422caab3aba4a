"""The doubly nonnegative relaxation of a quadratic knapsack, with a proven dual bound.

The matrix y yᵀ is positive semi-definite, satisfies every linear equation of y row by row, and
its block of two groups is a distribution over pairs of options. The relaxation keeps exactly
these properties:

    minimise ⟨M, Y⟩  subject to  Y = V R Vᵀ,  R ⪰ 0,  tr R ≤ T,  Y ∈ P

with orthonormal V whose range holds every y, and P the matrices whose blocks are such
distributions. Splitting Y from R leaves two easy steps, a projection onto P and one onto the
semi-definite cone, joined by a multiplier Z (alternating directions). *Any* Z proves a bound:

    loss ≥ min_{Y∈P} ⟨M + Z, Y⟩ − T·λ_max(VᵀZV),

so the proof does not depend on convergence. The bound is lowered by an estimate of rounding.

The run is mostly in single precision, the bound always in double. Where it pays, violated
`triangles` are added (`Relaxation.tighten`). Their prices change M in the bound, and follow the
excess of the cuts as Z follows the distance of Y from R.

References:
    Oliveira, Wolkowicz, Xu (2018), ADMM for the SDP relaxation of the QAP, sections 2 and 3
    (facial reduction, splitting, the safe bound); de Meijer, Sotirov, Wiegele, Zhao (2023),
    Partitioning through projections: strong SDP bounds for large graph partition problems
    (cuts within this splitting); Burer (2009), On the copositive representation of binary and
    continuous nonconvex quadratic programs.
"""

import dataclasses
import time
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

from jmpq.problem.problem import Reduced
from jmpq.solvers.quadratic.lifted import MARGIN, Lifted, Matrix, Restriction
from jmpq.solvers.quadratic.triangles import Triangles

_STEP = 1.618  # step of the multiplier; converges up to the golden ratio
_CHUNK = 20  # iterations between evaluations of the bound
_LOOKS = 10  # evaluations over which progress is measured
_RENEWED = 100  # iterations between searches for cuts
_SINGLE = 1e4  # largest entry, in units of the matrix, for single precision
_WORTH = 0.5  # part of the gap that cuts must close to be kept
_NEAR = 0.5  # weight of the last iterate in the projection, which steps of prices need


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Iterate:
    """State of the alternating directions, from which another run may start.

    Attributes:
        multiplier: Multiplier Z.
        product: Relaxed matrix Y.
        triangles: Cuts with prices; None if there shall be none.
        penalty: Penalty of the augmented Lagrangian; None for the default start.
    """

    multiplier: Matrix
    product: Matrix
    triangles: Triangles | None = None
    penalty: float | None = None

    def restrict(self, to: Restriction) -> "Iterate":
        """State for a part of the problem; any multiplier proves a bound there too."""
        return Iterate(
            multiplier=to.form(self.multiplier),
            product=to.part(self.product),
            triangles=None if self.triangles is None else self.triangles.restrict(to),
            penalty=self.penalty,
        )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Certificate:
    """Result of a run of the relaxation.

    Attributes:
        bound: Lower bound on the loss, nats per example.
        last: Last iterate.
        needs: Lower bound, per option, on the loss of allocations that take it.
        value: Value ⟨M, Y⟩ of the last iterate, an estimate of the limit; not a bound.
        iterations: Number of iterations.
    """

    bound: float
    last: Iterate
    needs: Float[np.ndarray, " options"]
    value: float
    iterations: int


class Relaxation:
    """The relaxation of one lifted problem; `solve` improves the multiplier."""

    def __init__(self, lifted: Lifted) -> None:
        self.lifted = lifted
        self.basis = _basis(lifted)
        left, most = lifted.left_with, np.maximum(lifted.most_left, 0.0)
        # y holds a 1, one indicator a group, and slacks of at most `most`: its squared norm.
        self.least_trace = 1.0 + lifted.groups
        self.trace = self.least_trace + float(((most + MARGIN) ** 2).sum())
        options, size = len(lifted.of), len(lifted.matrix)
        self.inner, self.budgets = slice(1, 1 + options), slice(1 + options, size)
        self.room = np.maximum(left, 0.0) + MARGIN  # of budget times option
        self.most = most + MARGIN
        # Options by group and rank, and pairs of groups by both ranks, padded to the largest
        # group: `real` and `pair_real` tell which exist (and, of pairs, fit the budgets).
        choices = int(np.bincount(lifted.of).max())
        rank = np.arange(options) - np.searchsorted(lifted.of, lifted.of)
        self.slots = np.zeros((lifted.groups, choices), dtype=np.int64)
        self.real = np.zeros((lifted.groups, choices), dtype=bool)
        self.slots[lifted.of, rank] = np.arange(options)
        self.real[lifted.of, rank] = True
        a, b = np.triu_indices(lifted.groups, 1)
        row, column = self.slots[a][:, :, None], self.slots[b][:, None, :]
        both = self.real[a][:, :, None] & self.real[b][:, None, :]
        both &= lifted.pair_fits()[row, column]
        self.pairs, self.pair_real = (a, b), both.reshape(len(a), choices**2)
        at = (1 + row) * size + (1 + column)
        self.at = at.reshape(self.pair_real.shape)  # entry of y yᵀ, numbered row by row
        self.pair_at = self.at[self.pair_real]

    def project(self, point: Matrix) -> Matrix:
        """The matrix of P nearest to a symmetric one.

        The constraints of P split into parts that share no entry, so each is projected
        separately.
        """
        out = np.zeros_like(point, order="C")
        # An option's share stands in three places, (x, x), (1, x) and (x, 1), which must agree:
        # nearest to the three is their mean, and of those the nearest distribution.
        own = (np.diagonal(point)[self.inner] + 2 * point[0, self.inner]) / 3
        shares = onto_simplex(np.where(self.real, own[self.slots], -np.inf))
        x = np.zeros(len(self.lifted.of))
        x[self.slots[self.real]] = shares[self.real]
        index = np.arange(1, 1 + len(x))
        # The block of two groups is a distribution over pairs; two options of one group never
        # come together, so the rest of a group's own block stays 0.
        shares = onto_simplex(np.where(self.pair_real, np.take(point, self.at), -np.inf))
        out.ravel()[self.pair_at] = shares[self.pair_real]
        out += out.T
        out[index, index] = out[0, self.inner] = out[self.inner, 0] = x
        out[0, 0] = 1.0
        if len(self.most):  # slacks are not negative, and no larger than what can be left
            out[self.budgets, 0] = np.clip(point[self.budgets, 0], 0.0, self.most)
            out[self.budgets, self.inner] = np.clip(
                point[self.budgets, self.inner], 0.0, self.room
            )
            out[:, self.budgets] = out[self.budgets].T
            out[self.budgets, self.budgets] = np.clip(
                point[self.budgets, self.budgets], 0.0, np.outer(self.most, self.most)
            )
        return out

    def certify(
        self, multiplier: Matrix, triangles: Triangles | None = None
    ) -> tuple[float, Float[np.ndarray, " options"]]:
        """The bound that Z proves, and a bound for allocations with each option.

        For Y = y yᵀ of an allocation, ⟨M, Y⟩ = ⟨M + Z, Y⟩ − ⟨Z, Y⟩. The first is at least its
        minimum over P, one minimum a part; the second is ⟨VᵀZV, R⟩ with R ⪰ 0, at most the
        trace of R times the greatest eigenvalue.

        Args:
            multiplier: Multiplier Z.
            triangles: Cuts whose prices are added to M, which no allocation makes larger.
        """
        total = self.lifted.matrix + multiplier
        if triangles is not None:
            total += triangles.matrix(triangles.prices)
        groups = self.lifted.groups
        own = np.diagonal(total)[self.inner] + 2 * total[0, self.inner]
        own = np.where(self.real, own[self.slots], np.inf)
        blocks = np.where(self.pair_real, np.take(total, self.at), np.inf)
        blocks = 2 * blocks.reshape(len(blocks), *2 * self.real.shape[1:])  # and its mirror
        least = blocks.min(axis=(1, 2))
        # With an option taken, its group's own minimum and those of its pairs are over less.
        extra = own - own.min(axis=1, keepdims=True)
        a, b = self.pairs
        with np.errstate(invalid="ignore"):  # inf − inf where a whole block is ruled out
            np.add.at(extra, a, blocks.min(axis=2) - least[:, None])
            np.add.at(extra, b, blocks.min(axis=1) - least[:, None])
        terms = [total[0, 0], own.min(axis=1).sum(), least.sum()]
        if len(self.most):  # entries from 0 to a cap: the cap where that lowers the sum
            strip = total[self.budgets]
            terms.append(2 * (np.minimum(strip[:, 0], 0.0) * self.most).sum())
            terms.append(2 * (np.minimum(strip[:, self.inner], 0.0) * self.room).sum())
            corner = np.outer(self.most, self.most)
            terms.append((np.minimum(strip[:, self.budgets], 0.0) * corner).sum())
        curved = self.basis.T @ multiplier @ self.basis
        top = float(np.linalg.eigvalsh(0.5 * (curved + curved.T))[-1])
        # Not above 0, the eigenvalue weighs least at the least trace that an allocation has.
        trace = self.trace if top > 0 else self.least_trace
        # What rounding may have added: an estimate by the size of what was summed.
        size = np.abs(total).sum() / len(total) + np.linalg.norm(multiplier)
        rounding = 16 * np.finfo(np.float64).eps * (groups + 1) * size
        bound = float(sum(terms)) - trace * top - float(rounding)
        needs = np.empty(len(self.lifted.of))
        needs[self.slots[self.real]] = bound + np.nan_to_num(extra, nan=np.inf)[self.real]
        return bound, needs

    def barred(self, last: Iterate, upper: float) -> Bool[np.ndarray, "options options"]:
        """Pairs of options that only allocations of loss `upper` and more take together.

        With two options taken, the minima of their groups and of all pairs of groups with one
        of these are over less, and that of the two groups is a single entry.
        """
        bound, needs = self.certify(last.multiplier, last.triangles)
        of = self.lifted.of
        total = self.lifted.matrix + last.multiplier
        if last.triangles is not None:
            total += last.triangles.matrix(last.triangles.prices)
        both = 2 * total[self.inner, self.inner]
        both[~self.lifted.pair_fits() | (of[:, None] == of)] = np.inf
        first = np.searchsorted(of, np.arange(self.lifted.groups))
        least_with = np.minimum.reduceat(both, first, axis=1)  # of an option with a group
        least = np.minimum.reduceat(least_with, first, axis=0)
        with np.errstate(all="ignore"):  # inf − inf of a group with itself: not barred
            rise = (least_with - least[of])[:, of]
            together = (
                needs[:, None] + (needs - bound) - rise - rise.T + both - least[of][:, of]
            )
            return np.asarray(together >= upper)

    def solve(
        self,
        start: Iterate | None = None,
        *,
        upper: float = np.inf,
        deadline: float = np.inf,
        patience: float = 0.02,
        max_iterations: int = 100_000,
        meanwhile: Callable[[int], float] | None = None,
    ) -> Certificate:
        """Improve the multiplier until the bound reaches `upper` or stalls.

        Args:
            start: First iterate.
            upper: Loss of a known allocation; a higher bound is not needed.
            deadline: Time on the clock of `time.perf_counter`.
            patience: Least part of the gap to `upper` (or to the primal value) that 200
                iterations must close; otherwise the run stops.
            max_iterations: Largest number of iterations.
            meanwhile: Function that is called after every few iterations, with their number;
                it returns `upper` anew.

        Returns:
            The certificate. Cuts are added only if `start` has some, or an empty list of them.
        """
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):  # matrices this small are slower on several threads
            return self._solve(start, upper, deadline, patience, max_iterations, meanwhile)

    def _solve(
        self,
        start: Iterate | None,
        upper: float,
        deadline: float,
        patience: float,
        max_iterations: int,
        meanwhile: Callable[[int], float] | None,
    ) -> Certificate:
        raw = self.lifted.matrix
        # In units of the matrix, so that one first penalty suits all problems.
        curved = self.basis.T @ raw @ self.basis
        unit = max(float(np.linalg.norm(curved)) / len(raw), 1e-300)
        # Single precision finds a good multiplier, unless what all allocations share is far
        # larger than what they differ in.
        single = np.abs(raw).max() < _SINGLE * unit
        kind = np.float32 if single else np.float64
        basis, matrix = self.basis.astype(kind), (raw / unit).astype(kind)
        if start is None:
            # At Z = −M the bound is that of the cone alone; at 0 it is that of P alone, which
            # knows of no two pairs of groups at once and is far lower.
            start = Iterate(multiplier=-raw, product=basis @ basis.T)
        multiplier = (start.multiplier / unit).astype(kind)
        current = self.project(start.product.astype(kind))
        triangles, prices = start.triangles, np.zeros(0, kind)
        if triangles is not None:
            prices = (triangles.prices / unit).astype(kind)
        penalty = 0.5 if start.penalty is None else start.penalty
        rng, near = np.random.default_rng(0), 0.0 if triangles is None else _NEAR
        bound, needs = self.certify(start.multiplier, start.triangles)
        history, value, done = [bound], float((raw * current).sum()), 0
        while bound < upper and done < max_iterations and time.perf_counter() < deadline:
            if triangles is not None and done % _RENEWED == 0:
                priced = triangles.at(prices)
                triangles = priced.renewed(self.lifted, current, rng)
                prices = triangles.prices
            primal = dual = 0.0
            for _ in range(_CHUNK):
                # Minimise the augmented Lagrangian over the semi-definite cone: negative
                # eigenvalues go. The trace needs no bound here, only in the certificate.
                inner = basis.T @ (current + multiplier / penalty) @ basis
                values, vectors = np.linalg.eigh(0.5 * (inner + inner.T))
                kept = values > 0
                root = basis @ (vectors[:, kept] * np.sqrt(values[kept]))
                curved = root @ root.T
                # Then over P, with the cuts' part of the Lagrangian replaced by its gradient at
                # the last iterate, which is good only near it. The multipliers of both follow.
                pull = matrix + multiplier
                if triangles is not None:
                    ahead = triangles.moved(prices, current, near * penalty)
                    pull += triangles.matrix(ahead)
                following = self.project(
                    (curved + near * current - pull / penalty) / (1.0 + near)
                )
                multiplier = multiplier + _STEP * penalty * (following - curved)
                if triangles is not None:
                    prices = triangles.moved(prices, following, near * penalty)
                primal = float(np.linalg.norm(following - curved))
                dual = penalty * float(np.linalg.norm(following - current))
                current = following
            done += _CHUNK
            value = float((raw * current).sum())
            # Every multiplier proves its own bounds: the best of all are kept.
            if triangles is not None:
                triangles = triangles.at(unit * prices.astype(np.float64))
            proven, its_needs = self.certify(multiplier.astype(np.float64) * unit, triangles)
            needs, bound = np.maximum(needs, its_needs), max(bound, proven)
            history.append(bound)
            upper = upper if meanwhile is None else meanwhile(_CHUNK)
            # A penalty too low leaves the two apart, one too high hardly lets them move.
            penalty *= 1.3 if primal > 3 * dual else 1 / 1.3 if dual > 3 * primal else 1.0
            if len(history) > _LOOKS:
                goal = upper if np.isfinite(upper) else max(value, bound)
                if bound - history[-1 - _LOOKS] <= patience * (goal - bound):
                    break
        last = Iterate(
            multiplier=multiplier.astype(np.float64) * unit,
            product=current,
            triangles=triangles,
            penalty=penalty,
        )
        return Certificate(bound=bound, last=last, needs=needs, value=value, iterations=done)

    def tighten(
        self,
        plain: Certificate,
        *,
        upper: float = np.inf,
        deadline: float = np.inf,
        patience: float = 0.02,
        meanwhile: Callable[[int], float] | None = None,
    ) -> Certificate:
        """Go on with triangle inequalities; their bounds, and their cuts where they pay.

        They slow the iterations down. Where they close less than half of the gap, the state
        returned is the one without them, and so is that of all parts that start from it.

        Args:
            plain: Result of `solve` without them.
            upper: Loss of a known allocation, as in `solve`.
            deadline: Time limit, as in `solve`.
            patience: Least progress, as in `solve`.
            meanwhile: Function that is called after every few iterations, as in `solve`.
        """
        if plain.bound >= upper:
            return plain
        start = dataclasses.replace(
            plain.last, triangles=Triangles.none(len(self.lifted.matrix))
        )
        cut = self.solve(
            start, upper=upper, deadline=deadline, patience=patience, meanwhile=meanwhile
        )
        goal = upper if np.isfinite(upper) else max(plain.value, plain.bound)
        pays = cut.bound - plain.bound > _WORTH * (goal - plain.bound)
        return dataclasses.replace(
            cut,
            bound=max(plain.bound, cut.bound),
            needs=np.maximum(plain.needs, cut.needs),
            last=cut.last if pays else plain.last,
        )


def semidefinite_bound(
    reduced: Reduced, *, upper: float = np.inf, time_limit_s: float = 60.0
) -> float:
    """The doubly nonnegative relaxation's bound on the loss of every allocation.

    Args:
        reduced: The problem over groups; some allocation meets its budgets.
        upper: Loss of a known allocation; a higher bound is not needed.
        time_limit_s: Seconds for the alternating directions.
    """
    deadline = time.perf_counter() + time_limit_s
    lifted = Lifted.of_problem(reduced)
    if not lifted.groups:
        return float(lifted.matrix[0, 0])
    relaxation = Relaxation(lifted)
    plain = relaxation.solve(upper=upper, deadline=deadline, patience=0.005)
    return relaxation.tighten(plain, upper=upper, deadline=deadline, patience=0.005).bound


def onto_simplex(rows: Float[np.ndarray, "rows size"]) -> Float[np.ndarray, "rows size"]:
    """The distribution nearest to each row; entries of −inf are held at 0.

    References:
        Held, Wolfe, Crowder (1974), Validation of subgradient optimization, section 4.

    >>> onto_simplex(np.array([[0.5, 0.7, -np.inf], [2.0, 0.0, 0.0]])).round(9).tolist()
    [[0.4, 0.6, 0.0], [1.0, 0.0, 0.0]]
    """
    # The nearest distribution lowers all entries by one level and cuts at 0; the level is that
    # of the longest run of largest entries that all stay above it.
    finite = np.where(np.isfinite(rows), rows, -1e30)
    falling = -np.sort(-finite, axis=1)
    excess = np.cumsum(falling, axis=1) - 1.0
    counts = np.arange(1, rows.shape[1] + 1, dtype=rows.dtype)
    last = (falling * counts > excess).sum(axis=1) - 1
    level = excess[np.arange(len(rows)), last] / counts[last]
    return np.maximum(finite - level[:, None], 0.0)


def _basis(lifted: Lifted) -> Float[np.ndarray, "size rank"]:
    """Orthonormal basis of the span of all y: one option per group, slack = limit − cost."""
    options, groups = len(lifted.of), lifted.groups
    counts = np.bincount(lifted.of)
    rank = np.arange(options) - np.searchsorted(lifted.of, lifted.of)
    later = np.flatnonzero(rank > 0)
    # Equal shares in all groups, then in each group from every option to the one before: any
    # y is the first column, whose 1 it has, and a combination of such exchanges.
    span = np.zeros((len(lifted.matrix), 1 + options - groups))
    span[0, 0] = 1.0
    span[1 : 1 + options, 0] = 1.0 / counts[lifted.of]
    columns = np.arange(1, 1 + len(later))
    span[1 + later, columns] = 1.0
    span[later, columns] = -1.0  # the option before, of the same group
    # Slacks are affine in the options: limit (for the 1 of y) less cost.
    span[1 + options :] = -lifted.costs @ span[1 : 1 + options]
    span[1 + options :, 0] += lifted.limits
    return np.linalg.qr(span)[0]
