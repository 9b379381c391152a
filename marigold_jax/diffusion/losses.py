"""Losses over valid elements only."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from marigold_jax.diffusion.gradients import arc_cosine

SMALLEST_VARIANCE = 1e-12  # below it, a prediction (whose range is about 2) counts as constant


def latent_mask(mask: Bool[Array, "b h w 1"], cell: int = 8) -> Bool[Array, "b i j 1"]:
    """Returns the valid latents: those whose `cell` × `cell` pixels are all valid (arXiv 2312.02145).

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
    """Returns the mean squared error over all valid elements of the batch; 0 if there are none.

    It is the mean over elements, not over images: an image with many valid pixels has more weight than one with few.
    """
    valid = jnp.broadcast_to(mask, prediction.shape)
    # Masked before it is squared, so that invalid elements have no gradient even if they are infinite.
    error = jnp.where(valid, prediction.astype(jnp.float32) - target.astype(jnp.float32), 0.0)
    return jnp.sum(error**2) / jnp.maximum(jnp.sum(valid), 1).astype(jnp.float32)


def masked_pseudo_huber(
    prediction: Float[Array, "b h w c"], target: Float[Array, "b h w c"], mask: Bool[Array, "b h w 1"], c: float
) -> Float32[Array, ""]:
    """Returns the mean of √(error² + c²) − c over all valid elements of the batch; 0 if there are none.

    It is quadratic below c and linear above (arXiv 2310.14189, section 3.3, for consistency training).
    """
    valid = jnp.broadcast_to(mask, prediction.shape)
    error = jnp.where(valid, prediction.astype(jnp.float32) - target.astype(jnp.float32), 0.0)
    # Equal to √(error² + c²) − c, but without cancellation.
    total = jnp.sum(error**2 / (jnp.sqrt(error**2 + c**2) + c))
    return total / jnp.maximum(jnp.sum(valid), 1).astype(jnp.float32)


def scale_and_shift(
    prediction: Float[Array, "b h w c"], target: Float[Array, "b h w c"], mask: Bool[Array, "b h w 1"]
) -> tuple[Float32[Array, "b 1 1 1"], Float32[Array, "b 1 1 1"]]:
    """Returns the least-squares scale and shift from the prediction to the target, for each image. Differentiable.

    Both are 0 if the prediction is constant or no element is valid (arXiv 2409.11355, after MiDaS, arXiv 1907.01341).
    """
    valid = jnp.broadcast_to(mask, prediction.shape).astype(jnp.float32)
    count = jnp.maximum(jnp.sum(valid, axis=(1, 2, 3), keepdims=True), 1.0)

    def mean(x: Array) -> Array:
        return jnp.sum(jnp.where(mask, x, 0.0), axis=(1, 2, 3), keepdims=True) / count

    # Masked before it is squared, as in `masked_mse`.
    x, y = (jnp.where(mask, image.astype(jnp.float32), 0.0) for image in (prediction, target))
    x_mean, y_mean = mean(x), mean(y)
    variance, covariance = mean((x - x_mean) ** 2), mean((x - x_mean) * (y - y_mean))
    varies = variance > SMALLEST_VARIANCE
    scale = jnp.where(varies, covariance / jnp.where(varies, variance, 1.0), 0.0)
    return scale, jnp.where(varies, y_mean - scale * x_mean, 0.0)


def aligned(
    prediction: Float[Array, "b h w c"], target: Float[Array, "b h w c"], mask: Bool[Array, "b h w 1"]
) -> Float32[Array, "b h w c"]:
    """Returns the prediction after the least-squares scale and shift to the target. Gradients flow through both."""
    scale, shift = scale_and_shift(prediction, target, mask)
    return scale * prediction.astype(jnp.float32) + shift


def weighted_l1(
    prediction: Float[Array, "b h w c"],
    target: Float[Array, "b h w c"],
    mask: Bool[Array, "b h w 1"],
    weight: Float[Array, "b 1 1 1"] | Float[Array, "b h w 1"],
) -> Float32[Array, ""]:
    """Returns the mean of `weight` · |prediction − target| over all valid elements; 0 if there are none.

    Args:
        prediction: in the unit of the target; aligned to it if its scale and shift are free.
        target: the ground truth.
        mask: True at valid pixels.
        weight: factor of the error, for each image or pixel.
    """
    valid = jnp.broadcast_to(mask, prediction.shape)
    error = jnp.where(valid, prediction.astype(jnp.float32) - target.astype(jnp.float32), 0.0)
    total = jnp.sum(jnp.abs(error) * weight)
    return total / jnp.maximum(jnp.sum(valid), 1).astype(jnp.float32)


def angular_error(
    prediction: Float[Array, "b h w 3"], target: Float[Array, "b h w 3"], mask: Bool[Array, "b h w 1"]
) -> Float32[Array, ""]:
    """Returns the mean angle between normals over all valid pixels, in radians; 0 if there are none.

    `target` holds unit vectors. Predictions should be slightly shorter than 1: where the cosine reaches 1, the gradient
    is 0.
    """
    cosine = jnp.sum(prediction.astype(jnp.float32) * target.astype(jnp.float32), axis=-1, keepdims=True)
    angle = jnp.where(mask, arc_cosine(jnp.where(mask, cosine, 0.0)), 0.0)
    return jnp.sum(angle) / jnp.maximum(jnp.sum(mask), 1).astype(jnp.float32)
