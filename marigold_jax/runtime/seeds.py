"""Seeds: whole numbers of 32 bits. A larger one would be cut down to those, and two seeds be one in silence."""

import argparse
import operator
from typing import Any

LARGEST = 2**32 - 1


def check(seed: Any, name: str = "seed") -> int:
    """Returns the seed. Raises ValueError, in one line that begins with `name`, for what is no such number."""
    try:
        value = operator.index(seed)
    except TypeError:
        value = -1
    if isinstance(seed, bool) or not 0 <= value <= LARGEST:
        raise ValueError(f"{name}: wanted a whole number from 0 to {LARGEST}, got {seed!r}")
    return value


def flag(text: str) -> int:
    """The `type` of a parser's flag."""
    try:
        return check(int(text), "the seed")
    except ValueError:
        raise argparse.ArgumentTypeError(f"wanted a whole number from 0 to {LARGEST}, got {text!r}") from None
