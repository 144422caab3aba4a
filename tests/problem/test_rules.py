import numpy as np
import pytest

from jmpq.formats import Choice, choice_grid
from jmpq.problem import Allow, Exclude, Pin, Tie, first_and_last, parse_rule
from jmpq.problem.rules import apply_rules, describe, rules_from_json, rules_to_json, tie_groups
from tests.problem.tables import GRID, NAMES


def allowed(rules, name, choices=GRID):
    ruling = apply_rules(rules, NAMES, choices)
    row = ruling.allowed[NAMES.index(name)]
    return [c.label for c, ok in zip(choices, row, strict=True) if ok]


def test_the_first_match_wins():
    rules = [Pin("head", Choice(4, 4)), Allow("h.*|stem/.*", ("W8",)), Exclude("stem/conv")]
    assert allowed(rules, "head") == ["W4A4"]
    assert allowed(rules, "stem/conv") == ["W8A4", "W8A8"]
    assert not apply_rules(rules, NAMES, GRID).excluded.any()


@pytest.mark.parametrize(
    ("candidates", "want"),
    [
        (("W2",), ["W2A4", "W2A8"]),
        (("A8",), ["W2A8", "W4A8", "W8A8"]),
        (("W2A4", "W8A8"), ["W2A4", "W8A8"]),
    ],
)
def test_allow_names_whole_or_half_choices(candidates, want):
    assert allowed([Allow("head", candidates)], "head") == want


def test_ties_follow_captured_text_and_join():
    rules = [Tie((r"(block\d)/(?:conv1|down)",))]
    assert apply_rules(rules, NAMES, GRID).ties == (("block0/conv1", "block0/down"),)
    whole = apply_rules([Tie(("block0/.*", "head"))], NAMES, GRID)
    assert whole.ties == (("block0/conv1", "block0/down", "head"),)
    assert tie_groups("abcde", [["d", "e"], ["b", "e"]]) == [0, 1, 2, 1, 1]


@pytest.mark.parametrize(
    "text",
    [
        "pin stem/conv=W8A8",
        "pin (?=s)stem/conv=W8",
        "exclude head",
        "allow block.*=W2,W4A4,A8",
        r"tie (block\d)/conv1 (block\d)/down",
    ],
)
def test_rules_round_trip_as_text(text):
    assert str(parse_rule(text)) == text
    assert rules_to_json(rules_from_json([text])) == [text]


def test_first_and_last_layer_are_pinned_by_default():
    rules = first_and_last(NAMES, GRID)
    assert describe(rules, NAMES, GRID) == [
        "pin stem/conv=W8A8: stem/conv",
        "pin head=W8A8: head",
    ]
    weights = choice_grid([2, 8])
    assert [str(r) for r in first_and_last(NAMES, weights)] == [
        "pin stem/conv=W8",
        "pin head=W8",
    ]
    assert len(first_and_last(["a.b"], weights)) == 1
    apply_rules(first_and_last(["a.b"], weights), ["a.b"], weights)


def test_describe_tells_a_rule_that_comes_too_late():
    lines = describe([Exclude("head"), Pin("head", Choice(8, 8))], NAMES, GRID)
    assert lines[1] == "pin head=W8A8: no layer (earlier rules match first)"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Pin("block0/conv2", Choice(8, 8)), "matches no layer. Did you mean 'block0/conv1'"),
        (Exclude("conv"), "whole name must match; the layers are stem/conv, block0/conv1"),
        (Tie(("block0/.*", "tail")), "'tail' of rule .* matches no layer"),
        (Pin("head", Choice(3, 8)), "leaves no candidate: the candidates are W2A4, W2A8"),
        (Allow("head", ("W3",)), "leaves no candidate"),
        (Tie(("head",)), "ties nothing.*matches only head"),
        (Tie((r"(\w+)/conv1",)), "each with its own captured text"),
    ],
)
def test_a_rule_that_does_nothing_is_an_error(rule, message):
    with pytest.raises(ValueError, match=message):
        apply_rules([rule], NAMES, GRID)


def test_the_name_of_a_slice_is_a_pattern_for_itself():
    names = ["layers[0]", "layers[1]", "layers[2]", "layers1"]
    rules = [Pin("layers[1]", Choice(8, 8)), Tie(("layers[0]", "layers[2]"))]
    made = apply_rules(rules, names, GRID)
    assert made.ties == (("layers[0]", "layers[2]"),)
    assert made.allowed.sum(1).tolist()[1] == 1


def test_a_tie_with_an_excluded_layer_is_an_error():
    with pytest.raises(ValueError, match="'block0/down' is excluded and tied"):
        apply_rules([Tie(("block0/.*",)), Exclude("block0/down")], NAMES, GRID)


@pytest.mark.parametrize("text", ["pin head", "drop head", "", "pin a b=W8", "tie", "exclude"])
def test_a_line_that_is_no_rule_is_refused(text):
    with pytest.raises(ValueError, match="is not a valid rule: expected"):
        parse_rule(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pin head=8", "is not a choice of bits"),
        ("allow head=W4,,W8", "names no candidates"),
        ("allow head=4", "names no candidates"),
        ("exclude (head", "is not a regular expression"),
    ],
)
def test_a_wrong_part_of_a_rule_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        parse_rule(text)


def test_patterns_have_no_blanks_and_ties_have_patterns():
    with pytest.raises(ValueError, match="has a blank"):
        Exclude("a b")
    with pytest.raises(ValueError, match="at least one pattern"):
        Tie(())


def test_no_rules_allow_everything():
    ruling = apply_rules([], NAMES, GRID)
    assert ruling.allowed.all()
    assert not ruling.excluded.any()
    assert np.array_equal(tie_groups(NAMES, ruling.ties), np.arange(5))
