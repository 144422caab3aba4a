"""The inner loop of the core solver: states extended by the choices of one group."""

import numpy as np
from jaxtyping import Float, Int

States = Float[np.ndarray, " states"]
Steps = Float[np.ndarray, " choices"]


def extend(
    excess: States,
    loss: States,
    cost_steps: Steps,
    loss_steps: Steps,
    most_saved: float,
    least_lost: float,
    incumbent: float,
    capacity: int,
) -> tuple[
    Float[np.ndarray, " new"],
    Float[np.ndarray, " new"],
    Int[np.ndarray, " new"],
    Int[np.ndarray, " new"],
    bool,
]:
    """Extend every state by every choice of one group; drop dominated and hopeless states.

    A state is an allocation of the groups so far, with the others at the break solution. It is
    kept if its loss is below that of all cheaper states and its bound is below the incumbent.

    Args:
        excess: Cost of each state above the limit, rising.
        loss: Loss of each state above the break solution, falling.
        cost_steps: Cost of each choice above the break choice of this group.
        loss_steps: Loss of each choice above the break choice.
        most_saved: Largest loss that the remaining groups save per cost spent.
        least_lost: Least loss that the remaining groups add per cost saved; inf if they can
            save no cost.
        incumbent: Loss of the best allocation above the break solution.
        capacity: Largest number of states to keep.

    Returns:
        Excess, loss, row of the parent state and choice of every new state, and whether they
        are complete (False if the capacity was exceeded).
    """
    all_excess = (cost_steps[:, None] + excess).ravel()
    all_loss = (loss_steps[:, None] + loss).ravel()
    # The sorted copies of the states, one a choice, lie one behind the other: a stable sort
    # merges them, and equal ones stay in the order of the choices.
    order = np.argsort(all_excess, kind="stable")
    new_excess, new_loss = all_excess[order], all_loss[order]
    better = np.append(True, new_loss[1:] < np.minimum.accumulate(new_loss)[:-1])
    order, new_excess, new_loss = order[better], new_excess[better], new_loss[better]
    # Losses fall strictly now, so of equally dear states only the last is not dominated. A
    # state above the limit has to save its excess in the groups to come, one below it may
    # spend the rest there: at best at these slopes.
    price = new_excess * np.where(new_excess > 0, least_lost, most_saved)
    rounding = np.where(price < np.inf, 2e-15 * (np.abs(new_loss) + np.abs(price)), 0.0)
    stays = new_loss + price - rounding < incumbent
    stays[:-1] &= new_excess[:-1] < new_excess[1:]
    kept = np.flatnonzero(stays)[:capacity]
    columns, parent = np.divmod(order[kept], len(excess))
    return (
        new_excess[kept],
        new_loss[kept],
        parent.astype(np.int32),
        columns.astype(np.int16),
        len(kept) == int(stays.sum()),
    )
