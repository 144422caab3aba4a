"""What experiments take on the command line."""

import pathlib

import pytest

from experiments.common.arguments import Arguments, data_folder

ROOT = pathlib.Path(__file__).parents[2]


def test_a_folder_of_data_is_asked_for_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"^--data-dir: the folder .* is needed.*--smoke"):
        Arguments().data()
    with pytest.raises(SystemExit, match=r"^--data-dir .*nowhere: there is no such folder\.$"):
        Arguments(data_dir=tmp_path / "nowhere").data()
    assert Arguments(data_dir=tmp_path).data() == tmp_path
    assert Arguments(data_dir=tmp_path, smoke=True).data() is None
    assert data_folder(None, smoke=True) is None


@pytest.mark.parametrize("folder", ["jmpq", "experiments", "notebooks"])
def test_no_default_path_leaves_the_project(folder):
    for path in (ROOT / folder).rglob("*.py"):
        assert 'Path("..' not in path.read_text(), path
