"""Imports point down, between folders and between files, and what a user need not install is imported nowhere else."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "marigold_jax"

PROGRAMS = {"train", "predict", "evaluate", "ablate", "prepare", "convert", "aot"}
ARITHMETIC = {"diffusion", "ensemble"}
MODEL = ARITHMETIC | {"models", "weights", "runtime"}
MAY_IMPORT = {  # folder, or file at the top -> those that it may import from, besides itself
    "runtime": set(),
    "hardware": set(),
    "ensemble": {"diffusion"},
    "diffusion": {"runtime"},
    "models": {"diffusion", "runtime"},
    "data": {"runtime"},
    "rooms": {"data", "runtime"},
    "weights": {"models", "diffusion", "runtime"},
    "runs": {"weights", "models", "diffusion", "runtime"},
    "inference": MODEL | {"runs", "data", "hardware"},
    "evaluation": ARITHMETIC | {"inference", "data", "runtime"},
    "training": MODEL | {"runs", "data", "hardware", "evaluation"},
    **dict.fromkeys(PROGRAMS, MODEL | {"runs", "data", "hardware", "evaluation", "inference", "training"}),
    "__init__": {"inference"},
    "__main__": {"runtime"},  # it runs the programs by name
}
MAY_IMPORT["prepare"] = {"data", "rooms", "runtime"}
ALONE = {  # the only file of its folder that may import from there
    "training/validation.py": {"inference"},  # it judges what trains as users will run it
}
FORBIDDEN = {  # library -> the only places that may import it
    "torch": {"weights/torch_files.py"},
    "diffusers": set(),
    "transformers": set(),
    "tensorflow": set(),
    "ml_collections": {"train.py", "aot.py", "training/configuration.py", "training/recipes.py"},
    "scipy": {"data/resample.py"},
}
NO_JAX = ("data", "rooms")  # worker processes must start fast


def modules():
    return sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imports(path):
    """What a file imports, wherever in it the import stands, down to the names that are taken from modules."""
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def folder_of(path):
    return path.parts[0].removesuffix(".py")


def test_folders_import_from_those_below():
    wrong = []
    for path in modules():
        mine = folder_of(path)
        for name in imports(path):
            top, _, rest = name.partition(".")
            if top != "marigold_jax" or rest in ("Marigold", "__version__"):
                continue
            theirs = rest.split(".")[0]
            allowed = {mine} | MAY_IMPORT[mine] | ALONE.get(str(path), set())
            if theirs not in allowed:
                wrong.append(f"{path} imports {name}")
    assert not wrong


def test_libraries_stay_where_they_belong():
    wrong = []
    for path in modules():
        for name in imports(path):
            top = name.partition(".")[0]
            if top in FORBIDDEN and str(path) not in FORBIDDEN[top]:
                wrong.append(f"{path} imports {name}")
            if top in ("jax", "flax", "optax") and folder_of(path) in NO_JAX:
                wrong.append(f"{path} imports {name}: its workers must start fast")
    assert not wrong


def test_no_file_imports_itself_through_others():
    files = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in modules()}
    below = {}
    for path in files.values():
        names = {name.removeprefix("marigold_jax.") for name in imports(path)}
        # `a.b.c` is the file a/b/c.py, or something in a/b.py.
        found = {files.get(name) or files.get(name.rpartition(".")[0]) for name in names}
        below[path] = found - {path, None}
    del below[Path("__init__.py")]  # which imports the pipeline when it is asked for it
    while free := [path for path, needs in below.items() if not needs & below.keys()]:
        below = {path: needs for path, needs in below.items() if path not in free}
    assert not below, f"a circle is among {sorted(map(str, below))}"


def test_no_folder_for_what_fits_nowhere():
    names = {part.removesuffix(".py") for path in modules() for part in path.parts}
    assert not names & {"utils", "util", "helpers", "common", "base", "misc"}
