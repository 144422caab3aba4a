"""Names of the leaves of a pytree, and of the pieces of leaves that are stacks."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


def leaf_paths(tree: PyTree) -> list[str]:
    """'/'-joined paths of the leaves, in the order of ``jax.tree.leaves``.

    >>> leaf_paths({"stem": {"kernel": 1.0}, "head": [2.0]})
    ['head/0', 'stem/kernel']
    """
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Parameters as the list of their pieces: leaves, and slices of leaves that are stacks.

    Layers of a loop (``scan``) keep their kernels in one leaf, stacked along an axis; here
    every slice is a piece of its own. Only here are stacks taken apart and put together.

    Attributes:
        axes: Per leaf the axes along which it is a stack, the outermost first; mostly none.
    """

    axes: tuple[tuple[int, ...], ...]

    @property
    def stacked(self) -> bool:
        """Whether any leaf is a stack."""
        return any(self.axes)

    def split(self, params: PyTree) -> list[Array]:
        """The pieces of parameters: leaves, the slices of a stack in the order of indices."""
        pieces = []
        for leaf, axes in zip(jax.tree.leaves(params), self.axes, strict=True):
            for index in _indices(leaf, axes):
                piece = leaf
                for axis, i in sorted(zip(axes, index, strict=True), reverse=True):
                    piece = jax.lax.index_in_dim(piece, i, axis, keepdims=False)
                pieces.append(piece)
        return pieces

    def join(self, pieces: Sequence[Array], params: PyTree) -> PyTree:
        """Inverse of `split`; `params` gives tree and lengths of the stacks."""
        leaves, tree = jax.tree.flatten(params)
        left, joined = iter(pieces), []
        for leaf, axes in zip(leaves, self.axes, strict=True):
            own = [next(left) for _ in _indices(leaf, axes)]
            joined.append(_stacked(own, [leaf.shape[axis] for axis in axes], axes))
        return jax.tree.unflatten(tree, joined)

    def names(self, params: PyTree) -> list[str]:
        """Paths of the pieces, the index of a slice in brackets.

        >>> tree = {"head": jnp.ones(3), "stack": jnp.ones((2, 3))}
        >>> Pieces(((), (0,))).names(tree), Pieces(((), (1,))).names(tree)[-1]
        (['head', 'stack[0]', 'stack[1]'], 'stack[:,2]')
        """
        return [path + part for path, part in self._parts(params)]

    def paths(self, params: PyTree) -> list[str]:
        """Path of the leaf of every piece."""
        return [path for path, _ in self._parts(params)]

    def kernels(self, params: PyTree) -> PyTree:
        """Which leaves have pieces of more than one axis, as kernels have: a tree of bools."""
        leaves, tree = jax.tree.flatten(params)
        ranks = [x.ndim - len(axes) for x, axes in zip(leaves, self.axes, strict=True)]
        return jax.tree.unflatten(tree, [rank > 1 for rank in ranks])

    def buffers(self, params: PyTree) -> list[tuple[int, tuple[int, ...]]]:
        """Identity of the buffer of every piece, and its index there."""
        return [
            (id(leaf), index)
            for leaf, axes in zip(jax.tree.leaves(params), self.axes, strict=True)
            for index in _indices(leaf, axes)
        ]

    def _parts(self, params: PyTree) -> Iterator[tuple[str, str]]:
        leaves = zip(leaf_paths(params), jax.tree.leaves(params), self.axes, strict=True)
        for path, leaf, axes in leaves:
            for index in _indices(leaf, axes):
                at = dict(zip(axes, index, strict=True))
                shown = [str(at.get(axis, ":")) for axis in range(max(axes, default=-1) + 1)]
                yield path, f"[{','.join(shown)}]" if shown else ""


def _indices(leaf: Array, axes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Indices of the slices along some axes; one empty index where there are none."""
    return itertools.product(*(range(leaf.shape[axis]) for axis in axes))


def _stacked(pieces: Sequence[Array], lengths: Sequence[int], axes: Sequence[int]) -> Array:
    """The leaf of which these are the slices."""
    if not axes:
        (piece,) = pieces
        return piece
    stack = jnp.stack(pieces)
    stack = stack.reshape((*lengths, *stack.shape[1:]))
    return jnp.moveaxis(stack, range(len(axes)), axes)
