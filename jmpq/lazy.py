"""Packages whose names are imported when they are first used."""

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jmpq.text import did_you_mean

Attached = tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]


def attach(
    package: str, homes: Mapping[str, Iterable[str]], modules: Iterable[str] = ()
) -> Attached:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package.

    Args:
        package: Dotted name of the package, its ``__name__``.
        homes: Public names by the module, below the package, that they are in.
        modules: Modules and packages below it that completion finds too.

    Returns:
        The three, to be assigned in its ``__init__``; ``__all__`` has the public names alone.
    """
    home = {name: module for module, names in homes.items() for name in names}
    below = tuple(modules)

    def get(name: str) -> Any:
        if name in home:
            return getattr(importlib.import_module(f"{package}.{home[name]}"), name)
        if name in below:
            return importlib.import_module(f"{package}.{name}")
        hint = "" if name.startswith("_") else did_you_mean(name, [*home, *below])
        raise AttributeError(f"module {package!r} has no attribute {name!r}.{hint}")

    def names() -> list[str]:
        special = [name for name in vars(sys.modules[package]) if name.startswith("__")]
        return sorted({*special, *home, *below})

    return get, names, list(home)
