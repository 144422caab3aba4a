"""An allocation is a value: round trips, equality by content, errors by name."""

import dataclasses
import json
import pickle
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmpq.allocation import Allocation, bit_arrays, column_table, translate_columns
from jmpq.formats import UNQUANTIZED, Choice, choice_grid
from jmpq.problem import Solution, problem_of, solution_from_columns

GRID = choice_grid((2, 4, 8, 32), (4, 8, 32))
CHOICES = st.sampled_from(GRID)
NAMES = st.text(min_size=1, max_size=8)  # any characters: spaces, '=', '%', non-ASCII
ALLOCATIONS = st.dictionaries(NAMES, CHOICES, max_size=6).map(Allocation)
MIXED = {"conv1": Choice(8, 8), "layer1/0/conv1": Choice(4, 4), "head": Choice(4, 8)}


def rows_and_columns(layers, choices):
    return types.SimpleNamespace(layers=tuple(layers), choices=tuple(choices))


@given(ALLOCATIONS)
def test_label_json_and_pickle_give_the_value_back(allocation):
    layers = sorted(allocation)
    read = [
        Allocation.parse(allocation.label, layers),
        Allocation.from_json(json.loads(json.dumps(allocation.to_json()))),
        pickle.loads(pickle.dumps(allocation)),
        dataclasses.replace(allocation),
    ]
    for other in read:
        assert other == allocation
        assert hash(other) == hash(allocation)
        assert other.label == allocation.label
    assert "\n" not in allocation.label
    assert list(Allocation.parse(allocation.label, layers)) == layers


@given(ALLOCATIONS, st.randoms())
def test_the_order_of_layers_does_not_matter(allocation, random):
    items = list(allocation.items())
    random.shuffle(items)
    other = Allocation(dict(items))
    assert other == allocation
    assert len({other, allocation}) == 1
    assert other.label == allocation.label


@given(ALLOCATIONS, ALLOCATIONS)
def test_equal_labels_of_the_same_layers_are_equal_allocations(one, other):
    assert (one == other) == (dict(one) == dict(other))
    if set(one) == set(other):
        assert (one.label == other.label) == (one == other)


@given(st.lists(NAMES, min_size=1, max_size=6, unique=True), st.data())
def test_columns_give_the_value_back(layers, data):
    rows = st.lists(st.integers(0, len(GRID) - 1), min_size=len(layers), max_size=len(layers))
    columns = np.array(data.draw(rows))
    allocation = Allocation.from_columns(layers, GRID, columns)
    assert [GRID.index(allocation[layer]) for layer in layers] == columns.tolist()
    np.testing.assert_array_equal(allocation.columns(layers, GRID), columns)
    order = data.draw(st.permutations(layers))
    (row,) = column_table(order, GRID[::-1], [allocation])
    assert [GRID[::-1][c] for c in row] == [allocation[layer] for layer in order]


@given(st.lists(NAMES, min_size=1, max_size=6, unique=True), st.data())
def test_bit_arrays_give_the_value_back(layers, data):
    allocations = data.draw(
        st.lists(st.dictionaries(st.sampled_from(layers), CHOICES).map(Allocation), max_size=4)
    )
    bits = bit_arrays(layers, allocations)
    assert bits.shape == (len(allocations), 2, len(layers))
    for row, allocation in zip(bits, allocations, strict=True):
        whole = {layer: allocation.get(layer, UNQUANTIZED) for layer in layers}
        assert Allocation.from_bits(layers, row) == whole


@given(st.data())
def test_translated_columns_are_those_of_the_allocations(data):
    layers = data.draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    searched = data.draw(st.lists(st.sampled_from(layers), min_size=1, unique=True))
    choices = data.draw(st.lists(CHOICES, min_size=1, unique=True))
    index = st.integers(0, len(choices) - 1)
    rows = data.draw(st.lists(st.tuples(*[index] * len(searched)), min_size=1, max_size=4))
    table = np.array(rows)
    named = [Allocation.from_columns(searched, choices, row) for row in table]
    source, target = rows_and_columns(searched, choices), rows_and_columns(layers, GRID)
    got = translate_columns(table, source, target)
    np.testing.assert_array_equal(got, column_table(layers, GRID, named))


def test_labels_are_short_where_all_layers_agree_and_unique_otherwise():
    layers = ["a", "b"]
    assert Allocation.uniform(layers, Choice(4, 8)).label == "W4A8"
    assert Allocation(MIXED).label == "conv1=W8A8 head=W4A8 layer1/0/conv1=W4A4"
    assert Allocation({"a": Choice(4)}).label == "a=W4"  # not that of all layers
    assert Allocation({}).label == "W32"
    assert Allocation.parse("W4A8", layers) == dict.fromkeys(layers, Choice(4, 8))
    assert Allocation.parse("b=W2", layers) == {"b": Choice(2)}
    assert Allocation({"a b=c%": Choice(2)}).label == "a%20b%3Dc%25=W2"


def test_long_allocations_are_told_by_their_counts():
    assert repr(Allocation(MIXED)) == f"Allocation({Allocation(MIXED).label})"
    names = [f"stage{i}/convolution" for i in range(20)]
    columns = np.repeat([0, 1], [5, 15])
    long = Allocation.from_columns(names, (Choice(8, 8), Choice(4, 8)), columns)
    assert repr(long) == "Allocation(20 layers: 15xW4A8 5xW8A8)"


def test_an_allocation_cannot_be_changed():
    given = dict(MIXED)
    allocation = Allocation(given)
    given["conv1"] = Choice(2)
    assert allocation == MIXED
    with pytest.raises(TypeError, match="does not support item assignment"):
        allocation["conv1"] = Choice(2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        allocation.choices = {}


def test_labels_are_read():
    assert Allocation({"a": "W4A8", "b": Choice(2)}) == Allocation(
        {"a": Choice(4, 8), "b": Choice(2)}
    )
    with pytest.raises(ValueError, match="Layer 'b': 'V4' is not a choice of bits"):
        Allocation({"a": "W4", "b": "V4"})


def test_what_is_not_an_allocation_is_refused_by_name():
    with pytest.raises(
        TypeError, match=r"`choices` of Allocation is a dict with the int 4 in it"
    ):
        Allocation({"a": Choice(4), "b": 4})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="layer 3 a choice: expected its name"):
        Allocation({"a": Choice(4), 3: Choice(4)})
    with pytest.raises(ValueError, match="Layer 'b': '4' is not a choice of bits"):
        Allocation.from_json({"a": "W4", "b": "4"})
    with pytest.raises(ValueError, match="Layer 'b': 'None' is not a choice of bits"):
        Allocation.from_json({"a": "W4", "b": None})


def test_columns_that_are_none_are_refused_by_layer():
    layers, choices = ("a", "b"), (Choice(4), Choice(8))
    with pytest.raises(ValueError, match="one column for each of the 2 layers, got 1"):
        Allocation.from_columns(layers, choices, np.array([0]))
    for bad in (2, -1):
        with pytest.raises(ValueError, match=f"Layer 'b' has column {bad}: expected 0 to 1"):
            Allocation.from_columns(layers, choices, np.array([0, bad]))
    with pytest.raises(ValueError, match="Layer 'a' takes W2: expected one of W4, W8"):
        Allocation({"a": Choice(2), "b": Choice(4)}).columns(layers, choices)
    with pytest.raises(ValueError, match="'b' is not named by the allocation, which leaves it"):
        Allocation({"a": Choice(4)}).columns(layers, choices)
    for call in (
        lambda x: x.columns(layers, choices),
        lambda x: bit_arrays(layers, [x]),
    ):
        with pytest.raises(ValueError, match="names layer 'c', which is not among a, b"):
            call(Allocation({"c": Choice(4)}))


def test_labels_that_are_none_are_refused_by_layer():
    with pytest.raises(ValueError, match="names layer 'c', which is not among a, b"):
        Allocation.parse("a=W4 c=W8", ["a", "b"])
    with pytest.raises(ValueError, match="Layer 'a' stands twice in 'a=W4 a=W8'"):
        Allocation.parse("a=W4 a=W8", ["a"])
    with pytest.raises(ValueError, match="Layer 'a': '4' is not a choice of bits"):
        Allocation.parse("a=4", ["a"])
    with pytest.raises(ValueError, match="'four' is not a choice of bits"):
        Allocation.parse("four", ["a"])


def test_tables_that_do_not_cover_a_search_are_refused():
    choices = (Choice(1), Choice(2))
    table, source = np.array([[0, 1]]), rows_and_columns("ab", choices)
    with pytest.raises(ValueError, match="The table has no layer 'b': it has a, c"):
        translate_columns(table, source, rows_and_columns("ac", choices))
    with pytest.raises(ValueError, match="The table has no W2: it has W1"):
        translate_columns(table, source, rows_and_columns("ab", choices[:1]))
    with pytest.raises(ValueError, match="Layer 'c' is not searched, but the table has no"):
        translate_columns(table, source, rows_and_columns("abc", choices))
    whole = rows_and_columns("bca", (*choices[::-1], UNQUANTIZED))
    assert translate_columns(table, source, whole).tolist() == [[0, 2, 1]]


def test_a_solution_of_a_million_layers_names_them_only_when_asked():
    count = 1_000_000
    fields = dict.fromkeys(("loss", "bound", "gap", "wall_s", "objective_value"), 0.0)
    solution = Solution(
        layers=tuple(map(str, range(count))),
        choices=(Choice(4), Choice(8)),
        columns=np.arange(count) % 2,
        costs={},
        status="optimal",
        solver="",
        objective="loss",
        **fields,
    )
    assert "allocation" not in vars(solution)
    assert len(solution.allocation) == count
    assert solution.allocation["999999"] == Choice(8)
    assert solution.allocation is solution.allocation


def test_a_solution_keeps_names_and_candidates_by_reference():
    problem = problem_of(np.zeros((3, 2)), {}, {})
    columns = np.array([0, 1, 0])
    solution = solution_from_columns(problem, columns, bound=0.0, solver="", wall_s=0.0)
    assert solution.layers is problem.layers
    assert solution.choices is problem.choices
    assert solution.columns is columns
    assert solution.allocation == problem.allocation(columns)
