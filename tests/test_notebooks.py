"""The notebooks run from top to bottom, show pictures, and are committed as they should be read: without output."""

import base64
import io
import os
import re
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "launch").glob("*.ipynb"))
DEMO = ROOT / "launch" / "demo"
PICTURES = [str(DEMO / "scenes" / "street.jpg"), str(DEMO / "scenes" / "office.jpg")]

# Of each notebook: what is set in place of its parameters, how many pictures it shows, and a file that it leaves.
SMALL = {
    "evaluate": ({"SCENES": 2, "VIEWS": 1, "SIZE": (48, 64), "RESOLUTION": 64}, 3, "scores/*/rooms/metrics.json"),
    "finetune": (
        {"MADE": {"train": 8, "val": 2}, "STEPS": 2, "BATCH_SIZE": 2, "SIZE": (64, 64)},
        4,
        "runs/first/export/model_index.json",
    ),
    "predict": ({"PICTURES": PICTURES, "ENSEMBLE_SIZE": 3, "RESOLUTION": 64}, 3, "metres/depth_metres_npy/*.npy"),
}


def names(path):
    return path.stem


def pictures(notebook):
    """What is shown inline."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if encoded := output.get("data", {}).get("image/png"):
                yield np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    one_device = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"]).strip()
    monkeypatch.setenv("XLA_FLAGS", one_device)
    notebook = nbformat.read(path, as_version=4)
    settings, count, left = SMALL[path.stem]
    where = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    lines = [f"{name} = {value!r}" for name, value in (settings | {"OUTPUT": str(tmp_path / "output")}).items()]
    known = {line.partition(" =")[0] for line in notebook.cells[where].source.splitlines()}
    assert settings.keys() <= {name for names in known for name in names.split(", ")}
    notebook.cells.insert(where + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
    shown = list(pictures(notebook))
    assert len(shown) == count and all(picture.std() > 5 for picture in shown)
    assert list((tmp_path / "output").glob(left))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_a_notebook_is_committed_without_output(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


def test_all_notebooks_begin_alike():
    """They are read one at a time, so each has its own copy of what installs and runs; the copies agree."""

    def install(path):
        cell = nbformat.read(path, as_version=4).cells[3].source
        return [line for line in cell.splitlines() if "all(map(importable, [" not in line]

    first, *others = map(install, NOTEBOOKS)
    assert all(other == first for other in others)


def test_a_program_that_fails_stops_the_notebook(tmp_path):
    notebook = nbformat.read(ROOT / "launch" / "predict.ipynb", as_version=4)
    notebook.cells = [*notebook.cells[:4], nbformat.v4.new_code_cell("run('predict', '--nonsense')")]
    resources = {"metadata": {"path": str(tmp_path)}}
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="predict failed with exit status 2"):
        nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources=resources).execute()
