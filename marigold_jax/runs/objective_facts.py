"""What a run folder must know of the objective it was trained with, one row per objective.

`training.objectives.OBJECTIVES` has a row of the same name with the loss itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from marigold_jax.weights.model_index import END_TO_END, OPTIONS


def _nothing(**options: Any) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class ObjectiveFacts:
    """Facts about an objective that decide what is read, checked and exported.

    Attributes:
        trains: the component whose weights change, "unet" or "vae".
        uses_ema_target: the loss compares against the moving average of the weights. It also reads the weights that
            training began with (the teacher), so the model must keep the teacher's noise schedule.
        model_index: from the objective's options to the keys that the exported `model_index.json` gains.
        scheduler: from the objective's options to the keys of `scheduler_config.json` that the export replaces.
    """

    trains: str
    uses_ema_target: bool = False
    model_index: Callable[..., dict[str, Any]] = _nothing
    scheduler: Callable[..., dict[str, Any]] = _nothing


def end_to_end_index(*, noise: str = "zeros", **options: Any) -> dict[str, Any]:
    """Returns the fields of `ModelIndex` that make the pipeline predict as training did: one step, same noise."""
    return END_TO_END | ({"noise": noise} if noise in OPTIONS["noise"].values else {})


def student_scheduler(*, grid: int = 5, timestep_scaling: float = 10.0, **options: Any) -> dict[str, Any]:
    """Returns the scheduler keys that make the LCM sampler visit the timesteps that the student has learned."""
    return {"_class_name": "LCMScheduler", "original_inference_steps": grid, "timestep_scaling": timestep_scaling}


FACTS = {
    "diffusion": ObjectiveFacts("unet"),
    "end_to_end": ObjectiveFacts("unet", model_index=end_to_end_index),
    "consistency": ObjectiveFacts("unet", uses_ema_target=True, scheduler=student_scheduler),
    "autoencoder": ObjectiveFacts("vae"),
}


def facts_of(objective: Mapping[str, Any]) -> ObjectiveFacts:
    """Returns the facts for the section `objective` of a configuration. Raises ValueError if its name is unknown."""
    if (name := objective.get("name")) not in FACTS:
        raise ValueError(f"config.objective.name={name}: wanted one of {', '.join(FACTS)}")
    return FACTS[name]
