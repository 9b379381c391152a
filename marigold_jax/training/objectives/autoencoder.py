"""Trains a VAE to reconstruct images, and targets that are encoded as images.

With a squared error alone, reconstructions are blurred: the mean of all images that a latent might encode. An absolute
error, and an error of differences between adjacent pixels at several scales, keep edges sharp and surfaces smooth. A
little noise on the latents makes the decoder robust against errors of a network that predicts latents.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, PRNGKeyArray

from marigold_jax.models import functional
from marigold_jax.models.functional import Params, Structure
from marigold_jax.training.objectives.contract import REMAT, Batch, Frozen, Metrics, Objective, cast, row
from marigold_jax.training.targets import TARGETS

SCALES = 3  # number of scales of the edge error: 1, 2 and 4 pixels
SMALLEST_ERROR = 1e-5  # added to the squared error, so that the gradient of the PSNR is finite; 56 dB


def _halve(x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
    b, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def edge_error(error: Float32[Array, "b h w c"]) -> Float32[Array, ""]:
    """Returns the mean absolute difference between adjacent pixels of an error image, summed over scales."""
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
    """Returns the objective of the VAE's parameters. It does not use the UNet and the noise schedule.

    Args:
        unet_structure: not used.
        vae_structure: of the VAE; see `models.functional`.
        schedule: not used.
        target: what is encoded in addition to the image: "depth" or "normals".
        decibels: weight of the PSNR of each image, that is, of the logarithm of its squared error.
        absolute: weight of the absolute error. The squared error has weight 1.
        edges: weight of the edge error.
        latents: weight of the deviation of each latent channel from mean 0 and standard deviation 1.
        noise: standard deviation of the noise on the latents that are decoded.
        compute_dtype: of the network.
        remat: a row of `REMAT`. With any but "none", the whole network is computed again in the backward pass.

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
        psnr = -10 * jnp.log10(
            (squared + SMALLEST_ERROR) / 4
        )  # of each image; 4 is the square of the range of pixels, [-1, 1]
        loss = jnp.mean(squared) + absolute * jnp.mean(jnp.abs(error)) + edges * edge_error(error) + latents * spread
        return loss - decibels * jnp.mean(psnr), {"psnr": jnp.mean(psnr[: len(batch["rgb"])])}

    return objective
