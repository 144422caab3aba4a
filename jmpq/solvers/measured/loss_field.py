"""The problem's own loss around an allocation: effects of single changes and of pairs."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from jmpq.problem.problem import Reduced
from jmpq.solvers.measured.neighbourhood import Neighbourhood
from jmpq.solvers.quadratic.priced_walk import Columns


@dataclasses.dataclass(eq=False)
class LossField:
    """Loss that every option adds, given the other groups' choices; updated by changes."""

    reduced: Reduced
    columns: Columns
    field: Float[np.ndarray, "groups choices"]  # own loss and cross terms with the others

    @classmethod
    def of(cls, reduced: Reduced, columns: Columns) -> "LossField":
        field = reduced.losses.copy()
        if reduced.interactions is not None:
            field += reduced.interactions[np.arange(len(columns)), columns].sum(axis=0)
        return cls(reduced, columns.copy(), field)

    @property
    def value(self) -> float:
        """The loss, nats per example; every cross term counts once."""
        rows = np.arange(len(self.columns))
        halves = self.reduced.losses[rows, self.columns] + self.field[rows, self.columns]
        return 0.5 * float(halves.sum())

    def change(self, option: int) -> None:
        """Give a group another choice, in one pass over the cross terms of two options."""
        group, column = divmod(option, self.field.shape[1])
        old = int(self.columns[group])
        cross = self.reduced.interactions
        if cross is not None:
            self.field += cross[group, column] - cross[group, old]
        self.columns[group] = column

    def pair_changes(
        self,
        near: Neighbourhood,
        options: Int[np.ndarray, " options"],
        change: Float[np.ndarray, " options"],
    ) -> Float[np.ndarray, "options options"]:
        """Change of the loss by two changes together; +inf where they break a budget."""
        total = change[:, None] + change[None, :]
        if self.reduced.interactions is not None:
            size = self.reduced.losses.size
            cross = self.reduced.interactions.reshape(size, size)
            choices = self.field.shape[1]
            # Each change alone counts its cross term with the other group's present choice;
            # together they have that of the two new choices instead.
            now = options // choices * choices + self.columns[options // choices]
            total += cross[options[:, None], options] + cross[now[:, None], now]
            mixed = cross[now[:, None], options]
            total -= mixed + mixed.T
        return np.where(near.pairs(self.columns, options), total, np.inf)
