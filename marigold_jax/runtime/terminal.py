"""What a program says never stops what it does: streams that are closed, narrow, or read by nobody any more."""

import argparse
import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from marigold_jax.runtime.files import printable

MODULES = "python -m marigold_jax."
command = MODULES  # how programs are started; `marigold_jax.__main__` sets it


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the flags, without the control characters that are in them."""

    def __init__(self, prog: str | None = None, **options: Any):
        if prog and prog.startswith(MODULES):
            prog = command + prog.removeprefix(MODULES)
        super().__init__(prog, **options)

    def error(self, message: str) -> NoReturn:
        say(f"{self.prog}: {message}; --help tells more", sys.stderr)
        sys.exit(2)


def say(line: object, stream: Any = None) -> None:
    """Prints one line, to standard output where no stream is given. Whoever reads it may have gone away."""
    with contextlib.suppress(OSError):
        print(printable(line), file=stream, flush=True)


def run(main: Callable[[], int]) -> int | str | None:
    """Runs a program on streams that can be written to, and returns its exit status.

    `| head` and `>&-` change nothing: the program does its work, and ends without a word about it.
    """
    _open_streams()
    quieten()
    try:
        status: int | str | None = main()
    except SystemExit as stopped:  # wrong flags, or --help
        status = stopped.code
    except BrokenPipeError:  # a table or a help text of which only the beginning is wanted
        status = 0
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # Python would tell of it when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return status


def quieten() -> None:
    """Keeps Pillow's remarks on odd files to itself, each two lines with its own source: what matters is an error."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _open_streams() -> None:
    """A stream that is closed gets the null device: the next file to be opened would take its number, and its text."""
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(free)
    for name, number in {"stdin": 0, "stdout": 1, "stderr": 2}.items():
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):  # a notebook's stream is another
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is: not every terminal has every letter
