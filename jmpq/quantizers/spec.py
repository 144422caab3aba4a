"""How tensors are put on a grid: scales and rounding. Plain data, no JAX."""

import dataclasses
from typing import Any, Literal

from jmpq.formats import FLOAT_BITS
from jmpq.network.layers import Layer

Grid = Literal["symmetric", "half", "affine"]
Granularity = Literal["tensor", "channel", "group"]
Clipping = Literal["minmax", "ema", "percentile", "mse"]
Rounding = Literal["nearest", "gptq", "adaround"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizerSpec:
    """How tensors are put on a grid: everything that decides it besides the bits.

    Attributes:
        grid: ``symmetric``: codes ±(2^(b−1) − 1), scale = clip/(2^(b−1) − 1).
            ``half``: all 2^b codes from −2^(b−1), scale = clip/(2^(b−1) − 0.5).
            ``affine``: codes 0..2^b − 1 with an integer zero point, zero exactly on the grid.
        granularity: One scale per ``tensor``, per output ``channel`` (for activations: per
            input feature), or per ``group``.
        group_size: Features per group (``group``; or give `group_count`).
        group_count: Groups per output channel (along ``input``) or per kernel (otherwise).
        along: What a group of a kernel is: some ``output`` features with all their inputs, as
            in Q-BERT's figure; some input features, for all output features together
            (``columns``, as in Q-BERT's code) or for every output feature by itself
            (``input``). With as many groups as heads, ``output`` gives every head of a query,
            key or value matrix its scale, ``columns`` every head of the matrix that follows.
            Of an embedding a group is some of its columns: for every row by itself with
            ``input``, for all rows otherwise.
        clipping: Range of the grid: ``minmax``; ``percentile``; ``mse``, the multiple of the
            full range with least mean squared error; ``ema``, for activations only, the
            exponential moving average of the batches' least and greatest values (Q-BERT).
        percentile: Percentile of ``percentile`` clipping, in (50, 100].
        decay: Weight of all batches before in ``ema`` clipping, in [0, 1).
        rounding: ``nearest``; or, for weights only, codes that leave less error in the
            layer's output on calibration inputs: ``gptq``, found column by column, or
            ``adaround``, up or down as learned by gradient descent.
    """

    grid: Grid = "symmetric"
    granularity: Granularity = "channel"
    group_size: int | None = None
    group_count: int | None = None
    along: Literal["input", "output", "columns"] = "input"
    clipping: Clipping = "mse"
    percentile: float = 99.9
    decay: float = 0.99
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        given = [x for x in (self.group_size, self.group_count) if x is not None]
        if (self.granularity == "group") != (len(given) == 1) or any(x < 1 for x in given):
            raise ValueError(
                f"granularity={self.granularity!r} with group_size={self.group_size}, "
                f"group_count={self.group_count}: 'group' takes exactly one of them, at least "
                "1, and the others take none."
            )
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile={self.percentile} is not in (50, 100].")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay} is not in [0, 1).")

    def check_bits(self, bits: int) -> None:
        """Raise `ValueError` where the grid has no such bit-width."""
        least = 2 if self.grid == "symmetric" else 1
        if bits != FLOAT_BITS and not least <= bits <= 16:
            raise ValueError(
                f"{bits} bits on the {self.grid!r} grid: expected {least} to 16, or "
                f"{FLOAT_BITS} for unquantized."
            )

    def block_shape(
        self, rows: int, columns: int, name: str, *, embedding: bool = False
    ) -> tuple[int, int]:
        """Rows and columns of a matrix [output features, inputs] that share a scale.

        An `embedding` is [rows, embedded features].

        Raises:
            ValueError: If groups do not divide the matrix; it names the tensor `name`.
        """
        match self.granularity:
            case "tensor":
                return rows, columns
            case "channel":
                return 1, columns
        across = self.along != "output" or embedding  # groups of columns
        axis = columns if across else rows
        size = self.group_size or max(1, axis // (self.group_count or 1))
        if axis % size or (self.group_count and axis // size != self.group_count):
            asked = f"{self.group_count} groups" if self.group_count else f"groups of {size}"
            features = "embedded" if embedding else "input" if across else "output"
            raise ValueError(
                f"{name!r}: {asked} do not divide its {axis} {features} features. Choose a "
                "divisor, or another granularity."
            )
        if not across:
            return size, columns
        return (1 if self.along == "input" else rows), size

    def layer_blocks(self, layer: Layer) -> tuple[int, int]:
        """Rows and columns of a layer's kernel, seen as a matrix, that share a scale.

        Raises:
            ValueError: If groups do not divide the kernel.
        """
        rows = layer.output_features
        embedding = layer.kind == "embedding"
        return self.block_shape(rows, layer.parameters // rows, layer.name, embedding=embedding)

    def layer_scales(self, layer: Layer) -> int:
        """Number of scales of a layer's kernel."""
        r, c = self.layer_blocks(layer)
        return layer.parameters // (r * c)

    def num_scales(self, rows: int, columns: int, name: str) -> int:
        """Number of scales of a matrix."""
        r, c = self.block_shape(rows, columns, name)
        return rows // r * (columns // c)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


# Where nothing else is said: one scale per output channel, one per layer's input.
WEIGHTS = QuantizerSpec(grid="symmetric", granularity="channel", clipping="mse")
ACTIVATIONS = QuantizerSpec(grid="affine", granularity="tensor", clipping="mse")
