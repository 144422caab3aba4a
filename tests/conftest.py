"""Strict settings for all tests: float64, no silent promotion, warnings are errors.

XLA_FLAGS="" in the environment runs them as users compile.
"""

import gc
import os
import pathlib
import sys
from collections.abc import Iterator

import pytest

gc.disable()  # until everything is imported
KEPT = pathlib.Path(__file__).parents[1] / ".pytest_cache"

# Where the environment forbids bytecode beside the sources, it is kept here: otherwise each of
# some fifty processes compiles thousands of modules anew.
if sys.dont_write_bytecode:
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(KEPT / "bytecode")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix

import jax  # noqa: E402

from tests import light_checks  # noqa: E402

light_checks.install()

# Most of the suite's time is compilation, which takes half as long without optimisation.
FLAGS = ["--xla_backend_optimization_level=0"]
if jax.__version_info__ < (0, 11):  # later versions do not know the flag
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Programs that several tests compile are compiled once, those of subprocesses too.
for option, value in {
    "jax_compilation_cache_dir": str(KEPT / "jax"),
    "jax_persistent_cache_min_compile_time_secs": 0.1,
}.items():
    jax.config.update(option, value)
    os.environ[option.upper()] = str(value)

SHARED_DATA = pathlib.Path(
    os.environ.get(
        "JMPQ_SHARED_DATA", pathlib.Path(__file__).parents[1].parent / "shared" / "data"
    )
)


MAPS = pathlib.Path("/proc/self/maps")  # one line a memory mapping, where there is one


@pytest.fixture(autouse=True, scope="module")
def few_compiled_programs() -> Iterator[None]:
    """Forget compiled programs before their memory mappings reach Linux's limit of 65,530.

    Each program has some, and none is freed while JAX keeps it: beyond the limit a process of
    thousands of tests ends in a segmentation fault.
    """
    yield
    if MAPS.is_file() and MAPS.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()


def pytest_collection_finish() -> None:
    """Look for garbage seldom, and never among what was imported: a tenth of the time."""
    gc.freeze()
    gc.set_threshold(50_000)
    gc.enable()


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real data and weights; tests that need it skip where it is absent."""
    if not (SHARED_DATA / "README.md").is_file():
        pytest.skip(f"real data not found in {SHARED_DATA}: set JMPQ_SHARED_DATA")
    return SHARED_DATA
