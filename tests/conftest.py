"""Settings for all tests: strict dtypes and ranks, eight devices on the host, steady hypothesis."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator

import hypothesis
import jax
import pytest

from tests import typechecker
from tests.cases import ALL

# pyproject.toml gives jaxtyping's import hook `typechecker.checked`.
typechecker.install()
# Mixed dtypes and silently broadcast ranks are errors in the package: users may run with these settings.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# For shard_map and device placement. Arrays still go to the first one by default.
jax.config.update("jax_num_cpu_devices", 8)

# No deadline: examples share the machine. Derandomised, so that a failure is the same everywhere; set
# HYPOTHESIS_PROFILE=explore to look for new ones.
hypothesis.settings.register_profile(
    "steady", deadline=None, derandomize=True, max_examples=100, database=None
)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


def pytest_configure(config: pytest.Config) -> None:
    """No program is compiled twice by a process, though each file's are forgotten.

    Processes do not share them: JAX writes its cache in place, and one that is killed leaves half an entry.
    """
    programs = tempfile.TemporaryDirectory(prefix="endor-tests-programs-")
    config.add_cleanup(programs.cleanup)
    jax.config.update("jax_compilation_cache_dir", programs.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes: compiling takes one core, whatever there are. On a GPU one, which takes its memory."""
    return 0 if "gpu" in config.option.markexpr or config.option.collectonly else 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` skip where there is none, and say so."""
    if any(device.platform == "gpu" for device in jax.devices()):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_collection_finish() -> None:
    """What is imported stays for good: collecting garbage need not walk through it (0.3 seconds a time)."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled() -> Iterator[None]:
    """What a file has compiled is of no use to the next; kept, it is gigabytes that Python walks through."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="module")
def compiled_quickly() -> Iterator[None]:
    """A file's programs, and those of processes it starts, are compiled without most optimisations.

    For files that take most of their time to compile, and whose claims are not about what XLA makes of a
    program: no equal bits of different programs, no speed. With ENDOR_TEST_CASES=all they too are compiled as
    users' are.
    """
    if ALL:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
    jax.config.update("jax_disable_most_optimizations", False)
