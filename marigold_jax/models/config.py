"""Hyper-parameters as diffusers and transformers write them in `config.json`, read into frozen dataclasses.

A module's dataclass names the keys that change its shape, each with its type and range. Every other key that the
libraries may write stands in a table beside it, with the one value that the module implements. So a checkpoint either
means what we compute, or says in one line why it does not load. A key that no library had when the tables were made is
passed over with a warning: a newer library adds keys more often than it changes what a model computes.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar, get_type_hints

from marigold_jax.runtime.typed import Between, converted, listed, problem, shown

logger = logging.getLogger(__name__)

Config = TypeVar("Config")

ANY = object()  # the key may hold anything: it does not touch the computation

# Ranges that no model of this family leaves, and within which one can be laid out before its weights are looked at.
Width = Annotated[int, Between(1, 2**14)]
Count = Annotated[int, Between(1, 8)]
Heads = Annotated[int, Between(1, 2**10)]
Epsilon = Annotated[float, Between(1e-12, 0.1)]
Factor = Annotated[float, Between(1e-4, 1e4)]
Colours = Annotated[int, Between(3, 3)]
Widths = Annotated[tuple[Width, ...], Between(1, 8)]


def config_from_dict(
    cls: type[Config], values: Mapping[str, Any], fixed: Mapping[str, Any], file: object = None
) -> Config:
    """Build the frozen dataclass `cls` from the contents of a `config.json`.

    `fixed` maps each further key that may be present to the value implemented, or to `ANY`. Keys that start with an
    underscore are the writing library's own notes. Any other key is passed over, with one warning that names `file`.
    Raises ValueError that lists every value of a wrong type, out of range, or not implemented, all at once.
    """
    fields = get_type_hints(cls, include_extras=True)
    wrong, unknown = [], []
    for key, value in values.items():
        if key in fields:
            wrong += filter(None, [problem(key, value, fields[key])])
        elif key.startswith("_"):
            continue
        elif key not in fixed:
            unknown.append(key)
        elif fixed[key] is not ANY and value != fixed[key]:
            wrong.append(f"{key} = {shown(value)}, only {fixed[key]!r} is implemented")
    if wrong:
        raise ValueError(f"{cls.__name__}: {'; '.join(wrong)}. Only the Stable Diffusion family loads.")
    given = {key: converted(value, fields[key]) for key, value in values.items() if key in fields}
    try:
        config = cls(**given)
    except ValueError as error:  # numbers that are sane one by one, and impossible together
        raise ValueError(f"{cls.__name__}: {error}") from None
    if unknown:
        logger.warning("%s: passing over what is not known here: %s", file or cls.__name__, listed(unknown))
    return config


def config_to_dict(config: Any, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse: what goes into the `config.json` of an exported folder."""
    known = {key: value for key, value in fixed.items() if value is not ANY}
    return known | {key: value for key, value in dataclasses.asdict(config).items() if value is not None}


def require_multiples(key: str, numbers: Sequence[int], divisor: int, of: str) -> None:
    """Raises ValueError where `divisor`, which is the value of the key `of`, does not divide every number of `key`."""
    if any(number % divisor for number in numbers):
        raise ValueError(f"{key} = {shown(tuple(numbers))}: wanted multiples of {of} = {divisor}")
