"""From a configuration and a base model to what a training needs: parameters, objective and optimiser."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from marigold_jax.diffusion.optimiser import iter_exponential, make_optimiser
from marigold_jax.diffusion.schedule import NoiseSchedule
from marigold_jax.models.functional import Params
from marigold_jax.runs.objective_facts import facts_of
from marigold_jax.training.objectives import OBJECTIVES, alignment
from marigold_jax.training.objectives.contract import Frozen, Objective
from marigold_jax.training.objectives.low_rank import of_corrections
from marigold_jax.weights import lora
from marigold_jax.weights.model import DiffusionModel
from marigold_jax.weights.teacher import load_teacher


@dataclass(frozen=True)
class OptimOptions:
    """Section `optim` of a configuration.

    Attributes:
        name, betas, epsilon, weight_decay, clip_norm: see `diffusion.optimiser.make_optimiser`; a `clip_norm` of 0 does
            not clip.
        lora_rank: of corrections to attention, which then are all that trains; 0 trains everything.
        learning_rate, total_steps, final_ratio, warmup_steps: see `diffusion.optimiser.iter_exponential`.
        ema_decay: of the moving average of the weights; 0 keeps none.
    """

    name: str
    lora_rank: int
    learning_rate: float
    total_steps: int
    final_ratio: float
    warmup_steps: int
    betas: Sequence[float]
    epsilon: float
    weight_decay: float
    clip_norm: float
    ema_decay: float

    def optimiser(self) -> optax.GradientTransformation:
        """Returns the optimiser with its schedule. Raises ValueError as `make_optimiser` and `iter_exponential` do."""
        rates = iter_exponential(self.learning_rate, self.total_steps, self.final_ratio, self.warmup_steps)
        clip_norm = self.clip_norm or None
        return make_optimiser(self.name, rates, self.weight_decay, clip_norm, tuple(self.betas), self.epsilon)


@dataclass(frozen=True)
class Setup:
    """What a training needs besides data and devices.

    Attributes:
        trains: the component that trains, "unet" or "vae".
        params: the parameters that train, as the objective takes them.
        frozen: the arrays that do not train, as the objective takes them.
        objective: see `training.objectives.contract`.
        lean_objective: the same without rematerialisation, to count useful arithmetic.
        optimiser: see `diffusion.optimiser.make_optimiser`.
        ema_decay: of the moving average of `params`; None if there is none.
        uses_ema_target: the objective reads that average as `frozen["target"]`.
    """

    trains: str
    params: Params
    frozen: Frozen
    objective: Objective
    lean_objective: Objective
    optimiser: optax.GradientTransformation
    ema_decay: float | None
    uses_ema_target: bool


def make_setup(base: DiffusionModel, config: Mapping[str, Mapping[str, Any]]) -> Setup:
    """Returns the setup for training a model.

    Args:
        base: made by `runs.start`. Its parameters may be arrays or shapes.
        config: a configuration with `model.prediction`, `run.seed`, optionally `run.latents` (the dtype of stored
            latents), and the whole sections `optim` and `objective`: its `name`, a row of `OBJECTIVES`;
            `prompt_length`, a key of the empty prompt; and the options of that objective.

    Raises:
        ValueError: the objective is unknown, options exclude each other, or the objective or the optimiser refuses one.
    """
    facts, optim = facts_of(config["objective"]), OptimOptions(**config["optim"])
    options, stored = dict(config["objective"]), config["run"].get("latents", "")
    name, prompt_length = options.pop("name"), options.pop("prompt_length")
    _check(name, options, optim, stored)
    structures, schedule = (base.unet.structure, base.vae.structure), NoiseSchedule.from_config(base.scheduler)
    without_remat = options | ({"remat": "none"} if "remat" in options else {})
    objective, lean = (
        OBJECTIVES[name].make(*structures, schedule, target=config["model"]["prediction"], **given)
        for given in (options, without_remat)
    )
    params = getattr(base, facts.trains).params
    frozen: dict[str, Any] = {}
    if facts.trains == "unet":
        frozen["empty_prompt"] = jnp.asarray(base.empty_prompt[prompt_length])
        frozen |= {} if stored else {"vae": base.vae.params}
    if options.get("align"):
        params, frozen["teacher"] = params | alignment.heads(base.unet.config), load_teacher()
    if optim.lora_rank or facts.uses_ema_target:
        frozen[facts.trains] = params
    if optim.lora_rank:
        objective, lean = of_corrections(objective), of_corrections(lean)
        params = lora.init(params, optim.lora_rank, jax.random.key(config["run"]["seed"]))
    ema_decay = optim.ema_decay or None
    return Setup(facts.trains, params, frozen, objective, lean, optim.optimiser(), ema_decay, facts.uses_ema_target)


def _check(name: str, options: Mapping[str, Any], optim: OptimOptions, stored: str) -> None:
    """Raises ValueError for options of an objective, an optimiser and a run that exclude each other."""
    if facts_of({"name": name}).uses_ema_target and not optim.ema_decay:
        raise ValueError(
            f"config.optim.ema_decay=0: the objective {name} compares with a moving average of the weights; wanted a "
            "decay, such as 0.95"
        )
    if stored and not OBJECTIVES[name].reads_latents:
        raise ValueError(f"config.run.latents={stored}: the objective {name} needs images; leave it empty")
    align = options.get("align")
    if align and (optim.lora_rank or stored):
        raise ValueError(
            f"config.objective.align={align} wants to train the whole UNet and to see images; set it to 0.0, or "
            f"config.optim.lora_rank=0 (is {optim.lora_rank}) and config.run.latents='' (is {stored!r})"
        )
