"""Specifications of quantizers: every option besides the bits. Plain data, no JAX.

`KernelSpec` has the options of kernels, `InputSpec` those of layer inputs. `TensorSpec` is
either of them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from jmpq.formats import FLOAT_BITS, Scheme
from jmpq.kinds import check_kinds
from jmpq.network.layers import Layer

Grid = Literal["symmetric", "half", "affine"]
Granularity = Literal["tensor", "channel", "group"]
Rounding = Literal["nearest", "gptq", "adaround"]
Placement = Literal["inputs", "stream"]


@check_kinds
@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelSpec:
    """Grid, granularity, clipping and rounding of kernels; by default one scale per channel.

    Attributes:
        grid: Codes and scale. ``symmetric``: codes ±(2^(b−1) − 1), scale = clip/(2^(b−1) − 1).
            ``half``: all 2^b codes from −2^(b−1), scale = clip/(2^(b−1) − 0.5).
            ``affine``: codes 0..2^b − 1 with an integer zero point, so zero is on the grid.
        granularity: Extent of a scale: the ``tensor``, an output ``channel``, or a ``group``.
        group_size: Features per group (with ``group``; alternative to `group_count`).
        group_count: Groups per output channel (along ``input``), else groups per kernel.
        along: Features that form a group. ``output``: some output features with all their
            inputs, as in Q-BERT's figure. ``columns``: some input features for all output
            features, as in Q-BERT's code. ``input``: some input features of one output
            feature. With as many groups as heads, ``output`` gives each head of a query, key
            or value matrix its own scale, and ``columns`` does so for the attention's output
            matrix. In an embedding a group is a set of columns, of one row with ``input``,
            else of all rows.
        clipping: Range of the grid: ``minmax``; ``percentile``; or ``mse``, the multiple of
            the min-max range with least mean squared error.
        percentile: Percentile of ``percentile`` clipping, in (50, 100].
        rounding: Rounding of weights to codes: ``nearest``, ``gptq`` (column by column,
            compensating earlier errors) or ``adaround`` (up or down, by gradient descent).
            The last two reduce the error of the layer's output on calibration inputs.

    References:
        Shen et al. (2020), Q-BERT: Hessian based ultra low precision quantization of BERT, on
        group-wise quantization.

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
        """Rows and columns of a matrix ``[output features, inputs]`` that share a scale.

        An `embedding` is ``[rows, embedded features]``.

        Raises:
            ValueError: If groups do not divide the matrix; the message gives `name`.
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
        """Rows and columns of a layer's kernel matrix that share a scale.

        Raises:
            ValueError: If groups do not divide the kernel.
        """
        if layer.kind == "cache":
            return 1, 1
        embedding = layer.kind == "embedding"
        return self.block_shape(
            layer.output_features, layer.columns, layer.name, embedding=embedding
        )

    def scheme_blocks(self, layer: Layer, number: int) -> tuple[int, int]:
        """Rows and columns of a layer's kernel that share a scale in one scheme.

        A plain integer has the blocks of this specification. A scheme that defines its block
        size has blocks along the columns; the last block of a row may be shorter. A format
        without scales has one block, the kernel.

        Args:
            layer: The layer.
            number: Number of the scheme.

        Raises:
            ValueError: If groups do not divide the kernel.
        """
        scheme, rows = Scheme.of(number), layer.output_features
        columns = layer.columns
        if scheme.scale == "none":
            return rows, columns
        if scheme.block is None:
            return self.layer_blocks(layer)
        return 1, min(scheme.block, columns)

    def layer_scales(self, layer: Layer) -> int:
        """Number of scales of a layer's kernel in a plain integer format."""
        r, c = self.layer_blocks(layer)
        return layer.parameters // (r * c)


@check_kinds
@dataclasses.dataclass(frozen=True, kw_only=True)
class InputSpec:
    """Grid, granularity, clipping and placement of activations; by default one scale per input.

    Activations are rounded to nearest.

    Attributes:
        grid: Codes and scale, as in `KernelSpec`.
        granularity: Extent of a scale: the ``tensor``, an input ``channel`` (feature), or a
            ``group`` of features.
        group_size: Features per group (with ``group``; alternative to `group_count`).
        group_count: Groups per input.
        clipping: Range of the grid: ``minmax``; ``percentile``; ``mse``, the multiple of the
            min-max range with least mean squared error; or ``ema``, exponential moving
            averages of the batches' minimum and maximum (Q-BERT).
        percentile: Percentile of ``percentile`` clipping, in (50, 100].
        decay: Weight of the previous average in ``ema`` clipping, in [0, 1).
        placement: Quantized tensors: ``inputs`` of layers; or ``stream``, which adds the
            outputs that are added, concatenated or pooled (`jmpq.quantizers.stream`), with
            one scale per tensor and at least 8 bits.
        int32_biases: Whether biases are rounded to int32 codes on the grid of the products, as
            in integer kernels (`jmpq.quantizers.integer_bias`).

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
    placement: Placement = "inputs"
    int32_biases: bool = False

    def __post_init__(self) -> None:
        _check_options(self)
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay} is not in [0, 1).")

    def scheme_features(self, features: int, name: str, number: int) -> int:
        """Number of features that share a calibrated scale in one scheme.

        Formats whose block scales are computed at run time, and formats without scales, have
        one block.

        Args:
            features: Features of the input.
            name: Name of the layer, for messages.
            number: Number of the scheme.

        Raises:
            ValueError: If groups do not divide the features.
        """
        scheme = Scheme.of(number)
        if scheme.scale != "float32":
            return features
        if scheme.block is not None:
            return min(scheme.block, features)
        return self.block_features(features, name)

    def block_features(self, features: int, name: str) -> int:
        """Number of features that share a scale.

        Raises:
            ValueError: If groups do not divide the features; the message gives `name`.
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
    """Read a specification from its fields, as `dataclasses.asdict` writes them.

    Raises:
        ValueError: If the fields do not match the class `kind`.
    """
    try:
        return kind(**record)
    except TypeError as error:
        raise ValueError(
            f"The file's quantizers do not fit this version of jmpq ({error}): run the step "
            "that wrote it again."
        ) from error


def check_bits(spec: TensorSpec, bits: int) -> None:
    """Check that the grid has the bit-width of scheme number `bits`.

    Raises:
        ValueError: If not.
    """
    least = 2 if spec.grid == "symmetric" else 1
    if bits > 63 and Scheme.of(bits).is_float:
        return
    if bits != FLOAT_BITS and not least <= bits & 63 <= 16:
        raise ValueError(
            f"{bits & 63} bits on the {spec.grid!r} grid: expected {least} to 16, or "
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
    """Number of features per group, of `features` in all; `kind` names them in messages."""
    size = spec.group_size or max(1, features // (spec.group_count or 1))
    if features % size or (spec.group_count and features // size != spec.group_count):
        asked = f"{spec.group_count} groups" if spec.group_count else f"groups of {size}"
        raise ValueError(
            f"{name!r}: {asked} do not divide its {features} {kind} features. Choose a "
            "divisor, or another granularity."
        )
    return size
