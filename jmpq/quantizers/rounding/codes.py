"""Codes of all kernels in all schemes, by GPTQ or AdaRound."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jmpq.devices import shared_journal
from jmpq.formats import Scheme
from jmpq.network.network import Network
from jmpq.quantizers.clipping import to_blocks
from jmpq.quantizers.rounding.adaround import learn_rounding
from jmpq.quantizers.rounding.code_lines import CodeLines
from jmpq.quantizers.rounding.gptq import round_by_hessian
from jmpq.quantizers.rounding.layer_hessian import layer_hessians
from jmpq.quantizers.spec import KernelSpec
from jmpq.quantizers.tiling import Tiling


def hessian_codes(
    network: Network,
    spec: KernelSpec,
    bits: tuple[int, ...],
    tiles: Sequence[Tiling],
    scale: Sequence[Float[Array, "bits _"]],
    zero_point: Sequence[Float[Array, "bits _"]],
    batches: Sequence[PyTree],
    *,
    partial: pathlib.Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Array, ...]:
    """Codes of every layer's kernel for every scheme, by `spec.rounding`.

    Every layer gets its inputs from the float network, because the bits of earlier layers are
    not decided yet. Embeddings are rounded to nearest.

    Args:
        network: Float network.
        spec: Grid, blocks and rounding of the kernels; the rounding is not ``nearest``.
        bits: Numbers of the schemes.
        tiles: Blocks of every layer's kernel.
        scale: Scales ``[bits, blocks]`` per layer.
        zero_point: Zero points ``[bits, blocks]`` per layer.
        batches: Calibration inputs, batch by batch, without padding.
        partial: Journal of rounded layers. Layers that it holds for the same kernels, grids
            and inputs are not rounded again.
        progress: Callback ``(layers done, layers)``.

    Returns:
        Codes ``[bits, blocks, elements]`` per layer: 8-bit integers if they suffice, else
        16-bit; float32 if a scheme is a float format.
    """
    lines = CodeLines.of(bits, spec.grid)
    dtype = code_dtype(bits, spec.grid)
    optimise = {"gptq": round_by_hessian, "adaround": learn_rounding}[spec.rounding]
    codes: list[Array | None] = [None] * len(network.layers)
    journal = shared_journal(partial, {"spec": dataclasses.asdict(spec), "bits": list(bits)})

    def round_layer(layer: int, hessians: Float[np.ndarray, "groups columns columns"]) -> None:
        matrix = network.to_matrix(layer, network.kernels()[layer])
        rows, columns = matrix.shape
        r, c = tiles[layer].block
        block = np.arange(rows)[:, None] // r * (columns // c) + np.arange(columns) // c
        count = len(hessians)
        scales, zeros = (
            np.split(np.asarray(x[layer], np.float64)[:, block], count, axis=1)
            for x in (scale, zero_point)
        )
        kernels = np.split(np.asarray(matrix, np.float64), count)

        def optimised() -> np.ndarray:
            groups = zip(kernels, hessians, scales, zeros, strict=True)
            parts = [optimise(w, hessian, s, z, lines) for w, hessian, s, z in groups]
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
            round_layer(layer, np.eye(network.layers[layer].columns)[None])
    return tuple(rounded for rounded in codes if rounded is not None)


def code_dtype(bits: Sequence[int], grid: str) -> str:
    """Type that holds the codes of all schemes: 8-bit integers if they suffice."""
    schemes = [Scheme.of(b) for b in bits]
    if any(scheme.is_float for scheme in schemes):
        return "float32"
    most = max(scheme.bits for scheme in schemes)
    return f"{'u' if grid == 'affine' else ''}int{8 if most <= 8 else 16}"


def _sha256(arrays: Sequence[np.ndarray]) -> str:
    """Hash of the arrays that determine a layer's codes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
