"""Our side of the curvature benchmark.

XLA's CPU device uses its threads within one operation. Products with the Hessian take one
device with all threads; the tables of all moves, whose operations are small, gain more from
as many devices of one thread each, over which each batch is spread as it would be over GPUs.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from experiments.bench.work import Work, timed
from jmpq.curvature.eigen import top_eigenpairs
from jmpq.curvature.ggn_trace import ggn_block_traces
from jmpq.curvature.hvp import Product, hessian_over, linearization_bytes
from jmpq.curvature.spectrum import lanczos_spectrum, moment
from jmpq.curvature.trace import dot_by_leaf, random_signs
from jmpq.devices import device_mesh, mesh_for, replicate, split_cpu, spread
from jmpq.network.network import Network
from jmpq.network.tree_paths import leaf_paths
from jmpq.quantizers.calibrate import calibrate_weights
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import KernelSpec
from jmpq.sensitivity.metric import Metric
from jmpq.sensitivity.metrics.taylor import EmpiricalFisher, ExactHessian, GaussNewton
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.training.losses import cross_entropy
from jmpq.zoo.published.files import torch_name
from jmpq.zoo.resnet import ResNetCIFAR
from jmpq.zoo.weights_torchvision import load_published


def key() -> Array:
    """Of probes; made when it is needed, as JAX may not be in use before `use_threads`."""
    return jax.random.key(0)


SPREAD = ("forward", "mpqco", "gauss_newton", "gauss_newton_difference")  # over devices


def use_threads(part: str, threads: int) -> None:
    """As many devices of one thread, where that is faster; before any other use of JAX.

    Raises:
        RuntimeError: If JAX was in use and the processor is not divided.
    """
    devices = threads if part in SPREAD else 1
    split_cpu(devices)
    if jax.default_backend() == "cpu" and (found := jax.device_count()) != devices:
        raise RuntimeError(f"{found} devices instead of {devices}: JAX was in use before.")


def device() -> str:
    """What the work ran on."""
    return jax.devices()[0].device_kind


def network(work: Work) -> Network:
    """The network with its weights."""
    config = work.config
    module = ResNetCIFAR(config["depth"], config["num_classes"], tuple(config["widths"]))
    variables = load_published(work.weights, module)
    return Network.from_linen(module, variables, jnp.asarray(work.images[:1]), train=False)


def move_network(net: Network, bits: list[int]) -> MoveNetwork:
    """Weight moves of every layer, symmetric per channel."""
    weights = calibrate_weights(net, KernelSpec(), bits)
    return MoveNetwork(network=net, quantizers=Quantizers(weights=weights, activations=None))


def batches(work: Work, size: int) -> list[tuple[Array, Array]]:
    """Batches of `size` examples for each device, on the devices."""
    mesh = device_mesh()
    return [
        spread(mesh_for(mesh, len(y)), (jnp.asarray(x), jnp.asarray(y)))
        for x, y in work.batches(size * mesh.size)
    ]


def by_torch_name(tree: PyTree) -> dict[str, float]:
    """One number per parameter, by the name of the published weights."""
    names = [torch_name(f"params/{path}") for path in leaf_paths(tree)]
    return {n: float(x) for n, x in zip(names, jax.tree.leaves(tree), strict=True)}


def forward(work: Work) -> dict[str, Any]:
    """One forward pass over all images."""
    net, rows = network(work), batches(work, work.config["forward_batch"])
    apply, params = jax.jit(net.apply), replicate(device_mesh(), net.params)
    run = lambda: np.concatenate([np.asarray(apply(params, x)) for x, _ in rows])  # noqa: E731
    z, times = timed(run, 2 * work.config["repeats"] + 1)
    return {**times, "values": z.tolist()}


def product(work: Work, **options: Any) -> tuple[Product, PyTree, int]:
    """The Hessian of the mean loss, its point, and bytes kept; everything by default."""
    net, rows = network(work), batches(work, work.config["micro_batch"])
    params = replicate(device_mesh(), net.params)

    def loss(params: PyTree, batch: tuple[Array, Array]) -> Array:
        return jax.vmap(cross_entropy)(net.apply(params, batch[0]), batch[1]).mean()

    kept = len(rows) * linearization_bytes(loss, params, rows[0])
    options = {"memory_bytes": kept, **options}
    return hessian_over(loss, rows, **options), params, options["memory_bytes"]


def hvp(work: Work, **options: Any) -> dict[str, Any]:
    """One product with random signs, gradients of the micro-batches linearised once."""
    multiply, params, kept = product(work, **options)
    signs = random_signs(params, key())
    run = lambda: jax.block_until_ready(multiply(params, signs))  # noqa: E731
    found, times = timed(run, 2 * work.config["repeats"] + 1)
    values = by_torch_name(dot_by_leaf(signs, found))
    return {**times, "kept_bytes": kept, "values": values}


def hvp_forward_over_reverse(work: Work) -> dict[str, Any]:
    """The same, nothing kept: memory of one micro-batch."""
    return hvp(work, memory_bytes=0)


def hvp_reverse_over_forward(work: Work) -> dict[str, Any]:
    """The same in the other order."""
    return hvp(work, memory_bytes=0, order="reverse_over_forward")


def traces(work: Work, tolerance: float = 0.0) -> dict[str, Any]:
    """Exact traces of every parameter's Gauss-Newton block: the Hessian's, in a ReLU net."""
    net = network(work)
    images, labels = jnp.asarray(work.images), jnp.asarray(work.labels)

    def run() -> PyTree:
        return ggn_block_traces(
            net.apply, cross_entropy, net.params, images, labels, tolerance=tolerance
        )

    found, times = timed(run, work.config["repeats"])
    means = jax.tree.map(lambda x: x.mean(), found)
    return {**times, "values": by_torch_name(means)}


def traces_to_tolerance(work: Work) -> dict[str, Any]:
    """The same but for directions of the logits that hold 1e-5 of the curvature."""
    return traces(work, tolerance=1e-5)


def eigenvalues(work: Work) -> dict[str, Any]:
    """The eigenvalues of largest magnitude, every residual at most 1e-3 of its value."""
    multiply, params, kept = product(work)
    run = lambda: top_eigenpairs(  # noqa: E731
        multiply,
        params,
        work.config["top"],
        key=key(),
        block_size=1,
        max_products=work.config["max_products"],
    )
    found, times = timed(run, 1)
    return {
        **times,
        "kept_bytes": kept,
        "products": found.products,
        "values": found.values.tolist(),
        "residuals": found.residuals.tolist(),
    }


def density(work: Work) -> dict[str, Any]:
    """Stochastic Lanczos quadrature, one probe, fully reorthogonalised."""
    multiply, params, kept = product(work)
    steps = work.config["lanczos_steps"]
    run = lambda: lanczos_spectrum(multiply, params, key=key(), probes=1, steps=steps)  # noqa: E731
    found, times = timed(run, 1)
    return {
        **times,
        "kept_bytes": kept,
        "values": [float(found.nodes.min()), float(found.nodes.max())],
        "mean_eigenvalue": moment(found, 1).value / found.size,
    }


def metric_terms(work: Work, metric: Metric, size: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Second-order terms of all moves, averaged over batches of `size`."""
    mesh, rows = device_mesh(), batches(work, size)
    moves = move_network(network(work), work.config["w_bits"])
    moves = replicate(mesh, dataclasses.replace(moves, shards=mesh.size))

    def run() -> np.ndarray:
        found = [np.asarray(metric(moves, x, y, key()).second, np.float64) for x, y in rows]
        return np.average(found, axis=0, weights=[len(y) for _, y in rows])

    return timed(run, work.config["repeats"])


def mpqco(work: Work) -> dict[str, Any]:
    """The MPQCO table: empirical Fisher of every layer and bit (and of all pairs)."""
    found, times = metric_terms(work, EmpiricalFisher(), work.config["micro_batch"])
    return {**times, "values": (0.5 * np.diag(found)).tolist()}


def gauss_newton(work: Work) -> dict[str, Any]:
    """The whole cross-layer Gauss-Newton matrix, logit changes by derivative."""
    found, times = metric_terms(work, GaussNewton(), work.config["micro_batch"])
    return {**times, "values": (0.5 * np.diag(found)).tolist()}


def gauss_newton_difference(work: Work) -> dict[str, Any]:
    """The same, logit changes by difference."""
    metric = GaussNewton(changes="difference")
    found, times = metric_terms(work, metric, work.config["forward_batch"])
    return {**times, "values": (0.5 * np.diag(found)).tolist(), "moves": len(found)}


def exact_hessian(work: Work) -> dict[str, Any]:
    """The whole exact cross-layer matrix of all moves."""
    found, times = metric_terms(work, ExactHessian(), work.config["micro_batch"])
    return {**times, "values": (0.5 * np.diag(found)).tolist(), "moves": len(found)}


PARTS = {
    "jmpq": {
        "forward": forward,
        "hvp": hvp,
        "hvp_forward_over_reverse": hvp_forward_over_reverse,
        "hvp_reverse_over_forward": hvp_reverse_over_forward,
        "traces": traces,
        "traces_to_tolerance": traces_to_tolerance,
        "eigenvalues": eigenvalues,
        "density": density,
        "mpqco": mpqco,
        "gauss_newton": gauss_newton,
        "gauss_newton_difference": gauss_newton_difference,
        "exact_hessian": exact_hessian,
    }
}
