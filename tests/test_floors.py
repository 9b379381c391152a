"""Imports point down only, and what a user must not need is imported nowhere."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "marigold_jax"

PROGRAMS = {"train", "predict", "evaluate", "ablate", "prepare", "convert", "aot"}
ASSEMBLY = {
    *("pipeline", "denoising", "modality", "description", "weights", "compilation", "latents", "lora", "runs"),
    *("objectives", "recipe", "training", "progress", "validation", "scoring", "usage", "distributed"),
    *("origin", "settings"),
}
FLOORS = {  # what is above imports what is below; equal numbers may import each other where SIDEWAYS says so
    **dict.fromkeys(PROGRAMS, 3),
    **dict.fromkeys(ASSEMBLY, 2),
    "models": 1,
    "data": 1,
}  # everything else is arithmetic, floor 0
TOWERS = {"models", "data"}  # on one floor, and strangers to each other
FORBIDDEN = {  # library -> the only places that may import it
    "torch": {"weights/tensors.py"},
    "diffusers": set(),
    "transformers": set(),
    "tensorflow": set(),
    "ml_collections": {"train.py", "aot.py"},
    "scipy": {"data/resample.py"},
}
NO_JAX = "data"  # its worker processes must start fast


def modules():
    return sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "marigold_jax")


def room(path):
    return path.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=str)
def test_imports_point_down(path):
    mine = room(path)
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top in FORBIDDEN:
            assert str(path) in FORBIDDEN[top], f"{path} imports {name}"
        if top in ("jax", "flax", "optax"):
            assert mine != NO_JAX, f"{path} imports {name}: the data tower knows no jax"
        if top != "marigold_jax" or not rest or mine == "__init__":
            continue
        theirs = rest.split(".")[0]
        if theirs in ("Marigold", "__version__"):
            theirs = "pipeline"
        if theirs != mine:
            assert FLOORS.get(theirs, 0) <= FLOORS.get(mine, 0), f"{path} imports {name}, which is above it"
            assert not {theirs, mine} <= TOWERS, f"{path} imports {name}: the towers do not know each other"
            assert FLOORS.get(mine, 0) < 3 or FLOORS.get(theirs, 0) < 3, f"{path} imports the program {name}"


def test_no_circles():
    """No file imports itself, through however many others, wherever in them the import stands."""
    files = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in modules()}
    names = {path: {name.removeprefix("marigold_jax.") for name in imports(path)} for path in files.values()}
    below = {path: {files[name] for name in found if name in files} - {path} for path, found in names.items()}
    del below[Path("__init__.py")]  # which imports the pipeline when it is asked for it
    while free := [path for path, needs in below.items() if not needs & below.keys()]:
        below = {path: needs for path, needs in below.items() if path not in free}
    assert not below, f"a circle is among {sorted(map(str, below))}"


def test_no_attic():
    names = {path.stem for path in modules()}
    assert not names & {"utils", "util", "helpers", "common", "base", "misc"}
