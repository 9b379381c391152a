"""Hyper-parameters as diffusers and transformers write them in `config.json`, read into frozen dataclasses.

The dataclass of a module has the keys that change its shape, each with its type and range. A table beside it lists all
other keys that the libraries may write, with the one value that the module implements. So a checkpoint is either
computed correctly, or rejected with a one-line error. A key that is not in the tables is ignored with a warning: newer
versions of the libraries add keys more often than they change what a model computes.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar, get_type_hints

from marigold_jax.runtime.typed import Between, converted, listed, problem, shown

logger = logging.getLogger(__name__)

Config = TypeVar("Config")

ANY = object()  # the key may have any value, because it does not affect the computation

# Ranges that include all models of this family, and in which shapes can be computed before the weights are read.
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
    """Returns the dataclass `cls` with the contents of a `config.json`.

    Args:
        cls: a frozen dataclass.
        values: the contents of the file. Keys that start with an underscore are metadata of the library that wrote it.
        fixed: further keys that may be present -> the value that is implemented, or `ANY`. Any other key is ignored
            with a warning.
        file: the name that the warning starts with.

    Raises:
        ValueError: one line that lists every value that is of the wrong type, out of range, or not implemented.
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
    except ValueError as error:  # values that are each in range, but inconsistent
        raise ValueError(f"{cls.__name__}: {error}") from None
    if unknown:
        logger.warning("%s: passing over what is not known here: %s", file or cls.__name__, listed(unknown))
    return config


def config_to_dict(config: Any, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the contents of the `config.json` of an exported folder; the inverse of `config_from_dict`."""
    known = {key: value for key, value in fixed.items() if value is not ANY}
    return known | {key: value for key, value in dataclasses.asdict(config).items() if value is not None}


def require_multiples(key: str, numbers: Sequence[int], divisor: int, of: str) -> None:
    """Raises ValueError unless every number of `key` is a multiple of `divisor`, the value of the key `of`."""
    if any(number % divisor for number in numbers):
        raise ValueError(f"{key} = {shown(tuple(numbers))}: wanted multiples of {of} = {divisor}")
