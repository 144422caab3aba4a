"""Where a result comes from: code, weights, machine, versions."""

import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jmpq.network.network import Network

ROOT = pathlib.Path(__file__).parents[2]
STAMP = "made_by.json"
UNKNOWN = {"commit": None, "dirty": None, "source_sha256": None}


def made_by(
    module: str, folder: pathlib.Path | None = None, old: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The code that makes a result: commit, uncommitted changes, hash of the source.

    A result that goes on from finished parts also has ``earlier``: every other state of the
    code that may have made some of them, first to last. Where it is empty, one state of the
    code made all.

    Args:
        module: Dotted name of the experiment.
        folder: Folder of finished parts. A file in it remembers the code that wrote there.
        old: The result so far, where that is what an experiment goes on from.
    """
    from jmpq.files import write_json
    from jmpq.study.source import source_sha256

    now = {
        "commit": _git("rev-parse", "HEAD") or None,
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no", "--", "*.py")),
        "source_sha256": source_sha256(module),
    }
    before: list[Mapping[str, Any]] = []
    if old:
        before += [*old.get("earlier", ()), {key: old.get(key) for key in now}]
    if folder is not None:
        stamp = folder / STAMP
        if stamp.is_file():
            before += json.loads(stamp.read_text())
        elif folder.is_dir() and any(folder.iterdir()):
            before.append(UNKNOWN)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(stamp, _distinct([*before, now]))
    if folder is None and old is None:
        return now
    earlier = [x for x in _distinct(before) if x["source_sha256"] != now["source_sha256"]]
    return {**now, "earlier": earlier}


def weights_of(network: "Network") -> dict[str, str]:
    """Hash of a network's parameters, as a field of a result."""
    from jmpq.zoo.tensor_files import weights_sha256

    return {"weights_sha256": weights_sha256(network.params)}


def _distinct(states: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """States of the code, each source once, where it came first."""
    return list({state["source_sha256"]: state for state in states[::-1]}.values())[::-1]


def _git(*command: str) -> str:
    """What git prints; empty outside a checkout, or without git."""
    try:
        done = subprocess.run(
            ["git", *command], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    """Processor, cores and how busy they are (load averages over 1, 5 and 15 minutes)."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
    }


def versions(*packages: str) -> dict[str, str | None]:
    """Versions of Python and of packages, None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found
