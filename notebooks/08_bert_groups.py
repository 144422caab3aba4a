# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# # How many groups does a BERT need at low bits?
#
# Q-BERT gives every group of a weight matrix its own scale, and reports that accuracy at 2 and
# 3 bits depends on it. This notebook asks the same of a small BERT on a made-up task.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jmpq
from jmpq.zoo.bert import BertConfig

# %% [markdown]
# The task: 16 tokens, and the class is the most frequent of four topics. Every topic has eight
# words; the other words are noise.

# %%
random = np.random.default_rng(0)
TOPICS, WORDS, LENGTH = 4, 8, 16


def sentences(count):
    """Token inputs and labels."""
    label = random.integers(0, TOPICS, count)
    noise = random.integers(0, TOPICS * WORDS, (count, LENGTH))
    topical = label[:, None] * WORDS + random.integers(0, WORDS, (count, LENGTH))
    ids = 2 + np.where(random.random((count, LENGTH)) < 0.35, topical, noise)
    ids[:, 0] = 1  # the token that the classifier reads
    ids = jnp.asarray(ids, jnp.int32)
    tokens = {
        "input_ids": ids,
        "attention_mask": jnp.ones_like(ids),
        "token_type_ids": jnp.zeros_like(ids),
    }
    return tokens, jnp.asarray(label)


config = BertConfig(
    vocab_size=2 + TOPICS * WORDS, hidden_size=64, num_layers=2, num_heads=4,
    intermediate_size=128, max_positions=LENGTH, dropout=0.0,
)  # fmt: skip
module = jmpq.Bert(config, head="classification", num_classes=TOPICS)
tokens, labels = sentences(2048)
variables = module.init(jax.random.key(0), tokens)
optimizer = optax.adam(2e-3)


def loss(variables, tokens, labels):
    logits = module.apply(variables, tokens)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@jax.jit
def train(variables):
    """Eight epochs of Adam."""

    def step(carry, at):
        variables, state = carry
        batch = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, at, 128), tokens)
        own = jax.lax.dynamic_slice_in_dim(labels, at, 128)
        updates, state = optimizer.update(jax.grad(loss)(variables, batch, own), state)
        return (optax.apply_updates(variables, updates), state), None

    starts = jnp.tile(jnp.arange(0, 2048, 128), 8)
    (variables, _), _ = jax.lax.scan(step, (variables, optimizer.init(variables)), starts)
    return variables


variables = train(variables)
test = sentences(512)
network = jmpq.Network.from_linen(module, variables, jax.tree.map(lambda x: x[:2], tokens))
print(network)

# %% [markdown]
# Weights of the encoder at 2 to 4 bits, with 1 to 32 groups per matrix. A group is a set of
# input features, as in Q-BERT's code. Embeddings, pooler and classifier stay unquantized.

# %%
groups, bits = [1, 2, 4, 8, 16, 32], [2, 3, 4]
encoder = [layer.name for layer in network.layers if layer.name.startswith("encoder")]
kl = np.zeros((len(bits), len(groups)))
top1 = np.zeros_like(kl)
for j, count in enumerate(groups):
    spec = jmpq.KernelSpec(granularity="group", group_count=count, along="columns")
    quantizers = jmpq.calibrate_quantizers(network, bits, weights=spec)
    evaluate = jmpq.Evaluator(network, quantizers, [test])
    outcomes = evaluate(
        [jmpq.Allocation({name: jmpq.Choice(b) for name in encoder}) for b in bits]
    )
    kl[:, j] = [outcome.kl for outcome in outcomes]
    top1[:, j] = [outcome.top1 for outcome in outcomes]

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
for i, b in enumerate(bits):
    left.semilogy(groups, kl[i], "o-", label=f"{b} bits")
    right.plot(groups, 100 * top1[i], "o-", label=f"{b} bits")
left.set(xlabel="groups per matrix", ylabel="measured KL (nats per example)")
right.set(xlabel="groups per matrix", ylabel="top-1 (%)")
left.set_xscale("log", base=2)
right.set_xscale("log", base=2)
left.legend(loc="lower left")
figure.tight_layout()
figure
