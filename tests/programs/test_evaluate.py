"""Scoring: saved predictions and models, missing and broken ones, and what is left on disk."""

import csv
import dataclasses
import io
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from standin import Brightness

import marigold_jax
from marigold_jax import evaluate, prepare
from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.data.primitives import Primitives
from marigold_jax.evaluation import model_predictions
from marigold_jax.evaluation.depth_alignment import align
from marigold_jax.evaluation.depth_metrics import METRICS, depth_scores
from marigold_jax.evaluation.estimators import saved
from marigold_jax.evaluation.normal_metrics import angle_scores, angular_errors
from marigold_jax.evaluation.quantities import QUANTITIES
from marigold_jax.runtime import compilation_cache
from marigold_jax.weights import model_folder
from marigold_jax.weights.model_index import ModelIndex
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


@pytest.mark.slow
def test_a_model_is_scored_and_an_interrupted_run_goes_on(data_dir, tmp_path, capsys):
    model_folder.save(scratch((16, 16), 4), tmp_path / "model")
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


def made_in(out):
    return {path.name: path.read_bytes() for path in (out / "mine" / "predictions").rglob("*.npy")}


@pytest.mark.slow
def test_predictions_do_not_depend_on_how_many_are_computed_together(data_dir, tmp_path):
    model = scratch((16, 16), 4)
    kernel = np.random.default_rng(0).normal(size=(3, 3, 16, 3)).astype(np.float32)  # a fresh one is zero: image-blind
    unet = dataclasses.replace(model.unet, params=model.unet.params | {"conv_out.kernel": kernel})
    model_folder.save(dataclasses.replace(model, unet=unet), tmp_path / "model")
    flags = ("--checkpoint", tmp_path / "model", *QUICK, "--noise", "zeros")
    assert run(data_dir, tmp_path / "one", *flags, "--batch_size", 1) == 0
    assert run(data_dir, tmp_path / "four", *flags, "--batch_size", 4) == 0
    made = made_in(tmp_path / "one")
    assert len(set(made.values())) == COUNT and made_in(tmp_path / "four") == made
    # So a run may continue with another batch size.
    assert run(data_dir, tmp_path / "one", *flags, "--batch_size", 4) == 0


@pytest.fixture
def network(monkeypatch):
    network = Brightness()
    monkeypatch.setattr(marigold_jax, "Marigold", network, raising=False)
    monkeypatch.setattr(compilation_cache, "enable_cache", lambda: None)
    return network


def test_images_of_one_size_share_a_batch(data_dir, tmp_path, network):
    assert run(data_dir, tmp_path / "out", "--batch_size", 4) == 0
    assert network.calls == [(4, 48, 64, 3)] * 2  # the second is filled up
    assert run(data_dir, tmp_path / "coarse", "--bucket", 32) == 0
    assert {shape[1:] for shape in network.calls[2:]} == {(32, 64, 3)}


def test_another_vae_is_loaded_and_recorded(data_dir, tmp_path, network, monkeypatch, capsys):
    loaded = []
    monkeypatch.setattr(network, "from_pretrained", lambda *_, vae, **__: loaded.append(vae) or network)
    assert run(data_dir, tmp_path / "out", "--vae", "tiny") == 0
    assert (
        loaded == ["tiny"] and json.loads((tmp_path / "out/mine/metrics.json").read_text())["settings"]["vae"] == "tiny"
    )
    assert run(data_dir, tmp_path / "out") == 1
    assert "vae was tiny, is None" in capsys.readouterr().err


def test_predictions_of_older_releases_are_continued(data_dir, tmp_path, network, capsys):
    assert run(data_dir, tmp_path / "out") == 0
    record = tmp_path / "out" / "mine" / "predictions" / "settings.json"
    old = {
        key: value for key, value in json.loads(record.read_text()).items() if key not in ("vae", "bucket", "resize")
    }
    record.write_text(json.dumps(old))
    assert run(data_dir, tmp_path / "out") == 0
    assert run(data_dir, tmp_path / "out", "--bucket", 16) == 1
    assert "bucket was 8, is 16" in capsys.readouterr().err


def test_an_image_that_cannot_be_predicted_costs_only_itself(data_dir, tmp_path, network, capsys, monkeypatch):
    def broken(self, index, original=PreparedSplit.__getitem__):
        if index == 1:
            raise ValueError("broken PNG file")
        example = original(self, index)
        return example | {"rgb": example["rgb"][:1, :1].repeat(3000, 1)} if index == 3 else example

    monkeypatch.setattr(PreparedSplit, "__getitem__", broken)
    assert run(data_dir, tmp_path / "out") == 1
    assert "2 images cannot be scored" in capsys.readouterr().err and len(made_in(tmp_path / "out")) == COUNT - 2
    monkeypatch.setattr("marigold_jax.evaluate.draw_worst", lambda *_: "")
    assert run(data_dir, tmp_path / "out", "--allow_missing") == 0
    assert "2 of 5 images are left out: 2 that cannot be scored (" in capsys.readouterr().out


def test_too_little_memory_and_a_full_disk_are_one_line(data_dir, tmp_path, network, capsys, monkeypatch):
    network.error = RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes.\nmore"), 2
    assert run(data_dir, tmp_path / "out", "--batch_size", 1) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("evaluate: out of device memory: lower --processing_res or --batch_size")
    network.error = None

    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(model_predictions, "write", full)
    assert run(data_dir, tmp_path / "out", "--batch_size", 1) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in error


def known(example):
    return example["mask"] & (np.linalg.norm(example["normals"], axis=-1, keepdims=True) > 0)


@pytest.mark.slow
def test_processes_predict_a_share_each_and_the_first_scores(data_dir, tmp_path, capsys, monkeypatch):
    model_folder.save(scratch((16, 16), 4), tmp_path / "model")
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


@pytest.mark.slow
def test_a_model_of_normals_is_scored_where_there_are_some(data_dir, tmp_path, capsys):
    index = ModelIndex({"_class_name": "MarigoldNormalsPipeline"})
    model_folder.save(dataclasses.replace(scratch((16, 16), 4), index=index), tmp_path / "model")
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda path: path.unlink(), "1 images cannot be scored (the prediction for"),
        (lambda path: path.write_bytes(b"x"), "not a whole .npy file"),
        (lambda path: np.save(path, np.zeros(SIZE[::-1], np.float32)), "has 48 x 32 pixels, the picture 32 x 48"),
        (lambda path: np.save(path, np.zeros((3, 40), np.float32)), "not one picture in two sizes"),
        (lambda path: np.save(path, np.full(SIZE, np.nan, np.float32)), "wanted finite numbers"),
        (lambda path: np.save(path, np.zeros((*SIZE, 3), np.float32)), "wanted 1 channels for depth, found 3"),
        (lambda path: np.save(path, np.zeros((*SIZE, 2), np.float32)), "wanted shape (height, width)"),
        (lambda path: np.save(path, np.zeros((2, *SIZE, 1), np.float32)), "wanted shape (height, width)"),
        (lambda path: np.save(path, np.float32(1)), "wanted the shape of a map, found ()"),
        (lambda path: np.save(path, np.full(SIZE, 1j)), "found complex numbers"),
        (lambda path: np.save(path, np.full(SIZE, "1")), "found text"),
        (lambda path: np.save(path, np.full(SIZE, None)), "found Python objects"),
        (lambda path: path.write_bytes(npz(a=np.zeros(SIZE), b=np.zeros(SIZE))), "found 2 files"),
        (lambda path: path.write_bytes(npz(a=np.zeros(SIZE))[:-60]), "not a whole .npz archive"),
        (lambda path: path.write_bytes(path.read_bytes()[:-8]), "not a whole .npy file"),
        (lambda path: path.write_bytes(path.read_bytes()[:40]), "not a whole .npy file"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"(32, 48)", b"(9**9,9)")), "not a whole .npy file"),
        (lambda path: path.write_bytes(huge()), "wanted the shape of a map, found (1000000, 1000000)"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "wanted a regular file, found a FIFO"),
        (lambda path: (path.unlink(), path.mkdir()), "wanted a file, found a folder"),
        (lambda path: (path.unlink(), path.symlink_to("nowhere")), "no such file"),
        (lambda path: picture(path, np.zeros(SIZE, np.uint8)), "wanted a 16-bit grey PNG"),
    ],
)
def test_what_cannot_be_scored_is_named_and_left_out_on_request(
    data_dir, split, maps, tmp_path, capsys, damage, complaint
):
    damage((maps / split.name_of(2)).with_suffix(".npy"))
    assert run(data_dir, tmp_path / "out", "--predictions", maps) == 1
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert complaint in error and error.startswith("evaluate: 1 images cannot be scored (") and "2" in error
    assert not (tmp_path / "out" / "mine" / "metrics.json").exists()
    assert run(data_dir, tmp_path / "out", "--predictions", maps, "--allow_missing") == 0
    said = capsys.readouterr()
    assert said.err == "" and "1 of 5 images are left out: 1 that cannot be scored (" in said.out
    summary = json.loads((tmp_path / "out" / "mine" / "metrics.json").read_text())
    assert summary["images"] == COUNT - 1
    assert summary["left_out"] == {"unusable": 1, "without_valid_pixels": 0} and summary["resized"] == 0


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def huge():
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000)}\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def picture(path, pixels):
    Image.fromarray(pixels).save(path, "PNG")


def scored(folder):
    return json.loads((folder / "mine" / "metrics.json").read_text())


def relaid(maps, folder, split, save):
    for index in range(COUNT):
        name = split.name_of(index)
        values = np.load((maps / name).with_suffix(".npy"))
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path.with_suffix(".npy"), values)
    return folder


LAYOUTS = {
    "(1, h, w)": lambda path, values: np.save(path, values[None]),
    "(h, w, 1)": lambda path, values: np.save(path, values[..., None]),
    "(1, 1, h, w)": lambda path, values: np.save(path, values[None, None]),
    "float64 in columns": lambda path, values: np.save(path, np.asfortranarray(values.astype(np.float64))),
    "archive": lambda path, values: np.savez(path.with_suffix(".npz"), depth=values),
    "compressed archive called .npy": lambda path, values: path.write_bytes(npz(depth=values)),
    "PNG": lambda path, values: picture(path.with_suffix(".png"), np.uint16(np.rint((values + 1) * 8000))),
    "as predict writes them": lambda path, values: written(path, "depth_npy/{}_depth.npy", values),
    "the folder that predict writes": lambda path, values: written(path, "{}_depth.npy", values),
    "NaN where nothing is known": None,
}


def written(path, name, values):
    """Beside the folder that the name of the image has, as `predict` knows of none."""
    path = path.parents[1] / name.format(path.stem)
    path.parent.mkdir(exist_ok=True)
    np.save(path, values)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_maps_of_any_layout_get_the_same_scores(data_dir, split, maps, tmp_path, capsys, layout):
    assert run(data_dir, tmp_path / "out", "--predictions", maps) == 0
    wanted = scored(tmp_path / "out")
    save = LAYOUTS[layout]
    if save is None:
        masks = iter([split[index]["mask"][..., 0] for index in range(COUNT)])
        save = lambda path, values: np.save(path, np.where(next(masks), values, np.nan))  # noqa: E731
    folder = relaid(maps, tmp_path / "other", split, save)
    assert run(data_dir, tmp_path / "again", "--predictions", folder) == 0
    found = scored(tmp_path / "again")
    close = 2e-3 if layout == "PNG" else 1e-12
    assert {key: found[key] for key in METRICS} == pytest.approx({key: wanted[key] for key in METRICS}, rel=close)
    assert found["resized"] == 0 and "resized" not in capsys.readouterr().out
    assert np.asarray(Image.open(tmp_path / "again" / "mine" / "worst.png")).std() > 10


def test_truth_that_is_partly_unknown_is_drawn_blank(tmp_path, capsys):
    """The reported case: holes in the truth, and NaN in the prediction where they are."""
    depth = np.uint16(1000 + np.arange(SIZE[0] * SIZE[1]).reshape(SIZE))
    depth[:8], holes = 0, np.arange(SIZE[0]) < 8
    flags = prepared(tmp_path, {"a": depth})
    values = np.where(holes[:, None], np.nan, depth / 2000).astype(np.float32)
    (tmp_path / "maps").mkdir()
    np.save(tmp_path / "maps" / "a.npy", values)
    assert evaluate.main([*flags, "--predictions", str(tmp_path / "maps")]) == 0
    assert capsys.readouterr().err == "" and scored(tmp_path / "out")["abs_rel"] < 1e-3
    drawn = np.asarray(Image.open(tmp_path / "out" / "mine" / "worst.png"))
    assert (drawn[:8, -SIZE[1] :] == 0).all() and drawn[8:].std() > 10


def prepared(folder, depths):
    """The split "test" of "mine", with these depths in millimetres; returns the flags that name it."""
    for kind in ("rgb", "depth"):
        (folder / "raw" / kind).mkdir(parents=True)
    for name, depth in depths.items():
        random = np.random.default_rng(0)
        picture(folder / "raw" / "rgb" / f"{name}.png", random.integers(0, 255, (*depth.shape, 3), np.uint8))
        picture(folder / "raw" / "depth" / f"{name}.png", depth)
    flags = ["--data_dir", str(folder), "--name", "mine", "--split", "test", "--unit", "mm", "--workers", "1"]
    assert prepare.main(["folder", "--raw_dir", str(folder / "raw"), *flags]) == 0
    return ["--dataset", "mine", "--data_dir", str(folder), "--output_dir", str(folder / "out")]


def test_a_picture_that_cannot_be_drawn_costs_no_scores(data_dir, maps, tmp_path, capsys, monkeypatch):
    def fails(*_):
        raise IndexError("out of bounds\nfor colours")

    monkeypatch.setitem(QUANTITIES, "depth", dataclasses.replace(QUANTITIES["depth"], panel=fails))
    (tmp_path / "out" / "mine").mkdir(parents=True)
    (tmp_path / "out" / "mine" / "worst.png").write_bytes(b"of an earlier run")
    assert run(data_dir, tmp_path / "out", "--predictions", maps) == 0
    (error,) = capsys.readouterr().err.splitlines()
    assert error.endswith("worst.png: not drawn: out of bounds for colours")
    assert scored(tmp_path / "out")["images"] == COUNT and not (tmp_path / "out" / "mine" / "worst.png").exists()


def test_what_is_beside_cannot_cost_the_scores(data_dir, maps, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run(data_dir, tmp_path / "out", "--predictions", maps, "--beside", tmp_path / "empty") == 1
    assert "5 images cannot be scored (the prediction for " in capsys.readouterr().err
    assert scored(tmp_path / "out")["images"] == COUNT


def test_maps_of_another_size_are_resized_and_that_is_said(data_dir, split, maps, tmp_path, capsys):
    folder = relaid(maps, tmp_path / "small", split, lambda path, values: np.save(path, values[1::2, 1::2]))
    assert run(data_dir, tmp_path / "out", "--predictions", folder) == 0
    said = capsys.readouterr().out
    assert "small: 5 of 5 predictions were resized to the truth's size" in said
    assert scored(tmp_path / "out")["resized"] == COUNT and scored(tmp_path / "out")["abs_rel"] < 0.1


@pytest.mark.parametrize("layout", ["(1, h, w, 3)", "(3, h, w)", "(1, 3, h, w)", "another size"])
def test_saved_normals_of_any_layout(data_dir, split, tmp_path, layout):
    lay = {
        "(1, h, w, 3)": lambda normals: normals[None],
        "(3, h, w)": lambda normals: normals.transpose(2, 0, 1),
        "(1, 3, h, w)": lambda normals: normals.transpose(2, 0, 1)[None],
        "another size": lambda normals: np.repeat(np.repeat(normals, 2, 0), 2, 1),
    }[layout]
    for index in range(COUNT):
        path = (tmp_path / "maps" / split.name_of(index)).with_suffix(".npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, lay(split[index]["normals"]))
    assert run(data_dir, tmp_path / "out", "--predictions", tmp_path / "maps") == 0
    summary = scored(tmp_path / "out")
    assert summary["mean"] < (1e-3 if layout != "another size" else 5)
    assert summary["resized"] == (COUNT if layout == "another size" else 0)


def test_a_png_has_no_metres(data_dir, split, maps, tmp_path, capsys):
    folder = relaid(maps, tmp_path / "png", split, LAYOUTS["PNG"])
    assert run(data_dir, tmp_path / "out", "--predictions", folder, "--alignment", "none") == 1
    assert "a PNG says nothing of its unit" in capsys.readouterr().err


def test_names_in_folders_are_told_apart(split, tmp_path, monkeypatch):
    names = ["a/1.png", "b/1.png", "b/2.png", "b/3.png", "b/4.png"]
    monkeypatch.setattr(PreparedSplit, "name_of", lambda self, index: names[index])
    for stem in ("1", "2"):
        np.save(tmp_path / f"{stem}_depth.npy", np.ones(SIZE, np.float32))
    estimate = saved(tmp_path, split)
    assert estimate(2).shape == (*SIZE, 1) and estimate(3) is None
    with pytest.raises(ValueError, match="several images have this name"):
        estimate(0)


HOSTILE = {"out": "../../x.png", "absolute": "/tmp/x.png", "empty": "", "long": "x" * 5000, "line": "a\nb\x1b[31m/../c"}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_a_name_in_a_dataset_never_leaves_the_folder(data_dir, maps, tmp_path, capsys, monkeypatch, name):
    """Neither of a model's predictions, nor of saved ones, and before the model is loaded."""
    original = PreparedSplit.name_of
    monkeypatch.setattr(PreparedSplit, "name_of", lambda self, index: name if index == 1 else original(self, index))
    for flags in (("--predictions", maps), ("--checkpoint", tmp_path / "none")):
        assert run(data_dir, tmp_path / "out", *flags) == 1
        (error,) = capsys.readouterr().err.splitlines()
        assert ("wanted a relative name" in error or "too long for a file" in error) and len(error) < 600
        assert error.isprintable()
    assert run(data_dir, tmp_path / "out", "--predictions", maps, "--allow_missing") == 0
    assert scored(tmp_path / "out")["images"] == COUNT - 1


def test_two_images_of_one_name_do_not_share_a_prediction(data_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(PreparedSplit, "name_of", lambda self, index: f"a.{'png' if index else 'jpg'}")
    assert run(data_dir, tmp_path / "out", "--checkpoint", tmp_path / "none") == 1
    assert "a.png: its prediction would overwrite that of a.jpg" in capsys.readouterr().err


def test_a_damaged_record_is_left_out_on_request(data_dir, split, maps, tmp_path, capsys, monkeypatch):
    def truth(self, index, original=PreparedSplit.truth):
        if index == 3:
            raise SyntaxError("broken PNG file")
        return original(self, index)

    monkeypatch.setattr(PreparedSplit, "truth", truth)
    assert run(data_dir, tmp_path / "out", "--predictions", maps) == 1
    assert "number 3: broken PNG file); --allow_missing leaves" in capsys.readouterr().err
    assert run(data_dir, tmp_path / "out", "--predictions", maps, "--allow_missing") == 0


def test_nothing_valid_is_one_line(data_dir, maps, tmp_path, capsys, monkeypatch):
    original = PreparedSplit.truth
    dark = lambda self, index: {key: value & False if key == "mask" else value  # noqa: E731
                                for key, value in original(self, index).items()}  # fmt: skip
    monkeypatch.setattr(PreparedSplit, "truth", dark)
    assert run(data_dir, tmp_path / "out", "--predictions", maps) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert "there is nothing to score: 5 in which no pixel of the truth is valid" in error


def test_an_empty_folder_of_predictions_is_one_line(data_dir, tmp_path, capsys):
    for flags in ((), ("--allow_missing",)):
        assert run(data_dir, tmp_path / "out", "--predictions", tmp_path, *flags) == 1
        (error,) = capsys.readouterr().err.splitlines()
        assert "the prediction for " in error and "is missing" in error


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", None], ids=["empty", "list", "cut", "no text", "none"])
def test_settings_that_cannot_be_read_are_one_line(data_dir, split, tmp_path, capsys, content):
    folder = tmp_path / "out" / "mine" / "predictions"
    folder.mkdir(parents=True)
    if content is not None:
        (folder / "settings.json").write_bytes(content)
    np.save(folder / "a.npy", np.zeros(SIZE, np.float32))
    assert run(data_dir, tmp_path / "out", "--checkpoint", tmp_path / "none") == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert "settings.json" in error and "the settings of the predictions beside it are unknown" in error


def test_ctrl_c_is_one_line_and_another_dataset_is_scored_though_one_fails(
    data_dir, maps, tmp_path, capsys, monkeypatch
):
    flags = ["--data_dir", str(data_dir), "--output_dir", str(tmp_path / "out"), "--predictions", str(maps)]
    assert evaluate.main(["--dataset", "none, mine", *flags]) == 1
    said = capsys.readouterr()
    assert "no dataset 'none' has been prepared" in said.err and "abs_rel" in said.out
    monkeypatch.setattr(evaluate, "summarise", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run(data_dir, tmp_path / "out", "--predictions", maps) == 130
    assert capsys.readouterr().err == "evaluate: interrupted; run the same command again to continue\n"


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
        (("--data_dir", "nowhere"), "--data_dir nowhere is not a folder"),
        (("--output_dir", __file__), "test_evaluate.py is not a folder"),
        (("--output_dir", f"{__file__}/scores"), "test_evaluate.py is not a folder"),
        (("--processing_res", "100"), "must be a multiple of 8"),
        (("--resize", "official", "--processing_res", "-1"), "must not be negative"),
        (("--resize", "official", "--bucket", "64"), "works without a bucket: leave out --bucket 64"),
        (("--bucket", "12"), "the bucket must be a multiple of 8; got 12"),
        (("--bucket", "0"), "--bucket must be at least 8; got 0"),
        (("--batch_size", "-1"), "--batch_size must be at least 0; got -1"),
        (("--dataset", "../mine"), "wanted a relative name"),
        (("--dataset", ","), "--dataset: wanted at least one name"),
    ],
)
def test_wrong_usage(data_dir, tmp_path, capsys, flags, complaint):
    with pytest.raises(SystemExit) as caught:
        run(data_dir, tmp_path / "out", *flags)
    assert caught.value.code == 2 and complaint in capsys.readouterr().err


def test_an_unknown_dataset_is_one_line(tmp_path, capsys):
    assert run(tmp_path, tmp_path / "out", "--predictions", tmp_path) == 1
    assert "no dataset 'mine' has been prepared" in capsys.readouterr().err


def test_the_output_folder_has_a_short_flag(data_dir, maps, tmp_path):
    flags = ["--dataset", "mine", "--data_dir", str(data_dir), "--predictions", str(maps)]
    assert evaluate.main([*flags, "-o", str(tmp_path / "out")]) == 0
    assert scored(tmp_path / "out")["images"] == COUNT
