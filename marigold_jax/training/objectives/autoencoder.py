"""Learning a VAE: images, and depth maps drawn as images, should come back from their latents.

A squared error alone paints the mean of what a latent might stand for. Beside it stands an absolute error, and one of
the differences between neighbours at several scales, so that edges stay sharp and surfaces smooth. A little noise on
the latents teaches the decoder to forgive what a network that predicts latents will get wrong.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, PRNGKeyArray

from marigold_jax.models import functional
from marigold_jax.models.functional import Params, Structure
from marigold_jax.training.objectives.contract import REMAT, Batch, Frozen, Metrics, Objective, cast, row
from marigold_jax.training.targets import TARGETS

SCALES = 3  # at which neighbours are compared: 1, 2 and 4 pixels
SMALLEST_ERROR = 1e-5  # squared, so that what is perfect, at 56 dB, has a gradient


def _halve(x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
    b, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def edge_error(error: Float32[Array, "b h w c"]) -> Float32[Array, ""]:
    """Returns the mean absolute difference between neighbours of an error image, summed over scales."""
    total = jnp.zeros((), jnp.float32)
    for _ in range(SCALES):
        total += jnp.mean(jnp.abs(jnp.diff(error, axis=1))) + jnp.mean(jnp.abs(jnp.diff(error, axis=2)))
        error = _halve(error)
    return total


def autoencoder_objective(
    unet_structure: Structure,
    vae_structure: Structure,
    schedule: object,
    *,
    target: str = "depth",
    decibels: float = 0.0,
    absolute: float = 0.5,
    edges: float = 1.0,
    latents: float = 0.01,
    noise: float = 0.05,
    compute_dtype: jax.typing.DTypeLike = jnp.float32,
    remat: str = "none",
) -> Objective:
    """Returns the objective of the VAE's parameters, to which the UNet and its schedule mean nothing.

    Args:
        target: what is encoded beside the photograph; "depth" or "normals".
        decibels: weight of the PSNR of each picture, that is, of the logarithm of its squared error.
        absolute, edges: weights of these errors beside the squared one.
        latents: weight of how far each channel of the latents is from mean 0 and deviation 1.
        noise: deviation of the noise on latents that the decoder sees.
        compute_dtype: of the network.
        remat: a row of `REMAT`; with any but "none", the whole network is computed again going backward.

    Raises:
        ValueError: the target or remat is unknown.
    """
    modality = row(TARGETS, "target", target)
    row(REMAT, "remat", remat)

    def reconstruct(params: Params, pixels: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
        vae = functional.merge(vae_structure, cast(params, compute_dtype))
        z = vae.encode(pixels.astype(compute_dtype))
        noisy = z + noise * jax.random.normal(key, z.shape, z.dtype)
        return vae.decode(noisy).astype(jnp.float32), z.astype(jnp.float32)

    def objective(
        params: Params, frozen: Frozen, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float32[Array, ""], Metrics]:
        pixels = jnp.concatenate([batch["rgb"], modality.to_pixels(batch[modality.key])])
        forward = reconstruct if remat == "none" else jax.checkpoint(reconstruct)
        painted, z = forward(params, pixels, key)
        error = painted - pixels
        spread = jnp.mean(jnp.mean(z, (0, 1, 2)) ** 2) + jnp.mean((jnp.sqrt(jnp.var(z, (0, 1, 2)) + 1e-6) - 1) ** 2)
        squared = jnp.mean(error**2, axis=(1, 2, 3))
        psnr = -10 * jnp.log10((squared + SMALLEST_ERROR) / 4)  # of each picture; 4: the square of [-1, 1]'s length
        loss = jnp.mean(squared) + absolute * jnp.mean(jnp.abs(error)) + edges * edge_error(error) + latents * spread
        return loss - decibels * jnp.mean(psnr), {"psnr": jnp.mean(psnr[: len(batch["rgb"])])}

    return objective
