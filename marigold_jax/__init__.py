"""Marigold in JAX: depth and surface normals from one photograph, with training and evaluation on GPUs and TPUs."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from marigold_jax.inference.pipeline import Marigold as Marigold

__version__ = "0.2.0"
__all__ = ["Marigold"]

# By default JAX takes three quarters of a GPU's memory at once, which looks like a leak. It reads this variable when
# the first array is made, so it is set here; a value from the user is kept.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def __getattr__(name: str):
    # Imported on first use: `--help` and the data workers must not wait for JAX.
    if name == "Marigold":
        from marigold_jax.inference.pipeline import Marigold

        return Marigold
    raise AttributeError(f"module 'marigold_jax' has no attribute {name!r}")
