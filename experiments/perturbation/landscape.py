"""Weights on their grid, and the loss around them: ResNet-20 (F16 and F5).

F16 counts the weights of a few layers in units of their own scales, so that the grid of every
channel is the integers. F5 is the loss in the plane of the two leading eigenvectors of the
kernels' Hessian, of the float network and of the same network rounded at every point with the
scales that it has at the centre.

Run:     python -m experiments.perturbation.landscape --data-dir DIR     (5 min on one core)
Smoke:   python -m experiments.perturbation.landscape --smoke            (seconds, digits)
Writes:  experiments/results/landscape.json
Claims:  experiments/claims/predicting/landscape.py
"""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

from experiments.common.arguments import ResumableArguments
from experiments.common.networks import examples_of, load_trained, set_aside
from experiments.common.provenance import machine, made_by, versions, weights_of

if TYPE_CHECKING:
    from jmpq.data.dataset import Split
    from jmpq.network.network import Network
    from jmpq.quantizers.scales import Scales


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run; every field is in the result.

    Attributes:
        network: Built-in network.
        weights: Weights below the data folder, {} standing for the name; None to train.
        data: Data set.
        w_bits: Bits of the kernels.
        shown: Positions of the layers whose weights are counted.
        bins: Bins per step of the grid.
        examples: Held-out examples of the loss.
        rise: Rise of the quadratic form at the edge of the plane along each axis, nats.
        points: Points of the plane along each axis.
        max_products: Products of the Hessian that the eigenvectors may take.
        seed: Seed of the eigenvectors' start.
        epochs: Epochs of training where there are no weights.
    """

    network: str = "resnet20"
    weights: str | None = "cifar10/{}.safetensors"
    data: str = "cifar10"
    w_bits: tuple[int, ...] = (2, 3, 4)
    shown: tuple[int, ...] = (3, 17)
    bins: int = 8
    examples: int = 256
    rise: float = 2.0
    points: int = 15
    max_products: int = 80
    seed: int = 0
    epochs: int = 15


SMOKE = Config(
    network="digits_resnet",
    weights=None,
    data="digits",
    w_bits=(2, 4),
    shown=(0,),
    examples=16,
    points=3,
    max_products=30,
    epochs=1,
)


def histograms(config: Config, network: "Network", scales: "Scales") -> list[dict[str, Any]]:
    """Counts of w/s of some layers, by bits; beside them how often every code is taken."""
    import jax.numpy as jnp

    from jmpq.quantizers.clipping import to_blocks
    from jmpq.quantizers.scales import kernel_blocks

    rows = []
    for layer in config.shown:
        kernel = network.kernels()[layer]
        matrix = network.to_matrix(layer, kernel)
        blocks = to_blocks(matrix, kernel_blocks(network, layer, scales))
        for bits in config.w_bits:
            scale, _ = scales.at(layer, jnp.array(bits))
            ratio = np.asarray(blocks / scale[:, None], float)
            codes = np.asarray(scales.centred_codes(layer, blocks, jnp.array(bits)), int)
            reach = 2 ** (bits - 1) + 1
            edges = np.linspace(-reach, reach, 2 * reach * config.bins + 1)
            counts, _ = np.histogram(ratio, edges)
            values, taken = np.unique(codes, return_counts=True)
            largest = values.max()
            rows.append(
                {
                    "layer": network.layers[layer].name,
                    "bits": bits,
                    "weights": int(ratio.size),
                    "reach": reach,
                    "counts": counts.tolist(),
                    "beyond": int(ratio.size - counts.sum()),
                    "codes": dict(zip(map(str, values), taken.tolist(), strict=True)),
                    "clipped": float((abs(ratio) > largest + 0.5).mean()),
                    "zero": float((codes == 0).mean()),
                }
            )
    return rows


def plane(
    config: Config, network: "Network", scales: "Scales", split: "Split"
) -> dict[str, Any]:
    """Loss over the plane of the two leading eigenvectors, float and at every bit-width."""
    import jax
    import jax.numpy as jnp

    from jmpq.curvature.eigen import top_eigenpairs
    from jmpq.curvature.hvp import hessian
    from jmpq.quantizers.fake_quant import quantize_kernel
    from jmpq.training.losses import cross_entropy

    ((inputs, labels),) = jax.tree.map(jnp.asarray, examples_of(split, len(split)))

    def loss(kernels: Any) -> Any:
        logits = network.apply(network.with_kernels(kernels), inputs)
        return jax.vmap(cross_entropy)(logits, labels).mean()

    centre = list(network.kernels())
    pairs = top_eigenpairs(
        hessian(loss), centre, 2, key=jax.random.key(config.seed), which="largest",
        tolerance=1e-2, block_size=1, max_products=config.max_products,
    )  # fmt: skip

    @jax.jit
    def at(a: Any, b: Any, bits: Any) -> Any:
        moved = jax.tree.map(lambda w, u, v: w + a * u + b * v, centre, *pairs.vectors)
        rounded = [quantize_kernel(network, i, k, bits, scales) for i, k in enumerate(moved)]
        return loss(rounded)

    @jax.jit
    def shift(bits: Any) -> Any:
        """Squared length of the perturbation, and its parts along both eigenvectors."""
        rounded = [quantize_kernel(network, i, k, bits, scales) for i, k in enumerate(centre)]
        delta = jax.tree.map(jnp.subtract, rounded, centre)
        dots = [
            sum(jnp.vdot(x, y) for x, y in zip(v, delta, strict=True)) for v in pairs.vectors
        ]
        return sum(jnp.vdot(x, x) for x in delta), *dots

    edges = np.sqrt(2 * config.rise / pairs.values)
    steps = np.linspace(-1, 1, config.points)
    surfaces = {}
    for bits in (32, *sorted(config.w_bits, reverse=True)):
        print(f"plane at {bits} bits", flush=True)
        surfaces[str(bits)] = [
            [round(float(at(x * edges[0], y * edges[1], bits)), 6) for x in steps]
            for y in steps
        ]
    shifts = {}
    for bits in config.w_bits:
        square, *dots = (float(x) for x in shift(jnp.array(bits)))
        parts = {"first": dots[0], "second": dots[1]}
        shifts[str(bits)] = {"squared": square, **parts}
    return {
        "eigenvalues": pairs.values.tolist(),
        "residuals": pairs.residuals.tolist(),
        "products": pairs.products,
        "edges": edges.tolist(),
        "steps": steps.tolist(),
        "loss": surfaces,
        "delta": shifts,
    }


def run(config: Config, folder: pathlib.Path, data_dir: pathlib.Path | None) -> dict[str, Any]:
    """Both figures' numbers."""
    from jmpq.quantizers.calibrate import calibrate_weights
    from jmpq.quantizers.spec import KernelSpec

    network, dataset = load_trained(
        config.network, config.data, config.weights, folder, data_dir, epochs=config.epochs
    )
    (split,), _ = set_aside(dataset.heldout, 1, config.examples, None)
    scales = calibrate_weights(network, KernelSpec(), (*config.w_bits,))
    return {
        "experiment": "landscape",
        "config": dataclasses.asdict(config),
        **made_by("experiments.perturbation.landscape"),
        **weights_of(network),
        "machine": machine(),
        "versions": versions("jax", "jaxlib", "numpy"),
        "examples": split.record(),
        "histograms": histograms(config, network, scales),
        "plane": plane(config, network, scales, split),
    }


def main() -> None:
    """Run and write the result."""
    from jmpq.files import write_json

    given = tyro.cli(ResumableArguments, description=__doc__)
    config = SMOKE if given.smoke else Config()
    result = run(config, given.work("landscape"), given.data())
    write_json(given.result("landscape"), result, compact=True)


if __name__ == "__main__":
    main()
