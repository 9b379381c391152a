"""The notebooks: sound files that use flags and keys which exist, that install what fits, and that run to the end."""

import ast
import base64
import importlib
import importlib.machinery
import importlib.util
import io
import json
import math
import os
import re
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import oracle
import pytest
from nbclient import NotebookClient
from PIL import Image

from marigold_jax import evaluate, predict, prepare
from marigold_jax.training import configuration

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
NAMES = ("predict", "finetune", "evaluate")
HELP = {
    "predict": (predict.main, ["--help"]),
    "evaluate": (evaluate.main, ["--help"]),
    "folder": (prepare.main, ["folder", "--help"]),
    "rooms": (prepare.main, ["rooms", "--help"]),
}
PHOTOGRAPHS = [str(LAUNCH / "demo" / "photographs" / name) for name in ("chelsea.jpg", "coffee.jpg")]


def read(name):
    return nbformat.read(LAUNCH / f"{name}.ipynb", nbformat.NO_CONVERT)


def code(name):
    return {cell.id: cell.source for cell in read(name).cells if cell.cell_type == "code"}


# --------------------------------------------------------------------------------------------------------- as they are


@pytest.mark.parametrize("name", NAMES)
def test_sound_and_without_outputs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    assert [cell.id for cell in cells if "parameters" in cell.metadata.get("tags", [])] == ["parameters"]
    assert [cell.id for cell in cells][:2] == ["parameters", "setup"]
    assert set(NAMES) == {path.stem for path in LAUNCH.glob("*.ipynb")}


def test_they_install_alike():
    texts = {re.sub(r"importable, \[.*\]", "", code(name)["setup"]) for name in NAMES}
    assert len(texts) == 1


@pytest.mark.parametrize("name", NAMES)
def test_flags_exist(name, capsys):
    cells = code(name)
    text = "\n".join(source for key, source in cells.items() if key != "setup")
    constants = {node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)}
    flags = {value for value in constants if isinstance(value, str) and re.fullmatch(r"--\w+", value)}
    known = {"--config", "--workdir"} if "train" in constants else set()
    for program in HELP.keys() & constants:
        main, arguments = HELP[program]
        with pytest.raises(SystemExit):
            main(arguments)
        known |= set(re.findall(r"--\w+", capsys.readouterr().out))
    assert len(flags) > 5 and flags <= known


def test_configuration_keys_exist():
    """Those of both configurations that the notebook names."""
    settings = next(
        node.value
        for node in ast.walk(ast.parse(code("finetune")["train"]))
        if isinstance(node, ast.Assign) and node.targets[0].id == "settings"
    )
    keys = [key.value for key in settings.keys]
    (recipes,) = re.findall(
        r'^CONFIG = "(\w+)"  # for Marigold: "(\w+)"$', code("finetune")["parameters"], re.MULTILINE
    )
    assert len(keys) > 15 and recipes == ("rooms_end_to_end", "hypersim_vkitti")
    for name in recipes:
        config = configuration.load(name)
        for key in keys:
            section = config
            for part in key.split("."):
                section = section[part]


# ---------------------------------------------------------------------------------------------------------- installing


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without the package: returns a function that runs the cell, and gives its names and commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    ordinary = Path.glob

    def run_cell(repository="", driver=None, devices=()):
        commands = []

        def fake(command, **options):
            commands.append(command)
            if "clone" in command:
                (Path(command[-1]) / "launch" / "demo").mkdir(parents=True)
            return subprocess.CompletedProcess(command, 0, stdout=f"{driver}\n")

        def glob(folder, pattern):
            if folder.parts[:2] != ("/", "dev"):
                return ordinary(folder, pattern)
            return [device for device in map(Path, devices) if device.parent == folder and device.match(pattern)]

        with monkeypatch.context() as patched:
            patched.setattr("shutil.which", lambda program: program if driver else None)
            patched.setattr(subprocess, "run", fake)
            patched.setattr(Path, "glob", glob)
            names = {"REPOSITORY": repository, "DTYPE": ""}
            exec(code("predict")["setup"], names)
        return names, commands

    return run_cell


@pytest.mark.parametrize(
    ("there", "extras", "dtype"),
    [
        ({}, "train,prepare", "float32"),
        ({"driver": "580.65.06"}, "train,prepare,cuda", "bfloat16"),
        ({"driver": "550.54.15"}, "train,prepare,cuda12", "bfloat16"),
        ({"driver": "NVIDIA-SMI has failed"}, "train,prepare", "float32"),
        ({"devices": ["/dev/accel0", "/dev/accel1"]}, "train,prepare,tpu", "bfloat16"),
        ({"devices": ["/dev/vfio/0"]}, "train,prepare,tpu", "bfloat16"),
        ({"devices": ["/dev/accel", "/dev/vfio/vfio"]}, "train,prepare", "float32"),  # folders and switches, no chips
    ],
)
def test_what_fits_the_machine_is_installed(machine, tmp_path, there, extras, dtype):
    names, commands = machine("https://example.org/marigold_jax.git", **there)
    clone, install = commands[-2:]
    assert clone[:2] == ["git", "clone"] and clone[-2:] == ["https://example.org/marigold_jax.git", str(names["ROOT"])]
    assert install[1:4] == ["-m", "pip", "install"] and install[-1] == f"{tmp_path}/marigold[{extras}]"
    assert names["DTYPE"] == dtype
    again, commands = machine()  # what was cloned is found, with no address
    assert again["ROOT"] == names["ROOT"] and len(commands) == 1


def test_without_an_address_it_says_what_to_do(machine):
    with pytest.raises(RuntimeError, match=r"^marigold_jax was not found: set REPOSITORY[^\n]*$"):
        machine()


def test_a_checkout_around_the_notebook_is_found(machine, tmp_path, monkeypatch):
    (tmp_path / "launch" / "demo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "launch")
    names, (install,) = machine()
    assert names["ROOT"] == tmp_path and install[-1] == f"{tmp_path}[train,prepare]"


def test_a_folder_of_that_name_is_not_the_package(machine, monkeypatch):
    folder = importlib.machinery.ModuleSpec("marigold_jax", None, is_package=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: folder)
    assert len(machine("somewhere")[1]) == 2


def test_installed_already_it_does_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.which", lambda program: None)
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: pytest.fail("nothing was to be run"))
    names = {"REPOSITORY": "", "DTYPE": "float32"}
    exec(code("evaluate")["setup"], names)
    assert (names["ROOT"], names["DTYPE"]) == (ROOT, "float32")
    # A program that fails stops the notebook, after its own words.
    with pytest.raises(RuntimeError, match="evaluate failed with exit status 2"):
        names["run"]("evaluate", "--dataset", "rooms", "--limit", 0, "--data_dir", "a b", "--output_dir", "c")
    said = capsys.readouterr().out
    assert "--data_dir 'a b'" in said and "--limit must be at least 1; got 0" in said


# ------------------------------------------------------------------------------------------------------- top to bottom


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return tmp_path_factory.mktemp("programs")


@pytest.fixture
def execute(tmp_path, monkeypatch, programs):
    """Runs a notebook with small settings in a folder of its own; gives what it printed, and its pictures."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # one device, as users have
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(programs))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")

    def run(name, **settings):
        before = listing()
        notebook = read(name)
        place = next(i for i, cell in enumerate(notebook.cells) if cell.id == "parameters")
        notebook.cells.insert(
            place + 1, nbformat.v4.new_code_cell("\n".join(f"{key} = {value!r}" for key, value in settings.items()))
        )
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        said = "".join(output.text for output in outputs if output.output_type == "stream")
        encoded = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
        pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")) for picture in encoded]
        assert all(picture.std() > 10 for picture in pictures)
        assert listing() == before
        return said, len(pictures)

    return run


def listing():
    return sorted(path for folder in (ROOT, LAUNCH) for path in os.listdir(folder) if not path.startswith("."))


@pytest.mark.slow
def test_predict_from_top_to_bottom(execute, tmp_path):
    said, pictures = execute("predict", PICTURES=PHOTOGRAPHS, ENSEMBLE_SIZE=3, RESOLUTION=96)
    assert pictures == 3 and "2 of 2 pictures written" in said and "1 of 1 pictures written" in said
    output = tmp_path / "output" / "predict"
    for path in reversed(PHOTOGRAPHS):
        with Image.open(path) as image:
            size = image.size[::-1]
        depth = np.load(output / "depth_npy" / f"{Path(path).stem}_depth.npy")
        assert depth.shape == size and 0 <= depth.min() < 0.1 and 0.9 < depth.max() <= 1
    metres = np.load(output / "metres" / "depth_metres_npy" / "street_depth.npy")
    assert metres.shape == (384, 512) and metres.min() >= 0 and 2 < np.median(metres) < 40
    assert len(re.findall(r"column \d+, row \d+: [\d.]+ m, found [\d.]+ m", said)) == 5
    assert f"(1, {', '.join(map(str, size))}, 1) float32" in said  # from Python


@pytest.mark.slow
def test_finetune_from_top_to_bottom(execute, tmp_path):
    tiny = str(oracle.save_pipeline(tmp_path / "tiny"))  # what ships takes a minute to compile
    small = {"STEPS": 2, "BATCH_SIZE": 1, "SIZE": (32, 48), "MADE": {"train": 2, "val": 2}}
    said, pictures = execute("finetune", CHECKPOINT=tiny, **small)
    assert pictures == 4 and "step 2/2" in said
    output = tmp_path / "output" / "finetune"
    losses = [json.loads(line)["loss"] for line in (output / "runs/first/metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2 and np.isfinite(losses).all()
    before, after = (
        json.loads((output / "scores/first" / when / "made" / "metrics.json").read_text())["abs_rel"]
        for when in ("before", "after")
    )
    assert 0 < before < 2 and 0 < after < 2 and before != after
    assert f"before: AbsRel {before:.3f}" in said and f"after: AbsRel {after:.3f}" in said
    description = json.loads((output / "runs/first/export/model_index.json").read_text())
    assert description["default_processing_resolution"] == 48


@pytest.mark.slow
def test_evaluate_from_top_to_bottom(execute, tmp_path):
    said, pictures = execute("evaluate", SCENES=2, VIEWS=1, SIZE=(48, 64), RESOLUTION=48)
    assert pictures == 3
    rows = re.findall(r"^rooms +(constant|mean map|marigold-rooms) +2 +(.*)$", said, re.MULTILINE)
    assert [title for title, _ in rows] == ["constant", "mean map", "marigold-rooms"]
    for _, numbers in rows:
        scores = list(map(float, numbers.split()))
        assert len(scores) == 10 and all(map(math.isfinite, scores)) and 0 < scores[0] < 5
    (worst,) = (tmp_path / "output" / "evaluate" / "scores").glob("*/rooms/worst.png")
    assert len(list((worst.parent / "predictions").rglob("*.npy"))) == 2
