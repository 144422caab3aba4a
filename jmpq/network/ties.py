"""Layers that hardware would rather see at the same bits, found in the traced graph."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

from jax.extend import core

from jmpq.network.layers import TieKind
from jmpq.network.network import Network
from jmpq.network.tap import CUSTOM_RULES, INLINED, LAYOUT, Path, Site, sub_jaxpr


def architecture_ties(network: Network) -> dict[TieKind, list[tuple[str, ...]]]:
    """Ready-made ties, by kind; layers by name in the order of execution.

    - ``downsample``: the projection of a shortcut with the convolution that reads the same
      input at the head of the residual branch (HAWQ-V3).
    - ``depthwise``: a depthwise convolution with the layers that read its output.
    - ``residual``: layers whose outputs are added, those of a whole stage where additions
      follow each other; also an earlier layer that reaches the first addition.
    - ``shared_input``: layers that read the same value: one quantized copy serves them all.

    What lies between (normalisation, activation, pooling) does not matter. Bodies of loops are
    not looked into.

    References:
        Yao et al. (2021), HAWQ-V3: downsample convolutions tied to the unit's first one.
    """
    flow = _Flow(network)
    found: dict[TieKind, Iterable[Iterable[int]]] = {
        "downsample": flow.downsamples(),
        "depthwise": flow.depthwise(),
        "residual": (one | other for one, other in flow.additions),
        "shared_input": flow.shared.values(),
    }
    layer_of = [layer for layer, _ in network.sites]
    named: dict[TieKind, list[tuple[str, ...]]] = {}
    for kind, groups in found.items():
        joined = _joined({layer_of[site] for site in group} for group in groups)
        named[kind] = [tuple(network.layers[i].name for i in sorted(g)) for g in joined]
    return named


@dataclasses.dataclass(frozen=True)
class _Value:
    """What a value of the jaxpr is made of.

    Attributes:
        sources: Sites from which it comes with no other site between.
        identity: The same for the same value, rearranged or not.
    """

    sources: frozenset[int]
    identity: object


class _Flow:
    """One walk over a network's jaxpr: which sites feed which, and what is added."""

    def __init__(self, network: Network) -> None:
        self.sites: list[Site] = [site for _, site in network.sites]
        self._index = {site.path: i for i, site in enumerate(self.sites)}
        self.before: list[frozenset[int]] = [frozenset()] * len(self.sites)
        self.shared: dict[object, list[int]] = {}
        self.additions: list[tuple[frozenset[int], frozenset[int]]] = []
        jaxpr = network.tap.jaxpr
        self._walk(jaxpr, [_Value(frozenset(), object()) for _ in jaxpr.invars], ())

    @functools.cached_property
    def above(self) -> list[frozenset[int]]:
        """All sites that reach a site, through others or not, itself included."""
        found: list[frozenset[int]] = []
        for i, sources in enumerate(self.before):  # in the order of execution
            found.append(frozenset({i}).union(*(found[s] for s in sources)))
        return found

    def downsamples(self) -> list[set[int]]:
        """A projection that is added to a branch which begins with a reader of its input."""
        found = []
        for one, other in self.additions:
            for projection, branch in ((one, other), (other, one)):
                if len(projection) != 1:
                    continue
                (site,) = projection
                readers = next(g for g in self.shared.values() if site in g)
                reached = frozenset[int]().union(*(self.above[b] for b in branch))
                if heads := {r for r in readers if r != site and r in reached}:
                    found.append({site} | heads)
        return found

    def depthwise(self) -> list[set[int]]:
        """Depthwise convolutions, each with the sites that read nothing but its output."""
        found = []
        for i, site in enumerate(self.sites):
            groups = site.eqn.params.get("feature_group_count", 1)
            if site.kind == "conv" and groups > 1 and groups == site.features:
                found.append({i, *(j for j, b in enumerate(self.before) if b == {i})})
        return found

    def _walk(self, jaxpr: Any, args: Sequence[_Value], at: Path) -> list[_Value]:
        env: dict[Any, _Value] = dict(zip(jaxpr.invars, args, strict=True))
        nothing = frozenset[int]()

        def read(v: Any) -> _Value:
            known = None if isinstance(v, core.Literal) else env.get(v)
            return known or _Value(nothing, object())

        for index, eqn in enumerate(jaxpr.eqns):
            path, ins = (*at, index), [read(v) for v in eqn.invars]
            name = eqn.primitive.name
            sources = nothing.union(*(value.sources for value in ins))
            if path in self._index:
                site = self._index[path]
                data = ins[1 - self.sites[site].operand]
                self.before[site] = data.sources
                self.shared.setdefault(data.identity, []).append(site)
                outs = [_Value(frozenset({site}), object())]
            elif name in INLINED or name in CUSTOM_RULES:
                outs = self._walk(sub_jaxpr(eqn)[0], ins, path)
            elif name in LAYOUT and len(ins) == 1:
                outs = [_Value(sources, ins[0].identity)]
            else:
                if name in ("add", "add_any"):
                    one, other = (value.sources for value in ins)
                    if one and other and one != other:
                        self.additions.append((one, other))
                outs = [_Value(sources, object()) for _ in eqn.outvars]
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]


def _joined(groups: Iterable[Iterable[int]]) -> list[set[int]]:
    """Groups of two or more, those that share a member made one.

    >>> _joined([{0, 2}, {5}, {3, 4}, {2, 3}])
    [{0, 2, 3, 4}]
    """
    joined: list[set[int]] = []
    for group in map(set, groups):
        apart = [other for other in joined if not other & group]
        joined = [*apart, group.union(*(other for other in joined if other & group))]
    return sorted((group for group in joined if len(group) > 1), key=min)
