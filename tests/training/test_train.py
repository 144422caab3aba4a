import dataclasses
import gc
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jmpq.data.dataset import Normalization, TrimPadding, whole_split
from jmpq.training.checkpoint import Checkpoints
from jmpq.training.evaluate import evaluate
from jmpq.training.loop import TrainConfig, augment, epoch_order, make_optimizer
from jmpq.training.losses import smoothed_cross_entropy
from jmpq.training.train import train
from jmpq.zoo.bert import Bert, BertConfig
from jmpq.zoo.resnet import ResNetCIFAR
from jmpq.zoo.tensor_files import weights_sha256
from tests.cli.command import finish, process

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


def test_digits_network_reaches_its_accuracy(tmp_path):
    # In a process of its own, compiled as users compile: half the time.
    trained = finish(process("train", tmp_path, environment={"XLA_FLAGS": ""}))
    assert trained.code == 0, trained.err
    assert float(re.search(r"Held-out top-1 (\S+) % on 597", trained.out)[1]) >= 97.5
    variables = load_file(tmp_path / "weights.safetensors")
    assert {array.dtype for array in variables.values()} == {np.dtype("float32")}


def sentences(examples=256, seed=0, length=8):
    """Sentences of 3 to `length` tokens; the label says whether token 5 is among them."""
    rng = np.random.default_rng(seed)
    mask = np.arange(length) < rng.integers(3, length + 1, (examples, 1))
    ids = rng.integers(3, 20, (examples, length))
    labels = rng.integers(0, 2, examples)
    ids = np.where(ids == 5, 6, ids)
    ids[:, 1] = np.where(labels == 1, 5, ids[:, 1])
    tokens = {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": 0 * ids}
    tokens = {name: x.astype(np.int32) for name, x in tokens.items()}
    return whole_split("words", "train", tokens, labels, TrimPadding())


def test_a_classifier_of_sentences_learns_with_dropout_and_the_same_every_time():
    config = BertConfig(
        vocab_size=20, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16,
        max_positions=8,
    )  # fmt: skip
    module = Bert(config, "classification")
    still = Bert(dataclasses.replace(config, dropout=0.0), "classification")
    settings = TrainConfig(epochs=10, batch_size=32, learning_rate=1e-2)
    with jax.numpy_rank_promotion("allow"):
        first, again, other = (
            train(each, sentences(), settings) for each in (module, module, still)
        )
        result = evaluate(module.apply, first, sentences(seed=1))
    assert set(first) == {"params"}
    assert weights_sha256(first) == weights_sha256(again)
    assert weights_sha256(first) != weights_sha256(other)
    assert result.top1 > 0.95


def test_sentences_of_similar_length_share_a_batch_and_images_are_shuffled():
    split = sentences(examples=203, length=64)
    orders = [epoch_order(split, 10, 3, epoch) for epoch in (0, 1)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(203))
        batches = split.lengths[order[:200]].reshape(-1, 10)
        assert np.ptp(batches, axis=1).mean() < 10  # of 61
        assert np.abs(np.diff(batches.mean(1))).mean() > 10  # long and short ones by turns
    assert (orders[0] != orders[1]).any()
    np.testing.assert_array_equal(orders[0], epoch_order(split, 10, 3, 0))
    np.testing.assert_array_equal(
        epoch_order(toy(), 8, 3, 1), np.random.default_rng([3, 1]).permutation(20)
    )


@pytest.mark.parametrize("options", [{"shift": 1}, {"flip": True}])
def test_only_images_are_shifted_and_mirrored(options, tmp_path):
    config = TrainConfig(**options)
    with pytest.raises(ValueError, match="are for images, but words has sentences"):
        train(TINY, sentences(), config, checkpoints=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    tokens = sentences().inputs
    assert augment(tokens, jax.random.key(0), shift=0, flip=False) is tokens


def test_checkpoints_keep_states_with_empty_arrays(tmp_path):
    state = {"full": jnp.arange(3.0), "empty": jnp.zeros((2, 0)), "step": jnp.zeros((), int)}
    store = Checkpoints(tmp_path, {})
    store.save(4, {**state, "full": state["full"] + 1})
    step, found = store.restore(state)
    store.close()
    assert step == 4
    np.testing.assert_array_equal(found["full"], [1.0, 2.0, 3.0])
    assert found["empty"].shape == (2, 0)


def test_spoilt_checkpoints_are_named_or_give_what_was_kept(tmp_path):
    state = {"full": jnp.arange(300.0)}
    store = Checkpoints(tmp_path, {})
    store.save(4, state)
    store.close()
    messages = []
    for path in [p for p in (tmp_path / "4").rglob("*") if p.is_file()]:
        original = path.read_bytes()
        path.write_bytes(original[: len(original) // 2])
        store = Checkpoints(tmp_path, {})
        try:
            np.testing.assert_array_equal(store.restore(state)[1]["full"], state["full"])
        except ValueError as error:
            messages.append(str(error))
        store.close()
        path.write_bytes(original)
    expected = f"The checkpoint {tmp_path / '4'} cannot be read: "
    assert messages
    assert all(message.startswith(expected) for message in messages)
    gc.collect()  # what orbax left of them
    for text in ("", "[]", "{"):
        (tmp_path / "origin.json").write_text(text)
        with pytest.raises(
            ValueError, match=rf"origin.json does not say .* delete {tmp_path},"
        ):
            Checkpoints(tmp_path, {})


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


def test_smoothed_labels_are_spread_evenly_over_the_classes():
    logits = jnp.array([0.5, -1.0, 2.0])
    spread = np.full(3, 0.1 / 3) + 0.9 * np.eye(3)[1]
    want = -(spread * np.asarray(jax.nn.log_softmax(logits))).sum()
    got = smoothed_cross_entropy(logits, jnp.array(1), smoothing=0.1)
    np.testing.assert_allclose(got, want, rtol=1e-12)
