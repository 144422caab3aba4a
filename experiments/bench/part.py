"""One measured part of the curvature benchmark, in a process of its own.

Run:     python -m experiments.bench.part FOLDER SIDE PART THREADS   (by bench_curvature)
Reads:   FOLDER/work.json, FOLDER/work.npz, FOLDER/weights.safetensors
Writes:  FOLDER/SIDE-PART-THREADS.json
"""

import pathlib
import sys
from typing import Any, Literal

from experiments.bench.work import Work, peak_rss_bytes, pin
from jmpq.files import write_json

Side = Literal["jmpq", "pyhessian", "curvlinops", "torch"]


def run_part(folder: pathlib.Path, side: Side, part: str, threads: int) -> dict[str, Any]:
    """Measure one part of one side."""
    work = Work.load(folder)
    if side == "jmpq":
        from experiments.bench import ours as implementation
    else:
        from experiments.bench import peers as implementation
    implementation.use_threads(part, threads)
    before = peak_rss_bytes()
    found = implementation.PARTS[side][part](work)
    return {
        **found,
        "side": side,
        "part": part,
        "threads": threads,
        "device": implementation.device(),
        "rss_before_bytes": before,
        "peak_rss_bytes": peak_rss_bytes(),
    }


def main() -> None:
    """Measure the part that the arguments name."""
    folder, side, part, threads = sys.argv[1:]
    pin(int(threads))
    path = pathlib.Path(folder)
    found = run_part(path, side, part, int(threads))  # type: ignore[arg-type]
    write_json(path / f"{side}-{part}-{threads}.json", found)


if __name__ == "__main__":
    main()
