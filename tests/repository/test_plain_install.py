"""A plain install predicts; the other programs say in one line which extra they need."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

from marigold_jax import prepare

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "launch" / "demo" / "photographs" / "chelsea.jpg"
# What the extras bring and Flax does not need. Flax imports absl and Optax itself.
EXTRAS = (
    "tensorflow_datasets grain array_record orbax tensorboardX ml_collections importlib_resources "
    "h5py OpenEXR trimesh embreex pillow_heif torch diffusers transformers beartype"
).split()
# Runs a module as `python -m` does, in a process where the packages in the first argument cannot be imported.
HIDING = """
import runpy, sys
from importlib.machinery import PathFinder
hidden, module, *sys.argv[1:] = sys.argv[1:]
find = PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in hidden.split() else find(name, path, target)
PathFinder.find_spec = find_spec
for name in [name for name in sys.modules if name.partition(".")[0] in hidden.split()]:
    del sys.modules[name]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
IMPORTED = """
import sys
from marigold_jax import Marigold
import marigold_jax.ensemble, marigold_jax.predict
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def python(*arguments, cwd=ROOT):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def without(hidden, module, *arguments, cwd=ROOT):
    return python("-c", HIDING, " ".join(hidden), f"marigold_jax.{module}", *map(str, arguments), cwd=cwd)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "photo.png"
    Image.open(PICTURE).resize((96, 64)).save(path)
    return path


@pytest.mark.slow
def test_prediction_needs_no_extra(picture, tmp_path):
    flags = ("--processing_res", 64, "--denoise_steps", 1, "--ensemble_size", 2, "--uncertainty")
    done = without(EXTRAS, "predict", "--input", picture, "--output_dir", tmp_path / "out", *flags)
    assert done.returncode == 0, done.stderr
    depth = np.load(tmp_path / "out" / "depth_npy" / "photo_depth.npy")
    assert depth.shape == (64, 96) and np.isfinite(depth).all()


@pytest.mark.slow
def test_importing_prediction_imports_no_extra():
    done = python("-c", IMPORTED)
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    assert {"jax", "flax"} <= imported and not imported & set(EXTRAS)


@pytest.mark.parametrize("module", ["predict", "evaluate", "convert", "ablate"])
def test_a_plain_install_explains_its_programs(module):
    done = without([*EXTRAS, "jax", "flax", "absl", "optax"], module, "--help")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: python -m marigold_jax.{module} "), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "module", "arguments"),
    [
        ("train", "train", ["--config", ROOT / "configs" / "quickstart.py", "--workdir", "run"]),
        ("train", "evaluate", ["--checkpoint=x", "--dataset=mine", "--data_dir", "data", "--output_dir", "scores"]),
        ("prepare", "prepare", ["folder", "--raw_dir", "raw", "--data_dir", "data", "--unit", "mm"]),
    ],
)
def test_a_missing_extra_is_one_line(extra, module, arguments, tmp_path):
    for kind, values in {"rgb": np.full((8, 9, 3), 99, np.uint8), "depth": np.full((8, 9), 2000, np.uint16)}.items():
        (tmp_path / "raw" / kind).mkdir(parents=True)
        Image.fromarray(values).save(tmp_path / "raw" / kind / "a.png")
    given = ["--raw_dir", tmp_path / "raw", "--data_dir", tmp_path / "data", "--unit", "mm", "--split", "test"]
    assert prepare.main(["folder", *map(str, given), "--name", "mine", "--workers", "1"]) == 0
    done = without(EXTRAS, module, *arguments, cwd=tmp_path)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and f"needs what pip install 'marigold_jax[{extra}]' brings (No module named '" in line


# -------------------------------------------------------------------------------------------- what the project declares


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_requirements_list_what_the_project_and_its_extras_bring():
    listed = (line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    extras = {name: lines for name, lines in project()["optional-dependencies"].items()}
    accelerators = {"cuda", "cuda12", "tpu"}
    wanted = {*project()["dependencies"]}.union(*(lines for name, lines in extras.items() if name not in accelerators))
    assert {line for line in listed if line} == {line for line in wanted if Requirement(line).name != "marigold_jax"}


def test_every_folder_of_code_is_a_declared_package():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {file.parent.relative_to(ROOT) for file in (ROOT / "marigold_jax").rglob("*.py")}
    found = {".".join(folder.parts) for folder in folders} | {"marigold_jax.configs"}
    assert found == set(tool["packages"])


def test_every_package_that_is_imported_is_declared():
    declared = {Requirement(line).name.lower().replace("-", "_") for line in project()["dependencies"]}
    for lines in project()["optional-dependencies"].values():
        declared |= {Requirement(line).name.lower().replace("-", "_") for line in lines}
    known = {"PIL": "pillow", "absl": "absl_py", "orbax": "orbax_checkpoint", "google": "jax", "libtpu": "jax"}
    files = (ROOT / "marigold_jax").rglob("*.py")
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    tops = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"marigold_jax"}
    assert not {top for top in tops if known.get(top, top).lower() not in declared}
