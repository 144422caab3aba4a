"""A study as data: what a file says, and how wrong files are refused."""

import pathlib

import pytest

from jmpq.run.options import Layers, Sensitivity, Train
from jmpq.study.grid import StudiedNetwork, Study, options_from_json, options_json, read_study
from jmpq.study.layout import lines

TEXT = """
draws = [0, 1]
metrics = ["gauss_newton"]
bits = ["W2,4 A8"]
budgets = ["size_bytes=W4 bops=W4A8"]
[networks.digits]
model = "digits_resnet"
data = "digits"
train.epochs = 2
[sensitivity]
batch_size = 32
weights.granularity = "tensor"
[slurm]
timeout_min = 5
"""


def written(tmp_path, text):
    path = tmp_path / "study.toml"
    path.write_text(text)
    return path


def test_a_file_says_the_same_as_the_dataclass(tmp_path):
    found = read_study(written(tmp_path, TEXT))
    want = Study(
        networks={
            "digits": StudiedNetwork(
                layers=Layers(model="digits_resnet", data="digits"),
                train=Train(model="digits_resnet", data="digits", epochs=2),
            )
        },
        draws=(0, 1),
        metrics=("gauss_newton",),
        bits=("W2,4 A8",),
        budgets=("size_bytes=W4 bops=W4A8",),
        sensitivity=Sensitivity(
            batch_size=32,
            weights=type(Sensitivity().weights)(granularity="tensor"),
        ),
        slurm={"timeout_min": 5},
    )
    assert found == want
    for options in (found.sensitivity, found.solve, found.networks["digits"].train):
        assert options_from_json(type(options), options_json(options)) == options


def test_paths_take_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SOMEWHERE", str(tmp_path))
    text = TEXT.replace('data = "digits"', 'data = "digits"\ndata_dir = "$SOMEWHERE/data"')
    network = read_study(written(tmp_path, text)).networks["digits"]
    assert network.layers.data_dir == network.train.data_dir == tmp_path / "data"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("draws", "draw", r"no entry 'draw'. Did you mean 'draws'"),
        ("[0, 1]", "[0, 0]", "draws has 0 twice"),
        ("[0, 1]", "[]", "draws is empty"),
        ("[0, 1]", "3", "draws of the study is a whole number"),
        ('"W2,4 A8"', '"2,4"', "does not name candidates"),
        ('"W2,4 A8"', '"W2,99"', "w_bits=99 is not a bit-width"),
        (
            "batch_size = 32",
            "examples = 7",
            "examples of sensitivity .* examples =",
        ),
        ("epochs = 2", "epochs = 2\n[networks.two]\ntrain = true", "train of networks.two"),
        ("[slurm]", '[evaluate]\ncorrect = "bias"\n[slurm]', "correct = .* at the top"),
        ("[slurm]", '[refinement]\nallocation = "a"\n[slurm]', "not read by a study: leave it"),
        ("gauss_newton", "gauss", "is a string"),
        ("size_bytes=W4", "bytes=W4", "bytes"),
        ("epochs = 2", "epoch = 2", r"networks.digits.train has no entry 'epoch'"),
        ("epochs = 2", "epochs = 0", "epochs=0: give at least 1"),
        ("batch_size = 32", 'batch_size = "32"', "expected a whole number"),
        ("[networks.digits]", "[network.digits]", "no entry 'network'"),
        ("draws = [0, 1]", "draws = [0, 1", "is not TOML"),
        ("draws = [0, 1]", "draws = [0, 1]\nrefine = [-1]", "refine has -1: give counts"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path, old, new, message):
    path = written(tmp_path, TEXT.replace(old, new))
    with pytest.raises(ValueError, match=message) as error:
        read_study(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_not_there_and_a_study_of_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="give a TOML file"):
        read_study(tmp_path / "none.toml")
    with pytest.raises(ValueError, match="at least one network"):
        Study(networks={})


STUDIES = sorted((pathlib.Path(__file__).parents[2] / "experiments" / "studies").glob("*.toml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_committed_studies_are_short_and_can_be_read(path, monkeypatch):
    monkeypatch.setenv("JMPQ_DATA", "/data")
    assert len(path.read_text().splitlines()) <= 25
    study = read_study(path)
    plans = [line.plan for line in lines(study)]
    assert len({cell.key for cell in plans}) > 5


def test_rivals_are_fine_tuned_at_equal_size(monkeypatch):
    monkeypatch.setenv("JMPQ_DATA", "/data")
    (path,) = (path for path in STUDIES if path.stem == "finetune_resnet20")
    study = read_study(path)
    assert {"gauss_newton", "empirical_fisher", "hawq_trace"} <= set(study.metrics)
    assert {"uniform", "random"} <= set(study.baselines)
    assert len(study.budgets) == 2
    assert len(study.draws) == 3
    assert max(study.finetune) > 0
    assert study.networks["resnet20"].layers.weights == pathlib.Path(
        "/data/cifar10/resnet20.safetensors"
    )
