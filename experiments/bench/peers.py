"""The peers' side of the curvature benchmark: PyTorch, PyHessian, curvlinops.

Needs the extra `bench`. The same residual network as `jmpq.zoo.resnet`, written in
PyTorch and fed from the same file of weights.
"""

import functools
import importlib
import time
import warnings
from typing import Any
from unittest import mock

import numpy as np
import pyhessian
import torch
from curvlinops import HessianLinearOperator
from curvlinops.papyan2020traces.spectrum import fast_lanczos
from pyhessian.utils import hessian_vector_product
from safetensors.torch import load_file
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn import functional

from experiments.bench.work import Work, timed, timed_all

PYHESSIAN = importlib.import_module("pyhessian.hessian")  # hidden by the class of that name
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around an option A shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride, self.missing = stride, width - channels
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1 or self.missing:
            sides = (self.missing // 2, self.missing - self.missing // 2)
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *sides))
        return functional.relu(y + x)


class ResNetCIFAR(nn.Module):
    """He et al. (2015), section 4.2, for small images."""

    def __init__(
        self, depth: int, num_classes: int, widths: tuple[int, ...], channels: int
    ) -> None:
        super().__init__()
        blocks = (depth - 2) // (2 * len(widths))
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        before = widths[0]
        self.stages = len(widths)
        for stage, width in enumerate(widths):
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            rows = []
            for stride in strides:
                rows.append(BasicBlock(before, width, stride))
                before = width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*rows))
        self.linear = nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.linear(x.mean((2, 3)))


def use_threads(part: str, threads: int) -> None:
    """Threads within one operation."""
    torch.set_num_threads(threads)


def device() -> str:
    """What the work ran on."""
    return torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"


def model(work: Work, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The network with the weights, batch statistics frozen."""
    net = ResNetCIFAR(
        work.config["depth"],
        work.config["num_classes"],
        tuple(work.config["widths"]),
        work.images.shape[3],
    )
    tensors = load_file(work.weights)
    net.load_state_dict(tensors, strict=False)  # without the batch counters
    missing = {name for name in net.state_dict() if not name.endswith("num_batches_tracked")}
    if missing != set(tensors):
        raise ValueError(f"weights do not fit the network: {missing ^ set(tensors)}.")
    return net.to(DEVICE, dtype).eval()


def data(work: Work, size: int, dtype: torch.dtype = torch.float32) -> list:
    """Batches NCHW on the device."""
    return [
        (
            torch.tensor(x.transpose(0, 3, 1, 2), dtype=dtype, device=DEVICE).contiguous(),
            torch.tensor(y, dtype=torch.int64, device=DEVICE),
        )
        for x, y in work.batches(size)
    ]


def delta(work: Work, layer: int, bit: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Perturbation of a kernel, its axes as in PyTorch."""
    values = work.deltas[layer][bit]
    axes = (3, 2, 0, 1) if values.ndim == 4 else (1, 0)
    return torch.tensor(values.transpose(axes), dtype=dtype, device=DEVICE).contiguous()


def wait() -> None:
    """Until the device has finished."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def probe(params: list[Tensor], seed: int) -> list[Tensor]:
    """Random signs."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return [
        (2 * torch.randint(2, p.shape, generator=generator) - 1).to(DEVICE, p.dtype)
        for p in params
    ]


def forward(work: Work) -> dict[str, Any]:
    """One forward pass over all images, in the layout and batch size that is fastest."""
    net = model(work)
    batches = data(work, work.config["peer_batch"])
    if DEVICE == "cpu":
        net = net.to(memory_format=torch.channels_last)
        batches = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in batches]

    def run() -> Tensor:
        with torch.no_grad():
            z = torch.cat([net(x) for x, _ in batches])
        wait()
        return z

    z, times = timed(run, 2 * work.config["repeats"] + 1)
    return {**times, "values": z.cpu().tolist()}


class PyHessian:
    """PyHessian on one batch of all images: its graph is built once for all products."""

    def __init__(self, work: Work, dtype: torch.dtype = torch.float32) -> None:
        start = time.perf_counter()
        batch = data(work, len(work.labels), dtype)[0]
        self.net = model(work, dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # backward with create_graph
            self.hessian = pyhessian.hessian(
                self.net, nn.CrossEntropyLoss(), data=batch, cuda=DEVICE == "cuda"
            )
        wait()
        self.setup_s = time.perf_counter() - start
        self.names = [name for name, _ in self.net.named_parameters()]

    def product(self, v: list[Tensor], at: slice = slice(None)) -> list[Tensor]:
        """H @ v, of the parameters `at` alone if given."""
        found = hessian_vector_product(self.hessian.gradsH[at], self.hessian.params[at], v)
        wait()
        return found


def pyhessian_hvp(work: Work) -> dict[str, Any]:
    """One product with random signs."""
    h = PyHessian(work)
    v = probe(h.hessian.params, 0)
    found, times = timed(lambda: h.product(v), 2 * work.config["repeats"] + 1)
    return {**times, "setup_s": h.setup_s, "values": named_sums(h.names, v, found)}


def named_sums(names: list[str], v: list[Tensor], found: list[Tensor]) -> dict[str, float]:
    """v_i · (Hv)_i of every parameter, float64."""
    return {
        name: float((a.double() * b.double()).sum())
        for name, a, b in zip(names, v, found, strict=True)
    }


def pyhessian_traces(work: Work) -> dict[str, Any]:
    """Traces of every parameter's block by probes, as HAWQ-V2: v_i · (Hv)_i."""
    h = PyHessian(work)

    def sample(seed: int) -> dict[str, float]:
        v = probe(h.hessian.params, seed)
        return named_sums(h.names, v, h.product(v))

    seeds = range(work.config["probes"])
    samples, times = timed_all((functools.partial(sample, seed) for seed in seeds), alike=True)
    rows = {name: [found[name] for found in samples] for name in h.names}
    return {
        **times,
        "setup_s": h.setup_s,
        "values": {name: float(np.mean(x)) for name, x in rows.items()},
        "sem": {name: float(np.std(x, ddof=1) / len(x) ** 0.5) for name, x in rows.items()},
    }


def pyhessian_eigenvalues(work: Work) -> dict[str, Any]:
    """PyHessian's power iteration with deflation, its default 1e-3 relative change."""
    h = PyHessian(work)
    torch.manual_seed(0)
    products = 0

    def run() -> list[float]:
        nonlocal products
        counted = CountCalls(hessian_vector_product)
        with mock.patch.object(PYHESSIAN, "hessian_vector_product", counted):
            values, _ = h.hessian.eigenvalues(
                maxIter=work.config["max_products"], tol=1e-3, top_n=work.config["top"]
            )
        wait()
        products = counted.calls
        return values

    values, times = timed(run, 0)
    return {**times, "setup_s": h.setup_s, "values": values, "products": products}


class CountCalls:
    """A function that counts how often it is called."""

    def __init__(self, function: Any) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.function(*args)


def pyhessian_density(work: Work) -> dict[str, Any]:
    """PyHessian's stochastic Lanczos quadrature, one probe."""
    h = PyHessian(work)
    torch.manual_seed(0)

    def run() -> tuple[list, list]:
        with mock.patch.object(torch, "eig", _eig):
            found = h.hessian.density(iter=work.config["lanczos_steps"], n_v=1)
        wait()
        return found

    (nodes, weights), times = timed(run, 0)
    nodes, weights = np.real(nodes[0]), np.real(weights[0])
    return {
        **times,
        "setup_s": h.setup_s,
        "values": [float(nodes.min()), float(nodes.max())],
        "mean_eigenvalue": float((nodes * weights).sum()),
        "note": "torch.eig, which PyTorch removed in 1.13, is supplied by the benchmark",
    }


def _eig(matrix: Tensor, eigenvectors: bool = False) -> tuple[Tensor, Tensor]:
    """`torch.eig` of a symmetric matrix as PyHessian 0.1 expects it."""
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], 1), vectors


def pyhessian_quadratic(work: Work) -> dict[str, Any]:
    """½δᵀHδ of every layer and bit: a product of the layer's own parameter for each."""
    h = PyHessian(work)

    def form(layer: int, bit: int) -> float:
        at = h.names.index(work.kernels[layer])
        v = delta(work, layer, bit)
        (found,) = h.product([v], slice(at, at + 1))
        return 0.5 * float((v * found).sum())

    moves = [(i, b) for i, deltas in enumerate(work.deltas) for b in range(len(deltas))]
    values, times = timed_all((functools.partial(form, *move) for move in moves), alike=False)
    return {**times, "setup_s": h.setup_s, "values": values}


def curvlinops_operator(
    work: Work, names: list[str] | None = None, dtype: torch.dtype = torch.float32
) -> HessianLinearOperator:
    """The Hessian of the named parameters (all by default)."""
    net = model(work, dtype)
    params = [p for name, p in net.named_parameters() if names is None or name in names]
    return HessianLinearOperator(
        net,
        nn.CrossEntropyLoss(),
        params,
        data(work, work.config["peer_batch"], dtype),
        check_deterministic=False,
    )


def curvlinops_hvp(work: Work) -> dict[str, Any]:
    """One product with random signs."""
    operator = curvlinops_operator(work)
    names = [name for name, _ in model(work).named_parameters()]
    v = probe([p for _, p in model(work).named_parameters()], 0)
    flat = torch.cat([x.flatten() for x in v])

    def run() -> Tensor:
        found = operator @ flat
        wait()
        return found

    found, times = timed(run, work.config["repeats"])
    parts = torch.split(found, [x.numel() for x in v])
    return {
        **times,
        "values": named_sums(names, v, [p.view_as(x) for p, x in zip(parts, v, strict=True)]),
    }


def curvlinops_eigenvalues(work: Work) -> dict[str, Any]:
    """SciPy's implicitly restarted Lanczos on curvlinops' operator, relative tolerance 1e-3."""
    operator = curvlinops_operator(work)
    counted = CountCalls(operator.to_scipy().matvec)
    shape = tuple(operator.shape)
    flat = LinearOperator(shape, matvec=counted, dtype=np.float32)  # type: ignore[call-arg]

    def run() -> np.ndarray:
        found: Any = eigsh(
            flat,
            k=work.config["top"],
            which="LM",
            tol=1e-3,  # type: ignore[arg-type]
            return_eigenvectors=False,
        )
        return np.asarray(found)

    values, times = timed(run, 0)
    ordered = sorted(values.tolist(), key=lambda x: -abs(x))
    return {**times, "values": ordered, "products": counted.calls}


def curvlinops_density(work: Work) -> dict[str, Any]:
    """Lanczos steps of curvlinops' spectral density; its estimate of the ends left out."""
    operator = curvlinops_operator(work)
    torch.manual_seed(0)

    def run() -> tuple[Tensor, Tensor]:
        found = fast_lanczos(operator, work.config["lanczos_steps"])
        wait()
        return found

    (nodes, vectors), times = timed(run, 0)
    mean = float((nodes * vectors[0] ** 2).sum())
    values = [float(nodes.min()), float(nodes.max())]
    return {**times, "values": values, "mean_eigenvalue": mean}


def curvlinops_quadratic(work: Work) -> dict[str, Any]:
    """½δᵀHδ of every layer at the first bit-width, times the number of bit-widths."""
    bits = len(work.deltas[0])
    operators = [curvlinops_operator(work, [kernel]) for kernel in work.kernels]

    def form(layer: int) -> float:
        v = delta(work, layer, 0).flatten()
        found = operators[layer] @ v
        wait()
        return 0.5 * float(v @ found)

    layers = range(len(work.kernels))
    values, times = timed_all((functools.partial(form, layer) for layer in layers), alike=False)
    return {
        **times,
        "seconds": [bits * x for x in times["seconds"]],
        "cpu_seconds": [bits * x for x in times["cpu_seconds"]],
        "values_at_first_bits": values,
        "note": f"measured at one bit-width, counted {bits} times",
    }


def clado_pairs(work: Work) -> dict[str, Any]:
    """CLADO: the loss with every pair of moves made; a sample of pairs, extrapolated."""
    net = model(work)
    batches = data(work, work.config["peer_batch"])
    if DEVICE == "cpu":
        net = net.to(memory_format=torch.channels_last)
        batches = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in batches]
    params = dict(net.named_parameters())
    moves = [(i, b) for i, x in enumerate(work.deltas) for b in range(len(x))]
    pairs = [(m, k) for m in moves for k in moves if m[0] < k[0]]
    generator = np.random.default_rng(0)
    sample = [pairs[i] for i in generator.permutation(len(pairs))[: work.config["pairs"]]]
    count = 1 + len(moves) + len(pairs)

    def loss_of(made: tuple[tuple[int, int], ...]) -> float:
        with torch.no_grad():
            kept = [(params[work.kernels[i]], delta(work, i, b)) for i, b in made]
            before = [p.clone() for p, _ in kept]
            for p, d in kept:
                p += d
            total = sum(
                float(functional.cross_entropy(net(x), y, reduction="sum")) for x, y in batches
            )
            for (p, _), old in zip(kept, before, strict=True):
                p.copy_(old)
        return total / len(work.labels)

    loss_of(())
    values, times = timed_all((functools.partial(loss_of, pair) for pair in sample), alike=True)
    scale = count / len(sample)
    return {
        **times,
        "seconds": [scale * x for x in times["seconds"]],
        "cpu_seconds": [scale * x for x in times["cpu_seconds"]],
        "passes": count,
        "pairs": sample,
        "values": values,
        "note": f"{len(sample)} of {count} forward passes measured, counted {scale:.1f} times",
    }


PARTS = {
    "torch": {"forward": forward, "pairs": clado_pairs},
    "pyhessian": {
        "hvp": pyhessian_hvp,
        "traces": pyhessian_traces,
        "eigenvalues": pyhessian_eigenvalues,
        "density": pyhessian_density,
        "quadratic": pyhessian_quadratic,
    },
    "curvlinops": {
        "hvp": curvlinops_hvp,
        "eigenvalues": curvlinops_eigenvalues,
        "density": curvlinops_density,
        "quadratic": curvlinops_quadratic,
    },
}
