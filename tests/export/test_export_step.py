"""The step: a file in the run folder, checked in its own runtime."""

import json

import jax
import pytest

from jmpq import run
from jmpq.export import check


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
        run.Sensitivity(metrics=("squared_error",), w_bits=(3, 8), a_bits=(8,), examples=32),
    )
    run.solve(path, run.Solve(budget=("size_bytes=W8A8",)))
    return path


def test_a_packed_file_agrees_with_the_evaluation(folder):
    options = run.Export(allocation="uniform/W3A8", check=64, batch_size=32, repeats=2)
    record = run.export(folder, options)
    assert record.payload_bytes == record.size_bytes
    assert record.file == "exported/uniform_W3A8.safetensors"
    assert record.agreement["same_class"] == 1
    assert record.agreement["largest"] < 1e-4
    assert set(record.cpu_ms) == {"1", "32"}
    planned = run.RunFolder(folder).planned("uniform/W3A8")
    assert record.size_bytes == planned.costs["size_bytes"]
    assert run.RunFolder(folder).exports.files["packed/uniform/W3A8"].runtime.startswith("jax ")


def test_an_onnx_file_stands_beside_it(folder, capsys):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra onnx)")
    from jmpq.cli.commands import export

    options = run.Export(
        format="onnx", allocation="uniform/W3A8", check=64, batch_size=32, repeats=2
    )
    export(folder, options)
    record = run.RunFolder(folder).exports.files["onnx/uniform/W3A8"]
    assert record.agreement["same_class"] >= 0.95
    assert set(record.widened.values()) == {4}  # of 3 bits
    assert record.payload_bytes > record.size_bytes
    out = capsys.readouterr().out
    assert "same class as jmpq" in out
    assert "Codes stored at more bits than they have" in out
    run.export(folder, run.Export(format="onnx", allocation="float", check=0))
    exports = run.RunFolder(folder).exports
    assert exports.files["onnx/float"].agreement == {}
    assert "onnx/uniform/W3A8" in exports.files


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
