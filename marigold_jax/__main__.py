"""marigold-jax PROGRAM ...: every program of the package under one command.

marigold-jax predict photo.jpg            the same as python -m marigold_jax.predict photo.jpg
"""

import runpy
import sys
from pathlib import Path

from marigold_jax import __version__
from marigold_jax.runtime import terminal

PROGRAMS = {
    "predict": "depth or surface normals for photographs",
    "train": "train or fine-tune a model from a configuration",
    "evaluate": "score a model, or saved predictions, on a dataset",
    "prepare": "turn RGB-D data into a dataset that train and evaluate read",
    "convert": "write a checkpoint in diffusers' layout or in the native one",
    "ablate": "show how scores depend on steps, ensemble size, noise or datasets",
    "aot": "compile for a TPU slice without a TPU, to see what a configuration needs",
}


def explain(command: str) -> None:
    lines = (
        f"usage: {command} PROGRAM ...",
        "",
        "Marigold in JAX: depth and surface normals from one photograph.",
        "",
        "programs:",
        *(f"  {name:10}{what}" for name, what in PROGRAMS.items()),
        "",
        f"{command} PROGRAM --help explains a program; {command} --version prints the version.",
    )
    for line in lines:
        terminal.say(line)


def main() -> int:
    """Runs the program that the first argument names; imports no other."""
    command = "marigold-jax" if Path(sys.argv[0]).stem == "marigold-jax" else "python -m marigold_jax"
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        explain(command)
        return 0
    if name == "--version":
        terminal.say(f"marigold_jax {__version__}")
        return 0
    if name not in PROGRAMS:
        terminal.say(f"{command}: wanted one of {', '.join(PROGRAMS)}; got {name}; see --help", sys.stderr)
        return 2
    terminal.command = f"{command} "
    sys.argv[1:] = rest
    # As `python -m` runs it, `__main__` and all: the processes that a program starts look there for what to import.
    runpy.run_module(f"marigold_jax.{name}", run_name="__main__", alter_sys=True)
    return 0


def entry() -> None:
    sys.exit(terminal.run(main))


if __name__ == "__main__":
    entry()
