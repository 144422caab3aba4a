"""Packed files: a quantized network as safetensors, its codes at their bits.

Tensors: ``codes/LAYER``, ``scale/LAYER`` and ``zero_point/LAYER`` of every quantized kernel;
``params/PATH`` of everything else, 4 bytes each. These are the payload: as many bytes as
``size_bytes`` counts. Beside them lie what a run needs and no cost counts: ``state/PATH``
(frozen statistics), ``inputs/SITE/scale`` and ``.../zero_point``, and corrections.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError
from jaxtyping import Array, Float, PyTree

from jmpq.allocation import Allocation
from jmpq.export.bit_strings import pack, unpack
from jmpq.export.codes import Coded, code_ends, kernel_of_blocks
from jmpq.files import versions
from jmpq.formats import FLOAT_BITS
from jmpq.network.layers import layers_to_json
from jmpq.network.network import Network
from jmpq.network.sites import Op, Site
from jmpq.network.tree_paths import leaf_paths
from jmpq.problem.costs import tensor_bytes
from jmpq.quantizers.fake_quant import input_grid
from jmpq.quantizers.spec import InputSpec, KernelSpec, read_spec
from jmpq.quantizers.uniform import fake_quantize
from jmpq.text import plural, printed
from jmpq.zoo.architectures import ARCHITECTURES, architecture, build_module
from jmpq.zoo.tensor_files import load_tensors, save_tensors, unflatten, weights_sha256

KIND, VERSION = "jmpq/packed", 1
PAYLOAD = ("codes", "scale", "zero_point", "params")
VOCABULARY = "embeddings/word_embeddings/embedding"  # its rows are the tokens


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Packed:
    """A quantized network as its packed file holds it.

    Attributes:
        network: The network; its kernels are placeholders where there are codes.
        allocation: Choice of every layer, unquantized ones too.
        weights: How kernels are put on their grids.
        activations: How inputs are put on their grids.
        tensors: Tensors of the file by name, codes still packed.
        shared: Parameters that are another one's buffer: path by path.
        metadata: What else the file says: versions, hashes, what it was made from.
    """

    network: Network
    allocation: Allocation
    weights: KernelSpec
    activations: InputSpec
    tensors: Mapping[str, Array]
    shared: Mapping[str, str]
    metadata: Mapping[str, Any]

    def __repr__(self) -> str:
        return printed(
            f"Packed network of {plural(len(self.network.layers), 'layer')}, "
            f"{self.size_bytes:,} bytes: codes, scales and unquantized parameters",
            f"allocation: {self.allocation}",
            f"weights: {self.weights.grid}, {self.weights.granularity}",
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of the payload: what cost ``size_bytes`` counts."""
        return _payload(self.tensors)

    def logits(self, inputs: PyTree) -> Float[Array, "batch *output"]:
        """Logits of the quantized network; codes are unpacked inside the compiled program."""
        return self._compiled(dict(self.tensors), jax.tree.map(jnp.asarray, inputs))

    def params(self) -> PyTree:
        """The parameters, quantized kernels as floats on their grids."""
        return jax.jit(self._params)(dict(self.tensors))

    @functools.cached_property
    def _compiled(self) -> Any:
        return jax.jit(self._logits)

    def _logits(self, tensors: dict[str, Array], inputs: PyTree) -> Array:
        network = dataclasses.replace(self.network, params=self._params(tensors))

        def at_site(site: Site, x: Array, op: Op) -> Array:
            bits = self.allocation[site.layer.name].a_bits
            if bits != FLOAT_BITS and site.has_input:
                scale = tensors[f"inputs/{site.name}/scale"]
                zero_point = tensors[f"inputs/{site.name}/zero_point"]
                grid = input_grid(site, self.activations, x.shape, scale, zero_point)
                x = fake_quantize(x, *grid, jnp.array(bits), self.activations.grid)
            y = op(x)
            if (gain := tensors.get(f"corrections/{site.name}/gain")) is None:
                return y
            return gain * y + tensors[f"corrections/{site.name}/shift"]

        return network.run(inputs, at_site)

    def _params(self, tensors: dict[str, Array]) -> PyTree:
        """Parameters from the tensors of the file, inside compiled code too."""
        shapes = self.network.params
        pieces = self.network.tap.pieces
        blank = dataclasses.replace(
            self.network, params=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        )
        names = pieces.names(blank.params)
        own = pieces.split(blank.params)
        for i, name in enumerate(names):
            stored = tensors.get(f"params/{self.shared.get(name, name)}")
            if stored is not None:
                own[i] = stored.astype(own[i].dtype)
        for layer, (table, group) in enumerate(
            zip(self.network.layers, self.network.leaves, strict=True)
        ):
            bits = self.allocation[table.name].w_bits
            kernel = own[group[0]]
            if bits != FLOAT_BITS:
                kernel = self._kernel(blank, layer, tensors, bits).astype(kernel.dtype)
            for piece in group:
                own[piece] = kernel
        return pieces.join(own, blank.params)

    def _kernel(
        self, network: Network, layer: int, tensors: dict[str, Array], bits: int
    ) -> Array:
        table, grid = self.network.layers[layer], self.weights.grid
        scale = tensors[f"scale/{table.name}"]
        least = code_ends(bits, grid)[0]
        codes = unpack(tensors[f"codes/{table.name}"], bits, table.parameters) + least
        codes = codes.reshape(scale.size, -1)
        if grid == "affine":
            codes -= unpack(tensors[f"zero_point/{table.name}"], bits, scale.size)[:, None]
        values = scale[:, None] * codes.astype(scale.dtype)
        dtype = network.kernels()[layer].dtype
        block = self.weights.layer_blocks(table)
        return kernel_of_blocks(network, layer, values.astype(dtype), block)


def save_packed(
    path: pathlib.Path | str,
    coded: Coded,
    *,
    architecture: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> int:
    """Write a packed file, whole or not at all.

    Args:
        path: File to write; its folder is made.
        coded: The network under an allocation (`jmpq.export.codes.take_codes`).
        architecture: Name of a built-in network, with which the file is read without one.
        metadata: JSON values to keep beside.

    Returns:
        Bytes of the payload.

    Raises:
        ValueError: If the network is of float64, which the file cannot hold, or not finite.
        OSError: If the folder cannot be written.
    """
    network = coded.network
    if wide := {str(x.dtype) for x in jax.tree.leaves(network.params) if x.dtype.itemsize > 4}:
        raise ValueError(
            f"The parameters are {', '.join(wide)}: a packed file holds float32. Cast the "
            "network to float32 and calibrate it again."
        )
    shared, tensors = _floats(coded)
    grid = coded.weights.grid
    names, sites = [x.name for x in network.layers], [x.name for x in network.sites]
    for name, kernel in zip(names, coded.kernels, strict=True):
        if kernel is None:
            continue
        least = code_ends(kernel.bits, grid)[0]
        tensors[f"codes/{name}"] = pack((kernel.codes - least).reshape(-1), kernel.bits)
        tensors[f"scale/{name}"] = kernel.scale.astype(np.float32)
        if grid == "affine":
            tensors[f"zero_point/{name}"] = pack(kernel.zero_point, kernel.bits)
    for name, found in zip(sites, coded.inputs, strict=True):
        if found is not None:
            tensors[f"inputs/{name}/scale"] = found.scale
            tensors[f"inputs/{name}/zero_point"] = found.zero_point
    for site, correction in coded.corrections.items():
        tensors[f"corrections/{sites[site]}/gain"] = np.asarray(correction.gain)
        tensors[f"corrections/{sites[site]}/shift"] = np.asarray(correction.shift)
    tensors = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    allocation = Allocation.from_bits(names, _bits(coded))
    record = {
        **(metadata or {}),
        "kind": KIND,
        "packed_version": VERSION,
        "allocation": allocation.to_json(),
        "weights": dataclasses.asdict(coded.weights),
        "activations": dataclasses.asdict(coded.activations),
        "layers": layers_to_json(network.layers),
        "shapes": _shapes(network),
        "sites": sites,
        "shared": shared,
        "inputs": _described(network.tap.inputs),
        "examples": _examples(network),
        "outputs": int(network.tap.output_shapes[0][-1]),
        "payload_bytes": _payload(tensors),
        "tensors_sha256": weights_sha256(tensors),
        "code_sha256": network.code_sha256,
        "versions": versions("jax", "flax"),
        "rebuilt": _is_rebuilt(coded, architecture),
    }
    save_tensors(path, tensors, architecture=architecture, metadata=record)
    return _payload(tensors)


def load_packed(path: pathlib.Path | str, network: Network | None = None) -> Packed:
    """Read a packed file, as one that runs: ``load_packed(path).logits(inputs)``.

    Args:
        path: File that `save_packed` or `jmpq export` wrote.
        network: The network it was made from, whose parameters are not used. Not needed of a
            built-in network that the file names.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a packed file, spoilt, or of another network; the message says
            what differs.
    """
    tensors, header = load_tensors(path)
    record = header["metadata"]
    if record.get("kind") != KIND or record.get("packed_version") != VERSION:
        raise ValueError(
            f"{path} is not a packed network of this version of jmpq (kind "
            f"{record.get('kind')!r}). Choose what `jmpq export --format packed` wrote."
        )
    if weights_sha256(tensors) != record["tensors_sha256"]:
        raise ValueError(
            f"{path} is spoilt: its tensors are not those that were written. Export again."
        )
    if network is None:
        network = _rebuilt(path, header["architecture"], record, tensors)
    _check_network(path, network, record, tensors)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), network.params)
    return Packed(
        network=dataclasses.replace(network, params=shapes),
        allocation=Allocation.from_json(record["allocation"]),
        weights=read_spec(KernelSpec, record["weights"]),
        activations=read_spec(InputSpec, record["activations"]),
        tensors={name: jnp.asarray(tensor) for name, tensor in tensors.items()},
        shared=record["shared"],
        metadata=record,
    )


def expected_bytes(coded: Coded) -> int:
    """Bytes of the payload by the definition of ``size_bytes``, without writing it."""
    network, zeros = coded.network, coded.weights.grid == "affine"
    kernels = sum(
        tensor_bytes(
            layer.parameters,
            FLOAT_BITS if kernel is None else kernel.bits,
            num_scales=coded.weights.layer_scales(layer),
            zero_points=zeros,
        )
        for layer, kernel in zip(network.layers, coded.kernels, strict=True)
    )
    return kernels + 4 * network.other_parameters


def _bits(coded: Coded) -> np.ndarray:
    """Weight and activation bits of every layer."""
    names = [layer.name for layer in coded.network.layers]
    choices = [coded.allocation.choices.get(name) for name in names]
    pairs = [(c.w_bits, c.a_bits) if c else (FLOAT_BITS, FLOAT_BITS) for c in choices]
    return np.array(pairs).T


def _floats(coded: Coded) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Parameters without codes and the frozen statistics; which parameters share a buffer."""
    network, tensors, shared = coded.network, {}, {}
    pieces = network.tap.pieces
    names, buffers = pieces.names(network.params), pieces.buffers(network.params)
    arrays = pieces.split(network.params)
    done = {
        piece
        for group, kernel in zip(network.leaves, coded.kernels, strict=True)
        for piece in (group if kernel is not None else group[1:])
    }
    first: dict[Any, str] = {}
    for i, (name, buffer, array) in enumerate(zip(names, buffers, arrays, strict=True)):
        if i in done:
            continue
        if (other := first.setdefault(buffer, name)) != name:
            shared[name] = other
        else:
            tensors[f"params/{name}"] = np.asarray(array).astype(np.float32)
    for name, leaf in _named(network.state):
        tensors[f"state/{name}"] = np.asarray(leaf)
    return shared, tensors


def _payload(tensors: Mapping[str, Any]) -> int:
    return sum(x.nbytes for name, x in tensors.items() if name.partition("/")[0] in PAYLOAD)


def _named(tree: PyTree) -> list[tuple[str, Any]]:
    return list(zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True))


def _described(inputs: PyTree) -> dict[str, Any]:
    """Shapes and types of one example's inputs, by path."""
    return {path: [list(x.shape[1:]), str(x.dtype)] for path, x in _named(inputs)}


def _examples(network: Network) -> int:
    """Number of examples that the network was traced with."""
    return int(jax.tree.leaves(network.tap.inputs)[0].shape[0])


def _shapes(network: Network) -> dict[str, list[int]]:
    """Shapes of the parameters by path."""
    pieces = network.tap.pieces
    arrays = pieces.split(network.params)
    names = pieces.names(network.params)
    return {name: list(x.shape) for name, x in zip(names, arrays, strict=True)}


def _is_rebuilt(coded: Coded, name: str) -> bool:
    """Whether the built-in network of a name computes what this network does."""
    if name not in ARCHITECTURES:
        return False
    network = coded.network
    tensors = {f"params/{path}": np.asarray(x) for path, x in _named(network.params)}
    tensors |= {f"state/{path}": np.asarray(x) for path, x in _named(network.state)}
    outputs, inputs = int(network.tap.output_shapes[0][-1]), _described(network.tap.inputs)
    try:
        other = _built(name, outputs, inputs, tensors, _examples(network))
    except (ValueError, KeyError, FlaxError):  # of another shape, or without what it needs
        return False
    return other.layers == network.layers and other.code_sha256 == network.code_sha256


def _rebuilt(
    path: pathlib.Path | str, name: str, record: Mapping[str, Any], tensors: Mapping[str, Any]
) -> Network:
    """The built-in network that a file names.

    Raises:
        ValueError: If it is not of a built-in network.
    """
    if not record["rebuilt"]:
        raise ValueError(
            f"{path} is not of a built-in network as it stands ({name or 'no name'}): pass the "
            "network it was made from, load_packed(path, network)."
        )
    blank = dict(tensors)
    for piece, shape in record["shapes"].items():
        blank.setdefault(f"params/{piece}", np.zeros(shape, np.float32))
    return _built(name, record["outputs"], record["inputs"], blank, record["examples"])


def _built(
    name: str,
    outputs: int,
    inputs: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    examples: int,
) -> Network:
    """A built-in network from tensors by path, traced with so many examples."""
    words = tensors.get(f"params/{VOCABULARY}")
    module = build_module(name, outputs, None if words is None else len(words))

    def under(prefix: str) -> dict[str, Any]:
        own = {k: x for k, x in tensors.items() if k.startswith(f"{prefix}/")}
        return unflatten({k.removeprefix(f"{prefix}/"): x for k, x in own.items()})

    example: Any = {
        k: jnp.zeros((examples, *shape), dtype) for k, (shape, dtype) in inputs.items()
    }
    example = example.get("", example)
    variables = {"params": under("params"), **under("state")}
    return Network.from_linen(module, variables, example, tied=architecture(name).tied)


def _check_network(
    path: pathlib.Path | str,
    network: Network,
    record: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
) -> None:
    """Raise `ValueError` where a file is of another network; it says what differs."""
    differs = _difference(network, record, tensors)
    if differs:
        raise ValueError(
            f"{path} is of another network: {differs}. Give the network that was exported."
        )


def _difference(
    network: Network, record: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> str:
    stored, own = record["layers"], layers_to_json(network.layers)
    if len(stored) != len(own):
        return f"it has {plural(len(stored), 'layer')}, this one {len(own)}"
    for one, other in zip(stored, own, strict=True):
        for key in ("name", "kernel", "kernel_shape", "macs"):
            if one[key] != _plain(other[key]):
                return f"layer {other['name']!r} has {key} {one[key]}, expected {other[key]}"
    pieces = network.tap.pieces
    named = dict(zip(pieces.names(network.params), pieces.split(network.params), strict=True))
    for kind, arrays in (("params", named), ("state", dict(_named(network.state)))):
        for name, tensor in tensors.items():
            what, _, leaf = name.partition("/")
            if what != kind:
                continue
            if leaf not in arrays or arrays[leaf].shape != tensor.shape:
                return f"{leaf!r} is not there, or not of shape {tensor.shape}"
            if kind == "state" and not np.array_equal(tensor, arrays[leaf]):
                return f"the frozen statistics {leaf!r} differ"
    traced = {
        "versions": versions("jax", "flax"),
        "inputs": _described(network.tap.inputs),
        "examples": _examples(network),
    }
    comparable = all(record[key] == value for key, value in traced.items())
    if comparable and record["code_sha256"] != network.code_sha256:
        return "what it computes differs, though its layers are the same"
    return ""


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
