"""One output is analysed, chosen by name or position, with nothing that does not reach it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.network.network import Network
from tests.cli.command import works

PARAMS = {"w": jnp.ones((4, 3)), "v": jnp.ones((4, 2)), "u": jnp.ones((3, 3))}
X = jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)


def returning(function):
    """A network whose outputs `function` makes of one of three and one of two classes."""
    return lambda p, x: function(jnp.tanh(x @ p["w"]), x @ p["v"])


@pytest.mark.parametrize(
    ("function", "output", "chosen"),
    [
        (lambda a, b: (a, b), 1, "b"),
        (lambda a, b: (a, b), "0", "a"),
        (lambda a, b: {"logits": b, "aux": a}, "logits", "b"),
        (lambda a, b: {"heads": {"logits": a}, "aux": b}, "heads/logits", "a"),
        (lambda a, b: {"heads": {"logits": a}, "aux": b}, "heads", "a"),
        (lambda a, b: [b, {"x": (a, None)}], "1/x/0", "a"),
        (lambda a, b: (a,), None, "a"),
        (lambda a, b: {"logits": b}, None, "b"),
        (lambda a, b: {"logits": b}, "logits", "b"),
    ],
)
def test_one_array_is_analysed_and_the_rest_is_left_out(function, output, chosen):
    network = Network.from_function(returning(function), PARAMS, X, output=output)
    used = {"a": "w", "b": "v"}[chosen]
    assert [layer.name for layer in network.layers] == [used]
    assert network.unused == tuple(sorted({*PARAMS} - {used}))
    assert network.other_parameters == sum(w.size for w in PARAMS.values()) - PARAMS[used].size
    want = {"a": jnp.tanh(X @ PARAMS["w"]), "b": X @ PARAMS["v"]}[chosen]
    np.testing.assert_array_equal(network.logits(X), want)
    np.testing.assert_array_equal(network.apply(network.params, X), want)


@pytest.mark.parametrize(
    ("function", "output", "match"),
    [
        (
            lambda a, b: (a, b),
            None,
            r"2 arrays: 0 \(3, 3\), 1 \(3, 2\).*output='0'.*--output 0",
        ),
        (lambda a, b: {"logits": a, "z": b}, None, r"from_linen\(..., output='logits'\)"),
        (lambda a, b: (a, b), 2, r"output='2' is not there: the network returns 0 \(3, 3\)"),
        (lambda a, b: {"h": (a, b)}, "h", "output='h' is 2 arrays.*Choose one of these names"),
        (lambda a, b: a, "logits", r"returns one array \(3, 3\). Leave `output` out"),
        (lambda a, b: None, None, "returns no array"),
    ],
)
def test_what_does_not_choose_one_array_is_refused_in_one_line(function, output, match):
    with pytest.raises(ValueError, match=match) as error:
        Network.from_function(returning(function), PARAMS, X, output=output)
    assert "\n" not in str(error.value)


def patches(p, x):
    """A head applied to every patch too, in bodies; a branch and a scan's rows are not read."""
    inner = jax.checkpoint(lambda w, x: (jnp.tanh(x @ w), x @ w))
    x, _ = inner(p["body"], x)
    all_of_it = jax.jit(lambda x: (x @ p["head"], x @ p["aux"], jax.nn.relu(x.mean(1))))
    every, _, mean = all_of_it(x)

    def step(carry, patch):
        return carry + patch, carry @ p["head"].T

    total, _ = jax.lax.scan(step, mean @ p["head"], every.transpose(1, 0, 2))
    return total


def test_dead_computations_are_left_out_in_bodies_too():
    rng = np.random.default_rng(0)
    shapes = {"body": (4, 5), "head": (5, 3), "aux": (5, 5), "lost": (2,)}
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    x = jnp.asarray(rng.normal(size=(2, 7, 4)))
    tied = ["head"]  # for every patch and for their mean, not in the scan
    with pytest.raises(ValueError, match="'head' is used 2 times"):
        Network.from_function(patches, params, x)
    network = Network.from_function(patches, params, x, tied=tied)
    assert {layer.name: layer.macs for layer in network.layers} == {
        "body": 7 * 20,
        "head": 7 * 15 + 15,
    }
    assert network.unused == ("aux", "lost")
    np.testing.assert_array_equal(network.logits(x), patches(params, x))


def test_the_command_line_takes_the_output_and_names_what_is_unused(tmp_path):
    model = ("--model", "tests.cli.networks:two_heads", "--data", "digits")
    said = works("layers", tmp_path / "run", *model, "--output", "logits").out
    assert "Unused, they do not reach the output: aux/bias, aux/kernel." in said
    table = json.loads((tmp_path / "run" / "layers.json").read_text())
    assert [(row["name"], row["macs"]) for row in table["layers"]] == [
        ("stem", 2 * 2 * 9 * 4),
        ("head", 40),
    ]
    assert table["network"]["output"] == "logits"
    assert table["unused"] == ["aux/bias", "aux/kernel"]


def test_only_the_choice_of_an_output_is_asked_for():
    def apply(params, x):
        return {"features": x, "fc": x @ params["w"]}

    arguments = apply, {"w": jnp.ones((4, 3))}, jnp.ones((1, 4))
    with pytest.raises(
        ValueError, match=r"^The network returns 2 arrays: .*Pass the one to analyse"
    ):
        Network.from_function(*arguments)
    with pytest.raises(ValueError, match=r"^output='head' is not there: "):
        Network.from_function(*arguments, output="head")
