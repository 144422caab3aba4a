"""A candidate that is only a name: of a problem that is not about bits."""

import dataclasses

from jmpq.formats import FLOAT_BITS, Choice


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class NamedCandidate(Choice):
    """A `Choice` without formats, for tables from elsewhere; it cannot quantize anything.

    >>> NamedCandidate(name="left"), NamedCandidate(name="left") == NamedCandidate(name="right")
    (NamedCandidate('left'), False)
    """

    name: str

    def __init__(self, *, name: str) -> None:
        super().__init__(FLOAT_BITS)
        object.__setattr__(self, "name", name)

    def __repr__(self) -> str:
        return f"NamedCandidate({self.name!r})"

    @property
    def label(self) -> str:
        """The name."""
        return self.name


def candidate(label: str) -> Choice:
    """The choice of formats that a label says, or a candidate of that name."""
    try:
        choice = Choice.parse(label)
    except ValueError:
        return NamedCandidate(name=label)
    # "w4" and "W4A32" are read as bits too, but only one spelling comes back as it was.
    return choice if choice.label == label else NamedCandidate(name=label)
