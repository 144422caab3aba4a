r"""Rules on layers: pin, exclude, allow, tie. Patterns are regular expressions on names.

A pattern must match a whole name. Of the pins, exclusions and allowances that match a layer
the first in the list wins; ties come on top. A rule is written as one line of text, the same
on the command line and in files:

- ``pin PATTERN=W8A8``: that choice and no other;
- ``exclude PATTERN``: unquantized and outside the search, reported apart;
- ``allow PATTERN=W2,W4A4,A8``: only these candidates; ``W2`` stands for every candidate with
  2-bit weights, ``A8`` for every one with 8-bit activations; formats go by their names:
  ``Wmxfp4A8``, ``Wnvfp4`` (or ``nvfp4``), ``Amxfp8_e4m3``;
- ``tie PATTERN PATTERN ...``: all matching layers take the same choice. Layers are tied only
  to layers whose capture groups hold the same text: ``tie (stage\d)/unit1/(?:conv1|down)``
  makes one tie a stage.
"""

import contextlib
import dataclasses
import re
import signal
import threading
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool

from jmpq.formats import UNQUANTIZED, Choice, Scheme, is_name, labels
from jmpq.kinds import check_kinds
from jmpq.text import did_you_mean

MATCH_SECONDS = 2.0  # of a pattern on all layers

_CANDIDATE = re.compile(r"(?:[Ww](?P<w>[^WwAa\s]+))?(?:[Aa](?P<a>[^WwAa\s]+))?")


@dataclasses.dataclass(frozen=True, init=False)
class Pin:
    """The matching layers take `choice`, which may be its label.

    >>> Pin("stem", "W8A8") == Pin("stem", Choice(8, 8))
    True
    """

    pattern: str
    choice: Choice

    @check_kinds
    def __init__(self, pattern: str, choice: Choice | str) -> None:
        _check_pattern(pattern)
        object.__setattr__(self, "pattern", pattern)
        read = Choice.parse(choice) if isinstance(choice, str) else choice
        object.__setattr__(self, "choice", read)

    def __str__(self) -> str:
        return f"pin {self.pattern}={self.choice.label}"


@check_kinds
@dataclasses.dataclass(frozen=True)
class Exclude:
    """The matching layers are left unquantized and outside the search."""

    pattern: str

    def __post_init__(self) -> None:
        _check_pattern(self.pattern)

    def __str__(self) -> str:
        return f"exclude {self.pattern}"


@dataclasses.dataclass(frozen=True, init=False)
class Allow:
    """The matching layers choose among `candidates` only.

    Attributes:
        pattern: Regular expression of layer names.
        candidates: ``"W4A8"`` (that choice), ``"W4"`` (4-bit weights, any activations) or
            ``"A8"`` (8-bit activations, any weights); a `Choice`; or a list
            of them.
    """

    pattern: str
    candidates: tuple[str, ...]

    @check_kinds
    def __init__(self, pattern: str, candidates: Choice | str | Sequence[Choice | str]) -> None:
        _check_pattern(pattern)
        given = (candidates,) if isinstance(candidates, Choice | str) else candidates
        texts = tuple(text for one in given for text in _candidate(one).split(","))
        object.__setattr__(self, "pattern", pattern)
        object.__setattr__(self, "candidates", texts)
        for text in texts:
            try:
                _named_schemes(text)
            except ValueError as error:
                raise ValueError(
                    f"{text!r} names no candidates: expected bits as in 'W4A8', 'W4' (any "
                    "activation bits) or 'A8' (any weight bits), or formats as in 'Wmxfp4A8' "
                    f"({error})."
                ) from error

    def __str__(self) -> str:
        return f"allow {self.pattern}={','.join(self.candidates)}"

    def permits(self, choice: Choice) -> bool:
        """Whether one of the candidates stands for `choice`."""
        for text in self.candidates:
            weights, activations = _named_schemes(text)
            if weights in (None, choice.weights) and activations in (None, choice.activations):
                return True
        return False


@check_kinds
@dataclasses.dataclass(frozen=True)
class Tie:
    """The layers that match any pattern, with the same captured text, take one choice."""

    patterns: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.patterns:
            raise ValueError("A tie needs at least one pattern.")
        for pattern in self.patterns:
            _check_pattern(pattern)

    def __str__(self) -> str:
        return f"tie {' '.join(self.patterns)}"


def _candidate(one: Choice | str) -> str:
    """Text that names a choice, or what stands for several."""
    if isinstance(one, str):
        return one
    return f"W{one.weights.short}A{one.activations.short}"


def _named_schemes(text: str) -> tuple[Scheme | None, Scheme | None]:
    """Schemes of weights and of activations that a text names; None for any."""
    match = None if is_name(text) else _CANDIDATE.fullmatch(text)
    if is_name(text):
        return Scheme.of(text), None
    if not text or match is None:
        raise ValueError("no bits, no formats")
    w, a = match["w"], match["a"]
    return Scheme.of(w) if w else None, Scheme.of(a) if a else None


Rule = Pin | Exclude | Allow | Tie


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Ruling:
    """What the rules make of a list of layers.

    Attributes:
        allowed: Choices that each layer may take; no row is empty. Excluded layers' rows
            are all true and mean nothing.
        excluded: Whether each layer is outside the search.
        ties: Names of layers that take one choice, two or more in each.
        rows: For each rule, the layers that it decided (ties: that it ties).
        by: Text of the rule that decided a layer, by layer.
    """

    allowed: Bool[np.ndarray, "_ _"]
    excluded: Bool[np.ndarray, " _"]
    ties: tuple[tuple[str, ...], ...]
    rows: tuple[tuple[str, ...], ...]
    by: dict[str, str]


def parse_rule(text: str) -> Rule:
    """Read one rule from a line of text, the inverse of ``str(rule)``.

    >>> parse_rule("pin stem/conv=W8A8")
    Pin(pattern='stem/conv', choice=Choice(W8A8))

    Raises:
        ValueError: If the text is no rule.
    """
    verb, _, rest = text.strip().partition(" ")
    words = rest.split()
    pattern, equals, value = rest.strip().rpartition("=")  # the last: patterns may hold one
    if verb == "pin" and len(words) == 1 and equals:
        return Pin(pattern, Choice.parse(value))
    if verb == "allow" and len(words) == 1 and equals:
        return Allow(pattern, value)
    if verb == "exclude" and len(words) == 1:
        return Exclude(words[0])
    if verb == "tie" and words:
        return Tie(tuple(words))
    raise ValueError(
        f"{text!r} is not a valid rule: expected 'pin PATTERN=W8A8', 'exclude PATTERN', "
        "'allow PATTERN=W2,W4A4' or 'tie PATTERN PATTERN ...' (no blanks in a pattern)."
    )


def _read(rule: Rule | str) -> Rule:
    return parse_rule(rule) if isinstance(rule, str) else rule


@check_kinds
def first_and_last(
    layers: Sequence[str], choices: Sequence[Choice], *, bits: int = 8
) -> tuple[Rule, ...]:
    """The default rule: pin the first and the last layer to `bits`.

    Activations are pinned to the same bits, unless every candidate leaves them unquantized.
    Integers are meant; where they are no candidate, the first candidate of so many bits is.
    """
    choices = of_kernels(choices)
    weights_only = all(choice.activations.is_none for choice in choices)
    choice = Choice(bits) if weights_only else Choice(bits, bits)
    if choice not in choices:
        wanted = choice.w_bits, choice.a_bits
        near = [c for c in sorted(choices) if (c.w_bits, c.a_bits) == wanted]
        choice = near[0] if near else choice
    ends = dict.fromkeys(name for name in (*layers[:1], *layers[-1:]))
    return tuple(Pin(literal(name), choice) for name in ends)


def literal(name: str) -> str:
    r"""The pattern that a layer's name alone matches; blanks are written as rules write them.

    >>> literal("first layer")
    'first\\slayer'
    """
    return re.sub(r"\\\s", lambda _: r"\s", re.escape(name))


def of_kernels(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """The candidates of layers with a kernel, where others are of keys and values.

    These leave the weights unquantized. Where all candidates do, layers with a kernel stay
    unquantized if they may, or take any.
    """
    quantized = tuple(choice for choice in choices if not choice.weights.is_none)
    return quantized or tuple(c for c in choices if c == UNQUANTIZED) or tuple(choices)


@check_kinds
def apply_rules(
    rules: Sequence[Rule | str], layers: Sequence[str], choices: Sequence[Choice]
) -> Ruling:
    """Decide what every layer may take.

    A rule may be a line of text, as `parse_rule` reads it.

    Raises:
        ValueError: If a pattern matches no layer, a pin is to a choice that is not a
            candidate, an allowance leaves none, or a tie has fewer than two layers or an
            excluded one.
    """
    allowed = np.ones((len(layers), len(choices)), dtype=bool)
    excluded = np.zeros(len(layers), dtype=bool)
    decided = np.zeros(len(layers), dtype=bool)
    rows: list[tuple[str, ...]] = []
    ties: list[tuple[str, ...]] = []
    by: dict[str, str] = {}
    for rule in map(_read, rules):
        if isinstance(rule, Tie):
            made = _tied(rule, layers)
            ties.extend(made)
            rows.append(tuple(name for tie in made for name in tie))
            continue
        matches = _matches(rule.pattern, layers, rule)
        fresh = [i for i in matches if not decided[i]]
        decided[fresh] = True
        rows.append(tuple(layers[i] for i in fresh))
        by.update(dict.fromkeys(rows[-1], str(rule)))
        if isinstance(rule, Exclude):
            excluded[fresh] = True
            continue
        wanted = _permitted(rule, choices)
        allowed[fresh] = wanted
    names_out = {name for name, out in zip(layers, excluded, strict=True) if out}
    for tie in ties:
        if out := sorted(set(tie) & names_out):
            raise ValueError(
                f"Layer {out[0]!r} is excluded and tied to {', '.join(tie)}: exclude all of "
                "them or none."
            )
    return Ruling(allowed=allowed, excluded=excluded, ties=tuple(ties), rows=tuple(rows), by=by)


def describe(
    rules: Sequence[Rule], layers: Sequence[str], choices: Sequence[Choice]
) -> list[str]:
    """One line a rule: its text and the layers it decides."""
    ruling = apply_rules(rules, layers, choices)
    return [
        f"{rule}: {', '.join(row) if row else 'no layer (earlier rules match first)'}"
        for rule, row in zip(rules, ruling.rows, strict=True)
    ]


def rules_to_json(rules: Sequence[Rule]) -> list[str]:
    """The rules as lines of text."""
    return [str(rule) for rule in rules]


def rules_from_json(lines: Sequence[str]) -> tuple[Rule, ...]:
    """Inverse of `rules_to_json`."""
    return tuple(parse_rule(line) for line in lines)


def tie_groups(layers: Sequence[str], ties: Sequence[Sequence[str]]) -> list[int]:
    """Group of each layer, numbered by first appearance; ties that share a layer join.

    >>> tie_groups(["a", "b", "c", "d"], [["a", "c"], ["c", "d"]])
    [0, 1, 0, 0]
    """
    index = {name: i for i, name in enumerate(layers)}
    leader = list(range(len(layers)))

    def find(i: int) -> int:
        while leader[i] != i:
            i = leader[i]
        return i

    for tie in ties:
        for name in tie[1:]:
            a, b = find(index[tie[0]]), find(index[name])
            leader[max(a, b)] = min(a, b)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(find(i), len(numbers)) for i in range(len(layers))]


def _tied(rule: Tie, layers: Sequence[str]) -> list[tuple[str, ...]]:
    groups: dict[tuple[str | None, ...], dict[str, None]] = {}
    for pattern in rule.patterns:
        for i in _matches(pattern, layers, rule):
            match = re.fullmatch(pattern, layers[i])  # None: brackets of a name itself
            captured = match.groups() if match else ()
            groups.setdefault(captured, {})[layers[i]] = None
    made = [tuple(names) for names in groups.values() if len(names) > 1]
    if not made:
        matches = ", ".join(name for names in groups.values() for name in names)
        raise ValueError(
            f"Rule '{rule}' ties nothing: a tie needs two layers, it matches only {matches}"
            f"{' (each with its own captured text)' if len(groups) > 1 else ''}."
        )
    return made


def _permitted(rule: Pin | Allow, choices: Sequence[Choice]) -> list[bool]:
    if isinstance(rule, Pin):
        wanted = [choice == rule.choice for choice in choices]
    else:
        wanted = [rule.permits(choice) for choice in choices]
    if not any(wanted):
        raise ValueError(
            f"Rule '{rule}' leaves no candidate: the candidates are {labels(choices)}. Add "
            "the bits to the candidates or change the rule."
        )
    return wanted


def _matches(pattern: str, layers: Sequence[str], rule: Rule) -> list[int]:
    with _time_limit(pattern):
        matches = [
            i for i, name in enumerate(layers) if pattern == name or re.fullmatch(pattern, name)
        ]
    if not matches:
        hint = did_you_mean(pattern, layers, most=3, cutoff=0.5)
        raise ValueError(
            f"Pattern {pattern!r} of rule '{rule}' matches no layer.{hint} The whole name "
            f"must match; the layers are {', '.join(layers)}."
        )
    return matches


@contextlib.contextmanager
def _time_limit(pattern: str) -> Iterator[None]:
    """Stop a match that takes longer than `MATCH_SECONDS`, as of ``(a+)+b``.

    By an alarm, which only the main thread gets, and not on Windows; no limit elsewhere.

    Raises:
        ValueError: If the time is over.
    """
    if (
        not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise ValueError(
            f"Pattern {pattern!r} takes more than {MATCH_SECONDS:g} s to match: write it "
            "without repetitions inside repetitions."
        )

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, MATCH_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _check_pattern(pattern: str) -> None:
    if not pattern or re.search(r"\s", pattern):
        raise ValueError(
            f"Pattern {pattern!r} is empty or has a blank in it: write \\s for a blank."
        )
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"Pattern {pattern!r} is not a regular expression: {error}."
        ) from error
