"""Programs that run an exported network, opened for timing: one call, no conversions around it.

Each takes a whole ONNX file, the inputs of one batch and a number of threads.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import PyTree

from jmpq.export.check import LEAST_BITS, OnnxRuntime, need, onnx_session, openvino_request
from jmpq.files import versions
from jmpq.network.tree_paths import leaf_paths

RuntimeName = OnnxRuntime
Call = Callable[[], Any]
Feed = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runtime:
    """A program that runs ONNX files.

    Attributes:
        name: Name of its package.
        packages: Packages that it needs.
        smallest: Least bits of codes that it can read.
        start: Loads a file; returns the call that runs it on the inputs.
    """

    name: RuntimeName
    packages: tuple[str, ...]
    smallest: Literal[2, 4, 8]
    start: Callable[[bytes, Feed, int], Call]

    @property
    def version(self) -> str:
        """Name and version."""
        return f"{self.name} {versions(self.name)[self.name]}"


def runtime(name: RuntimeName) -> Runtime:
    """A runtime that is installed.

    Raises:
        ImportError: If it is not; the message says which extra to install.
    """
    found = RUNTIMES[name]
    need(*found.packages)
    return found


def feed_of(inputs: PyTree) -> Feed:
    """The inputs of one batch by the names they have in an ONNX file."""
    names = [path or "inputs" for path in leaf_paths(inputs)]
    arrays = [np.ascontiguousarray(x) for x in jax.tree.leaves(inputs)]
    return dict(zip(names, arrays, strict=True))


def _onnxruntime(model: bytes, feed: Feed, threads: int) -> Call:
    session = onnx_session(model, threads)
    own = {x.name: feed[x.name] for x in session.get_inputs()}
    return lambda: session.run(None, own)


def _openvino(model: bytes, feed: Feed, threads: int) -> Call:
    request, names = openvino_request(model, {n: x.shape for n, x in feed.items()}, threads)
    own = {name: feed[name] for name in names}
    return lambda: request.infer(own, share_inputs=True)


RUNTIMES: Mapping[RuntimeName, Runtime] = {
    "onnxruntime": Runtime(
        name="onnxruntime",
        packages=("onnx", "onnxruntime"),
        smallest=LEAST_BITS["onnxruntime"],
        start=_onnxruntime,
    ),
    "openvino": Runtime(
        name="openvino",
        packages=("onnx", "openvino"),
        smallest=LEAST_BITS["openvino"],
        start=_openvino,
    ),
}
