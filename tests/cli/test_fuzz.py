"""Every option, spoilt: one line that says so, and nothing changes.

Printed with ``pytest -s``: how many cases of which kind ended in which way.
"""

from jmpq.cli import commands, main
from tests.cli import fuzz

# Values that make sense, though they look wrong: a zero that switches something off.
SENSIBLE = (
    r"--(weight-decay|shift|seed|qbert-spread|activations\.decay|process-index): zero",
    r"--(first-last-bits|search-evaluations|random|sweep|joint|max-drop): zero",
    r"--(scale-learning-rate|warmup|momentum|distillation|label-smoothing|check): zero",
    r"--loss-ceiling: (zero|negative)",
)


def summary(ends, accepted):
    """Print the table; fail with the cases that ended in a way that is not allowed."""
    print(f"\n{fuzz.table([(case.kind, end.way) for case, end in ends])}")
    bad = [
        f"{case.what}, {case.kind}: {end.way} {end.line.strip()}"
        for case, end in ends
        if end.way != "refused" and not (end.way == "accepted" and fuzz.allowed(case, accepted))
    ]
    assert not bad, "\n".join(bad)


def test_every_option_refuses_what_it_cannot_be(tmp_path, monkeypatch):
    for name in main.STEPS:
        monkeypatch.setattr(commands, name, fuzz.stand_in(name))
    ends = [(case, fuzz.attempt(case, tmp_path)) for case in fuzz.option_cases()]
    assert len(ends) > 800
    for case, end in ends:
        assert "Unrecognized" not in end.line or case.kind in ("wrong kind", "negative"), case
    summary(ends, SENSIBLE)
