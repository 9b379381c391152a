"""The model that a run begins from: section `model` of a configuration, and the base made ready for training."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from marigold_jax.diffusion.schedule import NoiseSchedule
from marigold_jax.diffusion.scheduler_config import SchedulerConfig
from marigold_jax.runs.objective_facts import facts_of
from marigold_jax.weights.growth import widen
from marigold_jax.weights.model import DiffusionModel
from marigold_jax.weights.model_index import ModelIndex, to_json
from marigold_jax.weights.scratch import scratch

SCRATCH = "scratch"  # the name of a base that is created, not read
KEPT = ("default_processing_resolution",)  # keys of the base's model_index.json that the export inherits


@dataclass(frozen=True)
class ExportedAs:
    """What the exported `model_index.json` says for one modality.

    Attributes:
        pipeline: the class in diffusers that runs it.
        traits: further keys that this class reads.
    """

    pipeline: str
    traits: Mapping[str, Any] = dataclasses.field(default_factory=dict)


EXPORTED_AS = {
    "depth": ExportedAs("MarigoldDepthPipeline", {"scale_invariant": True, "shift_invariant": True}),
    "normals": ExportedAs("MarigoldNormalsPipeline"),
}


@dataclass(frozen=True)
class ModelOptions:
    """Section `model` of a configuration.

    Attributes:
        checkpoint: any name that `locate` understands, such as Stable Diffusion 2 or a Marigold; or "scratch".
        prediction: the modality, a row of `EXPORTED_AS`.
        scheduler: replaces these keys of the base's `scheduler_config.json`.
        description: adds these keys to the exported `model_index.json` (`default_denoising_steps`, ...).
        inflation_bias: how a plain Stable Diffusion is widened; see `weights.model.inflate`.
        widths, cell, seed: for "scratch" only; see `weights.scratch.scratch`.
        vae_widths: for "scratch", those of its VAE. The VAE of any other base is widened to them, unless empty; see
            `weights.growth.widen`.
    """

    checkpoint: str
    prediction: str = "depth"
    scheduler: Mapping[str, Any] | None = None
    description: Mapping[str, Any] | None = None
    inflation_bias: str = "marigold"
    widths: Sequence[int] = ()
    cell: int = 4
    seed: int = 0
    vae_widths: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.prediction not in EXPORTED_AS:
            raise ValueError(f"model.prediction is {self.prediction!r}, wanted one of {', '.join(EXPORTED_AS)}")


def create(options: ModelOptions) -> DiffusionModel:
    """Returns the base named "scratch", with random weights."""
    return scratch(tuple(options.widths), options.cell, options.seed, tuple(options.vae_widths))


def make_ready(
    base: DiffusionModel, options: ModelOptions, objective: Mapping[str, Any] | None = None
) -> DiffusionModel:
    """Returns the base as training starts from it, described as what it will become.

    Args:
        base: its UNet already reads the latents of the image and of the target (see `weights.model.inflate`).
        options: section `model` of the configuration.
        objective: section `objective`. If None, nothing specific to an objective is added to the description.

    Raises:
        ValueError: the objective is unknown; or it has a teacher, and `options.scheduler` changes the noise schedule
            that the teacher was trained with.
    """
    if options.vae_widths and options.checkpoint != SCRATCH:
        base = dataclasses.replace(base, vae=widen(base.vae, tuple(options.vae_widths), options.seed))
    exported_as = EXPORTED_AS[options.prediction]
    index = {"_class_name": exported_as.pipeline, "prediction_type": options.prediction, **exported_as.traits}
    index |= {key: base.index.values[key] for key in KEPT if base.index.values.get(key) is not None}
    index |= options.description or {}
    ModelIndex(index, "config.model.description")  # raises an error that names the configuration
    replaced: dict[str, Any] = {}
    if objective is not None:
        facts = facts_of(objective)
        settings = {key: value for key, value in objective.items() if key != "name"}
        replaced, index = facts.scheduler(**settings), {**to_json(**facts.model_index(**settings)), **index}
    scheduler = base.scheduler.replace({**replaced, **(options.scheduler or {})}, "config.model.scheduler")
    if objective is not None and facts.uses_ema_target:
        _require_schedule_of_teacher(base.scheduler, scheduler, options, objective["name"])
    return dataclasses.replace(base, scheduler=scheduler, index=ModelIndex(index, "config.model.description"))


def _require_schedule_of_teacher(
    teacher: SchedulerConfig, student: SchedulerConfig, options: ModelOptions, objective: str
) -> None:
    if not NoiseSchedule.from_config(student).same_as(NoiseSchedule.from_config(teacher)):
        raise ValueError(
            f"config.model.scheduler={dict(options.scheduler or {})}: with the objective {objective} wanted the noise "
            f"schedule that the teacher {options.checkpoint} learned on; leave betas and prediction_type out"
        )
