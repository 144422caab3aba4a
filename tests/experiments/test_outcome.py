"""The outcome experiment: sizes by the definition, files that are not overwritten."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import outcome
from experiments.claims.claim import load
from experiments.common.arguments import check_output
from jmpq.formats import choice_grid
from jmpq.network.network import Network
from jmpq.sensitivity.table import Move, Sensitivity
from jmpq.zoo.architectures import build_module

RESULTS = ("outcome_resnet20", "outcome_resnet20_nearest")


@pytest.fixture(scope="module")
def resnet20():
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        module, example = build_module("resnet20", 10), jnp.zeros((1, 32, 32, 3))
        variables = jax.jit(module.init)(jax.random.key(0), example)
        return Network.from_linen(module, variables, example)


def size_bytes(network, w_bits):
    """By hand: codes and scales of the kernels, then every other parameter at 4 bytes."""
    kernels = zip(network.layers, w_bits, strict=True)
    whole = sum(x.size for x in jax.tree.leaves(network.params))
    inside = sum(layer.parameters for layer in network.layers)
    return 4 * (whole - inside) + sum(
        -(-layer.parameters * bits // 8) + 4 * layer.kernel_shape[-1] for layer, bits in kernels
    )


@pytest.mark.parametrize("name", RESULTS)
def test_committed_sizes_are_those_of_the_definition(name, resnet20):
    result = load(name)
    assert result["layers"] == [layer.name for layer in resnet20.layers]
    for row in result["rows"]:
        words = row["allocation"].split()[0]
        assert row["size_bytes"] == size_bytes(resnet20, map(int, words))


@pytest.mark.parametrize("bits", [2.0, 2.5, 4.0])
def test_a_budget_counts_all_parameters(bits, resnet20):
    names = tuple(layer.name for layer in resnet20.layers)
    choices = choice_grid((2, 3, 4, 8), (32,))
    moves = tuple(Move(name, "w", c.w_bits) for name in names for c in choices)
    zeros = np.zeros((1, len(names), len(choices)))
    table = Sensitivity(
        metric="gauss_newton",
        unit="nats per example",
        layers=names,
        choices=choices,
        moves=moves,
        first=np.zeros(len(moves)),
        second=np.zeros(len(moves)),
        batch_first=zeros,
        batch_second=zeros,
        batch_examples=np.ones(1),
    )
    problem = outcome.stated(resnet20, table, "w", bits)
    ends = [
        size_bytes(resnet20, [8, *[b] * (len(names) - 2), 8])
        for b in (int(np.floor(bits)), int(np.ceil(bits)))
    ]
    assert problem.budgets["size_bytes"] == np.mean(ends)


def test_the_committed_results_are_those_that_the_commands_make():
    for name, study in zip(RESULTS, ("hessian", "nearest"), strict=True):
        config = json.loads(json.dumps(dataclasses.asdict(outcome.STUDIES[study])))
        committed = load(name)["config"]
        assert committed == {key: config[key] for key in committed}


def test_a_result_of_another_configuration_is_not_overwritten(tmp_path):
    config = dataclasses.asdict(outcome.Config())
    path = tmp_path / "outcome.json"
    check_output(path, config)  # nothing there
    path.write_text(json.dumps({"config": {**config, "networks": ["resnet20"]}}))
    check_output(path, config)
    with pytest.raises(ValueError, match=r"another configuration: seeds is 5, not 3\. Give"):
        check_output(path, {**config, "seeds": 3})
