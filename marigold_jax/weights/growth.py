"""A wider VAE that computes what a trained one does, to be trained on (Net2Net, arXiv 1511.05641, section 3).

Every channel becomes several, side by side, so that the groups of a GroupNorm keep their statistics. Whoever reads the
copies shares its weight among them, in unequal parts drawn by chance: the sum is what it was, but the copies get
different gradients, and so learn different things.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from marigold_jax.models import vae
from marigold_jax.models.functional import abstract
from marigold_jax.weights.component import Component

UNEQUAL = 0.25  # of an equal share: the most that one copy gets more or less


def widen(part: Component, widths: tuple[int, ...], seed: int = 0) -> Component:
    """Returns the VAE with levels of these widths, which computes the same but for rounding. Shapes become shapes.

    Raises ValueError where a width is no multiple of the level's own, where neighbouring levels would begin or cease to
    be alike, for a residual block between them has its shortcut or lacks it, or the VAE is not an AutoencoderKL.
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
            f"config.model.vae_widths={widths}: wanted neighbours alike where they are in {old}, only there"
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
        wide /= (shape[-1] // array.shape[-1]) ** 0.5  # attention sums over more channels than its scale makes up for
    return jnp.asarray(wide, array.dtype)
