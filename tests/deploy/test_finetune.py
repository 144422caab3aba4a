import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.data.batches import batches, make_batch
from jmpq.deploy.finetune import (
    FinetuneConfig,
    finetune_step,
    mean_loss,
    start,
    teacher_logits,
)
from jmpq.deploy.finetuned import Finetuned, load_finetuned, save_finetuned
from jmpq.deploy.measure import Evaluator
from jmpq.formats import Choice
from jmpq.network.network import Network
from jmpq.quantizers.calibrate import calibrate_quantizers, calibrate_weights
from jmpq.quantizers.fake_quant import quantize_kernel
from jmpq.quantizers.scales import Quantizers
from jmpq.quantizers.spec import InputSpec, KernelSpec
from jmpq.quantizers.uniform import code_range
from jmpq.training.loop import TrainConfig
from jmpq.training.losses import cross_entropy, kl_divergence
from jmpq.zoo.tensor_files import save_tensors, weights_sha256
from tests.cli.networks import pixels
from tests.deploy.finetuning import BITS, SHORT, Small, allocation_of, inputs, run, small, toy
from tests.helpers import fast_logits

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def promotion():
    """Flax and optax expect JAX's standard promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def made():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        network, quantizers = small()
        return {"network": network, "quantizers": quantizers}


def learned(found):
    return found.network.params, found.quantizers.weights.scale


def with_training(config=SHORT, **fields):
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **fields))


def parts(made, config, bits=BITS):
    """What stays, what is learned, a batch, the teacher's logits."""
    fixed, state = start(*made.values(), *bits, config, inputs(), 0, 4)
    batch = jax.tree.map(jnp.asarray, make_batch(toy(), np.arange(8)))
    z = teacher_logits(made["network"], batch.inputs, config)
    return fixed, state["learned"], batch, z


def untrained(config, network, quantizers, bits=BITS):
    """What fine-tuning starts from."""
    fixed, state = start(network, quantizers, *bits, config, inputs(), 0, 4)
    return Finetuned(
        network=dataclasses.replace(network, params=state["learned"]["params"]),
        quantizers=fixed.quantizers,
        allocation=allocation_of(network, bits),
        corrections=fixed.corrections,
        losses=np.zeros(0),
    )


@pytest.mark.parametrize("method", ["ste", "lsq"])
def test_gradients_are_straight_through_and_those_of_lsq(made, method):
    """From the gradient by the quantized kernels, by the paper's formulas, without autodiff."""
    network, quantizers = made.values()
    config = dataclasses.replace(SHORT, method=method)
    bits = BITS[0], (32, 32)
    fixed, params, batch, z = parts(made, config, bits)
    # Away from where they were calibrated, so that some are cut off.
    params["params"] = jax.tree.map(lambda x: 1.3 * x, params["params"])
    got = jax.jit(jax.grad(mean_loss), static_argnums=5)(params, fixed, *batch[:2], z, config)
    scales = fixed.scale.weights
    kernels = network.kernels(params["params"])
    rounded = [
        quantize_kernel(network, i, k, jnp.array(b), quantizers.weights)
        for i, (k, b) in enumerate(zip(kernels, bits[0], strict=True))
    ]

    def loss(kernels):
        q = network.run(
            batch.inputs,
            lambda site, x, op: op(x, kernels[site.layer_index]),
            params["params"],
        )
        kl = jax.vmap(kl_divergence)(q / 2.0, z / 2.0).mean()
        return 0.5 * 4.0 * kl + 0.5 * jax.vmap(cross_entropy)(q, batch.labels).mean()

    cut = 0
    for layer, by_kernel in enumerate(jax.jit(jax.grad(loss))(rounded)):
        gradient = np.asarray(network.to_matrix(layer, by_kernel))
        v = np.asarray(network.to_matrix(layer, kernels[layer])) / scales[layer][:, None]
        qmin, qmax = (
            float(x) for x in code_range(jnp.array(bits[0][layer]), "symmetric", float)
        )
        inside = (v >= qmin) & (v <= qmax)
        cut += (~inside).sum()
        np.testing.assert_allclose(
            network.to_matrix(layer, network.kernels(got["params"])[layer]),
            np.where(inside, gradient, 0),
            atol=1e-6,
        )
        if method == "lsq":
            by_scale = np.where(inside, np.round(v) - v, np.where(v > 0, qmax, qmin))
            want = (gradient * by_scale).sum(1) / np.sqrt(v.shape[1] * qmax)
            np.testing.assert_allclose(got["scale"].weights[layer], want, rtol=1e-4, atol=1e-7)
    assert cut > 0
    assert ("scale" in got) == (method == "lsq")


def test_fine_tuning_starts_from_the_quantized_network(made):
    want = fast_logits(*made.values(), *(jnp.array(b) for b in BITS), inputs())
    found = untrained(SHORT, **made)
    np.testing.assert_allclose(found.logits(inputs()), want, atol=1e-6)


def test_the_same_arguments_give_the_same_result_in_one_compilation(made):
    finetune_step.clear_cache()
    first, again = run(**made), run(**made)
    other = run(seed=1, **made)
    assert finetune_step._cache_size() == 1
    fewer = run(bits=((2, 2), (4, 4)), **made)
    assert finetune_step._cache_size() == 1
    assert weights_sha256(learned(first)) == weights_sha256(learned(again))
    assert weights_sha256(learned(first)) != weights_sha256(learned(other))
    assert len({f.losses.tobytes() for f in (first, other, fewer)}) == 3
    np.testing.assert_array_equal(first.losses, again.losses)
    assert {x.dtype for x in jax.tree.leaves(learned(first))} == {jnp.dtype("float32")}


class Interrupted(Exception):
    pass


def test_interrupted_fine_tuning_goes_on_to_the_identical_result(made, tmp_path):
    seen = []

    def stop(done, total, loss):
        seen.append(done)
        if done == 4 and len(seen) == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(**made, checkpoints=tmp_path, progress=stop)
    assert seen == [0, 1, 2, 3, 4]
    found = run(**made, checkpoints=tmp_path, progress=stop)
    assert seen[5:] == [3, 4]
    whole = run(**made)
    for resumed in (found, run(**made, checkpoints=tmp_path)):
        assert weights_sha256(learned(resumed)) == weights_sha256(learned(whole))
        np.testing.assert_array_equal(resumed.losses, whole.losses)


def test_checkpoints_of_another_fine_tuning_are_refused(made, tmp_path):
    run(**made, checkpoints=tmp_path)
    changes = {
        "config is": {"config": dataclasses.replace(SHORT, temperature=3.0)},
        "allocation is 'head=W2A4 stem=W4A8' there and 'head=W2A4 stem=W2A8' here": {
            "bits": ((2, 2), (8, 4))
        },
        "seed is 0 there and 1 here": {"seed": 1},
        "data is": {"split": toy(seed=1)},
    }
    for says, change in changes.items():
        with pytest.raises(ValueError, match=f"another training: {says}"):
            run(**made, checkpoints=tmp_path, **change)
    network = dataclasses.replace(
        made["network"], params=jax.tree.map(lambda x: 2 * x, made["network"].params)
    )
    with pytest.raises(ValueError, match="another training: network is"):
        run(network=network, quantizers=made["quantizers"], checkpoints=tmp_path)


def test_distillation_alone_does_not_look_at_labels(made):
    config = dataclasses.replace(SHORT, distillation=1.0)
    other = dataclasses.replace(toy(), labels=toy().labels * 0)
    found = [run(config, **made, split=split).losses for split in (toy(), other)]
    np.testing.assert_array_equal(*found)
    config = dataclasses.replace(SHORT, distillation=0.0)
    found = [run(config, **made, split=split).losses for split in (toy(), other)]
    assert (found[0] != found[1]).all()


def test_distillation_leaves_out_positions_that_do_not_count():
    """Two quarters of an image, by hand: the mean over the positions of each example."""
    network = pixels()
    weights = calibrate_weights(network, KernelSpec(clipping="minmax"), (2,), [])
    scales = Quantizers(weights=weights, activations=None)
    config = dataclasses.replace(SHORT, distillation=1.0, temperature=2.0, method="ste")
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 1), jnp.float32)
    labels = np.array([[[0, -1], [-1, 3]], [[-1, 1], [2, 5]]], np.int32)
    bits = (2, 2, 2), (32, 32, 32)
    fixed, state = start(network, scales, *bits, config, x, 0, 4)
    z = np.asarray(network.logits(x), np.float64) / 2
    q = fast_logits(network, scales, *map(jnp.array, bits), x)
    q = np.asarray(q, np.float64) / 2
    log_p, log_q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (z, q))
    each = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    by_hand = (each[0, [0, 1], [0, 1]].mean() + each[1, [0, 1, 1], [1, 0, 1]].mean()) / 2
    got = mean_loss(state["learned"], fixed, x, jnp.asarray(labels), network.logits(x), config)
    np.testing.assert_allclose(got, 4 * by_hand, rtol=1e-5)
    assert abs(4 * each.mean() - got) > 0.01 * got


def test_bfloat16_products_stay_near_and_parameters_float32(made):
    config = dataclasses.replace(SHORT, dtype="bfloat16")
    found, exact = run(config, **made), run(**made)
    assert {x.dtype for x in jax.tree.leaves(learned(found))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(found.losses, exact.losses, rtol=0.03)
    assert (found.losses != exact.losses).all()
    jaxpr = str(jax.make_jaxpr(lambda x: teacher_logits(made["network"], x, config))(inputs()))
    products = [
        line for line in jaxpr.splitlines()
        if "conv_general_dilated[" in line or "dot_general[" in line
    ]  # fmt: skip
    assert len(products) == 2
    assert all(":bf16[" in line for line in products)


def test_scales_stay_with_ste_and_stay_positive_with_lsq(made):
    found = run(dataclasses.replace(SHORT, method="ste"), **made)
    for got, all_bits, b in zip(
        found.quantizers.weights.scale, made["quantizers"].weights.scale, BITS[0], strict=True
    ):
        want = all_bits[made["quantizers"].weights.bits.index(b)]
        np.testing.assert_array_equal(got, np.broadcast_to(want, got.shape))
    wild = dataclasses.replace(SHORT, scale_learning_rate=1e3, distillation=0.0)
    for scale in run(wild, **made).quantizers.weights.scale:
        assert (np.asarray(scale) > 0).all()


def test_codes_found_by_gptq_are_where_it_starts(made):
    spec = KernelSpec(clipping="minmax", rounding="gptq")
    network, quantizers = small(weights=spec, activations=False)
    bits = BITS[0], (32, 32)
    arrays = [jnp.array(b) for b in bits]
    want = fast_logits(network, quantizers, *arrays, inputs())
    found = untrained(SHORT, network, quantizers, bits)
    np.testing.assert_allclose(found.logits(inputs()), want, atol=1e-6)
    assert not np.allclose(fast_logits(*made.values(), *arrays, inputs()), want)


def test_tied_kernels_stay_tied(made):
    def apply(params, x):
        x = x.reshape(len(x), -1)
        x = jax.nn.relu(x @ params["a"])
        return (x @ params["b"] @ params["c"])[:, :3]

    w = 0.3 * jax.random.normal(jax.random.key(1), (8, 8), jnp.float32)
    params = {
        "a": 0.1 * jax.random.normal(jax.random.key(0), (50, 8), jnp.float32), "b": w, "c": w
    }  # fmt: skip
    network = Network.from_function(apply, params, jnp.zeros((1, 5, 5, 2), jnp.float32))
    assert [layer.aliases for layer in network.layers] == [(), ("c",)]
    weights = calibrate_weights(network, KernelSpec(clipping="minmax"), (2, 4))
    found = run(
        network=network,
        quantizers=Quantizers(weights=weights, activations=None),
        bits=((4, 2), (32, 32)),
    )
    after = found.network.params
    np.testing.assert_array_equal(after["b"], after["c"])
    assert not np.allclose(after["b"], w)


@pytest.mark.parametrize("grid", ["symmetric", "affine"])
def test_a_saved_network_is_the_same_when_read(tmp_path, grid):
    spec = KernelSpec(grid=grid, clipping="minmax")
    network, quantizers = small(weights=spec)
    config = dataclasses.replace(SHORT, correct="batch_norm")
    found = untrained(config, network, quantizers, ((4, 32), (8, 4)))
    assert found.corrections
    params = jax.tree.map(lambda x: 1.5 * x, found.network.params)  # as if trained
    found = dataclasses.replace(
        found, network=dataclasses.replace(found.network, params=params)
    )
    path = tmp_path / "finetuned.safetensors"
    save_finetuned(path, found, architecture="small", metadata={"allocation": "mine"})
    read = load_finetuned(path, network)
    assert read.allocation == found.allocation
    assert read.allocation == {"stem": Choice(4, 8), "head": Choice(32, 4)}
    np.testing.assert_allclose(read.logits(inputs()), found.logits(inputs()), rtol=1e-6)
    reference = Evaluator(network, quantizers, lambda: batches(toy(), 8))
    a, b = (f.evaluator(reference)([read.allocation])[0] for f in (found, read))
    assert a.kl == pytest.approx(b.kl, rel=1e-6)
    assert a.kl > 1e-3
    z = np.asarray(network.apply(network.params, toy().normalization(toy().inputs)))
    q = np.asarray(found.logits(toy().normalization(toy().inputs)))
    kl = jax.vmap(kl_divergence)(jnp.asarray(q), jnp.asarray(z)).mean()
    assert a.kl == pytest.approx(float(kl), rel=1e-3)


def test_scales_of_the_stream_are_learned_and_kept(tmp_path):
    network, _ = small(activations=False)
    spec = InputSpec(clipping="minmax", placement="stream")
    found = calibrate_quantizers(network, (2, 4), (4, 8), [inputs()], activations=spec)
    tuned = run(network=network, quantizers=found, bits=((4, 4), (8, 4)))
    before, after = (float(q.stream.scale[0][0, 0]) for q in (found, tuned.quantizers))
    assert 1e-5 < abs(after / before - 1) < 0.5
    save_finetuned(path := tmp_path / "tuned.safetensors", tuned, architecture="small")
    read = load_finetuned(path, network)
    np.testing.assert_allclose(read.logits(inputs()), tuned.logits(inputs()), rtol=1e-6)


def test_files_that_do_not_fit_are_refused(made, tmp_path):
    path = tmp_path / "finetuned.safetensors"
    save_tensors(path, {"x": np.zeros(1)}, architecture="small")
    with pytest.raises(ValueError, match="holds no fine-tuned network"):
        load_finetuned(path, made["network"])
    save_finetuned(path, untrained(SHORT, **made), architecture="small")
    example = jnp.zeros((1, 5, 5, 3), jnp.float32)
    params = Small().init(jax.random.key(0), example)["params"]
    other = Network.from_linen(Small(), {"params": params}, example)
    with pytest.raises(ValueError, match=r"'params/stem/kernel' is of shape \(3, 3, 2, 4\)"):
        load_finetuned(path, other)


def test_what_cannot_be_fine_tuned_is_refused(made):
    with pytest.raises(ValueError, match="every layer at 32 bits: there is nothing"):
        run(bits=((32, 32), (32, 32)), **made)
    with pytest.raises(ValueError, match="batch_size=64 is more than the 20 training examples"):
        run(with_training(batch_size=64), **made)
    with pytest.raises(ValueError, match="Layer 'head': weight bits 3 were not calibrated"):
        run(bits=((4, 3), (8, 4)), **made)
    with pytest.raises(ValueError, match="correct='bias' compares layers"):
        run(dataclasses.replace(SHORT, correct="bias"), **made)
    with pytest.raises(ValueError, match=r"is NaN or infinite in epoch \d of 2.*than 1e\+30"):
        run(with_training(optimizer="sgd", learning_rate=1e30), **made)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"distillation": 1.5}, "distillation=1.5: give a weight from 0 to 1"),
        ({"temperature": 0.0}, "temperature=0.0: give a positive"),
        ({"scale_learning_rate": -1.0}, "scale_learning_rate=-1.0: give a positive"),
    ],
)
def test_wrong_configurations_are_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        FinetuneConfig(**fields)
    with pytest.raises(ValueError, match="checkpoint_steps=0: give a positive"):
        TrainConfig(checkpoint_steps=0)


@pytest.mark.slow
def test_two_devices_find_what_one_finds(tmp_path):
    out = tmp_path / "found.npz"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, "-m", "tests.deploy.finetuning", out],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = dict(np.load(out))
    assert found["devices"] == 2
    names = [name.removeprefix("one/") for name in found if name.startswith("one/")]
    assert len(names) > 4
    for name in names:
        np.testing.assert_allclose(found[f"spread/{name}"], found[f"one/{name}"], rtol=1e-5)
