"""BERT written out in NumPy from the published names, and random tensors of a small one."""

import math

import numpy as np

from jmpq.zoo.bert import BertConfig

TINY = BertConfig(
    vocab_size=30,
    hidden_size=8,
    num_layers=2,
    num_heads=2,
    intermediate_size=12,
    max_positions=10,
)


def published(seed: int = 0, config: BertConfig = TINY) -> dict[str, np.ndarray]:
    """Tensors of a BERT with pooler as a published file has them."""
    h, f = config.hidden_size, config.intermediate_size
    shapes = {
        "embeddings.word_embeddings": (config.vocab_size, h),
        "embeddings.position_embeddings": (config.max_positions, h),
        "embeddings.token_type_embeddings": (config.type_vocab_size, h),
        "embeddings.LayerNorm": (h,),
        "pooler.dense": (h, h),
    }
    for i in range(config.num_layers):
        layer = f"encoder.layer.{i}"
        for name in ("query", "key", "value"):
            shapes[f"{layer}.attention.self.{name}"] = (h, h)
        shapes[f"{layer}.attention.output.dense"] = (h, h)
        shapes[f"{layer}.attention.output.LayerNorm"] = (h,)
        shapes[f"{layer}.intermediate.dense"] = (f, h)
        shapes[f"{layer}.output.dense"] = (h, f)
        shapes[f"{layer}.output.LayerNorm"] = (h,)
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        center = 1.0 if name.endswith("LayerNorm") else 0.0
        tensors[f"{name}.weight"] = center + rng.normal(0, 0.4, shape)
        if not name.endswith("_embeddings"):
            tensors[f"{name}.bias"] = rng.normal(0, 0.2, shape[:1])
    return {name: x.astype(np.float32) for name, x in tensors.items()}


def tokens(seed: int = 0, sentences: int = 3, length: int = 7, config: BertConfig = TINY):
    """Random tokens of random lengths, padded."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, length + 1, sentences)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    ids = rng.integers(1, config.vocab_size, (sentences, length)).astype(np.int32)
    types = (np.arange(length) >= lengths[:, None] // 2).astype(np.int32)
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "token_type_ids": types * mask,
    }


def hidden_states(tensors, tokens, config: BertConfig = TINY):
    """Hidden states of every sentence by itself, without its padding, float64."""
    t = {name: x.astype(np.float64) for name, x in tensors.items()}
    erf = np.vectorize(math.erf)

    def dense(x, name):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.layer_norm_eps)
        return x * t[f"{name}.LayerNorm.weight"] + t[f"{name}.LayerNorm.bias"]

    states = []
    for row in range(len(tokens["input_ids"])):
        count = tokens["attention_mask"][row].sum()
        types = tokens["token_type_ids"][row, :count]
        x = (
            t["embeddings.word_embeddings.weight"][tokens["input_ids"][row, :count]]
            + t["embeddings.position_embeddings.weight"][:count]
            + t["embeddings.token_type_embeddings.weight"][types]
        )
        x = norm(x, "embeddings")
        for i in range(config.num_layers):
            layer = f"encoder.layer.{i}"
            q, k, v = (
                dense(x, f"{layer}.attention.self.{n}") for n in ("query", "key", "value")
            )
            context = np.zeros_like(x)
            size = config.hidden_size // config.num_heads
            for h in range(config.num_heads):
                at = slice(h * size, (h + 1) * size)
                scores = np.exp(q[:, at] @ k[:, at].T / math.sqrt(size))
                context[:, at] = scores / scores.sum(-1, keepdims=True) @ v[:, at]
            x = norm(
                x + dense(context, f"{layer}.attention.output.dense"),
                f"{layer}.attention.output",
            )
            y = dense(x, f"{layer}.intermediate.dense")
            y = 0.5 * y * (1 + erf(y / math.sqrt(2)))
            x = norm(x + dense(y, f"{layer}.output.dense"), f"{layer}.output")
        states.append(x)
    return states
