"""The compiled half of prediction: encode, denoise, decode and ensemble in one program."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from marigold_jax.diffusion.noise import multi_resolution_noise
from marigold_jax.diffusion.samplers import SamplerTable, step
from marigold_jax.inference.modality import MODALITIES
from marigold_jax.models import functional
from marigold_jax.models.functional import Structure

COARSE_STRENGTH = 0.9  # of multi-resolution noise: at the last timestep, that of the papers' trainings

# What denoising begins with, for one member: (key, shape (i, j, z)) -> latent.
STARTS = {
    "gaussian": lambda key, shape: jax.random.normal(key, shape, jnp.float32),
    "zeros": lambda key, shape: jnp.zeros(shape, jnp.float32),
    "multi_resolution": lambda key, shape: multi_resolution_noise(key, (1, *shape), jnp.full(1, COARSE_STRENGTH))[0],
}


@dataclasses.dataclass(frozen=True)
class Program:
    """What is fixed when the program is compiled; its other inputs are arrays."""

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
    """One key for each member: from the seed alone, so that a photograph's noise is the same in any company."""
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
    unet = functional.merge(program.unet, params["unet"])
    vae = functional.merge(program.vae, params["vae"])
    modality, traits = MODALITIES[program.modality], dict(program.traits)
    n = len(canvases)
    ensemble_size, dtype = program.ensemble_size, canvases.dtype

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
            both = jnp.concatenate([rgb, x.astype(dtype)], axis=-1)
            output = unet(both, jnp.broadcast_to(timestep, rgb.shape[:1]), context)
            fresh = None
            if program.stochastic:
                fresh = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number + 1), x.shape[1:]))(keys)
            return step(x, output, fresh, a, b, c), None

        x, _ = jax.lax.scan(one_step, x, (jnp.arange(len(table.timesteps)), *table))
        pixels = vae.decode(x.astype(dtype)).astype(jnp.float32)
        return modality.from_pixels(pixels, traits), x

    members = n * ensemble_size
    chunks = -(-members // program.chunk)

    def chunked(x: Array) -> Array:
        """The last chunk is filled up with copies of the last member."""
        filled = x[jnp.minimum(jnp.arange(chunks * program.chunk), members - 1)]
        return filled.reshape(chunks, program.chunk, *x.shape[1:])

    inputs = (jnp.repeat(rgb, ensemble_size, axis=0), latents, jnp.tile(keys, n))
    if chunks == 1:
        maps, latents = one_chunk(inputs)
    else:
        maps, latents = (
            x.reshape(-1, *x.shape[2:])[:members] for x in jax.lax.map(one_chunk, tuple(map(chunked, inputs)))
        )

    # Only pixels of the image count where maps are aligned or stretched, not those of the padding. A canvas whose sides
    # are no multiples of 8 is larger than its maps.
    _, height, width, _ = maps.shape
    rows, columns = jnp.arange(height)[None, :, None], jnp.arange(width)[None, None, :]
    mask = (rows < sizes[:, 0, None, None]) & (columns < sizes[:, 1, None, None])
    if ensemble_size == 1:
        return modality.alone(maps, mask, traits), None, latents
    merge = functools.partial(modality.merge, traits=traits, **dict(program.ensembling))
    prediction, uncertainty = jax.vmap(merge)(maps.reshape(n, ensemble_size, *maps.shape[1:]), mask)
    return prediction, uncertainty, latents
