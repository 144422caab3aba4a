"""Bit patterns of float formats, and of scales that are stored as codes (MX, NVFP4)."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from jmpq.formats import BF16, E2M1, E2M3, E3M2, E4M3, E5M2, F16, Format, Scheme

_TYPES: dict[Format, Any] = {
    E4M3: ml_dtypes.float8_e4m3fn,
    E5M2: ml_dtypes.float8_e5m2,
    E3M2: ml_dtypes.float6_e3m2fn,
    E2M3: ml_dtypes.float6_e2m3fn,
    E2M1: ml_dtypes.float4_e2m1fn,
    BF16: ml_dtypes.bfloat16,
    F16: np.float16,
}


def encode(values: Float[np.ndarray, "*shape"], format: Format) -> Int[np.ndarray, "*shape"]:
    """Bit patterns of representable values, sign bit first; two's complement for mxint8.

    >>> encode(np.array([0.5, -6.0]), E2M1).tolist()
    [1, 15]
    """
    if (kind := _TYPES.get(format)) is None:  # fixed point
        return np.round(values / format.smallest).astype(np.int32) & (2**format.bits - 1)
    word = np.uint16 if format.bits == 16 else np.uint8
    return values.astype(kind).view(word).astype(np.int32)


def decode(codes: Int[Array, "*shape"], format: Format, dtype: Any) -> Float[Array, "*shape"]:
    """Values of bit patterns, for NumPy or traced arrays."""
    if format.bits == 16:
        kind = jnp.bfloat16 if format == BF16 else jnp.float16
        return jax.lax.bitcast_convert_type(codes.astype(jnp.uint16), kind).astype(dtype)
    every = np.arange(2**format.bits, dtype=np.uint8)
    if (kind := _TYPES.get(format)) is None:
        values = every.astype(np.int8) * format.smallest
    else:
        with np.errstate(invalid="ignore"):  # NaN among the codes
            values = every.view(kind).astype(np.float64)
    return jnp.asarray(values, dtype)[codes]


def encode_scales(scale: Float[np.ndarray, " blocks"], scheme: Scheme) -> dict[str, np.ndarray]:
    """Scales as a file stores them: ``scale``, and ``tensor_scale`` for nvfp4.

    Raises:
        ValueError: If the scheme cannot represent the scales.
    """
    match scheme.scale:
        case "none":
            return {}
        case "float32":
            return {"scale": scale.astype(np.float32)}
        case "e8m0":
            codes = scale.astype(ml_dtypes.float8_e8m0fnu)
            if not np.array_equal(codes.astype(np.float64), scale.astype(np.float64)):
                raise ValueError(f"The scales of {scheme.name} are not powers of two.")
            return {"scale": codes.view(np.uint8)}
    # The greatest block scale is 448: that of the tensor is a neighbour of this quotient.
    tensor = np.float32(scale.max() / np.float32(E4M3.largest))
    for steps in (0, 1, -1, 2, -2):
        near = (tensor.view(np.int32) + np.int32(steps)).view(np.float32)
        codes = (scale / near).astype(ml_dtypes.float8_e4m3fn)
        if np.array_equal(codes.astype(np.float32) * near, scale):
            return {"scale": codes.view(np.uint8), "tensor_scale": near.reshape(1)}
    raise ValueError(f"The scales of {scheme.name} are not e4m3 under one scale of the tensor.")


def decode_scales(
    stored: dict[str, Array], scheme: Scheme, blocks: int
) -> Float[Array, " blocks"]:
    """Inverse of `encode_scales`, for NumPy or traced arrays; float32."""
    match scheme.scale:
        case "none":
            return jnp.ones(blocks, jnp.float32)
        case "float32":
            return stored["scale"]
        case "e8m0":
            return _power(stored["scale"])
    codes = decode(stored["scale"].astype(jnp.int32), E4M3, jnp.float32)
    return codes * stored["tensor_scale"]


def _power(codes: UInt8[Array, " blocks"]) -> Float[Array, " blocks"]:
    """2^(code − 127); scales are never below the least normal float32."""
    return jax.lax.bitcast_convert_type(codes.astype(jnp.uint32) << 23, jnp.float32)
