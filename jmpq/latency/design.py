"""Which networks to measure, so that the time of every layer and border can be told apart.

A runtime has fewer kernels than there are choices: weights of 1 to 8 bits run in the same
8-bit kernel. So allocations of *kernels* are designed, and every choice takes the seconds of
the kernel that really runs it (`kernel_of`).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from jmpq.formats import FLOAT_BITS, UNQUANTIZED, Choice

_STICKY = (0.0, 0.25, 0.5, 0.75, 0.9)  # probability that a layer copies the one before it
_DRAWN = 20  # candidates for every network of a design


def kernel_of(choice: Choice) -> Choice:
    """The choice whose kernel a CPU runtime runs for a choice.

    Codes of weights are widened to 8 bits when the file is loaded. Inputs of fewer than 8
    bits are clipped 8-bit ones: 4 bits stand for all of these, 16 for 9 to 16. A format that
    is not an integer of the run's own scales is a kernel of its own.

    >>> kernel_of(Choice(3, 8)).label, kernel_of(Choice(2, 3)).label, kernel_of(Choice(4)).label
    ('W8A8', 'W8A4', 'W8')
    """
    w_bits, a_bits = choice.w_bits, choice.a_bits
    weights = _width(w_bits) if choice.weights.is_plain else choice.weights
    narrow = choice.activations.is_plain and a_bits < 8
    inputs = _width(a_bits) if choice.activations.is_plain else choice.activations
    return Choice(weights, 4 if narrow else inputs)


def is_integer(kernel: Choice) -> bool:
    """Whether a kernel multiplies integers: both operands are quantized to integers."""
    both = (kernel.weights, kernel.activations)
    return not any(scheme.is_float or scheme.is_none for scheme in both)


def kernels_of(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """The kernels of some choices and of the unquantized one, which comes first."""
    found = sorted({kernel_of(choice) for choice in choices} - {UNQUANTIZED})
    return (UNQUANTIZED, *found)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Terms:
    """What the time of a network is a sum of, as columns of a linear model.

    One column for the network with every layer unquantized, one for every layer and other
    kernel (what it takes more than the unquantized one), and one for every pair of neighbours
    (what a border between an integer and a float kernel costs there).

    Attributes:
        layers: Names of the layers.
        kernels: Kernels that a layer may take, the unquantized one first.
        edges: Pairs of layers, by position, of which the second reads the first's output.
    """

    layers: tuple[str, ...]
    kernels: tuple[Choice, ...]
    edges: Int[np.ndarray, "edges 2"]

    @property
    def of_layers(self) -> int:
        """Number of columns but for those of borders."""
        return 1 + len(self.layers) * (len(self.kernels) - 1)

    def crossed(
        self, columns: Int[np.ndarray, "networks layers"]
    ) -> Float[np.ndarray, "networks edges"]:
        """Whether every edge joins an integer and a float kernel."""
        integer = np.array([is_integer(kernel) for kernel in self.kernels])[columns]
        one, other = integer[:, self.edges[:, 0]], integer[:, self.edges[:, 1]]
        return (one != other).astype(np.float64)

    def rows(
        self, columns: Int[np.ndarray, "networks layers"]
    ) -> Float[np.ndarray, "networks terms"]:
        """The linear model's rows for networks, each a kernel's index for every layer."""
        picked = columns[:, :, None] == np.arange(1, len(self.kernels))
        ones = np.ones((len(columns), 1))
        parts = (ones, picked.reshape(len(columns), -1), self.crossed(columns))
        return np.concatenate(parts, axis=1)


def draw_networks(
    terms: Terms, count: int, rng: np.random.Generator
) -> Int[np.ndarray, "networks layers"]:
    """Random networks from scattered kernels to long runs of one, in equal shares."""
    shape = (count, len(terms.layers))
    columns = rng.integers(0, len(terms.kernels), shape)
    sticky = np.array(_STICKY)[np.arange(count) % len(_STICKY)]
    for layer in range(1, shape[1]):
        same = rng.random(count) < sticky
        columns[same, layer] = columns[same, layer - 1]
    return columns


def uniform_networks(terms: Terms) -> Int[np.ndarray, "kernels layers"]:
    """One network for every kernel, all layers alike, the unquantized one first."""
    kernels = np.arange(len(terms.kernels))
    return np.repeat(kernels[:, None], len(terms.layers), axis=1)


def designed_networks(
    terms: Terms, count: int, *, seed: int = 0
) -> Int[np.ndarray, "networks layers"]:
    """Networks whose measurements determine all terms well: a greedy D-optimal design.

    The uniform networks come first. Then, of many random ones, always the one whose time the
    measurements so far tell least about: its row x has the greatest xᵀ(XᵀX + εI)⁻¹x, which
    also where there are fewer networks than terms tells more than chance.

    Args:
        terms: The linear model.
        count: Number of networks, the uniform ones included.
        seed: Seed of the random ones.

    Raises:
        ValueError: If there are fewer networks than terms to tell apart.

    References:
        Fedorov (1972), Theory of optimal experiments; the sequential step of chapter 2.
    """
    if count <= terms.of_layers:
        raise ValueError(
            f"{count} networks cannot tell {terms.of_layers} terms of layers and those of "
            f"borders apart: measure at least {terms.of_layers + 1}."
        )
    rng = np.random.default_rng(seed)
    chosen = list(uniform_networks(terms))
    pool = np.unique(draw_networks(terms, _DRAWN * count, rng), axis=0)
    rows = terms.rows(pool)
    inverse = np.eye(rows.shape[1]) * 1e3
    for row in terms.rows(np.array(chosen)):
        inverse = _with_row(inverse, row)
    while len(chosen) < count:
        told = np.einsum("nt,tu,nu->n", rows, inverse, rows)
        best = int(told.argmax())
        chosen.append(pool[best])
        inverse = _with_row(inverse, rows[best])
    return np.array(chosen)


def _with_row(
    inverse: Float[np.ndarray, "terms terms"], row: Float[np.ndarray, " terms"]
) -> Float[np.ndarray, "terms terms"]:
    """The inverse of a matrix to which the square of a row is added (Sherman, Morrison)."""
    turned = inverse @ row
    return inverse - np.outer(turned, turned) / (1.0 + row @ turned)


def _width(bits: int) -> int:
    """The width at which a runtime stores codes of so many bits."""
    return next(width for width in (8, 16, FLOAT_BITS) if width >= bits)
