"""Marigold in JAX: depth and surface normals from one photograph, trained, run and judged on GPUs and TPUs."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from marigold_jax.inference.pipeline import Marigold as Marigold

__version__ = "0.1.0"
__all__ = ["Marigold"]

# JAX would take three quarters of a GPU's memory at once, which users rightly read as a leak. It is read when the
# first array is made, so it has to be set here; a value that the user set stands.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def __getattr__(name: str):
    # Imported on first use: `--help` of a program, and the data tower's worker processes, must not wait for JAX.
    if name == "Marigold":
        from marigold_jax.inference.pipeline import Marigold

        return Marigold
    raise AttributeError(f"module 'marigold_jax' has no attribute {name!r}")
