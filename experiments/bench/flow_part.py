"""One stage of the whole flow, measured in a process of its own.

Run:     python -m experiments.bench.flow_part FOLDER NAME   (by bench_flow)
Reads:   FOLDER/NAME.pickle, the stage: anything that is called without arguments
Writes:  FOLDER/NAME.json: seconds, peak memory, what the stage printed of its memory
"""

import contextlib
import dataclasses
import io
import pathlib
import pickle
import re
import sys
import time
import zipfile
from collections.abc import Callable
from typing import Any

from experiments.bench.work import peak_rss_bytes
from jmpq.files import write_json

ESTIMATE = re.compile(r"^\w+: about (\S+) MB on each device, (\d+) examples? at a time", re.M)


@dataclasses.dataclass(frozen=True)
class RandomWeights:
    """Write random weights of a built-in network."""

    path: pathlib.Path
    model: str
    classes: int
    seed: int = 0

    def __call__(self) -> None:
        import jax
        import jax.numpy as jnp

        from jmpq.zoo.architectures import build_module
        from jmpq.zoo.tensor_files import save_variables

        module = build_module(self.model, self.classes)
        size = (1, 8, 8, 1) if self.model.startswith("digits") else (1, 224, 224, 3)
        variables = jax.jit(module.init)(jax.random.key(self.seed), jnp.zeros(size))
        save_variables(self.path, variables, architecture=self.model)


@dataclasses.dataclass(frozen=True)
class RandomImages:
    """Write FOLDER/images224.zip and classes.txt: noise, one image a class."""

    folder: pathlib.Path
    classes: int = 1000
    seed: int = 0

    def __call__(self) -> None:
        import numpy as np
        from PIL import Image

        self.folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(self.seed)
        names = [f"n{i:08d}" for i in range(self.classes)]
        with zipfile.ZipFile(self.folder / "images224.zip", "w") as archive:
            for i, name in enumerate(names):
                coarse = rng.integers(0, 256, (7, 7, 3), np.uint8)
                file = io.BytesIO()
                Image.fromarray(coarse).resize((224, 224)).save(file, "JPEG")
                archive.writestr(f"{i:04d}_{name}.jpg", file.getvalue())
        lines = "".join(f"{i}\t{name}\t{name}\n" for i, name in enumerate(names))
        (self.folder / "classes.txt").write_text(lines)


def measure(stage: Callable[[], Any]) -> dict[str, Any]:
    """Call a stage, imports and compilation included.

    Returns:
        Wall and processor seconds, the process's peak resident memory in bytes, what the stage
        returned if that is a dict, and, where the stage printed one, the memory that XLA
        planned for a pass: bytes, and examples at a time.
    """
    printed = io.StringIO()
    start, start_cpu = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(printed):
        value = stage()
    found = {
        "wall_s": time.perf_counter() - start,
        "cpu_s": time.process_time() - start_cpu,
        "peak_rss_bytes": peak_rss_bytes(),
        "value": value if isinstance(value, dict) else None,  # a step returns its artifact
        "planned": None,
    }
    if said := ESTIMATE.search(printed.getvalue()):
        found["planned"] = {"bytes": 1e6 * float(said[1]), "examples": int(said[2])}
    return found


def main() -> None:
    """Measure the stage that the arguments name."""
    folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
    stage = pickle.loads((folder / f"{name}.pickle").read_bytes())
    write_json(folder / f"{name}.json", measure(stage))


if __name__ == "__main__":
    main()
