"""What a journal keeps survives cuts at any byte, and nothing else is believed."""

import json

import numpy as np
import pytest

from jmpq.journal import Journal

WORK = {"of": "a test", "bits": (2, 4)}
ARRAYS = {
    "first": np.arange(6.0).reshape(2, 3),
    "second": np.array(7, np.int8),
    "empty": np.zeros((0, 4), np.float32),
    "flags": np.array([True, False]),
}
ENTRIES = {"0": ({"seconds": 1.5}, {}), "layer/a": (None, ARRAYS), "{}\n": ([1, "ü"], {})}


def write(path, entries=ENTRIES, of=WORK):
    journal = Journal(path, of)
    for key, (value, arrays) in entries.items():
        journal.keep(key, value, arrays)
    return journal


def assert_holds(journal, entries):
    for key, (value, arrays) in entries.items():
        found = journal.get(key)
        assert found.value == value
        assert list(found.arrays) == list(arrays)
        for name, array in arrays.items():
            assert found.arrays[name].dtype == array.dtype
            np.testing.assert_array_equal(found.arrays[name], array)


def test_entries_come_back_in_the_same_and_in_another_process(tmp_path):
    path = tmp_path / "folder" / "journal"
    journal = Journal(path, WORK)
    assert not path.parent.exists()  # nothing is kept yet
    assert journal.get("0") is None
    assert_holds(write(path), ENTRIES)
    again = Journal(path, json.loads(json.dumps(WORK)))  # a tuple is read back as a list
    assert again.keys == list(ENTRIES)
    assert_holds(again, ENTRIES)
    again.keep("0", "replaced")
    assert Journal(path, WORK).get("0").value == "replaced"
    again.get("layer/a").arrays["first"][0] = 5  # a copy
    assert_holds(again, {"layer/a": ENTRIES["layer/a"]})
    again.remove()
    assert list(path.parent.iterdir()) == []


def test_a_file_cut_at_any_byte_keeps_its_whole_entries_and_goes_on(tmp_path):
    path = tmp_path / "journal"
    ends = []
    for count in range(len(ENTRIES) + 1):
        write(path, dict(list(ENTRIES.items())[:count]))
        ends.append(path.stat().st_size if path.exists() else 0)
        path.unlink(missing_ok=True)
    write(path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        journal = Journal(path, WORK)
        kept = sum(end <= size for end in ends[1:])
        assert journal.keys == list(ENTRIES)[:kept], size
        assert_holds(journal, dict(list(ENTRIES.items())[:kept]))
        for key, (value, arrays) in list(ENTRIES.items())[kept:]:
            journal.keep(key, value, arrays)
        assert path.read_bytes() == whole
    path.write_bytes(whole + b"\0" * 100)  # what a crash of the machine may leave
    assert Journal(path, WORK).keys == list(ENTRIES)


def test_arrays_that_changed_are_done_again(tmp_path):
    path = tmp_path / "journal"
    write(path)
    data = path.read_bytes()
    at = data.index(ARRAYS["first"].tobytes())
    path.write_bytes(data[:at] + b"\1" + data[at + 1 :])
    journal = Journal(path, WORK)
    assert journal.get("layer/a") is None
    assert_holds(journal, {k: v for k, v in ENTRIES.items() if k != "layer/a"})
    journal.keep("layer/a", *ENTRIES["layer/a"])
    assert_holds(Journal(path, WORK), ENTRIES)


def test_an_entry_that_changed_anywhere_is_done_again_and_those_after_it_count(tmp_path):
    path = tmp_path / "journal"
    write(path)
    whole = path.read_bytes()
    starts = [whole.index(b'{"key": '), *(
        whole.index(json.dumps({"key": key})[:-1].encode()) for key in list(ENTRIES)[1:]
    ), len(whole)]  # fmt: skip
    for at in range(starts[0], len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        (spoilt,) = [k for k, a, b in zip(ENTRIES, starts, starts[1:], strict=False)
                     if a <= at < b]  # fmt: skip
        journal = Journal(path, WORK)
        assert journal.get(spoilt) is None, at
        assert_holds(journal, {k: v for k, v in ENTRIES.items() if k != spoilt})
    value, arrays = ENTRIES[spoilt]
    journal.keep(spoilt, value, arrays)
    assert_holds(Journal(path, WORK), ENTRIES)


def test_a_value_edited_by_hand_is_done_again(tmp_path):
    path = tmp_path / "journal"
    write(path)
    for other in (b'"seconds": 2.5', b'"seconds": NaN', b'"second": 1.5', b'"seconds": 1.5 '):
        path.write_bytes(path.read_bytes().replace(b'"seconds": 1.5', other))
        journal = Journal(path, WORK)
        rest = {k: v for k, v in ENTRIES.items() if k != "0"}
        assert_holds(journal, rest)
        if other != b'"seconds": 1.5 ':  # the same value, written in another way
            assert journal.get("0") is None
            journal.keep("0", *ENTRIES["0"])
        assert_holds(Journal(path, WORK), ENTRIES)


@pytest.mark.parametrize("text", [b"", b'{"of"', b"[]\n", b"\xff\xfe\n", b"nonsense"])
def test_a_file_of_something_else_is_begun_anew_or_refused(tmp_path, text):
    path = tmp_path / "journal"
    for prepare in (lambda: path.write_bytes(text), lambda: write(path, of="another")):
        prepare()
        before = path.read_bytes()
        with pytest.raises(ValueError, match="belongs to other work: choose another file"):
            Journal(path, WORK, anew=False)
        journal = Journal(path, WORK)
        assert journal.keys == []
        assert journal.get("0") is None
        assert path.read_bytes() == before  # until there is something to keep
        journal.keep("1", 1)
        assert Journal(path, WORK).keys == ["1"]


def test_a_value_that_is_not_json_is_refused_and_leaves_the_journal(tmp_path):
    journal = write(tmp_path / "journal")
    with pytest.raises(ValueError, match="JSON compliant"):
        journal.keep("nan", float("nan"))
    assert_holds(Journal(journal.path, WORK), ENTRIES)


def test_without_a_file_nothing_is_kept():
    journal = Journal(None, WORK)
    journal.keep("0", 1)
    assert journal.get("0") is None
    journal.remove()


def test_processes_without_the_file_are_told_by_the_one_that_has_it(tmp_path):
    """Two processes in turn: what the first gives is what the second gets."""
    path, sent = tmp_path / "journal", []
    write(path)
    first = Journal(path, WORK, share=lambda data: sent.append(data) or data)
    first.get("layer/a")
    first.get("unknown")
    second = Journal(None, WORK, share=lambda data: sent.pop(0))
    assert second.keys == list(ENTRIES)
    assert_holds(second, {"layer/a": ENTRIES["layer/a"]})
    assert second.get("unknown") is None
