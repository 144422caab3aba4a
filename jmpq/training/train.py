"""Train a linen network with batch normalisation from scratch, reproducibly."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from jmpq.data.batches import make_batch
from jmpq.data.dataset import Split
from jmpq.training.checkpoint import Checkpoints
from jmpq.training.losses import cross_entropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train; the defaults are those of the digits network.

    Attributes:
        epochs: Passes over the training examples.
        batch_size: Examples per step; an epoch's incomplete last batch is left out.
        optimizer: ``"sgd"`` (Nesterov momentum, weight decay added to the gradient) or
            ``"adamw"`` (decoupled weight decay).
        learning_rate: Peak; rises linearly, then falls to 0 along a cosine.
        warmup: Fraction of all steps in which it rises.
        momentum: Of SGD.
        weight_decay: On kernels only: biases and normalisation are left alone.
        shift: Augmentation: every image is shifted by up to so many pixels, zeros (of the
            normalised input) moving in.
        flip: Augmentation: every second image on average is mirrored left to right.
        checkpoint_epochs: Epochs between checkpoints.
    """

    epochs: int = 15
    batch_size: int = 64
    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: float = 5e-3
    warmup: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-2
    shift: int = 0
    flip: bool = False
    checkpoint_epochs: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "checkpoint_epochs"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: give a positive number.")
        if self.optimizer not in ("sgd", "adamw"):
            raise ValueError(f"optimizer={self.optimizer!r}: choose 'sgd' or 'adamw'.")
        if self.shift < 0 or not 0 <= self.warmup < 1:
            raise ValueError(
                f"shift={self.shift}, warmup={self.warmup}: expected shift >= 0 pixels and a "
                "warmup fraction of at least 0 and less than 1."
            )


def train(
    module: nn.Module,
    split: Split,
    config: TrainConfig | None = None,
    *,
    seed: int = 0,
    checkpoints: pathlib.Path | str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, PyTree]:
    """Train from random initialisation; the same arguments give the same weights.

    Args:
        module: Called as ``module.apply(variables, inputs, train=True)``; its collections are
            ``params`` and ``batch_stats``.
        split: Training examples.
        config: How to train; None for the defaults.
        seed: Of initialisation, order of examples and augmentation.
        checkpoints: Folder for the state after epochs. An interrupted training called again
            with the same arguments goes on from there, to the same result as without
            interruption; a finished one returns at once.
        progress: Called with (finished steps, all steps) after every step.

    Returns:
        Variables ``{"params": ..., "batch_stats": ...}``.

    Raises:
        ValueError: If there are fewer examples than one batch, the loss stops being finite,
            or `checkpoints` belongs to another training.
        OSError: If `checkpoints` cannot be written.
    """
    config = config or TrainConfig()
    steps = len(split) // config.batch_size
    if not steps:
        raise ValueError(
            f"batch_size={config.batch_size} is more than the {len(split)} training examples. "
            "Use a smaller batch."
        )
    total = steps * config.epochs
    store = None
    if checkpoints is not None:
        origin = {
            "config": dataclasses.asdict(config),
            "seed": seed,
            "network": repr(module),
            "data": split.record(),
        }
        store = Checkpoints(checkpoints, origin)
    example = jnp.asarray(make_batch(split, np.arange(1)).inputs)
    state = initial_state(module, make_optimizer(config, total), example, seed)
    done = 0
    if store:
        done, state = store.restore(state)
    key = jax.random.key(seed)
    progress(done * steps, total)
    for epoch in range(done, config.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(split))
        losses = []
        for step in range(steps):
            chosen = order[step * config.batch_size : (step + 1) * config.batch_size]
            batch = make_batch(split, chosen)
            state, loss = train_step(
                state,
                batch.inputs,
                batch.labels,
                key,
                module=module,
                config=config,
                total=total,
            )
            losses.append(loss)
            progress(epoch * steps + step + 1, total)
        _check_loss(losses, epoch, config)
        if store and (
            (epoch + 1) % config.checkpoint_epochs == 0 or epoch + 1 == config.epochs
        ):
            store.save(epoch + 1, state)
    if store:
        store.close()
    return {"params": state["params"], "batch_stats": state["batch_stats"]}


def initial_state(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    example: Float[Array, "1 height width channels"],
    seed: int,
) -> dict[str, PyTree]:
    """Random variables, the optimizer's state and the number of finished steps."""
    variables = jax.jit(module.init)(jax.random.key(seed), example)
    return {
        "params": variables["params"],
        "batch_stats": variables.get("batch_stats", {}),
        "optimizer": optimizer.init(variables["params"]),
        "step": jnp.zeros((), jnp.int32),
    }


@functools.partial(jax.jit, static_argnames=("module", "config", "total"), donate_argnums=0)
def train_step(
    state: dict[str, PyTree],
    inputs: Float[Array, "batch height width channels"],
    labels: Int[Array, " batch"],
    key: Array,
    *,
    module: nn.Module,
    config: TrainConfig,
    total: int,
) -> tuple[dict[str, PyTree], Float[Array, ""]]:
    """One step; returns the new state and the mean loss of the batch before it, in nats."""
    draw = jax.random.fold_in(key, state["step"])
    inputs = augment(inputs, draw, shift=config.shift, flip=config.flip)

    def mean_loss(params: PyTree) -> tuple[Array, PyTree]:
        variables = {"params": params, "batch_stats": state["batch_stats"]}
        logits, updates = module.apply(variables, inputs, train=True, mutable=["batch_stats"])
        losses = jax.vmap(cross_entropy)(logits, labels)  # type: ignore[arg-type]
        return losses.mean(), updates.get("batch_stats", {})

    (loss, stats), gradient = jax.value_and_grad(mean_loss, has_aux=True)(state["params"])
    updates, memory = make_optimizer(config, total).update(
        gradient, state["optimizer"], state["params"]
    )
    new = {
        "params": optax.apply_updates(state["params"], updates),
        "batch_stats": stats,
        "optimizer": memory,
        "step": state["step"] + 1,
    }
    return new, loss


def make_optimizer(config: TrainConfig, total: int) -> optax.GradientTransformation:
    """The optimizer of a configuration for `total` steps."""
    warmup = round(config.warmup * total)
    schedule = optax.warmup_cosine_decay_schedule(
        config.learning_rate if warmup == 0 else 0.0, config.learning_rate, warmup, total
    )

    def kernels(params: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    if config.optimizer == "adamw":
        return optax.adamw(schedule, weight_decay=config.weight_decay, mask=kernels)
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=kernels),
        optax.sgd(schedule, momentum=config.momentum, nesterov=True),
    )


def augment(
    inputs: Float[Array, "batch height width channels"],
    key: Array,
    *,
    shift: int,
    flip: bool,
) -> Float[Array, "batch height width channels"]:
    """Shift and mirror every image by its own draw."""
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


def _check_loss(losses: list[Any], epoch: int, config: TrainConfig) -> None:
    if not np.isfinite(np.asarray(jax.device_get(losses), np.float64)).all():
        raise ValueError(
            f"The training loss is NaN or infinite in epoch {epoch + 1} of {config.epochs}. "
            f"Train with a smaller learning rate than {config.learning_rate:g}."
        )
