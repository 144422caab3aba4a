"""Layers in a loop over stacked parameters are layers of their own; the stacks stay."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jmpq
from jmpq.data.batches import Batch
from jmpq.data.dataset import Normalization, whole_split
from jmpq.deploy.finetune import FinetuneConfig, finetune
from jmpq.network.equalize import equalization_pairs, equalize_ranges, without_caps
from jmpq.network.fold import fold_batch_norm
from jmpq.network.network import Network
from jmpq.problem import Overhead
from jmpq.quantizers.products import quantize_products
from jmpq.sensitivity.metrics.taylor import GaussNewton
from jmpq.training.loop import TrainConfig
from tests.cli.command import works

DEPTH, WIDTH, HIDDEN = 3, 4, 6
KERNELS = ("up", "down")


def drawn(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape) / 2) for name, shape in shapes.items()}


def stacked_params(axis=0):
    shapes = {"up": [WIDTH, HIDDEN], "bias": [HIDDEN], "down": [HIDDEN, WIDTH]}
    for shape in shapes.values():
        shape.insert(axis, DEPTH)
    return drawn({**shapes, "head": (WIDTH, 3)})


def layer(x, p):
    """Rows of examples through two kernels, capped between them."""
    return x + jnp.minimum(jax.nn.relu(x @ p["up"] + p["bias"][None]), 6.0) @ p["down"]


def stack_of(p):
    return {name: value for name, value in p.items() if name != "head"}


def scanned(p, x):
    return jax.lax.scan(lambda x, w: (layer(x, w), x.sum()), x, stack_of(p))[0] @ p["head"]


def written_out(p, x):
    """The same network with parameters for every layer."""
    for i in range(DEPTH):
        x = layer(x, p[str(i)])
    return x @ p["head"]


def taken_apart(p):
    """The parameters of `written_out`."""
    each = [jax.tree.map(lambda w, i=i: w[i], stack_of(p)) for i in range(DEPTH)]
    return {**{str(i): w for i, w in enumerate(each)}, "head": p["head"]}


def put_together(p):
    each = [p[str(i)] for i in range(DEPTH)]
    return {**jax.tree.map(lambda *w: jnp.stack(w), *each), "head": p["head"]}


def other_name(name):
    """Name in `written_out` of a layer of `scanned`."""
    return f"{name[:-1].split('[')[1]}/{name.split('[')[0]}" if "[" in name else name


def backwards(p, x):
    return jax.lax.scan(lambda x, w: (layer(x, w), None), x, stack_of(p), reverse=True)[0]


def in_half(p, x):
    return scanned(jax.tree.map(lambda w: w.astype(jnp.float32), p), x.astype(jnp.float32))


def rematerialised(p, x):
    inner = jax.checkpoint(lambda x, w: (jax.jit(layer)(x, w), None))
    return jax.jit(lambda p, x: jax.lax.scan(inner, x, stack_of(p))[0] @ p["head"])(p, x)


def indexed(p, x):
    for i in range(DEPTH):
        x = layer(x, jax.tree.map(lambda w, i=i: w[i], stack_of(p)))
    return x @ p["head"]


def collected(p, x):
    """The output is made of what every step returns."""
    rows = jax.lax.scan(lambda x, w: (layer(x, w),) * 2, x, stack_of(p))[1]
    return rows.transpose(1, 0, 2).reshape(x.shape[0], -1)


@pytest.mark.parametrize(
    "function", [scanned, backwards, in_half, rematerialised, indexed, collected]
)
def test_every_slice_of_a_stack_is_a_layer(function):
    params, x = stacked_params(), drawn({"x": (5, WIDTH)}, 1)["x"]
    network = Network.from_function(function, params, x)
    order = range(DEPTH)[::-1] if function is backwards else range(DEPTH)
    names = [f"{name}[{i}]" for i in order for name in KERNELS]
    found = {layer.name: layer for layer in network.layers}
    assert [name for name in found if name != "head"] == names
    assert {(x.macs, x.parameters) for x in found.values()} - {(12, 12)} == {(24, 24)}
    np.testing.assert_allclose(network.logits(x), function(params, x), rtol=1e-12)
    # Other kernels: those of the table, where they lie in the stacks.
    changed = network.with_kernels([(2.0 + i) * w for i, w in enumerate(network.kernels())])
    assert jax.tree.structure(changed) == jax.tree.structure(params)
    for i, layer_ in enumerate(network.layers):
        name, _, index = layer_.kernel.rstrip("]").partition("[")
        at = int(index) if index else slice(None)
        np.testing.assert_array_equal(changed[name][at], (2.0 + i) * params[name][at])
    got = network.run(x, lambda site, x, op: op(x, (2.0 + site.layer_index) * site.kernel))
    np.testing.assert_allclose(got, function(changed, x), rtol=1e-5)


def test_the_network_of_a_stack_is_refused_where_the_loop_reads_a_kernel_twice():
    with pytest.raises(ValueError, match=r"'up\[0\]' is used 2 times"):
        Network.from_function(
            lambda p, x: scanned(p, x) + scanned(p, -x), stacked_params(), jnp.ones((1, WIDTH))
        )


def flow(network, examples, labels):
    """Sensitivities, allocations and outcomes of a network, by layer names of `scanned`."""
    names = [x.name for x in network.layers]
    data = [(examples[i : i + 8], labels[i : i + 8]) for i in (0, 8)]
    inputs = [x for x, _ in data]
    choices = jmpq.choice_grid([2, 4], [4])
    weights = jmpq.KernelSpec(rounding="gptq", clipping="minmax")
    quantizers = jmpq.Quantizers(
        weights=jmpq.calibrate_weights(network, weights, [2, 4], inputs),
        activations=jmpq.calibrate_activations(
            network, jmpq.InputSpec(clipping="minmax"), [4], inputs, key=jax.random.key(0)
        ),
    )
    moves = jmpq.MoveNetwork(network=network, quantizers=quantizers)
    table = jmpq.analyse(moves, GaussNewton(), data, choices)
    problem = jmpq.build_problem(
        network.layers,
        table,
        overhead=Overhead.of(network.layers, weights),
        budgets=["size_bytes=50%"],
        unquantized_parameters=network.other_parameters,
    )
    solution = jmpq.Exact()(problem)
    ones = np.ones(8, np.float32)
    evaluator = jmpq.Evaluator(
        network,
        quantizers,
        lambda: (Batch(np.asarray(x), np.asarray(y), ones) for x, y in data),
    )
    (outcome,) = evaluator([solution.allocation])
    chosen = [solution.allocation[name] for name in names]
    numbers = [table.losses, table.second, solution.loss, outcome.loss, outcome.kl]
    return chosen, solution.costs, numbers


def networks():
    params, x = stacked_params(), drawn({"x": (16, WIDTH)}, 1)["x"]
    stacked = Network.from_function(scanned, params, x[:1])
    apart = Network.from_function(written_out, taken_apart(params), x[:1])
    return stacked, apart, x, jnp.arange(16) % 3


def test_a_scanned_and_a_written_out_network_are_one_network():
    stacked, apart, x, labels = networks()
    assert [other_name(row.name) for row in stacked.layers] == [
        row.name for row in apart.layers
    ]
    for one, other in zip(stacked.layers, apart.layers, strict=True):
        assert dataclasses.replace(one, name=other.name, kernel=other.kernel) == other
    assert stacked.other_parameters == apart.other_parameters == DEPTH * HIDDEN
    chosen, costs, numbers = flow(stacked, x, labels)
    other = flow(apart, x, labels)
    assert (chosen, costs) == other[:2]
    for got, want in zip(numbers, other[2], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)


def test_ranges_are_equal_and_caps_are_off_in_stacks_too():
    stacked, apart, x, _ = networks()
    both = [without_caps(network) for network in (stacked, apart)]
    pairs = [equalization_pairs(network) for network in both]
    assert [tuple(map(other_name, pair)) for pair in pairs[0]] == pairs[1]
    assert len(pairs[1]) == DEPTH  # with the biases between
    equal = [equalize_ranges(network) for network in both]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12),
        equal[0].params,
        put_together(equal[1].params),
    )
    np.testing.assert_allclose(equal[0].logits(x), both[0].logits(x), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.usefixtures("flax_promotion")
def test_fine_tuning_moves_the_slices_of_a_stack():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (16, 1, 1, WIDTH), dtype=np.uint8)
    normal = Normalization(scale=255.0, mean=(0.5,) * WIDTH, std=(0.3,) * WIDTH)
    split = whole_split("toy", "train", images, rng.integers(0, 3, 16), normal)
    training = TrainConfig(epochs=1, batch_size=8, learning_rate=1e-2, shift=0, flip=False)
    config = FinetuneConfig(training=training, correct="none")
    params = jax.tree.map(lambda w: w.astype(jnp.float32), stacked_params())
    tuned = []
    for function, own in ((scanned, params), (written_out, taken_apart(params))):
        flat = lambda p, x, function=function: function(p, x[:, 0, 0])  # noqa: E731
        network = Network.from_function(flat, own, jnp.zeros((1, 1, 1, WIDTH), jnp.float32))
        weights = jmpq.calibrate_weights(network, jmpq.KernelSpec(clipping="minmax"), [4])
        names = [x.name for x in network.layers]
        allocation = jmpq.Allocation.uniform(names, jmpq.Choice(4, 32))
        quantizers = jmpq.Quantizers(weights=weights, activations=None)
        done = finetune(network, quantizers, allocation, split, config)
        assert not np.array_equal(done.network.params["head"], network.params["head"])
        tuned.append(done.network.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
        tuned[0],
        put_together(tuned[1]),
    )


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        y = nn.Dense(WIDTH, use_bias=False, name="pre", param_dtype=x.dtype)(x)
        y = nn.BatchNorm(use_running_average=True, name="norm", param_dtype=x.dtype)(y)
        return x + nn.relu(y), None


class Scanned(nn.Module):
    """`Block` in one loop or in two, its parameters stacked along an axis."""

    axis: int = 0
    outer: int = 0

    @nn.compact
    def __call__(self, x):
        options: Any = {"variable_axes": {"params": self.axis, "batch_stats": 0}}
        options["split_rngs"] = {"params": True}
        stack = nn.scan(nn.remat(Block, prevent_cse=False), length=DEPTH, **options)
        if self.outer:
            stack = nn.scan(stack, length=self.outer, **options)
        x, _ = stack(name="layers")(x, None)
        return nn.Dense(2, name="head", param_dtype=x.dtype)(x)


@pytest.fixture
def flax_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def variables_of(module, x, seed=0):
    structs = jax.eval_shape(module.init, jax.random.key(0), x)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(rng.uniform(0.2, 1, s.shape), x.dtype), structs)


@pytest.mark.usefixtures("flax_promotion")
@pytest.mark.parametrize(
    ("module", "names"),
    [
        (Scanned(), [f"[{i}]" for i in range(DEPTH)]),
        (Scanned(axis=1), [f"[:,{i}]" for i in range(DEPTH)]),
        (Scanned(outer=2), [f"[{i},{j}]" for i in range(2) for j in range(DEPTH)]),
    ],
)
def test_layers_of_linen_scans(module, names):
    x = drawn({"x": (5, WIDTH)}, 1)["x"]
    variables = variables_of(module, x)
    network = Network.from_linen(module, variables, x)
    assert [row.name for row in network.layers] == [*(f"layers/pre{n}" for n in names), "head"]
    assert network.layers[0].kernel == f"layers/pre/kernel{names[0]}"
    np.testing.assert_allclose(network.logits(x), module.apply(variables, x), rtol=1e-12)
    ignored = Network.from_linen(module, variables, x, ignore=["layers/pre/kernel"])
    assert [row.name for row in ignored.layers] == ["head"]
    if module.axis == 0:
        folded = fold_batch_norm(module, variables, x)
        assert np.all(folded["params"]["layers"]["norm"]["scale"] == 1)
        np.testing.assert_allclose(
            module.apply(folded, x), module.apply(variables, x), rtol=1e-9
        )
    else:
        with pytest.raises(ValueError, match=r"'layers/pre': .*stacked along different axes"):
            fold_batch_norm(module, variables, x)


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return x + self.dropout(nnx.relu(self.dense(x)))


class NnxScanned(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=DEPTH)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def made(rngs):
            return NnxBlock(rngs)

        self.blocks = made(rngs)
        self.head = nnx.Linear(WIDTH, 2, rngs=rngs)

    def __call__(self, x):
        run = nnx.scan(lambda b, x: b(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        return self.head(run(self.blocks, x))


@pytest.mark.usefixtures("flax_promotion")
def test_layers_of_nnx_scans():
    model, x = NnxScanned(nnx.Rngs(0)), jnp.ones((3, WIDTH))
    with pytest.raises(ValueError, match=r"random numbers reach its output.*model\.eval\(\)"):
        Network.from_nnx(model, x)
    model.eval()
    network = Network.from_nnx(model, x)
    want = [*(f"blocks/dense[{i}]" for i in range(DEPTH)), "head"]
    assert [row.name for row in network.layers] == want
    np.testing.assert_allclose(network.logits(x), model(x), rtol=1e-6)


def attention(p, x):
    """Attention in a loop over stacked projections."""

    def step(x, w):
        q, k, v = (x @ w[name] for name in "qkv")
        mixed = jax.nn.softmax(q @ k.transpose(0, 2, 1)) @ v
        return x + mixed, None

    return jax.lax.scan(step, x, {n: p[n] for n in "qkv"})[0].mean(1) @ p["head"]


def test_products_in_unrolled_loops_are_quantized():
    shapes = dict.fromkeys("qkv", (DEPTH, WIDTH, WIDTH)) | {"head": (WIDTH, 3)}
    params, x = drawn(shapes), drawn({"x": (2, 5, WIDTH)}, 1)["x"]
    network = Network.from_function(attention, params, x)
    rounded = quantize_products(network, 8)
    assert rounded.layers == network.layers
    assert rounded.tap.pieces == network.tap.pieces
    change = np.abs(jax.jit(rounded.logits)(x) - jax.jit(network.logits)(x)).max()
    assert 0 < change < 0.05


def test_the_command_line_names_the_layers_of_a_loop(tmp_path):
    run = tmp_path / "run"
    works("layers", run, "--model", "tests.cli.networks:deep", "--data", "digits")
    few = ("--w-bits", 2, 4, "--a-bits", 8, "--examples", 32, "--batch-size", 16)
    works("sensitivity", run, *few, "--metrics", "gauss_newton", "--weights.clipping", "minmax")
    works("solve", run, "--rule", "pin layers[1]=W4A8", "--first-last-bits", 0)
    works("evaluate", run, "--examples", 50)
    plan = jmpq.read_plan(run / "plan.json")
    solutions = [a.allocation for a in plan.allocations if a.role == "solution"]
    assert {frozenset(a) for a in solutions} == {
        frozenset(("layers[0]", "layers[1]", "layers[2]", "head"))
    }
    assert {a["layers[1]"] for a in solutions} == {jmpq.Choice(4, 8)}


def shared(p, x):
    """One kernel in every step, beside a kernel for each."""
    step = lambda x, w: (jnp.tanh(x @ w @ p["same"]), None)  # noqa: E731
    return jax.lax.scan(step, x, p["each"])[0]


def computed(p, x):
    step = lambda x, w: (jnp.tanh(x @ (w[0] / jnp.abs(w[0]).max()) @ w[1]), None)  # noqa: E731
    return jax.lax.scan(step, x, (p["each"], p["each"]))[0] @ p["same"]


def recurrent(p, x):
    """A cell over positions, inside a loop over stacked cells."""

    def cell(x, w):
        def step(h, row):
            h = jnp.tanh(row + h @ w)
            return h, h

        return jax.lax.scan(step, x[0], x)[1], None

    return jax.lax.scan(cell, x.transpose(1, 0, 2), p["each"])[0][-1] @ p["same"]


@pytest.mark.parametrize(
    ("function", "shape", "match"),
    [
        (shared, (1, WIDTH), r"'same' is used 3 times. Pass tied=\('same',\)"),
        (computed, (1, WIDTH), r"'each\[0\]', .*: it reaches its layer only after `div`"),
        (
            recurrent,
            (1, 4, WIDTH),
            r"'each\[2\]': every step of a `scan`.*ignore=\('each\[0\]'",
        ),
    ],
)
def test_what_is_wrong_in_a_loop_is_said_and_the_advice_works(function, shape, match):
    params = drawn({"each": (DEPTH, WIDTH, WIDTH), "same": (WIDTH, WIDTH)})
    x = jnp.ones(shape)
    with pytest.raises(ValueError, match=match) as error:
        Network.from_function(function, params, x)
    said = str(error.value)
    advice = {
        name: eval(said.partition(f"{name}=")[2].partition(")")[0] + ")")
        for name in ("tied", "ignore")
        if f"{name}=" in said
    }
    network = Network.from_function(function, params, x, **advice)
    np.testing.assert_allclose(network.logits(x), function(params, x), rtol=1e-12)
