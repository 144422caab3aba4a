"""Every artifact, spoilt in every way: one line that names it, and nothing changes.

Printed with ``pytest -s``: how many cases of which file ended in which way. The default run
takes a sample; ``-m slow`` all cases, and every kind by all commands that read the file.
"""

import json
import random
import re
import shutil

import pytest

from jmpq.journal import Journal
from tests.cli import fuzz, spoilt
from tests.cli.command import contents, jmpq

SEED, SAMPLE, COMMANDS = 14, 300, 60
# Cases that change nothing that a command takes from the file.
HARMLESS = (
    # The same values in another layout; of the others the file's own hash is known elsewhere.
    r"(layers.json|evaluation.json|finetuning.json|superposed.npz) : written anew",
    r"plans/tight/evaluation.json : written anew",
    # Optional artifacts: without them there is less to tell.
    r"(plans/tight/)?(superposed.npz|evaluation.json|finetun\w+.\w+) : removed",
)


# What a command of that name may take as it is, though commands that read more refuse it.
TAKEN = (
    # The same values; `report` knows the hash of the file that was evaluated.
    r"(?!report)\w+ (plans/tight/)?plan.json : written anew",
    r"solve sensitivity.npz : written anew",  # a new plan is made of it
    r"solve (plans/tight/)?plan.json : removed",  # solving begins anew
    r"sensitivity layers.json : that of a run .*",  # it begins with the layers
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return spoilt.write_whole(tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture(scope="module")
def every(whole, tmp_path_factory):
    """All cases."""
    runs = tmp_path_factory.mktemp("others")
    others = {
        "of other examples": spoilt.write_whole(runs / "examples", seed=1),
        "of other data": spoilt.write_whole(runs / "data", data="digits"),
    }
    return list(spoilt.cases(whole, others))


def harmless(case):
    return any(re.fullmatch(pattern, str(case)) for pattern in HARMLESS)


def refusing(case):
    """Commands that have to refuse a case."""
    if harmless(case):
        return []
    taken = [re.compile(pattern) for pattern in TAKEN]
    return [r for r in case.readers if not any(t.fullmatch(f"{r} {case}") for t in taken)]


def read(case, folder):
    """How a case ends that is read as commands do at their heads."""
    try:
        spoilt.read_all(folder, case.plan)
    except (ValueError, OSError) as error:
        return fuzz.End(*judged(case, str(error)))
    except BaseException as error:  # what a user would see as a traceback
        return fuzz.End("traceback", f"{type(error).__name__}: {error}")
    return fuzz.End("accepted")


def judged(case, line):
    """Whether a message is one line that names the file and what to do."""
    name = case.file.rpartition("/")[2]
    says = name in line and re.search(r"`jmpq \w+ .*`|write over it with --replace", line)
    return ("refused" if says and "\n" not in line.strip() else "unclear"), line


def command(case, reader, folder):
    """How a case ends in a command."""
    option = () if case.plan is None else ("--plan", case.plan)
    if reader == "solve":  # a plan that is not there yet reads everything but plans
        of_plan = case.file.endswith("plan.json")
        name = case.plan if of_plan else "fresh"
        option = () if name is None else ("--name", name)
    try:
        result = jmpq(reader, folder, *option)
    except BaseException as error:
        return fuzz.End("traceback", f"{type(error).__name__}: {error}")
    if result.code == 0:
        return fuzz.End("accepted")
    return fuzz.End(*judged(case, result.err))


def spoil_and_see(case, folder, see):
    """Spoil a file, see what happens, and put the file back."""
    path = folder / case.file
    original = path.read_bytes()
    case.spoil(path)
    before = contents(folder)
    end = see()
    if contents(folder) != before:
        end = fuzz.End("unclear", f"changed the folder: {end}")
    path.write_bytes(original)
    return end


def check(ends):
    print(f"\n{fuzz.table([(case.file, end.way) for case, end in ends])}")
    print(fuzz.table([(kind_of(case), end.way) for case, end in ends]))
    wanted = {True: "accepted", False: "refused"}
    bad = [f"{case}: {end.way} {end.line}" for case, end in ends
           if end.way != wanted[harmless(case)]]  # fmt: skip
    assert not bad, "\n".join(bad)


def kind_of(case):
    return "swapped" if case.kind.startswith("that of") else case.kind


def sampled(cases, count):
    """A sample with every kind of every file in it."""
    rng = random.Random(SEED)
    chosen = {}
    for case in rng.sample(cases, len(cases)):
        chosen.setdefault((case.file, kind_of(case)), case)
    rest = [case for case in cases if case not in chosen.values()]
    return [*chosen.values(), *rng.sample(rest, max(count - len(chosen), 0))]


def test_every_spoilt_artifact_is_refused_where_it_is_read(whole, every):
    some = sampled(every, SAMPLE)
    check([(case, spoil_and_see(case, whole, lambda c=case: read(c, whole))) for case in some])


def test_commands_refuse_spoilt_artifacts(whole, every):
    some = [case for case in sampled(every, SAMPLE) if refusing(case)]
    rng = random.Random(SEED)
    check([
        (case, spoil_and_see(
            case, whole, lambda c=case: command(c, rng.choice(refusing(c)), whole)
        ))
        for case in rng.sample(some, COMMANDS)
    ])  # fmt: skip


@pytest.mark.slow
def test_every_case_is_refused_and_every_kind_by_every_command(whole, every):
    check([(case, spoil_and_see(case, whole, lambda c=case: read(c, whole))) for case in every])
    kinds = {}
    for case in every:
        for reader in refusing(case):
            kinds.setdefault((case.file, kind_of(case), reader), case)
    check([
        (case, spoil_and_see(case, whole, lambda c=case, r=reader: command(c, r, whole)))
        for (_, _, reader), case in kinds.items()
    ])  # fmt: skip


def test_what_no_command_reads_may_be_anything(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "front.csv").write_text("spoilt")
    spoilt.read_all(folder, None)


OUTCOME = {"examples": 40, "loss": 0.5, "kl": 0.25, "top1": None, "nested": {"a": [1, 2.5]}}


def test_a_spoilt_journal_gives_what_was_kept_or_nothing(tmp_path):
    path, of = tmp_path / "store" / "outcomes-abc.journal", {"network": "tiny"}
    kept = {f"W{bits}A8": OUTCOME | {"loss": bits / 7} for bits in (2, 4, 8)}
    journal = Journal(path, of)
    for key, value in kept.items():
        journal.keep(key, value)
    header, *lines = path.read_bytes().splitlines(keepends=True)
    ends = []
    for number, line in enumerate((header, *lines)):
        for place, kind, change in spoilt._field_cases(json.loads(line)):
            record = json.loads(line)
            change(record)
            spoiled = [header, *lines]
            spoiled[number] = json.dumps(record).encode() + b"\n"
            path.write_bytes(b"".join(spoiled))
            found = Journal(path, of)
            read = {
                key: entry and entry.value for key in kept if (entry := found.get(key)) or 1
            }
            lost = [key for key, value in read.items() if value is None]
            assert all(read[key] in (None, value) for key, value in kept.items()), (place, kind)
            assert len(lost) == (3 if number == 0 else 1), (place, kind, lost)
            ends.append((kind, "refused"))
    print(f"\n{fuzz.table(ends)}")
    assert len(ends) > 100
