"""A latent diffusion model in memory, and what can be done with it before it trains or predicts."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from marigold_jax.diffusion.scheduler_config import SchedulerConfig
from marigold_jax.models import unet
from marigold_jax.models.functional import abstract
from marigold_jax.weights.component import Component, load_part
from marigold_jax.weights.empty_prompt import EmptyPrompt
from marigold_jax.weights.model_index import ModelIndex

# What the bias of a widened conv_in is multiplied by. The kernel is divided by the number of its copies by both.
INFLATION_BIAS = {"marigold": lambda copies: 1.0, "e2e_ft": lambda copies: 1 / copies}


@dataclasses.dataclass(frozen=True)
class DiffusionModel:
    """Everything that prediction and training start from.

    Attributes:
        scheduler: `scheduler_config.json`.
        index: the scalars of `model_index.json`.
        folder: where it was read from.
    """

    unet: Component
    vae: Component
    empty_prompt: EmptyPrompt
    scheduler: SchedulerConfig
    index: ModelIndex
    folder: Path


def unsuitable(model: DiffusionModel, plain_too: bool = False) -> str:
    """Why no picture can be estimated with these networks; empty where one can. `plain_too`: or trained from them."""
    latent = model.vae.config.latent_channels
    channels = model.unet.config.in_channels, model.unet.config.out_channels
    if channels == (2 * latent, latent) or (plain_too and channels == (latent, latent)):
        return ""
    plain = ". Plain Stable Diffusion must be fine-tuned first" * (channels == (latent, latent))
    return (
        f"{model.folder}: the UNet maps {channels[0]} to {channels[1]} channels, wanted {2 * latent} to {latent}{plain}"
    )


def with_vae(model: DiffusionModel, folder: Path, dtype: Any = jnp.float32) -> DiffusionModel:
    """The checkpoint with the VAE of another folder (`config.json` and weights), as a small one with the same latents.

    Nothing can tell whether latents mean the same, only whether they have the same shape. Raises as `load` does, and
    ValueError where they have not.
    """
    part = load_part("vae", folder, dtype)
    found, wanted = ((vae.latent_channels, vae.downsampling) for vae in (part.config, model.vae.config))
    if found != wanted:
        raise ValueError(
            f"{folder}: latents of {found[0]} channels, {found[1]} x {found[1]} pixels each; the UNet of "
            f"{model.folder} was trained with {wanted[0]} channels, {wanted[1]} x {wanted[1]} pixels. Take a VAE "
            "that was made for this family of models"
        )
    return dataclasses.replace(model, vae=part)


def inflate(model: DiffusionModel, bias: str = "marigold", copies: int = 2) -> DiffusionModel:
    """Widen `conv_in` from 4 to 4 · `copies` input channels: the kernel repeated and divided, so that the sum stays.

    `bias`: "marigold" keeps it, "e2e_ft" divides it too, as the two papers' code do. A checkpoint that is
    already wide comes back unchanged.
    """
    part, latent = model.unet, model.vae.config.latent_channels
    if part.config.in_channels == copies * latent:
        return model
    if part.config.in_channels != latent:
        raise ValueError(f"conv_in has {part.config.in_channels} input channels: only {latent} can be widened")
    config = dataclasses.replace(part.config, in_channels=copies * latent)
    structure, _ = abstract(lambda rngs: unet.UNet(config, rngs))
    kernel, old_bias = part.params["conv_in.kernel"], part.params["conv_in.bias"]
    wide = {
        "conv_in.kernel": jnp.concatenate([kernel] * copies, axis=2) / np.asarray(copies, kernel.dtype),
        "conv_in.bias": old_bias * np.asarray(INFLATION_BIAS[bias](copies), old_bias.dtype),
    }
    return dataclasses.replace(model, unet=Component(config, structure, part.params | wide))
