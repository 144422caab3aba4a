"""Packed files: a quantized network as safetensors, its codes at their bits.

The payload has exactly the bytes that cost ``size_bytes`` counts: ``codes/LAYER``,
``scale/LAYER`` and ``zero_point/LAYER`` of every quantized kernel, and ``params/PATH`` of all
other parameters, 4 bytes each. Codes of float formats are bit patterns. Scales are e8m0 for MX,
and e4m3 with a ``tensor_scale`` for NVFP4. The file also holds what inference needs and no cost
counts: ``state/PATH`` (frozen statistics), ``inputs/SITE/scale`` and ``.../zero_point``,
``stream/POINT/...`` likewise, and corrections. Rows of keys and values (`with_cache`) have no
kernel; their formats are in the allocation and their scales among the inputs'.
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
from jmpq.export.float_codes import decode, decode_scales, encode_scales
from jmpq.files import versions
from jmpq.formats import UNQUANTIZED, Scheme
from jmpq.kinds import check_kinds
from jmpq.network.layers import layers_to_json
from jmpq.network.network import Network
from jmpq.network.sites import Op, Site
from jmpq.network.tree_paths import leaf_paths
from jmpq.network.walk import bind
from jmpq.problem.costs import tensor_bytes
from jmpq.quantizers.fake_quant import quantize_by
from jmpq.quantizers.integer_bias import with_integer_biases
from jmpq.quantizers.learned import tensor_names
from jmpq.quantizers.products import with_cache
from jmpq.quantizers.scales import kernel_tiles
from jmpq.quantizers.spec import InputSpec, KernelSpec, read_spec
from jmpq.quantizers.stream import Point, run_on_stream, stream_number
from jmpq.quantizers.uniform import fake_quantize
from jmpq.text import plural, printed
from jmpq.zoo.architectures import ARCHITECTURES, architecture, build_module
from jmpq.zoo.tensor_files import load_tensors, save_tensors, unflatten, weights_sha256

KIND, VERSION = "jmpq/packed", 1
PAYLOAD = ("codes", "scale", "tensor_scale", "zero_point", "params")
VOCABULARY = "embeddings/word_embeddings/embedding"  # its rows are the tokens


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Packed:
    """A quantized network as its packed file holds it.

    Attributes:
        network: Network; kernels that have codes are placeholders.
        allocation: Choice of every layer, including unquantized layers.
        weights: Specification of kernels.
        activations: Specification of activations.
        tensors: Tensors of the file by name; codes are packed.
        shared: Path of the parameter whose buffer is stored, by path of its alias.
        metadata: Header of the file: versions, hashes, provenance.
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
        """Bytes of the payload, as cost ``size_bytes`` counts them."""
        return _payload(self.tensors)

    def logits(self, inputs: PyTree) -> Float[Array, "batch *output"]:
        """Logits of the quantized network; codes are unpacked inside the compiled program."""
        return self._compiled(dict(self.tensors), jax.tree.map(jnp.asarray, inputs))

    def params(self) -> PyTree:
        """Parameters, with quantized kernels dequantized to floats."""
        return jax.jit(self._params)(dict(self.tensors))

    @functools.cached_property
    def _compiled(self) -> Any:
        return jax.jit(self._logits)

    def _logits(self, tensors: dict[str, Array], inputs: PyTree) -> Array:
        network = dataclasses.replace(self.network, params=self._params(tensors))

        def at_site(site: Site, x: Array, op: Op) -> Array:
            scheme = self.allocation[site.layer.name].activations
            if not scheme.is_none and site.has_input:
                scale = tensors[f"inputs/{site.name}/scale"]
                zero_point = tensors[f"inputs/{site.name}/zero_point"]
                x = quantize_by(site, x, scheme, self.activations, scale, zero_point)
            y = op(x)
            if (gain := tensors.get(f"corrections/{site.name}/gain")) is None:
                return y
            return gain * y + tensors[f"corrections/{site.name}/shift"]

        def at_point(point: Point, x: Array) -> Array:
            if (scale := tensors.get(f"stream/{point.name}/scale")) is None:
                return x
            choice = self.allocation[network.layers[point.layer_index].name]
            grid = scale.reshape(()), tensors[f"stream/{point.name}/zero_point"].reshape(())
            bits = jnp.array(stream_number(choice.activations.number))
            return fake_quantize(x, *grid, bits, self.activations.grid)

        transform, rule = at_site, bind
        if self.activations.int32_biases:
            step = functools.partial(self._step, tensors)
            transform, rule = with_integer_biases(network, inputs, step, transform, rule)
        if self.activations.placement == "inputs":
            return network.run(inputs, transform, rule=rule)
        return run_on_stream(network, inputs, transform, at_point, rule=rule)

    def _step(self, tensors: dict[str, Array], site: Site) -> Array | None:
        """Scales of a site's products, as in `product_steps`."""
        table = site.layer
        choice = self.allocation[table.name]
        plain = all(x.is_plain and not x.is_none for x in (choice.weights, choice.activations))
        if not plain or not site.has_input:
            return None
        scale = tensors[f"inputs/{site.name}/scale"]
        rows, columns = self.weights.layer_blocks(table)
        whole_rows = columns * table.output_features == table.parameters
        if scale.size != 1 or not whole_rows or rows not in (1, table.output_features):
            return None
        return scale * tensors[f"scale/{table.name}"]

    def _params(self, tensors: dict[str, Array]) -> PyTree:
        """Parameters from the tensors of the file, also for traced tensors."""
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
            if table.kind == "cache":  # it has no kernel
                continue
            scheme = self.allocation[table.name].weights
            kernel = own[group[0]]
            if not scheme.is_none:
                kernel = self._kernel(blank, layer, tensors, scheme).astype(kernel.dtype)
            for piece in group:
                own[piece] = kernel
        return pieces.join(own, blank.params)

    def _kernel(
        self, network: Network, layer: int, tensors: dict[str, Array], scheme: Scheme
    ) -> Array:
        table, bits = self.network.layers[layer], scheme.bits
        (tiling,) = kernel_tiles([table], self.weights, [scheme.number])
        stored = {
            what: tensors[f"{what}/{table.name}"]
            for what in ("scale", "tensor_scale")
            if f"{what}/{table.name}" in tensors
        }
        index = tiling.spread(0)
        scale = decode_scales(stored, scheme, tiling.count(0))[index]
        codes = unpack(tensors[f"codes/{table.name}"], bits, table.parameters)
        if scheme.is_float:
            exact = decode(codes, scheme.format, scale.dtype).reshape(scale.size, -1)
        else:
            codes = (codes + code_ends(bits, self.weights.grid)[0]).reshape(scale.size, -1)
            if self.weights.grid == "affine":
                zeros = tensors[f"zero_point/{table.name}"]
                codes -= unpack(zeros, bits, tiling.count(0))[index][:, None]
            exact = codes.astype(scale.dtype)
        dtype = network.kernels()[layer].dtype
        values = (scale[:, None] * exact).astype(dtype)
        return kernel_of_blocks(network, layer, values, tiling.block)


def save_packed(
    path: pathlib.Path | str,
    coded: Coded,
    *,
    architecture: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> int:
    """Write a packed file, atomically.

    Args:
        path: File to write; its folder is created.
        coded: The network under an allocation (`jmpq.export.codes.take_codes`).
        architecture: Name of a built-in network; `load_packed` then needs no network.
        metadata: JSON values to keep in the header.

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
    names, sites, points = tensor_names(network)
    for name, kernel in zip(names, coded.kernels, strict=True):
        if kernel is None:
            continue
        scheme = kernel.scheme
        least = 0 if scheme.is_float else code_ends(kernel.bits, grid)[0]
        tensors[f"codes/{name}"] = pack((kernel.codes - least).reshape(-1), kernel.bits)
        for what, scales in encode_scales(kernel.own(kernel.scale), scheme).items():
            tensors[f"{what}/{name}"] = scales
        if grid == "affine" and not scheme.is_float:
            tensors[f"zero_point/{name}"] = pack(kernel.own(kernel.zero_point), kernel.bits)
    for kind, known, grids in (
        ("inputs", sites, coded.inputs),
        ("stream", points, coded.stream),
    ):
        for name, found in zip(known, grids, strict=True):
            if found is not None:
                tensors[f"{kind}/{name}/scale"] = found.scale
                tensors[f"{kind}/{name}/zero_point"] = found.zero_point
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
        "kv_cache": bool(network.tap.caches),
        "outputs": int(network.tap.output_shapes[0][-1]),
        "payload_bytes": _payload(tensors),
        "tensors_sha256": weights_sha256(tensors),
        "code_sha256": network.code_sha256,
        "versions": versions("jax", "flax"),
        "rebuilt": _is_rebuilt(coded, architecture),
    }
    save_tensors(path, tensors, architecture=architecture, metadata=record)
    return _payload(tensors)


@check_kinds
def load_packed(path: pathlib.Path | str, network: Network | None = None) -> Packed:
    """Read a packed file for inference: ``load_packed(path).logits(inputs)``.

    Args:
        path: File that `save_packed` or `jmpq export` wrote.
        network: Network that the file was made from; its parameters are not used. Not needed
            if the file names a built-in network.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a packed file, is corrupt, or belongs to another network; the
            message gives the difference.
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
    """Bytes of the payload by the definition of ``size_bytes``, without writing a file."""
    network, zeros = coded.network, coded.weights.grid == "affine"
    kernels = sum(
        tensor_bytes(
            layer.parameters,
            UNQUANTIZED.weights if kernel is None else kernel.scheme,
            num_scales=0 if kernel is None else len(kernel.own(kernel.scale)),
            zero_points=zeros,
        )
        for layer, kernel in zip(network.layers, coded.kernels, strict=True)
    )
    return kernels + 4 * network.other_parameters


def _bits(coded: Coded) -> np.ndarray:
    """Scheme numbers of every layer: weights, and activations."""
    names = [layer.name for layer in coded.network.layers]
    choices = [coded.allocation.choices.get(name, UNQUANTIZED) for name in names]
    pairs = [(c.weights.number, c.activations.number) for c in choices]
    return np.array(pairs).T


def _floats(coded: Coded) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Parameters without codes, frozen statistics, and aliases of shared buffers."""
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
    """Batch size with which the network was traced."""
    return int(jax.tree.leaves(network.tap.inputs)[0].shape[0])


def _shapes(network: Network) -> dict[str, list[int]]:
    """Shapes of the parameters by path."""
    pieces = network.tap.pieces
    arrays = pieces.split(network.params)
    names = pieces.names(network.params)
    return {name: list(x.shape) for name, x in zip(names, arrays, strict=True)}


def _is_rebuilt(coded: Coded, name: str) -> bool:
    """Whether the built-in network of a name equals this network."""
    if name not in ARCHITECTURES:
        return False
    network = coded.network
    tensors = {f"params/{path}": np.asarray(x) for path, x in _named(network.params)}
    tensors |= {f"state/{path}": np.asarray(x) for path, x in _named(network.state)}
    outputs, inputs = int(network.tap.output_shapes[0][-1]), _described(network.tap.inputs)
    cached = bool(network.tap.caches)
    try:
        other = _built(name, outputs, inputs, tensors, _examples(network), cached=cached)
    except (ValueError, KeyError, FlaxError):  # of another shape, or without what it needs
        return False
    return other.layers == network.layers and other.code_sha256 == network.code_sha256


def _rebuilt(
    path: pathlib.Path | str, name: str, record: Mapping[str, Any], tensors: Mapping[str, Any]
) -> Network:
    """The built-in network that a file names.

    Raises:
        ValueError: If the file does not name a built-in network.
    """
    if not record["rebuilt"]:
        raise ValueError(
            f"{path} is not of a built-in network as it stands ({name or 'no name'}): pass the "
            "network it was made from, load_packed(path, network)."
        )
    blank = dict(tensors)
    for piece, shape in record["shapes"].items():
        blank.setdefault(f"params/{piece}", np.zeros(shape, np.float32))
    outputs, inputs, examples = (record[key] for key in ("outputs", "inputs", "examples"))
    return _built(name, outputs, inputs, blank, examples, cached=record.get("kv_cache", False))


def _built(
    name: str,
    outputs: int,
    inputs: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    examples: int,
    *,
    cached: bool,
) -> Network:
    """A built-in network from tensors by path, traced with `examples` examples; if `cached`,
    with rows of keys and values.
    """  # noqa: D205
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
    network = Network.from_linen(module, variables, example, tied=architecture(name).tied)
    return with_cache(network) if cached else network


def _check_network(
    path: pathlib.Path | str,
    network: Network,
    record: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
) -> None:
    """Check that a file belongs to the network.

    Raises:
        ValueError: If not; the message gives the difference.
    """
    differs = _difference(network, record, tensors)
    if differs:
        raise ValueError(
            f"{path} is of another network: {differs}. Give the network that was exported."
        )


def _difference(
    network: Network, record: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> str:
    rows, cached = "rows of keys and values", bool(network.tap.caches)
    if record.get("kv_cache", False) != cached:
        if cached:
            return f"it has no {rows}, this one has"
        return f"it has {rows}, this one has none (jmpq.with_cache adds them)"
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
