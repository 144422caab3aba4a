"""Codes of 1 to 16 bits as a string of bytes, without gaps, and back inside compiled code.

Code i has the bits i·b to i·b + b − 1 of the string, least significant bit first, also within
bytes. Eight codes take exactly b bytes, so every shift is known at compile time.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

GROUP = 8  # number of codes that fill whole bytes at any bit-width


def pack(codes: Int[np.ndarray, " codes"], bits: int) -> UInt8[np.ndarray, " bytes"]:
    """Pack unsigned codes into ``ceil(codes · bits / 8)`` bytes.

    >>> pack(np.array([5, 2, 7]), 3).tolist()  # 101, 010, 111: 0b11_010_101, 0b1
    [213, 1]

    Raises:
        ValueError: If a code does not fit.
    """
    codes = np.asarray(codes)
    if codes.size and not 0 <= codes.min() <= codes.max() < 2**bits:
        raise ValueError(
            f"Codes from {codes.min()} to {codes.max()} do not fit {bits} bits: expected 0 to "
            f"{2**bits - 1}."
        )
    ones = codes[:, None] >> np.arange(bits) & 1
    return np.packbits(ones.astype(np.uint8).reshape(-1), bitorder="little")


def unpack(packed: UInt8[Array, " bytes"], bits: int, count: int) -> Int[Array, " count"]:
    """Inverse of `pack`, for NumPy or traced arrays; `bits` and `count` are static."""
    groups = -(-count // GROUP)
    whole = jnp.pad(packed, (0, groups * bits - packed.size)).reshape(groups, bits)
    words = whole.astype(jnp.uint32)
    columns = []
    for i in range(GROUP):
        first, shift = divmod(i * bits, 8)
        word = words[:, first]
        for extra in range(1, -(-(shift + bits) // 8)):
            word = word | words[:, first + extra] << np.uint32(8 * extra)
        columns.append(word >> np.uint32(shift) & np.uint32(2**bits - 1))
    codes = jnp.stack(columns, axis=1).reshape(-1)[:count]
    # Not `astype`: XLA on the CPU miscompiles converted small integers before a convolution.
    return jax.lax.bitcast_convert_type(codes, jnp.int32)
