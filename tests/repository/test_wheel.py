"""The wheel and the sdist hold what they should, and the wheel predicts outside the repository."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marigold_jax import __version__

ROOT = Path(__file__).parents[2]
NAME = f"marigold_jax-{__version__}"
pytestmark = pytest.mark.slow


def succeeds(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the wheel and the sdist, built from a copy: building leaves files behind."""
    folder = tmp_path_factory.mktemp("built")
    source, unwanted = folder / "source", shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build")
    shutil.copytree(ROOT, source, ignore=unwanted)
    hooks = "from setuptools import build_meta as hooks; hooks.build_sdist('..'); hooks.build_wheel('..')"
    succeeds(sys.executable, "-c", hooks, cwd=source)
    return folder


def wanted(prefix, configs):
    """Files of the checkout, each at its place below `prefix`."""
    code = [path for path in (ROOT / "marigold_jax").rglob("*.py")]
    shipped = [path for path in (ROOT / "marigold_jax" / "checkpoints").rglob("*") if path.is_file()]
    files = {f"{prefix}{path.relative_to(ROOT).as_posix()}" for path in (*code, *shipped)}
    recipes = {f"{prefix}{configs}/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    return files | recipes | {f"{prefix}marigold_jax/py.typed"}


def test_the_wheel_holds_code_recipes_and_checkpoints(built):
    names = set(zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl").namelist())
    assert names - {name for name in names if ".dist-info/" in name} == wanted("", "marigold_jax/configs")
    assert f"{NAME}.dist-info/licenses/LICENSE" in names


def test_the_sdist_holds_what_the_wheel_is_made_of(built):
    with tarfile.open(built / f"{NAME}.tar.gz") as sdist:
        names = set(sdist.getnames())
    tops = {name.split("/")[1] for name in names if "/" in name}
    assert wanted(f"{NAME}/", "configs") <= names and {"pyproject.toml", "README.md", "LICENSE"} <= tops
    assert not tops & {"tests", "docs", "benchmarks", "launch"}


def test_the_wheel_predicts_outside_the_repository(built, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python, command = tmp_path / "venv" / "bin" / "python", tmp_path / "venv" / "bin" / "marigold-jax"
    wheel = built / f"{NAME}-py3-none-any.whl"
    succeeds(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel)
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    # The packages of this environment, behind the new one's; an editable install of ours is not seen that way.
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"])
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "XLA_FLAGS")}
    here = {"cwd": tmp_path, "env": environment | {"JAX_PLATFORMS": "cpu"}}

    where = "import marigold_jax; print(marigold_jax.__file__)"
    assert Path(succeeds(python, "-c", where, **here).strip()).is_relative_to(site)
    assert succeeds(command, "--version", **here) == f"marigold_jax {__version__}\n"
    assert succeeds(command, "predict", "--help", **here).startswith("usage: marigold-jax predict ")
    with Image.open(ROOT / "launch" / "demo" / "photographs" / "coffee.jpg") as photograph:
        photograph.resize((96, 64)).save(tmp_path / "photo.png")
    flags = ("--processing_res", 64, "--denoise_steps", 1)
    succeeds(command, "predict", "--input", "photo.png", "--output_dir", "out", *flags, **here)
    depth = np.load(tmp_path / "out" / "depth_npy" / "photo_depth.npy")
    assert depth.shape == (64, 96) and np.isfinite(depth).all()
