"""Scoring: saved predictions and models, missing and broken ones, and what is left on disk."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from marigold_jax import evaluate, prepare
from marigold_jax.angles import angle_scores, angular_errors
from marigold_jax.data.primitives import Primitives
from marigold_jax.data.sources import PreparedSplit
from marigold_jax.metrics import METRICS, align, depth_scores
from marigold_jax.weights import checkpoint
from marigold_jax.weights.scratch import scratch

COUNT, SIZE = 5, (32, 48)
QUICK = ("--denoise_steps", "1", "--processing_res", "48")  # of a model


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """The splits train and test of "mine", in millimetres, with normals."""
    folder = tmp_path_factory.mktemp("evaluate")
    for split, seed in (("train", 0), ("test", 1)):
        raw = folder / split
        for kind in ("rgb", "depth", "normals"):
            (raw / kind).mkdir(parents=True)
        for index, example in enumerate(map(Primitives(COUNT, SIZE, seed=seed).__getitem__, range(COUNT))):
            Image.fromarray(example["rgb"]).save(raw / "rgb" / f"{index}.png")
            stored = np.uint16(1000 * (example["depth"] * example["mask"])[..., 0])
            Image.fromarray(stored).save(raw / "depth" / f"{index}.png")
            np.save(raw / "normals" / f"{index}.npy", example["normals"])
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
    out, flags = tmp_path / "out", ("--checkpoint", tmp_path / "model", "--limit", 3, *QUICK)
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


def known(example):
    return example["mask"] & (np.linalg.norm(example["normals"], axis=-1, keepdims=True) > 0)


def test_processes_predict_a_share_each_and_the_first_scores(data_dir, tmp_path, capsys, monkeypatch):
    checkpoint.save(scratch((16, 16), 4), tmp_path / "model")
    waited = []
    monkeypatch.setattr(evaluate.distributed, "wait_for_all", waited.append)
    for index, found in ((1, ["1.npy", "3.npy"]), (0, [f"{i}.npy" for i in range(COUNT)])):
        monkeypatch.setattr(evaluate.distributed, "start", lambda index=index: (index, 2))
        assert run(data_dir, tmp_path / "out", "--checkpoint", tmp_path / "model", *QUICK) == 0
        assert sorted(path.name for path in (tmp_path / "out").rglob("*.npy")) == found
        assert ("abs_rel" in capsys.readouterr().out) == (index == 0)
        assert (tmp_path / "out" / "mine" / "metrics.json").exists() == (index == 0)
    assert waited == ["mine predicted"] * 2


def test_saved_normals_are_scored_on_what_prepare_made(data_dir, split, tmp_path, capsys):
    random, angles = np.random.default_rng(0), []
    for index in range(COUNT):
        example = split[index]
        prediction = (example["normals"] + 0.3 * random.normal(size=example["normals"].shape)).astype(np.float32)
        prediction[~known(example)[..., 0]] = np.nan  # nobody looks there
        angles.append(angular_errors(prediction, example["normals"], known(example)))
        for folder, values in (("maps", prediction), ("left", prediction * np.float32([-1, 1, 1]))):
            path = (tmp_path / folder / split.name_of(index)).with_suffix(".npy")
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, values)
    out, flags = tmp_path / "out" / "mine", ("--predictions", tmp_path / "maps")
    assert run(data_dir, tmp_path / "out", *flags, "--blind", "--beside", tmp_path / "left") == 0
    rows = list(csv.DictReader(open(out / "per_sample.csv")))
    for row, want in zip(rows, map(angle_scores, angles), strict=True):
        assert {name: float(row[name]) for name in want} == want
    summary = json.loads((out / "metrics.json").read_text())
    assert summary["rmse"] == pytest.approx(np.mean([float(row["rmse"]) for row in rows]), rel=1e-12)
    together = np.concatenate(angles)
    assert summary["all_pixels"]["median"] == pytest.approx(np.median(together), rel=1e-12)
    assert summary["all_pixels"]["within_11.25"] == pytest.approx(np.mean(together < 11.25), rel=1e-12)
    assert summary["settings"]["alignment"] == "none"
    assert np.asarray(Image.open(out / "worst.png")).std() > 10

    header, *lines = capsys.readouterr().out.strip().splitlines()[-9:]
    assert header.split()[:5] == ["dataset", "estimator", "images", "mean", "median"]
    means = [float(line.split(f" {COUNT} ")[1].split()[0]) for line in lines]
    facing = [angle_scores(facing_errors(split[index]))["mean"] for index in range(COUNT)]
    assert means[0] == pytest.approx(np.mean(facing), abs=1e-4)
    assert "mean map" in lines[2] and means[6] < 30 < min(means[:6])
    assert "all pixels together" in lines[7] and means[7] == pytest.approx(together.mean(), abs=1e-4)

    assert run(data_dir, tmp_path / "turned", "--predictions", tmp_path / "left", "--normals_convention", "x_left") == 0
    turned = json.loads((tmp_path / "turned" / "mine" / "metrics.json").read_text())
    assert {key: turned[key] for key in ("mean", "all_pixels")} == {key: summary[key] for key in ("mean", "all_pixels")}
    assert run(data_dir, tmp_path / "out", *flags, "--alignment", "least_square") == 1
    assert "--alignment least_square: mine is scored on normals" in capsys.readouterr().err


def facing_errors(example):
    truth, mask = example["normals"], known(example)
    return angular_errors(np.broadcast_to(np.float32([0, 0, 1]), truth.shape), truth, mask)


def test_depth_has_no_convention_of_normals(data_dir, maps, tmp_path, capsys):
    assert run(data_dir, tmp_path / "out", "--predictions", maps, "--normals_convention", "x_left") == 1
    assert "--normals_convention: mine is scored on depth" in capsys.readouterr().err


def test_a_model_of_normals_is_scored_where_there_are_some(data_dir, tmp_path, capsys):
    description = {"_class_name": "MarigoldNormalsPipeline"}
    checkpoint.save(dataclasses.replace(scratch((16, 16), 4), description=description), tmp_path / "model")
    out, flags = tmp_path / "out", ("--checkpoint", tmp_path / "model", "--limit", 2, *QUICK)
    assert run(data_dir, out, *flags) == 0
    made = sorted((out / "mine" / "predictions").rglob("*.npy"))
    assert len(made) == 2 and np.load(made[0]).shape == (*SIZE, 3)
    np.testing.assert_allclose(np.linalg.norm(np.load(made[0]), axis=-1), 1, atol=1e-5)
    summary = json.loads((out / "mine" / "metrics.json").read_text())
    scored = run(data_dir, tmp_path / "again", "--predictions", out / "mine" / "predictions", "--allow_missing")
    again = json.loads((tmp_path / "again" / "mine" / "metrics.json").read_text())
    assert scored == 0 and again["images"] == summary["images"] == 2 and again["mean"] == summary["mean"]
    raw = data_dir / "test"
    shutil.copytree(raw / "rgb", tmp_path / "raw" / "rgb")
    shutil.copytree(raw / "depth", tmp_path / "raw" / "depth")
    named = ["--data_dir", str(tmp_path), "--name", "mine", "--split", "test", "--unit", "mm", "--workers", "1"]
    assert prepare.main(["folder", "--raw_dir", str(tmp_path / "raw"), *named]) == 0
    assert run(tmp_path, tmp_path / "none", *flags) == 1
    assert f"{tmp_path / 'model'} estimates normals;" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()  # nothing that would be in the way of another checkpoint


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
