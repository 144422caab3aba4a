"""Sequences of batches that are never in memory together."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, overload

Item = TypeVar("Item")
Other = TypeVar("Other")


@dataclasses.dataclass(frozen=True, eq=False)
class Stream(Sequence[Item], Generic[Item]):
    """A sequence whose batches are made when they are asked for, each time, and not kept.

    >>> stream = Stream((2, 2, 1), lambda i: "abc"[i])
    >>> list(stream.map(str.upper)), stream[-1], list(stream[1:])
    (['A', 'B', 'C'], 'c', ['b', 'c'])

    Attributes:
        sizes: Examples in each batch.
        make: Makes the batch of an index from 0; the same whenever it is called.
    """

    sizes: tuple[int, ...]
    make: Callable[[int], Item]

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> "Stream[Item]": ...

    def __getitem__(self, index: int | slice) -> "Item | Stream[Item]":
        chosen = range(len(self))[index]
        if isinstance(chosen, int):
            return self.make(chosen)
        sizes = tuple(self.sizes[i] for i in chosen)
        return Stream(sizes, lambda i: self.make(chosen[i]))

    def map(self, function: Callable[[Item], Other]) -> "Stream[Other]":
        """The same stream with a function applied to every batch."""
        return Stream(self.sizes, lambda i: function(self.make(i)))
