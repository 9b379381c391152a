"""The configuration of a training run: read from --config and its overrides, completed with defaults, and checked.

`configs/base.py` has every key with its default. A recipe states what differs, and `--config.SECTION.KEY=VALUE` what
differs in one run.
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

LEAST = {  # key -> its smallest allowed value
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
# Defaults of keys that a configuration may lack, in addition to the default arguments of functions.
OPTIONAL = {"model": {"scheduler": {}, "description": {}}, "run": {"latents": ""}}


# -------------------------------------------------------------------------------------------------------- command line


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --config, with help on overrides and recipes. `overrides.split` must remove the overrides before parsing."""
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
    """Returns the configuration of a recipe or file, with these overrides. No keys can be added to it.

    The file is executed. Unknown keys in the file are left for `check` to report.

    Raises:
        ValueError: the file is missing or fails, or an override has an unknown key or another type of value; one line.
    """
    given = recipes.read(recipes.find(name))
    config = resolve(given, objective=dict(changes).get("objective.name"))
    overrides.apply(config, changes)
    return ConfigDict(config).lock()


def resolve(given: Mapping[str, Any], objective: str | None = None) -> dict[str, Any]:
    """Returns a complete configuration: `base.py`, with the given values in place of its own.

    A value that is a dictionary (`model.scheduler`, `model.description`) replaces the whole default.

    Args:
        given: section -> key -> value. Unknown sections and keys are kept, so that `check` can report them.
        objective: the name of the objective whose options are added; by default the one in `given`, or `base.py`'s.
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
    """Raises ValueError, in one line, if a section or key is missing or unknown, or a number is out of range."""
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
    """Returns section -> key -> the value that a run used if its `config.json` lacks the key, as older runs' do.

    These are the default arguments of functions, not the values of `base.py`, which a user may have edited. Dtypes are
    given by name, as in `config.json`.
    """
    model, _, options = _parameters(objective)
    found = {"model": _defaults(model), "objective": _defaults(options)}
    return {name: found.get(name, {}) | OPTIONAL.get(name, {}) for name in found | OPTIONAL}


Parameters = dict[str, inspect.Parameter]


def _parameters(objective: Any) -> tuple[Parameters, Parameters, Parameters]:
    """Returns the function parameters that the keys of `model` and `optim` and the objective's options are passed to.

    Parameters that programs pass themselves are left out. Raises ValueError if there is no such objective.
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
