"""Hyper-parameters as diffusers and transformers write them in `config.json`, read into frozen dataclasses.

A module's dataclass names the keys that change its shape. Every other key that the libraries may write stands in a
table beside it, with the one value that the module implements. So a checkpoint either means what we compute, or says
in one line why it does not load.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

Config = TypeVar("Config")

ANY = object()  # the key may hold anything: it does not touch the computation


def _hashable(value: Any) -> Any:
    return tuple(_hashable(item) for item in value) if isinstance(value, list | tuple) else value


def config_from_dict(cls: type[Config], values: Mapping[str, Any], fixed: Mapping[str, Any]) -> Config:
    """Build the frozen dataclass `cls` from the contents of a `config.json`.

    `fixed` maps each further key that may be present to the value implemented, or to `ANY`. Keys that start with an
    underscore are the writing library's own notes. Raises ValueError that lists every unknown key and every value
    that is not implemented, all at once.
    """
    fields = {field.name for field in dataclasses.fields(cls)}
    problems = []
    for key, value in values.items():
        if key in fields or key.startswith("_"):
            continue
        if key not in fixed:
            problems.append(f"unknown key {key!r}")
        elif fixed[key] is not ANY and _hashable(value) != fixed[key]:
            problems.append(f"{key} = {value!r}, only {fixed[key]!r} is implemented")
    if problems:
        raise ValueError(f"{cls.__name__}: {'; '.join(problems)}. Only the Stable Diffusion 2 family loads.")
    return cls(**{key: _hashable(value) for key, value in values.items() if key in fields})


def config_to_dict(config: Any, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse: what goes into the `config.json` of an exported folder."""
    known = {key: value for key, value in fixed.items() if value is not ANY}
    return known | {key: value for key, value in dataclasses.asdict(config).items() if value is not None}
