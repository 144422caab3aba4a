"""The store of calibrated quantizers: a bit-width is calibrated once, and never changes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxtyping import PyTree

from jmpq.devices import shared_journal
from jmpq.files import versions
from jmpq.formats import FLOAT_BITS
from jmpq.network.network import Network
from jmpq.quantizers.calibrate import calibrate_quantizers
from jmpq.quantizers.scales import Quantizers, Scales, input_tiles, kernel_tiles
from jmpq.quantizers.stream import points_of, stream_number, stream_spec
from jmpq.quantizers.widths import by_width, from_widths
from jmpq.run.folder import SENSITIVITY, RunFolder
from jmpq.run.options import Sensitivity as Options
from jmpq.run.progress import QUIET, Reporter


def calibrated(
    folder: RunFolder,
    network: Network,
    options: Options,
    inputs: Sequence[PyTree],
    examples: dict[str, Any],
    reporter: Reporter,
) -> Quantizers:
    """Scales of weights and activations, and codes of weights, at the candidate bits.

    Bit-widths that the store has are taken from it, bit for bit, whatever others are asked
    for now; the others are calibrated and kept.

    Args:
        folder: The run folder.
        network: The network.
        options: Candidate bits, grids and seed.
        inputs: Calibration inputs, batch by batch.
        examples: Identity of the examples and their batches.
        reporter: Listens.
    """
    of = {
        "network": folder.layers.identity,
        "examples": examples,
        "seed": options.seed,
        "weights": dataclasses.asdict(options.weights),
        "activations": dataclasses.asdict(options.activations),
        "versions": versions("jax", "jaxlib", "flax"),
    }
    journal = shared_journal(folder.store("quantizers", of), of)
    widths: dict[str, dict[int, Any]] = {"w": {}, "a": {}, "s": {}}
    lacking: dict[str, list[int]] = {"w": [], "a": [], "s": []}
    asked = {"w": set(options.w_schemes), "a": set(options.a_schemes), "s": set()}
    if options.activations.placement == "stream" and points_of(network):
        asked["s"] = {stream_number(b) for b in options.a_schemes}
    for kind, numbers in asked.items():
        for bits in sorted(numbers - {FLOAT_BITS}):
            if (entry := journal.get(f"{kind}{bits}")) is None:
                lacking[kind].append(bits)
            else:
                widths[kind][bits] = entry.arrays

    if any(lacking.values()) or not widths["w"]:
        rounding = options.weights.rounding
        listener = QUIET if rounding == "nearest" else reporter
        with listener.bar(f"{rounding:24s}", "layers") as progress:
            new = calibrate_quantizers(
                network,
                lacking["w"] or (FLOAT_BITS,),
                lacking["a"] or (options.a_schemes if lacking["s"] else (FLOAT_BITS,)),
                inputs,
                weights=options.weights,
                activations=options.activations,
                seed=options.seed,
                partial=folder.journal(f"{SENSITIVITY}.{rounding}"),
                progress=progress,
            )
        for kind, scales in (("w", new.weights), ("a", new.activations), ("s", new.stream)):
            for bits, arrays in by_width(scales).items() if scales else ():
                if bits in lacking[kind]:
                    journal.keep(f"{kind}{bits}", arrays=arrays)
                    widths[kind][bits] = arrays
        if not widths["w"]:  # weights stay unquantized
            return Quantizers(weights=new.weights, **_of_activations(network, options, widths))
    tiles = kernel_tiles(network.layers, options.weights, sorted(widths["w"]))
    weights = from_widths(options.weights, widths["w"], tiles)
    return Quantizers(weights=weights, **_of_activations(network, options, widths))


def _of_activations(
    network: Network, options: Options, widths: dict[str, dict[int, Any]]
) -> dict[str, Scales | None]:
    """Scales of the layers' inputs and of the stream."""
    found, stream = widths["a"], widths["s"]
    tiles = input_tiles(network.sites, options.activations, sorted(found))
    spec = stream_spec(options.activations)
    return {
        "activations": from_widths(options.activations, found, tiles) if found else None,
        "stream": from_widths(spec, stream, ()) if stream else None,
    }
