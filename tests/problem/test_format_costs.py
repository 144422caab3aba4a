"""Costs, rules and budgets of formats: by hand, and more candidates are never worse."""

import dataclasses
import itertools

import numpy as np
import pytest

from jmpq.allocation import Allocation
from jmpq.formats import Choice, Scheme, choice_grid
from jmpq.problem import COSTS, Infeasible, Overhead, Pin, build_problem, with_budgets
from jmpq.problem.budgets import limit_of, parse_budget
from jmpq.problem.costs import OF_CACHE, allocation_costs, product_bit_operations
from jmpq.problem.rules import Allow, apply_rules, first_and_last, parse_rule
from jmpq.quantizers.spec import KernelSpec
from jmpq.solvers.automatic import Exact
from tests.problem.tables import Losses, dense, embedding, losses_of

LAYER = dense("a", 75, 6)  # 450 weights: 6 rows of 75
PLAIN = Overhead((6,))


def cost(name, choice, overhead=PLAIN, layer=LAYER):
    return COSTS[name].table([layer], (choice,), overhead).item()


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("int4", 225 + 4 * 6),
        ("int4_g64", 225 + 4 * 6 * 2),  # 64 + 11 of 75
        ("fp8_e4m3", 450 + 4 * 6),
        ("fp8_e4m3_g128", 450 + 4 * 6),
        ("fp6_e2m3", 338 + 4 * 6),  # ceil(337.5)
        ("mxfp4", 225 + 6 * 3),  # 32 + 32 + 11
        ("mxfp6_e3m2", 338 + 6 * 3),
        ("mxint8", 450 + 6 * 3),
        ("nvfp4", 225 + 6 * 5 + 4),  # 4 of 16 and 11, and the tensor's scale
        ("bf16", 900),
        ("none", 1800),
    ],
)
def test_size_counts_codes_scales_and_the_scale_of_the_tensor(name, want):
    assert cost("size_bytes", Choice(name)) == want
    assert cost("average_bits", Choice(name)) == pytest.approx(8 * want / 450)


def test_only_integers_have_zero_points():
    affine = Overhead((6,), zero_points=True)
    for name, zeros in [("int4", 3), ("int4_g64", 6), ("mxfp4", 0), ("fp8_e4m3", 0)]:
        plain = cost("size_bytes", Choice(name))
        assert cost("size_bytes", Choice(name), affine) == plain + zeros


def test_effective_bits_of_wide_layers_are_those_of_the_definitions():
    layer = dense("a", 4096, 64)
    want = {"mxfp4": 4 + 8 / 32, "nvfp4": 4 + 8 / 16 + 32 / layer.parameters, "mxint8": 8.25}
    for name, bits in want.items():
        assert cost("average_bits", Choice(name), layer=layer) == bits


def test_bit_operations_are_products_of_significands_and_of_integer_bits():
    by_hand = {
        ("int4", "int8"): 32,
        ("int4_g64", "mxint8"): 32,
        ("fp4_e2m1", "fp4_e2m1"): 3 * 3 + 2,
        ("mxfp4", "mxfp8_e4m3"): 3 * 5 + 4,
        ("nvfp4", "int8"): 3 * 8,
        ("bf16", "f16"): 9 * 12 + 8,
        ("int4", "none"): 4 * 32,
    }
    for (w, a), want in by_hand.items():
        assert product_bit_operations(Scheme.of(w), Scheme.of(a)) == want
        assert cost("bops", Choice(w, a)) == LAYER.macs * want
    assert cost("bops", Choice("mxfp4", "mxfp4"), Overhead((1,)), embedding("e", 9, 8)) == 0


def test_activation_bytes_count_the_scales_that_blocks_bring():
    held = {"int8": 75 + 6, "mxfp8_e4m3": 75 + 3 + 6 + 1, "nvfp4": 38 + 5 + 3 + 1, "f16": 162}
    for name, want in held.items():
        assert cost("activation_bytes", Choice(4, name)) == want


def test_rules_and_budgets_take_names():
    choices = choice_grid(["int4", "mxfp4", "nvfp4"], ["int8", "mxfp8_e4m3"])
    ruling = apply_rules(
        [
            parse_rule("pin a=Wmxfp4Amxfp8_e4m3"),
            parse_rule("allow b=nvfp4,W4A8"),
            parse_rule("allow c=Amxfp8_e4m3"),
        ],
        ["a", "b", "c"],
        choices,
    )
    kept = [
        {str(c) for c, ok in zip(choices, row, strict=True) if ok} for row in ruling.allowed
    ]
    assert kept == [
        {"Wmxfp4Amxfp8_e4m3"},
        {"Wnvfp4A8", "Wnvfp4Amxfp8_e4m3", "W4A8"},
        {"W4Amxfp8_e4m3", "Wmxfp4Amxfp8_e4m3", "Wnvfp4Amxfp8_e4m3"},
    ]
    for rule in ("pin a=Wmxfp4Amxfp8_e4m3", "allow b=nvfp4,W4A8"):
        assert str(parse_rule(rule)) == rule
    with pytest.raises(ValueError, match=r"'Wmxfp5' names no candidates.*Did you mean 'mxfp"):
        Allow("a", ("Wmxfp5",))
    with pytest.raises(ValueError, match=r"not a choice of formats: 'nvfp5' is not .*'nvfp4'"):
        Pin("a", Choice.parse("Wnvfp5A8"))
    budget = parse_budget("size_bytes=Wmxfp4A8")
    assert (budget.kind, budget.choice) == ("uniform", Choice("mxfp4", "int8"))
    assert parse_budget("average_bits=nvfp4").choice == Choice("nvfp4")


@pytest.mark.parametrize("name", ["int4", "int4_g2", "fp4_e2m1", "mxfp4", "nvfp4"])
def test_uniform_is_the_format_itself_among_others_of_as_many_bits(name):
    choices = choice_grid(["int3", "int4", "int4_g2", "fp4_e2m1", "mxfp4", "nvfp4", "int8"])
    layers = [dense("a", 8, 2), dense("b", 8, 4)]
    losses = losses_of(choices, ["a", "b"])
    problem = build_problem(layers, losses, overhead=KernelSpec())
    found = problem.allocation(problem.uniform(Choice(name)))
    assert set(found.values()) == {Choice(name)}


def test_the_first_and_last_layer_take_the_candidate_of_so_many_bits():
    floats = choice_grid(["mxfp4", "fp8_e4m3", "mxint8"], ["fp8_e5m2"])
    pins = [str(rule) for rule in first_and_last(["a", "b"], floats)]
    assert pins == ["pin a=Wfp8_e4m3Afp8_e5m2", "pin b=Wfp8_e4m3Afp8_e5m2"]
    both = choice_grid(["fp8_e4m3", "int8"])
    assert [str(rule) for rule in first_and_last(["a"], both)] == ["pin a=W8"]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_more_candidates_never_raise_the_optimum(seed):
    layers = [dense(name, 64, 32) for name in "abcd"]
    every = choice_grid(["int2", "int3", "int4", "int4_g16", "mxfp4", "nvfp4", "fp6_e2m3"])
    rng = np.random.default_rng(seed)

    bits = np.array([c.w_bits for c in every])
    table = Losses(tuple("abcd"), every, rng.exponential(size=(4, len(every))) * 2.0**-bits)
    order, found = rng.permutation(len(every)), []
    for count in range(1, len(every) + 1):
        kept = tuple(every[i] for i in sorted({0, *order[:count].tolist()}))
        problem = build_problem(
            layers, table, overhead=KernelSpec(), choices=kept, budgets=["average_bits=5"]
        )
        found.append(Exact()(problem).loss)
        assert limit_of(parse_budget("average_bits=W2"), problem) < 5
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(found))


def peaked(budgets, **others):
    layers = [dense("a", 64, 32), dense("b", 256, 16), dense("c", 32, 8)]
    choices = choice_grid([2, 8], ["int4", "int8", "mxfp8_e4m3"])

    table = losses_of(choices, "abc")
    return layers, build_problem(
        layers, table, overhead=KernelSpec(), budgets=budgets, **others
    )


def test_a_budget_on_a_peak_allows_or_forbids_every_choice_by_itself():
    layers, problem = peaked(["activation_bytes=200", "average_bits=7"])
    table = COSTS["activation_bytes"].table(layers, problem.choices, Overhead((0,) * 3))
    np.testing.assert_array_equal(problem.allowed, table <= 200)
    assert problem.range("activation_bytes") == (136.0, table.max())  # 272 codes of 4 bits
    assert set(problem.budgets) == {"average_bits"}
    best = Exact()(problem)
    assert best.costs["activation_bytes"] <= 200 < table.max()
    assert best.allocation["b"].activations.name == "int4"
    assert best.allocation["a"].activations.bits == 8
    free = with_budgets(problem, ["average_bits=7"])
    assert free.allowed.all()
    assert Exact()(free).loss < best.loss
    for limit in (np.nan, np.inf):
        with pytest.raises(ValueError, match=f"activation_bytes={limit}: give a number"):
            with_budgets(problem, {"activation_bytes": float(limit)})


def test_budgets_on_peaks_are_read_as_all_others_are():
    for asked, want in [("W2A4", 136.0), ("0.5x", 544.0), ("0%", 136.0), ("0.15kB", 150.0)]:
        _, problem = peaked([f"activation_bytes={asked}"])
        assert problem.limits == {"activation_bytes": want}
    with pytest.raises(
        Infeasible, match=r"activation_bytes=100 cannot be met: layer 'b' needs 136"
    ):
        peaked(["activation_bytes=100"])
    rules = [parse_rule("exclude b")]
    with pytest.raises(Infeasible, match=r"activation_bytes=136 cannot be met: .* needs 1088"):
        peaked(["activation_bytes=136"], rules=rules)


def rows_of_keys():
    """A dense layer, and keys and values of 6 positions, 2 heads of 20 features."""
    kept = dataclasses.replace(
        LAYER, name="k:keys", kind="cache", kernel="", kernel_shape=(1,), output_axes=(0,),
        input_axes=(), parameters=0, macs=1440, input_shape=(6, 2, 20), output_shape=(2, 6, 6),
    )  # fmt: skip
    return LAYER, kept, dataclasses.replace(kept, name="v:values")


@pytest.mark.parametrize(
    ("name", "want"),
    [("int3", 15), ("int4", 20), ("mxfp4", 20 + 2), ("nvfp4", 20 + 3), ("none", 160)],
)
def test_bytes_of_a_token_count_its_features_and_blocks(name, want):
    """40 features: 32 + 8 of mx, 16 + 16 + 8 of nvfp4; calibrated scales are not a token's."""
    layers = rows_of_keys()
    choices = [Choice("none", name), Choice(4)]
    table = OF_CACHE["kv_bytes"].table(layers, choices[:1], Overhead.of(layers, KernelSpec()))
    np.testing.assert_array_equal(table[:, 0], [0, want, want])
    found = allocation_costs(
        layers, Allocation({"a": choices[1], "k:keys": choices[0]}), Overhead((6, 0, 0))
    )
    assert found["kv_bytes"] == want + 160  # the values stay float
    assert found["size_bytes"] == 225 + 4 * 6
    assert found["average_bits"] == pytest.approx(8 * 249 / 450)


def test_kernels_take_bits_of_weights_and_keys_take_none():
    layers = rows_of_keys()
    choices = (*choice_grid([2, 4], [8, 32]), Choice(32, 4), Choice(32, 8))
    losses = losses_of(choices, [layer.name for layer in layers])
    problem = build_problem(layers, losses, overhead=KernelSpec())
    allowed = [
        {c.label for c, ok in zip(choices, row, strict=True) if ok} for row in problem.allowed
    ]
    assert allowed == [{"W2A8", "W2", "W4A8", "W4"}, *[{"W32A4", "W32A8"}] * 2]
    for choice, want in (
        (Choice(4, 8), ("W4A8", "W32A8", "W32A8")),
        (Choice(2), ("W2", "W32A8", "W32A8")),
        (Choice(32, 4), ("W2A8", "W32A4", "W32A4")),
    ):
        made = problem.allocation(problem.uniform(choice))
        assert tuple(str(c) for c in made.values()) == want, choice
    both = with_budgets(problem, {"kv_bytes": 60.0, "size_bytes": 200.0})
    solution = Exact()(both)
    assert sorted(str(solution.allocation[n]) for n in ("k:keys", "v:values")) == [
        "W32A4",
        "W32A8",
    ]
    assert solution.allocation["a"].w_bits == 2
    weights_only = (*choice_grid([2, 4]), Choice(32, 4))
    assert [str(r) for r in first_and_last(["a"], weights_only, bits=4)] == ["pin a=W4"]
    assert "kv_bytes" not in build_problem([LAYER], losses, overhead=KernelSpec()).costs
