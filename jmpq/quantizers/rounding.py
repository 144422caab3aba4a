"""Integer codes of all kernels at all bit-widths, where they are not simply the nearest."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jmpq.devices import shared_journal
from jmpq.network.network import Network
from jmpq.quantizers.adaround import learn_rounding
from jmpq.quantizers.calibration import to_blocks
from jmpq.quantizers.gptq import round_by_hessian
from jmpq.quantizers.layer_hessian import layer_hessians
from jmpq.quantizers.spec import KernelSpec
from jmpq.quantizers.uniform import code_range


def hessian_codes(
    network: Network,
    spec: KernelSpec,
    bits: tuple[int, ...],
    scale: Sequence[Float[Array, "bits _"]],
    zero_point: Sequence[Float[Array, "bits _"]],
    batches: Sequence[PyTree],
    *,
    partial: pathlib.Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Array, ...]:
    """Codes of every layer's kernel for every bit-width, by `spec.rounding`.

    Every layer sees the inputs it has in the float network, as every bit-width is a candidate
    and what the layers before will get is not known yet. Embeddings, each of whose elements
    counts by itself, are rounded to nearest.

    Args:
        network: The network.
        spec: Grid and blocks of the kernels; a rounding other than ``nearest``.
        bits: Bit-widths.
        scale: Per layer, ``[bits, blocks]``.
        zero_point: Per layer, ``[bits, blocks]``.
        batches: Calibration inputs, batch by batch, without padding.
        partial: File of a journal of rounded layers: those that another call with the same
            kernels, grids and inputs left there are not rounded again.
        progress: Called with the layers done and their number.

    Returns:
        Per layer ``[bits, blocks, elements]``, 8-bit integers where they suffice.
    """
    widths = jnp.array(bits)[:, None, None]
    least, most = (np.asarray(x, np.float64) for x in code_range(widths, spec.grid, float))
    dtype = code_dtype(bits, spec.grid)
    optimise = {"gptq": round_by_hessian, "adaround": learn_rounding}[spec.rounding]
    codes: list[Array | None] = [None] * len(network.layers)
    journal = shared_journal(partial, {"spec": dataclasses.asdict(spec), "bits": list(bits)})

    def round_layer(layer: int, hessians: Float[np.ndarray, "groups columns columns"]) -> None:
        matrix = network.to_matrix(layer, network.kernels()[layer])
        rows, columns = matrix.shape
        r, c = spec.layer_blocks(network.layers[layer])
        block = np.arange(rows)[:, None] // r * (columns // c) + np.arange(columns) // c
        count = len(hessians)
        scales, zeros = (
            np.split(np.asarray(x[layer], np.float64)[:, block], count, axis=1)
            for x in (scale, zero_point)
        )
        kernels = np.split(np.asarray(matrix, np.float64), count)

        def optimised() -> np.ndarray:
            groups = zip(kernels, hessians, scales, zeros, strict=True)
            parts = [optimise(w, hessian, s, z, least, most) for w, hessian, s, z in groups]
            return np.concatenate(parts, axis=1).astype(dtype)

        key = _sha256([*kernels, *hessians, *scales, *zeros])
        if (entry := journal.get(key)) is None:
            rounded = optimised()
            journal.keep(key, arrays={"codes": rounded})
        else:
            rounded = entry.arrays["codes"]
        whole = jnp.asarray(rounded, matrix.dtype)
        codes[layer] = jnp.stack([to_blocks(x, (r, c)) for x in whole]).astype(dtype)
        if progress is not None:
            progress(sum(x is not None for x in codes), len(codes))

    for layer, hessians in layer_hessians(network, batches):
        round_layer(layer, hessians)
    for layer, rounded in enumerate(codes):
        if rounded is None:
            table = network.layers[layer]
            round_layer(layer, np.eye(table.parameters // table.output_features)[None])
    return tuple(rounded for rounded in codes if rounded is not None)


def code_dtype(bits: Sequence[int], grid: str) -> str:
    """Type of the codes of all bit-widths: 8-bit integers where they suffice."""
    return f"{'u' if grid == 'affine' else ''}int{8 if max(bits) <= 8 else 16}"


def _sha256(arrays: Sequence[np.ndarray]) -> str:
    """Hash of all that a layer's codes are made of."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
