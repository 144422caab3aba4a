"""Any training, step by step: order of examples, schedule, augmentation, checkpoints."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from jmpq.data.batches import make_batch
from jmpq.data.dataset import Normalization, Split
from jmpq.devices import mesh_for, replicate, spread
from jmpq.training.checkpoint import Checkpoints

SORTED_BATCHES = 50  # of sentences, sorted by length together

# step(state, inputs, labels) -> (new state, mean loss of the batch before it)
Step = Callable[[PyTree, Any, Any], tuple[PyTree, Float[Array, ""]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Options of a training; the defaults are those of the digits network.

    Attributes:
        epochs: Passes over the training examples.
        batch_size: Examples per step; an epoch's incomplete last batch is left out.
        optimizer: ``"sgd"`` (Nesterov momentum, weight decay added to the gradient) or
            ``"adamw"`` (decoupled weight decay).
        learning_rate: Peak; rises linearly, then falls to 0 along a cosine.
        warmup: Fraction of all steps in which it rises.
        momentum: Momentum (SGD only).
        weight_decay: Decay of kernels only: biases and normalisation are left alone.
        label_smoothing: Share of the label that is spread evenly over all classes in the loss.
        shift: Largest augmenting shift of an image, pixels, zeros (of the
            normalised input) moving in.
        flip: Whether every second image on average is mirrored left to right.
        checkpoint_epochs: Epochs between checkpoints.
        checkpoint_steps: Steps between further ones; None for none.
    """

    epochs: int = 15
    batch_size: int = 64
    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: float = 5e-3
    warmup: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-2
    label_smoothing: float = 0.0
    shift: int = 0
    flip: bool = False
    checkpoint_epochs: int = 1
    checkpoint_steps: int | None = None

    def __post_init__(self) -> None:
        positive = ["epochs", "batch_size", "learning_rate", "checkpoint_epochs"]
        if self.checkpoint_steps is not None:
            positive.append("checkpoint_steps")
        for name in positive:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: give a positive number.")
        if self.optimizer not in ("sgd", "adamw"):
            raise ValueError(f"optimizer={self.optimizer!r}: choose 'sgd' or 'adamw'.")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing={self.label_smoothing}: expected at least 0 and less than 1."
            )
        if self.shift < 0 or not 0 <= self.warmup < 1:
            raise ValueError(
                f"shift={self.shift}, warmup={self.warmup}: expected shift >= 0 pixels and a "
                "warmup fraction of at least 0 and less than 1."
            )


def steps_per_epoch(split: Split, config: TrainConfig) -> int:
    """Full batches in one pass over the examples.

    Raises:
        ValueError: If there are fewer examples than one batch.
    """
    if len(split) < config.batch_size:
        raise ValueError(
            f"batch_size={config.batch_size} is more than the {len(split)} training examples. "
            "Use a smaller batch."
        )
    return len(split) // config.batch_size


def run_steps(
    step: Step,
    state: PyTree,
    split: Split,
    config: TrainConfig,
    *,
    seed: int,
    store: Checkpoints | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[int, int, float], None] = lambda done, total, loss: None,
) -> tuple[PyTree, Float[np.ndarray, " steps"]]:
    """Run all steps of a training, or the rest of an interrupted one.

    Every epoch has its own order of the examples, drawn from `seed` and its number
    (`epoch_order`).

    Args:
        step: One step; what it draws must follow from the state.
        state: First state: JAX arrays, which may be donated.
        split: Training examples.
        config: Epochs, batch size, checkpoints.
        seed: Seed of the order of examples.
        store: Checkpoints of the state; training goes on from the newest.
        mesh: Devices over which the examples of a batch are spread; None for one device.
        progress: Callback, called with finished steps, all steps, and the loss before the last
            step but one (NaN at first), so that the device never waits for it.

    Returns:
        The state, and the loss of every step.

    Raises:
        ValueError: If there are fewer examples than one batch, or a loss is not finite.
    """
    steps = steps_per_epoch(split, config)
    total = steps * config.epochs
    done, losses = 0, np.zeros(total)
    if store:
        done, kept = store.restore({"state": state, "losses": jnp.zeros(total)})
        state, losses = kept["state"], np.array(kept["losses"], np.float64)
    if mesh is not None:
        mesh = mesh_for(mesh, config.batch_size)
        state = replicate(mesh, state)
    progress(done, total, math.nan)
    recent: list[Array] = []  # losses of the steps since the last look
    before: Array | None = None
    order = np.arange(0)
    for number in range(done, total):
        epoch, at = divmod(number, steps)
        if at == 0 or number == done:
            order = epoch_order(split, config.batch_size, seed, epoch)
        batch = make_batch(split, order[at * config.batch_size : (at + 1) * config.batch_size])
        data = batch.inputs, batch.labels
        state, loss = step(state, *(data if mesh is None else spread(mesh, data)))
        recent.append(loss)
        progress(number + 1, total, math.nan if before is None else float(before))
        before = loss
        ends = at + 1 == steps
        save = ends and ((epoch + 1) % config.checkpoint_epochs == 0 or number + 1 == total)
        if config.checkpoint_steps is not None:
            save = save or (number + 1) % config.checkpoint_steps == 0
        if ends or save:
            latest = np.asarray(jax.device_get(recent), np.float64)
            losses[number + 1 - len(latest) : number + 1] = latest
            _check_loss(latest, epoch, config)
            recent = []
        if store and save:
            store.save(number + 1, {"state": state, "losses": jnp.asarray(losses)})
    return state, losses


def epoch_order(
    split: Split, batch_size: int, seed: int, epoch: int
) -> Int[np.ndarray, " examples"]:
    """In which order an epoch takes the examples: random, drawn from `seed` and `epoch`.

    Sentences of similar length share a batch, so that little of it is padding: of every
    `SORTED_BATCHES` random batches the examples are sorted by length, then all batches are
    shuffled. What is left over from full batches comes last.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(split))
    if split.lengths is None:
        return order
    full = len(order) // batch_size * batch_size
    run = SORTED_BATCHES * batch_size
    runs = [order[i : min(i + run, full)] for i in range(0, full, run)]
    alike = [x[np.argsort(split.lengths[x], kind="stable")] for x in runs]
    rows = np.concatenate(alike).reshape(-1, batch_size)
    return np.concatenate([rng.permutation(rows).ravel(), order[full:]])


def of_rank_two(params: PyTree) -> PyTree:
    """Which parameters are kernels: those with more than one axis."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def make_optimizer(
    config: TrainConfig, total: int, kernels: Callable[[PyTree], PyTree] = of_rank_two
) -> optax.GradientTransformation:
    """The optimizer of a configuration for `total` steps; `kernels` says what decays."""
    warmup = round(config.warmup * total)
    schedule = optax.warmup_cosine_decay_schedule(
        config.learning_rate if warmup == 0 else 0.0, config.learning_rate, warmup, total
    )

    if config.optimizer == "adamw":
        return optax.adamw(schedule, weight_decay=config.weight_decay, mask=kernels)
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=kernels),
        optax.sgd(schedule, momentum=config.momentum, nesterov=True),
    )


def check_augmentation(split: Split, config: TrainConfig) -> None:
    """Raise `ValueError` where texts are to be shifted or mirrored."""
    if (config.shift or config.flip) and not isinstance(split.normalization, Normalization):
        raise ValueError(
            f"shift={config.shift}, flip={config.flip} are for images, but {split.dataset} has "
            "sentences. Train on them with shift=0 and without flip."
        )


def augment(inputs: PyTree, key: Array, *, shift: int, flip: bool) -> PyTree:
    """Shift and mirror every image [batch, height, width, channels] by its own draw.

    What is neither shifted nor mirrored may be any inputs.
    """
    if not shift and not flip:
        return inputs
    count, height, width, channels = inputs.shape
    shift_key, flip_key = jax.random.split(key)
    if shift:
        corners = jax.random.randint(shift_key, (count, 2), 0, 2 * shift + 1)
        sides = ((0, 0), (shift, shift), (shift, shift), (0, 0))

        def crop(image: Array, corner: Array) -> Array:
            start = (corner[0], corner[1], jnp.zeros_like(corner[0]))
            return jax.lax.dynamic_slice(image, start, (height, width, channels))

        inputs = jax.vmap(crop)(jnp.pad(inputs, sides), corners)
    if flip:
        mirrored = jax.random.bernoulli(flip_key, 0.5, (count, 1, 1, 1))
        inputs = jnp.where(mirrored, inputs[:, :, ::-1], inputs)
    return inputs


def _check_loss(losses: Float[np.ndarray, " steps"], epoch: int, config: TrainConfig) -> None:
    if not np.isfinite(losses).all():
        raise ValueError(
            f"The training loss is NaN or infinite in epoch {epoch + 1} of {config.epochs}. "
            f"Train with a smaller learning rate than {config.learning_rate:g}."
        )
