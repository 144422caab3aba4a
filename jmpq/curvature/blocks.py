"""Blocks of parameters: a function of all of them as a function of some."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array, Float

from jmpq.curvature.hvp import Params
from jmpq.network.tree_paths import leaf_paths


def restrict(
    function: Callable[..., Any], params: Params, names: Sequence[str]
) -> tuple[Callable[..., Any], dict[str, Float[Array, "..."]]]:
    """A function of `params` as one of the named leaves alone, the others held.

    The Hessian of the result is the diagonal block of those leaves, and a product with it
    computes no derivative with respect to the others: cheaper than zeros in a tangent of the
    whole tree, at the price of one compilation per block.

    Args:
        function: Loss, logits or any function whose first argument is `params`.
        params: Parameters; leaves outside the block are held at these values.
        names: Leaves of the block, as `leaf_paths` writes them.

    Returns:
        The function of a dict from names to leaves (further arguments are handed on), and
        that dict at `params`.

    Raises:
        ValueError: For no names, or a name that `params` does not have.
    """
    leaves, tree = jax.tree.flatten(params)
    at = {name: i for i, name in enumerate(leaf_paths(params))}
    if missing := [name for name in names if name not in at]:
        raise ValueError(f"no parameter named {missing}: choose from {list(at)}.")
    if not names:
        raise ValueError(f"a block needs at least one parameter: choose from {list(at)}.")

    def of_block(block: Mapping[str, Array], *args: Any) -> Any:
        filled = list(leaves)
        for name in names:
            filled[at[name]] = block[name]
        return function(jax.tree.unflatten(tree, filled), *args)

    return of_block, {name: leaves[at[name]] for name in names}
