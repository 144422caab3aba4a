import csv
import errno
import hashlib
import json
import os
import stat

import pytest

from jmpq import files


def test_a_file_appears_whole_with_its_folder(tmp_path):
    path = tmp_path / "new" / "folder" / "file.bin"
    with files.atomic_file(path) as file:
        file.write(b"half")
        assert not path.exists()
        file.write(b" and half")
    assert path.read_bytes() == b"half and half"
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("old", [None, b"old"])
def test_an_error_leaves_what_was_there(tmp_path, error, old):
    path = tmp_path / "file.bin"
    if old is not None:
        path.write_bytes(old)
    before = sorted(tmp_path.iterdir())

    def fail():
        with files.atomic_file(path) as file:
            file.write(b"half")
            file.flush()
            raise error

    with pytest.raises(error):
        fail()
    assert sorted(tmp_path.iterdir()) == before
    assert old is None or path.read_bytes() == old


def test_a_full_disk_is_named_with_the_file_and_leaves_what_was_there(tmp_path):
    path = tmp_path / "file.json"
    files.write_json(path, {"old": 1})
    before = path.read_bytes()

    def fill():
        with files.atomic_file(path) as file:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

    match = rf"Cannot write {path}: No space left on device. Free some space and run this step"
    with pytest.raises(OSError, match=match):
        fill()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_are_those_of_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        files.write_text(tmp_path / "ours.txt", "")
        (tmp_path / "plain.txt").write_text("")
        assert os.umask(mask) == mask  # left as it was
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("ours.txt", "plain.txt")]
    assert modes[0] == modes[1] == 0o666 & ~mask


def test_a_path_that_cannot_be_written_is_named_with_the_reason(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    place = "Cannot write .*{}: there is a file in the place of its folder. Choose another"
    for path in ("file/a.json", "file/deeper/a.json"):
        with pytest.raises(OSError, match=place.format(path)):
            files.write_json(tmp_path / path, {})
    with pytest.raises(OSError, match=r"Cannot write .*/folder: Is a directory. Choose"):
        files.write_json(tmp_path / "folder", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_whether_a_file_can_be_written_is_known_beforehand(tmp_path):
    files.check_writable(tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"Cannot write .*a.json: there is a file in the place"):
        files.check_writable(tmp_path / "file" / "a.json")
    with pytest.raises(OSError, match=r"Cannot write .*a.json: No such file or directory"):
        files.check_writable(tmp_path / "none" / "a.json")


def test_json_has_no_nan(tmp_path):
    files.write_json(tmp_path / "a.json", {"b": [1, None, "ü"]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": [1, None, "ü"]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", {"b": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": [1, None, "ü"]}


def test_hashes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.file_sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert files.json_sha256({"a": 1, "b": [2]}) == files.json_sha256({"b": [2], "a": 1})
    assert files.json_sha256({"a": 1}) != files.json_sha256({"a": 2})


def test_a_table_has_the_columns_of_all_its_rows(tmp_path):
    path = tmp_path / "table.csv"
    files.write_csv(path, [{"cost": 1.5, "a": "W4, A8"}, {"cost": 0.1 + 0.2, "b": None}])
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["cost", "a", "b"]
    assert [float(row["cost"]) for row in rows] == [1.5, 0.1 + 0.2]
    assert [(row["a"], row["b"]) for row in rows] == [("W4, A8", ""), ("", "")]
