"""Tests run stricter than the programs: float32 matrix products in full precision, no silent promotion of ranks."""

import gc
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# PyTorch's threads spin while they wait, and take from JAX what they do not use: two thirds of the time of
# tests/inference/test_pipeline.py.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
# Compiling is nine tenths of the suite's time, and this halves it. `benchmarks/` runs the optimised programs.
jax.config.update("jax_disable_most_optimizations", True)

ORACLES = {"diffusers", "oracle", "torch", "transformers"}


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Frees the compiled programs of a file after its last test: together they take several gigabytes."""
    yield
    jax.clear_caches()
    gc.collect()


def pytest_collection_modifyitems(items):
    """A test is of the tier `parity` if its file compares with PyTorch, diffusers or transformers."""
    for item in items:
        if ORACLES & vars(item.module).keys():
            item.add_marker("parity")
