"""Code that the latent diffusion objectives share: latents of image and target, the prompt, and random draws."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, PRNGKeyArray

from marigold_jax.diffusion.losses import latent_mask
from marigold_jax.models import functional
from marigold_jax.models.functional import Params, Structure
from marigold_jax.training.batch import Batch, mask_of
from marigold_jax.training.objectives.contract import Frozen, Metrics, Objective, cast, row
from marigold_jax.training.targets import TARGETS

Draw = Callable[[PRNGKeyArray, tuple[int, int, int, int]], tuple[Array, Array]]
Loss = Callable[[Params, Frozen, Batch, Array, Array], tuple[Array, Metrics]]
Latents = tuple[Float[Array, "b i j z"], Float[Array, "b i j z"], Bool[Array, "b i j 1"]]


def compose(vae_structure: Structure, draw: Draw, loss: Loss) -> Objective:
    """Returns the objective that calls `loss` with the timesteps and noise that `draw` returns for its key."""

    def objective(
        params: Params, frozen: Frozen, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float32[Array, ""], Metrics]:
        if "latents" in batch:
            b, _, *latent = batch["latents"].shape
        else:
            vae = functional.merge(vae_structure, frozen["vae"]).config
            b, h, w, _ = batch["rgb"].shape
            latent = (h // vae.downsampling, w // vae.downsampling, vae.latent_channels)
        return loss(params, frozen, batch, *draw(key, (b, *latent)))

    return objective


def make_encode(
    vae_structure: Structure, target: str, compute_dtype: jax.typing.DTypeLike
) -> Callable[[Frozen, Batch], Latents]:
    """Returns `encode(frozen, batch)`: latents of images, latents of targets, and the mask of valid target latents.

    Latents are read from the batch if it has them. No gradient flows through them.

    Raises:
        ValueError: the target is unknown.
    """
    modality = row(TARGETS, "target", target)

    def encode(frozen: Frozen, batch: Batch) -> Latents:
        if "latents" in batch:
            latents, mask = batch["latents"], batch["latent_mask"]
        else:
            vae = functional.merge(vae_structure, cast(frozen["vae"], compute_dtype))
            # Images and targets are one batch, so that the VAE is compiled once. Each target follows its image, so that
            # a batch that is split over devices stays split.
            pairs = jnp.stack([batch["rgb"], modality.to_pixels(batch[modality.key])], axis=1)
            latents = vae.encode(pairs.reshape(-1, *pairs.shape[2:]).astype(compute_dtype))
            latents = jax.lax.stop_gradient(latents).reshape(*pairs.shape[:2], *latents.shape[1:])
            mask = latent_mask(mask_of(batch), vae.config.downsampling)
        return latents[:, 0].astype(compute_dtype), latents[:, 1], mask

    return encode


def context_of(frozen: Frozen, count: int, dtype: jax.typing.DTypeLike) -> Float[Array, "b n d"]:
    """Returns the embedding of the empty prompt, repeated for each sample."""
    prompt = frozen["empty_prompt"].astype(dtype)
    return jnp.broadcast_to(prompt, (count, *prompt.shape))


def require_two_latents(unet: Any, latents: Float[Array, "b i j z"]) -> None:
    """Raises ValueError unless the UNet reads the latents of the image and of the target."""
    if unet.config.in_channels != 2 * latents.shape[-1]:
        raise ValueError(
            f"the UNet reads {unet.config.in_channels} channels, wanted {2 * latents.shape[-1]}: the latents of the "
            "image and of the target; inflate the checkpoint"
        )
