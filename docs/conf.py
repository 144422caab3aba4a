"""Sphinx: Markdown pages, notebooks, API from docstrings, command line from its parser."""

import importlib
import os
import pathlib
import subprocess
import sys

import jupytext

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent

import jmpq  # noqa: E402

project = "jmpq"
author = "The jmpq authors"
copyright = "2026, the jmpq authors"
version = release = jmpq.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
templates_path = []
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["jmpq.css"]
html_title = f"jmpq {release}"
highlight_language = "none"
default_role = "code"
nitpicky = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off" if os.environ.get("JMPQ_DOCS_NOTEBOOKS") == "off" else "cache"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
os.environ.pop("MPLBACKEND", None)  # with another than the kernel's, pages have no figures

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
suppress_warnings = ["myst.xref_missing_source"]

STAGES = {
    "network": "Networks and their layers",
    "zoo": "Built-in networks",
    "data": "Data sets",
    "training": "Losses and training",
    "quantizers": "Quantizers",
    "curvature": "Curvature of any function",
    "sensitivity": "Sensitivities and predictions",
    "problem": "Problems, costs, rules, plans",
    "solvers": "Solvers",
    "deploy": "Measuring and fine-tuning",
    "export": "Files for other programs",
    "run": "The run folder and its steps",
    "study": "Studies: grids of runs",
    "report": "The report",
}


def write_api(folder: pathlib.Path) -> None:
    """One page a stage: its own page, then its public names."""
    folder.mkdir(parents=True, exist_ok=True)
    index = ["# API", "", "One page a stage, in the order of the data flow.", ""]
    index += ["```{toctree}", ":maxdepth: 1", "", *STAGES, "```", ""]
    _write(folder / "index.md", "\n".join(index))
    for stage, title in STAGES.items():
        lines = [f"# {title}", "", "```{eval-rst}", f".. automodule:: jmpq.{stage}", ""]
        for module, name in _public(stage):
            value = getattr(importlib.import_module(module), name)
            kind = "autoclass" if isinstance(value, type) else "autofunction"
            if not callable(value):
                continue
            lines += [f".. {kind}:: {module}.{name}", ""]
            if kind == "autoclass":
                lines[-1:] = ["   :members:", ""]
        _write(folder / f"{stage}.md", "\n".join([*lines, "```", ""]))


def _public(stage: str) -> list[tuple[str, str]]:
    """Public names of a stage with the module each is written in."""
    found = {}
    for home, names in jmpq._HOMES.items():
        if home.split(".")[0] == stage:
            found |= {name: getattr(jmpq, name) for name in names}
    page = importlib.import_module(f"jmpq.{stage}")
    found |= {name: getattr(page, name) for name in getattr(page, "__all__", ())}
    pairs = {
        (value.__module__, name)
        for name, value in found.items()
        if hasattr(value, "__module__")
    }
    return sorted(pair for pair in pairs if pair[0].startswith("jmpq."))


def write_command_line(path: pathlib.Path) -> None:
    """The help of every step, as the parser prints it."""
    from jmpq.cli.main import STEPS

    lines = [
        "# Command line",
        "",
        "The help of every step, as `jmpq STEP --help` prints it.",
        "",
    ]
    environment = {**os.environ, "COLUMNS": "88", "NO_COLOR": "1"}
    for step in (None, *STEPS):
        command = [sys.executable, "-m", "jmpq", *([step] if step else []), "--help"]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        )
        title = f"jmpq {step}" if step else "jmpq"
        lines += [f"## {title}", "", "```text", done.stdout.rstrip(), "```", ""]
    _write(path, "\n".join(lines))


def write_notebooks(folder: pathlib.Path) -> None:
    """The percent scripts as notebooks, which are run when the site is built."""
    for script in sorted((ROOT / "notebooks").glob("[0-9]*.py")):
        notebook = jupytext.read(script)
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook.metadata |= {"kernelspec": kernel, "language_info": {"name": "python"}}
        _write(folder / f"{script.stem}.ipynb", jupytext.writes(notebook, fmt="ipynb"))


def _write(path: pathlib.Path, text: str) -> None:
    """Write what has changed, so that what has not is not built again."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def escape_bars(app, what, name, obj, options, lines: list[str]) -> None:
    """|λ| in a docstring is an absolute value, not one of reST's substitutions."""
    lines[:] = [line.replace("|", r"\|") for line in lines]


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", escape_bars, priority=900)


write_api(HERE / "reference" / "api")
write_command_line(HERE / "reference" / "command_line.md")
write_notebooks(HERE / "tutorials")
