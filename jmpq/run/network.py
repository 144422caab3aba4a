"""The network and the data of a run, from built-in names or the user's functions."""

import dataclasses
import importlib.util
import inspect
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmpq.data.batches import make_batch
from jmpq.data.dataset import Dataset, Split
from jmpq.data.image_folder import HOW_TO_LIST
from jmpq.data.load import ANY_SIZE, TEXT_LENGTH, TEXTS, load_dataset
from jmpq.data.text.tokens import Tokenizer, read_tokenizer
from jmpq.files import file_sha256, versions
from jmpq.network.equalize import equalize_ranges, without_caps
from jmpq.network.fold import fold_batch_norm
from jmpq.network.network import Network
from jmpq.quantizers.products import quantize_products, with_cache
from jmpq.run.artifacts import NetworkSpec
from jmpq.run.folder import LAYERS, TOKENIZER, RunFolder
from jmpq.text import plural, some
from jmpq.training.labels import check_split
from jmpq.training.losses import ExampleLoss, cross_entropy, has_classes
from jmpq.zoo.architectures import PREPROCESSINGS, architecture, build_module
from jmpq.zoo.tensor_files import flatten, header_of, weights_sha256
from jmpq.zoo.weights import load_weights

EMBEDDINGS = ("embeddings/word_embeddings", "embed_tokens")  # of tokens, in built-in networks


def load_data(spec: NetworkSpec, folder: pathlib.Path = pathlib.Path()) -> Dataset:
    """The data set of a run, preprocessed or turned into tokens as the network expects.

    Data of one's own, ``package.module:function``, are taken as they are.

    Args:
        spec: Source of network and data.
        folder: The run folder, where a relative tokenizer lies.

    Raises:
        ValueError: If there is no such data set, network or preprocessing, or no tokenizer, or
            a function of one's own makes no data set.
        FileNotFoundError: If the data or the tokenizer are not there.
    """
    if ":" in spec.data:
        return _own_data(spec)
    name = spec.preprocessing
    if name is None and ":" not in spec.model:
        name = architecture(spec.model).preprocessing
    if name not in (None, *PREPROCESSINGS):
        raise ValueError(
            f"There is no preprocessing {name!r}; choose one of {', '.join(PREPROCESSINGS)}."
        )
    rule = None if name is None else PREPROCESSINGS[name]
    if rule is not None and spec.image_size is not None:
        rule = rule.fitted(spec.image_size, spec.image_channels or 3)
    tokenizer = None
    if spec.tokenizer is not None:
        kind = "text" if spec.data in TEXTS else "sentences"
        tokenizer = read_tokenizer(folder / spec.tokenizer, kind=kind)
    return load_dataset(
        spec.data, spec.data_dir, rule, tokenizer, text_length=spec.text_length or TEXT_LENGTH
    )


def with_image_shape(spec: NetworkSpec, network: Network) -> NetworkSpec:
    """The spec with size and channels of the images that a network of one's own takes.

    Raises:
        ValueError: If the data are images of any size, and it takes no square ones of one or
            three channels.
    """
    if ":" not in spec.model or spec.data not in ANY_SIZE:
        return spec
    shapes = [x.shape[1:] for x in jax.tree.leaves(network.tap.inputs)]
    height, width, channels = shapes[0] if len(shapes[0]) == 3 else (0, 0, 0)
    if len(shapes) > 1 or height != width or channels not in (1, 3):
        raise ValueError(
            f"The network takes inputs of shape {', '.join(map(str, shapes))} for one example; "
            f"data set {spec.data!r} makes (size, size, 1 or 3), channels last. Bring arrays "
            "of your own instead, with --data package.module:function."
        )
    return dataclasses.replace(spec, image_size=height, image_channels=channels)


def load_network(
    spec: NetworkSpec, folder: pathlib.Path, dataset: Dataset | None = None
) -> Network:
    """The network of a run.

    Args:
        spec: Source of the network; relative weights lie in the run folder.
        folder: The run folder.
        dataset: The data set of `spec`, where it is in memory already.

    Raises:
        ValueError: If the model or its weights are wrong: the message says which and why.
        FileNotFoundError: If there are no weights.
    """
    if ":" in spec.model:
        if spec.fold:
            raise ValueError(
                f"{spec.model!r} makes its own network: fold its variables there, with "
                "jmpq.network.fold.fold_batch_norm."
            )
        return _changed(spec, _made_by(spec.model, spec.output))
    dataset = dataset or load_data(spec, folder)
    tokenizer = dataset.tokenizer
    vocab_size = None if tokenizer is None else tokenizer.vocab_size
    module = build_module(spec.model, len(dataset.classes), vocab_size, dataset.inputs)
    if spec.weights is None:
        raise ValueError(
            f"No weights for {spec.model!r}: give --weights FILE.safetensors, or train first "
            "with `jmpq train`."
        )
    variables = load_weights(folder / spec.weights, module, architecture=spec.model)
    if tokenizer is not None:
        _check_tokenizer(tokenizer, folder / spec.weights, variables)
    dtype = jnp.float32 if dataset.inputs == "images" else jnp.int32
    example = jax.tree.map(
        lambda x: jnp.zeros((1, *x.shape[1:]), dtype), dataset.heldout.inputs
    )
    if spec.fold:
        variables = fold_batch_norm(module, variables, example)
    tied = architecture(spec.model).tied
    network = Network.from_linen(module, variables, example, tied=tied, output=spec.output)
    return _changed(spec, network)


def _precision() -> str:
    """Why a network may compute something else without another line of code."""
    if not jax.config.read("jax_enable_x64"):
        return ""
    return "Float64 is enabled here; a run made without it is opened without it. "


def network_of(folder: RunFolder) -> tuple[Network, Dataset]:
    """Network and data set of a run; the weights are those of its layer table.

    Raises:
        ValueError: If weights, layers or code have changed since the layer table was written.
    """
    table = folder.layers
    dataset = load_data(table.network, folder.path)
    network = load_network(table.network, folder.path, dataset)
    if weights_sha256((network.params, network.state)) != table.weights_sha256:
        raise ValueError(
            f"The weights of {table.network.model!r} are not those of {folder.path / LAYERS}: "
            f"run `jmpq layers {folder.path}` again, and the steps after it. A function that "
            "draws weights at random must draw the same ones every time."
        )
    if tuple(network.layers) != table.layers:
        named = {layer.name: layer for layer in table.layers}
        other = [x.name for x in network.layers if named.get(x.name) != x] or ["their order"]
        raise ValueError(
            f"The layers of {table.network.model!r} are not those of {folder.path / LAYERS} "
            f"({', '.join(other[:3])}): run `jmpq layers {folder.path}` again, and the steps "
            "after it."
        )
    comparable = versions("jax", "flax") == table.versions
    if comparable and network.code_sha256 != table.code_sha256:
        raise ValueError(
            f"The code of {table.network.model!r} has changed since {folder.path / LAYERS} was "
            f"written: its layers are the same, what it computes is not. {_precision()}Run "
            f"`jmpq layers {folder.path}` again, and the steps after it."
        )
    check_inputs(network, dataset)
    return network, dataset


def check_inputs(network: Network, dataset: Dataset) -> None:
    """Refuse a network that does not take the examples of a data set, before any work.

    Raises:
        ValueError: If it fails on one example, gives anything but one row of outputs, or fewer
            classes than the data set has.
    """
    batch = make_batch(dataset.heldout, np.arange(1))
    shapes = jax.tree.map(np.shape, batch.inputs)
    try:
        logits = jax.eval_shape(network.logits, batch.inputs)
    except Exception as error:  # whatever the network's code raises
        first = str(error).partition("\n")[0]
        raise ValueError(
            f"The network does not take the inputs of data set {dataset.name!r}, of shape "
            f"{shapes}: {first}. Choose the data set or the network that fits."
        ) from error
    if logits.shape[:1] != (1,):
        raise ValueError(
            f"The network gives an output of shape {logits.shape} for one example of data set "
            f"{dataset.name!r}; expected examples first, as (1, classes) or (1, positions, "
            "classes)."
        )
    outputs = logits.shape[-1] if len(logits.shape) > 1 else 1
    if dataset.guessed and len(dataset.classes) != outputs > 1:
        raise ValueError(
            f"The network has {outputs} classes, data set {dataset.name!r} has "
            f"{plural(len(dataset.classes), 'class folder')}, by name "
            f"{folder_numbers(dataset)}. {HOW_TO_LIST}"
        )
    if len(classes := dataset.classes) > outputs > 1:
        low = dataset.heldout.labels[np.arange(len(dataset.heldout))].min()
        from_one = low >= 1 and len(classes) == outputs + 1
        raise ValueError(
            f"The network has {outputs} outputs, data set {dataset.name!r} has "
            f"{len(classes)} classes. "
            + ("Its labels begin at 1: count classes from 0, labels - 1." if from_one
               else "Choose the data set or the network that fits.")
        )  # fmt: skip


def folder_numbers(dataset: Dataset) -> str:
    """Number that each class folder has by its name, for people."""
    return some([f"{name} = {i}" for i, name in enumerate(dataset.classes)])


def check_targets(network: Network, splits: Sequence[Split], loss: ExampleLoss) -> None:
    """Refuse labels that do not fit the network, before any work.

    Raises:
        ValueError: See `jmpq.training.labels.check_labels`.
    """
    for split in splits:
        check_split(split, network.logits, classes=loss is cross_entropy)


def check_classes(network: Network, asked: str, instead: str) -> None:
    """Refuse what takes class probabilities of a network whose output has none.

    Raises:
        ValueError: If so; it ends with what to do `instead`.
    """
    output = network.tap.jaxpr.outvars[0].aval.shape[1:]
    if not has_classes(output):
        raise ValueError(
            f"{asked} takes class probabilities, and the network's output for one example has "
            f"shape {list(output)}. {instead}"
        )


def module_sha256(text: str) -> str | None:
    """Hash of the module's file of ``package.module:function``; None of any other name."""
    name, _, function = text.partition(":")
    sys.path.insert(0, str(pathlib.Path.cwd()))
    try:
        found = importlib.util.find_spec(name) if function else None
    except (ImportError, ValueError):  # `imported` says what is wrong
        found = None
    finally:
        sys.path.pop(0)
    if found is None or not found.origin or not pathlib.Path(found.origin).is_file():
        return None
    return file_sha256(pathlib.Path(found.origin))


def imported(text: str, what: str, call: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names, importable from the current folder.

    Args:
        text: The name.
        what: Name of the function's result, for the error ("a network").
        call: Description of the call, for the error ("without arguments").

    Raises:
        ValueError: If there is no such function; it says why.
    """
    name, _, attribute = text.partition(":")
    sys.path.insert(0, str(pathlib.Path.cwd()))
    try:
        function = getattr(importlib.import_module(name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"Cannot get {what} from {text!r}: {error}. Expected 'package.module:function', "
            f"importable from here, {call}."
        ) from error
    except Exception as error:  # someone else's code: a wrong syntax, or what it runs
        raise ValueError(
            f"Cannot get {what} from {text!r}: importing {name} failed with "
            f"{type(error).__name__}: {error}. Import it in Python to see where."
        ) from error
    finally:
        sys.path.pop(0)
    if not callable(function):
        raise ValueError(f"{text!r} is {type(function).__name__}, not a function, {call}.")
    return function


def _changed(spec: NetworkSpec, network: Network) -> Network:
    if spec.capless:
        network = without_caps(network)
    if spec.equalize:
        network = equalize_ranges(network)
    if spec.kv_cache:
        network = with_cache(network)
    if spec.product_bits is not None:
        network = quantize_products(network, spec.product_bits)
    return network


def _check_tokenizer(
    tokenizer: Tokenizer, weights: pathlib.Path, variables: dict[str, Any]
) -> None:
    """Raise `ValueError` where weights were made with other tokens."""
    params = flatten(variables["params"])
    path = next(path for path in EMBEDDINGS if f"{path}/embedding" in params)
    tokenizer.check_vocabulary(len(params[f"{path}/embedding"]), path)
    known = header_of(weights).get("metadata", {}).get("vocabulary_sha256")
    if known not in (None, tokenizer.vocabulary_sha256):
        raise ValueError(
            f"The tokenizer knows as many tokens as the one that {weights} was trained with, "
            f"but not the same. Give the {TOKENIZER} that was written beside the weights."
        )


def _made_by(model: str, output: str | None) -> Network:
    make = imported(model, "a network", "without arguments")
    given = {} if output is None else {"output": output}
    if given and not _takes(make, given):
        name = model.partition(":")[2]
        raise ValueError(
            f"{model!r} does not take --output {output}: write `def {name}(output=None)` and "
            "pass output=output to Network.from_linen, or pass "
            f"output={output!r} there and leave --output out."
        )
    network = _called(make, model, given)
    if not isinstance(network, Network):
        raise ValueError(
            f"{model!r} returned {type(network).__name__}; expected a jmpq.Network, as made by "
            "Network.from_linen or Network.from_function."
        )
    if network.output != output and given:
        raise ValueError(
            f"{model!r} takes output={output!r} and does not use it: it must hand it on, as in "
            "Network.from_linen(..., output=output)."
        )
    return network


def _own_data(spec: NetworkSpec) -> Dataset:
    if spec.data_dir is not None or spec.preprocessing is not None:
        option = "--data-dir" if spec.data_dir is not None else "--preprocessing"
        raise ValueError(
            f"{option} is for built-in data sets: {spec.data!r} reads its own files and "
            "returns inputs as the network takes them. Leave it out."
        )
    dataset = _called(imported(spec.data, "a data set", "without arguments"), spec.data, {})
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"{spec.data!r} returned {type(dataset).__name__}; expected a jmpq.Dataset, as "
            "made by jmpq.Dataset.from_arrays(inputs, labels, train=(inputs, labels))."
        )
    return dataset.named(spec.data)


def _called(make: Callable[..., Any], name: str, given: Mapping[str, Any]) -> Any:
    """What a function of someone else returns.

    Raises:
        ValueError: If it fails, unless with an error of its own that says what to do.
        OSError: If it does not find a file.
    """
    try:
        return make(**given)
    except (ValueError, OSError):
        raise
    except Exception as error:
        called = ", ".join(f"{key}={value!r}" for key, value in given.items())
        raise ValueError(
            f"{name!r} failed with {type(error).__name__}: {str(error).rstrip('.')}. Call it "
            f"in Python to see where; it is called with {called or 'no arguments'}."
        ) from error


def _takes(function: Callable[..., Any], given: Mapping[str, Any]) -> bool:
    """Whether a function can be called with these arguments, as far as it says."""
    try:
        inspect.signature(function).bind(**given)
    except ValueError:  # a function that does not say
        return True
    except TypeError:
        return False
    return True
