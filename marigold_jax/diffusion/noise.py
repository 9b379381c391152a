"""Noise for training latents: white, multi-resolution, and white with a random offset.

All three take `(key, shape, ...)` with an NHWC shape and return float32. One compiled program serves all draws of a
shape, although the sizes of the multi-resolution levels are random.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Int32, PRNGKeyArray


@functools.partial(jax.jit, static_argnames="shape")
def gaussian(key: PRNGKeyArray, shape: tuple[int, int, int, int]) -> Float32[Array, "b h w c"]:
    """Returns white noise: independent samples of N(0, 1)."""
    return jax.random.normal(key, shape, jnp.float32)


@functools.partial(jax.jit, static_argnames="shape")
def offset_noise(
    key: PRNGKeyArray, shape: tuple[int, int, int, int], strength: Float[Array, " b"]
) -> Float32[Array, "b h w c"]:
    """Returns white noise plus `strength` times one Gaussian per sample and channel (offset noise, Guttenberg 2023).

    Its variance is 1 + strength²; a strength of 0.1 is common.
    """
    pixel_key, offset_key = jax.random.split(key)
    batch, _, _, channels = shape
    offset = jax.random.normal(offset_key, (batch, 1, 1, channels), jnp.float32)
    return gaussian(pixel_key, shape) + strength.astype(jnp.float32)[:, None, None, None] * offset


def annealed_strength(base: float, t: Int[Array, " b"], num_train_timesteps: int) -> Float32[Array, " b"]:
    """Returns `base · t / num_train_timesteps`: white noise at low timesteps, coarse noise at high ones.

    Marigold (arXiv 2312.02145) trains with base 0.9.
    """
    return base * t.astype(jnp.float32) / num_train_timesteps


def largest_level_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Returns the largest size that each level can have, from full size down to the first with a side of 1.

    Sizes shrink as the divisor grows, so these are the sizes for the smallest divisor, 2. There are at most five levels
    for sides under 1024.
    """
    sizes = [(height, width)]
    while min(sizes[-1]) > 1:
        sizes.append(tuple(max(1, side // 2 ** len(sizes)) for side in sizes[-1]))
    return sizes


def level_sizes(key: PRNGKeyArray, height: int, width: int) -> Int32[Array, "levels 2"]:
    """Draws the (height, width) of every level of multi-resolution noise; (0, 0) marks a level that is not reached.

    Level i divides the sides of level i − 1, not of level 0, by rⁱ, where each level draws r ~ U[2, 4). The level in
    which a side becomes 1 is the last. There are as many rows as in `largest_level_sizes(height, width)`.
    """
    bounds = largest_level_sizes(height, width)
    divisors = jax.random.uniform(key, (len(bounds),), jnp.float32, minval=2.0, maxval=4.0)
    sizes = [jnp.array([height, width], jnp.float32)]
    for level in range(1, len(bounds)):
        smaller = jnp.maximum(1.0, jnp.floor(sizes[-1] / divisors[level] ** level))
        sizes.append(jnp.where(sizes[-1].min() > 1.0, smaller, 0.0))
    return jnp.stack(sizes).astype(jnp.int32)


def _interpolation_matrix(window: Int[Array, ""], field_side: int, side: int) -> Float32[Array, "side field_side"]:
    """Returns the weights that stretch the first `window` of `field_side` samples linearly to `side` samples.

    A weight is 1 minus the distance to the sampled position. Clamping the position to the window repeats its edges. A
    window of 0 gets no weight.
    """
    centres = jnp.arange(side, dtype=jnp.float32) + 0.5
    position = jnp.clip(centres * window.astype(jnp.float32) / side - 0.5, 0.0, window.astype(jnp.float32) - 1.0)
    return jnp.maximum(0.0, 1.0 - jnp.abs(position[:, None] - jnp.arange(field_side, dtype=jnp.float32)[None, :]))


def stretch_window(
    field: Float32[Array, "b i j c"], size: Int[Array, "2"], height: int, width: int
) -> Float32[Array, "b {height} {width} c"]:
    """Resizes the window `field[:, :size[0], :size[1]]`, whose size may be traced, to `height` × `width`.

    Bilinear with half-pixel centres and no antialiasing: PyTorch's align_corners=False. An empty window gives zeros.
    """
    vertical = _interpolation_matrix(size[0], field.shape[1], height)
    horizontal = _interpolation_matrix(size[1], field.shape[2], width)
    return jnp.einsum("hi,bijc,wj->bhwc", vertical, field, horizontal, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.jit, static_argnames="shape")
def multi_resolution_noise(
    key: PRNGKeyArray, shape: tuple[int, int, int, int], strength: Float[Array, " b"]
) -> Float32[Array, "b h w c"]:
    """Returns white noise plus stretched coarser noise, level i weighted by strengthⁱ, scaled to a deviation of 1.

    Marigold is trained with it (arXiv 2312.02145, "annealed multi-resolution noise"). As in the authors' code,
    level sizes shrink cumulatively and are shared by the batch, level 0 is a second white field of full size, and the
    sum is divided by the unbiased standard deviation of the whole batch. So a sample of low strength has a variance
    below 1 if other samples of the batch have a high strength. Strength 0 gives white noise.

    Each level draws a field of the largest possible size and stretches a window of the drawn size. A window of
    independent noise is independent noise, so the distribution is that of a field of exactly the drawn size.

    Args:
        key: one PRNG key for the batch.
        shape: (batch, height, width, channels) of the latents.
        strength: per sample, 0 .. 1.
    """
    _, height, width, _ = shape
    size_key, *field_keys = jax.random.split(key, 1 + len(largest_level_sizes(height, width)))
    sizes = level_sizes(size_key, height, width)
    strength = strength.astype(jnp.float32)[:, None, None, None]
    # The base and level 0 are two independent white fields of weight 1: together, one of variance 2.
    noise = jnp.sqrt(2.0) * gaussian(field_keys[0], shape)
    for level, (field_height, field_width) in enumerate(largest_level_sizes(height, width)[1:], start=1):
        field = gaussian(field_keys[level], (shape[0], field_height, field_width, shape[3]))
        noise += strength**level * stretch_window(field, sizes[level], height, width)
    return noise / jnp.std(noise, ddof=1)
