"""A fine-tuned network: parameters, learned scales, allocation, as a value and as a file."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jmpq.allocation import Allocation, bit_arrays
from jmpq.deploy.correction import Correction, Corrections, corrected_logits
from jmpq.deploy.measure import Evaluator
from jmpq.formats import FLOAT_BITS
from jmpq.kinds import check_kinds
from jmpq.network.network import Network
from jmpq.network.tree_paths import leaf_paths
from jmpq.quantizers.learned import rows_of, tensor_bits, tensor_names
from jmpq.quantizers.scales import KINDS, Quantizers, Scales
from jmpq.quantizers.spec import InputSpec, KernelSpec, read_spec
from jmpq.zoo.tensor_files import load_tensors, save_tensors

ARCHITECTURE = "jmpq/finetuned"


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Finetuned:
    """The result of fine-tuning under one allocation.

    Attributes:
        network: The network with its new parameters, not yet quantized.
        quantizers: The scales, meant for this allocation and no other.
        allocation: Choice of every layer, unquantized ones included.
        corrections: Corrections of the layers' outputs, made before the first step, by site.
        losses: Training loss of every step, nats per example.
    """

    network: Network
    quantizers: Quantizers
    allocation: Allocation
    corrections: Corrections
    losses: Float[np.ndarray, " steps"]

    @property
    def bits(self) -> Int[np.ndarray, "2 layers"]:
        """Weight and activation bits of every layer."""
        names = [layer.name for layer in self.network.layers]
        return bit_arrays(names, [self.allocation])[0]

    def logits(self, inputs: PyTree) -> Float[Array, "batch *output"]:
        """Logits of the quantized network."""
        w_bits, a_bits = map(jnp.array, self.bits)
        inputs = jax.tree.map(jnp.asarray, inputs)
        return corrected_logits(
            self.network, self.quantizers, w_bits, a_bits, inputs, self.corrections
        )

    def evaluator(self, like: Evaluator) -> Evaluator:
        """Measures this network on the examples and by the loss of another evaluator.

        Losses and logits are compared with those of the other's float network.
        """
        return Evaluator(
            self.network,
            self.quantizers,
            like.batches,
            loss=like.loss,
            candidates_per_call=1,
            corrections=self.corrections,
            reference=like.float_network,
        )


def save_finetuned(
    path: pathlib.Path | str,
    finetuned: Finetuned,
    *,
    architecture: str,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a safetensors file, whole or not at all.

    Tensors: ``params/PATH``; ``state/PATH``, the frozen statistics; of what is quantized
    ``weights/LAYER/scale``, ``activations/SITE/scale`` and ``stream/POINT/scale``, one value
    per block, with ``zero_point`` on the affine grid; ``corrections/SITE/gain`` and
    ``.../shift``. Metadata: bits by layer, specifications of the quantizers.

    Raises:
        ValueError: If a tensor is not finite.
        OSError: If the folder cannot be written.
    """
    network, quantizers = finetuned.network, finetuned.quantizers
    tensors = {
        f"{what}/{name}": leaf
        for what, tree in (("params", network.params), ("state", network.state))
        for name, leaf in _named(tree)
    }
    names = tensor_names(network)
    bits = tensor_bits(network, *finetuned.bits.tolist())
    both = rows_of(network, quantizers, *finetuned.bits.tolist())
    specs: dict[str, Any] = {}
    for i, kind in enumerate(KINDS):
        scales: Scales | None = getattr(quantizers, kind)
        if scales is None or not scales.bits:
            continue
        specs[kind] = dataclasses.asdict(scales.spec)
        kept = ("scale", "zero_point") if scales.spec.grid == "affine" else ("scale",)
        for what, rows in zip(("scale", "zero_point"), both, strict=True):
            for name, b, row in zip(names[i], bits[i], rows[i], strict=True):
                if b != FLOAT_BITS and what in kept:
                    tensors[f"{kind}/{name}/{what}"] = row
    for site, correction in finetuned.corrections.items():
        tensors[f"corrections/{names[1][site]}/gain"] = correction.gain
        tensors[f"corrections/{names[1][site]}/shift"] = correction.shift
    save_tensors(
        path,
        {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()},
        architecture=architecture,
        metadata={
            **(metadata or {}),
            "kind": ARCHITECTURE,
            "bits": finetuned.allocation.to_json(),
            "quantizers": specs,
        },
    )


@check_kinds
def load_finetuned(path: pathlib.Path | str, network: Network) -> Finetuned:
    """Read what `save_finetuned` wrote.

    Args:
        path: File to read.
        network: The network that was fine-tuned; its parameters are replaced.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not such a file, or of another network: the tensor or layer is
            named.
    """
    tensors, header = load_tensors(path)
    record = header["metadata"]
    if record.get("kind") != ARCHITECTURE:
        raise ValueError(
            f"{path} holds no fine-tuned network (kind {record.get('kind')!r}). Choose what "
            "`jmpq finetune` wrote."
        )
    leaves = [
        jnp.asarray(_tensor(path, tensors, f"params/{name}", leaf.shape), leaf.dtype)
        for name, leaf in _named(network.params)
    ]
    for name, leaf in _named(network.state):
        stored = _tensor(path, tensors, f"state/{name}", leaf.shape)
        if not np.array_equal(stored, leaf):
            raise ValueError(
                f"{path} is of another network: its frozen statistics {name!r} differ. Give "
                "the network that was fine-tuned."
            )
    names = tensor_names(network)
    if lacking := [name for name in names[0] if name not in record["bits"]]:
        raise ValueError(f"{path} is of another network: layer {lacking[0]!r} has no bits.")
    allocation = Allocation.from_json(record["bits"])
    bits = tensor_bits(network, *bit_arrays(names[0], [allocation])[0].tolist())
    dtype = network.kernels()[0].dtype
    scales: dict[str, Scales] = {}
    for i, kind in enumerate(KINDS):
        spec = record["quantizers"].get(kind)
        widths = tuple(sorted(set(bits[i]) - {FLOAT_BITS})) if spec else ()
        rows: dict[str, tuple[Array, ...]] = {}
        for what, default in (("scale", 1.0), ("zero_point", 0.0)):
            by_bits = []
            for name in names[i]:
                scale = tensors.get(f"{kind}/{name}/scale", np.ones(1, dtype))
                row = tensors.get(f"{kind}/{name}/{what}", np.full_like(scale, default))
                by_bits.append(jnp.broadcast_to(jnp.asarray(row), (len(widths), len(row))))
            rows[what] = tuple(by_bits)
        if spec or kind == "weights":
            spec_class = KernelSpec if kind == "weights" else InputSpec
            scales[kind] = Scales(
                spec=read_spec(spec_class, spec or {}),
                bits=widths,
                scale=rows["scale"],
                zero_point=rows["zero_point"],
            )
    corrections = {
        site: Correction(*(jnp.asarray(tensors[f"corrections/{name}/{x}"])
                           for x in Correction._fields))
        for site, name in enumerate(names[1])
        if f"corrections/{name}/gain" in tensors
    }  # fmt: skip
    return Finetuned(
        network=dataclasses.replace(
            network, params=jax.tree.unflatten(jax.tree.structure(network.params), leaves)
        ),
        quantizers=Quantizers(**{"activations": None, **scales}),
        allocation=allocation,
        corrections=corrections,
        losses=np.zeros(0),
    )


def _named(tree: PyTree) -> list[tuple[str, Array]]:
    return list(zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True))


def _tensor(
    path: pathlib.Path | str,
    tensors: Mapping[str, np.ndarray],
    name: str,
    shape: tuple[int, ...],
) -> np.ndarray:
    tensor = tensors.get(name)
    if tensor is None or tensor.shape != shape:
        what = "absent" if tensor is None else f"of shape {tensor.shape}"
        raise ValueError(
            f"{path} is of another network: {name!r} is {what}, expected {shape}. Give the "
            "network that was fine-tuned."
        )
    return tensor
