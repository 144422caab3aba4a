"""What the README shows in Python runs as it stands, on a network that is not jmpq's."""

import functools
import pathlib
import re
import shlex

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import jmpq
from jmpq.cli import commands, main

README = pathlib.Path(__file__).parents[1] / "README.md"


class CNN(nn.Module):
    """Two convolutions with pooling, two dense layers: the network of Flax's MNIST example,
    with fewer features.
    """

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(features=8, kernel_size=(3, 3))(x)
        x = nn.relu(x)
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nn.Conv(features=16, kernel_size=(3, 3))(x)
        x = nn.relu(x)
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        x = nn.Dense(features=32)(x)
        x = nn.relu(x)
        return nn.Dense(features=10)(x)


def trained(module, images, labels, steps=60):
    """Parameters after some steps of Adam on all images."""
    params = module.init(jax.random.key(0), images[:1])["params"]
    optimizer = optax.adam(0.01)

    def loss(params):
        logits = module.apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    start = (params, optimizer.init(params))
    return jax.jit(lambda carry: jax.lax.scan(step, carry, None, steps)[0][0])(start)


@pytest.fixture
def flax_defaults():
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


@pytest.mark.usefixtures("flax_defaults")
def test_a_network_nobody_here_wrote_goes_through_in_the_ten_lines_of_the_readme(tmp_path):
    data = jmpq.load_dataset("digits")
    images, labels = (jnp.asarray(x[:512]) for x in (data.train.inputs, data.train.labels))
    images = images / 16.0
    module = CNN()
    params = trained(module, images, labels)
    flat = flatten_dict({"params": params}, sep="/")
    np.savez(tmp_path / "weights.npz", **flat)
    with np.load(tmp_path / "weights.npz") as stored:
        variables = unflatten_dict(dict(stored), sep="/")
    test_images = data.heldout.inputs[:256] / np.float32(16.0)
    test_labels = data.heldout.labels[:256]

    (code,) = re.findall(
        r"<!-- ten_lines -->\n```python\n(.*?)```", README.read_text(), flags=re.DOTALL
    )
    assert len([line for line in code.splitlines() if line]) <= 10
    names = {"images": images[:128], "labels": labels[:128]}
    names |= {"test_images": test_images, "test_labels": test_labels}
    names |= {"module": module, "variables": variables}
    exec(code, names)

    # What came out, by hand: size, and the module's own logits with rounded kernels.
    solution, outcome = names["solution"], names["outcome"]
    bits = {layer: c.w_bits for layer, c in solution.allocation.items()}
    assert list(bits) == ["Conv_0", "Conv_1", "Dense_0", "Dense_1"]
    sizes = {name: params[name]["kernel"].size for name in bits}
    channels = {name: params[name]["bias"].size for name in bits}
    size = sum(
        -(-sizes[n] * b // 8) + 4 * channels[n] + 4 * channels[n] for n, b in bits.items()
    )
    limit = sum(-(-sizes[n] * 4 // 8) + 8 * channels[n] for n in bits)
    assert solution.costs["size_bytes"] == size <= limit
    assert solution.status == "optimal"
    assert len(set(bits.values())) > 1
    rounded = {}
    for i, (name, b) in enumerate(bits.items()):
        scales = names["quantizers"].weights
        scale = np.asarray(scales.scale[i][scales.bits.index(b)])  # per output channel, last
        kernel = np.asarray(params[name]["kernel"])
        most = 2 ** (b - 1) - 1
        rounded[name] = {
            **params[name],
            "kernel": scale * np.clip(np.round(kernel / scale), -most, most),
        }
    z, q = (
        np.asarray(jax.nn.log_softmax(module.apply({"params": p}, test_images)))
        for p in (params, rounded)
    )
    kl = (np.exp(z) * (z - q)).sum(axis=1).mean()
    assert 1e-4 < kl < 1
    np.testing.assert_allclose(outcome.kl, kl, rtol=1e-3)
    assert outcome.top1 == (q.argmax(1) == test_labels).mean()
    assert outcome.top1 > 0.8


def readme_commands():
    """The commands of the README, continued lines joined, comments taken off."""
    text = README.read_text().replace("\\\n", " ")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for language, block in blocks if not language for line in block.splitlines()]
    return [line for line in lines if line.startswith("jmpq ")]


@pytest.mark.parametrize("line", readme_commands())
def test_every_command_of_the_readme_is_understood(line, monkeypatch):
    called = []

    def stands_for(step):
        return functools.wraps(step)(lambda *args, **kwargs: called.append(step.__name__))

    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    for name in main.STEPS:
        monkeypatch.setattr(commands, name, stands_for(getattr(commands, name)))
    _, *args = shlex.split(line, comments=True)
    main.main(args)
    assert called == [args[0]]
