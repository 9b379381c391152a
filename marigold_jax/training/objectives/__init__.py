"""What is minimised, one file for each way of training; `contract` says what all of them are."""

from collections.abc import Callable
from typing import Any, NamedTuple

from marigold_jax.training.objectives.autoencoder import autoencoder_objective
from marigold_jax.training.objectives.consistency import consistency_objective, scheduler_of_student
from marigold_jax.training.objectives.contract import Objective
from marigold_jax.training.objectives.diffusion import diffusion_objective
from marigold_jax.training.objectives.end_to_end import describe_end_to_end, end_to_end_objective


class Row(NamedTuple):
    """`make(unet_structure, vae_structure, schedule, target=..., **options)` gives the objective of what `trains`.

    One that `follows` reads `frozen["target"]` too, the moving average of what trains, and `frozen[trains]`, its start.
    Its target comes from a teacher, so it must learn on the teacher's noise schedule. `describe(**options)` gives
    fields of the trained model's index; see `weights.model_index.ModelIndex`. `scheduler(**options)` likewise replaces
    keys of its `scheduler_config.json`.
    """

    make: Callable[..., Objective]
    trains: str  # a component of the checkpoint: "unet" or "vae"
    follows: bool = False
    reads_latents: bool = False  # batches may hold what the VAE made of image and target, and `frozen` no VAE
    describe: Callable[..., dict[str, Any]] = lambda **options: {}
    scheduler: Callable[..., dict[str, Any]] = lambda **options: {}


OBJECTIVES = {
    "diffusion": Row(diffusion_objective, "unet", reads_latents=True),
    "end_to_end": Row(end_to_end_objective, "unet", describe=describe_end_to_end),
    "consistency": Row(consistency_objective, "unet", follows=True, reads_latents=True, scheduler=scheduler_of_student),
    "autoencoder": Row(autoencoder_objective, "vae"),
}
