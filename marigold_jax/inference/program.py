"""The compiled part of prediction: encode, denoise, decode and ensemble in one program."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from marigold_jax.diffusion.noise import multi_resolution_noise
from marigold_jax.diffusion.samplers import SamplerTable, step
from marigold_jax.hardware import compiler_options
from marigold_jax.inference.modality import MODALITIES
from marigold_jax.models import functional
from marigold_jax.models.functional import Structure

COARSE_STRENGTH = 0.9  # of multi-resolution noise: what Marigold's training has at the last timestep

# What denoising starts from, for one member: (key, shape (i, j, z)) -> latent.
STARTS = {
    "gaussian": lambda key, shape: jax.random.normal(key, shape, jnp.float32),
    "zeros": lambda key, shape: jnp.zeros(shape, jnp.float32),
    "multi_resolution": lambda key, shape: multi_resolution_noise(key, (1, *shape), jnp.full(1, COARSE_STRENGTH))[0],
}


@dataclasses.dataclass(frozen=True)
class Program:
    """What is fixed when `denoise` is compiled; its other inputs are arrays.

    Attributes:
        unet: the structure of the UNet, whose parameters are an input.
        vae: likewise.
        modality: a key of `MODALITIES`.
        traits: its traits, sorted.
        noise: a key of `STARTS`.
        ensemble_size: predictions merged for each image.
        chunk: UNet passes side by side; one loop iteration processes so many members.
        stochastic: whether the sampler adds noise in each step, as LCM does.
        ensembling: options of the merge, sorted.
    """

    unet: Structure
    vae: Structure
    modality: str
    traits: tuple[tuple[str, Any], ...]
    noise: str
    ensemble_size: int
    chunk: int
    stochastic: bool
    ensembling: tuple[tuple[str, Any], ...]


def member_keys(seed: UInt32[Array, ""], ensemble_size: int) -> Array:
    """One key for each member, from the seed alone: an image's noise does not depend on its batch."""
    return jax.vmap(lambda member: jax.random.fold_in(jax.random.key(seed), member))(jnp.arange(ensemble_size))


@functools.partial(jax.jit, static_argnums=0)
def denoise(
    program: Program,
    params: Mapping[str, Any],
    table: SamplerTable,
    canvases: Float[Array, "n h w 3"],
    sizes: Int[Array, "n 2"],
    seed: UInt32[Array, ""],
    latents: Float[Array, "m i j z"] | None,
) -> tuple[Float[Array, "n y x c"], Float[Array, "n y x 1"] | None, Float[Array, "m i j z"]]:
    """Predicts for images of one size.

    The method is that of Marigold (Ke et al., CVPR 2024, arXiv 2312.02145). The VAE encodes the image (section 3.2).
    For each member of the ensemble, the UNet denoises a latent beside the image's latent, its condition, with the empty
    prompt as text (section 3.4). The VAE decodes the result, three channels become a prediction, and the members are
    aligned and merged (section 3.4; here with `ensemble.py`).

    Sizes: n images of h x w pixels have latents of i x j = h / 8 x w / 8, rounded down, with z = 4 channels;
    m = n * ensemble_size members, those of one image side by side; y x x = 8i x 8j pixels of a prediction.

    Args:
        program: what is compiled in.
        params: "unet" and "vae", by parameter name; "empty_prompt" (words, 1024), the encoded text.
        table: the sampler: a row for each step, with its timestep and coefficients (see `diffusion.samplers.step`).
        canvases: pixels in [-1, 1], in the dtype of the parameters.
        sizes: (height, width) of the image in the top left corner of each canvas. The rest is padding, which does not
            count where maps are aligned or stretched.
        seed: of the noise. Member k of each image has the same noise.
        latents: the initial noise, float32, in place of the seed's.

    Returns:
        The prediction, float32, c channels: depth in [0, 1] or unit normals; the uncertainty, None without an
        ensemble; and the denoised latents of all members, float32.
    """
    unet = functional.merge(program.unet, params["unet"])
    vae = functional.merge(program.vae, params["vae"])
    modality, traits = MODALITIES[program.modality], dict(program.traits)
    n, ensemble_size = len(canvases), program.ensemble_size

    rgb = vae.encode(canvases)
    keys = member_keys(seed, ensemble_size)
    if latents is None:
        noise = jax.vmap(lambda key: STARTS[program.noise](key, rgb.shape[1:]))(keys)
        latents = jnp.tile(noise, (n, 1, 1, 1))

    def one_chunk(chunk: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        """A chunk of members: their RGB latents, initial noise and keys, to predictions and final latents."""
        rgb, x, keys = chunk
        context = jnp.broadcast_to(params["empty_prompt"], (rgb.shape[0], *params["empty_prompt"].shape))

        def one_step(x: Array, row: tuple[Array, ...]) -> tuple[Array, None]:
            number, timestep, a, b, c = row
            both = jnp.concatenate([rgb, x.astype(canvases.dtype)], axis=-1)
            output = unet(both, jnp.broadcast_to(timestep, rgb.shape[:1]), context)
            fresh = None
            if program.stochastic:
                fresh = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number + 1), x.shape[1:]))(keys)
            return step(x, output, fresh, a, b, c), None

        x, _ = jax.lax.scan(one_step, x, (jnp.arange(len(table.timesteps)), *table))
        pixels = vae.decode(x.astype(canvases.dtype)).astype(jnp.float32)
        return modality.from_pixels(pixels, traits), x

    inputs = (jnp.repeat(rgb, ensemble_size, axis=0), latents, jnp.tile(keys, n))
    maps, latents = _in_chunks(one_chunk, inputs, program.chunk)

    mask = _inside(sizes, *maps.shape[1:3])
    if ensemble_size == 1:
        return modality.alone(maps, mask, traits), None, latents
    merge = functools.partial(modality.merge, traits=traits, **dict(program.ensembling))
    prediction, uncertainty = jax.vmap(merge)(maps.reshape(n, ensemble_size, *maps.shape[1:]), mask)
    return prediction, uncertainty, latents


@functools.cache
def denoise_for(platform: str, samples: int) -> Callable[..., Any]:
    """Returns `denoise` with the compiler's options for this platform and this many samples side by side."""
    options = dict(compiler_options.options(platform, samples))
    return jax.jit(denoise.__wrapped__, static_argnums=0, compiler_options=options) if options else denoise


def _in_chunks(function: Callable[[tuple], tuple], inputs: tuple[Array, ...], size: int) -> tuple[Array, ...]:
    """`function(inputs)`, `size` rows at a time. The last chunk is filled up with copies of the last row."""
    rows = len(inputs[0])
    chunks = -(-rows // size)
    if chunks == 1:
        return function(inputs)

    def chunked(x: Array) -> Array:
        filled = x[jnp.minimum(jnp.arange(chunks * size), rows - 1)]
        return filled.reshape(chunks, size, *x.shape[1:])

    return tuple(x.reshape(-1, *x.shape[2:])[:rows] for x in jax.lax.map(function, tuple(map(chunked, inputs))))


def _inside(sizes: Int[Array, "n 2"], height: int, width: int) -> Bool[Array, "n y x"]:
    """Where maps show the image, not its padding. They are smaller than a canvas with sides that 8 does not divide."""
    rows, columns = jnp.arange(height)[None, :, None], jnp.arange(width)[None, None, :]
    return (rows < sizes[:, 0, None, None]) & (columns < sizes[:, 1, None, None])
