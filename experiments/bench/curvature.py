"""Curvature side by side with PyHessian, curvlinops and CLADO's measured pairs.

The same images, weights and perturbations of ResNet-20 on both sides, in one run, every
measured part in a process of its own (peak memory), the sides in turn, one and two threads.
Compilation is counted apart, with the first part that needs a program.
Logits must agree to 1e-4 before anything is timed. Without PyTorch and the peers (extra
`bench`) only our side is measured and the peers are reported as absent.

Run:     python -m experiments.bench.curvature --data-dir DIR     (about 15 min on 2 cores)
Smoke:   python -m experiments.bench.curvature --smoke            (seconds, digits)
Writes:  experiments/results/bench_curvature.json
Claims:  experiments/claims/bench_curvature.py
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import tyro

from experiments.bench.part import Side, Work, run_part
from experiments.common.arguments import RESULTS, data_folder
from experiments.common.provenance import made_by

CACHE = "compiled"  # programs that several parts need are compiled by the first
PEERS = ("torch", "pyhessian", "curvlinops")
PARTS: tuple[tuple[str, tuple[Side, ...]], ...] = (
    ("forward", ("torch", "jmpq")),
    ("hvp", ("pyhessian", "curvlinops", "jmpq")),
    ("hvp_forward_over_reverse", ("jmpq",)),
    ("hvp_reverse_over_forward", ("jmpq",)),
    ("traces", ("pyhessian", "jmpq")),
    ("traces_to_tolerance", ("jmpq",)),
    ("eigenvalues", ("pyhessian", "curvlinops", "jmpq")),
    ("density", ("pyhessian", "curvlinops", "jmpq")),
    ("quadratic", ("pyhessian", "curvlinops")),
    ("mpqco", ("jmpq",)),
    ("pairs", ("torch",)),
    ("gauss_newton", ("jmpq",)),
    ("gauss_newton_difference", ("jmpq",)),
    ("exact_hessian", ("jmpq",)),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured; every field is in the result.

    Attributes:
        depth: Depth of the residual network.
        widths: Channels of its stages.
        num_classes: Number of logits.
        weights: Published weights below the data folder; None for random ones.
        data: Data set.
        images: Training images, the first ones.
        w_bits: Weight bit-widths: one move of every layer for each.
        probes: Probes of a trace.
        top: Eigenvalues wanted.
        lanczos_steps: Steps of the spectral density, one probe.
        max_products: Products per eigenvalue (PyHessian), in all (ours).
        pairs: Pairs of moves measured for CLADO's table.
        micro_batch: Images per batch of our derivatives.
        forward_batch: Images per batch of our forward passes.
        peer_batch: Images per batch of curvlinops and of PyTorch's forward passes; PyHessian
            takes all at once, which is its fastest.
        repeats: Timed calls after the first one.
        threads: Cores of the process, one run each.
        in_process: Run all parts in this process (no peak memory, no pinning).
    """

    depth: int = 20
    widths: tuple[int, ...] = (16, 32, 64)
    num_classes: int = 10
    weights: str | None = "cifar10/resnet20.safetensors"
    data: str = "cifar10"
    images: int = 128
    w_bits: tuple[int, ...] = (2, 3, 4, 6, 8)
    probes: int = 50
    top: int = 5
    lanczos_steps: int = 20
    max_products: int = 100
    pairs: int = 40
    micro_batch: int = 8
    forward_batch: int = 16
    peer_batch: int = 64
    repeats: int = 2
    threads: tuple[int, ...] = (1, 2)
    in_process: bool = False


SMOKE = Config(
    depth=4,
    widths=(4,),
    weights=None,
    data="digits",
    images=6,
    w_bits=(2, 4),
    probes=4,
    top=2,
    lanczos_steps=3,
    max_products=8,
    pairs=3,
    micro_batch=3,
    forward_batch=3,
    peer_batch=3,
    repeats=1,
    threads=(1,),
    in_process=True,
)


def run(config: Config, folder: pathlib.Path, data_dir: pathlib.Path | None) -> dict[str, Any]:
    """All parts of all sides that are installed."""
    made = made_by("experiments.bench.curvature", folder)
    shutil.rmtree(folder / CACHE, ignore_errors=True)  # of this run alone
    prepare(config, folder, data_dir)
    absent = [name for name in PEERS if importlib.util.find_spec(name) is None]
    sides = {"jmpq", *(() if absent else PEERS)}
    measured: dict[str, dict[str, dict[str, Any]]] = {}
    for threads in config.threads:
        here: dict[str, dict[str, Any]] = {}
        for part, of in PARTS:
            for side in of:
                if side in sides:
                    print(f"{threads} thread(s): {side} {part}", flush=True)
                    found = _measure(config, folder, side, part, threads)
                    here.setdefault(part, {})[side] = found
            if part == "forward" and not absent:
                check_parity(here["forward"])
        for found in here["forward"].values():
            found.pop("values")  # logits have served
        measured[str(threads)] = here
    return {
        "experiment": "bench_curvature",
        "config": dataclasses.asdict(config),
        "machine": {"processor": _processor(), "cores": os.cpu_count()},
        "versions": {name: _version(name) for name in ("jax", "numpy", *PEERS)},
        "absent": absent,
        "threads": {
            threads: {**made, "parts": here, "summary": summary(here)}
            for threads, here in measured.items()
        },
    }


def prepare(config: Config, folder: pathlib.Path, data_dir: pathlib.Path | None) -> None:
    """Write what all sides read: images, weights in the published format, perturbations."""
    import safetensors.numpy

    from experiments.bench.ours import move_network, network
    from jmpq.data.batches import make_batch
    from jmpq.data.load import load_dataset
    from jmpq.zoo.published.files import torch_name

    split = load_dataset(config.data, data_dir).train
    batch = make_batch(split, np.arange(config.images))
    images = np.repeat(batch.inputs, 3 // batch.inputs.shape[3], axis=3)
    weights = folder / "weights.safetensors"
    if config.weights is None:
        safetensors.numpy.save_file(_random_weights(config), weights)
    else:
        assert data_dir is not None
        shutil.copyfile(data_dir / config.weights, weights)
    bare = Work(
        config=dataclasses.asdict(config),
        images=images,
        labels=batch.labels,
        kernels=[],
        deltas=[],
        weights=weights,
    )
    net = network(bare)
    moves = move_network(net, list(config.w_bits))
    deltas = [moves.weight_deltas(i, kernel) for i, kernel in enumerate(net.kernels())]
    names = [torch_name(f"params/{layer.kernel}") for layer in net.layers]
    work = dataclasses.replace(bare, kernels=names, deltas=[np.asarray(d) for d in deltas])
    work.save(folder)


def _random_weights(config: Config) -> dict[str, np.ndarray]:
    """Random weights of the network under the published names and axes."""
    import jax
    import jax.numpy as jnp

    from jmpq.network.tree_paths import leaf_paths
    from jmpq.zoo.published.files import KERNEL_AXES, torch_name
    from jmpq.zoo.resnet import ResNetCIFAR

    module = ResNetCIFAR(config.depth, config.num_classes, config.widths)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    tensors = {}
    for path, leaf in zip(leaf_paths(variables), jax.tree.leaves(variables), strict=True):
        array = np.asarray(leaf)
        if path.endswith("/kernel"):
            array = array.transpose(np.argsort(KERNEL_AXES[array.ndim]))
        tensors[torch_name(path)] = np.ascontiguousarray(array)
    return tensors


def _measure(
    config: Config, folder: pathlib.Path, side: Side, part: str, threads: int
) -> dict[str, Any]:
    if config.in_process:
        return run_part(folder, side, part, threads)
    command = [sys.executable, "-m", "experiments.bench.part", str(folder), side, part]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / CACHE)}
    subprocess.run(
        [*command, str(threads)], check=True, cwd=RESULTS.parents[1], env=environment
    )
    return json.loads((folder / f"{side}-{part}-{threads}.json").read_text())


def check_parity(forward: dict[str, Any]) -> None:
    """Refuse to time two different networks.

    Raises:
        ValueError: If their logits differ by more than 1e-4.
    """
    ours, theirs = (np.array(forward[side]["values"]) for side in ("jmpq", "torch"))
    if (error := float(abs(ours - theirs).max())) > 1e-4:
        raise ValueError(
            f"The logits of the two sides differ by {error:.2g}, more than 1e-4: they do not "
            "compute the same network, so that comparing their times would mean nothing."
        )


def summary(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Medians, costs in forward passes, ratios to the fastest peer, agreement of values.

    By wall time and by processor time: the latter says more where other work shares the
    machine.
    """
    result: dict[str, Any] = {"agreement": agreement(parts)}
    for clock in ("seconds", "cpu_seconds"):
        time = {
            part: {side: float(np.median(found[clock])) for side, found in sides.items()}
            for part, sides in parts.items()
        }
        forward = time["forward"]["jmpq"]
        rows = {}
        for label, ours, theirs, count in COMPARED:
            mine = time[ours]["jmpq"]
            peers = {s: count * t for s, t in time.get(theirs, {}).items() if s != "jmpq"}
            rows[label] = {
                "jmpq": mine,
                "forward_passes": mine / forward,
                "peers": peers,
                "ratio": min(peers.values()) / mine if peers else None,
            }
        difference = rows["Gauss-Newton matrix, difference"]["forward_passes"]
        moves = parts["gauss_newton_difference"]["jmpq"]["moves"]
        result[clock] = {
            "forward": time["forward"],
            "rows": rows,
            "difference_forward_passes_per_move": difference / moves,
        }
    return result


# label, our part, the peers' part, how often the peers' part is needed
COMPARED = (
    ("one product H·v", "hvp", "hvp", 1),
    ("per-layer traces", "traces", "traces", 1),
    ("per-layer traces, 1e-5 of curvature left out", "traces_to_tolerance", "traces", 1),
    ("leading eigenvalues", "eigenvalues", "eigenvalues", 1),
    ("spectral density", "density", "density", 1),
    ("½δᵀHδ, every layer and bit", "gauss_newton", "quadratic", 1),
    ("MPQCO table", "mpqco", "traces", 1),
    ("Gauss-Newton matrix, derivative", "gauss_newton", "pairs", 1),
    ("Gauss-Newton matrix, difference", "gauss_newton_difference", "pairs", 1),
    ("exact Hessian matrix", "exact_hessian", "hvp", 100),
)


def agreement(parts: dict[str, dict[str, Any]]) -> dict[str, float]:
    """How far our values are from the peers'.

    Greatest difference relative to the greatest value; of exact traces from probed ones in
    standard errors of the probes, over all parameters (some sixty: about 3 is expected).
    """
    found = {}
    if "pyhessian" in parts["hvp"]:
        eigenvalues = parts["eigenvalues"]
        found["eigenvalues"] = _difference(eigenvalues["jmpq"], eigenvalues["curvlinops"])
        probed, exact = parts["traces"]["pyhessian"], parts["traces"]["jmpq"]["values"]
        found["traces, standard errors"] = max(
            abs(exact[name] - value) / probed["sem"][name]
            for name, value in probed["values"].items()
        )
        theirs = parts["quadratic"]["pyhessian"]
        found["quadratic, exact Hessian"] = _difference(parts["exact_hessian"]["jmpq"], theirs)
        found["quadratic, Gauss-Newton"] = _difference(parts["gauss_newton"]["jmpq"], theirs)
    return found


def _difference(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    a, b = np.array(ours["values"]), np.array(theirs["values"])
    return float(abs(a - b).max() / abs(b).max())


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(
            "curvlinops-for-pytorch" if name == "curvlinops" else name
        )
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """Name of the processor."""
    path = pathlib.Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in (path.read_text().splitlines() if path.is_file() else [])
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor()


def _with_others(result: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """The result together with runs of other threads in a file, if they are comparable."""
    old = json.loads(path.read_text()) if path.is_file() else {}
    result = json.loads(json.dumps(result))  # lists for tuples, as in the file
    if any(
        {**old.get(key, {}), "threads": ()} != {**result[key], "threads": ()}
        for key in ("config", "machine", "versions")
    ):
        return result
    runs = {**old["threads"], **result["threads"]}
    runs = {threads: runs[threads] for threads in sorted(runs, key=int)}
    config = {**result["config"], "threads": [int(threads) for threads in runs]}
    return {**result, "config": config, "threads": runs}


def main(
    smoke: bool = False,
    data_dir: pathlib.Path | None = None,
    folder: pathlib.Path = pathlib.Path("runs/bench_curvature"),
    output: pathlib.Path = RESULTS / "bench_curvature.json",
    threads: tuple[int, ...] = (),
) -> None:
    """Run the benchmark.

    Args:
        smoke: The same on a tiny configuration, with embedded data.
        data_dir: Folder with the data set and the weights.
        folder: Folder of the parts' results.
        output: JSON file of the result.
        threads: Only these runs; others of the same configuration, machine and versions that
            the file holds already stay in it.
    """
    from jmpq.files import write_json

    config = SMOKE if smoke else Config()
    if threads:
        config = dataclasses.replace(config, threads=threads)
    result = run(config, folder.resolve(), data_folder(data_dir, smoke))
    write_json(output, _with_others(result, output))
    print(f"Wrote {output}")


if __name__ == "__main__":
    tyro.cli(main)
