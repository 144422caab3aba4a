"""Strict settings for all tests: float64, no silent promotion, warnings are errors.

XLA_FLAGS="" in the environment runs them as users compile.
"""

import os
import pathlib

import jax
import pytest

# Most of the suite's time is compilation, which takes half as long without optimisation.
FLAGS = ["--xla_backend_optimization_level=0"]
if jax.__version_info__ < (0, 11):  # later versions do not know the flag
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Programs that several tests compile are compiled once.
CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

SHARED_DATA = pathlib.Path(
    os.environ.get(
        "JMPQ_SHARED_DATA", pathlib.Path(__file__).parents[1].parent / "shared" / "data"
    )
)


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real data and weights; tests that need it skip where it is absent."""
    if not (SHARED_DATA / "README.md").is_file():
        pytest.skip(f"real data not found in {SHARED_DATA}: set JMPQ_SHARED_DATA")
    return SHARED_DATA
