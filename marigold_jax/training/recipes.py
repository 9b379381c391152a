"""Recipes: the Python files in `configs/` that define configurations. This module lists, finds and executes them.

Each file has a function `get_config`, which returns a dictionary of sections, each a dictionary of keys. `base.py` has
every key with its default; a recipe states only what differs.
"""

import ast
import importlib.util
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

PACKAGE = Path(__file__).parents[1]
FOLDERS = (PACKAGE / "configs", PACKAGE.parent / "configs")  # of an installed wheel; of a checkout
BASE = "base.py"
NO_CONFIGURATION = "wanted a Python file with a function get_config, which returns the configuration"


def folder() -> Path:
    """The folder that holds `base.py` and the recipes. Raises ValueError if there is none."""
    for path in FOLDERS:
        if (path / BASE).is_file():
            return path
    raise ValueError(f"wanted {BASE} and the recipes in {' or '.join(map(str, FOLDERS))}; reinstall marigold_jax")


def names() -> list[str]:
    """The recipes that --config takes by name."""
    return sorted(path.stem for path in folder().glob("*.py") if path.name != BASE)


def summaries() -> dict[str, str]:
    """The first line of each recipe's docstring, by the recipe's name; no recipe is executed."""
    texts = {name: ast.get_docstring(ast.parse((folder() / f"{name}.py").read_text())) for name in names()}
    return {name: (text or "").partition("\n")[0] for name, text in texts.items()}


def find(name: str) -> Path:
    """The file that --config means: the path of a Python file, or a recipe by name, with or without `.py`.

    Raises ValueError, which lists the recipes, if there is no such file.
    """
    path = Path(name)
    if path.suffix == ".py" and path.is_file():
        return path
    if path.name == name and path.stem in names() and path.suffix in ("", ".py"):
        return folder() / f"{path.stem}.py"
    if path.is_file():
        raise ValueError(f"--config {name}: {NO_CONFIGURATION}")
    raise ValueError(f"--config {name}: no such file or recipe; wanted a Python file, or one of {', '.join(names())}")


def read(file: Path, *arguments: Any) -> dict[str, Any]:
    """Executes a configuration file, and returns what its `get_config(*arguments)` returns.

    Raises ValueError for any error in the file: one line, with the file's name and the line number.
    """
    try:
        spec = importlib.util.spec_from_file_location("configuration", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise ValueError(f"--config {file}: {NO_CONFIGURATION}")
        given = _plain(module.get_config(*arguments))
    except Exception as error:  # a configuration is a program, and may fail in any way
        raise ValueError(_in_one_line(error, file)) from error
    if not isinstance(given, Mapping):
        found = "nothing" if given is None else f"{type(given).__name__} {given!r:.60}"
        raise ValueError(f"--config {file}: get_config returned {found}, wanted a dictionary of sections")
    return {name: _plain(section) for name, section in given.items()}


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, ConfigDict) else value


def _in_one_line(error: Exception, file: Path) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file.absolute()]
    if not frames:  # nothing was executed: this module's own error, or the file cannot be read
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{file}, line {frames[-1].lineno}: {type(error).__name__}: {lines[-1] if lines else ''}"
