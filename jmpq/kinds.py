"""Checks of kinds where data enter: what came, what was expected, what to do, in one line.

`check_kinds` reads the annotations of a public function or class, and looks at every argument
before anything is computed. Shapes and values are left to the functions themselves.
"""

import collections.abc
import dataclasses
import functools
import inspect
import numbers
import os
import pathlib
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import jaxtyping

from jmpq.text import did_you_mean

Entry = TypeVar("Entry", bound=Callable[..., Any])
NUMBERS = {int: numbers.Integral, float: numbers.Real}
WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a string",
    type(None): "None",
    pathlib.Path: "a path",
    os.PathLike: "a path",
    "flax.linen.module.Module": "a linen module",
    "flax.nnx.module.Module": "an NNX module",
}
# How to make what is expected, by the name of its class.
MADE = {
    "Network": "jmpq.Network.from_linen, from_nnx or from_function makes one.",
    "LayeredNetwork": "jmpq.Network.from_linen, from_nnx or from_function makes one.",
    "Quantizers": "jmpq.calibrate_quantizers(network, bits) makes them.",
    "MoveNetwork": "Write jmpq.MoveNetwork(network=network, quantizers=quantizers).",
    "Metric": "Give a metric such as jmpq.GaussNewton().",
    "Choice": "jmpq.choice_grid([4, 8]) makes choices of bit-widths.",
    "LossTable": "jmpq.analyse makes one.",
    "KernelSpec": "Write jmpq.KernelSpec().",
    "InputSpec": "Write jmpq.InputSpec().",
    "Problem": "jmpq.build_problem makes one.",
    "Allocation": "It is a solution's .allocation, or jmpq.Allocation({'layer': 'W4A8'}).",
    "Evaluator": "Write jmpq.Evaluator(network, quantizers, batches).",
    "Superposed": "jmpq.measure_superposed makes one.",
    "Dataset": "jmpq.load_dataset or jmpq.image_folder makes one.",
    "Split": "It is a dataset's .train or .heldout.",
    "Tokenizer": "jmpq.read_tokenizer makes one.",
    "Study": "jmpq.read_study makes one.",
    "flax.linen.module.Module": "NNX modules go into jmpq.Network.from_nnx.",
    "flax.nnx.module.Module": "Linen modules go into jmpq.Network.from_linen.",
}
PARTS = ("allocation", "network", "quantizers", "weights")  # that stand for their whole


def check_kinds(entry: Entry) -> Entry:
    """A function or class that refuses arguments of other kinds than its annotations say.

    A kind is a class or protocol, a sequence or mapping and what is in it, a `Literal`, an
    array or a pytree of any shape. What has no annotation, or `Any`, is not looked at, nor is
    a default.

    >>> @check_kinds
    ... def half(x: float) -> float:
    ...     return x / 2
    >>> half("a")
    Traceback (most recent call last):
    TypeError: `x` of half is 'a': expected a number.
    """
    if isinstance(entry, type):
        entry.__init__ = _checking(entry.__init__, entry.__name__)  # type: ignore[misc]
        return entry  # type: ignore[return-value]
    name = entry.__qualname__.rpartition("<locals>.")[2]
    return _checking(entry, name.removesuffix(".__call__").removesuffix(".__init__"))


def expect(value: object, kind: Any, name: str, advice: str = "") -> None:
    """Refuse a value that is not of a kind.

    Args:
        value: Value of the argument.
        kind: Annotation that says what is expected.
        name: Name of the argument, for the message.
        advice: Remedy for the message; by default what follows from value and kind.

    Raises:
        TypeError: If the value is of another kind.
        ValueError: If it is a string, and not one of those that a `Literal` lists.
    """
    if fits(value, kind):
        return
    listed = [x for x in _literals(kind) if isinstance(x, str)]
    if isinstance(value, str) and listed:
        raise ValueError(
            f"{name} is {value!r}: expected {words(kind)}.{did_you_mean(value, listed)}"
        )
    where, inside = "", value.values() if isinstance(value, Mapping) else value
    items = _values(kind) if isinstance(value, Mapping) else _items(kind)
    if items is not None and isinstance(inside, LISTED):
        for wrong in [x for x in _one_of_each(inside) if not fits(x, items)][:1]:
            where = f" with {described(wrong)} in it"
            advice = advice or _advice(wrong, items)
    advice = advice or _advice(value, kind)
    raise TypeError(
        f"{name} is {described(value)}{where}: expected {words(kind)}. {advice}".rstrip()
    )


def fits(value: object, kind: Any) -> bool:
    """Whether a value is of the kind that an annotation says, as far as it can be told."""
    origin = get_origin(kind) or kind
    if kind is Any or isinstance(kind, str | TypeVar) or origin is object:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in get_args(kind))
    if kind is None or kind is type(None):
        return value is None
    if origin is Literal:
        return any(isinstance(value, type(one)) and value == one for one in get_args(kind))
    if isinstance(value, type):
        return origin in (type, collections.abc.Callable)
    if _is_tree_kind(kind):
        return _is_tree(value)
    if _is_array_kind(kind):
        return hasattr(value, "shape") and hasattr(value, "dtype")
    if origin in NUMBERS:
        return isinstance(value, NUMBERS[origin]) or getattr(value, "shape", None) == ()
    if kind is bool:
        return isinstance(value, bool) or getattr(value, "shape", None) == ()
    if origin is collections.abc.Callable:
        return callable(value)
    if (items := _items(kind)) is not None:
        return _is_sequence(value, origin) and _all_fit(value, items)
    if origin in MAPPINGS:
        return isinstance(value, Mapping) and _all_fit(value.values(), _values(kind))
    if getattr(origin, "_is_protocol", False) and not getattr(
        origin, "_is_runtime_protocol", False
    ):
        return callable(value)
    return isinstance(value, origin) if isinstance(origin, type) else True


def described(value: object) -> str:
    """What a value is, in a few words.

    >>> described(None), described(4), described("a"), described(int), described([1])
    ('None', 'the int 4', "'a'", 'the class int', 'a list')
    """
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, str):
        return repr(value) if len(value) < 60 else f"{value[:60]!r}..."
    if isinstance(value, bool | int | float):
        return f"the {type(value).__name__} {value}"
    if (shape := getattr(value, "shape", None)) is not None and hasattr(value, "dtype"):
        return f"an array of shape {tuple(shape)}"
    if inspect.isroutine(value):
        return f"the function {getattr(value, '__name__', value)}"
    return _with_article(type(value).__name__)


def words(kind: Any) -> str:
    """What an annotation expects, in words.

    >>> words(int | None), words(list[str]), words(Literal["a", "b"])
    ('a whole number or None', 'a list of strings', "'a' or 'b'")
    """
    origin = get_origin(kind) or kind
    if origin in (Union, types.UnionType):
        said = list(dict.fromkeys(words(one) for one in get_args(kind)))
        return " or ".join(filter(None, [", ".join(said[:-1]), said[-1]]))
    if origin is Literal:
        *most, last = map(repr, get_args(kind))
        return f"{', '.join(most)} or {last}" if most else last
    if _is_tree_kind(kind):
        return "a pytree of arrays"
    if _is_array_kind(kind):
        return "an array"
    if (named := WORDS.get(kind) or WORDS.get(_full_name(origin))) is not None:
        return named
    if origin is collections.abc.Callable:
        return "a function"
    if (items := _items(kind)) is not None:
        whole = "a tuple" if origin is tuple else "a list"
        return whole if items is Any else f"{whole} of {_plural(words(items))}"
    if origin in MAPPINGS:
        inside = _values(kind)
        return "a dict" if inside is Any else f"a dict of {_plural(words(inside))}"
    return _with_article(getattr(origin, "__name__", str(origin)).rpartition(".")[2])


def _checking(function: Any, of: str) -> Any:
    """The function with a look at its arguments before it."""
    arguments: dict[str, _Argument] = {}

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not arguments:  # at the first call, when every annotation can be read
            arguments.update(_arguments(function))
        for name, value in (*zip(arguments, args, strict=False), *kwargs.items()):
            if (argument := arguments.get(name)) is None:
                continue
            if value is argument.default or type(value) in argument.seen:
                continue
            expect(value, argument.kind, f"`{name}` of {of}")
            if argument.plain and not hasattr(value, "shape"):
                argument.seen.add(type(value))
        return function(*args, **kwargs)

    return wrapper


@dataclasses.dataclass(frozen=True)
class _Argument:
    """Annotation and default of an argument, and classes that were found to fit."""

    kind: Any
    default: Any
    seen: set[type] = dataclasses.field(default_factory=set)

    @functools.cached_property
    def plain(self) -> bool:
        """Whether the class of a value alone tells whether it fits."""
        several = (*SEQUENCES, *MAPPINGS, type)
        return all(
            isinstance(k, type)
            and k not in several
            and not (_is_tree_kind(k) or _is_array_kind(k))
            and not getattr(k, "_is_protocol", False)
            for k in _alternatives(self.kind)
        )


def _arguments(function: Any) -> dict[str, _Argument]:
    """Every argument in order; `Any` where nothing is said."""
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):
        hints = {}
    parameters = inspect.signature(function).parameters.values()
    said = {p.name: hints.get(p.name, p.annotation) for p in parameters}
    return {
        p.name: _Argument(Any if p.annotation is p.empty else said[p.name], p.default)
        for p in parameters
        if p.kind is not p.VAR_KEYWORD
    }


def _advice(value: object, kind: Any) -> str:
    """What to do about a value of another kind."""
    kinds = _alternatives(kind)
    if isinstance(value, type):
        made = any(isinstance(k, type) and _is_instance_of(value, k) for k in kinds)
        return f"Write {value.__name__}() with brackets, which makes one." if made else ""
    for part in PARTS:
        if value is not None and any(fits(getattr(value, part, None), k) for k in kinds):
            if not fits(None, kind):
                return f"Take its .{part}."
    inside = [items for k in kinds if (items := _items(k)) is not None]
    if any(fits(value, items) for items in inside):
        return "Put it into a list, [...]."
    if isinstance(value, str) and pathlib.Path in kinds:
        return f"Write pathlib.Path({value!r})."
    names = [_full_name(k) for k in (*kinds, *(a for i in inside for a in _alternatives(i)))]
    return next(
        (MADE[n] for name in names for n in (name, name.split(".")[-1]) if n in MADE), ""
    )


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _is_instance_of(given: type, kind: type) -> bool:
    """Whether instances of one class are of a kind, a protocol by its attributes."""
    try:
        return issubclass(given, kind)
    except TypeError:  # a protocol with attributes
        wanted = [n for n in vars(kind) if n == "__call__" or not n.startswith("_")]
        return bool(wanted) and all(hasattr(given, name) for name in wanted)


def _literals(kind: Any) -> list[Any]:
    return [x for k in _alternatives(kind) if get_origin(k) is Literal for x in get_args(k)]


def _items(kind: Any) -> Any:
    """Kind of the items where a sequence is expected, else None."""
    for one in _alternatives(kind):
        origin, inside = get_origin(one) or one, get_args(one)
        if origin is tuple and not (len(inside) == 2 and inside[1] is ...):
            continue
        if origin in SEQUENCES:
            return inside[0] if inside else Any
    return None


def _values(kind: Any) -> Any:
    """Kind of the values where a mapping is expected, else None."""
    for one in _alternatives(kind):
        if (get_origin(one) or one) in MAPPINGS:
            return (*get_args(one), Any, Any)[1]
    return None


SEQUENCES = (
    tuple,
    list,
    collections.abc.Sequence,
    collections.abc.Iterable,
    collections.abc.Collection,
)
MAPPINGS = (dict, Mapping)
LISTED = (list, tuple, collections.abc.ValuesView)  # whose items are looked at


def _is_sequence(value: object, origin: Any) -> bool:
    if isinstance(value, str | bytes | Mapping) or value is None:
        return False
    if origin in (tuple, list):
        return isinstance(value, origin)
    if origin is collections.abc.Iterable:
        return hasattr(value, "__iter__")
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")


def _all_fit(values: Any, kind: Any) -> bool:
    """Whether all values fit, one of each class; what is made one by one is believed.

    Pairs are looked at by those who take them.
    """
    if get_origin(kind) is tuple:
        return True
    if isinstance(values, LISTED):
        return all(fits(value, kind) for value in _one_of_each(values))
    return True


def _one_of_each(values: Any) -> list[Any]:
    return list({type(value): value for value in values}.values())


def _is_tree_kind(kind: Any) -> bool:
    return type(kind).__name__ == "_MetaPyTree"  # its module imports JAX


def _is_array_kind(kind: Any) -> bool:
    if isinstance(kind, type) and issubclass(kind, jaxtyping.AbstractArray):
        return True
    return getattr(kind, "__module__", "").startswith(("jax", "numpy")) and getattr(
        kind, "__name__", ""
    ).rpartition(".")[2] in ("Array", "ndarray")


def _is_tree(value: object) -> bool:
    """Whether all leaves are arrays or numbers, and it is not an object of ours."""
    if value is None or isinstance(value, str | bytes | type):
        return False
    if type(value).__module__.partition(".")[0] == "jmpq":
        return False
    jax = sys.modules.get("jax")
    leaves = jax.tree.leaves(value) if jax else ()
    return all(hasattr(x, "dtype") or isinstance(x, numbers.Number) for x in leaves)


def _full_name(kind: Any) -> str:
    return f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', kind)}"


def _with_article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def _plural(phrase: str) -> str:
    """Several of what one phrase names.

    >>> _plural("a string or a list of paths or None")
    'strings or lists of paths or None'
    """
    parts = []
    for part in phrase.split(" or "):
        article, _, noun = part.partition(" ")
        head, of, rest = noun.partition(" of ")
        parts.append(f"{head}s{of}{rest}" if article in ("a", "an") else part)
    return " or ".join(parts)
