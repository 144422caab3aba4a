"""What tests read of README.md, docs and the other pages: snippets, commands, links, prose."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
MADE = ("_build", "api", "command_line.md")  # written when the site is built
DOCS = [
    path
    for path in sorted((ROOT / "docs").rglob("*.md"))
    if not {*MADE} & {*path.relative_to(ROOT).parts}
]
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]


def name(path):
    return str(path.relative_to(ROOT))


def blocks(page):
    """Language and text of every fenced block."""
    return re.findall(r"^```([^\n]*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def snippets(path):
    """The Python of a page, block by block."""
    return [text for language, text in blocks(path.read_text()) if language == "python"]


def commands(path):
    """The commands of a page, continued lines joined, comments left to the shell."""
    found = [text for language, text in blocks(path.read_text()) if language in ("", "bash")]
    return "\n".join(found).replace("\\\n", " ").splitlines()


def without_code(page):
    """The page without fenced blocks, comments and raw marks."""
    page = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"<!--.*?-->", "", page, flags=re.DOTALL)


def links(path):
    """Targets of the links and images of a page."""
    page = re.sub(r"`[^`]*`", "", without_code(path.read_text()))
    return re.findall(r"\]\(([^)\s]+)\)", page)


def anchors(path):
    """Anchors of the headings of a page."""
    heads = re.findall(r"^#+ (.*)$", without_code(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def sentences(page):
    """The sentences of a page's prose; rows of tables, headings and code are none."""
    text = without_code(page)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`", "Code", text)
    lines = ["" if re.match(r"\s*(\||#|---)", line) else line for line in text.splitlines()]
    parts = re.split(r"\n\s*\n|^\s*(?:[-*]|\d+\.) ", "\n".join(lines), flags=re.MULTILINE)
    return [
        " ".join(sentence.split())
        for part in parts
        for sentence in re.split(r"(?<=[.!?])[*_)\"]*\s+(?=[\"(*_]*[A-Z0-9Wλεα])", part)
        if sentence.strip()
    ]
