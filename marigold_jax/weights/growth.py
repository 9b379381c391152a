"""Widens a trained VAE without changing its function, to continue training (Net2Net, arXiv 1511.05641, section 3).

Each channel is replaced by adjacent copies, so that the groups of a GroupNorm keep their statistics. The weight of a
layer that reads the channel is divided among the copies, in random unequal parts. The sum stays the same, but the
copies get different gradients, and so learn different features.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from marigold_jax.models import vae
from marigold_jax.models.functional import abstract
from marigold_jax.weights.component import Component

UNEQUAL = 0.25  # the largest deviation from an equal part, as a fraction of it


def widen(part: Component, widths: tuple[int, ...], seed: int = 0) -> Component:
    """Returns a VAE with levels of these widths that computes the same function, except for rounding.

    Args:
        part: the VAE; if its parameters are shapes, so are those of the result.
        widths: channels of each level, multiples of the present ones.
        seed: of the random division of weights.

    Raises:
        ValueError: a width is not a multiple of the present one; the VAE is not an AutoencoderKL; or two adjacent
            levels of equal width would get different widths, or the reverse, so that a residual block between them
            would gain or lose its shortcut.
    """
    if type(part.config) is not vae.VAEConfig:
        raise ValueError(f"config.model.vae_widths={widths}: wanted an AutoencoderKL to widen, not {part.config}")
    old = part.config.block_out_channels
    if len(old) != len(widths) or any(new % width for new, width in zip(widths, old, strict=True)):
        raise ValueError(
            f"config.model.vae_widths={widths}: wanted multiples of {old}, the VAE's own, or () to leave it as it is"
        )
    if old == widths:
        return part
    config = dataclasses.replace(part.config, block_out_channels=widths)
    structure, shapes = abstract(lambda rngs: vae.VAE(config, rngs))
    if shapes.keys() != part.params.keys():
        raise ValueError(
            f"config.model.vae_widths={widths}: wanted adjacent widths to be equal exactly where those of {old} are"
        )
    rng = np.random.default_rng(seed)
    params = {path: _widen(path, part.params[path], shape.shape, rng) for path, shape in sorted(shapes.items())}
    return Component(config, structure, params)


def _widen(
    path: str, array: Array | jax.ShapeDtypeStruct, shape: tuple[int, ...], rng: np.random.Generator
) -> Array | jax.ShapeDtypeStruct:
    if isinstance(array, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(shape, array.dtype)
    wide = np.repeat(np.asarray(array, np.float64), shape[-1] // array.shape[-1], axis=-1)
    if array.ndim > 1 and (copies := shape[-2] // array.shape[-2]) > 1:
        *window, inputs, outputs = wide.shape
        parts = rng.uniform(1 - UNEQUAL, 1 + UNEQUAL, (inputs, copies, outputs))
        parts /= parts.sum(axis=1, keepdims=True)
        wide = (wide[..., None, :] * parts).reshape(*window, inputs * copies, outputs)
    if ".to_q." in path:
        wide /= (
            shape[-1] // array.shape[-1]
        ) ** 0.5  # n times as many channels: q · k grows by n, attention scales by 1 / √n
    return jnp.asarray(wide, array.dtype)
