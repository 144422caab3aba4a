"""Integer codes of all kernels at all bit-widths, where rounding to nearest is not it."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped

from jmpq.files import atomic_file
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
        spec: Its grid and blocks; a rounding other than ``nearest``.
        bits: Bit-widths.
        scale: Per layer, ``[bits, blocks]``.
        zero_point: Per layer, ``[bits, blocks]``.
        batches: Calibration inputs, batch by batch, without padding.
        partial: Folder where the codes of finished layers are kept; what another call of the
            same kernels, grids and inputs left there is not computed again.
        progress: Called with the layers done and their number.

    Returns:
        Per layer ``[bits, blocks, elements]``, 8-bit integers where they suffice.
    """
    widths = jnp.array(bits)[:, None, None]
    least, most = (np.asarray(x, np.float64) for x in code_range(widths, spec.grid, float))
    dtype = f"{'u' if spec.grid == 'affine' else ''}int{8 if max(bits) <= 8 else 16}"
    optimise = {"gptq": round_by_hessian, "adaround": learn_rounding}[spec.rounding]
    codes: list[Array | None] = [None] * len(network.layers)
    finished = _Finished(partial, {"spec": dataclasses.asdict(spec), "bits": list(bits)})

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

        found = finished.get([*kernels, *hessians, *scales, *zeros], optimised)
        whole = jnp.asarray(found, matrix.dtype)
        codes[layer] = jnp.stack([to_blocks(x, (r, c)) for x in whole]).astype(dtype)
        if progress is not None:
            progress(sum(x is not None for x in codes), len(codes))

    for layer, hessians in layer_hessians(network, batches):
        round_layer(layer, hessians)
    for layer, found in enumerate(codes):
        if found is None:
            table = network.layers[layer]
            round_layer(layer, np.eye(table.parameters // table.output_features)[None])
    return tuple(found for found in codes if found is not None)


@dataclasses.dataclass(frozen=True)
class _Finished:
    """Codes in files named by the hash of all that they are made of."""

    folder: pathlib.Path | None
    options: dict

    def get(
        self, arrays: Sequence[np.ndarray], make: Callable[[], np.ndarray]
    ) -> Shaped[np.ndarray, "bits rows columns"]:
        """What is in the folder, or else is made now and kept there."""
        if self.folder is None:
            return make()
        digest = hashlib.sha256(json.dumps(self.options, sort_keys=True).encode())
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes())
        path = self.folder / f"{digest.hexdigest()}.npy"
        if path.is_file():
            return np.load(path, allow_pickle=False)
        found = make()
        with atomic_file(path) as file:
            np.save(file, found)
        return found
