"""Layers that hardware would rather see at the same bits, found in the traced graph."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jmpq.network.layers import TieKind
from jmpq.network.network import Network
from jmpq.network.walk import LAYOUT, Path, walk


def architecture_ties(network: Network) -> dict[TieKind, list[tuple[str, ...]]]:
    """Ready-made ties, by kind; layers by name in the order of execution.

    - ``downsample``: the projection of a shortcut with the convolution that reads the same
      input at the head of the residual branch (HAWQ-V3).
    - ``depthwise``: a depthwise convolution with the layers that read its output.
    - ``residual``: layers whose outputs are added, those of a whole stage where additions
      follow each other; also an earlier layer that reaches the first addition.
    - ``shared_input``: layers that read the same value: one quantized copy serves them all.
    - ``qkv``: layers whose outputs meet in matrix products of activations: query, key and
      value of an attention, all heads.
    - ``gate_up``: layers that read the same value and whose outputs are multiplied: the gate
      of a gated unit and what it gates.
    - ``encoder_layer``: layers below the numbered part of the parameters that an attention
      belongs to (Q-BERT); the number may stand behind the name, as in a stack.

    What lies between (normalisation, activation, pooling) does not matter. Bodies of loops are
    not looked into.

    References:
        Yao et al. (2021), HAWQ-V3: downsample convolutions tied to the unit's first one.
        Shen et al. (2020), Q-BERT: groups of layers.
    """
    flow = _Flow(network)
    groups: dict[TieKind, Iterable[Iterable[int]]] = {
        "downsample": flow.downsamples(),
        "depthwise": flow.depthwise(),
        "residual": (one | other for one, other in flow.additions),
        "shared_input": flow.shared.values(),
    }
    layer_of = [site.layer_index for site in network.sites]
    attentions = _joined(flow.multiplied)
    groups["qkv"] = attentions
    groups["gate_up"] = flow.gated()
    names = [network.layers[i].name for i in layer_of]
    groups["encoder_layer"] = _encoder_layers(names, _joined(flow.multiplied, least=1))
    named: dict[TieKind, list[tuple[str, ...]]] = {}
    for kind, of_sites in groups.items():
        joined = _joined({layer_of[site] for site in group} for group in of_sites)
        named[kind] = [tuple(network.layers[i].name for i in sorted(g)) for g in joined]
    return named


def nearest_layers(network: Network) -> list[tuple[int, int]]:
    """Pairs of layers, by position in the table, of which the second reads the first's output.

    What lies between (normalisation, activation, pooling) does not matter. Of the outputs that
    were added up along a residual stream only the last ones count: a layer is left out where
    another one of the same reader comes after it. A layer that is used several times is paired
    at every use, each pair once, and never with itself.
    """
    flow = _Flow(network)
    pairs = []
    for site, sources in enumerate(flow.before):
        earlier = frozenset[int]().union(*(flow.above[s] - {s} for s in sources))
        pairs += [(source, site) for source in sorted(sources - earlier)]
    layer_of = [site.layer_index for site in network.sites]
    named = dict.fromkeys((layer_of[one], layer_of[other]) for one, other in pairs)
    return [(one, other) for one, other in named if one != other]


@dataclasses.dataclass(frozen=True)
class _Value:
    """Origin of a value of the jaxpr.

    Attributes:
        sources: Sites from which it comes with no other site between.
        identity: Object that is the same for the same value, rearranged or not.
    """

    sources: frozenset[int] = frozenset()
    identity: object = dataclasses.field(default_factory=object)


class _Flow:
    """The sites that feed each other in a network, and the outputs that are added."""

    def __init__(self, network: Network) -> None:
        self.sites = network.sites
        self._at = {s.operation.path: s for s in self.sites if s.operation.kind != "cache"}
        self.before: list[frozenset[int]] = [frozenset()] * len(self.sites)
        self.shared: dict[object, list[int]] = {}
        self.reads: list[object] = [None] * len(self.sites)
        self.additions: list[tuple[frozenset[int], frozenset[int]]] = []
        self.products: list[tuple[frozenset[int], frozenset[int]]] = []  # element by element
        self.multiplied: list[frozenset[int]] = []  # sites of both sides of a matrix product
        jaxpr, consts = network.tap.jaxpr, network.tap.consts
        args = [_Value() for _ in jaxpr.invars]
        walk(jaxpr, consts, args, self._visit, constant=lambda array: _Value())

    @functools.cached_property
    def above(self) -> list[frozenset[int]]:
        """All sites that reach a site, through others or not, itself included."""
        above: list[frozenset[int]] = []
        for i, sources in enumerate(self.before):  # in the order of execution
            above.append(frozenset({i}).union(*(above[s] for s in sources)))
        return above

    def downsamples(self) -> list[set[int]]:
        """A projection that is added to a branch which begins with a reader of its input."""
        groups = []
        for one, other in self.additions:
            for projection, branch in ((one, other), (other, one)):
                if len(projection) != 1:
                    continue
                (site,) = projection
                readers = next(g for g in self.shared.values() if site in g)
                reached = frozenset[int]().union(*(self.above[b] for b in branch))
                if heads := {r for r in readers if r != site and r in reached}:
                    groups.append({site} | heads)
        return groups

    def depthwise(self) -> list[set[int]]:
        """Depthwise convolutions, each with the sites that read nothing but its output."""
        return [
            {i, *(j for j, sources in enumerate(self.before) if sources == {i})}
            for i, site in enumerate(self.sites)
            if site.operation.is_depthwise
        ]

    def gated(self) -> list[frozenset[int]]:
        """Sites whose outputs are multiplied and that read one value."""
        return [
            one | other
            for one, other in self.products
            if not one & other and len({id(self.reads[i]) for i in one | other}) == 1
        ]

    def _visit(self, eqn: Any, ins: Sequence[_Value], path: Path) -> list[_Value]:
        name = eqn.primitive.name
        sources = frozenset[int]().union(*(value.sources for value in ins))
        if (site := self._at.get(path)) is not None:
            data = ins[1 - site.operation.operand]
            self.before[site.index] = data.sources
            self.shared.setdefault(data.identity, []).append(site.index)
            self.reads[site.index] = data.identity
            return [_Value(frozenset({site.index}))]
        if name in LAYOUT and len(ins) == 1:
            return [_Value(sources, ins[0].identity)]
        if name in ("add", "add_any", "mul", "dot_general"):
            one, other = (value.sources for value in ins)
            if one and other and name == "dot_general":
                self.multiplied.append(frozenset(i for i in sources if self.sites[i].has_input))
            elif one and other and one != other:
                (self.products if name == "mul" else self.additions).append((one, other))
        return [_Value(sources) for _ in eqn.outvars]


def _encoder_layers(
    names: Sequence[str], attentions: Sequence[set[int]]
) -> Iterator[list[int]]:
    """Sites of every layer of a transformer, from the names and the sites of its attentions."""
    parts = [_parts(name) for name in names]
    members = set[int]().union(*attentions)
    for attention in attentions:
        path, index = _common([parts[site] for site in attention])
        for length in range(len(path), -1, -1):
            # A part that is numbered, and has more below it than attention and its output.
            if length and not path[length - 1][-1:].isdigit():
                continue
            if not length and index is None:
                break
            found = [
                site
                for site, (other, number) in enumerate(parts)
                if other[:length] == path[:length] and number == index
            ]
            if len({names[site] for site in found if site not in members}) > 1:
                yield found
                break


def _parts(name: str) -> tuple[list[str], str | None]:
    """Path of a layer, and its index in a stack if it is in one.

    >>> _parts("layers/attn/q[3]")
    (['layers', 'attn', 'q'], '3')
    """
    bare, bracket, index = name.removesuffix("]").partition("[")
    return bare.split("/"), index if bracket else None


def _common(parts: Sequence[tuple[list[str], str | None]]) -> tuple[list[str], str | None]:
    """Beginning that all paths share, below it at least one part each, and their index."""
    paths = [path[:-1] for path, _ in parts]
    shared = list(itertools.takewhile(lambda p: len(set(p)) == 1, zip(*paths, strict=False)))
    indices = {index for _, index in parts}
    return [p[0] for p in shared], indices.pop() if len(indices) == 1 else None


def _joined(groups: Iterable[Iterable[int]], *, least: int = 2) -> list[set[int]]:
    """Groups of `least` or more, those that share a member made one.

    >>> _joined([{0, 2}, {5}, {3, 4}, {2, 3}])
    [{0, 2, 3, 4}]
    """
    joined: list[set[int]] = []
    for group in map(set, groups):
        apart = [other for other in joined if not other & group]
        joined = [*apart, group.union(*(other for other in joined if other & group))]
    return sorted((group for group in joined if len(group) >= least), key=min)
