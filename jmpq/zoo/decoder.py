"""Decoders of the Llama type (Touvron et al. 2023), in linen.

Parameter paths follow Hugging Face's weights without their prefix ``model.``:
``layers/0/self_attn/q_proj/kernel`` is ``model.layers.0.self_attn.q_proj.weight``.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

TIED = ("embed_tokens/embedding",)  # the kernel that two layers share where `tied`
# Fields of a published configuration that change what a Llama computes, and their only value.
FIXED = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "rope_scaling": (None,),
    "attention_bias": (False,),
    "mlp_bias": (False,),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes of a decoder.

    Attributes:
        vocab_size: Rows of the embedding, and logits of every position.
        hidden_size: Features of a token between the layers.
        num_layers: Decoder layers.
        num_heads: Heads of the queries.
        num_key_value_heads: Heads of keys and values; each serves
            ``num_heads / num_key_value_heads`` neighbouring heads of queries.
        head_size: Features of a head, an even number.
        intermediate_size: Features inside the feed-forward part of a layer.
        max_positions: Tokens of the longest text.
        rope_theta: Base of the rotary angles.
        norm_eps: Added to the mean square in normalisation.
        tied: Whether the embedding is the kernel of the logits too.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    head_size: int
    intermediate_size: int
    max_positions: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tied: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "tied" and not value > 0:
                raise ValueError(f"{field.name}={value}: expected a positive number.")
        if self.num_heads % self.num_key_value_heads or self.head_size % 2:
            raise ValueError(
                f"num_heads={self.num_heads}, num_key_value_heads={self.num_key_value_heads}, "
                f"head_size={self.head_size}: expected heads that divide evenly among those of "
                "keys and values, and an even size."
            )


DECODERS: Mapping[str, DecoderConfig] = MappingProxyType(
    {
        # A. Karpathy (2023), llama2.c, trained on TinyStories
        "stories260k": DecoderConfig(
            vocab_size=512,
            hidden_size=64,
            num_layers=5,
            num_heads=8,
            num_key_value_heads=4,
            head_size=8,
            intermediate_size=172,
            max_positions=512,
            tied=True,
        ),
    }
)


class Decoder(nn.Module):
    """Embedding, decoder layers, logits of the next token at every position.

    Called with token ids ``[batch, length]``. A position sees itself and what is before it:
    what stands behind the end of a shorter text has no influence on it.

    Attributes:
        config: Sizes.
        dtype: Type of parameters and results.

    Raises:
        ValueError: If a text is longer than `DecoderConfig.max_positions`, or the inputs are
            not token ids.

    References:
        Touvron et al. (2023), LLaMA; Su et al. (2021), RoFormer (rotary positions, here the
        half-split order of Hugging Face); Shazeer (2020), GLU variants; Ainslie et al. (2023),
        grouped-query attention.
    """

    config: DecoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, ids: Shaped[Array | np.ndarray, "..."], *, train: bool = False
    ) -> Float[Array, "batch length vocabulary"]:
        config = self.config
        _check_ids(ids, config)
        embedding = nn.Embed(
            config.vocab_size,
            config.hidden_size,
            dtype=self.dtype,
            param_dtype=self.dtype,
            embedding_init=nn.initializers.normal(0.02),
            name="embed_tokens",
        )
        x = Layers(config, self.dtype, name="layers")(embedding(ids))
        x = _norm(config, self.dtype, "norm")(x)
        if config.tied:
            return embedding.attend(x)
        return _dense(config.vocab_size, self.dtype, "lm_head")(x)


class Layers(nn.Module):
    """The decoder layers, named 0, 1, ..."""

    config: DecoderConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length hidden"]
    ) -> Float[Array, "batch length hidden"]:
        turns = rotary_turns(x.shape[1], self.config)
        for index in range(self.config.num_layers):
            x = DecoderLayer(self.config, self.dtype, name=str(index))(x, turns)
        return x


class DecoderLayer(nn.Module):
    """Attention, then the feed-forward part; each normalises its input and adds its output."""

    config: DecoderConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length hidden"], turns: Float[np.ndarray, "2 length half"]
    ) -> Float[Array, "batch length hidden"]:
        y = _norm(self.config, self.dtype, "input_layernorm")(x)
        x = x + SelfAttention(self.config, self.dtype, name="self_attn")(y, turns)
        y = _norm(self.config, self.dtype, "post_attention_layernorm")(x)
        return x + GatedUnit(self.config, self.dtype, name="mlp")(y)


class SelfAttention(nn.Module):
    """softmax(QKᵀ/√d)V over what is not later, the heads' features in a row."""

    config: DecoderConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length hidden"], turns: Float[np.ndarray, "2 length half"]
    ) -> Float[Array, "batch length hidden"]:
        config = self.config
        groups = config.num_key_value_heads

        def project(name: str, heads: int) -> Float[Array, "batch length heads features"]:
            y = _dense(heads * config.head_size, self.dtype, name)(x)
            return y.reshape(*x.shape[:-1], heads, config.head_size)

        query = rotated(project("q_proj", config.num_heads), turns)
        key = rotated(project("k_proj", groups), turns)
        value = project("v_proj", groups)
        query = query.reshape(*x.shape[:-1], groups, -1, config.head_size)
        scores = jnp.einsum("bqghd,bkgd->bghqk", query, key) / np.asarray(
            np.sqrt(config.head_size), x.dtype
        )
        seen = np.tri(x.shape[1], dtype=bool)
        scores = jnp.where(seen, scores, jnp.finfo(x.dtype).min)
        context = jnp.einsum("bghqk,bkgd->bqghd", nn.softmax(scores), value)
        context = context.reshape(*x.shape[:-1], config.num_heads * config.head_size)
        return _dense(config.hidden_size, self.dtype, "o_proj")(context)


class GatedUnit(nn.Module):
    """SwiGLU: silu(gate) · up, brought back to the hidden size."""

    config: DecoderConfig
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length hidden"]
    ) -> Float[Array, "batch length hidden"]:
        inner = self.config.intermediate_size
        gate = _dense(inner, self.dtype, "gate_proj")(x)
        up = _dense(inner, self.dtype, "up_proj")(x)
        return _dense(self.config.hidden_size, self.dtype, "down_proj")(nn.silu(gate) * up)


def rotary_turns(length: int, config: DecoderConfig) -> Float[np.ndarray, "2 length half"]:
    """Cosine and sine of the rotary angles: position · theta^(−2j/d) for j < d/2."""
    half = config.head_size // 2
    rates = config.rope_theta ** (-np.arange(half) / half)
    angles = np.arange(length)[:, None] * rates
    return np.stack([np.cos(angles), np.sin(angles)])


def rotated(
    x: Float[Array, "batch length heads features"], turns: Float[np.ndarray, "2 length half"]
) -> Float[Array, "batch length heads features"]:
    """Features j and j + d/2 of every head turned by the angle j of the position."""
    cos, sin = turns[:, None, :, None, :].astype(x.dtype)
    one, two = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([one * cos - two * sin, two * cos + one * sin], axis=-1)


def read_decoder_config(path: pathlib.Path | str) -> DecoderConfig:
    """Sizes from a published ``config.json`` of a Llama, or from the folder it is in.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is of another type, or has parts that this decoder does not have.
    """
    path = pathlib.Path(path)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {path}: give a folder with a Llama's config.json."
        )
    try:
        record = json.loads(path.read_text())
        for field, known in FIXED.items():
            if (value := record.get(field, known[0])) not in known:
                raise ValueError(f"{field}={value!r}, expected {known[0]!r}")
        rotary = record.get("rope_parameters") or record  # since transformers 5
        if (kind := rotary.get("rope_type", "default")) != "default":
            raise ValueError(f"rope_type={kind!r}, expected 'default'")
        heads = record["num_attention_heads"]
        return DecoderConfig(
            vocab_size=record["vocab_size"],
            hidden_size=record["hidden_size"],
            num_layers=record["num_hidden_layers"],
            num_heads=heads,
            num_key_value_heads=record.get("num_key_value_heads") or heads,
            head_size=record.get("head_dim") or record["hidden_size"] // heads,
            intermediate_size=record["intermediate_size"],
            max_positions=record["max_position_embeddings"],
            rope_theta=rotary.get("rope_theta", 10_000.0),
            norm_eps=record.get("rms_norm_eps", 1e-6),
            tied=record.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise ValueError(f"{path} is not a Llama's configuration: it lacks {error}.") from error
    except (ValueError, TypeError, AttributeError) as error:
        reason = str(error).rstrip(".")
        raise ValueError(
            f"{path} is not a configuration that this decoder can read: {reason}."
        ) from error


def example_ids(batch: int = 1, length: int = 2) -> Int[Array, "batch length"]:
    """Token ids to trace a decoder with."""
    return jnp.zeros((batch, length), jnp.int32)


def _dense(features: int, dtype: Any, name: str) -> nn.Dense:
    return nn.Dense(
        features,
        use_bias=False,
        dtype=dtype,
        param_dtype=dtype,
        kernel_init=nn.initializers.normal(0.02),
        name=name,
    )


def _norm(config: DecoderConfig, dtype: Any, name: str) -> nn.RMSNorm:
    return nn.RMSNorm(config.norm_eps, dtype=dtype, param_dtype=dtype, name=name)


def _check_ids(ids: Any, config: DecoderConfig) -> None:
    if getattr(ids, "ndim", None) != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
        what = f"{ids.dtype}{list(ids.shape)}" if hasattr(ids, "shape") else type(ids).__name__
        raise ValueError(f"A decoder takes token ids, integers [batch, length]; got {what}.")
    if ids.shape[1] > config.max_positions:
        raise ValueError(
            f"Texts of {ids.shape[1]} tokens, but the network has {config.max_positions} "
            "positions. Cut them into shorter windows."
        )
