"""What the objectives of latent diffusion share: latents of image and target, the prompt, and random draws."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, PRNGKeyArray

from marigold_jax.models import functional
from marigold_jax.models.functional import Params, Structure
from marigold_jax.objectives.contract import Batch, Frozen, Metrics, Objective

Draw = Callable[[PRNGKeyArray, tuple[int, int, int, int]], tuple[Array, Array]]
Loss = Callable[[Params, Frozen, Batch, Array, Array], tuple[Array, Metrics]]


def compose(vae_structure: Structure, draw: Draw, loss: Loss) -> Objective:
    """Returns the objective whose `loss` is given the timesteps and noise that `draw` makes of its key."""

    def objective(
        params: Params, frozen: Frozen, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float32[Array, ""], Metrics]:
        vae = functional.merge(vae_structure, frozen["vae"]).config
        b, h, w, _ = batch["rgb"].shape
        shape = (b, h // vae.downsampling, w // vae.downsampling, vae.latent_channels)
        return loss(params, frozen, batch, *draw(key, shape))

    return objective


def encode_pairs(
    vae: Any, rgb: Float[Array, "b h w 3"], pixels: Float[Array, "b h w 3"]
) -> tuple[Float[Array, "b i j z"], Float[Array, "b i j z"]]:
    """Returns the latents of images and of targets drawn as images, through which no gradient flows.

    They go through the VAE as one batch, so that it is compiled once; as neighbours, so that a batch which is split
    over devices stays split.
    """
    pairs = jnp.stack([rgb, pixels], axis=1)
    latents = vae.encode(pairs.reshape(-1, *pairs.shape[2:]))
    latents = jax.lax.stop_gradient(latents).reshape(*pairs.shape[:2], *latents.shape[1:])
    return latents[:, 0], latents[:, 1]


def context_of(frozen: Frozen, count: int, dtype: jax.typing.DTypeLike) -> Float[Array, "b n d"]:
    """Returns the empty prompt, once for each sample."""
    prompt = frozen["empty_prompt"].astype(dtype)
    return jnp.broadcast_to(prompt, (count, *prompt.shape))


def require_two_latents(unet: Any, vae: Any) -> None:
    """Raises ValueError unless the UNet reads the latents of the image and of the target."""
    if unet.config.in_channels != 2 * vae.config.latent_channels:
        raise ValueError(
            f"the UNet reads {unet.config.in_channels} channels, wanted {2 * vae.config.latent_channels}: the "
            "latents of the image and of the target; inflate the checkpoint"
        )
