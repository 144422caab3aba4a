"""Tried as a new user would: one line that says what to do, and nothing half-written."""

import contextlib
import dataclasses
import errno
import os
import pathlib
import re
import shutil
import warnings

import flax.linen as nn
import jax
import numpy as np
import pytest
import safetensors.numpy

from jmpq.cli.main import main
from jmpq.data.dataset import Normalization
from jmpq.data.load import load_dataset
from jmpq.run.folder import RunFolder
from jmpq.zoo.architectures import build_module
from jmpq.zoo.tensor_files import save_variables
from jmpq.zoo.weights_torchvision import abstract_variables
from tests.cli import networks
from tests.cli.command import FEW, TINY, contents, jmpq, works
from tests.helpers import rewritten

DIGITS = ("--model", "digits_resnet", "--data", "digits")


def refuses(folder, args, match):
    """A step ends with one line, and `folder` is as it was before but for its store.

    The exit code is 1, or 2 where the options are at fault.
    """
    before = without_store(folder)
    result = jmpq(*args)
    assert result.code in (1, 2), (result.out, result.err)
    (line,) = filter(str.strip, result.err.splitlines())
    assert line.startswith("jmpq: ")
    assert re.search(match, line), line
    assert without_store(folder) == before


def without_store(folder):
    """What was computed before a step was refused is kept there."""
    return {name: file for name, file in contents(folder).items()
            if "store" not in pathlib.PurePath(name).parts}  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Layers and weights of a network that nobody trained; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda s: rng.uniform(0.5, 1.0, s.shape).astype(np.float32),
        abstract_variables(build_module("digits_resnet"), (8, 8, 1)),
    )
    save_variables(folder / "weights.safetensors", variables, architecture="digits_resnet")
    works("layers", folder, *DIGITS)
    return folder


def saved_weights(digits, path, change):
    """The weights with one tensor changed."""
    with safetensors.safe_open(digits / "weights.safetensors", "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    change(tensors)
    safetensors.numpy.save_file(tensors, path, metadata)


NEWTON = ("--metrics", "gauss_newton")


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (("--data", "cifar10", "--data-dir", "nowhere"), "no data folder nowhere.*"),
        (
            ("--data", "imagenet"),
            "no data set 'imagenet'. Did you mean .* one of digits, cifar10",
        ),
        (("--model", "resnet21"), "'resnet21'.*digits_resnet.*resnet20"),
        (("--epochs", 0), "epochs=0: give at least 1"),
        (("--batch-size", 5000), "batch_size=5000 is more than.*Use a smaller batch"),
    ],
)
def test_train_refuses(tmp_path, args, match):
    refuses(tmp_path, ("train", tmp_path / "run", *args), match)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (DIGITS, "No weights for 'digits_resnet': give --weights FILE.*jmpq train"),
        ((*DIGITS, "--weights", "no.safetensors"), "There is no weights file .*no.safetensors"),
        (("--model", "resnet21", "--data", "digits"), "'resnet21'.*digits_resnet.*resnet20"),
        (("--model", "no.such:network"), "No module named 'no'.*package.module:function"),
        (("--model", ":network"), "package.module:function"),
        (("--model", "tests.cli.networks:none"), "'none'.*package.module:function"),
        (("--model", "tests.cli.networks:a_module"), "returned Tiny; expected a jmpq.Network"),
        (("--model", "tests.cli.networks:broken"), "KeyError: 'lost'.*Call it in Python"),
        (("--model", "tests.cli.networks:with_argument"), "called with no arguments"),
        (
            ("--model", "tests.cli.networks:two_heads"),
            r"3 arrays: aux \(1, 16\), logits \(1, 10\), positions.*from_linen\(..., "
            r"output='logits'\).*`def network\(output=None\)`, pass output.*--output logits",
        ),
        (
            ("--model", "tests.cli.networks:two_heads", "--output", "logit"),
            r"output='logit' is not there: the network returns aux \(1, 16\), logits",
        ),
        (
            ("--model", "tests.cli.networks:tiny", "--output", "1"),
            r"does not take --output 1: write `def tiny\(output=None\)` and pass output=output",
        ),
        (("--model", "tests.cli.networks:fixed_batch"), "fixed to batches of 8: with 2 exam"),
        (("--model", "tests.cli.networks:batch_statistics"), "depends on the other examples"),
        (("--model", "tests.cli.networks:recurrent"), r"'rnn/.*every step.*ignore=\('rnn/cell"),
        (("--model", "tests.cli.networks:deaf", "--output", "1"), "must hand it on"),
        (
            ("--model", "tests.cli.networks:without_layers"),
            "no quantizable layer: no convolution, matrix product or embedding.*scale",
        ),
    ],
)
def test_layers_refuses(tmp_path, args, match):
    refuses(tmp_path, ("layers", tmp_path / "run", *args), match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda x: x + 1, "Label 10 of example .* of the heldout split of digits has no class: "
         "the network has 10, 0 to 9, the labels have 10, 1 to 10; subtract one, labels - 1"),
        (lambda x: np.where(x == 3, 255, x), "Label 255 of example .*leave these out"),
        (lambda x: np.eye(10)[x], r"one-hot over 10 classes.*pass labels.argmax\(-1\)"),
        (lambda x: x[:, None], r"expected \[40\].*pass labels\[:, 0\]"),
        (lambda x: x + 0.5, "Label .*.5 of example 0 .*give whole numbers"),
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_are_refused(tmp_path, monkeypatch, change, match):
    """As the data of someone's own reader may be; before anything is calibrated."""
    run = tmp_path / "run"
    works("layers", run, *TINY)

    def spoilt(*args, **options):
        data = load_dataset(*args, **options)

        def read(source):
            split = data.read(source)
            return dataclasses.replace(split, labels=change(split.labels))

        return dataclasses.replace(data, read=read)

    monkeypatch.setattr("jmpq.run.network.load_dataset", spoilt)
    refuses(run, ("sensitivity", run, *FEW, *NEWTON), match)


def test_layers_refuses_weights_that_are_nan(digits, tmp_path):
    path = tmp_path / "nan.safetensors"

    def spoil(tensors):
        tensors["params/layer2/0/conv1/kernel"][0, 0, 0, :3] = np.nan

    saved_weights(digits, path, spoil)
    match = r"NaN or infinite weights in .*layer2/0/conv1/kernel \(3 of 4608 values\)"
    refuses(tmp_path, ("layers", tmp_path / "run", *DIGITS, "--weights", path), match)


def test_networks_of_functions_must_not_have_nan_either(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "SCALE", np.nan)
    match = "Parameter 'body/bias' has 8 values of 8 that are NaN"
    refuses(tmp_path, ("layers", tmp_path / "run", *TINY), match)


def test_layers_refuses_weights_of_another_architecture(digits, tmp_path):
    args = ("--model", "resnet20", "--data", "digits")
    match = "weights of 'digits_resnet', not of 'resnet20'. Choose"
    weights = ("--weights", digits / "weights.safetensors")
    refuses(tmp_path, ("layers", tmp_path / "run", *args, *weights), match)


def test_layers_refuses_what_is_no_weights_file(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_text("not weights")
    match = "weights.safetensors is not a readable safetensors file"
    refuses(tmp_path, ("layers", tmp_path, *DIGITS), match)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (("--examples", 100_000), "100000 calibration examples.*can give 1 to 596.*Ask for"),
        (("--examples", 0), "examples=0: give at least 1"),
        (("--w-bits", 1, 4), "1 bits on the 'symmetric' grid: expected 2 to 16, or 32"),
        (("--w-bits", 4, 17), "w_bits=17 is not a bit-width: expected 1 to 16, or 32"),
        (("--a-bits", 0), "a_bits=0 is not a bit-width"),
        (("--batch-size", 0), "batch_size=0: give at least 1"),
        (("--w-bits", 32, "--a-bits", 32), "Nothing to analyse.*bits below 32"),
        (
            ("--weights.granularity", "group", "--weights.group-size", 5),
            "'stem': groups of 5 do not divide.*Choose a divisor",
        ),
        (("--devices", 0), "devices=0: give at least 1"),
        (("--devices", 1000), r"1000 devices asked for; there are \d+ \(cpu\). Ask for 1 to"),
        (("--coordinator", "host:1"), "--coordinator is for several processes: add --distrib"),
        (("--process-index", 0), "--process-index is for several processes"),
        (("--distributed", "--processes", 2), "2 processes, index None: give all three"),
        (("--memory", "much"), "memory='much': expected bytes, as 4GB"),
        (("--memory", "40%"), "memory='40%': expected bytes"),
        (("--memory", "0.5"), "memory='0.5': expected bytes"),
        (
            ("--memory", "1kB", *NEWTON),
            "'gauss_newton' takes .* MB for 1 example.*limit of 0.001 MB",
        ),
        (("--class-samples", 0), "class_samples=0: give at least 1"),
        (
            ("--class-samples", 4, "--loss", "kl", "--metrics", "gauss_newton"),
            "curvature of cross-entropy alone",
        ),
        (
            ("--class-samples", 4, "--metrics", "squared_error"),
            "class_samples is for gauss_newton: add it to the metrics",
        ),
    ],
)
def test_sensitivity_refuses(run, args, match):
    refuses(run, ("sensitivity", run, *args), match)


LOSSES = "tests.cli.losses"


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (("mse",), "'mse' is not a loss. Expected cross_entropy, squared_error, kl or package"),
        (
            ("no.such:loss",),
            "Cannot get a loss from.*'no'.*logits of one example and its label",
        ),
        ((f"{LOSSES}:none",), "'none'.*package.module:function.*its label"),
        ((f"{LOSSES}:number",), "losses:number' is int, not a function, of the logits"),
        ((f"{LOSSES}:by_class",), r"returned float32\[10\]; expected one real number.*called"),
        ((f"{LOSSES}:whole_number",), r"returned int32\[\]; expected one real number"),
        ((f"{LOSSES}:pair",), "returned tuple; expected one real number"),
        ((f"{LOSSES}:undefined",), "is NaN or infinite for 16 of the first 16 examples, where"),
        ((f"{LOSSES}:broken",), "failed with KeyError: 'lost'. It is called with the logits"),
        (("kl", "--rivals"), "'empirical_fisher' is zero with --loss kl"),
    ],
)
def test_sensitivity_refuses_what_is_no_loss(run, args, match):
    refuses(
        run, ("sensitivity", run, *FEW, "--metrics", "gauss_newton", "--loss", *args), match
    )


def test_sensitivity_names_the_metric_where_numbers_overflow(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "SCALE", 1e20)
    works("layers", tmp_path, *TINY)
    match = "Metric 'gauss_newton' is NaN or infinite.*Check"
    refuses(tmp_path, ("sensitivity", tmp_path, *FEW, "--metrics", "gauss_newton"), match)


def test_sensitivity_refuses_a_data_folder_that_is_gone(run):
    rewritten(
        run / "layers.json", lambda x: x["network"].update(data="cifar10", data_dir="gone")
    )
    refuses(run, ("sensitivity", run), "no data folder gone")


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (("--rule", "pin bodi=W8A8"), "'bodi'.*matches no layer. Did you mean 'body'.*stem"),
        (("--rule", "pin .*/conv=W8A8"), "matches no layer.*the layers are stem, body, head"),
        (("--rule", "pin body=W5A5"), "leaves no candidate: the candidates are W2A4"),
        (("--rule", "pin (body=W8A8"), "not a regular expression"),
        (("--rule", "freeze body"), "is not a valid rule: expected 'pin PATTERN=W8A8'"),
        (("--rule", "exclude .*"), "Every layer is excluded"),
        (("--budget", "size_bytes=10"), "size_bytes=10 cannot be met.*Raise"),
        (("--budget", "memory=10k"), "unknown cost. Expected one of size_bytes"),
        (("--budget", "size_bytes=much"), "cannot be read: expected a number"),
        (("--budget", "size_bytes"), "is not a valid budget: expected NAME=VALUE"),
        (("--budget", "size_bytes=W3A3"), "W3A3.*not"),
        (("--budget", "bops=1G", "bops=2G"), "given more than once"),
        (("--metrics", "hessian"), "'hessian' is not in.*gauss_newton, squared_error"),
        (("--first-last-bits", 6), "have 6 bits.*none of W2A4.*--first-last-bits"),
        (("--time-limit-s", 0), "time_limit_s=0.0: give a number above 0"),
    ],
)
def test_solve_refuses(run, args, match):
    refuses(run, ("solve", run, "--replace", *args), match)


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("solve", "--budget", "size_bytes=much"), 2),
        (("solve", "--budget", "memory=10k"), 2),
        (("solve", "--rule", "freeze body"), 2),
        (("sensitivity", "--w-bits", 17), 2),
        (("sensitivity", "--w-bits", "four"), 2),
        (("solve", "--seed", 0, "--seed", 1), 2),
        (("solve", "--budget", "size_bytes=10kB"), 1),  # without a folder
    ],
)
def test_arguments_that_cannot_be_right_end_with_code_2(tmp_path, args, code):
    step, *options = args
    result = jmpq(step, tmp_path / "run", *options)
    assert result.code == code, result.err
    assert result.err.startswith("jmpq: ")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (("--examples", 0), "examples=0: give at least 1"),
        (("--batch-size", 0), "batch_size=0: give at least 1"),
        (("--correct", "bias", "--correct-examples", 0), "correct_examples=0: give at least"),
    ],
)
def test_evaluate_refuses(run, args, match):
    refuses(run, ("evaluate", run, *args), match)


@pytest.mark.parametrize(
    ("step", "missing", "match"),
    [
        ("sensitivity", "layers.json", "layers.json not found: run `jmpq layers .*` first"),
        ("solve", "layers.json", "layers.json not found: run `jmpq layers .*` first"),
        ("solve", "sensitivity.npz", "npz not found: run `jmpq sensitivity.*` first"),
        ("evaluate", "layers.json", "layers.json not found: run `jmpq layers .*` first"),
        ("evaluate", "sensitivity.npz", "npz not found: run `jmpq sensitivity.*` first"),
        ("evaluate", "plan.json", "plan.json not found: run `jmpq solve .*` first"),
        ("report", "layers.json", "layers.json not found: run `jmpq layers .*` first"),
        ("report", "sensitivity.npz", "npz not found: run `jmpq sensitivity.*` first"),
        ("report", "plan.json", "plan.json not found: run `jmpq solve .*` first"),
    ],
)
def test_steps_out_of_order_name_the_step_to_run_first(run, step, missing, match):
    (run / missing).unlink()
    refuses(run, (step, run), match)


def cut(data):
    return data[: len(data) // 2]


def flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes(255 - byte for byte in data[middle : middle + 64]) + data[
        middle + 64 :
    ]  # fmt: skip


@pytest.mark.parametrize("spoil", [cut, flip, lambda data: b"", lambda data: b"text\n"])
@pytest.mark.parametrize("step", ["solve", "evaluate", "report"])
def test_a_spoilt_sensitivity_file_is_refused(run, step, spoil):
    path = run / "sensitivity.npz"
    path.write_bytes(spoil(path.read_bytes()))
    match = r"npz cannot be used \(not a sensitivity file\): run `jmpq sensitivity .*` again"
    refuses(run, (step, run), match)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema": "jmpq/layers", "version": 3}'])
def test_a_spoilt_layer_table_is_refused(run, text):
    (run / "layers.json").write_text(text)
    for step in ("sensitivity", "solve", "evaluate"):
        refuses(run, (step, run), "layers.json .*: run `jmpq layers .*` again")


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": "jmpq/plan", "version": 3}'])
def test_a_spoilt_plan_is_refused(run, text):
    (run / "plan.json").write_text(text)
    for step in ("evaluate", "report"):
        refuses(run, (step, run), "plan.json .*: run `jmpq solve .*` again")


@pytest.mark.parametrize(
    ("name", "writer", "reader"),
    [
        ("layers.json", "layers", "solve"),
        ("sensitivity.npz", "sensitivity", "solve"),
        ("plan.json", "solve", "evaluate"),
        ("evaluation.json", "evaluate", "report"),
    ],
)
def test_artifacts_of_version_1_are_refused_by_the_step_to_run_again(run, name, writer, reader):
    rewritten(run / name, lambda record: record.update(version=1))
    match = f"{name} has schema 'jmpq/.*' version 1; this jmpq reads .* version [34]: run "
    refuses(run, (reader, run), f"{match}`jmpq {writer} .*` again")


def test_weights_that_changed_are_noticed(run, monkeypatch):
    monkeypatch.setattr(networks, "SEED", 1)
    match = "weights of .* are not those of .*: run `jmpq layers .*` again, and the steps"
    for step in ("sensitivity", "evaluate"):
        refuses(run, (step, run), match)
    works("layers", run, *TINY)
    match = (
        r"sensitivity.npz was made from another .*layers.json \(weights differ\): run `jmpq "
        "sensitivity .*` again, and the steps after it"
    )
    for step in ("solve", "race", "refine", "floor", "evaluate", "finetune", "report"):
        refuses(run, (step, run), match)


def test_code_that_changed_is_noticed(run, monkeypatch):
    monkeypatch.setattr(networks, "STRIDE", 1)
    match = (
        r"layers of 'tests.cli.networks:tiny' are not those of .* \(body.*: run `jmpq layers"
    )
    for step in ("sensitivity", "evaluate"):
        refuses(run, (step, run), match)
    monkeypatch.setattr(networks, "STRIDE", 2)
    monkeypatch.setattr(networks, "ACTIVATION", nn.gelu)
    match = "code of 'tests.cli.networks:tiny' has changed .*what it computes is not. Run `jmpq"
    for step in ("sensitivity", "race", "refine", "floor", "evaluate", "finetune"):
        refuses(run, (step, run), match)
    works("layers", run, *TINY)
    match = (
        r"sensitivity.npz was made from another .*layers.json \(code differ.*: run `jmpq sens"
    )
    for step in ("solve", "evaluate", "report"):
        refuses(run, (step, run), match)
    monkeypatch.setattr(networks, "ACTIVATION", nn.relu)
    works("layers", run, *TINY)
    assert RunFolder(run).evaluation.measured  # all of it is of this code


def test_data_of_another_name_make_sensitivities_stale(run):
    rewritten(run / "layers.json", lambda record: record["network"].update(data="cifar10"))
    match = r"sensitivity.npz was made from another .*layers.json \(data differ"
    for step in ("solve", "report"):
        refuses(run, (step, run), match)


def test_nan_inputs_are_refused_by_every_step_that_looks_at_examples(run, monkeypatch):
    shutil.rmtree(run / "store")
    monkeypatch.setattr(
        Normalization, "__call__", lambda self, x: np.full(x.shape, np.nan, "f")
    )
    match = r"values in a batch of the \w+ split of digits are NaN or infinite. Check the data"
    for step in ("sensitivity", "race", "refine", "floor", "evaluate", "finetune"):
        refuses(run, (step, run), match)


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (("layers", *TINY), "layers.json"),
        (("sensitivity", *FEW, *NEWTON, "--seed", 1), "sensitivity.npz"),
        (("sensitivity", *FEW, *NEWTON, "--seed", 2), r"quantizers-\w+.journal"),
        (("solve", "--replace"), "plan.json"),
        (("evaluate", "--roles", "solution"), "evaluation.json"),
    ],
)
def test_a_full_disk_names_the_file_and_leaves_what_was_there(run, monkeypatch, step, name):
    full_disk(monkeypatch, name)
    command, *options = step
    match = rf"Cannot write .*/{name}: No space left on device. Free some space and run this"
    refuses(run, (command, run, *options), match)


def full_disk(monkeypatch, name):
    """A disk that is full as soon as a file of this name (a pattern) is to be written."""
    real = pathlib.Path.open

    def open_full(self, mode="r", *args, **kwargs):
        file = real(self, mode, *args, **kwargs)
        if set(mode) & set("xw+") and re.fullmatch(rf"\.?{name}(\.\w{{8}})?", self.name):
            file.write = no_space
        return file

    monkeypatch.setattr(pathlib.Path, "open", open_full)


def no_space(data):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_sensitivities_that_changed_are_noticed(run):
    works("sensitivity", run, *FEW, "--metrics", "squared_error", "--seed", 1)
    match = r"plan.json was made from another .*sensitivity.npz .*: run `jmpq solve"
    for step in ("race", "refine", "floor", "evaluate", "finetune", "report"):
        refuses(run, (step, run), match)
    works("solve", run, "--replace")
    refuses(run, ("report", run), "made from another .*plan.json.*: run `jmpq evaluate")


def test_weights_that_are_gone_are_named(digits, tmp_path):
    shutil.copy(digits / "layers.json", tmp_path)
    match = f"no weights file {tmp_path}/weights.safetensors"
    refuses(tmp_path, ("sensitivity", tmp_path), match)


@pytest.mark.parametrize(
    ("step", "match"),
    [
        (("train",), "Cannot write .*: there is a file in the place.*Choose"),
        (("layers", *TINY), "Cannot write .*: there is a file in the place.*Choose"),
        (("sensitivity",), "layers.json not found"),
        (("solve",), "layers.json not found"),
        (("evaluate",), "layers.json not found"),
        (("report",), "layers.json not found"),
    ],
)
def test_a_file_in_the_place_of_the_run_folder_is_refused(tmp_path, step, match):
    (tmp_path / "run").write_text("a file")
    name, *options = step
    refuses(tmp_path, (name, tmp_path / "run", *options), match)


@contextlib.contextmanager
def ordinary_user():
    """Root may write everywhere."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize(
    "step", [("layers", *TINY), ("sensitivity",), ("solve", "--replace"), ("evaluate",)]
)
def test_a_folder_without_permission_is_refused(run, step, monkeypatch):
    for folder in (run, *run.parents):
        if folder.stat().st_uid == os.geteuid() and "pytest" in str(folder):
            folder.chmod(0o555)
    name, *options = step
    try:
        with ordinary_user():
            match = "Cannot write .*: Permission denied. Choose another folder"
            refuses(run, (name, run, *options), match)
    finally:
        for folder in (run, *run.parents):
            if folder.stat().st_uid == os.geteuid() and "pytest" in str(folder):
                folder.chmod(0o755)


def test_a_folder_in_the_place_of_an_artifact_is_refused(run):
    (run / "plan.json").unlink()
    (run / "plan.json").mkdir()
    refuses(run, ("solve", run), "Cannot write .*plan.json: Is a directory")


@pytest.mark.parametrize(
    "args",
    [
        ("quantize", "run"),
        ("solve",),
        ("solve", "run", "--joint", "few"),
        ("solve", "--jiont"),
        ("sensitivity", "run", "--weights.granularity", "group"),
        ("sensitivity", "run", "--weights.clipping", "ema"),
        ("sensitivity", "run", "--weights.decay", "0.9"),
        ("sensitivity", "run", "--activations.rounding", "gptq"),
        ("sensitivity", "run", "--activations.along", "output"),
    ],
)
def test_wrong_arguments_end_with_code_2(args):
    result = jmpq(*args)
    assert result.code == 2
    assert "Traceback" not in result.out + result.err
    assert result.err.strip()
    assert result.out == ""


def test_debugging_shows_the_traceback(run, monkeypatch):
    monkeypatch.setenv("JMPQ_DEBUG", "1")
    with pytest.raises(ValueError, match="not a valid rule"):
        jmpq("solve", run, "--rule", "freeze body")


def test_squared_error_of_class_numbers_is_refused(digits):
    match = r"'squared_error' failed .*target has shape \[\] and its output \[10\]"
    refuses(digits, ("sensitivity", digits, *FEW, "--loss", "squared_error"), match)


def test_a_warning_is_one_line(monkeypatch, capsys):
    def step():
        warnings.warn("two\n  lines", UserWarning, stacklevel=2)

    monkeypatch.setattr("jmpq.cli.main._parsed", lambda args: step)
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        main(["report", "run"])
    assert capsys.readouterr().err == "jmpq: two lines\n"
