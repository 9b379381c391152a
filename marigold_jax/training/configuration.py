"""The configuration of a training: from --config and its overrides to sections of keys, every one of them known.

`configs/base.py` has all keys with their defaults, a recipe what differs, and `--config.SECTION.KEY=VALUE` what differs
in one run.
"""

import argparse
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from marigold_jax.runs.base_model import ModelOptions
from marigold_jax.runtime import seeds
from marigold_jax.training import overrides, recipes
from marigold_jax.training.objectives import OBJECTIVES
from marigold_jax.training.overrides import Override
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
# Keys that a configuration may lack, and what their absence means, beside the default arguments of functions.
OPTIONAL = {"model": {"scheduler": {}, "description": {}}, "run": {"latents": ""}}


# -------------------------------------------------------------------------------------------------------- command line


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --config, and explains overrides and recipes; `overrides.split` takes overrides out of the arguments."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="NAME|FILE",
        help="a recipe by name (listed below), or a Python file with a configuration, which is executed",
    )
    parser.add_argument("--config.SECTION.KEY", metavar="VALUE", help="override one value of the configuration")
    width = max(map(len, recipes.names()))
    lines = (f"  {name:{width}}  {summary}" for name, summary in recipes.summaries().items())
    parser.epilog = "\n".join([f"recipes, in {recipes.folder()}:", *lines])


def load(name: str, changes: Sequence[Override] = ()) -> ConfigDict:
    """Returns the configuration of a recipe or file with these overrides; its keys are fixed, and read as attributes.

    The file is executed. Raises ValueError, in one line, for a file that is missing or fails, and for an override of an
    unknown key or with a value of another type.
    """
    given = recipes.read(recipes.find(name))
    config = resolve(given, objective=dict(changes).get("objective.name"))
    overrides.apply(config, changes)
    return ConfigDict(config).lock()


def resolve(given: Mapping[str, Any], objective: str | None = None) -> dict[str, Any]:
    """Returns a whole configuration: that of `base.py`, with the values that are given.

    Values that are dictionaries (`model.scheduler`, `model.description`) are replaced as a whole.

    Args:
        given: sections of keys; what it lacks is taken from `base.py`, what is unknown stays for `check` to refuse.
        objective: the name of the objective, if it is not the one that is given.
    """
    base = _base(objective or _name_of_objective(given))
    sections = {name: value if isinstance(value, Mapping) else None for name, value in given.items()}
    merged = {name: {**base.get(name, {}), **value} for name, value in sections.items() if value is not None}
    return {**base, **given, **merged}


def _base(objective: Any) -> dict[str, Any]:
    return recipes.read(recipes.folder() / recipes.BASE, *([objective] if objective in OBJECTIVES else []))


def _name_of_objective(config: Mapping[str, Any]) -> Any:
    section = config.get("objective")
    return section.get("name") if isinstance(section, Mapping) else None


# --------------------------------------------------------------------------------------------------------------- checks


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
    """For each section: the keys that it may hold (None for any), and the keys that it must hold.

    Raises ValueError if there is no such objective.
    """
    model, optim, options = _parameters(objective)
    named, base = {"name", "prompt_length"}, _base(objective)
    data, run = set(base["data"]), set(base["run"])
    return {
        "model": (_names(model), _needed(model) | {"prediction"}),
        "data": (data, data),
        "objective": (_names(options) and _names(options) | named, _needed(options) | named),
        "optim": (_names(optim), _needed(optim)),
        "run": (run, run - OPTIONAL["run"].keys()),
    }


def defaults(objective: str) -> dict[str, dict[str, Any]]:
    """What it means if a configuration, as of an older run, lacks a key: the functions' own default arguments.

    The values are those of `config.json`: a type of numbers is its name.
    """
    model, _, options = _parameters(objective)
    found = {"model": _defaults(model), "objective": _defaults(options)}
    return {name: found.get(name, {}) | OPTIONAL.get(name, {}) for name in found | OPTIONAL}


Parameters = dict[str, inspect.Parameter]


def _parameters(objective: Any) -> tuple[Parameters, Parameters, Parameters]:
    """The arguments that sections become: of `model`, `optim`, and the options of the objective.

    `Objective.make` takes more, which `training.setup` gives. Raises ValueError if there is no such objective.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"config.objective.name={objective}: wanted one of {_listed(set(OBJECTIVES))}")
    return (
        _arguments(ModelOptions),
        _arguments(OptimOptions),
        _arguments(OBJECTIVES[objective].make, without={"unet_structure", "vae_structure", "schedule", "target"}),
    )


def _arguments(function: Callable, without: Collection[str] = ()) -> Parameters:
    return {name: one for name, one in inspect.signature(function).parameters.items() if name not in without}


def _is_named(parameter: inspect.Parameter) -> bool:
    return parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)


def _names(parameters: Parameters) -> set[str] | None:
    return set(parameters) if all(map(_is_named, parameters.values())) else None


def _needed(parameters: Parameters) -> set[str]:
    return {name for name, one in parameters.items() if _is_named(one) and one.default is one.empty}


def _defaults(parameters: Parameters) -> dict[str, Any]:
    given = {name: one.default for name, one in parameters.items() if one.default is not one.empty}
    return {name: np.dtype(value).name if callable(value) else value for name, value in given.items()}


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if not isinstance(config.get(name), Mapping):
        raise ValueError(f"config.{name} is missing: wanted the sections model, data, objective, optim and run")
    return config[name]


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
