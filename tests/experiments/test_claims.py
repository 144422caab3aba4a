"""What the documentation says of results holds in the committed JSON."""

import copy
import dataclasses
import re

import pytest

from experiments.claims import claim as claims
from experiments.claims.claim import RESULTS, Made, all_modules, file_sha256, load
from experiments.figures import draw
from jmpq.study import source
from tests import pages

EVERY = dict(all_modules())
MADE = {name: made for module in EVERY.values() for name, made in module.MADE.items()}


@pytest.fixture(scope="module")
def results():
    return {name: load(name) for name in MADE}


def checked(module, results):
    return module.check({name: results[name] for name in module.MADE})


def test_every_committed_result_has_claims():
    committed = {path.stem for path in RESULTS.glob("*.json")}
    assert committed == set(MADE), "write a file in experiments/claims, and name it in MODULES"


@pytest.mark.parametrize("name", MADE)
def test_a_result_is_the_one_that_was_checked(name):
    assert file_sha256(name) == MADE[name].sha256, (
        f"{name}.json has changed: look at `python -m experiments.claims`, correct prose that "
        "no longer holds, and take the hashes from `python -m experiments.claims hashes`"
    )


def complaint(made: Made) -> str:
    """What is wrong with the mark of a result; empty if nothing."""
    if made.is_current:
        return "the code is the one that is here: take the mark off" if made.stale else ""
    return "" if made.stale else "the code has changed: run it again, or say so in `stale`"


@pytest.mark.parametrize("name", MADE)
def test_a_result_of_older_code_is_marked(name):
    assert complaint(MADE[name]) == ""


def test_a_result_that_was_current_is_stale_when_its_code_changes(monkeypatch):
    modules = ("experiments.claims.claim",)
    made = Made(sha256="", modules=modules, source_sha256=source.source_sha256(*modules))
    assert complaint(made) == ""
    assert "take the mark off" in complaint(dataclasses.replace(made, stale="old"))
    monkeypatch.setattr(claims, "source_sha256", lambda *modules: "changed")
    assert "run it again" in complaint(made)
    assert complaint(dataclasses.replace(made, stale="old")) == ""


@pytest.mark.parametrize("name", EVERY)
def test_claims_hold(name, results):
    found = checked(EVERY[name], results)
    assert found
    wrong = [f"{c.id}: {c.value:g}, expected {c.least:g} to {c.most:g}" for c in found
             if not c.holds]  # fmt: skip
    assert not wrong


def test_identifiers_are_unique(results):
    ids = [c.id for module in EVERY.values() for c in checked(module, results)]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", EVERY)
def test_changing_one_number_makes_a_claim_fail(name, results):
    """The test of the test: no claim holds whatever the JSON says."""
    module = EVERY[name]
    for claim in checked(module, results):
        assert any(
            not again.holds
            for new in changes(at(results, claim.decides))
            for again in checked(module, with_value(results, claim.decides, new))
            if again.id == claim.id
        ), claim.id


def at(tree, path):
    return at(tree[path[0]], path[1:]) if path else tree


def with_value(tree, path, new):
    """A tree that is another one but for the value at the end of a path."""
    if not path:
        return new
    other = copy.copy(tree)
    other[path[0]] = with_value(tree[path[0]], path[1:], new)
    return other


def changes(old):
    """Other values in the place of one: far greater, far smaller, the other way round."""
    if old == []:
        return [["one"]]
    if isinstance(old, list):
        return [
            [min(old) + max(old) - x for x in old],
            [x + 100 for x in old],
            [100 * x for x in old],
            [x / 100 for x in old],
            old[::-1],
        ]
    if isinstance(old, str):
        return ["feasible"]
    return [old * 1000 + 1000, -old * 1000 - 1000]


# Blocks of a page that tell what was done, not what was found.
SETTING = re.compile(r"\*\*(Question|Setting|Files?)\.|Further figures|More figures|All scores")
ASIDE = {"What this does not show", "Contents"}
RESULTS_OF_README = {"Results", "The default, and why"}


def findings(path):
    """Blocks that tell what was found, each with the claims that it cites."""
    page = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for name in draw.marked(page):
        page = re.sub(rf"<!-- {name} -->.*?<!-- /{name} -->", "", page, flags=re.DOTALL)
    for section in re.split(r"^(?=#+ )", page, flags=re.MULTILINE):
        title, _, text = section.partition("\n")
        title = title.lstrip("# ")
        if path == pages.README and title not in RESULTS_OF_README:
            continue
        for block in re.split(r"\n\s*\n|^(?=- )", text, flags=re.MULTILINE):
            cited = " ".join(re.findall(r"<!-- claims: (.*?) -->", block, re.DOTALL)).split()
            prose = re.sub(r"<!--.*?-->", "", block, flags=re.DOTALL).strip()
            prose = re.sub(r"!\[[^\]]*\]\([^)]*\)|`[^`]*`", "", prose)
            prose = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", prose).strip()
            told = not SETTING.match(prose) and title not in ASIDE
            if prose and told and (title == "Findings" or cited or numbers(prose)):
                yield prose, cited


def numbers(text):
    """Numbers of a text, without those in names, as ResNet-20, W4 and int8."""
    found = re.findall(r"(?<![\w.-])\d[\d,]*(?:\.\d+)?(?![\w])", text)
    return {number.replace(",", "").rstrip(".") for number in found}


PROSE = [pages.README, *sorted((pages.ROOT / "docs" / "results").glob("*.md"))]
WITHOUT_STATISTIC = (  # findings that are no statement on numbers
    "This is one network and one draw",
    "Greedy search finds the optimum",
    "First and last layer",
    "**First and last layer",
)


@pytest.fixture(scope="module")
def every(results):
    return {c.id: c for module in EVERY.values() for c in checked(module, results)}


def unsupported(path, every):
    """Findings that cite no claim, or have a number that is in none of those that they cite."""
    wrong = []
    for prose, cited in findings(path):
        if prose.lstrip("- ").startswith(WITHOUT_STATISTIC):
            continue
        said = " ".join(every[name].says for name in cited if name in every)
        missing = numbers(prose) - numbers(said)
        unknown = [name for name in cited if name not in every]
        if not cited or missing or unknown:
            wrong.append((prose[:70], sorted(missing), unknown))
    return wrong


@pytest.mark.parametrize("path", PROSE, ids=pages.name)
def test_every_number_of_a_finding_is_in_a_claim_that_it_cites(path, every):
    assert not unsupported(path, every)


def test_a_changed_number_of_a_page_is_found(tmp_path, every):
    """The test of the test, for prose."""
    text = (pages.ROOT / "docs" / "results" / "outcome.md").read_text()
    page = tmp_path / "outcome.md"
    for old, new, missing in (
        ("3 bits at most 0.7.", "3 bits at most 0.4.", ["0.4"]),
        ("<!-- claims: outcome.gptq.first_order -->", "", []),
    ):
        assert text.count(old) == 1
        page.write_text(text.replace(old, new))
        ((_, found, unknown),) = unsupported(page, every)
        assert (not unknown, set(missing) <= set(found)) == (True, True)


def test_every_result_decides_a_claim(every):
    assert {c.decides[0] for c in every.values()} == set(MADE)


def test_every_citation_of_a_guide_is_of_a_claim(every):
    for path in pages.PAGES:
        text = re.sub(r"`[^`\n]*`", "", path.read_text())
        for names in re.findall(r"<!-- claims: (.*?) -->", text, re.DOTALL):
            assert set(names.split()) <= set(every), path


def test_every_claim_is_cited(every):
    text = " ".join(path.read_text() for path in pages.PAGES)
    cited = " ".join(re.findall(r"<!-- claims: (.*?) -->", text, re.DOTALL)).split()
    assert sorted(set(every) - set(cited)) == []


def test_numbers_of_findings_are_found():
    text = "At 2.5 bits ResNet-20 (W4A8, int8) loses 1,000 of 3 to 4 points, λ2 0.05."
    assert numbers(text) == {"2.5", "1000", "3", "4", "0.05"}
