"""Schemes by their definitions, in NumPy with ml_dtypes: what quantizers are compared with."""

import ml_dtypes
import numpy as np

FLOATS = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
}
LARGEST = {"e4m3": 448.0, "e5m2": 57344.0, "e3m2": 28.0, "e2m3": 7.5, "e2m1": 6.0}


def cast(x, kind):
    """Nearest value of a small float; values beyond its ends become the ends."""
    kept = np.clip(x, -LARGEST[kind], LARGEST[kind]).astype(x.dtype)
    return kept.astype(FLOATS[kind]).astype(x.dtype)


def in_blocks(rows, size, function):
    """A function of every block of `size` values along the last axis, the last one shorter."""
    starts = range(0, rows.shape[-1], size)
    return np.concatenate([function(rows[..., i : i + size]) for i in starts], axis=-1)


def mx(rows, name):
    """A Microscaling format along the last axis (OCP MX 1.0, section 6.3)."""
    kind = "e2m1" if name == "mxfp4" else name.partition("_")[2]

    def block(x):
        amax = np.abs(x).max(-1, keepdims=True)
        e_max = 0 if name == "mxint8" else np.floor(np.log2(LARGEST[kind]))
        amax = np.where(amax > 0, amax, 1)
        scale = np.exp2(np.floor(np.log2(amax)) - e_max).astype(x.dtype)
        if name == "mxint8":
            return (np.clip(np.round(x / scale * 64), -127, 127) / 64 * scale).astype(x.dtype)
        return cast(x / scale, kind) * scale

    return in_blocks(rows, 32, block)


def nvfp4(rows, largest):
    """NVFP4 along the last axis, `largest` the greatest magnitude of the tensor."""
    tensor = np.asarray(largest, rows.dtype) / np.asarray(448 * 6, rows.dtype)

    def block(x):
        amax = np.abs(x).max(-1, keepdims=True)
        scale = np.maximum(cast(amax / np.asarray(6, x.dtype) / tensor, "e4m3"), 2.0**-9)
        scale = scale.astype(x.dtype) * tensor
        return cast(x / scale, "e2m1") * scale

    return in_blocks(rows, 16, block)


def integers(rows, bits, size):
    """Symmetric integers with a scale for every `size` values, from the greatest magnitude."""
    most = 2 ** (bits - 1) - 1

    def block(x):
        scale = np.abs(x).max(-1, keepdims=True) / most
        return np.clip(np.round(x / scale), -most, most) * scale

    return in_blocks(rows, size, block)


def small_float(rows, kind, size):
    """A small float with a scale for every `size` values: the greatest is at its end."""

    def block(x):
        scale = np.abs(x).max(-1, keepdims=True) / LARGEST[kind]
        return cast(x / scale, kind) * scale

    return in_blocks(rows, size, block)


def quantized(rows, name, *, size):
    """A matrix by any scheme, `size` values to a scale where the scheme does not say it."""
    if name.startswith("mx"):
        return mx(rows, name)
    if name == "nvfp4":
        return nvfp4(rows, np.abs(rows).max())
    if name in ("bf16", "f16"):
        kind = ml_dtypes.bfloat16 if name == "bf16" else np.float16
        return rows.astype(kind).astype(rows.dtype)
    plain, _, group = name.partition("_g")
    size = int(group) if group else size
    if plain.startswith("int"):
        return integers(rows, int(plain[3:]), size)
    return small_float(rows, plain.partition("_")[2], size)
