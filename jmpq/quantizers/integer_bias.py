"""Biases of integer kernels: int32 codes on the grid of the products.

A product of integer codes has the scale of the input times the scale of the kernel. An integer
kernel adds its bias to the sum of products, so the bias must be a multiple of that scale. The
same holds for the shift of a batch normalisation whose factor is folded into the kernel's
scales. With ``InputSpec(int32_biases=True)`` the quantized network rounds these biases as
onnxruntime does. A layer keeps its float bias if it is unquantized, or if its input or kernel
has several scales along the summed axis.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jmpq.network.network import Network
from jmpq.network.patches import output_feature_axes
from jmpq.network.sites import Op, Site, Transform
from jmpq.network.walk import Path, Rule
from jmpq.quantizers.stream import Value, flow

Step = Callable[[Site], Array | None]  # scales of a site's products, by output feature


def with_integer_biases(
    network: Network, inputs: PyTree, step_of: Step, transform: Transform, rule: Rule
) -> tuple[Transform, Rule]:
    """Transform and rule of a run whose biases are rounded to multiples of the products' scale.

    Args:
        network: The network.
        inputs: Inputs of the network.
        step_of: Function from a site to the scales of its products, per output feature or one
            for all. NaN if they are not integers, None if they have no common grid.
        transform: Transform that computes the sites' outputs.
        rule: Rule that evaluates the other equations.
    """
    after = {v.index: _affine_after(v) for v in flow(network, inputs) if v.kind == "site"}
    chains = {site: chain for site, chain in after.items() if chain}
    site_at = {path: site for site, chain in chains.items() for path, _ in chain}
    ends = {chain[-1][0] for chain in chains.values()}
    terms: dict[int, tuple[Array, Array, Array]] = {}  # step, factor and shift so far

    def at_site(site: Site, x: Any, op: Op) -> Any:
        y = transform(site, x, op)
        if site.index in chains and (step := step_of(site)) is not None:
            shape = [y.shape[a] if a in output_feature_axes(site) else 1 for a in range(y.ndim)]
            step = step.reshape(shape) if step.size > 1 else step.reshape([1] * y.ndim)
            terms[site.index] = step, jnp.ones_like(step), jnp.zeros_like(step)
        return y

    def at(eqn: Any, ins: Sequence[Any], path: Path) -> list:
        outs = list(rule(eqn, ins, path))
        if (site := site_at.get(path)) is None or site not in terms:
            return outs
        step, factor, shift = terms[site]
        (other,) = (ins[i] for i in range(2) if i != dict(chains[site])[path])
        match eqn.primitive.name:
            case "add":
                shift = shift + other
            case "sub" if dict(chains[site])[path] == 0:
                shift = shift - other
            case "sub":
                factor, shift = -factor, other - shift
            case "mul":
                factor, shift = factor * other, shift * other
            case "div":
                factor, shift = factor / other, shift / other
        terms[site] = step, factor, shift
        if path in ends:
            grid = step * factor
            usable = jnp.isfinite(grid) & (grid != 0)
            safe = jnp.where(usable, grid, 1.0)
            rounding = safe * jnp.round(shift / safe) - shift
            outs[0] = outs[0] + jnp.where(usable, rounding, 0.0).astype(outs[0].dtype)
        return outs

    return at_site, at


def _affine_after(value: Value) -> list[tuple[Path, int]]:
    """Chain of affine equations that follow a value: path, and position of the value in it.

    Each equation is the only reader of the one before.
    """
    chain = []
    while len(value.readers) == 1 and (after := value.readers[0]).kind == "affine":
        if after.place is None or value.place is None:
            break
        chain.append((after.place[0], after.operand))
        value = after
    return chain
