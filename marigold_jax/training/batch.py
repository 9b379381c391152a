"""The type of a batch; `training.objectives.contract` says which keys it holds."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

Batch = Mapping[str, Array | np.ndarray]


def mask_of(batch: Batch) -> Bool[Array, "b h w 1"]:
    """Returns the batch's mask, or one that is True everywhere."""
    return batch["mask"] if "mask" in batch else jnp.ones((*batch["rgb"].shape[:3], 1), bool)
