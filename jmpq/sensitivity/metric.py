"""The interface of all metrics: description, arguments, results."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, PyTree

from jmpq.journal import Journal
from jmpq.sensitivity.moves import MoveNetwork
from jmpq.sensitivity.table import NATS


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
    """Description of a metric, beside its options.

    Attributes:
        name: Name in files, tables and figures.
        unit: Unit of the losses.
        use_first: Whether losses include the first-order term.
        additive: Whether terms are means over examples, so that a batch may be cut into parts.
            The metric is then called with one key per example, so that random numbers do not
            depend on the cut.
        spread: Weight of the standard deviation over batches in the losses.
        kl: Whether losses are KL divergences, which take class probabilities and no labels.
        independent: Whether the terms of a move depend on no other move, `Terms.second` being a
            diagonal: new bits are then computed alone. See `FromChanges` for pairs.
    """

    name: str
    unit: str = NATS
    use_first: bool = False
    additive: bool = True
    spread: float = 0.0
    kl: bool = False
    independent: bool = False


class Terms(NamedTuple):
    """Means over one batch: first order, and the second-order matrix or its diagonal.

    `samples`, of a metric that draws random numbers: independent unbiased estimates whose
    mean is `second`.
    """

    first: Float[Array, " moves"]
    second: Float[Array, "moves moves"] | Float[Array, " moves"]
    samples: Float[Array, "samples moves moves"] | None = None


@runtime_checkable
class Metric(Protocol):
    """A sensitivity metric: a frozen dataclass whose fields are its options.

    The call is compiled by itself (``@functools.partial(jax.jit, static_argnums=0)``), or
    loops on the host over compiled parts; then a method `programs` (`Looped`) tells what it
    compiles. A metric that decides something once for all batches has a method `prepare`
    (`Prepares`).
    """

    @property
    def about(self) -> About: ...

    def __call__(
        self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array
    ) -> Terms: ...


class Changes(NamedTuple):
    """What every move does to each example by itself, and what all moves share."""

    by_move: Float[Array, "batch moves ..."]
    shared: Float[Array, "batch ..."]


@runtime_checkable
class FromChanges(Protocol):
    """A metric of pairs of moves whose terms follow from what each move does by itself.

    Changes of moves that were made before are kept, and those of new bits computed alone.
    Both methods are compiled (``@functools.partial(jax.jit, static_argnums=0)``).
    """

    def move_changes(
        self, moves: MoveNetwork, inputs: PyTree, targets: Array, key: Array
    ) -> Changes: ...

    def terms(self, changes: Changes, targets: Array) -> Terms: ...


class Program(NamedTuple):
    """A compiled function of a metric and its arguments, or their shapes."""

    function: Any  # as `jax.jit` returns it
    args: Sequence[Any]

    def compiled(self) -> Any:
        """The program for these arguments; the one that a call of the function runs."""
        return self.function.lower(*self.args).compile()

    def results(self) -> PyTree:
        """Shapes and places of what it returns, as arguments of a program after it."""
        compiled = self.compiled()

        def result(x: Any, place: Any) -> jax.ShapeDtypeStruct:
            spread = place if len(place.device_set) > 1 else None
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spread)

        return jax.tree.map(result, compiled.out_info, compiled.output_shardings)


@runtime_checkable
class Looped(Protocol):
    """A metric that loops on the host over compiled parts: it tells what it compiles."""

    def programs(
        self, moves: MoveNetwork, inputs: PyTree, targets: Any, key: Array
    ) -> list[Program]: ...


class Preparation(NamedTuple):
    """A metric ready for the first batch, and what it decided before.

    Attributes:
        metric: The metric to average.
        record: JSON values, kept in the provenance.
        note: One line for people, printed by the step; empty for nothing to say.
    """

    metric: Metric
    record: dict[str, Any]
    note: str = ""


@runtime_checkable
class Prepares(Protocol):
    """A metric that decides or finds something once, before terms of the first batch are added.

    `batches` come as arguments of the metric: the network, inputs and targets of each where
    they belong on the devices.
    """

    def prepare(
        self,
        moves: MoveNetwork,
        batches: Sequence[tuple[MoveNetwork, PyTree, Any]],
        key: Array,
        *,
        progress: Callable[[int, int], None],
        journal: Journal,
    ) -> Preparation: ...
