"""Check of an exported file: its own runtime against jmpq's evaluation."""

import contextlib
import dataclasses
import importlib
import io
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import jax
import numpy as np
from jaxtyping import Float, PyTree

from jmpq.data.batches import Batch
from jmpq.data.positions import IGNORED
from jmpq.export.codes import Coded
from jmpq.export.packed import load_packed
from jmpq.export.stablehlo import load_stablehlo
from jmpq.files import versions
from jmpq.network.network import Network
from jmpq.network.tree_paths import leaf_paths

OnnxRuntime = Literal["onnxruntime", "openvino"]
# Least bits of a type of codes that a runtime reads.
LEAST_BITS: Mapping[OnnxRuntime, Literal[2, 4]] = {"onnxruntime": 2, "openvino": 4}
# Option of onnxruntime's session: without VNNI, kernels that cut nothing off.
EXACT = "session.x64quantprecision"
Name = TypeVar("Name")
Runner = Callable[[PyTree], Float[np.ndarray, "batch *output"]]
EXTRAS = {
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "litert_converter": "litert",
    "ai_edge_quantizer": "litert",
    "ai_edge_litert": "litert",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """An artifact in its runtime against jmpq's evaluation, on the same examples.

    Attributes:
        examples: Number of examples.
        same_class: Fraction of examples (or positions) with the same largest logit.
        top1: Top-1 accuracy of the artifact, in [0, 1]; None if labels are not classes.
        top1_jmpq: Top-1 accuracy of jmpq's evaluation, in [0, 1].
        largest: Largest absolute difference of a logit.
        mean: Mean absolute difference of the logits.
    """

    examples: int
    same_class: float
    top1: float | None
    top1_jmpq: float | None
    largest: float
    mean: float


def overflows(cpuinfo: str, machine: str) -> bool:
    """Whether integer kernels of runtimes may saturate on a processor.

    On x86-64 without VNNI, pairs of products of unsigned and signed 8-bit integers are added in
    16 bits with saturation: 255 · 127 · 2 saturates, 255 · 63 · 2 does not.

    Args:
        cpuinfo: Text of ``/proc/cpuinfo``; empty if there is none.
        machine: Machine name, as `platform.machine` returns it.
    """
    lines = [line for line in cpuinfo.splitlines() if line.startswith("flags")]
    flags = set(lines[0].partition(":")[2].split()) if lines else set()
    x86 = machine.lower() in ("x86_64", "amd64")
    return x86 and bool(flags) and not flags & {"avx512_vnni", "avx_vnni"}


def overflows_here() -> bool:
    """Whether integer kernels may overflow on this processor."""
    info = pathlib.Path("/proc/cpuinfo")
    return overflows(info.read_text() if info.is_file() else "", platform.machine())


def runtime_options(runtime: str) -> dict[str, str]:
    """Options of a runtime's session, beyond its defaults, that a file needs here."""
    return {EXACT: "1"} if runtime == "onnxruntime" and overflows_here() else {}


def overflow_warning(coded: Coded, runtimes: Sequence[str]) -> str:
    """Warning about 8-bit kernels in runtimes on this processor; empty if none applies."""
    kernels = coded.kernels
    eight = sum(kernel is not None and kernel.bits == 8 for kernel in kernels)
    if not eight or not overflows_here():
        return ""
    advice = {
        "onnxruntime": f"onnxruntime is exact with {EXACT}=1, as it was checked here, but slow",
        "openvino": "OpenVINO has no such option",
    }
    return (
        f"This processor has no VNNI: sums of products of 8-bit weights ({eight} layers) are "
        f"cut off. {'; '.join(advice[runtime] for runtime in runtimes)}. Weights of 7 bits fit "
        "(--w-bits 7)."
    )


def need(*packages: str) -> None:
    """Check that packages are installed.

    Raises:
        ImportError: If one is missing; the message names the extra that installs it.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(
                f"The package {package} is not installed: pip install "
                f"'jmpq[{EXTRAS[package]}]'."
            ) from error


@contextlib.contextmanager
def runs_in(runtime: OnnxRuntime) -> Iterator[None]:
    """Name the runtime in what it raises.

    Raises:
        ValueError: If the runtime cannot open or run a file; with the first line of its error.
    """
    try:
        yield
    except Exception as error:  # onnxruntime's have no common class of their own
        said = f"{str(error).strip()}\n".splitlines()[0]
        raise ValueError(
            f"{runtime} {versions(runtime)[runtime]} cannot run the file: {said}"
        ) from error


def onnx_session(model: pathlib.Path | bytes, threads: int = 1) -> Any:
    """A session of onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    for key, value in runtime_options("onnxruntime").items():
        options.add_session_config_entry(key, value)
    with runs_in("onnxruntime"):
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            options,
            providers=["CPUExecutionProvider"],
        )


def onnx_runner(model: pathlib.Path | bytes) -> Runner:
    """Runner of an ONNX file in onnxruntime, on the CPU with one thread."""
    need("onnxruntime")
    session = onnx_session(model)
    names = [x.name for x in session.get_inputs()]

    def run(inputs: PyTree) -> np.ndarray:
        arrays = _by_name(inputs)
        with runs_in("onnxruntime"):
            return np.asarray(session.run(None, {name: arrays[name] for name in names})[0])

    return run


def openvino_request(
    model: bytes, shapes: Mapping[str, Sequence[int]], threads: int = 1
) -> tuple[Any, list[str]]:
    """A request of OpenVINO, on the CPU in floats of 32 bits, and the names of its inputs.

    It is compiled for the shapes of one batch: with a symbolic batch OpenVINO finds the shapes
    of all tensors anew in every call.
    """
    import openvino

    core = openvino.Core()
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }
    with runs_in("openvino"):
        graph = core.read_model(io.BytesIO(model))
        names = [x.get_any_name() for x in graph.inputs]
        graph.reshape({name: list(shapes[name]) for name in names})
        return core.compile_model(graph, "CPU", options).create_infer_request(), names


def openvino_runner(model: pathlib.Path | bytes) -> Runner:
    """Runner of an ONNX file in OpenVINO with one thread, compiled for every batch size."""
    need("openvino")
    content = model if isinstance(model, bytes) else model.read_bytes()
    requests: dict[tuple, tuple[Any, list[str]]] = {}

    def run(inputs: PyTree) -> np.ndarray:
        arrays = _by_name(inputs)
        shapes = {name: array.shape for name, array in arrays.items()}
        key = tuple(shapes.items())
        if key not in requests:
            requests[key] = openvino_request(content, shapes)
        request, names = requests[key]
        with runs_in("openvino"):
            results = request.infer({name: arrays[name] for name in names})
        return np.array(next(iter(results.values())))

    return run


ONNX_RUNNERS: Mapping[OnnxRuntime, Callable[[pathlib.Path | bytes], Runner]] = {
    "onnxruntime": onnx_runner,
    "openvino": openvino_runner,
}


def packed_runner(path: pathlib.Path, network: Network | None = None) -> Runner:
    """Runner of a packed file in JAX."""
    packed = load_packed(path, network)
    return lambda inputs: np.asarray(packed.logits(inputs))


def stablehlo_runner(path: pathlib.Path) -> Runner:
    """Runner of a StableHLO program in JAX; with a fixed batch size, several calls."""
    program = load_stablehlo(path)

    def run(inputs: PyTree) -> np.ndarray:
        size = program.metadata["batch"]
        count = len(jax.tree.leaves(inputs)[0])
        starts = range(0, count, count if size is None else size)
        parts = [
            jax.tree.map(lambda x, i=i: x[i : i + (size or count)], inputs) for i in starts
        ]
        return np.concatenate([np.asarray(program.logits(part)) for part in parts])

    return run


def litert_runner(model: pathlib.Path | bytes) -> Runner:
    """Runner of a LiteRT file, on the CPU with one thread, one example at a time."""
    need("ai_edge_litert")
    from ai_edge_litert.interpreter import Interpreter

    content = model if isinstance(model, bytes) else model.read_bytes()
    interpreter = Interpreter(model_content=content, num_threads=1)
    call = interpreter.get_signature_runner()

    def run(inputs: PyTree) -> np.ndarray:
        arrays = _by_name(inputs)
        own = [name for name in arrays if name in call.get_input_details()]
        rows = range(len(arrays[own[0]]))
        found = [call(**{name: arrays[name][i : i + 1] for name in own}) for i in rows]
        return np.concatenate([next(iter(x.values())) for x in found])

    return run


def _by_name(inputs: PyTree) -> dict[str, np.ndarray]:
    paths = [path or "inputs" for path in leaf_paths(inputs)]
    return dict(zip(paths, map(np.asarray, jax.tree.leaves(inputs)), strict=True))


def compare(run: Runner, reference: Runner, examples: Iterable[Batch]) -> Agreement:
    """Compare the logits of an artifact with those of jmpq's evaluation.

    Args:
        run: Runner of the artifact.
        reference: Function from inputs to the evaluation's logits.
        examples: Examples in batches; padding has weight zero.
    """
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for batch in examples:
        counts = np.asarray(batch.weights) > 0
        arrays = run(batch.inputs), reference(batch.inputs), np.asarray(batch.labels)
        rows.append(tuple(np.asarray(x)[counts] for x in arrays))  # type: ignore[arg-type]
    got, want, labels = (np.concatenate(x) for x in zip(*rows, strict=True))
    difference = np.abs(got.astype(np.float64) - want)
    top1: list[float | None] = [None, None]
    if labels.dtype.kind in "iu" and labels.shape == got.shape[:-1]:
        counts = labels != IGNORED
        top1 = [float((x.argmax(axis=-1) == labels)[counts].mean()) for x in (got, want)]
    return Agreement(
        examples=len(got),
        same_class=float((got.argmax(axis=-1) == want.argmax(axis=-1)).mean()),
        top1=top1[0],
        top1_jmpq=top1[1],
        largest=float(difference.max()),
        mean=float(difference.mean()),
    )


def cpu_milliseconds(
    runners: Mapping[Name, Runner], inputs: PyTree, *, repeats: int = 30
) -> dict[Name, float]:
    """Median processor time of a call in milliseconds, by runner; runners take turns.

    Processor time is less noisy than wall time on a shared machine. It sums over threads, so
    JAX, which uses all cores, is charged for all of them. Before every timed call stands one
    that is not timed: caches hold the runner's own weights, whichever ran before.

    Args:
        runners: Runners to compare, by name.
        inputs: One batch.
        repeats: Timed calls per runner.
    """
    taken: dict[Name, list[float]] = {name: [] for name in runners}
    for _ in range(repeats):
        for name, run in runners.items():
            run(inputs)
            began = time.process_time()
            run(inputs)
            taken[name].append(1e3 * (time.process_time() - began))
    return {name: statistics.median(times) for name, times in taken.items()}


def first_rows(inputs: PyTree, count: int) -> PyTree:
    """The first `count` examples of a batch, repeated if there are fewer."""
    return jax.tree.map(lambda x: np.resize(np.asarray(x), (count, *x.shape[1:])), inputs)
