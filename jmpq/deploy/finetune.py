"""Quantization-aware fine-tuning of a network under an allocation of bits.

Weights and activations are quantized in every forward pass, gradients pass through the
rounding (straight-through) and stop where values are cut off at the ends of a grid. Scales
stay as calibrated (``ste``) or are learned with the parameters (``lsq``).

Batch statistics are frozen: the network is a pure function of its parameters, in which batch
normalisation is an affine map whose scale and bias are trained. What quantization did to the
statistics is made up for once, before the first step, by corrections of the layers' outputs
(`jmpq.deploy.correction`); afterwards they are constants. Statistics are not estimated again
at the end: that would undo what training made of them.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from jmpq.allocation import Allocation, bit_arrays
from jmpq.data.dataset import Split
from jmpq.deploy.correction import (
    Correct,
    Corrections,
    corrected_logits,
    find_corrections,
    output_moments,
)
from jmpq.deploy.finetuned import Finetuned
from jmpq.devices import mesh_for, replicate, to_host
from jmpq.formats import FLOAT_BITS
from jmpq.kinds import check_kinds
from jmpq.network.network import Network
from jmpq.network.precision import products_in
from jmpq.network.walk import Rule, bind
from jmpq.quantizers.learned import (
    ScaleRows,
    gradient_factors,
    kernels_near_codes,
    rows_of,
    scale_gradients,
    settled,
    with_rows,
)
from jmpq.quantizers.scales import Quantizers
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
from jmpq.training.losses import kl_divergence, smoothed_cross_entropy
from jmpq.zoo.tensor_files import weights_sha256

LEAST_SCALE = 1e-3  # of its start: a learned scale stays above, and positive
SCHEDULE = TrainConfig(
    epochs=5, batch_size=64, optimizer="adamw", learning_rate=1e-3, weight_decay=1e-4
)


@check_kinds
@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Options of a fine-tuning.

    Attributes:
        training: Epochs, batches, optimizer and its schedule, augmentation, checkpoints.
            Weight decay is on kernels only.
        method: ``ste``: the scales stay; ``lsq``: they are learned.
        scale_learning_rate: Learning rate of scales, as a multiple of the parameters'.
        distillation: Weight of T²·KL(float network ‖ quantized), both at temperature T; the
            rest is the weight of cross entropy. With 1 labels say only which positions count.
        temperature: T: logits are divided by it for distillation.
        dtype: Type of convolutions and matrix products; parameters, scales and all else stay
            float32.
        correct: Corrections of the layers' outputs before the first step: none, of their means
            (``bias``), or of means and variances (``batch_norm``).

    References:
        Esser, McKinstry, Bablani, Appuswamy, Modha (2020), Learned Step Size Quantization.
        Hinton, Vinyals, Dean (2015), Distilling the knowledge in a neural network.
    """

    training: TrainConfig = SCHEDULE
    method: Literal["ste", "lsq"] = "lsq"
    scale_learning_rate: float = 0.1
    distillation: float = 1.0
    temperature: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    correct: Correct = "batch_norm"

    def __post_init__(self) -> None:
        if not 0 <= self.distillation <= 1:
            raise ValueError(f"distillation={self.distillation}: give a weight from 0 to 1.")
        for name in ("temperature", "scale_learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: give a positive number.")
        closed = {
            "method": ("ste", "lsq"),
            "dtype": ("float32", "bfloat16"),
            "correct": ("none", "bias", "batch_norm"),
        }
        for name, known in closed.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r}: choose one of {', '.join(known)}.")


class Constants(NamedTuple):
    """The constants of one fine-tuning.

    Attributes:
        network: The float network, which teaches.
        quantizers: Quantizers with the calibrated scales.
        w_bits: Weight bits of every layer.
        a_bits: Activation bits of every layer's input.
        scale: Calibrated scales.
        zero_point: Zero points.
        factors: Factors of the gradients of scales (`gradient_factors`); none with ``ste``.
        corrections: Corrections of the layers' outputs.
        key: Key of the augmentation.
    """

    network: Network
    quantizers: Quantizers
    w_bits: Int[Array, " layers"]
    a_bits: Int[Array, " layers"]
    scale: ScaleRows
    zero_point: ScaleRows
    factors: tuple[list[float], ...] | None
    corrections: Corrections
    key: Array


@check_kinds
def finetune(
    network: Network,
    quantizers: Quantizers,
    allocation: Allocation,
    split: Split,
    config: FinetuneConfig | None = None,
    *,
    examples: PyTree = None,
    seed: int = 0,
    checkpoints: pathlib.Path | str | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[int, int, float], None] = lambda done, total, loss: None,
) -> Finetuned:
    """Train the parameters, and with LSQ the scales, of a quantized network.

    The same arguments give the same result. Kernels whose codes were found otherwise than by
    rounding to nearest (GPTQ, AdaRound) start near those codes. Layers at 32 bits stay
    unquantized and are trained too. Zero points stay as calibrated.

    Args:
        network: The float network; it teaches, and its parameters are the start.
        quantizers: Calibrated quantizers of the network; the scales are the start.
        allocation: The allocation to train for; layers that it does not name stay
            unquantized.
        split: Training examples.
        config: Options of fine-tuning; None for the defaults.
        examples: Calibration inputs in one batch, for `FinetuneConfig.correct`.
        seed: Seed of the order of examples and of augmentation.
        checkpoints: Folder for the state. An interrupted fine-tuning called again with the
            same arguments goes on from there, to the same result as without interruption; a
            finished one returns at once.
        mesh: Devices over which the examples of a batch are spread; None for one device. The
            result is the same up to rounding.
        progress: Callback, called with finished steps, all steps, and a recent loss (NaN at
            first).

    Raises:
        ValueError: If the allocation names a layer that the network does not have or gives
            one bits that were not calibrated, nothing is quantized, there is no batch of
            examples or nothing to correct by, a grid does not fit LSQ, sentences are to be
            shifted or mirrored, labels do not fit (`check_split`), the loss stops being
            finite, or `checkpoints` belongs to another fine-tuning.
        OSError: If `checkpoints` cannot be written.
    """
    config = config or FinetuneConfig()
    names = [layer.name for layer in network.layers]
    (bits,) = bit_arrays(names, [allocation])
    w_bits, a_bits = bits.tolist()
    quantizers.check(network, w_bits, a_bits)
    allocation = Allocation.from_bits(names, bits)  # names every layer
    check_augmentation(split, config.training)
    check_split(split, network.logits, classes=config.distillation < 1)
    if {*w_bits, *a_bits} == {FLOAT_BITS}:
        raise ValueError(
            "The allocation leaves every layer at 32 bits: there is nothing to fine-tune for. "
            "Choose one that quantizes."
        )
    total = steps_per_epoch(split, config.training) * config.training.epochs
    if config.correct != "none" and examples is None:
        raise ValueError(
            f"correct={config.correct!r} compares layers on calibration inputs: pass them as "
            "`examples`, or correct 'none'."
        )
    fixed, state = start(network, quantizers, w_bits, a_bits, config, examples, seed, total)
    store = None
    if checkpoints is not None:
        origin = {
            "config": dataclasses.asdict(config),
            "seed": seed,
            "network": weights_sha256((network.params, network.state)),
            "quantizers": quantizers.sha256,
            "allocation": allocation.label,
            "data": split.record(),
            "examples": None if config.correct == "none" else weights_sha256(examples),
        }
        store = Checkpoints(checkpoints, origin)
    if mesh is not None:
        mesh = mesh_for(mesh, config.training.batch_size)
    everywhere = fixed if mesh is None else replicate(mesh, fixed)
    state, losses = run_steps(
        lambda state, inputs, labels: finetune_step(
            state, everywhere, inputs, labels, config=config, total=total
        ),
        state,
        split,
        config.training,
        seed=seed,
        store=store,
        mesh=mesh,
        progress=progress,
    )
    if store:
        store.close()
    learned = jax.tree.map(lambda x: jnp.asarray(to_host(x)), state["learned"])
    rows = fixed.scale if config.method == "ste" else learned["scale"]
    quantizers = settled(network, quantizers, w_bits, a_bits)
    return Finetuned(
        network=dataclasses.replace(network, params=_tied(network, learned["params"])),
        quantizers=with_rows(quantizers, rows, fixed.zero_point),
        allocation=allocation,
        corrections=fixed.corrections,
        losses=losses,
    )


def start(
    network: Network,
    quantizers: Quantizers,
    w_bits: Sequence[int],
    a_bits: Sequence[int],
    config: FinetuneConfig,
    examples: PyTree,
    seed: int,
    total: int,
) -> tuple[Constants, dict[str, PyTree]]:
    """The constants, and the first state: learned arrays, optimizer state, step."""
    quantizers = settled(network, quantizers, w_bits, a_bits)
    scale, zero_point = rows_of(network, quantizers, w_bits, a_bits)
    factors = None
    if config.method == "lsq":
        factors = gradient_factors(network, quantizers, w_bits, a_bits)
    params = network.with_kernels(kernels_near_codes(network, quantizers, w_bits))
    params = jax.tree.map(jnp.array, params)  # a copy, as states are donated
    bits = jnp.array(w_bits), jnp.array(a_bits)
    corrections: Corrections = {}
    if config.correct != "none":
        moments = output_moments(network, examples)
        begun = dataclasses.replace(network, params=params)
        nearest = with_rows(quantizers, scale, zero_point)
        find = jax.jit(find_corrections, static_argnames="kind")
        corrections = find(begun, nearest, *bits, examples, moments, config.correct)
    fixed = Constants(
        network=network,
        quantizers=with_rows(quantizers, scale, zero_point),
        w_bits=bits[0],
        a_bits=bits[1],
        scale=scale,
        zero_point=zero_point,
        factors=factors,
        corrections=corrections,
        key=jax.random.key(seed),
    )
    learned: dict[str, PyTree] = {"params": params}
    if config.method == "lsq":
        learned["scale"] = jax.tree.map(jnp.array, scale)
    state = {
        "learned": learned,
        "optimizer": _optimizer(network, config, total).init(learned),
        "step": jnp.zeros((), jnp.int32),
    }
    return fixed, state


@functools.partial(jax.jit, static_argnames=("config", "total"), donate_argnums=0)
def finetune_step(
    state: dict[str, PyTree],
    fixed: Constants,
    inputs: PyTree,
    labels: Int[Array, "batch ..."],
    *,
    config: FinetuneConfig,
    total: int,
) -> tuple[dict[str, PyTree], Float[Array, ""]]:
    """One step; returns the new state and the mean loss of the batch before it, in nats."""
    training = config.training
    draw = jax.random.fold_in(fixed.key, state["step"])
    inputs = augment(inputs, draw, shift=training.shift, flip=training.flip)
    teacher = teacher_logits(fixed.network, inputs, config) if config.distillation else None
    loss, gradient = jax.value_and_grad(mean_loss)(
        state["learned"], fixed, inputs, labels, teacher, config
    )
    optimizer = _optimizer(fixed.network, config, total)
    updates, memory = optimizer.update(gradient, state["optimizer"], state["learned"])
    learned: Any = optax.apply_updates(state["learned"], updates)
    if config.method == "lsq":
        learned["scale"] = jax.tree.map(
            lambda new, first: jnp.maximum(new, LEAST_SCALE * first),
            learned["scale"],
            fixed.scale,
        )
    return {"learned": learned, "optimizer": memory, "step": state["step"] + 1}, loss


def mean_loss(
    learned: dict[str, PyTree],
    fixed: Constants,
    inputs: PyTree,
    labels: Int[Array, "batch ..."],
    teacher: Float[Array, "batch *output"] | None,
    config: FinetuneConfig,
) -> Float[Array, ""]:
    """Cross entropy and distillation of a batch, nats per example."""
    rows = fixed.scale
    if config.method == "lsq":
        assert fixed.factors is not None
        rows = scale_gradients(learned["scale"], fixed.factors)
    z = corrected_logits(
        fixed.network,
        with_rows(fixed.quantizers, rows, fixed.zero_point),
        fixed.w_bits,
        fixed.a_bits,
        inputs,
        fixed.corrections,
        _tied(fixed.network, learned["params"]),
        _rule(config),
    )
    loss = jnp.zeros((), z.dtype)
    if (part := config.distillation) and teacher is not None:
        t = config.temperature
        loss += part * t**2 * jax.vmap(kl_divergence)(z / t, teacher / t, labels).mean()
    if part < 1:
        smoothing = config.training.label_smoothing
        loss_of = functools.partial(smoothed_cross_entropy, smoothing=smoothing)
        loss += (1 - part) * jax.vmap(loss_of)(z, labels).mean()
    return loss


def teacher_logits(
    network: Network, inputs: PyTree, config: FinetuneConfig
) -> Float[Array, "batch *output"]:
    """Logits of the float network, its products in the same precision as the student's."""
    return network.logits(inputs, rule=_rule(config))


def _rule(config: FinetuneConfig) -> Rule:
    return bind if config.dtype == "float32" else products_in(config.dtype)


def _tied(network: Network, params: PyTree) -> PyTree:
    """One kernel for all uses of a layer: the first, which alone gets a gradient."""
    return network.with_kernels(network.kernels(params), params)


def _optimizer(
    network: Network, config: FinetuneConfig, total: int
) -> optax.GradientTransformation:
    """That of the parameters, and the same at another learning rate for scales."""

    def kernels(learned: dict[str, PyTree]) -> dict[str, PyTree]:
        return {**learned, "params": network.tap.pieces.kernels(learned["params"])}

    rate = config.scale_learning_rate * config.training.learning_rate
    slower = dataclasses.replace(config.training, learning_rate=rate)
    return optax.multi_transform(
        {
            "params": make_optimizer(config.training, total, kernels),
            "scale": make_optimizer(slower, total),  # without decay: they are vectors
        },
        {"params": "params", "scale": "scale"}
        if config.method == "lsq"
        else {"params": "params"},
    )
