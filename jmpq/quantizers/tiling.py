"""Blocks of one tensor in several schemes, and their common refinement."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

Block = tuple[int, int]
Codes = Shaped[np.ndarray, "blocks elements"]


class Tiling(NamedTuple):
    """A matrix cut into equal blocks, each inside one block of every scheme.

    One array holds the scales of all schemes, one value per scheme and equal block. A scheme's
    own block usually spans several equal blocks, which then share its scale. Own blocks at the
    ends of rows or columns may be shorter.

    Attributes:
        rows: Rows of the matrix.
        columns: Columns of the matrix.
        block: Rows and columns of the equal blocks.
        own: Rows and columns of every scheme's own blocks.
    """

    rows: int
    columns: int
    block: Block
    own: tuple[Block, ...]

    @classmethod
    def of(cls, rows: int, columns: int, own: Sequence[Block]) -> "Tiling":
        """The tiling by the largest possible equal blocks.

        >>> Tiling.of(4, 75, [(1, 75), (1, 32)]).block, Tiling.of(4, 80, [(4, 80)]).block
        ((1, 1), (4, 80))
        """
        r = math.gcd(rows, *(r for r, _ in own))
        c = math.gcd(columns, *(c for _, c in own))
        return cls(rows, columns, (r, c), tuple(own))

    @classmethod
    def read(cls, record: Sequence[Any]) -> "Tiling":
        """Read a tiling from JSON."""
        rows, columns, (r, c), own = record
        return cls(rows, columns, (r, c), tuple((r, c) for r, c in own))

    def only(self, positions: Sequence[int]) -> "Tiling":
        """The same equal blocks with a subset of the schemes."""
        return self._replace(own=tuple(self.own[i] for i in positions))

    def spread(self, position: int) -> Int[np.ndarray, " blocks"]:
        """Index of the scheme's own block that contains each equal block."""
        (r, c), across = self.own[position], self._across(position)
        row, column = self._corners
        return (row[:, None] // r * across + column // c).reshape(-1)

    def count(self, position: int) -> int:
        """Number of a scheme's own blocks."""
        r = self.own[position][0]
        return -(-self.rows // r) * self._across(position)

    def first(self, position: int) -> Int[np.ndarray, " own"]:
        """Index of the first equal block in each own block of a scheme."""
        return np.unique(self.spread(position), return_index=True)[1]

    def own_codes(self, codes: Codes, position: int) -> np.ndarray:
        """Rearrange codes ``[equal blocks, elements]`` by a scheme's own blocks.

        If the own blocks differ in size, the result is the matrix of codes.
        """
        matrix = _from_blocks(codes, self.block, self.rows, self.columns)
        return _to_blocks(matrix, self.own[position]) if self.divides(position) else matrix

    def equal_codes(self, codes: np.ndarray, position: int) -> Codes:
        """Inverse of `own_codes`."""
        if self.divides(position):
            codes = _from_blocks(codes, self.own[position], self.rows, self.columns)
        return _to_blocks(codes, self.block)

    def divides(self, position: int) -> bool:
        """Whether all own blocks of a scheme have the same size."""
        r, c = self.own[position]
        return self.rows % r == 0 and self.columns % c == 0

    def _across(self, position: int) -> int:
        return -(-self.columns // self.own[position][1])

    @property
    def _corners(self) -> tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]:
        r, c = self.block
        return np.arange(0, self.rows, r), np.arange(0, self.columns, c)


def _to_blocks(matrix: np.ndarray, shape: Block) -> Codes:
    (r, c), (rows, columns) = shape, matrix.shape
    tiles = matrix.reshape(rows // r, r, columns // c, c).transpose(0, 2, 1, 3)
    return tiles.reshape(-1, r * c)


def _from_blocks(blocks: Codes, shape: Block, rows: int, columns: int) -> np.ndarray:
    r, c = shape
    tiles = blocks.reshape(rows // r, columns // c, r, c).transpose(0, 2, 1, 3)
    return tiles.reshape(rows, columns)
