"""Seconds of layers and borders from the measured seconds of whole networks."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from jmpq.allocation import Allocation
from jmpq.formats import UNQUANTIZED, Choice
from jmpq.latency.design import Terms, is_integer, kernel_of
from jmpq.latency.table import LatencyTable

# Weights of the pulls, in units of one measured network: differences between kernels are
# pulled to nothing a little, borders to their common mean as one observation would.
_PULL_GAINS, _PULL_BORDERS = 0.1, 1.0


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LatencyModel:
    """The time of a network as a sum of terms; predicts any allocation of kernels.

    Attributes:
        terms: The terms.
        unquantized: Seconds with every layer unquantized.
        gains: Seconds that each kernel takes more than the unquantized one, by layer.
        borders: Seconds of a border between an integer and a float kernel, by pair of
            neighbours.
    """

    terms: Terms
    unquantized: float
    gains: Float[np.ndarray, "layers kernels"]
    borders: Float[np.ndarray, " edges"]

    def predict(
        self, columns: Int[np.ndarray, "networks layers"]
    ) -> Float[np.ndarray, " networks"]:
        """Seconds of networks, each a kernel's index for every layer."""
        own = self.gains[np.arange(len(self.terms.layers)), columns].sum(axis=1)
        return self.unquantized + own + self.terms.crossed(columns) @ self.borders

    def columns(self, allocations: Sequence[Allocation]) -> Int[np.ndarray, "networks layers"]:
        """Kernels that run allocations of choices; a layer without one is unquantized.

        Raises:
            ValueError: If a choice runs in a kernel that was not measured.
        """
        kernels = [
            Allocation({name: kernel_of(choice) for name, choice in allocation.items()})
            for allocation in allocations
        ]
        rows = [each.columns(self.terms.layers, self.terms.kernels) for each in kernels]
        return np.array(rows, dtype=np.int64).reshape(len(rows), len(self.terms.layers))

    def table(
        self,
        choices: Sequence[Choice],
        *,
        around: Int[np.ndarray, " layers"] | None = None,
        measured: float | None = None,
    ) -> LatencyTable:
        """A sum over layers that is never below the model's own prediction.

        Every border is paid by its float side, so the sum is the prediction unless two
        neighbours are both float; then it is higher. Around an allocation with float
        neighbours, their border is paid by a side that turns integer, so that the sum is the
        prediction there; it stays above it everywhere. Solving again with the table around the
        last solution cannot make the loss worse: that solution still fits.

        Where that allocation was measured, the sum is the measured time there: the model's
        error at it is added to the fixed part, and what is said above holds of the prediction
        and that error. A solution that measures above its budget then no longer fits. It was
        chosen for a small prediction, so the model is too low there more often than elsewhere.

        The cheapest choice of every layer counts zero and the network's fixed part the rest:
        only differences were measured.

        Args:
            choices: Choices of the table; each takes the seconds of its kernel.
            around: Kernels of the allocation at which the sum is exact; by default one
                without float neighbours.
            measured: Measured seconds of that allocation.

        References:
            Hunter, Lange (2004), A tutorial on MM algorithms, The American Statistician 58.
            Smith, Winkler (2006), The optimizer's curse, Management Science 52.
        """
        kernels, layers = self.terms.kernels, self.terms.layers
        integer = np.array([is_integer(kernel) for kernel in kernels])
        seconds, fixed = self.gains.copy(), self.unquantized
        if around is not None and measured is not None:
            fixed += measured - float(self.predict(around[None])[0])
        for (one, other), border in zip(self.terms.edges, self.borders, strict=True):
            both_float = around is not None and not integer[around[[one, other]]].any()
            seconds[[one, other]] += border * (integer if both_float else ~integer)
        least = seconds.min(axis=1)
        seconds = seconds - least[:, None]
        index = {kernel: i for i, kernel in enumerate(kernels)}
        wanted = sorted({*choices, UNQUANTIZED})
        if new := [c.label for c in wanted if kernel_of(c) not in index]:
            raise ValueError(
                f"No network with {', '.join(new)} was measured, only with "
                f"{', '.join(kernel.label for kernel in kernels)}: run `jmpq latency` again."
            )
        return LatencyTable(
            seconds={
                name: {c: float(row[index[kernel_of(c)]]) for c in wanted}
                for name, row in zip(layers, seconds, strict=True)
            },
            fixed=max(fixed + float(least.sum()), 0.0),
            unquantized=self.unquantized,
        )


def fit_latency(
    terms: Terms,
    columns: Int[np.ndarray, "networks layers"],
    seconds: Float[np.ndarray, " networks"],
) -> LatencyModel:
    """Least squares over measured networks, relative errors weighed alike.

    Seconds of borders are not negative. There may be fewer networks than terms: borders are
    pulled to their common mean, which is fitted with them.

    Args:
        terms: The terms.
        columns: The networks, each a kernel's index for every layer.
        seconds: Measured times, seconds.
    """
    rows, layers, edges = terms.rows(columns), terms.of_layers, len(terms.edges)
    median, size = float(np.median(seconds)), rows.shape[1] + 1
    # In units of a layer's mean share, so that all unknowns are of one size; the last unknown
    # is the mean of the borders.
    unit = np.full(size, median / len(terms.layers))
    matrix = np.concatenate([rows, np.zeros((len(rows), 1))], axis=1) * unit / seconds[:, None]
    pull = np.zeros((layers - 1 + edges, size))
    for i in range(layers - 1):
        pull[i, 1 + i] = _PULL_GAINS
    for i in range(edges):
        pull[layers - 1 + i, [layers + i, -1]] = _PULL_BORDERS, -_PULL_BORDERS
    low = np.where(np.arange(size) < layers, -np.inf, 0.0)
    import scipy.optimize  # reading a fit needs none

    found = scipy.optimize.lsq_linear(
        np.concatenate([matrix, pull / len(terms.layers)]),
        np.concatenate([np.ones(len(seconds)), np.zeros(len(pull))]),
        bounds=(low, np.full(size, np.inf)),
        method="bvls",
    )
    values = found.x * unit
    gains = values[1:layers].reshape(len(terms.layers), len(terms.kernels) - 1)
    return LatencyModel(
        terms=terms,
        unquantized=float(values[0]),
        gains=np.concatenate([np.zeros((len(gains), 1)), gains], axis=1),
        borders=values[layers:-1],
    )


def mean_relative_error(
    predicted: Float[np.ndarray, " networks"], measured: Float[np.ndarray, " networks"]
) -> float:
    """Mean of |predicted − measured| / measured."""
    return float(np.mean(np.abs(predicted - measured) / measured))
