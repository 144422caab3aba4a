"""Train a linen network from scratch, reproducibly."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from jmpq.data.batches import make_batch
from jmpq.data.dataset import Split
from jmpq.training.checkpoint import Checkpoints
from jmpq.training.labels import check_split
from jmpq.training.loop import (
    TrainConfig,
    augment,
    check_augmentation,
    make_optimizer,
    run_steps,
    steps_per_epoch,
)
from jmpq.training.losses import smoothed_cross_entropy


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
        module: Flax module, called as ``module.apply(variables, inputs, train=True)``; its
            collections are ``params`` and, with batch normalisation, ``batch_stats``. It may
            draw ``dropout``.
        split: Training examples; batches of sentences are of similar length.
        config: Options of training; None for the defaults.
        seed: Seed of initialisation, order of examples, augmentation and dropout.
        checkpoints: Folder for the state after epochs. An interrupted training called again
            with the same arguments goes on from there, to the same result as without
            interruption; a finished one returns at once.
        progress: Callback, called with (finished steps, all steps) after every step.

    Returns:
        Variables ``{"params": ..., "batch_stats": ...}``, the latter where there are some.

    Raises:
        ValueError: If there are fewer examples than one batch, the loss stops being finite,
            sentences are to be shifted or mirrored, labels do not fit, or `checkpoints` belongs
            to another training.
        OSError: If `checkpoints` cannot be written.
    """
    config = config or TrainConfig()
    check_augmentation(split, config)
    total = steps_per_epoch(split, config) * config.epochs
    store = None
    if checkpoints is not None:
        origin = {
            "config": dataclasses.asdict(config),
            "seed": seed,
            "network": repr(module),
            "data": split.record(),
        }
        store = Checkpoints(checkpoints, origin)
    example = jax.tree.map(jnp.asarray, make_batch(split, np.arange(1)).inputs)
    state = initial_state(module, make_optimizer(config, total), example, seed)
    variables = {"params": state["params"], "batch_stats": state["batch_stats"]}
    check_split(split, lambda inputs: module.apply(variables, inputs))  # type: ignore
    key = jax.random.key(seed)
    state, _ = run_steps(
        lambda state, inputs, labels: train_step(
            state, inputs, labels, key, module=module, config=config, total=total
        ),
        state,
        split,
        config,
        seed=seed,
        store=store,
        progress=lambda done, total, loss: progress(done, total),
    )
    if store:
        store.close()
    statistics = {"batch_stats": state["batch_stats"]} if state["batch_stats"] else {}
    return {"params": state["params"], **statistics}


def initial_state(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    example: PyTree,
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
    inputs: PyTree,
    labels: Int[Array, "batch ..."],
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
        logits, updates = module.apply(
            variables,
            inputs,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.fold_in(draw, 1)},
        )
        loss = functools.partial(smoothed_cross_entropy, smoothing=config.label_smoothing)
        losses = jax.vmap(loss)(logits, labels)  # type: ignore[arg-type]
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
