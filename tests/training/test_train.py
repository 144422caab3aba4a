import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmpq.data.dataset import Normalization, whole_split
from jmpq.data.digits import digits
from jmpq.models.architectures import build_module
from jmpq.models.resnet import ResNetCIFAR
from jmpq.models.weights import weights_sha256
from jmpq.training.evaluate import evaluate
from jmpq.training.loop import TrainConfig, augment, make_optimizer
from jmpq.training.train import train

TINY = ResNetCIFAR(depth=4, widths=(3,), num_classes=3)
SHORT = TrainConfig(epochs=3, batch_size=8, shift=1, flip=True)


@pytest.fixture(autouse=True)
def promotion():
    """Flax and optax expect JAX's standard promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def toy(examples=20, seed=0):
    rng = np.random.default_rng(seed)
    return whole_split(
        "toy",
        "train",
        rng.integers(0, 17, (examples, 6, 6, 1), dtype=np.uint8),
        rng.integers(0, 3, examples),
        Normalization(scale=16.0, mean=(0.5,), std=(0.3,)),
    )


def test_digits_network_reaches_its_accuracy():
    data, module = digits(), build_module("digits_resnet")
    variables = train(module, data.train)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    result = evaluate(module.apply, variables, data.heldout)
    assert result.top1 >= 0.975
    assert result.loss < 0.1


def test_same_seed_same_weights_other_seed_others():
    first, again = (train(TINY, toy(), SHORT, seed=5) for _ in range(2))
    other = train(TINY, toy(), SHORT, seed=6)
    assert weights_sha256(first) == weights_sha256(again)
    assert weights_sha256(first) != weights_sha256(other)


class Interrupted(Exception):
    pass


def test_interrupted_training_goes_on_to_the_identical_result(tmp_path):
    seen = []

    def stop(done, total):
        seen.append((done, total))
        if done == 5:  # in the third epoch of two steps each
            raise Interrupted

    with pytest.raises(Interrupted):
        train(TINY, toy(), SHORT, checkpoints=tmp_path / "run", progress=stop)
    assert seen == [(k, 6) for k in range(6)]
    seen.clear()
    resumed = train(
        TINY, toy(), SHORT, checkpoints=tmp_path / "run", progress=lambda *a: seen.append(a)
    )
    assert seen == [(4, 6), (5, 6), (6, 6)]
    assert weights_sha256(resumed) == weights_sha256(train(TINY, toy(), SHORT))
    finished = train(TINY, toy(), SHORT, checkpoints=tmp_path / "run")
    assert weights_sha256(finished) == weights_sha256(resumed)


def test_checkpoints_are_kept_every_few_epochs_and_at_the_end(tmp_path):
    config = dataclasses.replace(SHORT, checkpoint_epochs=2)
    train(TINY, toy(), config, checkpoints=tmp_path)
    steps = sorted(int(p.name) for p in tmp_path.iterdir() if p.is_dir())
    assert steps == [4, 6]  # two steps an epoch


def test_checkpoints_of_another_training_are_refused(tmp_path):
    arguments = {"module": TINY, "split": toy(), "config": SHORT, "seed": 0}
    train(**arguments, checkpoints=tmp_path)
    changes = {
        "config is .*0.005.*1.0": {"config": dataclasses.replace(SHORT, learning_rate=1.0)},
        r"network is .*\(3,\).*\(4,\)": {"module": dataclasses.replace(TINY, widths=(4,))},
        "data is ": {"split": toy(seed=1)},
        "seed is 0 there and 1 here": {"seed": 1},
    }
    for says, change in changes.items():
        with pytest.raises(ValueError, match=f"another training: {says}"):
            train(**{**arguments, **change}, checkpoints=tmp_path)


def test_checkpoint_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Cannot write"):
        train(TINY, toy(), SHORT, checkpoints=tmp_path / "file" / "run")


def test_too_few_examples_for_a_batch():
    with pytest.raises(ValueError, match="batch_size=64 is more than the 20 training examples"):
        train(TINY, toy(), TrainConfig())


def test_diverging_training_says_so():
    config = TrainConfig(epochs=5, batch_size=8, optimizer="sgd", learning_rate=1e30)
    with pytest.raises(ValueError, match=r"NaN or infinite in epoch \d of 5.*than 1e\+30"):
        train(TINY, toy(), config)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"epochs": 0}, "epochs=0: give a positive"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0: give a positive"),
        ({"warmup": 1.0}, "warmup fraction"),
        ({"shift": -1}, "shift >= 0"),
    ],
)
def test_wrong_configurations_are_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        TrainConfig(**fields)


def test_unknown_optimizer_is_refused():
    fields = {**dataclasses.asdict(SHORT), "optimizer": "adam"}
    with pytest.raises(ValueError, match="optimizer='adam': choose 'sgd' or 'adamw'"):
        TrainConfig.__post_init__(types.SimpleNamespace(**fields))  # behind the type checker


def test_weight_decay_leaves_biases_and_normalisation_alone():
    params = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2)}
    zero = jax.tree.map(jnp.zeros_like, params)
    for name in ("sgd", "adamw"):
        optimizer = make_optimizer(TrainConfig(optimizer=name, warmup=0.0), 10)
        updates, _ = optimizer.update(zero, optimizer.init(params), params)
        assert (updates["kernel"] < 0).all()
        assert (updates["scale"] == 0).all()


def test_augmentation_shifts_and_mirrors_whole_images():
    image = np.arange(1, 17, dtype=np.float32).reshape(1, 4, 4, 1)
    images = jnp.asarray(image.repeat(64, 0))
    out = np.asarray(augment(images, jax.random.key(0), shift=1, flip=True))
    padded = np.pad(image[0], ((1, 1), (1, 1), (0, 0)))
    crops = [padded[i : i + 4, j : j + 4] for i in range(3) for j in range(3)]
    allowed = {np.ascontiguousarray(a).tobytes() for c in crops for a in (c, c[:, ::-1])}
    assert {np.ascontiguousarray(o).tobytes() for o in out} <= allowed
    assert len({o.tobytes() for o in out}) > 9
    same = augment(images, jax.random.key(0), shift=0, flip=False)
    np.testing.assert_array_equal(same, images)
