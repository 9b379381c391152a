"""Losses over valid elements only."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32


def latent_mask(mask: Bool[Array, "b h w 1"], cell: int = 8) -> Bool[Array, "b i j 1"]:
    """Returns which latents count: those whose `cell` × `cell` pixels are all valid (arXiv 2312.02145).

    Raises:
        ValueError: a side of the image is not a multiple of `cell`.
    """
    b, h, w, _ = mask.shape
    if h % cell or w % cell:
        raise ValueError(f"latent_mask: images are {h} x {w}, wanted multiples of {cell}; crop or resize them")
    return mask.reshape(b, h // cell, cell, w // cell, cell, 1).all(axis=(2, 4))


def masked_mse(
    prediction: Float[Array, "b h w c"], target: Float[Array, "b h w c"], mask: Bool[Array, "b h w 1"]
) -> Float32[Array, ""]:
    """Returns the mean squared error over all valid elements of the batch together; 0 where nothing is valid.

    Pooled, not averaged over samples: an image with many valid pixels weighs more than one with few.
    """
    valid = jnp.broadcast_to(mask, prediction.shape)
    # Masked before it is squared, so that what is invalid has no gradient, be it infinite.
    error = jnp.where(valid, prediction.astype(jnp.float32) - target.astype(jnp.float32), 0.0)
    return jnp.sum(error**2) / jnp.maximum(jnp.sum(valid), 1).astype(jnp.float32)
