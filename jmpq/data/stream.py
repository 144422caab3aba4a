"""Sequences of batches that are never in memory together."""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator, Sequence
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
        ahead: Batches that a loop over the stream makes before they are asked for, in a
            thread beside it: as many are in memory besides the one in use.
    """

    sizes: tuple[int, ...]
    make: Callable[[int], Item]
    ahead: int = 0

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
        return Stream(sizes, lambda i: self.make(chosen[i]), self.ahead)

    def __iter__(self) -> Iterator[Item]:
        if self.ahead < 1:
            yield from map(self.make, range(len(self)))
            return
        with concurrent.futures.ThreadPoolExecutor(1) as beside:
            made = [beside.submit(self.make, i) for i in range(min(self.ahead, len(self)))]
            try:
                for following in range(self.ahead, len(self) + self.ahead):
                    item = made.pop(0).result()
                    if following < len(self):
                        made.append(beside.submit(self.make, following))
                    yield item
                    del item  # before the next one is waited for
            finally:
                for future in made:
                    future.cancel()

    def map(self, function: Callable[[Item], Other]) -> "Stream[Other]":
        """The same stream with a function applied to every batch."""
        return Stream(self.sizes, lambda i: function(self.make(i)), self.ahead)
