import pytest

from jmpq.formats import choice_grid
from jmpq.problem import transformer_units
from jmpq.problem.rules import apply_rules

MATRICES = (
    "attention/self/query",
    "attention/output/dense",
    "intermediate/dense",
    "output/dense",
)


def names(heads=None):
    found = ["embeddings/word_embeddings"]
    for layer in (0, 1, 10):
        for matrix in MATRICES:
            kernels = [f"encoder/layer/{layer}/{matrix}"]
            if heads and "attention" in matrix:
                kernels = [f"{kernels[0]}/{head}" for head in range(heads)]
            found += kernels
    return found


def ties(unit, heads=None):
    rules = transformer_units(unit, split_heads=heads is not None)
    return apply_rules(rules, names(heads), choice_grid((2, 4))).ties


def test_an_encoder_layer_is_one_unit():
    assert ties("encoder_layer") == tuple(
        tuple(f"encoder/layer/{layer}/{matrix}" for matrix in MATRICES) for layer in (0, 1, 10)
    )
    assert [len(tie) for tie in ties("encoder_layer", heads=3)] == [8, 8, 8]


def test_a_matrix_is_one_unit_however_its_heads_are_kept():
    assert ties("matrix") == ()
    found = ties("matrix", heads=2)
    assert found[0] == tuple(f"encoder/layer/0/attention/self/query/{h}" for h in range(2))
    assert len(found) == 6


def test_a_head_is_one_unit_across_its_matrices():
    found = ties("head", heads=12)
    assert len(found) == 3 * 12
    assert found[1] == tuple(
        f"encoder/layer/0/attention/{m}/1" for m in ("self/query", "output/dense")
    )


def test_units_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="build the network with split_heads=True"):
        transformer_units("head")
    with pytest.raises(ValueError, match="choose one of encoder_layer, matrix, head"):
        transformer_units("group")
