"""Write every problem of MPQ-Lib as a file: JSON or npz, or the program as LP or MPS.

Run:     python -m experiments.mpq_lib.export FOLDER --data-dir DIR      (a minute)
Smoke:   python -m experiments.mpq_lib.export FOLDER --smoke             (seconds, no data)
Writes:  FOLDER/NAME.FORMAT for every problem
Expect:  every file reads back as the problem it was written from
"""

import pathlib
from collections.abc import Iterator
from typing import Annotated, Literal

import tyro

from experiments.common.arguments import data_folder
from experiments.mpq_lib.networks import networks
from experiments.mpq_lib.public import public
from jmpq.problem import Instance, write_instance, write_program

SMOKE = ("resnet20_table_20x12x2_0", "resnet20_25_full")


def every(data_dir: pathlib.Path | None, names: tuple[str, ...] = ()) -> Iterator[Instance]:
    """All problems, those of some names only where these are given."""
    yield from networks(names)
    if data_dir is not None:
        yield from public(data_dir, names=names)


def main(
    folder: Annotated[pathlib.Path, tyro.conf.Positional],
    smoke: bool = False,
    data_dir: pathlib.Path | None = None,
    kind: Literal["json", "npz", "lp", "mps"] = "npz",
) -> None:
    """Write the files.

    Args:
        folder: Folder of the files.
        smoke: Two problems of networks alone.
        data_dir: Folder with `solvers/`.
        kind: Format.
    """
    for instance in every(data_folder(data_dir, smoke), SMOKE if smoke else ()):
        path = folder / f"{instance.name}.{kind}"
        if kind in ("lp", "mps"):
            write_program(path, instance.problem)
        else:
            write_instance(path, instance)
        print(f"Wrote {path}")


if __name__ == "__main__":
    tyro.cli(main)
