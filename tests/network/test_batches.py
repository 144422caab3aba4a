"""Batches have any size, and every example's output is its own, or the network is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.network.network import Network

PARAMS = {"w": np.random.default_rng(0).normal(size=(4, 3))}
X = jnp.asarray(np.random.default_rng(1).normal(size=(6, 4)))


def centred(x):
    return x - x.mean(0, keepdims=True)


def stepped(x, change):
    """A loop over features, whose state has a row per example."""
    step = lambda c, row: (jnp.tanh(c + change(row)), None)  # noqa: E731
    return x + jax.lax.scan(step, jnp.zeros_like(x[:, 0]), x.T)[0][:, None]


def branched(x, chosen):
    return jax.lax.cond(chosen, lambda x: x, lambda x: -x, x)


OWN = {  # what is done to the inputs before the layer
    "nothing": lambda x: x,
    "softmax": lambda x: jax.nn.softmax(x),
    "sort": lambda x: jnp.sort(x) + jnp.cumsum(x, axis=1),
    "gather": lambda x: jnp.take_along_axis(x, jnp.argsort(x), axis=1),
    "positions": lambda x: x[:, :, None].repeat(3, 2).reshape(-1, 4).reshape(-1, 4, 3).sum(2),
    "map": lambda x: jax.lax.map(lambda row: row / jnp.abs(row).sum(), x),
    "vmap": lambda x: jax.vmap(lambda row: centred(row[None])[0] + row)(x),
    "scan": lambda x: stepped(x, jnp.sin),
    "while": lambda x: jax.lax.fori_loop(0, jnp.arange(3).sum(), lambda _, x: 2 * x, x),
    "a branch": lambda x: branched(x, jnp.arange(3).sum() > 2),
    "unused": lambda x: (centred(x), x)[1],
}
MIXED = {
    "mean": (centred, "reduce_sum"),
    "in jit": (jax.jit(centred), "reduce_sum"),
    "softmax": (lambda x: jax.nn.softmax(x, axis=0), "reduce_max"),
    "roll": (lambda x: jnp.roll(x, 1, axis=0), "slice"),
    "first": (lambda x: x + x[:1], "slice"),
    "cumsum": (lambda x: jnp.cumsum(x, axis=0), "cumsum"),
    "sort": (lambda x: jnp.sort(x, axis=0), "sort"),
    "reversed": (lambda x: x[::-1], "rev"),
    "attention": (lambda x: (x @ x.T) @ x, "dot_general"),
    "scan": (lambda x: stepped(x, lambda row: row - row.mean()), "reduce_sum"),
    "over the batch": (
        lambda x: jax.lax.scan(lambda c, row: (c + row,) * 2, jnp.zeros(4), x)[1],
        "scan",
    ),
    "while": (
        lambda x: jax.lax.while_loop(lambda x: x.sum() < 99.0, lambda x: 2.0 * x + 1.0, x),
        "reduce_sum",
    ),
    "a branch": (lambda x: branched(x, x.max() > 20), "reduce_max"),
}


def network(function, x=X):
    return Network.from_function(lambda p, x: function(x) @ p["w"], PARAMS, x)


def depends(function):
    """Whether an output's row moves with another example, by trying."""
    moved = X.at[2].add(50.0).at[0].add(-3.0)
    with jax.numpy_rank_promotion("allow"):
        keep = np.array([1, 3, 4, 5])
        return not np.allclose(function(X)[keep], function(moved)[keep], rtol=1e-12)


@pytest.mark.parametrize("name", OWN)
def test_what_works_example_by_example_is_taken(name):
    assert not depends(OWN[name])
    assert [layer.name for layer in network(OWN[name]).layers] == ["w"]


@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_examples_is_refused_by_the_operation(name):
    function, operation = MIXED[name]
    assert depends(function)
    match = rf"depends on the other examples of its batch, by `{operation}`.*jax\.vmap"
    with pytest.raises(ValueError, match=match) as error:
        network(function)
    assert "\n" not in str(error.value)
    if name != "over the batch":  # the way out
        network(lambda x: jax.vmap(lambda row: function(row[None])[0])(x))


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (
            lambda x: x.reshape(6, 4),
            r"fixed to batches of 6: with 2 .*x\.reshape\(x\.shape\[0\]",
        ),
        (lambda x: jnp.concatenate([x, X[:, :0]], axis=1), "fixed to batches of 6"),
        (lambda x: jnp.sin(x) if len(x) % 2 else x, "something else for two examples than"),
        (
            lambda x: x.sum(0, keepdims=True),
            r"no batch axis first: .*\(1, 3\) for two examples",
        ),
        (lambda x: x[None], r"no batch axis first: it is of shape \(1, 2, 3\)"),
    ],
)
def test_what_does_not_take_any_batch_is_refused(function, match):
    with pytest.raises(ValueError, match=match) as error:
        network(function)
    assert "\n" not in str(error.value)


def test_errors_of_the_function_itself_come_as_they_are():
    with pytest.raises(KeyError, match="lost"):
        Network.from_function(lambda p, x: x @ p["lost"], PARAMS, X)


def test_the_module_that_mixes_is_named():
    nn = pytest.importorskip("flax.linen")

    class Normalised(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = nn.BatchNorm(use_running_average=False, name="bn0", param_dtype=x.dtype)
            return nn.Dense(3, name="head", param_dtype=x.dtype)(norm(x))

    module = Normalised()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        variables = module.init(jax.random.key(0), X)

        def apply(params, x):
            return module.apply({**variables, "params": params}, x, mutable=["batch_stats"])[0]

        with pytest.raises(ValueError, match=r"by `reduce_sum` in Normalised/bn0\. Freeze"):
            Network.from_function(apply, variables["params"], X)
