"""The doubly nonnegative relaxation of a quadratic knapsack, with a proven dual bound.

y yᵀ is positive semi-definite, satisfies every linear equation of y row by row, and its block
of two groups is a distribution over pairs of options. The relaxation keeps just that:

    minimise ⟨M, Y⟩  subject to  Y = V R Vᵀ,  R ⪰ 0,  tr R ≤ T,  Y ∈ P

with orthonormal V whose range holds every y, and P the matrices whose blocks are such
distributions. Splitting Y from R leaves two easy steps, a projection onto P and one onto the
semi-definite cone, joined by a multiplier Z (alternating directions). *Any* Z proves a bound:

    loss ≥ min_{Y∈P} ⟨M + Z, Y⟩ − T·λ_max(VᵀZV),

so that nothing depends on convergence; what rounding may have added is taken off.

References:
    Oliveira, Wolkowicz, Xu (2018), ADMM for the SDP relaxation of the QAP, sections 2 and 3
    (facial reduction, splitting, the safe bound); Burer (2009), On the copositive
    representation of binary and continuous nonconvex quadratic programs.
"""

import dataclasses
import time

import numpy as np
from jaxtyping import Float

from jmpq.problem.problem import Reduced
from jmpq.solvers.quadratic.lifted import MARGIN, Lifted, Matrix, Restriction

_STEP = 1.618  # of the multiplier; up to the golden ratio converges
_CHUNK = 20  # iterations between looks at the bound
_LOOKS = 10  # looks that progress is measured over


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Iterate:
    """Where the alternating directions stand; another run may start there.

    Attributes:
        multiplier: Z.
        product: Y.
        penalty: Of their augmented Lagrangian; None to begin with the usual one.
    """

    multiplier: Matrix
    product: Matrix
    penalty: float | None = None

    def restrict(self, to: Restriction) -> "Iterate":
        """A start for a part of the problem: any multiplier proves a bound there too."""
        multiplier, product = to.form(self.multiplier), to.part(self.product)
        return Iterate(multiplier=multiplier, product=product, penalty=self.penalty)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Certificate:
    """What a run of the relaxation proves.

    Attributes:
        bound: Lower bound on the loss.
        last: The last iterate.
        needs: For every option, a lower bound on the loss of allocations that take it.
        value: ⟨M, Y⟩ of the last iterate: where the bound is heading, no bound itself.
        iterations: Of the alternating directions.
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
        self.row = np.broadcast_to(1 + row, both.shape).reshape(self.pair_real.shape)
        self.column = np.broadcast_to(1 + column, both.shape).reshape(self.pair_real.shape)

    def project(self, point: Matrix) -> Matrix:
        """The matrix of P nearest to a symmetric one.

        P falls into parts that share no entry, so each is projected by itself.
        """
        out = np.zeros_like(point)
        out[0, 0] = 1.0
        # An option's share stands in three places, (x, x), (1, x) and (x, 1), which must agree:
        # nearest to the three is their mean, and of those the nearest distribution.
        own = (np.diagonal(point)[self.inner] + 2 * point[0, self.inner]) / 3
        shares = onto_simplex(np.where(self.real, own[self.slots], -np.inf))
        x = np.zeros(len(self.lifted.of))
        x[self.slots[self.real]] = shares[self.real]
        index = np.arange(1, 1 + len(x))
        out[index, index] = out[0, self.inner] = out[self.inner, 0] = x
        # The block of two groups is a distribution over pairs; two options of one group never
        # come together, so the rest of a group's own block stays 0.
        blocks = np.where(self.pair_real, point[self.row, self.column], -np.inf)
        shares = onto_simplex(blocks)
        row, column = self.row[self.pair_real], self.column[self.pair_real]
        out[row, column] = out[column, row] = shares[self.pair_real]
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

    def certify(self, multiplier: Matrix) -> tuple[float, Float[np.ndarray, " options"]]:
        """The bound that Z proves, and what it proves for allocations with each option.

        For Y = y yᵀ of an allocation, ⟨M, Y⟩ = ⟨M + Z, Y⟩ − ⟨Z, Y⟩. The first is at least its
        minimum over P, one minimum a part; the second is ⟨VᵀZV, R⟩ with R ⪰ 0, at most the
        trace of R times the greatest eigenvalue.
        """
        total = self.lifted.matrix + multiplier
        groups = self.lifted.groups
        own = np.diagonal(total)[self.inner] + 2 * total[0, self.inner]
        own = np.where(self.real, own[self.slots], np.inf)
        blocks = np.where(self.pair_real, total[self.row, self.column], np.inf)
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

    def solve(
        self,
        start: Iterate | None = None,
        *,
        upper: float = np.inf,
        deadline: float = np.inf,
        patience: float = 0.02,
        max_iterations: int = 100_000,
    ) -> Certificate:
        """Improve the multiplier until the bound reaches `upper` or stalls.

        Args:
            start: First iterate.
            upper: A loss that is known to be reached: more than it need not be proven.
            deadline: By `time.perf_counter`.
            patience: Stop where 200 iterations have closed less than this part of what is
                left between the bound and `upper` (the primal value where there is none).
            max_iterations: Of the alternating directions.
        """
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):  # matrices this small are slower on several threads
            return self._solve(start, upper, deadline, patience, max_iterations)

    def _solve(
        self,
        start: Iterate | None,
        upper: float,
        deadline: float,
        patience: float,
        max_iterations: int,
    ) -> Certificate:
        basis, raw = self.basis, self.lifted.matrix
        # In units of the matrix, so that one first penalty suits all problems.
        unit = max(float(np.linalg.norm(basis.T @ raw @ basis)) / len(raw), 1e-300)
        matrix = raw / unit
        if start is None:
            start = Iterate(multiplier=np.zeros_like(raw), product=basis @ basis.T)
        multiplier, current = start.multiplier / unit, self.project(start.product)
        penalty = 0.5 if start.penalty is None else start.penalty
        bound, needs = self.certify(start.multiplier)
        history, value, done = [bound], float((raw * current).sum()), 0
        while bound < upper and done < max_iterations and time.perf_counter() < deadline:
            primal = dual = 0.0
            for _ in range(_CHUNK):
                # Minimise the augmented Lagrangian over the semi-definite cone: negative
                # eigenvalues go. The trace needs no bound here, only in the certificate.
                inner = basis.T @ (current + multiplier / penalty) @ basis
                values, vectors = np.linalg.eigh(0.5 * (inner + inner.T))
                kept = values > 0
                root = basis @ (vectors[:, kept] * np.sqrt(values[kept]))
                curved = root @ root.T
                # Then over P, and move the multiplier by how far the two are apart.
                following = self.project(curved - (matrix + multiplier) / penalty)
                multiplier = multiplier + _STEP * penalty * (following - curved)
                primal = float(np.linalg.norm(following - curved))
                dual = penalty * float(np.linalg.norm(following - current))
                current = following
            done += _CHUNK
            value = float((raw * current).sum())
            # Every multiplier proves its own bounds: the best of all are kept.
            proven, its_needs = self.certify(multiplier * unit)
            needs, bound = np.maximum(needs, its_needs), max(bound, proven)
            history.append(bound)
            # A penalty too low leaves the two apart, one too high hardly lets them move.
            penalty *= 1.3 if primal > 3 * dual else 1 / 1.3 if dual > 3 * primal else 1.0
            if len(history) > _LOOKS:
                goal = upper if np.isfinite(upper) else max(value, bound)
                if bound - history[-1 - _LOOKS] <= patience * (goal - bound):
                    break
        last = Iterate(multiplier=multiplier * unit, product=current, penalty=penalty)
        return Certificate(bound=bound, last=last, needs=needs, value=value, iterations=done)


def semidefinite_bound(
    reduced: Reduced, *, upper: float = np.inf, time_limit_s: float = 60.0
) -> float:
    """The doubly nonnegative relaxation's bound on the loss of every allocation.

    Args:
        reduced: The problem over groups; some allocation meets its budgets.
        upper: A loss that is known to be reached: more than it need not be proven.
        time_limit_s: Seconds for the alternating directions.
    """
    deadline = time.perf_counter() + time_limit_s
    lifted = Lifted.of_problem(reduced)
    if not lifted.groups:
        return float(lifted.matrix[0, 0])
    return Relaxation(lifted).solve(upper=upper, deadline=deadline, patience=0.005).bound


def onto_simplex(rows: Float[np.ndarray, "rows size"]) -> Float[np.ndarray, "rows size"]:
    """The distribution nearest to each row; entries of −inf are held at 0.

    References:
        Held, Wolfe, Crowder (1974), Validation of subgradient optimization, section 4.

    >>> onto_simplex(np.array([[0.5, 0.7, -np.inf], [2.0, 0.0, 0.0]])).round(9).tolist()
    [[0.4, 0.6, 0.0], [1.0, 0.0, 0.0]]
    """
    # The nearest distribution lowers all entries by one level and cuts at 0; the level is that
    # of the longest run of largest entries that all stay above it.
    finite = np.where(np.isfinite(rows), rows, -1e300)
    falling = -np.sort(-finite, axis=1)
    with np.errstate(over="ignore"):
        excess = np.cumsum(falling, axis=1) - 1.0
    counts = np.arange(1, rows.shape[1] + 1)
    last = (falling * counts > excess).sum(axis=1) - 1
    level = excess[np.arange(len(rows)), last] / (last + 1)
    return np.maximum(finite - level[:, None], 0.0)


def _basis(lifted: Lifted) -> Float[np.ndarray, "size rank"]:
    """Orthonormal basis of the span of every y: one option a group, budgets left = rest."""
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
