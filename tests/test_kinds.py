"""Every public function and class, with every argument of a plainly wrong kind."""

import dataclasses
import functools
import inspect
import pathlib
import typing
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jmpq
from jmpq.data.text.tokens import Tokenizer
from jmpq.latency.runtimes import Runtime
from jmpq.problem.budgets import with_budgets
from jmpq.problem.rules import Allow, Exclude, Pin, Tie
from jmpq.solvers import least_cost, pareto_hull
from jmpq.study.grid import Study
from jmpq.zoo.architectures import Preprocessing
from jmpq.zoo.bert import BertConfig
from tests.problem import tables


class Head(nn.Module):
    """One dense layer."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(x.reshape(x.shape[0], -1))


class HeadNNX(nnx.Module):
    """The same in NNX."""

    def __init__(self):
        self.head = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.head(x)


class Wrong:
    """What nothing takes."""


LOSSES = tables.losses_of(jmpq.choice_grid([2, 4, 8]))


def unmade(kind):
    """An instance of a class without anything in it: kinds are looked at before contents."""
    return object.__new__(kind)


@functools.cache
def things():
    """One thing of every kind that the flow hands on, by the name of the argument."""
    x, labels = np.ones((2, 4), np.float32), np.array([0, 1])
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        variables = Head().init(jax.random.key(0), x)
        network = jmpq.Network.from_linen(Head(), variables, x)
        quantizers = jmpq.calibrate_quantizers(network, [4, 8])
        moves = jmpq.MoveNetwork(network=network, quantizers=quantizers)
    problem = jmpq.build_problem(
        tables.LAYERS, LOSSES, overhead=jmpq.KernelSpec(), budgets=["size_bytes=W4"]
    )
    solution = jmpq.Greedy()(problem)
    evaluator = jmpq.Evaluator(network, quantizers, [(x, labels)])
    square = lambda w: (w**2).sum()  # noqa: E731
    return {
        **vars(solution), **vars(problem), **vars(tables.LAYERS[0]),
        "module": Head(), "model": HeadNNX(), "variables": variables, "example": x,
        "network": network, "quantizers": quantizers, "moves": moves, "problem": problem,
        "batches": [(x, labels)], "metric": jmpq.GaussNewton(), "table": LOSSES,
        "overhead": jmpq.KernelSpec(), "allocation": solution.allocation,
        "allocations": [solution.allocation], "evaluator": evaluator, "evaluate": evaluator,
        "spec": jmpq.KernelSpec(), "bits": [4, 8], "inputs": x, "key": jax.random.key(0),
        "w_bits": [4, 8], "a_bits": [8], "loss": square, "params": x, "tangent": x, "delta": x,
        "logits": square, "targets": labels, "product": lambda p, t: t, "name": "digits",
        "choices": problem.choices,
        "path": pathlib.Path("nowhere"), "folder": pathlib.Path("nowhere"), "task": "sst2",
        "run": pathlib.Path("nowhere"), "tokenizer": unmade(Tokenizer), "unit": "matrix",
        "preprocessing": unmade(Preprocessing), "config": unmade(BertConfig), "apply": square,
        "dataset": jmpq.load_dataset("digits"), "split": jmpq.load_dataset("digits").train,
        "sensitivities": {}, "program": unmade(Runtime), "study": unmade(Study),
        "weights": quantizers.weights, "activations": None,
        "superposed": unmade(jmpq.Superposed), "loss_ceiling": 1.0,
        "objective": lambda columns: columns, "seconds": {}, "pattern": "head",
        "patterns": ("head",), "choice": jmpq.Choice(4), "candidates": "W4", "metric_name": "m",
        "unit_name": "nats", "first": x, "second": x, "batch_first": x, "batch_second": x,
        "batch_examples": x, "changes": x,
    }  # fmt: skip


# Arguments that take another thing than the others of their name.
OTHERS = {
    "calibrate_activations": {"spec": jmpq.InputSpec(), "batches": [np.ones((2, 4))]},
    "quantized_logits": {"w_bits": jnp.array([4]), "a_bits": jnp.array([8])},
    "quantize_products": {"bits": 8},
    "Sensitivity": {"metric": "m", "unit": "nats", "moves": ()},
    "Superposed": {"moves": (), "logits": np.ones((2, 3))},
    "Choice": {"weights": 4, "activations": 8},
    "calibrate_quantizers": {"weights": jmpq.KernelSpec(), "activations": jmpq.InputSpec()},
    "SimilarityEvaluator": {"batches": lambda: []},
    "ggn_product": {"loss": lambda z, y: z.sum()},
    "Plan": {"budgets": {}, "rules": (), "jmpq": "1", "versions": {}, "created": "",
             "weights_sha256": "", "sensitivity_sha256": "", "quantizers": {},
             "unquantized": {}, "allocations": (), "seed": 0},
    "least_cost": {"name": "size_bytes", "ceiling": 1.0},
    "pareto_hull": {"name": "size_bytes"},
    "Greedy": {"weights": "room"},
    "Solution": {"costs": {"size_bytes": 1.0}, "loss": 1.0, "objective": "loss"},
    "build_problem": {"layers": tables.LAYERS},
    "Dataset": {"classes": ("0", "1"), "read": lambda source: None},
    "Dataset.from_arrays": {"labels": np.array([0, 1]), "name": "arrays"},
}  # fmt: skip
BESIDES = {
    "Network.from_linen": jmpq.Network.from_linen,
    "Network.from_nnx": jmpq.Network.from_nnx,
    "Network.from_function": jmpq.Network.from_function,
    "Dataset.from_arrays": jmpq.Dataset.from_arrays,
    "Evaluator.__call__": lambda: things()["evaluator"].__call__,
    "Greedy.__call__": lambda: jmpq.Greedy().__call__,
    "Exact.__call__": lambda: jmpq.Exact().__call__,
    "with_budgets": with_budgets,
    "least_cost": least_cost,
    "pareto_hull": pareto_hull,
    "Pin": Pin,
    "Allow": Allow,
    "Exclude": Exclude,
    "Tie": Tie,
}
# Made by Network.from_..., and a pytree, whose arrays JAX replaces by what it likes.
ENTRIES = [name for name in jmpq.__all__ if name != "Network"] + list(BESIDES)
TEXTS = (str, pathlib.Path)
# Arguments that take a text, a dictionary or a class beside what they are given here.
TAKES = {
    "text": ("data_dir", "activations", "weights", "name", "head", "checkpoints", "output",
             "inputs", "fixed", "plan", "vocab_size", "choice", "candidates", "latency_sha256"),
    "dict": ("provenance", "of", "extra", "state", "corrections", "options", "budgets", "costs",
             "slurm", "seconds"),
    "class": ("progress", "announce", "loss", "batches"),
}  # fmt: skip


def entry(name):
    made = BESIDES.get(name) or getattr(jmpq, name)
    return made() if name.endswith("__call__") else made


def arguments(name):
    """Arguments of an entry that are right, and annotations of all."""
    known = things() | OTHERS.get(name, {})
    parameters = inspect.signature(entry(name)).parameters.values()
    named = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    if name == "Bert":
        named = [p for p in named if p.name not in ("parent", "name")]
    asked = {p.name: known[p.name] for p in named if p.default is p.empty}
    return asked, {p.name: p for p in named}


def wrong(name, parameter, right):
    """Values that are plainly of another kind than the right one, by what they are."""
    values = {
        "none": None,
        "text": "plainly wrong",
        "class": type(right) if dataclasses.is_dataclass(right) else Wrong,
        "dict": {"plainly": Wrong()},
        "object": things()["problem"],
        "network": things()["network"],
    }
    takes = {kind for kind, names in TAKES.items() if parameter.name in names}
    optional = type(None) in typing.get_args(parameter.annotation)
    if right is None or parameter.default is None or optional:
        takes.add("none")
    if isinstance(right, TEXTS):
        takes.add("text")
    if callable(right) and not dataclasses.is_dataclass(right):
        takes.add("class")
    if isinstance(right, dict):
        takes.add("dict")
    takes |= {kind for kind, value in values.items() if type(value) is type(right)}
    if parameter.name in ("layers", "network", "reference"):
        takes.add("network")
    if parameter.name == "table":
        takes.add("object")  # a problem has losses by layer and choice too
    return {kind: value for kind, value in values.items() if kind not in takes}


@pytest.mark.parametrize("name", ENTRIES)
def test_arguments_of_a_wrong_kind_are_named_in_one_line(name):
    call, (asked, parameters) = entry(name), arguments(name)
    missed = []
    for parameter in parameters.values():
        if parameter.annotation in (parameter.empty, object, Any):
            continue
        right = asked.get(parameter.name, parameter.default)
        for kind, value in wrong(name, parameter, right).items():
            said = ""
            try:
                call(**{**asked, parameter.name: value})
            except (TypeError, ValueError) as error:
                said = str(error)
            except Exception as error:
                said = f"\n{error!r}"
            if "\n" in said or f"`{parameter.name}`" not in said:
                missed.append(f"{parameter.name}, {kind}: {said[:150] or 'taken'}")
    assert not missed, "\n" + "\n".join(missed)


def built(**options):
    asked = {"overhead": jmpq.KernelSpec(), "budgets": ["size_bytes=W4"], **options}
    return jmpq.build_problem(tables.LAYERS, LOSSES, **asked)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda t: jmpq.analyse(t["moves"], jmpq.GaussNewton, t["batches"], t["choices"]),
            "`metric` of analyse is the class GaussNewton: expected a Metric. Write "
            "GaussNewton() with brackets, which makes one.",
        ),
        (
            lambda t: jmpq.analyse(t["moves"], jmpq.GaussNewton(), t["batches"], [4, 8]),
            "`choices` of analyse is a list with the int 8 in it: expected a list of Choices. "
            "jmpq.choice_grid([4, 8]) makes choices of bit-widths.",
        ),
        (
            lambda t: jmpq.analyse(
                t["network"], jmpq.GaussNewton(), t["batches"], t["choices"]
            ),
            "`moves` of analyse is a Network: expected a MoveNetwork. Write "
            "jmpq.MoveNetwork(network=network, quantizers=quantizers).",
        ),
        (
            lambda t: jmpq.calibrate_quantizers(t["moves"], [4]),
            "`network` of calibrate_quantizers is a MoveNetwork: expected a Network. Take its "
            ".network.",
        ),
        (
            lambda t: jmpq.solve(t["table"]),
            "`problem` of solve is a Losses: expected a Problem. jmpq.build_problem makes one.",
        ),
        (
            lambda t: built(overhead=jmpq.InputSpec()),
            "`overhead` of build_problem is an InputSpec: expected an Overhead or a "
            "KernelSpec. Write jmpq.KernelSpec().",
        ),
        (
            lambda t: built(budgets="size_bytes=W4"),
            "`budgets` of build_problem is 'size_bytes=W4': expected a list of strings or a "
            "dict of numbers. Put it into a list, [...].",
        ),
        (
            lambda t: jmpq.Network.from_nnx(Head(), t["example"]),
            "`model` of Network.from_nnx is a Head: expected an NNX module. Linen modules go "
            "into jmpq.Network.from_linen.",
        ),
        (
            lambda t: jmpq.Network.from_linen(HeadNNX(), {}, t["example"]),
            "`module` of Network.from_linen is a HeadNNX: expected a linen module. NNX modules "
            "go into jmpq.Network.from_nnx.",
        ),
        (
            lambda t: t["evaluator"](t["allocation"]),
            "`allocations` of Evaluator is an Allocation: expected a list of Allocations or "
            "dicts of Choices or strings. Put it into a list, [...].",
        ),
        (
            lambda t: t["evaluator"]([jmpq.Greedy()(t["problem"])]),
            "`allocations` of Evaluator is a list with a Solution in it: expected a list of "
            "Allocations or dicts of Choices or strings. Take its .allocation.",
        ),
        (
            lambda t: t["evaluator"]([{"head": "four"}]),
            "Layer 'head': 'four' is not a choice of bits: expected weights and activations",
        ),
        (
            lambda t: jmpq.KernelSpec(grid="afine"),
            "`grid` of KernelSpec is 'afine': expected 'symmetric', 'half' or 'affine'. Did "
            "you mean 'affine'?",
        ),
        (
            lambda t: jmpq.Choice(None),
            "`weights` of Choice is None: expected a Scheme, a string or a whole number.",
        ),
        (
            lambda t: jmpq.Network.from_linen(Head(), t["variables"], t["example"][0]),
            "The network cannot be called on the example, of shape (4,) (ScopeParamShapeError: "
            'For parameter "kernel" in "/head", the given initializer',
        ),
    ],
)  # fmt: skip
def test_a_wrong_kind_is_answered_by_what_to_do(call, says):
    with pytest.raises((TypeError, ValueError)) as error:
        call(things())
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


def test_an_example_without_its_batch_axis_is_refused_wherever_one_is_taken():
    t = things()
    for call in (jmpq.Network.from_linen, jmpq.fold_batch_norm):
        with pytest.raises(
            ValueError, match=r"of shape \(4,\) \(Scope.*Pass a batch of inputs"
        ):
            call(t["module"], t["variables"], t["example"][0])
    with pytest.raises(ValueError, match="without a batch axis, pass example"):
        jmpq.Network.from_nnx(t["model"], t["example"][0])
    with pytest.raises(ValueError, match="network does not take the inputs, of shape"):
        jmpq.measure_latency(
            t["network"], t["quantizers"], t["choices"], t["example"][0], unmade(Runtime)
        )


def test_rules_and_choices_may_be_texts():
    pinned = built(rules=["pin head=W8", "allow stem.*=W2,W4", "exclude block1/conv1"])
    objects = [
        Pin("head", jmpq.Choice(8)),
        Allow("stem.*", [jmpq.Choice(2), "W4"]),
        Exclude("block1/conv1"),
    ]
    same = built(rules=objects)
    np.testing.assert_array_equal(pinned.allowed, same.allowed)
    assert pinned.layers == same.layers
    assert Pin("head", "W8") == objects[0]
    assert Allow("stem", "W2,W4") == Allow("stem", ("W2", "W4"))
    with pytest.raises(ValueError, match="by the rule 'pin head=W8'"):
        pinned.evaluate(jmpq.Allocation.uniform(pinned.layers, jmpq.Choice(4)))


def test_an_evaluator_takes_choices_or_labels_by_layer():
    known = things()
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        found = known["evaluator"](
            [jmpq.Allocation({"head": "W4"}), {"head": jmpq.Choice(4)}, {"head": "W4"}, {}]
        )
    assert found[0] == found[1] == found[2]
    assert found[3].increase == 0 < found[0].kl
