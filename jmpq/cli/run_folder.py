"""The run folder: artifacts by name, and the network and data that they come from."""

import dataclasses
import importlib
import importlib.metadata
import json
import pathlib
import platform
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jmpq.data.dataset import Dataset
    from jmpq.data.tokens import Tokenizer
    from jmpq.network.network import Network

LAYERS, SENSITIVITY, PLAN = "layers.json", "sensitivity.npz", "plan.json"
EVALUATION, WEIGHTS = "evaluation.json", "weights.safetensors"
TOKENIZER = "tokenizer.json"  # of networks that take sentences
SUPERPOSED = "superposed.npz"  # optional
FRONT = "front.csv"
FINETUNED, FINETUNING = "finetuned.safetensors", "finetuning.json"  # optional
SCHEMA, VERSION = "jmpq/layers", 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """Where a network and its data come from.

    Attributes:
        model: Name of a built-in network (`jmpq.zoo.architectures`), or
            ``package.module:function``, a function without arguments that returns a
            `jmpq.Network`.
        weights: File with the weights of a built-in network.
        data: Name of the data set.
        data_dir: Local folder of the data set; None for its usual source.
        preprocessing: What is done to images of any size, by name; None for what the built-in
            network's published weights expect.
        fold: Whether batch normalisation is folded into the kernels of a built-in network.
        capless: Whether caps of activations are taken off (ReLU6 becomes ReLU).
        equalize: Whether the ranges of channels are equalised across layers.
        product_bits: Bits of both operands of products of activations; None for float.
        tokenizer: File of the tokenizer of a network that takes sentences.
    """

    model: str
    weights: str | None
    data: str
    data_dir: str | None
    preprocessing: str | None = None
    fold: bool = False
    capless: bool = False
    equalize: bool = False
    product_bits: int | None = None
    tokenizer: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"name": self.model, **dataclasses.asdict(self)}


def load_data(spec: NetworkSpec, run: pathlib.Path = pathlib.Path()) -> "Dataset":
    """The data set of a run, preprocessed, or made tokens of, as the network expects.

    Args:
        spec: Where network and data come from.
        run: The run folder, where a relative tokenizer lies.

    Raises:
        ValueError: If there is no such data set, network or preprocessing, or no tokenizer.
        FileNotFoundError: If the data or the tokenizer are not there.
    """
    from jmpq.data.load import load_dataset
    from jmpq.data.tokens import read_tokenizer
    from jmpq.zoo.architectures import PREPROCESSINGS, architecture

    name = spec.preprocessing
    if name is None and ":" not in spec.model:
        name = architecture(spec.model).preprocessing
    if name not in (None, *PREPROCESSINGS):
        raise ValueError(
            f"There is no preprocessing {name!r}; choose one of {', '.join(PREPROCESSINGS)}."
        )
    rule = None if name is None else PREPROCESSINGS[name]
    tokenizer = None if spec.tokenizer is None else read_tokenizer(run / spec.tokenizer)
    return load_dataset(spec.data, spec.data_dir, rule, tokenizer)


def load_network(
    spec: NetworkSpec, run: pathlib.Path, dataset: "Dataset | None" = None
) -> "Network":
    """The network of a run.

    Args:
        spec: Where it comes from; relative weights lie in the run folder.
        run: The run folder.
        dataset: The data set of `spec`, where it is in memory already.

    Raises:
        ValueError: If the model or its weights are wrong: the message says which and why.
        FileNotFoundError: If there are no weights.
    """
    import jax
    import jax.numpy as jnp

    from jmpq.network.fold import fold_batch_norm
    from jmpq.network.network import Network
    from jmpq.zoo.architectures import build_module
    from jmpq.zoo.weights import load_weights

    if ":" in spec.model:
        if spec.fold:
            raise ValueError(
                f"{spec.model!r} makes its own network: fold its variables there, with "
                "jmpq.network.fold.fold_batch_norm."
            )
        return _changed(spec, _made_by(spec.model))
    dataset = dataset or load_data(spec, run)
    tokenizer = dataset.tokenizer
    vocab_size = None if tokenizer is None else tokenizer.vocab_size
    module = build_module(spec.model, len(dataset.classes), vocab_size)
    if spec.weights is None:
        raise ValueError(
            f"No weights for {spec.model!r}: give --weights FILE.safetensors, or train first "
            "with `jmpq train`."
        )
    variables = load_weights(run / spec.weights, module, architecture=spec.model)
    if tokenizer is not None:
        _check_tokenizer(tokenizer, run / spec.weights, variables)
    dtype = jnp.float32 if tokenizer is None else jnp.int32
    example = jax.tree.map(
        lambda x: jnp.zeros((1, *x.shape[1:]), dtype), dataset.heldout.inputs
    )
    if spec.fold:
        variables = fold_batch_norm(module, variables, example)
    return _changed(spec, Network.from_linen(module, variables, example))


def _changed(spec: NetworkSpec, network: "Network") -> "Network":
    from jmpq.network.equalize import equalize_ranges, without_caps
    from jmpq.quantizers.products import quantize_products

    if spec.capless:
        network = without_caps(network)
    if spec.equalize:
        network = equalize_ranges(network)
    if spec.product_bits is not None:
        network = quantize_products(network, spec.product_bits)
    return network


def read_layers(run: pathlib.Path) -> dict[str, Any]:
    """The record that `jmpq layers` wrote.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is not a layer table of this version.
    """
    path = run / LAYERS
    if not path.is_file():
        raise FileNotFoundError(f"{path} not found: run `jmpq layers {run}` first.")
    again = f"run `jmpq layers {run}` again."
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {again}") from error
    found = (record.get("schema"), record.get("version")) if isinstance(record, dict) else None
    if found != (SCHEMA, VERSION):
        raise ValueError(f"{path} is no layer table of this version of jmpq: {again}")
    needed = ("network", "weights_sha256", "layers", "other_parameters")
    if lacking := [key for key in needed if key not in record]:
        raise ValueError(f"{path} lacks {', '.join(lacking)}: {again}")
    return record


def network_of(run: pathlib.Path) -> tuple["Network", "Dataset", dict[str, Any]]:
    """Network, data set and layer record of a run; the weights are those of the record.

    Raises:
        ValueError: If the weights have changed since the layer table was written.
    """
    from jmpq.zoo.tensor_files import weights_sha256

    record = read_layers(run)
    names = {field.name for field in dataclasses.fields(NetworkSpec)}
    spec = NetworkSpec(**{k: v for k, v in record["network"].items() if k in names})
    dataset = load_data(spec, run)
    network = load_network(spec, run, dataset)
    if weights_sha256((network.params, network.state)) != record["weights_sha256"]:
        raise ValueError(
            f"The weights of {spec.model!r} are not those of {run / LAYERS}: run `jmpq layers "
            f"{run}` again, and the steps after it."
        )
    return network, dataset, record


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, jmpq, NumPy and the `packages` that a result depends on."""
    found = {name: importlib.metadata.version(name) for name in ("jmpq", "numpy", *packages)}
    return {"python": platform.python_version(), **found}


def imported(text: str, what: str, call: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names, importable from the current folder.

    Args:
        text: The name.
        what: What the function gives, for the error ("a network").
        call: How it is called, for the error ("without arguments").

    Raises:
        ValueError: If there is no such function; it says why.
    """
    name, _, function = text.partition(":")
    sys.path.insert(0, str(pathlib.Path.cwd()))
    try:
        found = getattr(importlib.import_module(name), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"Cannot get {what} from {text!r}: {error}. Expected 'package.module:function', "
            f"importable from here, {call}."
        ) from error
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise ValueError(f"{text!r} is {type(found).__name__}, not a function, {call}.")
    return found


def _check_tokenizer(
    tokenizer: "Tokenizer", weights: pathlib.Path, variables: dict[str, Any]
) -> None:
    """Raise `ValueError` where weights were made with other tokens."""
    from jmpq.zoo.tensor_files import header_of

    words = variables["params"]["embeddings"]["word_embeddings"]["embedding"]
    tokenizer.check_vocabulary(len(words))
    known = header_of(weights).get("metadata", {}).get("vocabulary_sha256")
    if known not in (None, tokenizer.vocabulary_sha256):
        raise ValueError(
            f"The tokenizer knows as many tokens as the one that {weights} was trained with, "
            f"but not the same. Give the {TOKENIZER} that was written beside the weights."
        )


def _made_by(model: str) -> "Network":
    from jmpq.network.network import Network

    make = imported(model, "a network", "without arguments")
    try:
        network = make()
    except (ValueError, OSError):
        raise
    except Exception as error:  # someone else's code
        raise ValueError(
            f"{model!r} failed with {type(error).__name__}: {error}. Call it in Python to see "
            "where; it takes no arguments."
        ) from error
    if not isinstance(network, Network):
        raise ValueError(
            f"{model!r} returned {type(network).__name__}; expected a jmpq.Network, as made by "
            "Network.from_linen or Network.from_function."
        )
    return network
