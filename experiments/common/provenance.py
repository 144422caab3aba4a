"""Where a result comes from: commit, machine, versions."""

import os
import pathlib
import platform
import subprocess
from importlib import metadata
from typing import Any


def commit() -> str | None:
    """Commit of the code that runs; None outside a checkout."""
    command = ["git", "rev-parse", "HEAD"]
    here = pathlib.Path(__file__).parent
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    return done.stdout.strip() or None


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
