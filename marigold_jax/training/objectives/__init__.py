"""The training objectives, one file each. `contract` describes their common signature."""

from collections.abc import Callable
from dataclasses import dataclass

from marigold_jax.training.objectives.autoencoder import autoencoder_objective
from marigold_jax.training.objectives.consistency import consistency_objective
from marigold_jax.training.objectives.contract import Objective
from marigold_jax.training.objectives.diffusion import diffusion_objective
from marigold_jax.training.objectives.end_to_end import end_to_end_objective


@dataclass(frozen=True)
class Row:
    """The constructor of an objective. `runs.objective_facts.FACTS` has a row of the same name, with what it trains.

    Attributes:
        make: `make(unet_structure, vae_structure, schedule, target=..., **options)` returns the objective. The keyword
            arguments but `target` are the keys that section `objective` of a configuration accepts.
        reads_latents: batches may hold latents instead of images (`encode_dataset`), and `frozen` then has no VAE.
    """

    make: Callable[..., Objective]
    reads_latents: bool = False


OBJECTIVES = {
    "diffusion": Row(diffusion_objective, reads_latents=True),
    "end_to_end": Row(end_to_end_objective),
    "consistency": Row(consistency_objective, reads_latents=True),
    "autoencoder": Row(autoencoder_objective),
}
