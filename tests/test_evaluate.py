"""Scoring: saved predictions and models, missing and broken ones, and what is left on disk."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from marigold_jax import evaluate, prepare
from marigold_jax.data.primitives import Primitives
from marigold_jax.data.sources import PreparedSplit
from marigold_jax.metrics import METRICS, align, depth_scores
from marigold_jax.weights import checkpoint
from marigold_jax.weights.scratch import scratch

COUNT, SIZE = 5, (32, 48)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """The splits train and test of "mine", in millimetres."""
    folder = tmp_path_factory.mktemp("evaluate")
    for split, seed in (("train", 0), ("test", 1)):
        raw = folder / split
        for kind in ("rgb", "depth"):
            (raw / kind).mkdir(parents=True)
        for index, example in enumerate(map(Primitives(COUNT, SIZE, seed=seed).__getitem__, range(COUNT))):
            Image.fromarray(example["rgb"]).save(raw / "rgb" / f"{index}.png")
            stored = np.uint16(1000 * (example["depth"] * example["mask"])[..., 0])
            Image.fromarray(stored).save(raw / "depth" / f"{index}.png")
        flags = ["--data_dir", str(folder), "--name", "mine", "--split", split, "--unit", "mm", "--workers", "1"]
        assert prepare.main(["folder", "--raw_dir", str(raw), *flags]) == 0
    return folder


@pytest.fixture
def split(data_dir):
    return PreparedSplit(str(data_dir / "mine" / "test"))


@pytest.fixture
def maps(split, tmp_path):
    """The truth, half as deep and a little nearer, with some noise; NAME.npy each."""
    random = np.random.default_rng(0)
    for index in range(len(split)):
        path = (tmp_path / "maps" / split.name_of(index)).with_suffix(".npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        depth = split[index]["depth"][..., 0]
        np.save(path, (0.5 * depth - 0.1 + 0.02 * random.normal(size=depth.shape)).astype(np.float32))
    return tmp_path / "maps"


def run(data_dir, out, *flags):
    return evaluate.main(["--dataset", "mine", "--data_dir", str(data_dir), "--output_dir", str(out), *map(str, flags)])


def test_saved_predictions_get_the_scores_of_the_metrics(data_dir, split, maps, tmp_path, capsys):
    assert (
        run(data_dir, tmp_path / "out", "--predictions", maps, "--blind", "--beside", data_dir, "--allow_missing") == 1
    )
    assert "there is nothing to score" in capsys.readouterr().err
    same = shutil.copytree(maps, tmp_path / "same")
    assert run(data_dir, tmp_path / "out", "--predictions", maps, "--blind", "--beside", same) == 0
    wanted = []
    for index in range(COUNT):
        example = split[index]
        prediction = np.load((maps / split.name_of(index)).with_suffix(".npy"))[..., None]
        fitted = align(prediction, example["depth"], example["mask"])
        wanted.append(depth_scores(np.maximum(fitted, 1e-5), example["depth"], example["mask"], list(METRICS)))
    rows = list(csv.DictReader(open(tmp_path / "out" / "mine" / "per_sample.csv")))
    assert [row["name"] for row in rows] == [split.name_of(index) for index in range(COUNT)]
    for row, want in zip(rows, wanted, strict=True):
        for name, value in want.items():
            assert float(row[name]) == pytest.approx(value, rel=1e-12), name
    means = json.loads((tmp_path / "out" / "mine" / "metrics.json").read_text())
    assert means["images"] == COUNT and means["settings"]["alignment"] == "least_square"
    for name in METRICS:
        assert means[name] == pytest.approx(np.mean([want[name] for want in wanted]), rel=1e-12)
    assert np.asarray(Image.open(tmp_path / "out" / "mine" / "worst.png")).std() > 10

    header, *lines = capsys.readouterr().out.strip().splitlines()[-5:]
    assert header.split()[:4] == ["dataset", "estimator", "images", "abs_rel"]
    constant, mean_map, beside, looking = (float(line.split(f" {COUNT} ")[1].split()[0]) for line in lines)
    assert beside == looking < 0.05 < min(constant, mean_map)


def test_metres_need_no_alignment(data_dir, split, tmp_path, capsys):
    for index in range(COUNT):
        path = (tmp_path / "maps" / split.name_of(index)).with_suffix(".npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, split[index]["depth"])
    assert run(data_dir, tmp_path / "out", "--predictions", tmp_path / "maps", "--alignment", "none") == 0
    assert json.loads((tmp_path / "out" / "mine" / "metrics.json").read_text())["abs_rel"] == 0


def test_a_model_is_scored_and_an_interrupted_run_goes_on(data_dir, tmp_path, capsys):
    checkpoint.save(scratch((16, 16), 4), tmp_path / "model")
    out, flags = tmp_path / "out", ("--checkpoint", tmp_path / "model", "--limit", 3, "--denoise_steps", 1)
    assert run(data_dir, out, *flags) == 0
    first = (out / "mine" / "metrics.json").read_text()
    assert json.loads(first)["images"] == 3
    made = sorted((out / "mine" / "predictions").rglob("*.npy"))
    assert len(made) == 3 and np.load(made[0]).shape == SIZE
    kept = made[0].stat().st_mtime_ns
    made[1].unlink()
    assert run(data_dir, out, *flags) == 0
    assert made[0].stat().st_mtime_ns == kept and made[1].exists()
    assert (out / "mine" / "metrics.json").read_text() == first
    assert run(data_dir, out, *flags, "--seed", "5") == 1
    assert "seed was 1234, is 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda path: path.unlink(), "1 images cannot be scored (the prediction for"),
        (lambda path: path.write_bytes(b"x"), "not a whole .npy file"),
        (lambda path: np.save(path, np.zeros((3, 4), np.float32)), "the prediction has shape (3, 4)"),
        (lambda path: np.save(path, np.full(SIZE, np.nan, np.float32)), "wanted finite numbers"),
    ],
)
def test_what_cannot_be_scored_is_named(data_dir, split, maps, tmp_path, capsys, damage, complaint):
    damage((maps / split.name_of(2)).with_suffix(".npy"))
    assert run(data_dir, tmp_path / "out", "--predictions", maps) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert complaint in error and error.startswith("evaluate: ")
    assert not (tmp_path / "out" / "mine" / "metrics.json").exists()


def test_missing_ones_are_left_out_on_request(data_dir, split, maps, tmp_path):
    (maps / split.name_of(2)).with_suffix(".npy").unlink()
    assert run(data_dir, tmp_path / "out", "--predictions", maps, "--allow_missing") == 0
    assert json.loads((tmp_path / "out" / "mine" / "metrics.json").read_text())["images"] == COUNT - 1


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--limit", "0"), "--limit must be at least 1"),
        (("--predictions", "nowhere"), "nowhere is not a folder"),
        (("--beside", "nowhere"), "--beside nowhere is not a folder"),
        (("--predictions", ".", "--checkpoint", "x"), "not both"),
    ],
)
def test_wrong_usage(data_dir, tmp_path, capsys, flags, complaint):
    with pytest.raises(SystemExit) as caught:
        run(data_dir, tmp_path / "out", *flags)
    assert caught.value.code == 2 and complaint in capsys.readouterr().err


def test_an_unknown_dataset_is_one_line(tmp_path, capsys):
    assert run(tmp_path, tmp_path / "out", "--predictions", tmp_path) == 1
    assert "no dataset 'mine' has been prepared" in capsys.readouterr().err
