"""Formats of `jmpq export`: writer of the file, and programs that run it."""

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmpq.export.check import (
    LEAST_BITS,
    ONNX_RUNNERS,
    OnnxRuntime,
    Runner,
    litert_runner,
    packed_runner,
    stablehlo_runner,
)
from jmpq.export.codes import Coded, stored_bits, unquantized
from jmpq.export.exchange.tools import TOOLS, tell
from jmpq.export.packed import load_packed, save_packed
from jmpq.files import atomic_file, write_json
from jmpq.network.network import Network
from jmpq.problem.costs import tensor_bytes

Program = Callable[[pathlib.Path, Network], tuple[Runner, Runner]]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """Export to be written.

    Attributes:
        coded: The network under an allocation.
        path: File to write.
        architecture: Name of a built-in network.
        metadata: JSON values that a packed file keeps.
        native: Whether ONNX reads codes below 8 bits directly, as in `OnnxOptions`.
        runtimes: Programs that an ONNX file is for.
        smallest: Least bits at which codes are stored; None for the format's default.
        examples: Calibration inputs, batch by batch.
    """

    coded: Coded
    path: pathlib.Path
    architecture: str = ""
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    native: bool = False
    runtimes: Sequence[OnnxRuntime] = ("onnxruntime",)
    smallest: int | None = None
    examples: Sequence[PyTree] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Written:
    """Result of an export.

    Attributes:
        payload_bytes: Bytes of codes, scales and unquantized parameters; 0 if the file holds
            none.
        widened: Stored bits, by layer, of codes that are stored at more than their own bits.
        widened_bytes: Bytes added by wider storage.
        reason: Reason for wider storage.
        left_out: Information that the format cannot express, one sentence each.
    """

    payload_bytes: int = 0
    widened: Mapping[str, int] = dataclasses.field(default_factory=dict)
    widened_bytes: int = 0
    reason: str = ""
    left_out: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """An export format.

    Attributes:
        suffix: Ending of the file's name.
        write: Function that writes the file.
        packages: Packages that writing needs.
        programs: Runners of the file and of the float network, by package that runs them.
        calibrates: Whether writing needs calibration inputs.
    """

    suffix: str
    write: Callable[[Job], Written]
    packages: tuple[str, ...] = ()
    programs: Mapping[str, Program] = dataclasses.field(default_factory=dict)
    calibrates: bool = False

    @property
    def own(self) -> str:
        """The package that runs such a file, if there is exactly one."""
        return next(iter(self.programs)) if len(self.programs) == 1 else ""


def float_runner(network: Network) -> Runner:
    """Runner of the float network in JAX."""
    logits = jax.jit(lambda network, inputs: network.logits(inputs))
    return lambda inputs: np.asarray(logits(network, jax.tree.map(jnp.asarray, inputs)))


def _write_packed(job: Job) -> Written:
    options = {"architecture": job.architecture, "metadata": job.metadata}
    return Written(payload_bytes=save_packed(job.path, job.coded, **options))


def _write_stablehlo(job: Job) -> Written:
    from jmpq.export.stablehlo import save_stablehlo

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "net.safetensors"
        _write_packed(dataclasses.replace(job, path=path))
        packed = load_packed(path, job.coded.network)
    # The points of the stream are found where the number of examples is known.
    fixed = packed.activations.placement == "stream"
    size = save_stablehlo(job.path, packed, batch=1 if fixed else None)
    one = ("With activations on the stream a program takes one example a call.",)
    return Written(payload_bytes=size, left_out=one if fixed else ())


def _write_onnx(job: Job) -> Written:
    from jmpq.export.onnx_graph import OnnxOptions, save_onnx

    least = max(job.smallest or 2, *(LEAST_BITS[runtime] for runtime in job.runtimes))
    smallest: Any = stored_bits(least)
    model = save_onnx(job.path, job.coded, OnnxOptions(native=job.native, smallest=smallest))
    widths = ", ".join(str(bits) for bits in (2, 4, 8) if bits >= smallest)
    verb = "reads" if len(job.runtimes) == 1 else "read"
    widened, more = _widened(job.coded, lambda bits, _: stored_bits(bits, smallest))
    return Written(
        payload_bytes=sum(len(x.raw_data) for x in model.graph.initializer),
        widened=widened,
        widened_bytes=more,
        reason=f"{' and '.join(job.runtimes)} {verb} codes of {widths} and 16 bits",
    )


def _onnx_program(runtime: OnnxRuntime) -> Program:
    def both(path: pathlib.Path, network: Network) -> tuple[Runner, Runner]:
        from jmpq.export.onnx_graph import onnx_model

        start = ONNX_RUNNERS[runtime]
        return start(path), start(onnx_model(unquantized(network)).SerializeToString())

    return both


def _write_litert(job: Job) -> Written:
    from jmpq.export.exchange.ai_edge import kernel_width
    from jmpq.export.litert import payload_bytes, save_litert

    smallest = job.smallest or 8
    content = save_litert(job.path, job.coded, job.examples, smallest)
    width = lambda bits, deep: kernel_width(bits, deep, smallest)  # noqa: E731
    widened, more = _widened(job.coded, width)
    grain, taken = job.coded.activations.granularity, ()
    if grain != "tensor" and any(grid is not None for grid in job.coded.inputs):
        taken = (
            f"Inputs: granularity {grain!r} here, 'tensor' in LiteRT, with the ranges of "
            "calibration examples.",
        )
    return Written(
        left_out=taken,
        payload_bytes=payload_bytes(content),
        widened=widened,
        widened_bytes=more,
        reason="LiteRT has no type or no fast kernel of theirs",
    )


def _float_litert(network: Network) -> Runner:
    from jmpq.export.litert import float_litert

    return litert_runner(float_litert(unquantized(network)))


def _write_exchange(tool: str) -> Callable[[Job], Written]:
    def write(job: Job) -> Written:
        told = tell(tool, job.coded)
        write_json(job.path, told.content)
        for suffix, content in told.companions.items():
            with atomic_file(job.path.with_suffix(suffix)) as file:
                file.write(content)
        return Written(left_out=told.left_out)

    return write


def _widened(coded: Coded, width: Callable[[int, bool], int]) -> tuple[dict[str, int], int]:
    """Layers whose codes are stored at more than their own bits, and the bytes added.

    Args:
        coded: The network under an allocation.
        width: Function from bits, and whether a layer is depthwise, to stored bits.
    """
    deep = {x.layer_index for x in coded.network.sites if x.operation.sees_one_feature}
    found, more = {}, 0
    layers = zip(coded.network.layers, coded.kernels, strict=True)
    for i, (layer, kernel) in enumerate(layers):
        if kernel is None or (stored := width(kernel.bits, i in deep)) == kernel.bits:
            continue
        found[layer.name] = stored
        sizes = [tensor_bytes(layer.parameters, b, num_scales=0) for b in (stored, kernel.bits)]
        more += sizes[0] - sizes[1]
    return found, more


TARGETS = {
    "packed": Target(
        suffix=".safetensors",
        write=_write_packed,
        programs={"jax": lambda path, net: (packed_runner(path, net), float_runner(net))},
    ),
    "stablehlo": Target(
        suffix=".stablehlo",
        write=_write_stablehlo,
        programs={"jax": lambda path, net: (stablehlo_runner(path), float_runner(net))},
    ),
    "onnx": Target(
        suffix=".onnx",
        write=_write_onnx,
        packages=("onnx",),
        programs={runtime: _onnx_program(runtime) for runtime in ONNX_RUNNERS},
    ),
    "litert": Target(
        suffix=".tflite",
        write=_write_litert,
        packages=("litert_converter", "ai_edge_quantizer"),
        programs={
            "ai_edge_litert": lambda path, net: (litert_runner(path), _float_litert(net))
        },
        calibrates=True,
    ),
    **{
        tool: Target(
            suffix=f".{tool}.json",
            write=_write_exchange(tool),
            packages=("onnx",) if tool == "aimet" else (),
        )
        for tool in TOOLS
    },
}
