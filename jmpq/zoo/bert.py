"""BERT encoders (Devlin et al. 2019) and their heads, in linen.

Parameter paths follow the published PyTorch weights: ``encoder/layer/0/output/dense/kernel`` is
their ``encoder.layer.0.output.dense.weight``. Every module takes inputs with any number of
leading axes, so that a pair of sentences stays one example, its batch axis first.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, get_args

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jmpq.kinds import check_kinds

Head = Literal["hidden", "pooled", "classification", "regression", "embedding", "similarity"]

# Token ids, mask (1, or 0 where there is padding) and token types, ``[*batch, length]`` each.
Tokens = Mapping[str, Int[Array, "*batch length"] | Int[np.ndarray, "*batch length"]]
Mask = Int[Array, "*batch length"] | Int[np.ndarray, "*batch length"]
ATTENTION = (
    "attention"  # collection of every layer's attention: apply(..., mutable=[ATTENTION])
)
TOKEN_KEYS = ("input_ids", "attention_mask", "token_type_ids")

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {
        "gelu": functools.partial(nn.gelu, approximate=False),
        "gelu_new": functools.partial(nn.gelu, approximate=True),
        "relu": nn.relu,
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Sizes of an encoder; BERT-base unless said otherwise.

    Attributes:
        vocab_size: Rows of the word embedding.
        hidden_size: Features of a token between the layers.
        num_layers: Encoder layers.
        num_heads: Attention heads; they share the hidden features evenly.
        intermediate_size: Features inside the feed-forward part of a layer.
        max_positions: Rows of the position embedding: tokens of the longest sentence.
        type_vocab_size: Rows of the token type embedding.
        activation: Function in the feed-forward part: ``gelu`` (exact), ``gelu_new`` (tanh)
            or ``relu``.
        layer_norm_eps: Added to the variance in layer normalisation.
        dropout: Rate in training.
        split_heads: Whether every attention head has query, key, value and output kernels of
            its own, so that it is a layer with bits of its own. The same function otherwise.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    type_vocab_size: int = 2
    activation: str = "gelu"
    layer_norm_eps: float = 1e-12
    dropout: float = 0.1
    split_heads: bool = False

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} does not divide into num_heads="
                f"{self.num_heads} heads. Choose a number of heads that divides it."
            )
        if self.activation not in ACTIVATIONS:
            known = ", ".join(map(repr, ACTIVATIONS))
            raise ValueError(f"activation={self.activation!r} is unknown: choose {known}.")

    @property
    def head_size(self) -> int:
        """Features of one attention head."""
        return self.hidden_size // self.num_heads


# What saved weights call the architectures; MiniLM-L6 is that of all-MiniLM-L6-v2, tiny and
# mini those of Turc et al. (2019), Well-read students learn better.
BERTS: Mapping[str, BertConfig] = MappingProxyType(
    {
        "bert_base": BertConfig(),
        "minilm_l6": BertConfig(hidden_size=384, num_layers=6, intermediate_size=1536),
        "bert_tiny": BertConfig(
            hidden_size=128, num_layers=2, num_heads=2, intermediate_size=512
        ),
        "bert_mini": BertConfig(
            hidden_size=256, num_layers=4, num_heads=4, intermediate_size=1024
        ),
    }
)


@check_kinds
class Bert(nn.Module):
    """Embeddings, encoder and one head, called with `Tokens`.

    Without `train` it is evaluation: deterministic. The batch axis of token ids, mask and types
    is first; the length is free up to `BertConfig.max_positions`, and what stands where the
    mask is 0 has no influence on any head but ``hidden`` there.

    Attributes:
        config: Sizes.
        head: Kind of result. ``hidden``: ``[*batch, length, hidden]``. ``pooled``: tanh of
            a dense layer on the first token, ``[*batch, hidden]``. ``classification``:
            logits ``[*batch, classes]`` from it; ``regression``: one number, ``[*batch, 1]``.
            ``embedding``: mean over the tokens, norm one, ``[*batch, hidden]``.
            ``similarity``: cosine of the embeddings of two sentences, ``[*batch, 1]``, the
            tokens being ``[*batch, 2, length]``.
        num_classes: Number of classes of ``classification``.
        dtype: Type of parameters and results.

    Raises:
        ValueError: If sentences are longer than the position embedding, or tokens lack a key.

    References:
        Devlin, Chang, Lee, Toutanova (2019), BERT; Reimers, Gurevych (2019), Sentence-BERT,
        for the embedding by the mean over tokens.
    """

    config: BertConfig
    head: str = "hidden"  # one of Head
    num_classes: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Tokens, *, train: bool = False) -> Float[Array, "..."]:
        _check_tokens(tokens, self.config, self.head)
        build = _Build(self.config, self.dtype, train)
        mask = tokens["attention_mask"]
        hidden = Embeddings(build, name="embeddings")(tokens)
        hidden = Encoder(build, name="encoder")(hidden, mask)
        match self.head:
            case "hidden":
                return hidden
            case "embedding":
                return mean_embedding(hidden, mask)
            case "similarity":
                embedded = mean_embedding(hidden, mask)
                return (embedded[..., 0, :] * embedded[..., 1, :]).sum(axis=-1, keepdims=True)
        pooled = jnp.tanh(
            Inner(build, self.config.hidden_size, name="pooler")(hidden[..., 0, :])
        )
        if self.head == "pooled":
            return pooled
        outputs = self.num_classes if self.head == "classification" else 1
        return build.dense(outputs, "classifier")(build.drop(pooled))


def mean_embedding(
    hidden: Float[Array, "*batch length hidden"], mask: Mask
) -> Float[Array, "*batch hidden"]:
    """Mean over the tokens where the mask is 1, scaled to norm one."""
    weights = mask.astype(hidden.dtype)[..., None]
    total = (hidden * weights).sum(axis=-2)  # the norm takes the number of tokens away
    norm = jnp.sqrt(jnp.square(total).sum(axis=-1, keepdims=True))
    return total / jnp.maximum(norm, jnp.finfo(hidden.dtype).tiny)


@dataclasses.dataclass(frozen=True)
class _Build:
    """Settings that all parts of one call share."""

    config: BertConfig
    dtype: Any
    train: bool

    def dense(self, features: int, name: str, *, bias: bool = True) -> nn.Dense:
        return nn.Dense(
            features,
            use_bias=bias,
            dtype=self.dtype,
            param_dtype=self.dtype,
            kernel_init=nn.initializers.truncated_normal(0.02),
            name=name,
        )

    def table(self, rows: int, name: str) -> nn.Embed:
        return nn.Embed(
            rows,
            self.config.hidden_size,
            dtype=self.dtype,
            param_dtype=self.dtype,
            embedding_init=nn.initializers.truncated_normal(0.02),
            name=name,
        )

    def norm(self) -> nn.LayerNorm:
        return nn.LayerNorm(
            epsilon=self.config.layer_norm_eps,
            use_fast_variance=False,
            dtype=self.dtype,
            param_dtype=self.dtype,
            name="LayerNorm",
        )

    def drop(self, x: Array) -> Array:
        return nn.Dropout(self.config.dropout, deterministic=not self.train)(x)

    def add_bias(self, module: nn.Module, x: Array) -> Array:
        bias = module.param("bias", nn.initializers.zeros_init(), x.shape[-1:], self.dtype)
        return x + bias


class Embeddings(nn.Module):
    """Word, position and token type of every token, added and normalised."""

    build: _Build

    @nn.compact
    def __call__(self, tokens: Tokens) -> Float[Array, "*batch length hidden"]:
        config, ids = self.build.config, tokens["input_ids"]
        # Looked up example by example, as the words are: a table read otherwise than by what
        # an example says is not a layer.
        positions = jnp.arange(ids.shape[-1], dtype=ids.dtype) + jnp.zeros((), ids.dtype) * ids
        total = (
            self.build.table(config.vocab_size, "word_embeddings")(ids)
            + self.build.table(config.type_vocab_size, "token_type_embeddings")(
                tokens["token_type_ids"]
            )
            + self.build.table(config.max_positions, "position_embeddings")(positions)
        )
        return self.build.drop(self.build.norm()(total))


class Encoder(nn.Module):
    """The encoder layers, named layer/0, layer/1, ..."""

    build: _Build

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch length hidden"], mask: Mask
    ) -> Float[Array, "*batch length hidden"]:
        return LayerStack(self.build, name="layer")(x, mask)


class LayerStack(nn.Module):
    """The encoder layers, named 0, 1, ..."""

    build: _Build

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch length hidden"], mask: Mask
    ) -> Float[Array, "*batch length hidden"]:
        for index in range(self.build.config.num_layers):
            x = EncoderLayer(self.build, name=str(index))(x, mask)
        return x


class EncoderLayer(nn.Module):
    """Attention, then two dense layers token by token; normalised after each residual."""

    build: _Build

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch length hidden"], mask: Mask
    ) -> Float[Array, "*batch length hidden"]:
        config = self.build.config
        x = Attention(self.build, name="attention")(x, mask)
        y = Inner(self.build, config.intermediate_size, name="intermediate")(x)
        return Residual(self.build, name="output")(ACTIVATIONS[config.activation](y), x)


class Attention(nn.Module):
    """Self-attention, its output layer and the residual around both."""

    build: _Build

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch length hidden"], mask: Mask
    ) -> Float[Array, "*batch length hidden"]:
        context = SelfAttention(self.build, name="self")(x, mask)
        return Residual(self.build, self.build.config.split_heads, name="output")(context, x)


class SelfAttention(nn.Module):
    """softmax(QKᵀ/√d)V in every head, padding left out; the heads' features in a row."""

    build: _Build

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch length hidden"], mask: Mask
    ) -> Float[Array, "*batch length hidden"]:
        config, heads = self.build.config, (self.build.config.num_heads, -1)

        def project(name: str) -> Float[Array, "*batch length heads features"]:
            if config.split_heads:
                y = ToHeads(self.build, name=name)(x)
            else:
                y = self.build.dense(config.hidden_size, name)(x)
            return y.reshape(*x.shape[:-1], *heads)

        query, key, value = (project(name) for name in ("query", "key", "value"))
        scale = jnp.sqrt(jnp.asarray(config.head_size, x.dtype))
        scores = jnp.einsum("...qhd,...khd->...hqk", query, key) / scale
        seen = mask[..., None, None, :] > 0
        scores = jnp.where(seen, scores, jnp.finfo(x.dtype).min)
        weights = nn.softmax(scores)
        if not self.is_initializing():
            self.sow(ATTENTION, "weights", weights)  # kept only where someone asks for it
        weights = self.build.drop(weights)
        return jnp.einsum("...hqk,...khd->...qhd", weights, value).reshape(x.shape)


class Inner(nn.Module):
    """A dense layer called "dense" inside a part of its own."""

    build: _Build
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        return self.build.dense(self.features, "dense")(x)


class Residual(nn.Module):
    """A dense layer, a residual around what came before, layer normalisation."""

    build: _Build
    from_heads: bool = False

    @nn.compact
    def __call__(
        self, y: Float[Array, "*batch length inner"], x: Float[Array, "*batch length hidden"]
    ) -> Float[Array, "*batch length hidden"]:
        if self.from_heads:
            y = FromHeads(self.build, name="dense")(y)
        else:
            y = self.build.dense(self.build.config.hidden_size, "dense")(y)
        return self.build.norm()(x + self.build.drop(y))


class ToHeads(nn.Module):
    """A dense layer whose heads have kernels of their own, named 0, 1, ...; one bias."""

    build: _Build

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch length hidden"]
    ) -> Float[Array, "*batch length hidden"]:
        config = self.build.config
        parts = [
            self.build.dense(config.head_size, str(h), bias=False)(x)
            for h in range(config.num_heads)
        ]
        return self.build.add_bias(self, jnp.concatenate(parts, axis=-1))


class FromHeads(nn.Module):
    """A dense layer whose heads' input features have kernels of their own; one bias."""

    build: _Build

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch length hidden"]
    ) -> Float[Array, "*batch length hidden"]:
        config = self.build.config
        heads = jnp.split(x, config.num_heads, axis=-1)
        parts = [
            self.build.dense(config.hidden_size, str(h), bias=False)(part)
            for h, part in enumerate(heads)
        ]
        return self.build.add_bias(self, sum(parts[1:], parts[0]))


def attention_weights(
    module: Bert, params: PyTree, tokens: Tokens
) -> list[Float[Array, "*batch heads length length"]]:
    """Attention weights of every token in every encoder layer, first layer first."""
    _, kept = module.apply({"params": params}, tokens, mutable=[ATTENTION])
    layers: Any = kept[ATTENTION]["encoder"]["layer"]
    names = map(str, range(module.config.num_layers))
    return [layers[name]["attention"]["self"]["weights"][0] for name in names]


def split_heads(params: Mapping[str, PyTree], config: BertConfig) -> dict[str, PyTree]:
    """Parameters for ``split_heads=True`` from those of the same network without it."""

    def split(layer: Mapping[str, PyTree], axis: int) -> dict[str, PyTree]:
        parts = jnp.split(layer["kernel"], config.num_heads, axis=axis)
        kernels = {str(h): {"kernel": part} for h, part in enumerate(parts)}
        return {**kernels, "bias": layer["bias"]}

    def of_layer(layer: Mapping[str, PyTree]) -> dict[str, PyTree]:
        attention = dict(layer["attention"])
        attention["self"] = {name: split(x, 1) for name, x in attention["self"].items()}
        output = attention["output"]
        attention["output"] = {**output, "dense": split(output["dense"], 0)}
        return {**layer, "attention": attention}

    layers = {name: of_layer(layer) for name, layer in params["encoder"]["layer"].items()}
    return {**params, "encoder": {"layer": layers}}


def read_config(path: pathlib.Path | str) -> BertConfig:
    """Sizes from a published ``config.json``, or from the folder it is in.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a BERT, or has parts that this BERT does not have.
    """
    path = pathlib.Path(path)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: give a folder with a BERT's config.json.")
    try:
        record = json.loads(path.read_text())
        if (kind := record.get("model_type", "bert")) != "bert":
            raise ValueError(f"model_type={kind!r}, expected 'bert'")
        if (kind := record.get("position_embedding_type", "absolute")) != "absolute":
            raise ValueError(f"position_embedding_type={kind!r}, expected 'absolute'")
        return BertConfig(
            vocab_size=record["vocab_size"],
            hidden_size=record["hidden_size"],
            num_layers=record["num_hidden_layers"],
            num_heads=record["num_attention_heads"],
            intermediate_size=record["intermediate_size"],
            max_positions=record["max_position_embeddings"],
            type_vocab_size=record["type_vocab_size"],
            activation=record.get("hidden_act", "gelu"),
            layer_norm_eps=record.get("layer_norm_eps", 1e-12),
            dropout=record.get("hidden_dropout_prob", 0.1),
        )
    except KeyError as error:
        raise ValueError(f"{path} is not a BERT configuration: it lacks {error}.") from error
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a configuration that this BERT can read: {error}."
        ) from error


def example_tokens(*shape: int) -> dict[str, Int[Array, "..."]]:
    """Tokens of the shape ``[*batch, length]`` without padding, to trace a network with."""
    fill = {"attention_mask": 1}
    return {key: jnp.full(shape, fill.get(key, 0), jnp.int32) for key in TOKEN_KEYS}


def _check_tokens(tokens: Tokens, config: BertConfig, head: str) -> None:
    if head not in get_args(Head):
        raise ValueError(
            f"head={head!r} is unknown: choose one of {', '.join(get_args(Head))}."
        )
    if missing := [key for key in TOKEN_KEYS if key not in tokens]:
        raise ValueError(
            f"Tokens lack {', '.join(missing)}: give {', '.join(TOKEN_KEYS)}, whole numbers "
            "[batch, length] each."
        )
    shape = tokens["input_ids"].shape
    if shape[-1] > config.max_positions:
        raise ValueError(
            f"Sentences of {shape[-1]} tokens, but the network has {config.max_positions} "
            "positions. Truncate them, as jmpq.data.text.tokens does."
        )
    if head == "similarity" and (len(shape) < 2 or shape[-2] != 2):
        raise ValueError(
            f"Tokens of the shape {shape}: the similarity of two sentences takes "
            "[batch, 2, length]."
        )
