"""The loss of a run: ready-made by its name, or a function of the user's."""

import jax
import numpy as np
from jaxtyping import Array, Float

from jmpq.run.network import imported, module_sha256
from jmpq.text import did_you_mean
from jmpq.training.losses import (
    ExampleLoss,
    check_loss,
    cross_entropy,
    kl_divergence,
    squared_error,
)

READY = {"cross_entropy": cross_entropy, "squared_error": squared_error, "kl": kl_divergence}
# Their gradient is zero where the network still equals its reference: so are their terms.
ZERO_FOR_KL = (
    "first_order",
    "empirical_fisher",
    "output_fisher",
    "fisher_trace",
    "absolute_gradient",
)


def find_loss(name: str) -> ExampleLoss:
    """The loss of one example, nats: a ready-made one or ``package.module:function``.

    The ready-made ones are ``cross_entropy``, ``squared_error`` and ``kl``. The targets of
    ``kl`` are the float network's own logits, not labels.

    Raises:
        ValueError: If there is no such loss.
    """
    if name in READY:
        return READY[name]
    if ":" not in name:
        raise ValueError(
            f"{name!r} is not a loss.{did_you_mean(name, READY)} Expected "
            f"{', '.join(READY)} or package.module:function."
        )
    return imported(name, "a loss", "of the logits of one example and its label")


def loss_code(name: str) -> dict[str, str]:
    """What identifies a loss of one's own beside its name: a hash of its module's file."""
    digest = module_sha256(name)
    return {} if digest is None else {"loss_sha256": digest}


def measured_loss(name: str) -> str:
    """The loss that is measured beside a predicted one: the KL divergence always is."""
    return "cross_entropy" if name == "kl" else name


def try_loss(
    name: str, loss: ExampleLoss, logits: Float[Array, "batch *output"], targets: Array
) -> None:
    """Try a loss on a first batch, before hours are spent on it.

    Raises:
        ValueError: If it fails, returns no real scalar, or is NaN or infinite where the
            logits are finite (logits that are not, the metrics report by layer).
    """
    check_loss(loss, logits[0], targets[0], name)
    values = np.asarray(jax.jit(jax.vmap(loss))(logits, targets))
    finite = np.isfinite(np.asarray(logits).reshape(len(values), -1)).all(axis=1)
    if bad := int(np.sum(finite & ~np.isfinite(values))):
        raise ValueError(
            f"Loss {name!r} is NaN or infinite for {bad} of the first {len(values)} examples, "
            "where the logits are finite. Check it on the float network's logits."
        )
