"""What a plain `pip install marigold_jax` leaves out: a missing package becomes one line that names the extra.

Prediction needs no extra. A package that an extra brings is imported inside the function that uses it, so that every
program explains itself with --help on a plain install:

    with extras.needed("train"):
        import grain
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from marigold_jax.runtime import terminal


class MissingExtra(ModuleNotFoundError):
    """A package that an extra brings is not installed."""


@contextmanager
def needed(extra: str, program: str = "") -> Iterator[None]:
    """Turns a failed import inside the block into one line that names the extra.

    Args:
        extra: the extra in pyproject.toml that brings what the block imports.
        program: `__name__`, in a program that needs the extra for its own imports. Where the file is being run, the
            process prints the line and ends with status 1; Python would print a traceback.

    Raises:
        MissingExtra: a package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "marigold_jax" and not isinstance(error, MissingExtra):
            raise  # a mistake of ours
        missing = error if isinstance(error, MissingExtra) else _missing(extra, error)
        if program == "__main__":
            terminal.say(f"error: {missing}", sys.stderr)
            sys.exit(1)
        raise missing from error


def _missing(extra: str, error: ModuleNotFoundError) -> MissingExtra:
    return MissingExtra(f"needs what pip install 'marigold_jax[{extra}]' brings ({error})", name=error.name)
