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

# Factor for the bias of a widened conv_in. Both papers divide the kernel by the number of its copies.
INFLATION_BIAS = {"marigold": lambda copies: 1.0, "e2e_ft": lambda copies: 1 / copies}


@dataclasses.dataclass(frozen=True)
class DiffusionModel:
    """Everything that prediction and training start from: Stable Diffusion, or a model fine-tuned from it.

    Attributes:
        unet: the denoiser.
        vae: the autoencoder of images and targets.
        empty_prompt: output of the text encoder for the empty prompt, (2, d) and (77, d).
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
    """Returns why these networks cannot predict, or "". With `plain_too`, it is enough if they can be fine-tuned."""
    latent = model.vae.config.latent_channels
    channels = model.unet.config.in_channels, model.unet.config.out_channels
    if channels == (2 * latent, latent) or (plain_too and channels == (latent, latent)):
        return ""
    plain = ". Plain Stable Diffusion must be fine-tuned first" * (channels == (latent, latent))
    return (
        f"{model.folder}: the UNet maps {channels[0]} to {channels[1]} channels, wanted {2 * latent} to {latent}{plain}"
    )


def with_vae(model: DiffusionModel, folder: Path, dtype: Any = jnp.float32) -> DiffusionModel:
    """Returns the model with the VAE of another folder, such as a small one that was made for the same latents.

    Only the shape of the latents can be checked, not whether they mean the same.

    Args:
        model: keeps everything else.
        folder: with `config.json` and weights.
        dtype: of the parameters in memory.

    Raises:
        FileNotFoundError, ValueError: as `load_component`.
        ValueError: the latents have another shape.
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
    """Widens `conv_in` to read `copies` latents (arXiv 2312.02145, section 3.2).

    The kernel is repeated and divided by `copies`, so that the output keeps its scale.

    Args:
        model: returned unchanged if it reads `copies` latents already.
        bias: "marigold" keeps the bias, "e2e_ft" divides it too; each is what the code of that paper does.
        copies: number of latents that the UNet reads.

    Raises:
        ValueError: the UNet reads neither one latent nor `copies`.
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
