"""Names of the leaves of a pytree."""

import jax
from jaxtyping import PyTree


def leaf_paths(tree: PyTree) -> list[str]:
    """'/'-joined paths of the leaves, in the order of ``jax.tree.leaves``.

    >>> leaf_paths({"stem": {"kernel": 1.0}, "head": [2.0]})
    ['head/0', 'stem/kernel']
    """
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
