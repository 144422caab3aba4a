"""The one array among a function's outputs that is analysed."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from jmpq.network.tree_paths import leaf_paths


def with_output(
    apply: Callable[[PyTree, PyTree], Any], output: str | int | None
) -> Callable[[PyTree, PyTree], Array]:
    """The function that returns one array of what `apply` returns.

    Args:
        apply: Function of parameters and inputs that returns any pytree of arrays.
        output: Name or position of the array: its path in the tree, '/'-joined, or the path of
            a part that holds no other array. None where there is one array only.

    Raises:
        ValueError: When the function is called, if `output` does not choose exactly one array;
            the message lists them.
    """

    def one(params: PyTree, inputs: PyTree) -> Array:
        return _chosen(apply(params, inputs), output)

    return one


def _chosen(tree: PyTree, output: str | int | None) -> Array:
    leaves, paths = jax.tree.leaves(tree), leaf_paths(tree)
    if not leaves:
        raise ValueError(
            "The network returns no array; expected one row of outputs per example."
        )
    listed = ", ".join(
        f"{path or 'one array'} {np.shape(leaf)}"
        for path, leaf in zip(paths, leaves, strict=True)
    )
    if output is None:
        if len(leaves) > 1:
            likely = next((path for path in paths if "logit" in path), paths[-1])
            raise ValueError(
                f"The network returns {len(leaves)} arrays: {listed}. Say which one to "
                f"analyse: output={likely!r}, on the command line --output {likely}."
            )
        return leaves[0]
    name = str(output)
    found = [i for i, path in enumerate(paths) if path == name or path.startswith(f"{name}/")]
    if len(found) != 1:
        many = f"is {len(found)} arrays" if found else "is not there"
        raise ValueError(
            f"output={name!r} {many}: the network returns {listed}. "
            + ("Choose one of these names." if paths[0] else "Leave `output` out.")
        )
    return leaves[found[0]]
