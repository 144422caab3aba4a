import numpy as np
import pytest

from jmpq.allocation import Allocation
from jmpq.formats import Choice, choice_grid
from jmpq.problem import COSTS, Overhead, additive_cost, allocation_costs
from jmpq.quantizers.spec import KernelSpec
from tests.problem.tables import GRID, LAYERS, NAMES, conv, embedding, reference_costs

PLAIN = Overhead((0,) * 5)


def table(name, layers, choices, overhead=None):
    overhead = overhead or Overhead((0,) * len(layers))
    return COSTS[name].table(layers, choices, overhead)


@pytest.mark.parametrize("text", ["W4A8", "W4", "w4a32", "W16A1", "W32"])
def test_labels_are_read_and_written(text):
    choice = Choice.parse(text)
    assert Choice.parse(choice.label) == choice
    assert str(choice) == choice.label


@pytest.mark.parametrize("text", ["", "4", "W4 A8", "A8", "W4A", "int17"])
def test_a_wrong_label_is_refused(text):
    with pytest.raises(ValueError, match="is not a choice of bits"):
        Choice.parse(text)


@pytest.mark.parametrize("bits", [0, 17, 31, 33, -1])
def test_impossible_bits_are_refused(bits):
    with pytest.raises(ValueError, match=r"w_bits=.* is not a bit-width"):
        Choice(bits)
    with pytest.raises(ValueError, match=r"a_bits=.* is not a bit-width"):
        Choice(4, bits)


def test_grid_is_sorted_without_repeats():
    got = [c.label for c in choice_grid([8, 2, 8], [32, 4])]
    assert got == ["W2A4", "W2", "W8A4", "W8"]
    with pytest.raises(ValueError, match="No candidate bits"):
        choice_grid([], [8])


def test_size_counts_codes_scales_and_zero_points():
    choices = (Choice(3), Choice(4, 8), Choice(32))
    channel = Overhead.of(LAYERS, KernelSpec(grid="affine"))
    got = table("size_bytes", LAYERS, choices, channel)
    # stem/conv: ceil(108*3/8)=41 + 4 scales*4 + ceil(4*3/8)=2; 54 + 16 + 2; 432
    np.testing.assert_array_equal(got[0], [59, 72, 432])
    # head: ceil(15*3/8)=6 + 12 + ceil(9/8)=2; ceil(7.5)=8 + 12 + ceil(1.5)=2; 60
    np.testing.assert_array_equal(got[4], [20, 22, 60])
    one = Overhead.of(LAYERS, KernelSpec(granularity="tensor"))
    assert table("size_bytes", LAYERS, choices, one)[4, 0] == 6 + 4


def test_number_of_scales_of_groups():
    layer = conv("c", 6, 10)  # matrix [10, 54]

    def scales(**options):
        spec = KernelSpec(granularity="group", **options)
        return Overhead.of([layer], spec).num_scales[0]

    assert scales(along="output", group_size=5) == 2
    assert scales(along="output", group_count=5) == 5
    assert scales(along="input", group_size=27) == 20
    assert scales(along="input", group_count=3) == 30
    with pytest.raises(ValueError, match="'c': 4 groups do not divide its 10 output"):
        scales(along="output", group_count=4)


def test_bops_count_conv_and_dense_but_no_embedding():
    got = table("bops", (*LAYERS, embedding("words", 10, 4)), (Choice(2, 4), Choice(8)))
    np.testing.assert_array_equal(got[0], [1728 * 8, 1728 * 256])
    np.testing.assert_array_equal(got[4], [15 * 8, 15 * 256])
    np.testing.assert_array_equal(got[5], [0, 0])


def test_activation_bytes_are_input_and_output_at_their_bits():
    layers = (LAYERS[0], embedding("words", 10, 4))
    got = table("activation_bytes", layers, (Choice(2, 4), Choice(8)))
    np.testing.assert_array_equal(got, [[24 + 32, 192 + 256], [28 + 14, 28 + 112]])


def test_average_bits_is_all_stored_bits_over_all_weights():
    overhead = Overhead.of(LAYERS, KernelSpec(granularity="tensor"))
    got = table("average_bits", LAYERS, (Choice(4),), overhead).sum()
    assert got == pytest.approx(8 * (54 + 72 + 8 + 90 + 8 + 5 * 4) / 463)
    assert table("average_bits", LAYERS[:4], (Choice(4),)).sum() == 4.0
    assert table("average_bits", LAYERS, (Choice(32),)).sum() == pytest.approx(32.0)


def test_costs_of_an_allocation_are_those_of_the_definitions_layer_by_layer():
    overhead = Overhead.of(LAYERS, KernelSpec(grid="affine"))
    picks = [3, 0, 5, 2, 4]
    whole = Allocation.from_columns(NAMES, GRID, np.array(picks))
    got = allocation_costs(LAYERS, whole, overhead, unquantized_parameters=10)
    assert got == pytest.approx(reference_costs(whole, overhead, 10), rel=1e-14)
    # without a layer, as where one is excluded
    part = Allocation({k: v for k, v in whole.items() if k != "block0/conv1"})
    got = allocation_costs(LAYERS, part, overhead, unquantized_parameters=10)
    assert got == pytest.approx(reference_costs(part, overhead, 10), rel=1e-14)


def test_a_layer_without_bits_counts_unquantized():
    overhead = Overhead.of(LAYERS, KernelSpec(granularity="tensor"))
    got = allocation_costs(LAYERS, Allocation({"head": Choice(4, 4)}), overhead)
    assert got["size_bytes"] == 4 * 448 + 8 + 4
    assert got["average_bits"] == 8 * 12 / 15
    assert got["bops"] == (1728 + 2304 + 256 + 2880) * 1024 + 15 * 16


def test_a_constant_is_what_excluded_layers_and_other_parameters_cost():
    excluded = (LAYERS[0], LAYERS[4])
    want = {
        "size_bytes": 4 * (108 + 15 + 10),
        "average_bits": 0,
        "bops": 1024 * (1728 + 15),
        "activation_bytes": 4 * max(48 + 64, 5 + 3),
    }
    assert {name: cost.constant(excluded, 10) for name, cost in COSTS.items()} == want
    assert {cost.constant(()) for cost in COSTS.values()} == {0.0}


def test_costs_are_written_with_their_unit():
    size, bits, operations = (COSTS[n] for n in ("size_bytes", "average_bits", "bops"))
    assert (size.text(43_210.0), size.text(43_210.0, largest=1e6)) == ("43.21 kB", "0.04321 MB")
    assert size.label(43_210.0) == "size (kB = 10³ bytes)"
    assert bits.text(3.51234) == "3.512 bits a weight"
    assert bits.label(8.0) == "average (bits a weight)"
    assert (operations.text(2.5e12), operations.text(7.0)) == ("2.5 · 10¹²", "7")
    assert (operations.label(2.5e12), operations.label(7.0)) == (
        "bit operations (10¹²)",
        "bit operations",
    )


def test_cost_errors_say_what_is_expected():
    for name in ("activation_bytes", "energy_pj"):
        with pytest.raises(ValueError, match=rf"'{name}' is not a cost that adds up.*size_by"):
            additive_cost(name)
    with pytest.raises(ValueError, match="scales of 5 layers, the table has 2"):
        table("size_bytes", LAYERS[:2], GRID, PLAIN)
    with pytest.raises(ValueError, match=r"No layer is called 'tail'.*stem/conv"):
        allocation_costs(LAYERS, Allocation({"tail": Choice(4)}), PLAIN)
