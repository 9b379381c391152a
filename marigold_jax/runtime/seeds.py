"""Seeds: unsigned 32-bit integers. A larger one would be truncated, so two different seeds could be the same."""

import argparse
import operator
from typing import Any

LARGEST = 2**32 - 1


def check(seed: Any, name: str = "seed") -> int:
    """Returns the seed as an int. Raises ValueError, one line that starts with `name`, if it is not a valid seed."""
    try:
        value = operator.index(seed)
    except TypeError:
        value = -1
    if isinstance(seed, bool) or not 0 <= value <= LARGEST:
        raise ValueError(f"{name}: wanted a whole number from 0 to {LARGEST}, got {seed!r}")
    return value


def flag(text: str) -> int:
    """Parses a seed; the `type` of a command-line flag."""
    try:
        return check(int(text), "the seed")
    except ValueError:
        raise argparse.ArgumentTypeError(f"wanted a whole number from 0 to {LARGEST}, got {text!r}") from None
