"""How a target is drawn as three channels for the VAE, and how a prediction is read from decoded pixels."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from marigold_jax.diffusion.gradients import length
from marigold_jax.diffusion.losses import aligned
from marigold_jax.training.batch import Batch, mask_of

NORM_EPSILON = 1e-5  # keeps the dot product of normals below 1, and the gradient of its arc cosine finite


def depth_to_pixels(depth: Float[Array | np.ndarray, "*b h w 1"]) -> Float[Array | np.ndarray, "*b h w 3"]:
    """Returns the same depth, in [-1, 1], in all three channels."""
    return jnp.repeat(depth, 3, axis=-1)


def normals_to_pixels(normals: Float[Array | np.ndarray, "*b h w 3"]) -> Float[Array | np.ndarray, "*b h w 3"]:
    """Returns the normals as they are: x, y and z are in [-1, 1]."""
    return normals


def aligned_depth(pixels: Float[Array, "b h w 3"], batch: Batch) -> Float[Array, "b h w 1"]:
    """Returns the mean of the channels, scaled and shifted to fit the batch's `target` by least squares."""
    depth = jnp.clip(jnp.mean(pixels, axis=-1, keepdims=True), -1.0, 1.0)
    return aligned(depth, batch["target"], mask_of(batch))


def unit_normals(pixels: Float[Array, "b h w 3"], batch: Batch) -> Float[Array, "b h w 3"]:
    """Returns the channels scaled to unit length."""
    return jnp.clip(pixels / (length(pixels) + NORM_EPSILON), -1.0, 1.0)
