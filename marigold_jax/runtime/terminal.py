"""A program's flags and standard streams. A stream that is closed or that nobody reads never stops the program."""

import argparse
import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from marigold_jax import __version__
from marigold_jax.runtime.files import printable

MODULES = "python -m marigold_jax."
command = MODULES  # how programs are started; `marigold_jax.__main__` sets it


class Parser(argparse.ArgumentParser):
    """A parser with --version, which reports an error in one line, without the control characters of its flags."""

    def __init__(self, prog: str | None = None, **options: Any):
        if prog and prog.startswith(MODULES):
            prog = command + prog.removeprefix(MODULES)
        super().__init__(prog, **options)
        self.add_argument("--version", action="version", version=f"marigold_jax {__version__}")

    def error(self, message: str) -> NoReturn:
        say(f"{self.prog}: {message}; see --help", sys.stderr)
        sys.exit(2)


def fail(message: str) -> NoReturn:
    """Ends the program with status 1 and one line about the reason."""
    say(f"error: {message}", sys.stderr)
    sys.exit(1)


def say(line: object, stream: Any = None) -> None:
    """Prints one line, by default to standard output. A reader that has closed the stream is no error."""
    with contextlib.suppress(OSError):
        print(printable(line), file=stream, flush=True)


def run(main: Callable[[], int]) -> int | str | None:
    """Runs a program with streams that can be written to, and returns its exit status.

    With `| head` or `>&-`, the program still does all its work, and prints no error about the stream.
    """
    _open_streams()
    quieten()
    try:
        status: int | str | None = main()
    except SystemExit as stopped:  # wrong flags, or --help
        status = stopped.code
    except BrokenPipeError:  # only the beginning of a table or a help text was read
        status = 0
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # Python would print this error when it exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return status


def quieten() -> None:
    """Hides Pillow's warnings about unusual files: each takes two lines, and what matters is raised as an error."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _open_streams() -> None:
    """Opens the null device for closed streams: otherwise the next file to be opened would get the stream's output."""
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(free)
    for name, number in {"stdin": 0, "stdout": 1, "stderr": 2}.items():
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):  # a notebook's stream is of another type
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is: not every terminal has every character
