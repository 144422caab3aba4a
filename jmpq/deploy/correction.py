"""Outputs of quantized layers brought back to the mean, or mean and spread, they had.

The network under an allocation and the float network see the same examples. Layer by layer,
in the order of execution, every channel of a layer's output is moved so that its mean over
examples and positions is the float network's (bias correction), or scaled and moved so that
mean and variance are: where batch normalisation follows, that is to estimate its statistics
again, and it works the same where they were folded away or never were. A layer sees the
inputs that the corrected layers before it give.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jmpq.network.network import Network
from jmpq.network.patches import output_feature_axes
from jmpq.network.precision import widened
from jmpq.network.sites import Op, Site
from jmpq.network.walk import Rule, bind
from jmpq.quantizers.fake_quant import quantized_output, run_quantized
from jmpq.quantizers.scales import Quantizers

Correct = Literal["none", "bias", "batch_norm"]
EPSILON = 1e-5  # added to variances, as batch normalisation adds it


class Correction(NamedTuple):
    """Factor of a site's output, then a term added to it, channel by channel.

    Shaped to broadcast against the output. The gain folds into the scales of a kernel
    quantized per output channel, the shift into a bias or the batch normalisation after it.
    """

    gain: Array
    shift: Array


Corrections = Mapping[int, Correction]  # by site; embeddings have none


class Moments(NamedTuple):
    """Mean and variance of a site's output over examples and positions, channel by channel."""

    mean: Array
    variance: Array


@jax.jit
def output_moments(network: Network, inputs: PyTree) -> dict[int, Moments]:
    """Moments of every site's output in the float network."""
    moments = {}

    def at_site(site: Site, x: Array, op: Op) -> Array:
        y = op(x)
        if site.has_both:
            moments[site.index] = _moments(site, y)
        return y

    network.run(inputs, at_site)
    return moments


def find_corrections(
    network: Network,
    quantizers: Quantizers,
    w_bits: Int[Array, " layers"],
    a_bits: Int[Array, " layers"],
    inputs: PyTree,
    moments: dict[int, Moments],
    kind: Literal["bias", "batch_norm"],
    *,
    epsilon: float = EPSILON,
) -> Corrections:
    """Corrections of one allocation, its bits traced: one pass over the examples.

    Args:
        network: The float network.
        quantizers: Calibrated quantizers of the network.
        w_bits: Weight bits of every layer.
        a_bits: Activation bits of every layer's input.
        inputs: Calibration inputs, all in one batch: what a layer needs depends on what the
            layers before it got from all of them. Memory is that of a forward pass.
        moments: `output_moments` of the same inputs.
        kind: ``bias`` corrects the means; ``batch_norm`` means and variances.
        epsilon: Added to both variances before their ratio is taken.

    References:
        Nagel, van Baalen, Blankevoort, Welling (2019), Data-free quantization through weight
        equalization and bias correction: here with examples.
    """
    corrections: dict[int, Correction] = {}

    def at_site(site: Site, x: Array, op: Op) -> Array:
        y = quantized_output(network, quantizers, w_bits, a_bits, site, x, op)
        if site.index not in moments:
            return y
        want, got = moments[site.index], _moments(site, y)
        gain = jnp.ones_like(got.variance)
        if kind == "batch_norm":
            gain = jnp.sqrt((want.variance + epsilon) / (got.variance + epsilon))
        shift = want.mean - gain * got.mean
        corrections[site.index] = Correction(gain, shift)
        return (gain * widened(y) + shift).astype(y.dtype)

    run_quantized(network, quantizers, w_bits, a_bits, inputs, at_site)
    return corrections


def corrected_logits(
    network: Network,
    quantizers: Quantizers,
    w_bits: Int[Array, " layers"],
    a_bits: Int[Array, " layers"],
    inputs: PyTree,
    corrections: Corrections,
    params: PyTree | None = None,
    rule: Rule = bind,
) -> Float[Array, "batch *output"]:
    """Logits under an allocation with its corrections; without any, `quantized_logits`.

    For `params` and `rule` see `Network.run`.
    """

    def at_site(site: Site, x: Array, op: Op) -> Array:
        y = quantized_output(network, quantizers, w_bits, a_bits, site, x, op)
        if (correction := corrections.get(site.index)) is None:
            return y
        return (correction.gain * widened(y) + correction.shift).astype(y.dtype)

    return run_quantized(network, quantizers, w_bits, a_bits, inputs, at_site, params, rule)


def _moments(site: Site, y: Array) -> Moments:
    features = output_feature_axes(site)
    rest = tuple(a for a in range(y.ndim) if a not in features)
    y = widened(y)
    return Moments(y.mean(rest, keepdims=True), y.var(rest, keepdims=True))
