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
from jmpq.quantizers.fake_quant import Quantizers
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
        examples: What identifies the examples and their batches.
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
    widths: dict[str, dict[int, Any]] = {"w": {}, "a": {}}
    lacking: dict[str, list[int]] = {"w": [], "a": []}
    for kind, asked in (("w", options.w_bits), ("a", options.a_bits)):
        for bits in sorted(set(asked) - {FLOAT_BITS}):
            if (entry := journal.get(f"{kind}{bits}")) is None:
                lacking[kind].append(bits)
            else:
                widths[kind][bits] = entry.arrays
    if lacking["w"] or lacking["a"] or not widths["w"]:
        rounding = options.weights.rounding
        listener = QUIET if rounding == "nearest" else reporter
        with listener.bar(f"{rounding:24s}", "layers") as progress:
            new = calibrate_quantizers(
                network,
                lacking["w"] or (FLOAT_BITS,),
                lacking["a"] or (FLOAT_BITS,),
                inputs,
                weights=options.weights,
                activations=options.activations,
                seed=options.seed,
                partial=folder.journal(f"{SENSITIVITY}.{rounding}"),
                progress=progress,
            )
        for kind, scales in (("w", new.weights), ("a", new.activations)):
            for bits, arrays in by_width(scales).items() if scales else ():
                journal.keep(f"{kind}{bits}", arrays=arrays)
                widths[kind][bits] = arrays
        if not widths["w"]:  # weights stay unquantized
            activations = from_widths(options.activations, widths["a"]) if widths["a"] else None
            return Quantizers(weights=new.weights, activations=activations)
    return Quantizers(
        weights=from_widths(options.weights, widths["w"]),
        activations=from_widths(options.activations, widths["a"]) if widths["a"] else None,
    )
