"""Where a Hessian-vector product's time goes on a CPU: the gradients of its convolutions.

Every convolution shape of ResNet-20 by itself: forward, gradient by the input, gradient by the
kernel, as XLA's own convolution in two layouts, and as matrix products, of patches or of
shifted images. A product H·v is the tangent of all three.

Run:     python -m experiments.bench.convolution       (a minute, one core)
Smoke:   python -m experiments.bench.convolution --smoke
Writes:  experiments/results/bench_convolution.json
Claims:  experiments/claims/bench_others.py
"""

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float

from experiments.common.arguments import RESULTS
from experiments.common.provenance import machine, made_by, versions

Convolution = Callable[[Float[Array, "n h w c"], Float[Array, "kh kw c d"]], Array]


@dataclasses.dataclass(frozen=True)
class Config:
    """What is timed; every field is in the result.

    Attributes:
        shapes: (side, channels in, channels out, stride) and how often ResNet-20 has it.
        images: In a batch.
        repeats: Timed calls of each; the median counts.
    """

    shapes: tuple[tuple[tuple[int, int, int, int], int], ...] = (
        ((32, 3, 16, 1), 1),
        ((32, 16, 16, 1), 6),
        ((32, 16, 32, 2), 1),
        ((16, 32, 32, 1), 5),
        ((16, 32, 64, 2), 1),
        ((8, 64, 64, 1), 5),
    )
    images: int = 8
    repeats: int = 30


SMOKE = Config(shapes=(((8, 4, 4, 1), 1),), images=2, repeats=2)


def native(stride: int) -> Convolution:
    """XLA's convolution, channels last."""

    def convolve(x: Array, w: Array) -> Array:
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    return convolve


def channels_first(stride: int) -> Convolution:
    """XLA's convolution, channels first; transposed on the way in and out."""

    def convolve(x: Array, w: Array) -> Array:
        out = jax.lax.conv_general_dilated(
            x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1), (stride, stride), "SAME"
        )
        return out.transpose(0, 2, 3, 1)

    return convolve


def patches(stride: int) -> Convolution:
    """A matrix product of patches cut by XLA."""

    def convolve(x: Array, w: Array) -> Array:
        cut = jax.lax.conv_general_dilated_patches(
            x, w.shape[:2], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return cut @ w.transpose(2, 0, 1, 3).reshape(-1, w.shape[3])

    return convolve


def shifts(stride: int) -> Convolution:
    """One matrix product for every place of the kernel, on shifted images."""

    def convolve(x: Array, w: Array) -> Array:
        kh, kw = w.shape[:2]
        rows, columns = x.shape[1] // stride, x.shape[2] // stride
        low, high = _same(x.shape[1], kh, stride), _same(x.shape[2], kw, stride)
        padded = jnp.pad(x, ((0, 0), low, high, (0, 0)))
        total = jnp.zeros((), x.dtype)
        for i in range(kh):
            for j in range(kw):
                part = padded[:, i::stride, j::stride][:, :rows, :columns]
                total = total + part @ w[i, j]
        return total

    return convolve


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


FORMS: dict[str, Callable[[int], Convolution]] = {
    "convolution, NHWC": native,
    "convolution, NCHW": channels_first,
    "patches": patches,
    "shifted products": shifts,
}


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """Median of so many calls, after one that compiles."""
    jax.block_until_ready(function())
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def run(config: Config) -> dict[str, Any]:
    """Every shape in every form."""
    rows = []
    for (side, channels, features, stride), count in config.shapes:
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=(config.images, side, side, channels)), jnp.float32)
        w = jnp.asarray(rng.normal(size=(3, 3, channels, features)), jnp.float32)
        reference = native(stride)(x, w)
        g = jnp.asarray(rng.normal(size=reference.shape), jnp.float32)
        for name, form in FORMS.items():
            convolve = form(stride)

            def total(x: Array, w: Array, g: Array, convolve: Convolution = convolve) -> Array:
                return jnp.vdot(convolve(x, w), g)

            error = float(jnp.abs(convolve(x, w) - reference).max() / jnp.abs(reference).max())
            if error > 1e-5:
                raise ValueError(f"{name}: differs from the convolution by {error:.2g}.")
            forward = jax.jit(convolve)
            by_input, by_kernel = (jax.jit(jax.grad(total, argnums=k)) for k in (0, 1))
            rows.append(
                {
                    "side": side, "in": channels, "out": features, "stride": stride,
                    "count": count, "form": name,
                    "forward_s": seconds(lambda f=forward, x=x, w=w: f(x, w), config.repeats),
                    "by_input_s": seconds(
                        lambda f=by_input, x=x, w=w, g=g: f(x, w, g), config.repeats
                    ),
                    "by_kernel_s": seconds(
                        lambda f=by_kernel, x=x, w=w, g=g: f(x, w, g), config.repeats
                    ),
                }
            )  # fmt: skip
    return {
        "experiment": "bench_convolution",
        "config": dataclasses.asdict(config),
        **made_by("experiments.bench.convolution"),
        "machine": machine(),
        "cores_used": len(os.sched_getaffinity(0)),
        "versions": versions("jax", "jaxlib", "numpy"),
        "rows": rows,
    }


def convolution_table(result: dict[str, Any]) -> str:
    """Milliseconds of all convolutions of the network together, by form."""
    lines = [
        f"All convolutions of ResNet-20, {result['config']['images']} images, "
        f"{result['cores_used']} core(s), milliseconds.",
        "",
        "| form | forward | gradient by input | gradient by kernel |",
        "| --- | --- | --- | --- |",
    ]
    for form in dict.fromkeys(row["form"] for row in result["rows"]):
        mine = [row for row in result["rows"] if row["form"] == form]
        cells = [
            f"{1e3 * sum(row['count'] * row[key] for row in mine):.1f}"
            for key in ("forward_s", "by_input_s", "by_kernel_s")
        ]
        lines.append(f"| {form} | {' | '.join(cells)} |")
    best = [
        f"{1e3 * sum(r):.1f}"
        for r in zip(
            *[
                [
                    min(row["count"] * row[key] for row in result["rows"]
                        if (row["side"], row["in"], row["out"]) == shape)
                    for key in ("forward_s", "by_input_s", "by_kernel_s")
                ]
                for shape in dict.fromkeys(
                    (row["side"], row["in"], row["out"]) for row in result["rows"]
                )
            ],
            strict=True,
        )
    ]  # fmt: skip
    lines.append(f"| the fastest for each shape | {' | '.join(best)} |")
    return "\n".join(lines)


def main(
    smoke: bool = False, output: pathlib.Path = RESULTS / "bench_convolution.json"
) -> None:
    """Run the benchmark.

    Args:
        smoke: One small shape.
        output: JSON file of the result.
    """
    from jmpq.files import write_json

    result = run(SMOKE if smoke else Config())
    print(convolution_table(result))
    write_json(output, result)
    print(f"Wrote {output}")


if __name__ == "__main__":
    tyro.cli(main)
