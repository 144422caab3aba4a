"""The step: a file in the run folder, checked in its own runtime."""

import dataclasses
import importlib.util
import json
import shutil
import typing
from dataclasses import replace

import jax
import pytest

from jmpq import run
from jmpq.allocation import Allocation
from jmpq.export import check
from jmpq.export.codes import take_codes
from jmpq.export.targets import TARGETS, Job
from jmpq.formats import Choice
from jmpq.quantizers.spec import InputSpec, KernelSpec
from jmpq.report import contents
from jmpq.report.tables import export_rows
from jmpq.run.options import ExportFormat
from tests.export import cases


@pytest.fixture(scope="module", autouse=True)
def as_users_have_it():
    """Types as outside of tests: a run is of float32."""
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory, as_users_have_it):
    """A digits network with a plan."""
    path = tmp_path_factory.mktemp("digits")
    run.train(path, run.Train(epochs=1))
    run.layers(path, run.Layers(model="digits_resnet", data="digits"))
    run.sensitivity(
        path,
        run.Sensitivity(
            metrics=("squared_error",),
            w_bits=(3, 8),
            a_bits=(8,),
            examples=32,
            activations=InputSpec(placement="stream"),
        ),
    )
    run.solve(path, run.Solve(budget=("size_bytes=W8A8",)))
    return path


def test_a_packed_file_agrees_with_the_evaluation(folder):
    options = run.Export(allocation="uniform/W3A8", check=64, batch_size=32, repeats=2)
    record = run.export(folder, options)
    assert record.payload_bytes == record.size_bytes
    assert record.file == "exported/uniform_W3A8.safetensors"
    assert record.checks["jax"].agreement["same_class"] == 1
    assert record.checks["jax"].agreement["largest"] < 1e-4
    assert set(record.checks["jax"].cpu_ms) == {"1", "32"}
    assert record.placement == "stream"
    planned = run.RunFolder(folder).planned("uniform/W3A8")
    assert record.size_bytes == planned.costs["size_bytes"]
    assert run.RunFolder(folder).exports.files["packed/uniform/W3A8"] == record


def test_an_onnx_file_stands_beside_it(folder, capsys):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra onnx)")
    from jmpq.cli.commands import export

    options = run.Export(
        format="onnx", allocation="uniform/W3A8", check=64, batch_size=32, repeats=2
    )
    export(folder, options)
    record = run.RunFolder(folder).exports.files["onnx/uniform/W3A8"]
    assert record.checks["onnxruntime"].agreement["same_class"] >= 0.95
    assert set(record.widened.values()) == {4}  # of 3 bits
    layers = {x.name: x for x in run.RunFolder(folder).layers.layers}
    bits = sum(layers[name].parameters for name in record.widened)  # one more each
    assert 0 <= record.widened_bytes - bits / 8 < len(record.widened)
    assert record.payload_bytes > record.size_bytes
    out = capsys.readouterr().out
    assert "same class as jmpq" in out
    assert "as onnxruntime reads codes of 2, 4, 8 and 16 bits" in " ".join(out.split())
    run.export(folder, run.Export(format="onnx", allocation="float", check=0))
    exports = run.RunFolder(folder).exports
    assert exports.files["onnx/float"].checks == {}
    assert "onnx/uniform/W3A8" in exports.files
    rows = export_rows(contents.read_contents(run.RunFolder(folder)).exports)
    assert [row["name"] for row in rows] == list(exports.files)
    by_name = {row["name"]: row for row in rows}
    assert by_name["onnx/float"]["runtime"] == "not run"
    times = record.checks["onnxruntime"].cpu_ms["1"]
    row = by_name["onnx/uniform/W3A8"]
    assert row["speedup_1"] == times["float"] / times["exported"]
    assert row["top1"] == record.checks["onnxruntime"].agreement["top1"]


def test_a_file_has_the_correction_that_its_plan_was_evaluated_with(folder, tmp_path):
    own = shutil.copytree(folder, tmp_path / "run")
    few = run.Evaluate(examples=64, correct="batch_norm", correct_examples=32)
    run.evaluate(own, few)
    options = run.Export(allocation="uniform/W3A8", check=64, repeats=1)
    record = run.export(own, options)
    measured = run.RunFolder(own).evaluation.measured["uniform/W3A8"]["evaluation"]
    assert record.checks["jax"].agreement["top1_jmpq"] == measured["top1"]
    assert record.checks["jax"].agreement["largest"] < 1e-4
    plain = run.export(own, dataclasses.replace(options, correct="none"))
    assert plain.file_sha256 != record.file_sha256
    told = run.export(own, run.Export(allocation="uniform/W3A8", format="ai-edge-quantizer"))
    assert any(sentence.startswith("Corrections of") for sentence in told.left_out)
    with pytest.raises(ValueError, match="leave out correct='bias'"):
        run.Export(finetuned=True, correct="bias")


def test_a_file_of_an_earlier_plan_is_called_so_in_the_report(folder):
    run.export(folder, run.Export(allocation="uniform/W3A8", check=0))
    made = run.RunFolder(folder).exports
    file = made.files["packed/uniform/W3A8"]
    before = run.RunFolder(folder).planned("uniform/W8A8").allocation
    files = {**made.files, "packed/uniform/W3A8": replace(file, allocation=before)}
    replace(made, files=files).write(folder / "export.json")
    rows = export_rows(contents.read_contents(run.RunFolder(folder)).exports)
    assert "packed/uniform/W3A8, of an earlier plan" in [row["name"] for row in rows]
    made.write(folder / "export.json")
    rows = export_rows(contents.read_contents(run.RunFolder(folder)).exports)
    assert [row["name"] for row in rows] == list(made.files)


def test_an_exported_record_of_other_weights_is_begun_anew(folder, capsys):
    run.export(folder, run.Export(allocation="float", check=0))
    made = run.RunFolder(folder).exports
    replace(made, weights_sha256="0" * 64).write(folder / "export.json")
    from jmpq.cli.commands import export

    export(folder, run.Export(allocation="uniform/W3A8", check=0))
    assert "It is begun anew." in " ".join(capsys.readouterr().out.split())
    assert list(run.RunFolder(folder).exports.files) == ["packed/uniform/W3A8"]


def test_codes_are_stored_as_all_runtimes_read_them(tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
    network = cases.network()
    found = cases.quantizers(KernelSpec(), (2, 3), (8,))
    names = [layer.name for layer in network.layers]
    coded = take_codes(network, found, Allocation.uniform(names, Choice(2, 8)))
    stored = {}
    for runtimes in (("onnxruntime",), ("onnxruntime", "openvino")):
        job = Job(coded=coded, path=tmp_path / "net.onnx", runtimes=runtimes)
        written = TARGETS["onnx"].write(job)
        stored[len(runtimes)] = written
    assert stored[1].widened == {}
    assert set(stored[2].widened.values()) == {4}
    more = stored[2].payload_bytes - stored[1].payload_bytes
    assert 0 <= stored[2].widened_bytes - more <= len(names)
    assert stored[2].reason == "onnxruntime and openvino read codes of 4, 8 and 16 bits"
    with pytest.raises(ValueError, match="runtimes is empty: give at least one"):
        run.Export(runtimes=())


def test_a_program_and_files_for_other_tools_stand_beside_them(folder, capsys):
    from jmpq.cli.commands import export

    options = run.Export(
        format="stablehlo", allocation="uniform/W3A8", check=32, batch_size=32, repeats=1
    )
    record = run.export(folder, options)
    assert record.checks["jax"].agreement["same_class"] == 1
    assert record.payload_bytes == record.size_bytes
    export(folder, run.Export(format="modelopt", allocation="uniform/W3A8"))
    record = run.RunFolder(folder).exports.files["modelopt/uniform/W3A8"]
    assert record.file == "exported/uniform_W3A8.modelopt.json"
    assert record.payload_bytes == 0
    assert record.checks == {}
    content = json.loads((folder / record.file).read_text())
    layers = len(run.RunFolder(folder).layers.layers)
    assert len(content["quant_cfg"]) == 1 + 2 * layers
    out = " ".join(capsys.readouterr().out.split())
    assert "Not said in the file: " in out
    assert "Inputs: grid 'affine' here, 'symmetric' in ModelOpt." in out
    with pytest.raises(ValueError, match=r"Qwix cannot express layer '.*' at W3A8: a convol"):
        run.export(folder, run.Export(format="qwix", allocation="uniform/W3A8"))
    assert not (folder / "exported/uniform_W3A8.qwix.json").exists()


def test_every_format_of_the_options_has_a_target():
    assert set(typing.get_args(ExportFormat)) == set(TARGETS)
    for target in TARGETS.values():
        assert {*target.packages, *target.programs} <= {*check.EXTRAS, "jax"}


def test_litert_that_is_not_installed_says_which_extra(folder):
    if importlib.util.find_spec("litert_converter"):
        pytest.skip("litert-converter is installed")
    with pytest.raises(
        ImportError, match=r"litert_converter is not installed: pip install 'jmpq\[litert\]'"
    ):
        run.export(folder, run.Export(format="litert", allocation="uniform/W3A8"))


@pytest.mark.parametrize(
    ("flags", "machine", "expected"),
    [
        ("fpu avx2", "x86_64", True),
        ("fpu avx2 avx512_vnni", "x86_64", False),
        ("fpu avx2 avx_vnni", "AMD64", False),
        ("fpu avx2", "aarch64", False),
    ],
)
def test_processors_that_cut_sums_off_are_known(flags, machine, expected):
    text = f"processor : 0\nflags\t\t: {flags}\nprocessor : 1\nflags\t\t: {flags}\n"
    assert check.overflows(text, machine) == expected
    assert not check.overflows("", machine)


def test_eight_bit_kernels_are_warned_of_where_sums_are_cut_off(monkeypatch):
    network = cases.network()
    found = cases.quantizers(KernelSpec(), (7, 8), (8,))
    names = [layer.name for layer in network.layers]
    seven, eight = (
        take_codes(network, found, Allocation.uniform(names, Choice(bits, 8)))
        for bits in (7, 8)
    )
    both = ["onnxruntime", "openvino"]
    monkeypatch.setattr(check, "overflows", lambda cpuinfo, machine: True)
    assert check.overflow_warning(seven, both) == ""
    warning = check.overflow_warning(eight, both)
    assert "8-bit weights (4 layers)" in warning
    assert "OpenVINO has no such option" in warning
    assert "OpenVINO" not in check.overflow_warning(eight, ["onnxruntime"])
    assert check.runtime_options("onnxruntime") == {"session.x64quantprecision": "1"}
    assert check.runtime_options("openvino") == {}
    monkeypatch.setattr(check, "overflows", lambda cpuinfo, machine: False)
    assert check.overflow_warning(eight, both) == ""
    assert check.runtime_options("onnxruntime") == {}


def test_a_missing_runtime_says_which_extra(folder, monkeypatch):
    monkeypatch.setitem(check.EXTRAS, "no_such_package", "onnx")
    with pytest.raises(ImportError, match=r"no_such_package is not installed: pip install 'jm"):
        check.need("no_such_package")


def test_impossible_options_and_missing_steps_are_refused(folder):
    with pytest.raises(
        ValueError, match="finetuned=True takes the allocation that was trained"
    ):
        run.Export(finetuned=True, allocation="a")
    with pytest.raises(FileNotFoundError, match=r"run `jmpq finetune .*` first"):
        run.export(folder, run.Export(finetuned=True))
    with pytest.raises(ValueError, match="check=-1: give at least 0"):
        run.Export(check=-1)


def test_an_edited_record_is_refused(folder):
    run.export(folder, run.Export(check=0))
    path = folder / "export.json"
    record = json.loads(path.read_text())
    record["files"] = {"packed/x": {"format": "packed"}}
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"export.json .*changed after it was written: files"):
        _ = run.RunFolder(folder).exports
    path.unlink()
