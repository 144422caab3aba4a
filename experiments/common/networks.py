"""Networks and data sets that the studies share."""

import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jmpq.data.dataset import Dataset
    from jmpq.network.network import Network


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
        name: Of the network.
        data: Of the data set.
        weights: File below the data folder, {} standing for the network's name; None to train
            it here, once.
        folder: Where weights that are trained here are kept.
        data_dir: The data folder; None for embedded data.
        epochs: Of training.
    """
    from jmpq import run
    from jmpq.run.folder import WEIGHTS

    if weights is None:
        if not (folder / WEIGHTS).is_file():
            options = run.Train(model=name, data=data, epochs=epochs)
            run.train(folder, options, reporter=run.TERMINAL)
        path = folder / WEIGHTS
    else:
        assert data_dir is not None
        path = data_dir / weights.format(name)
    spec = run.NetworkSpec(
        model=name,
        weights=str(path.resolve()),
        data=data,
        data_dir=None if data_dir is None else str(data_dir),
    )
    dataset = run.load_data(spec)
    return run.load_network(spec, folder, dataset), dataset
