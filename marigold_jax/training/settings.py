"""What a configuration must hold: its sections, their keys, and numbers that make sense."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from marigold_jax.runs.base_model import ModelOptions
from marigold_jax.runtime import seeds
from marigold_jax.training.objectives import OBJECTIVES
from marigold_jax.training.setup import OptimOptions

LEAST = {  # number -> the least that makes sense
    "data.batch_size": 1,
    "data.accumulation": 1,
    "data.num_workers": 0,
    "run.steps": 1,
    "run.log_every": 1,
    "run.checkpoint_every": 1,
    "run.evaluate_every": 0,
    "run.validation_images": 0,
    "run.max_skipped": 1,
    "run.fsdp": 1,
}
DATA = {
    *("data_dir", "train", "validation", "size", "batch_size", "accumulation"),
    *("num_workers", "flip", "zoom", "antialias", "far_fill"),
}
RUN = {"seed", *(key.removeprefix("run.") for key in LEAST if key.startswith("run."))}


def check(config: Mapping[str, Any]) -> None:
    """Raises ValueError with one line for a section or a key that is missing or unknown, or a number out of range."""
    known = sections(_section(config, "objective").get("name"))
    if unknown := config.keys() - known.keys():
        raise ValueError(f"config.{min(unknown)}: no such section; wanted {', '.join(known)}")
    for section, (allowed, needed) in known.items():
        keys = _section(config, section).keys()
        if missing := needed - keys:
            raise ValueError(f"config.{section}.{min(missing)} is missing")
        if allowed is not None and (unknown := keys - allowed):
            raise ValueError(f"config.{section}.{min(unknown)}: no such configuration key; wanted {_listed(allowed)}")
    for key, least in LEAST.items():
        section, _, name = key.partition(".")
        value = config[section][name]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"config.{key}={value}: wanted a whole number, {least} or more")
    if config["run"]["evaluate_every"] and not config["run"]["validation_images"]:
        raise ValueError("config.run.validation_images=0: wanted 1 or more, or 0 for config.run.evaluate_every")
    for section in ("run", "model"):
        seeds.check(config[section].get("seed", 0), f"config.{section}.seed")


def sections(objective: Any) -> dict[str, tuple[set[str] | None, set[str]]]:
    """Section -> the keys that it may hold, None for any, and those that it must. ValueError for no such objective."""
    if objective not in OBJECTIVES:
        raise ValueError(f"config.objective.name={objective}: wanted one of {_listed(set(OBJECTIVES))}")
    # What else these functions take, programs give.
    model, model_needs = _arguments(ModelOptions, without=set())
    optim, optim_needs = _arguments(OptimOptions, without=set())
    options, needs = _arguments(
        OBJECTIVES[objective].make, without={"unet_structure", "vae_structure", "schedule", "target"}
    )
    named = {"name", "prompt_length"}
    return {
        "model": (model, model_needs | {"prediction"}),
        "data": (DATA, DATA),
        "objective": (options and options | named, needs | named),
        "optim": (optim, optim_needs),
        "run": (RUN | {"latents"}, RUN),
    }


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if not isinstance(config.get(name), Mapping):
        raise ValueError(f"config.{name} is missing: wanted the sections model, data, objective, optim and run")
    return config[name]


def _arguments(function: Callable, without: set[str]) -> tuple[set[str] | None, set[str]]:
    """The names of the arguments, None where it takes any; and of those that must be given."""
    parameters = [one for one in inspect.signature(function).parameters.values() if one.name not in without]
    named = [one for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    needed = {one.name for one in named if one.default is one.empty}
    return ({one.name for one in named} if len(named) == len(parameters) else None), needed


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
