"""How tensors are put on a grid: specifications of kernels and of inputs. Plain data, no JAX.

Everything that decides a quantizer besides the bits. Kernels and inputs have a class each, with
the options that mean something for them; what both have works on `TensorSpec`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from jmpq.formats import FLOAT_BITS
from jmpq.network.layers import Layer

Grid = Literal["symmetric", "half", "affine"]
Granularity = Literal["tensor", "channel", "group"]
Rounding = Literal["nearest", "gptq", "adaround"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelSpec:
    """How kernels are put on a grid; by default one scale per output channel.

    Attributes:
        grid: ``symmetric``: codes ±(2^(b−1) − 1), scale = clip/(2^(b−1) − 1).
            ``half``: all 2^b codes from −2^(b−1), scale = clip/(2^(b−1) − 0.5).
            ``affine``: codes 0..2^b − 1 with an integer zero point, zero exactly on the grid.
        granularity: One scale per ``tensor``, per output ``channel``, or per ``group``.
        group_size: Features per group (``group``; or give `group_count`).
        group_count: Groups per output channel (along ``input``) or per kernel (otherwise).
        along: Features that a group consists of: some ``output`` features with all their
            inputs, as in Q-BERT's figure; some input features, for all output features together
            (``columns``, as in Q-BERT's code) or for every output feature by itself
            (``input``). With as many groups as heads, ``output`` gives every head of a query,
            key or value matrix its scale, ``columns`` every head of the matrix that follows.
            In an embedding a group is some of its columns: for every row by itself with
            ``input``, for all rows otherwise.
        clipping: Range of the grid: ``minmax``; ``percentile``; ``mse``, the multiple of the
            full range with least mean squared error.
        percentile: Percentile of ``percentile`` clipping, in (50, 100].
        rounding: ``nearest``; or codes that leave less error in the layer's output on
            calibration inputs: ``gptq``, found column by column, or ``adaround``, up or down as
            learned by gradient descent.

    Raises:
        ValueError: If the group options disagree or the percentile is out of range.
    """

    grid: Grid = "symmetric"
    granularity: Granularity = "channel"
    group_size: int | None = None
    group_count: int | None = None
    along: Literal["input", "output", "columns"] = "input"
    clipping: Literal["minmax", "percentile", "mse"] = "mse"
    percentile: float = 99.9
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        _check_options(self)

    def block_shape(
        self, rows: int, columns: int, name: str, *, embedding: bool = False
    ) -> tuple[int, int]:
        """Rows and columns of a matrix [output features, inputs] that share a scale.

        An `embedding` is [rows, embedded features].

        Raises:
            ValueError: If groups do not divide the matrix; it names the tensor `name`.
        """
        if self.granularity == "tensor":
            return rows, columns
        if self.granularity == "channel":
            return 1, columns
        if self.along == "output" and not embedding:
            return _group_features(self, rows, name, "output"), columns
        size = _group_features(self, columns, name, "embedded" if embedding else "input")
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How the inputs of layers are put on a grid; by default one scale per input.

    Inputs are rounded to nearest as they come.

    Attributes:
        grid: As in `KernelSpec`.
        granularity: One scale per ``tensor``, per input ``channel`` (feature), or per ``group``
            of features.
        group_size: Features per group (``group``; or give `group_count`).
        group_count: Groups per input.
        clipping: Range of the grid: ``minmax``; ``percentile``; ``mse``, the multiple of the
            full range with least mean squared error; ``ema``, the exponential moving average of
            the batches' least and greatest values (Q-BERT).
        percentile: Percentile of ``percentile`` clipping, in (50, 100].
        decay: Weight of all batches before in ``ema`` clipping, in [0, 1).

    Raises:
        ValueError: If the group options disagree, or a number is out of range.
    """

    grid: Grid = "affine"
    granularity: Granularity = "tensor"
    group_size: int | None = None
    group_count: int | None = None
    clipping: Literal["minmax", "ema", "percentile", "mse"] = "mse"
    percentile: float = 99.9
    decay: float = 0.99

    def __post_init__(self) -> None:
        _check_options(self)
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay} is not in [0, 1).")

    def block_features(self, features: int, name: str) -> int:
        """Number of features that share a scale.

        Raises:
            ValueError: If groups do not divide the features; it names the layer `name`.
        """
        match self.granularity:
            case "tensor":
                return features
            case "channel":
                return 1
            case "group":
                return _group_features(self, features, name, "input")


TensorSpec = KernelSpec | InputSpec
Spec = TypeVar("Spec", bound=TensorSpec)


def read_spec(kind: type[Spec], record: Mapping[str, Any]) -> Spec:
    """A specification from its fields, as a file keeps them (`dataclasses.asdict`).

    Raises:
        ValueError: If the fields are not those of its class.
    """
    try:
        return kind(**record)
    except TypeError as error:
        raise ValueError(
            f"The file's quantizers do not fit this version of jmpq ({error}): run the step "
            "that wrote it again."
        ) from error


def check_bits(spec: TensorSpec, bits: int) -> None:
    """Raise `ValueError` where the grid has no such bit-width."""
    least = 2 if spec.grid == "symmetric" else 1
    if bits != FLOAT_BITS and not least <= bits <= 16:
        raise ValueError(
            f"{bits} bits on the {spec.grid!r} grid: expected {least} to 16, or "
            f"{FLOAT_BITS} for unquantized."
        )


def _check_options(spec: TensorSpec) -> None:
    given = [x for x in (spec.group_size, spec.group_count) if x is not None]
    if (spec.granularity == "group") != (len(given) == 1) or any(x < 1 for x in given):
        raise ValueError(
            f"granularity={spec.granularity!r} with group_size={spec.group_size}, "
            f"group_count={spec.group_count}: 'group' takes exactly one of them, at least "
            "1, and the others take none."
        )
    if not 50 < spec.percentile <= 100:
        raise ValueError(f"percentile={spec.percentile} is not in (50, 100].")


def _group_features(spec: TensorSpec, features: int, name: str, kind: str) -> int:
    """Features of one group of so many `features`, which messages call `kind`."""
    size = spec.group_size or max(1, features // (spec.group_count or 1))
    if features % size or (spec.group_count and features // size != spec.group_count):
        asked = f"{spec.group_count} groups" if spec.group_count else f"groups of {size}"
        raise ValueError(
            f"{name!r}: {asked} do not divide its {features} {kind} features. Choose a "
            "divisor, or another granularity."
        )
    return size
