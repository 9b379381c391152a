"""What a training minimises and how: from the options of a configuration to an objective and its optimiser."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from marigold_jax.diffusion.optimiser import iter_exponential, make_optimiser
from marigold_jax.diffusion.schedule import NoiseSchedule
from marigold_jax.models.functional import Params
from marigold_jax.training.objectives import OBJECTIVES, alignment
from marigold_jax.training.objectives.contract import Frozen, Objective
from marigold_jax.weights import lora
from marigold_jax.weights.model import DiffusionModel
from marigold_jax.weights.teacher import load_teacher


class Recipe(NamedTuple):
    """`trains`: "unet" or "vae"; `params`: what trains, and `frozen`: what does not, as the objective takes them.

    `ema_decay` is None where nothing is averaged. Where the objective `follows` the average, that is its
    `frozen["target"]`. `lean` is the same objective with nothing computed twice, to count the arithmetic of.
    """

    trains: str
    params: Params
    frozen: Frozen
    objective: Objective
    lean: Objective
    optimiser: optax.GradientTransformation
    ema_decay: float | None
    follows: bool


def make_recipe(
    base: DiffusionModel,
    prediction: str,
    objective: Mapping[str, Any],
    seed: int,
    stored: str = "",
    *,
    name: str,
    lora_rank: int,
    learning_rate: float,
    total_steps: int,
    final_ratio: float,
    warmup_steps: int,
    betas: Sequence[float],
    epsilon: float,
    weight_decay: float,
    clip_norm: float,
    ema_decay: float,
) -> Recipe:
    """Returns the recipe for training `base`, whose parameters may be arrays or shapes.

    Args:
        prediction: "depth" or "normals".
        objective: `name`, a row of `OBJECTIVES`; `prompt_length`, a key of the empty prompt; and the options of that
            objective.
        seed: of the low-rank corrections.
        stored: how latents are stored that batches will hold in place of images; then no VAE is needed.
        name, betas, epsilon, weight_decay, clip_norm: see `make_optimiser`; a clip of 0 is none.
        lora_rank: of corrections to attention, which then alone train; 0 trains everything.
        learning_rate, total_steps, final_ratio, warmup_steps: see `iter_exponential`.
        ema_decay: 0 for no average.

    Raises:
        ValueError: the objective is unknown, or what its maker and those of the optimiser refuse.
    """
    options = dict(objective)
    if (objective_name := options.pop("name")) not in OBJECTIVES:
        raise ValueError(f"config.objective.name={objective_name}: wanted one of {', '.join(OBJECTIVES)}")
    row = OBJECTIVES[objective_name]
    if row.follows and not ema_decay:
        raise ValueError(
            f"config.optim.ema_decay=0: the objective {objective_name} follows an average; wanted a decay, as 0.95"
        )
    if stored and not row.reads_latents:
        raise ValueError(f"config.run.latents={stored}: the objective {objective_name} is about pixels; leave it empty")
    prompt = jnp.asarray(base.empty_prompt[options.pop("prompt_length")])
    structures, schedule = (base.unet.structure, base.vae.structure), NoiseSchedule.from_config(base.scheduler)
    plain = options | ({"remat": "none"} if "remat" in options else {})
    loss, lean = (row.make(*structures, schedule, target=prediction, **given) for given in (options, plain))
    params = getattr(base, row.trains).params
    frozen = {"vae": base.vae.params, "empty_prompt": prompt} if row.trains != "vae" else {}
    if stored:
        del frozen["vae"]
    if align := options.get("align"):
        if lora_rank or stored:
            raise ValueError(
                f"config.objective.align={align} wants to train the whole UNet and to see images; set it to 0.0, or "
                f"config.optim.lora_rank=0 (is {lora_rank}) and config.run.latents='' (is {stored!r})"
            )
        params, frozen = params | alignment.heads(base.unet.config), frozen | {"teacher": load_teacher()}
    if lora_rank or row.follows:
        frozen[row.trains] = params
    if lora_rank:
        loss, lean = lora.adapt(loss), lora.adapt(lean)
        params = lora.init(params, lora_rank, jax.random.key(seed))
    rates = iter_exponential(learning_rate, total_steps, final_ratio, warmup_steps)
    optimiser = make_optimiser(name, rates, weight_decay, clip_norm or None, tuple(betas), epsilon)
    return Recipe(row.trains, params, frozen, loss, lean, optimiser, ema_decay or None, row.follows)
