"""A problem as a file that any program can read: what is to be solved, and what is known.

An `Instance` is a problem with a name and the best value known. It is one JSON object, or one
npz archive of the same fields: the tables as arrays, the rest as JSON text in ``header``.

==================  ========================================================================
``schema``          ``"jmpq/problem"``
``version``         3
``name``            of the instance
``layers``          names of the rows of all tables
``candidates``      labels of the columns; ``W4A8`` where they are bits, else any text
``losses``          table, nats per example in a network; to be minimised
``costs``           table by name; not negative (npz: one array ``cost_NAME`` each)
``budgets``         limit by name of a cost: constant + sum over the layers ≤ limit
``constants``       cost outside the choices, by name; 0 where absent
``allowed``         table of true and false: what a layer may choose
``groups``          number of every layer's group; layers of one group choose alike
``pairs``           rows ``[layer, candidate, other layer, other candidate]`` by index
``pair_values``     what each pair of ``pairs`` adds to the loss when both are chosen
``asked``           text that every budget was asked for with
``float_costs``     cost of the unquantized network
``known``           ``loss``, ``bound``, ``columns`` and ``source``, see `Known`
``content_sha256``  hash of every field; a file made by hand has none
==================  ========================================================================

Needed are ``schema``, ``version`` and ``losses``. Every pair of layers stands in ``pairs`` in
one order only; without ``pairs`` the loss is a sum over layers. ``null`` (NaN in npz) stands in
tables where a layer may not choose, and for a bound or columns that nobody knows.
"""

import dataclasses
import json
import math
import pathlib
import zipfile
import zlib
from typing import Any

import numpy as np
from jaxtyping import Int

from jmpq.artifact import CONTENT, changed_names, content_hashes
from jmpq.files import atomic_file, write_json
from jmpq.problem.named_candidate import candidate
from jmpq.problem.problem import Problem
from jmpq.problem.solution import OPTIMALITY

SCHEMA, VERSION = "jmpq/problem", 3
_TABLES = ("losses", "allowed", "groups", "pairs", "pair_values")
_TEXTS = ("layers", "candidates", "budgets", "constants", "asked", "float_costs")
_FIELDS = {"name", "costs", "known", *_TABLES, *_TEXTS}
# What a spoilt file makes zipfile, zlib, NumPy and json raise.
_SPOILT = (
    EOFError, KeyError, NotImplementedError, RecursionError, TypeError, ValueError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Known:
    """The best value known of an instance, and how it is known.

    Attributes:
        loss: Least loss known of an allocation within the budgets.
        source: Source of the claim.
        bound: Greatest lower bound known; -inf for none.
        columns: An allocation within the budgets, the best there is; None where only the
            value is known. Its loss may be above `loss`.
    """

    loss: float
    source: str
    bound: float = -math.inf
    columns: Int[np.ndarray, " _"] | None = None

    @property
    def optimal(self) -> bool:
        """Whether the bound proves the loss, up to rounding."""
        return self.loss - self.bound <= OPTIMALITY * abs(self.loss)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Instance:
    """A problem, its name, and the best value known.

    Attributes:
        name: Name of the instance.
        problem: The problem.
        known: The best value known; None where there is none.

    Raises:
        ValueError: If what is known contradicts itself or the problem.
    """

    name: str
    problem: Problem
    known: Known | None = None

    def __post_init__(self) -> None:
        if (known := self.known) is None:
            return
        room = OPTIMALITY * max(abs(known.loss), 1.0)
        if not math.isfinite(known.loss) or known.bound > known.loss + room:
            raise ValueError(
                f"Instance {self.name!r} has best loss {known.loss} and bound {known.bound}: "
                "expected a finite loss that is not below its bound."
            )
        if known.columns is None:
            return
        loss, costs = self.problem.evaluate(known.columns)
        if over := self.problem.violated(costs):
            raise ValueError(
                f"The best allocation of instance {self.name!r} breaks its budgets: "
                f"{', '.join(f'{name} by {excess:g}' for name, excess in over.items())}."
            )
        if loss < known.bound - OPTIMALITY * max(abs(loss), 1.0):
            raise ValueError(
                f"The best allocation of instance {self.name!r} has loss {loss}, below the "
                f"bound {known.bound}."
            )


def write_instance(path: pathlib.Path, instance: Instance) -> None:
    """Write one file, JSON or npz by its name, whole or not at all.

    Raises:
        ValueError: If the name ends in neither ``.json`` nor ``.npz``.
        OSError: If the file cannot be written.
    """
    fields, arrays = _record(instance)
    if _suffix(path) == ".json":
        plain = json.loads(json.dumps(fields | _as_lists(arrays)))
        record = {"schema": SCHEMA, "version": VERSION, **plain, CONTENT: content_hashes(plain)}
        write_json(path, record, compact=True)
        return
    arrays |= {f"cost_{name}": table for name, table in arrays.pop("costs").items()}
    plain = json.loads(json.dumps(fields))
    header = {"schema": SCHEMA, "version": VERSION, **plain}
    header[CONTENT] = content_hashes(plain, arrays)
    with atomic_file(path) as file:
        np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays)


def read_instance(path: pathlib.Path) -> Instance:
    """Read what `write_instance` or another program wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no problem of this version, was changed after jmpq wrote
            it, or states no valid problem; the message says what is wrong.
    """
    path = pathlib.Path(path)
    try:
        record, arrays = _read(path)
        got = record.pop("schema"), record.pop("version")
    except _SPOILT as error:
        raise ValueError(
            f"{path} is not a problem file ({error or type(error).__name__}): write it with "
            "write_instance, or as the page of jmpq.problem.instances.instance says."
        ) from error
    if got != (SCHEMA, VERSION):
        raise ValueError(
            f"{path} holds {got[0]} version {got[1]}; this jmpq reads {SCHEMA} version "
            f"{VERSION}. Write it again with write_instance."
        )
    written = record.pop(CONTENT, None)
    changed = changed_names(written, content_hashes(record, arrays)) if written else []
    if changed:
        raise ValueError(
            f"{path} was changed after it was written ({', '.join(changed[:3])}): write it "
            f"again with write_instance, or take {CONTENT} out."
        )
    costs = {
        name.removeprefix("cost_"): t for name, t in arrays.items() if name.startswith("cost_")
    }
    record |= {name: table for name, table in arrays.items() if not name.startswith("cost_")}
    record.setdefault("costs", costs)
    if unknown := sorted(set(record) - _FIELDS):
        raise ValueError(
            f"{path} has unknown fields {', '.join(unknown)}: expected some of "
            f"{', '.join(sorted(_FIELDS))}."
        )
    try:
        return _instance(record, path.stem)
    except KeyError as error:
        raise ValueError(f"{path} has no {error}.") from error
    except (ValueError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} states no valid problem: {error}") from error


def _record(instance: Instance) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is text, and what is a table."""
    problem, known = instance.problem, instance.known
    fields: dict[str, Any] = {
        "name": instance.name,
        "layers": list(problem.layers),
        "candidates": [choice.label for choice in problem.choices],
        **{name: dict(getattr(problem, name)) for name in _TEXTS[2:]},
    }
    if known is not None:
        fields["known"] = {
            "loss": known.loss,
            "bound": known.bound if math.isfinite(known.bound) else None,
            "columns": None if known.columns is None else known.columns.tolist(),
            "source": known.source,
        }
    arrays: dict[str, Any] = {
        "losses": problem.losses,
        "allowed": problem.allowed,
        "groups": problem.groups,
        "costs": problem.costs,
    }
    if problem.interactions is not None:
        cross = np.nan_to_num(problem.interactions, posinf=0.0, neginf=0.0)
        pairs = np.argwhere(cross)
        pairs = pairs[pairs[:, 0] < pairs[:, 2]]  # the table is symmetric
        arrays |= {"pairs": pairs, "pair_values": cross[tuple(pairs.T)]}
    return fields, arrays


def _as_lists(arrays: dict[str, Any]) -> dict[str, Any]:
    """Tables as JSON knows them: null where a number is not finite."""
    out: dict[str, Any] = {}
    for name, table in arrays.items():
        if isinstance(table, dict):
            out[name] = _as_lists(table)
        elif table.dtype.kind == "f":
            plain = table.astype(object)
            plain[~np.isfinite(table)] = None
            out[name] = plain.tolist()
        else:
            out[name] = table.tolist()
    return out


def _read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The fields of a file, and what of them came as arrays."""
    if _suffix(path) == ".json":
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError(f"a JSON {type(record).__name__}, not an object")
        return record, {}
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        arrays = dict(stored)
    record = json.loads(str(arrays.pop("header")))
    if not isinstance(record, dict):
        raise ValueError(f"its header is a JSON {type(record).__name__}, not an object")
    return record, arrays


def _suffix(path: pathlib.Path) -> str:
    if (suffix := pathlib.Path(path).suffix) not in (".json", ".npz"):
        raise ValueError(f"{path} has no format: expected a name that ends in .json or .npz")
    return suffix


def _instance(record: dict[str, Any], stem: str) -> Instance:
    losses = _numbers(record["losses"], "losses")
    if losses.ndim != 2:
        raise ValueError(f"losses have shape {losses.shape}: expected [layers, candidates].")
    rows, columns = losses.shape
    labels = record.get("candidates", [str(k) for k in range(columns)])
    names = record.get("layers", [f"layer{i}" for i in range(rows)])
    for what, texts in (("layers", names), ("candidates", labels)):
        if isinstance(texts, str):
            raise ValueError(f"{what} is the text {texts!r}: expected a list of texts.")
    allowed = ~np.isnan(losses)
    if (given := record.get("allowed")) is not None:
        allowed = np.array(given)
        if allowed.dtype != bool:
            raise ValueError(f"allowed holds {allowed.dtype}: expected true and false.")
    problem = Problem(
        layers=tuple(names),
        choices=tuple(candidate(label) for label in labels),
        losses=losses,
        costs={k: _numbers(v, f"costs {k!r}") for k, v in record["costs"].items()},
        budgets={k: float(v) for k, v in record.get("budgets", {}).items()},
        constants={k: float(v) for k, v in record.get("constants", {}).items()},
        allowed=allowed,
        groups=_whole(record.get("groups", range(rows)), "groups"),
        asked=record.get("asked", {}),
        float_costs=record.get("float_costs", {}),
        interactions=_interactions(record, losses.shape),
    )
    known: Any = record.get("known")
    if known is not None:
        bound, best = known.get("bound"), known.get("columns")
        known = Known(
            loss=float(known["loss"]),
            source=str(known.get("source", "")),
            bound=-math.inf if bound is None else float(bound),
            columns=None if best is None else _whole(best, "known columns"),
        )
    return Instance(name=record.get("name", stem), problem=problem, known=known)


def _interactions(record: dict[str, Any], shape: tuple[int, int]) -> np.ndarray | None:
    """The table of cross terms, from every pair once."""
    if (pairs := record.get("pairs")) is None:
        return None
    pairs = _whole(pairs, "pairs").reshape(-1, 4)
    values = _numbers(record["pair_values"], "pair_values")
    if len(values) != len(pairs):
        raise ValueError(f"there are {len(pairs)} pairs and {len(values)} pair_values.")
    if (outside := (pairs < 0) | (pairs >= np.tile(shape, 2))).any():
        at = pairs[outside.any(axis=1)][0].tolist()
        raise ValueError(f"pair {at} is outside of {shape[0]} layers x {shape[1]} candidates.")
    if (same := pairs[:, 0] == pairs[:, 2]).any():
        raise ValueError(f"pair {pairs[same][0].tolist()} is of one layer with itself.")
    forward = np.where((pairs[:, 0] < pairs[:, 2])[:, None], pairs, pairs[:, [2, 3, 0, 1]])
    if len(np.unique(forward, axis=0)) < len(pairs):
        raise ValueError("a pair stands more than once: give each in one order, once.")
    cross = np.zeros((*shape, *shape))
    cross[tuple(pairs.T)] = cross[tuple(pairs[:, [2, 3, 0, 1]].T)] = values
    return cross


def _numbers(table: Any, what: str) -> np.ndarray:
    """A table of float64; null is NaN."""
    if np.iscomplexobj(table):
        raise ValueError(f"{what} are complex: expected real numbers.")
    return np.array(table, dtype=np.float64)


def _whole(table: Any, what: str) -> np.ndarray:
    """A table of int64, which nothing is cut off for."""
    array = np.array(table)
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"{what} hold {array.dtype}: expected whole numbers.")
    return array.astype(np.int64)
