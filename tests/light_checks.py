"""Types that are checked while the tests run: shapes by jaxtyping, others by beartype alone.

jaxtyping binds the arguments of every call to their names, and makes two functions of every
one that it decorates, local ones at every call. Only shapes need that. A local function whose
annotations name no array is not checked: its arguments are its own module's.
"""

import functools
import types
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from jaxtyping import _decorator

WHOLE = _decorator.jaxtyped  # what the import hook puts on every function and class


def install() -> None:
    """Use `jaxtyped` below wherever the import hook decorates."""
    jaxtyping.jaxtyped = _decorator.jaxtyped = jaxtyped


def jaxtyped(fn: Any = None, *, typechecker: Callable[[Any], Any]) -> Any:
    """jaxtyping's decorator where an annotation names an array, else the type checker."""
    if fn is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if isinstance(fn, type) and hasattr(fn.__init__, "__wrapped__"):
        return fn  # checked before: by `check_kinds`, or in the class it inherits from
    if not isinstance(fn, types.FunctionType) or any(map(_shaped, fn.__annotations__.values())):
        return WHOLE(fn, typechecker=typechecker)
    return fn if "<locals>" in fn.__qualname__ else typechecker(fn)


def _shaped(kind: Any) -> bool:
    """Whether an annotation names an array or a pytree; unread strings may."""
    if isinstance(kind, str | typing.ForwardRef):
        return True
    if isinstance(kind, list | tuple):  # arguments of a Callable
        return any(map(_shaped, kind))
    if isinstance(kind, typing.TypeVar):
        return any(map(_shaped, (kind.__bound__, *kind.__constraints__)))
    if isinstance(kind, type) and kind.__module__.partition(".")[0] == "jaxtyping":
        return True
    return any(map(_shaped, typing.get_args(kind)))
