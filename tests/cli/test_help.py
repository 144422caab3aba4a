"""Help comes at once: without JAX and all that takes seconds to import."""

from tests.cli.command import finish, process

STEPS = (
    "train", "layers", "sensitivity", "solve", "evaluate", "finetune", "report", "demo"
)  # fmt: skip
HELP = """
import contextlib, io, json, sys
from jmpq.cli.main import main
found = {}
for step in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main(["--help"] if step == "jmpq" else [step, "--help"])
        except SystemExit as end:
            assert end.code == 0, (step, end.code)
    found[step] = out.getvalue()
slow = "jax flax optax orbax scipy cvxpy sklearn matplotlib tensorflow_datasets".split()
found["slow"] = [name for name in slow if name in sys.modules]
print(json.dumps(found))
"""


def test_help_of_every_step_names_units_and_imports_nothing_slow():
    import json

    result = finish(process("jmpq", *STEPS, code=HELP))
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found.pop("slow") == []
    overview = " ".join(found.pop("jmpq").split())
    assert all(step in overview for step in STEPS)
    assert "nats per example" in overview
    for step, text in found.items():
        assert "RUN" in text or "run" in text, step
    assert "Bytes" in found["solve"] or "bytes" in found["solve"]
    assert "bit operations per example" in " ".join(found["solve"].replace("│", " ").split())
