"""Cross-layer terms of an allocation's loss: checks, sums, and what groups make of them.

``interactions[i, c, j, d]``, nats per example, is what layers i and j add to the loss when i
takes choice c and j takes d, beside their own losses. The table is symmetric and every
unordered pair of layers counts once:

    loss(c) = Σ_i losses[i, c_i] + Σ_{i<j} interactions[i, c_i, j, c_j].

A layer's own terms belong to its losses, so the blocks ``interactions[i, :, i, :]`` are zero.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from jmpq.formats import Choice


def check_interactions(
    layers: Sequence[str],
    choices: Sequence[Choice],
    allowed: Bool[np.ndarray, "layers choices"],
    interactions: Float[np.ndarray, "_ _ _ _"],
) -> None:
    """Refuse what is no table of cross-layer terms; entries that are not allowed may be any.

    Raises:
        ValueError: If the shape is wrong, an allowed entry is NaN or infinite, the table is
            not symmetric, or a layer's block with itself is not zero. The message names the
            layers.
    """
    shape = (*allowed.shape, *allowed.shape)
    if interactions.shape != shape:
        raise ValueError(
            f"interactions have shape {interactions.shape}: expected [layers, choices, layers, "
            f"choices] = {shape}."
        )
    seen = mask(allowed, interactions)

    def entry(i: int, c: int, j: int, d: int) -> str:
        return (
            f"{layers[i]!r} at {choices[c].label} with {layers[j]!r} at {choices[d].label}: "
            f"{interactions[i, c, j, d]}"
        )

    for at in np.argwhere(~np.isfinite(seen))[:1]:
        raise ValueError(
            f"The interaction of {entry(*at.tolist())} must be finite. Check the "
            "weights of these layers and the data, or exclude one."
        )
    for at in np.argwhere(seen != seen.transpose(2, 3, 0, 1))[:1]:
        other = interactions[tuple(at[[2, 3, 0, 1]])]
        raise ValueError(
            f"The interaction of {entry(*at.tolist())} differs from its mirror image "
            f"{other}: the table must be symmetric. Average it with its transpose (2, 3, 0, 1)."
        )
    rows = np.arange(len(layers))
    for i, c, d in np.argwhere(seen[rows, :, rows] != 0)[:1].tolist():
        raise ValueError(
            f"The interaction of {entry(i, c, i, d)}, but a layer's own terms belong to its "
            "losses: set this block to zero."
        )


def mask(
    allowed: Bool[np.ndarray, "_ _"], interactions: Float[np.ndarray, "_ _ _ _"]
) -> Float[np.ndarray, "_ _ _ _"]:
    """Cross terms with zeros where a choice is not allowed."""
    if allowed.all():
        return interactions
    return np.where(allowed[:, :, None, None] & allowed[None, None], interactions, 0.0)


def chosen_interactions(
    interactions: Float[np.ndarray, "layers choices layers choices"],
    columns: Int[np.ndarray, " layers"],
) -> Float[np.ndarray, " pairs"]:
    """The cross term of every unordered pair of layers under one allocation."""
    rows = np.arange(len(columns))
    taken = interactions[rows, columns][:, rows, columns]
    return taken[np.triu_indices(len(columns), 1)]


def interactions_over_groups(
    interactions: Float[np.ndarray, "layers choices layers choices"],
    groups: Int[np.ndarray, " layers"],
) -> tuple[
    Float[np.ndarray, "groups choices groups choices"], Float[np.ndarray, "groups choices"]
]:
    """Cross terms between groups of tied layers, and those within each group.

    Args:
        interactions: Terms between layers, zeros where not allowed.
        groups: Group of every layer.

    Returns:
        The terms of every pair of groups (blocks of a group with itself zero), and for every
        group and choice the sum over pairs of its members, which belongs to its losses.
    """
    count, choices = int(groups.max()) + 1, interactions.shape[1]
    member = np.zeros((count, len(groups)))
    member[groups, np.arange(len(groups))] = 1.0
    rows = np.tensordot(member, interactions, axes=1)  # [groups, choices, layers, choices]
    total = np.einsum("gcjd,hj->gchd", rows, member, optimize=True)
    every, columns = np.arange(count), np.arange(choices)
    within = 0.5 * total[every[:, None], columns, every[:, None], columns]
    total[every, :, every] = 0.0
    return 0.5 * (total + total.transpose(2, 3, 0, 1)), within


def least_with_interactions(
    losses: Float[np.ndarray, "layers choices"],
    allowed: Bool[np.ndarray, "layers choices"],
    interactions: Float[np.ndarray, "layers choices layers choices"],
) -> float:
    """A lower bound on the loss of every allocation, budgets and ties ignored.

    Every choice takes half of its least cross term with every other layer, every layer its
    least such sum (Gilmore 1962, Lawler 1963); less what rounding may have added.
    """
    pairs = np.where(allowed[None, None], interactions, np.inf).min(axis=3)
    sums = np.where(
        allowed, losses + 0.5 * np.where(allowed[..., None], pairs, 0).sum(2), np.inf
    )
    magnitude = np.where(allowed, np.abs(losses), 0.0).max(axis=1).sum()
    magnitude += np.abs(np.where(allowed[..., None], pairs, 0.0)).max(axis=1).sum()
    slack = 4 * np.finfo(np.float64).eps * len(losses) * magnitude
    return math.fsum(sums.min(axis=1)) - float(slack)
