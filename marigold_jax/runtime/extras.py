"""Optional dependencies: an import error of a missing package becomes one line that names the extra to install.

Prediction needs no extra. A package from an extra is imported inside the function that uses it, so that --help of every
program works without extras:

    with extras.needed("train"):
        import grain
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from marigold_jax.runtime import terminal


class MissingExtra(ModuleNotFoundError):
    """A package from an extra is not installed."""


@contextmanager
def needed(extra: str, program: str = "") -> Iterator[None]:
    """Turns a failed import inside the block into one line that names the extra.

    Args:
        extra: the extra in pyproject.toml that contains the imported packages.
        program: `__name__` of a program whose imports at the top need the extra. If the program is being run, it
            prints the line and ends with status 1; otherwise Python would print a traceback.

    Raises:
        MissingExtra: a package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "marigold_jax" and not isinstance(error, MissingExtra):
            raise  # a bug in this package
        missing = error if isinstance(error, MissingExtra) else _missing(extra, error)
        if program == "__main__":
            terminal.say(f"error: {missing}", sys.stderr)
            sys.exit(1)
        raise missing from error


def _missing(extra: str, error: ModuleNotFoundError) -> MissingExtra:
    return MissingExtra(f"needs what pip install 'marigold_jax[{extra}]' brings ({error})", name=error.name)
