"""The layer table: names, shapes, parameters and MACs of every quantizable layer."""

import os
import pathlib

from jmpq.data.load import TEXTS
from jmpq.data.text.tokens import FILES
from jmpq.files import versions
from jmpq.network.equalize import equalization_pairs
from jmpq.network.ties import architecture_ties
from jmpq.run.artifacts import LayerTable, NetworkSpec
from jmpq.run.folder import LAYERS, WEIGHTS, RunFolder
from jmpq.run.lock import writes
from jmpq.run.network import (
    check_inputs,
    folder_numbers,
    load_data,
    load_network,
    with_image_shape,
)
from jmpq.run.options import Layers
from jmpq.run.progress import QUIET, Reporter
from jmpq.zoo.architectures import architecture
from jmpq.zoo.tensor_files import weights_sha256


@writes
def layers(
    folder: str | os.PathLike[str], options: Layers = Layers(), *, reporter: Reporter = QUIET
) -> LayerTable:
    """Find the layers of a network and write ``layers.json``.

    Args:
        folder: The run folder; made if it is not there.
        options: Network and data.
        reporter: Listens.

    Raises:
        ValueError: If the network, its weights or the data are wrong; it says which and why.
        FileNotFoundError: If the weights or the data are not there.
    """
    run = RunFolder(folder)
    if ":" in options.model and options.weights is not None:
        raise ValueError(
            f"--weights {options.weights} is for built-in networks: {options.model!r} reads "
            "its own. Leave the option out."
        )
    spec = NetworkSpec(
        model=options.model,
        weights=None if ":" in options.model else _weights(run, options.weights),
        data=options.data,
        data_dir=str(options.data_dir.resolve()) if options.data_dir else None,
        preprocessing=options.preprocessing,
        fold=options.fold_batch_norm,
        capless=options.without_caps,
        equalize=options.equalize_ranges,
        kv_cache=options.kv_cache,
        product_bits=options.product_bits,
        tokenizer=_tokenizer(run, options),
        output=options.output,
        text_length=options.text_length if options.data in TEXTS else None,
    )
    # A network that makes itself is looked at before the data.
    known = None if ":" in spec.model else load_data(spec, run.path)
    network = load_network(spec, run.path, known)
    spec = with_image_shape(spec, network)
    dataset = known or load_data(spec, run.path)
    check_inputs(network, dataset)
    if dataset.guessed:
        reporter.say(f"Classes are numbered by name of folder: {folder_numbers(dataset)}.")
    pairs = equalization_pairs(network) if spec.equalize else ()
    ties = architecture_ties(network)
    table = LayerTable(
        network=spec,
        weights_sha256=weights_sha256((network.params, network.state)),
        code_sha256=network.code_sha256,
        versions=versions("jax", "flax"),
        layers=tuple(network.layers),
        other_parameters=network.other_parameters,
        ties={kind: [list(g) for g in made] for kind, made in ties.items()},
        data_note=f"{dataset.name}: {dataset.note}." if dataset.note else "",
        equalized=tuple((one, two) for one, two in pairs),
        unused=network.unused,
    )
    table.write(run.path / LAYERS)
    reporter.say(f"Wrote {run.path / LAYERS}")
    return table


def _weights(run: RunFolder, path: pathlib.Path | None) -> str | None:
    if path is None:
        return WEIGHTS if (run.path / WEIGHTS).is_file() else None
    return _portable(run, path)


def _tokenizer(run: RunFolder, options: Layers) -> str | None:
    """The tokenizer beside the weights of a built-in network, if nothing else is said."""
    path = options.tokenizer
    if (
        path is None
        and ":" not in options.model + options.data
        and architecture(options.model).inputs != "images"
    ):
        folder = run.path
        if (weights := options.weights) is not None:
            folder = weights if weights.is_dir() else weights.parent
        path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    return None if path is None else _portable(run, path)


def _portable(run: RunFolder, path: pathlib.Path) -> str:
    """Relative to the run folder where the file lies in it, else absolute."""
    resolved, own = path.resolve(), run.path.resolve()
    return str(resolved.relative_to(own) if resolved.is_relative_to(own) else resolved)
