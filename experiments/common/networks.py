"""Networks, data sets and draws of examples that the studies share."""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.common.arguments import RESULTS

if TYPE_CHECKING:
    from jmpq.data.dataset import Dataset, Split
    from jmpq.network.network import Network


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network, its data and how many of them are used.

    Attributes:
        model: Built-in network.
        weights: File (`weights_file`); None to train it here.
        data: Data set.
        data_dir: Folder of the data, below the data folder.
        examples: Calibration examples.
        batch_size: Calibration examples per batch.
        evaluation: Evaluation examples; None for all that are left.
        class_samples: Random directions of the logits of Gauss-Newton; None for all classes.
        probes: Random probes a batch of HAWQ-V2's traces, where the network is not piecewise
            linear.
    """

    model: str
    weights: str | None
    data: str
    data_dir: str = ""
    examples: int = 64
    batch_size: int = 16
    evaluation: int | None = None
    class_samples: int | None = None
    probes: int = 25


def load_trained(
    name: str,
    data: str,
    weights: str | None,
    folder: pathlib.Path,
    data_dir: pathlib.Path | None,
    *,
    epochs: int,
) -> "tuple[Network, Dataset]":
    """A built-in network with trained weights, and its data set.

    Args:
        name: Name of the network.
        data: Name of the data set.
        weights: File (`weights_file`), {} standing for the network's name; None to train
            it here, once.
        folder: Folder of weights that are trained here.
        data_dir: The data folder; None for embedded data.
        epochs: Epochs of training.
    """
    from jmpq import run
    from jmpq.run.folder import WEIGHTS

    if weights is None:
        if not (folder / WEIGHTS).is_file():
            options = run.Train(model=name, data=data, epochs=epochs)
            run.train(folder, options, reporter=run.TERMINAL)
        path = folder / WEIGHTS
    else:
        path = weights_file(weights.format(name), data_dir)
    spec = run.NetworkSpec(
        model=name,
        weights=str(path.resolve()),
        data=data,
        data_dir=None if data_dir is None else str(data_dir),
    )
    dataset = run.load_data(spec)
    return run.load_network(spec, folder, dataset), dataset


def weights_file(name: str, data_dir: pathlib.Path | None) -> pathlib.Path:
    """File of weights: made by the project, in `experiments/results`, or in the data folder."""
    published = RESULTS / name
    if published.is_file():
        return published
    assert data_dir is not None
    return data_dir / name


def set_aside(
    whole: "Split", draws: int, examples: int, evaluation: int | None
) -> "tuple[list[Split], Split]":
    """Draws of calibration examples that do not overlap, and the examples measured on."""
    order = np.random.default_rng(0).permutation(len(whole))
    taken = draws * examples
    parts = np.split(order[:taken], draws)
    drawn = [whole.take(np.sort(part), seed=seed) for seed, part in enumerate(parts)]
    return drawn, whole.take(np.sort(order[taken:][:evaluation]))


def examples_of(split: "Split", batch_size: int) -> list[tuple[Any, Any]]:
    """Batches as metrics take them."""
    from jmpq.data.batches import batches

    return [(b.inputs, b.labels) for b in batches(split, batch_size, last="keep")]
