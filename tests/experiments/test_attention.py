import jax
import numpy as np
import pytest

from experiments.bert.attention import attention_divergence
from jmpq.zoo.bert import Bert, attention_weights
from tests.zoo.bert_reference import TINY, tokens


@pytest.mark.slow
def test_divergence_is_the_mean_over_tokens_heads_and_sentences():
    module, batch = Bert(TINY, "embedding"), tokens(4)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        first, second = (module.init(jax.random.key(seed), batch)["params"] for seed in (0, 1))
        first, second = (jax.tree.map(lambda x: 3 * x, p) for p in (first, second))
        got = np.asarray(attention_divergence(module, first, second, batch))
        same = np.asarray(attention_divergence(module, first, first, batch))
        pairs = [
            np.asarray(x, np.float64)
            for p in (first, second)
            for x in attention_weights(module, p, batch)
        ]
    count = TINY.num_layers
    counts = batch["attention_mask"].sum(axis=1)
    for layer in range(count):
        terms = []
        for row, length in enumerate(counts):
            p, q = (x[row, :, :length] for x in (pairs[layer], pairs[count + layer]))
            np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-6)
            assert not p[..., length:].any()  # padding is not attended to
            p, q = p[..., :length], q[..., :length]
            terms.append((p * np.log(p / q)).sum(axis=-1).ravel())
        want = np.concatenate(terms).mean()
        assert want > 1e-3
        np.testing.assert_allclose(got[layer], want, rtol=1e-4)
    np.testing.assert_array_equal(same, 0)
