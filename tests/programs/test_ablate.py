"""Curves over one choice: what is predicted for each point, what is trained, and what is written."""

import csv
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from marigold_jax import Marigold, ablate, prepare
from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.data.primitives import Primitives
from marigold_jax.ensemble import ensemble_depth
from marigold_jax.evaluation.depth_alignment import align
from marigold_jax.evaluation.depth_metrics import depth_scores
from marigold_jax.runs import run_folder
from marigold_jax.weights import model_folder
from marigold_jax.weights.scratch import scratch

COUNT, SIZE = 3, (32, 48)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablate")
    for kind in ("rgb", "depth"):
        (folder / "raw" / kind).mkdir(parents=True)
    for index, example in enumerate(map(Primitives(COUNT, SIZE, seed=0).__getitem__, range(COUNT))):
        Image.fromarray(example["rgb"]).save(folder / "raw" / "rgb" / f"{index}.png")
        Image.fromarray(np.uint16(1000 * example["depth"][..., 0])).save(folder / "raw" / "depth" / f"{index}.png")
    flags = ["--data_dir", str(folder), "--name", "mine", "--split", "test", "--unit", "mm", "--workers", "1"]
    assert prepare.main(["folder", "--raw_dir", str(folder / "raw"), *flags]) == 0
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Untrained, but with an output that is not zero."""
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    made = scratch((16, 16), 4)
    random = np.random.default_rng(0)
    kernel = made.unet.params["conv_out.kernel"]
    made.unet.params["conv_out.kernel"] = random.normal(size=kernel.shape).astype(np.float32) / 10
    model_folder.save(made, folder)
    return folder


def run(data_dir, out, which, *flags):
    where = ["--dataset", "mine", "--data_dir", str(data_dir), "--output_dir", str(out)]
    return ablate.main(["--which", which, *where, *map(str, flags)])


def read(out, which):
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        assert (out / f"{which}.{kind}").read_bytes().startswith(start)
    return list(csv.DictReader(open(out / f"{which}.csv")))


@pytest.mark.slow
def test_ensembles_are_those_of_the_first_seeds(data_dir, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablate, "SIZES", (1, 3))
    assert run(data_dir, tmp_path, "ensemble", "--checkpoint", model, "--processing_res", 0) == 0
    rows = read(tmp_path, "ensemble")
    assert [row["x"] for row in rows] == ["1", "3"] and {row["images"] for row in rows} == {str(COUNT)}
    pipe, split, wanted = Marigold.from_pretrained(model), PreparedSplit(str(data_dir / "mine" / "test")), []
    for example in map(split.__getitem__, range(COUNT)):
        maps = np.stack([pipe(example["rgb"], processing_resolution=0, seed=k).prediction[0, ..., 0] for k in range(3)])
        merged = np.asarray(ensemble_depth(jnp.asarray(maps))[0])[..., None]
        fitted = align(merged, example["depth"], example["mask"])
        wanted.append(depth_scores(fitted, example["depth"], example["mask"])["abs_rel"])
    assert float(rows[1]["abs_rel"]) == pytest.approx(np.mean(wanted), rel=1e-6)
    assert float(rows[1]["abs_rel_error"]) == pytest.approx(np.std(wanted) / COUNT**0.5, rel=1e-6)
    assert "abs_rel_error" in capsys.readouterr().out


@pytest.mark.slow
def test_steps_of_either_spacing(data_dir, model, tmp_path, monkeypatch):
    monkeypatch.setattr(ablate, "STEPS", (1, 2))
    assert run(data_dir, tmp_path, "steps", "--checkpoint", model, "--processing_res", 0, "--limit", 2) == 0
    rows = read(tmp_path, "steps")
    assert [(row["series"], row["x"]) for row in rows] == [(s, x) for s in ("trailing", "leading") for x in "12"]
    assert len({row["abs_rel"] for row in rows}) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "flags", "overrides"),
    [
        (
            "noise",
            [],
            [[f"--config.objective.noise={n}"] for n in ("gaussian", "multi_resolution", "multi_resolution")],
        ),
        (
            "datasets",
            ["--mix", "a/train", "b/train"],
            [
                ["--config.data.train=(('b/train', 1.0),)"],
                ["--config.data.train=(('a/train', 0.5), ('b/train', 0.5))"],
                ["--config.data.train=(('a/train', 1.0),)"],
            ],
        ),
    ],
)
def test_trainings_differ_in_one_thing(data_dir, model, tmp_path, monkeypatch, which, flags, overrides):
    commands = []

    def train(command):
        commands.append(command)
        workdir = command[command.index("--workdir") + 1]
        run_folder.claim(tmp_path / which / workdir.rpartition("/")[2], {})
        model_folder.save(model_folder.load(model), tmp_path / which / workdir.rpartition("/")[2] / "export")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(ablate, "SHARES", (0.0, 0.5, 1.0))
    monkeypatch.setattr(ablate.subprocess, "run", train)
    monkeypatch.setattr(Marigold, "from_pretrained", lambda workdir: Marigold(model_folder.load(workdir / "export")))
    flags = ["--config", "configs/quickstart.py", "--config.run.steps=1", "--processing_res", 0, *flags]
    assert run(data_dir, tmp_path, which, *flags) == 0
    assert len(read(tmp_path, which)) == len(commands) == len(overrides)
    for command, wanted in zip(commands, overrides, strict=True):
        assert "--config.run.steps=1" in command and set(wanted) <= set(command)
    assert len({command[command.index("--workdir") + 1] for command in commands}) == len(commands)


def test_a_training_that_fails_is_said(data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ablate.subprocess, "run", lambda command: SimpleNamespace(returncode=1))
    assert run(data_dir, tmp_path, "noise", "--config", "configs/quickstart.py") == 1
    assert "the training in" in capsys.readouterr().err and not (tmp_path / "noise.csv").exists()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["noise"], "--which noise needs --config"),
        (["datasets", "--config", "x"], "--which datasets needs --mix"),
        (["steps", "--config.run.steps=1"], "unknown flag --config.run.steps=1"),
        (["noise", "--config", "x", "--stesp", "1"], "unknown flag --stesp"),
        (["ensemble", "--limit", "0"], "--limit must be at least 1"),
    ],
)
def test_wrong_usage(data_dir, tmp_path, capsys, flags, complaint):
    with pytest.raises(SystemExit) as caught:
        run(data_dir, tmp_path, *flags)
    assert caught.value.code == 2 and complaint in capsys.readouterr().err
