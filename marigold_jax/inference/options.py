"""The options of a model as flags of a program; `weights/model_index.py` has the table."""

import argparse
from collections.abc import Callable
from typing import Any

from marigold_jax.weights.model_index import OPTIONS


def add_flags(add: Callable[..., Any]) -> None:
    """Adds a flag for each option to a parser, by its `add_argument`."""
    for name, option in OPTIONS.items():
        switch = option.values == (False, True)
        kind = {"action": argparse.BooleanOptionalAction} if switch else {"choices": option.values}
        add(f"--{name}", default=None, help=f"{option.help} (default: set by the model)", **kind)


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the options that were given as flags."""
    return {name: value for name in OPTIONS if (value := getattr(arguments, name)) is not None}
