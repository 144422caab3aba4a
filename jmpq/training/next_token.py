"""Loss and perplexity of a language model: every predicted token counts alike."""

import dataclasses
from typing import Any

import jax
import numpy as np
import scipy.special
from jaxtyping import PyTree

from jmpq.data.batches import batches
from jmpq.data.dataset import Split
from jmpq.data.positions import IGNORED
from jmpq.training.evaluate import Apply


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenScores:
    """Means over the predicted tokens.

    Attributes:
        texts: Number of windows or documents.
        tokens: Number of predicted tokens.
        loss: Mean cross entropy, nats per token.
        loss_sem: Standard error of `loss` over texts, whose tokens are not independent; NaN of
            a single text.
        perplexity: exp(loss).
    """

    texts: int
    tokens: int
    loss: float
    loss_sem: float
    perplexity: float

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def next_token_scores(
    apply: Apply, params: PyTree, split: Split, *, batch_size: int = 32
) -> TokenScores:
    """Loss and perplexity of ``apply(params, ·)`` on texts.

    Unlike the mean over examples of `jmpq.training.evaluate`, a long text counts for more than
    a short one.

    Args:
        apply: Pure function of parameters and token ids to logits ``[texts, length,
            vocabulary]``.
        params: Any pytree of arrays.
        split: Texts with the next token of every position as label, or `IGNORED`.
        batch_size: Texts per forward pass.

    Raises:
        ValueError: If logits are not finite, or labels do not fit them.
    """
    sums, counts, forward = [], [], jax.jit(apply)
    for batch in batches(split, min(batch_size, len(split))):
        out = np.asarray(forward(params, batch.inputs), np.float64)
        if not np.isfinite(out).all():
            raise ValueError("Some logits are NaN or infinite. Check the weights.")
        labels = batch.labels
        if out.shape[:-1] != labels.shape or labels.max() >= out.shape[-1]:
            raise ValueError(
                f"Logits of shape {list(out.shape)} for labels of shape {list(labels.shape)}, "
                f"the largest {labels.max()}: give a token of the vocabulary for each position."
            )
        own = np.take_along_axis(out, np.maximum(labels, 0)[..., None], axis=-1)[..., 0]
        losses = np.asarray(scipy.special.logsumexp(out, axis=-1)) - own
        counted = labels != IGNORED
        real = batch.weights > 0
        sums.append(np.where(counted, losses, 0).sum(axis=1)[real])
        counts.append(counted.sum(axis=1)[real])
    total, tokens = np.concatenate(sums), np.concatenate(counts)
    loss, texts = float(total.sum() / tokens.sum()), len(tokens)
    sem = float("nan")
    if texts > 1:  # of a ratio of sums over texts
        residuals = (total - loss * tokens) / tokens.mean()
        sem = float(residuals.std(ddof=1) / np.sqrt(texts))
    return TokenScores(
        texts=texts,
        tokens=int(tokens.sum()),
        loss=loss,
        loss_sem=sem,
        perplexity=float(np.exp(loss)),
    )
