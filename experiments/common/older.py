"""Rows of committed results that today's code would make anew, and how tables mark them."""

from collections.abc import Iterable, Mapping
from typing import Any

# Commits of results from before c9753a8, since which random and reversed allocations are drawn
# without looking at the losses.
OLD_RANDOM = ("308fd42", "b3e8fa5", "46387de")
DAGGER, DOUBLE = " †", " ‡"
NOTES = {
    DAGGER: "† Random and reversed allocations drawn by older code, which looked at the "
    "losses; not made again.",
    DOUBLE: "‡ Made from predictions of composed logits by a program that may have given wrong "
    "numbers for more than 32,768 rows of allocations and examples; not made again.",
}


def mark_of(result: Mapping[str, Any], method: str) -> str:
    """The mark of a method's rows in a result; empty where today's code makes the same."""
    if method.startswith(("random", "reversed")) and result["commit"][:7] in OLD_RANDOM:
        return DAGGER
    return DOUBLE if "composed" in method else ""


def notes(marks: Iterable[str]) -> list[str]:
    """The lines under a table that explain its marks."""
    found = set(marks)
    return [line for mark, text in NOTES.items() if mark in found for line in ("", text)]
