"""What was written, run in its own runtime beside the project's own evaluation."""

import dataclasses
import importlib
import pathlib
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import jax
import numpy as np
from jaxtyping import Float, PyTree

from jmpq.data.batches import Batch
from jmpq.data.dataset import IGNORED
from jmpq.export.packed import load_packed
from jmpq.network.network import Network
from jmpq.network.tree_paths import leaf_paths

Format = Literal["packed", "onnx"]
Runner = Callable[[PyTree], Float[np.ndarray, "batch *output"]]
EXTRAS = {"onnx": "onnx", "onnxruntime": "onnx", "openvino": "openvino"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """An artifact in its runtime against jmpq's evaluation, on the same examples.

    Attributes:
        examples: Number of examples.
        same_class: Fraction of examples, or of their positions, with the same greatest logit.
        top1: Top-1 of the artifact; None where labels are no classes.
        top1_jmpq: Top-1 of jmpq's evaluation.
        largest: Largest absolute difference of a logit.
        mean: Mean absolute difference of the logits.
    """

    examples: int
    same_class: float
    top1: float | None
    top1_jmpq: float | None
    largest: float
    mean: float


def need(*packages: str) -> None:
    """Raise `ImportError` where a package of an extra is not installed; it says which extra."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(
                f"The package {package} is not installed: pip install "
                f"'jmpq[{EXTRAS[package]}]'."
            ) from error


def onnx_runner(model: pathlib.Path | bytes) -> Runner:
    """An ONNX file in onnxruntime, on the CPU with one thread."""
    need("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model),
        options,
        providers=["CPUExecutionProvider"],
    )
    names = [x.name for x in session.get_inputs()]

    def run(inputs: PyTree) -> np.ndarray:
        paths = [path or "inputs" for path in leaf_paths(inputs)]
        arrays = dict(zip(paths, map(np.asarray, jax.tree.leaves(inputs)), strict=True))
        return np.asarray(session.run(None, {name: arrays[name] for name in names})[0])

    return run


def packed_runner(path: pathlib.Path, network: Network | None = None) -> Runner:
    """A packed file in JAX."""
    packed = load_packed(path, network)
    return lambda inputs: np.asarray(packed.logits(inputs))


def compare(run: Runner, reference: Runner, examples: Iterable[Batch]) -> Agreement:
    """Logits of an artifact against those of jmpq's evaluation.

    Args:
        run: The artifact in its runtime.
        reference: The evaluation's logits.
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
    runners: Mapping[str, Runner], inputs: PyTree, *, repeats: int = 30
) -> dict[str, float]:
    """Processor time of a call, median over repeats that take turns.

    Wall time of a shared machine misleads. Of JAX, which takes all cores, it is the sum.

    Args:
        runners: What is compared, by name.
        inputs: One batch.
        repeats: Calls of each, after one that is not timed.
    """
    taken: dict[str, list[float]] = {name: [] for name in runners}
    for run in runners.values():
        run(inputs)
    for _ in range(repeats):
        for name, run in runners.items():
            began = time.process_time()
            run(inputs)
            taken[name].append(1e3 * (time.process_time() - began))
    return {name: statistics.median(times) for name, times in taken.items()}


def first_rows(inputs: PyTree, count: int) -> PyTree:
    """A batch of so many examples, repeated where there are fewer."""
    return jax.tree.map(lambda x: np.resize(np.asarray(x), (count, *x.shape[1:])), inputs)
