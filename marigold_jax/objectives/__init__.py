"""What is minimised, one file for each way of training; `contract` says what all of them are."""

from collections.abc import Callable
from typing import NamedTuple

from marigold_jax.objectives.autoencoder import autoencoder_objective
from marigold_jax.objectives.contract import Objective
from marigold_jax.objectives.diffusion import diffusion_objective
from marigold_jax.objectives.end_to_end import end_to_end_objective


class Row(NamedTuple):
    """`make(unet_structure, vae_structure, schedule, target=..., **options)` gives the objective of what `trains`."""

    make: Callable[..., Objective]
    trains: str  # a component of the checkpoint: "unet" or "vae"
    reads_latents: bool = False  # batches may hold what the VAE made of image and target, and `frozen` no VAE


OBJECTIVES = {
    "diffusion": Row(diffusion_objective, "unet", reads_latents=True),
    "end_to_end": Row(end_to_end_objective, "unet"),
    "autoencoder": Row(autoencoder_objective, "vae"),
}
