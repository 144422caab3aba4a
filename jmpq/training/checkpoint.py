"""Training state on disk (orbax): whole or not at all, bound to what made it."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from jmpq.files import named_errors, write_json

KEPT = 2  # checkpoints: the newest, and one more in case


class Checkpoints:
    """Checkpoints of one training run in one folder.

    Args:
        folder: Folder of the checkpoints; created if missing.
        origin: JSON value that says what the run is (configuration, data, seed). A folder of
            another run is refused.

    Raises:
        ValueError: If the folder belongs to another run; the first difference is named.
        OSError: If the folder cannot be written.
    """

    def __init__(self, folder: pathlib.Path | str, origin: Mapping[str, Any]) -> None:
        folder = pathlib.Path(folder).absolute()
        path = folder / "origin.json"
        if path.is_file():
            _check_origin(_read_origin(path), json.loads(json.dumps(origin)), folder)
        else:
            write_json(path, dict(origin))
        self._folder = folder
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT, enable_async_checkpointing=False
        )
        self._manager = ocp.CheckpointManager(folder, options=options)

    def restore(self, like: PyTree) -> tuple[int, PyTree]:
        """The newest state and its step; ``(0, like)`` where there is none.

        Args:
            like: State of the same tree, shapes and dtypes: jax arrays, no NumPy scalars.

        Raises:
            ValueError: If the newest state cannot be read.
        """
        step = self._manager.latest_step()
        if step is None:
            return 0, like
        try:
            args = ocp.args.StandardRestore(_storable(like))
            state = self._manager.restore(step, args=args)
        except Exception as error:  # whatever orbax meets in a spoilt file
            raise ValueError(
                f"The checkpoint {self._folder / str(step)} cannot be read: delete it, and "
                "training goes on from the one before, or from the start."
            ) from error
        return step, jax.tree.map(
            lambda kept, x: jnp.asarray(kept) if x.size else x, state, like
        )

    def save(self, step: int, state: PyTree) -> None:
        """Keep `state` as the newest.

        Raises:
            OSError: One line, if the folder cannot be written.
        """
        with named_errors(self._folder):
            self._manager.save(step, args=ocp.args.StandardSave(_storable(state)))
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Let go of the folder."""
        self._manager.close()


def _storable(state: PyTree) -> PyTree:
    """The state with a zero for every array without elements, which orbax refuses to keep."""
    return jax.tree.map(lambda x: x if x.size else jnp.zeros(1, x.dtype), state)


def _read_origin(path: pathlib.Path) -> Mapping[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        record = None
    if not isinstance(record, Mapping):
        raise ValueError(
            f"{path} does not say which training the checkpoints are of: delete {path.parent}, "
            "and training begins anew."
        )
    return record


def _check_origin(
    stored: Mapping[str, Any], origin: Mapping[str, Any], folder: pathlib.Path
) -> None:
    for key in sorted({*stored, *origin}):
        if stored.get(key) != origin.get(key):
            raise ValueError(
                f"The checkpoints in {folder} are of another training: {key} is "
                f"{stored.get(key)!r} there and {origin.get(key)!r} here. Choose another "
                "folder or delete that one."
            )
