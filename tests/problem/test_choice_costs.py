import numpy as np
import pytest

from jmpq.problem import (
    Choice,
    Overhead,
    activation_bytes,
    allocation_costs,
    average_bits,
    bops,
    choice_grid,
    cost_table,
    size_bytes,
)
from jmpq.problem.costs import constant_cost
from jmpq.quantizers.spec import KernelSpec
from tests.problem.tables import GRID, LAYERS, NAMES, conv, embedding


@pytest.mark.parametrize("text", ["W4A8", "W4", "w4a32", "W16A1", "W32"])
def test_labels_are_read_and_written(text):
    choice = Choice.parse(text)
    assert Choice.parse(choice.label) == choice
    assert str(choice) == choice.label


@pytest.mark.parametrize("text", ["", "4", "W4 A8", "A8", "W4A", "int4"])
def test_a_wrong_label_is_refused(text):
    with pytest.raises(ValueError, match="is no choice of bits"):
        Choice.parse(text)


@pytest.mark.parametrize("bits", [0, 17, 31, 33, -1])
def test_impossible_bits_are_refused(bits):
    with pytest.raises(ValueError, match=r"w_bits=.* is no bit-width"):
        Choice(bits)
    with pytest.raises(ValueError, match=r"a_bits=.* is no bit-width"):
        Choice(4, bits)


def test_grid_is_sorted_without_repeats():
    got = [c.label for c in choice_grid([8, 2, 8], [32, 4])]
    assert got == ["W2A4", "W2", "W8A4", "W8"]
    with pytest.raises(ValueError, match="No candidate bits"):
        choice_grid([], [8])


def test_size_counts_codes_scales_and_zero_points():
    choices = (Choice(3), Choice(4, 8), Choice(32))
    channel = Overhead.of(LAYERS, KernelSpec(grid="affine"))
    got = size_bytes(LAYERS, choices, channel)
    # stem/conv: ceil(108*3/8)=41 + 4 scales*4 + ceil(4*3/8)=2; 54 + 16 + 2; 432
    np.testing.assert_array_equal(got[0], [59, 72, 432])
    # head: ceil(15*3/8)=6 + 12 + ceil(9/8)=2; ceil(7.5)=8 + 12 + ceil(1.5)=2; 60
    np.testing.assert_array_equal(got[4], [20, 22, 60])
    assert (
        size_bytes(LAYERS, choices, Overhead.of(LAYERS, KernelSpec(granularity="tensor")))[4, 0]
        == 6 + 4
    )


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
    got = bops((*LAYERS, embedding("words", 10, 4)), (Choice(2, 4), Choice(8)))
    np.testing.assert_array_equal(got[0], [1728 * 8, 1728 * 256])
    np.testing.assert_array_equal(got[4], [15 * 8, 15 * 256])
    np.testing.assert_array_equal(got[5], [0, 0])


def test_activation_bytes_are_input_and_output_at_their_bits():
    got = activation_bytes((LAYERS[0], embedding("words", 10, 4)), (Choice(2, 4), Choice(8)))
    np.testing.assert_array_equal(got, [[24 + 32, 192 + 256], [28 + 14, 28 + 112]])


def test_average_bits_is_all_stored_bits_over_all_weights():
    overhead = Overhead.of(LAYERS, KernelSpec(granularity="tensor"))
    got = average_bits(LAYERS, (Choice(4),), overhead).sum()
    assert got == pytest.approx(8 * (54 + 72 + 8 + 90 + 8 + 5 * 4) / 463)
    plain = Overhead((0,) * 5)
    assert average_bits(LAYERS[:4], (Choice(4),), Overhead((0,) * 4)).sum() == 4.0
    assert average_bits(LAYERS, (Choice(32),), plain).sum() == pytest.approx(32.0)


def test_costs_of_an_allocation_equal_the_tables():
    overhead = Overhead.of(LAYERS, KernelSpec(grid="affine"))
    picks = [3, 0, 5, 2, 4]
    bits = {name: GRID[k] for name, k in zip(NAMES, picks, strict=True)}
    got = allocation_costs(LAYERS, bits, overhead, unquantized_parameters=10)
    for name in ("size_bytes", "average_bits", "bops"):
        table = cost_table(LAYERS, GRID, name, overhead)
        constant = 40 if name == "size_bytes" else 0
        assert got[name] == pytest.approx(table[range(5), picks].sum() + constant, rel=1e-14)
    assert got["activation_bytes"] == activation_bytes(LAYERS, GRID)[range(5), picks].max()


def test_a_layer_without_bits_counts_unquantized():
    overhead = Overhead.of(LAYERS, KernelSpec(granularity="tensor"))
    got = allocation_costs(LAYERS, {"head": Choice(4, 4)}, overhead)
    assert got["size_bytes"] == 4 * 448 + 8 + 4
    assert got["average_bits"] == 8 * 12 / 15
    assert got["bops"] == (1728 + 2304 + 256 + 2880) * 1024 + 15 * 16


def test_cost_errors_say_what_is_expected():
    overhead = Overhead.of(LAYERS, KernelSpec(granularity="tensor"))
    with pytest.raises(ValueError, match=r"not a cost that adds up.*size_bytes"):
        cost_table(LAYERS, GRID, "activation_bytes", overhead)
    with pytest.raises(ValueError, match="not a cost that adds up"):
        constant_cost([], "latency_s")
    with pytest.raises(ValueError, match="scales of 5 layers, the table has 2"):
        size_bytes(LAYERS[:2], GRID, overhead)
    with pytest.raises(ValueError, match=r"No layer is called 'tail'.*stem/conv"):
        allocation_costs(LAYERS, {"tail": Choice(4)}, overhead)
