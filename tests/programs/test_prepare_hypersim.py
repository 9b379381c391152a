"""Hypersim from raw HDF5 files in the published layout, against the formulas written out in NumPy float64."""

import csv
import json
import os

import h5py
import numpy as np
import pytest

from marigold_jax import prepare
from marigold_jax.data import hypersim
from marigold_jax.data.prepared import PreparedSplit

HEIGHT, WIDTH = 48, 64
COLUMNS = (
    "scene_name",
    "camera_name",
    "frame_id",
    "included_in_public_release",
    "exclude_reason",
    "split_partition_name",
)


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["dataset"] = array


def paths(root, scene, camera, number):
    images = root / scene / "images"
    return {
        "color": images / f"scene_{camera}_final_hdf5" / f"frame.{number:04d}.color.hdf5",
        "depth_meters": images / f"scene_{camera}_geometry_hdf5" / f"frame.{number:04d}.depth_meters.hdf5",
        "render_entity_id": images / f"scene_{camera}_geometry_hdf5" / f"frame.{number:04d}.render_entity_id.hdf5",
    }


def raw_frame(seed):
    """Linear colour with highlights, as half floats, and a window (no surface), where the distance is NaN."""
    random = np.random.default_rng(seed)
    entity = random.integers(1, 50, (HEIGHT, WIDTH)).astype(np.int32)
    entity[5:15, 10:30] = -1
    distance = random.uniform(0.5, 30, (HEIGHT, WIDTH)).astype(np.float16)
    distance[entity == -1] = np.nan
    colour = random.gamma(1, 0.4, (HEIGHT, WIDTH, 3)).astype(np.float16)
    colour[0, 0] = -0.01
    return {"color": colour, "depth_meters": distance, "render_entity_id": entity}


@pytest.fixture
def raw(tmp_path):
    """Six frames of two scenes; the list names more than there are, and some that are not released."""
    root = tmp_path / "hypersim"
    rows = []
    for scene, count, split in (("ai_001_001", 4, "train"), ("ai_004_002", 2, "train"), ("ai_009_001", 1, "val")):
        for number in range(count):
            frame = raw_frame(10 * count + number)
            for kind, path in paths(root, scene, "cam_00", number).items():
                write(path, frame[kind])
            rows.append((scene, "cam_00", number, "True", "", split))
    rows.append(("ai_001_001", "cam_00", 77, "False", "excessive noise", ""))
    with open(root / "metadata_images_split_scene_v1.csv", "w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return root


def run(raw, data_dir, *flags):
    return prepare.main(["hypersim", "--raw_dir", str(raw), "--data_dir", str(data_dir), "--workers", "1", *flags])


def read_raw(root, scene, camera, number):
    arrays = {}
    for kind, path in paths(root, scene, camera, number).items():
        with h5py.File(path) as file:
            arrays[kind] = file["dataset"][:].astype(np.float64)
    return arrays


def expected_rgb(colour, entity):
    brightness = 0.3 * colour[..., 0] + 0.59 * colour[..., 1] + 0.11 * colour[..., 2]
    bright = np.percentile(brightness[entity != -1], 90)
    scale = np.power(0.8, 2.2) / bright if bright >= 0.0001 else 0.0
    return np.trunc(np.clip(np.power(np.maximum(scale * colour, 0), 1 / 2.2), 0, 1) * 255)


def expected_millimetres(distance, entity):
    height, width = distance.shape
    x = np.linspace(-0.5 * width + 0.5, 0.5 * width - 0.5, width)
    y = np.linspace(-0.5 * height + 0.5, 0.5 * height - 0.5, height)
    rays = np.stack([*np.meshgrid(x, y), np.full((height, width), 886.81)], axis=-1)
    plane = distance / np.linalg.norm(rays, axis=-1) * 886.81
    return np.where(entity == -1, 0, np.floor(plane * 1000))


def test_tone_mapping_and_planar_depth_are_exact(raw, tmp_path):
    assert run(raw, tmp_path) == 0
    split = PreparedSplit(f"{tmp_path}/hypersim/train")
    assert len(split) == 6
    assert split.name_of(5) == "ai_004_002/rgb_cam_00_fr0001.png"
    for index, (scene, number) in enumerate(
        [("ai_001_001", n) for n in range(4)] + [("ai_004_002", n) for n in range(2)]
    ):
        arrays = read_raw(raw, scene, "cam_00", number)
        example = split[index]
        np.testing.assert_array_equal(example["rgb"], expected_rgb(arrays["color"], arrays["render_entity_id"]))
        want = expected_millimetres(arrays["depth_meters"], arrays["render_entity_id"])
        np.testing.assert_array_equal(np.rint(example["depth"][..., 0] * 1000), want)
        np.testing.assert_array_equal(example["mask"][..., 0], want > 0)
    assert split.size == (480, 640)
    assert len(open(tmp_path / "rgbd" / "hypersim" / "report-train.jsonl").read()) == 0


def test_planar_depth_at_the_published_resolution():
    """A ray through the centre of the top left pixel of 1024 x 768 leans by atan(sqrt(511.5^2 + 383.5^2) / 886.81)."""
    depth = hypersim.planar_depth(np.full((768, 1024), 10.0))
    assert depth[0, 0] == pytest.approx(10 * np.cos(np.arctan(np.hypot(511.5, 383.5) / 886.81)), rel=1e-12)
    np.testing.assert_allclose(depth, depth[::-1, ::-1], rtol=1e-12)
    assert depth.max() == pytest.approx(10, rel=1e-6)


def test_dark_frames_and_frames_without_surfaces_are_tone_mapped():
    dark = np.full((4, 4, 3), 9e-5)
    assert not hypersim.tone_map(dark, np.ones((4, 4), bool)).any()
    colour = np.full((4, 4, 3), 0.5)
    assert (hypersim.tone_map(colour, np.zeros((4, 4), bool)) == int(255 * 0.5 ** (1 / 2.2))).all()


def test_depth_beyond_16_bits_is_kept_invalid_and_noted(raw, tmp_path):
    path = paths(raw, "ai_001_001", "cam_00", 2)["depth_meters"]
    distance = read_raw(raw, "ai_001_001", "cam_00", 2)["depth_meters"]
    distance[40, 40] = 70.0  # as 16 bits it would wrap around to 4.4 m
    distance[41, 41] = np.inf
    write(path, distance.astype(np.float16))
    assert run(raw, tmp_path) == 0
    example = PreparedSplit(f"{tmp_path}/hypersim/train")[2]
    assert np.isclose(example["depth"][40, 40, 0], 65.535) and not example["mask"][40, 40, 0]
    assert np.isclose(example["depth"][41, 41, 0], 65.535) and not example["mask"][41, 41, 0]
    (remark,) = map(json.loads, open(tmp_path / "rgbd" / "hypersim" / "report-train.jsonl"))
    assert remark["frame"] == "ai_001_001/rgb_cam_00_fr0002.png" and not remark["left_out"]
    assert remark["detail"].startswith("2 pixels beyond 65.535 m")


def test_normals_face_the_camera(raw, tmp_path):
    """`normal_cam` of random length; some point away from the camera, and the window has none."""
    random = np.random.default_rng(3)
    rays = np.stack([*np.meshgrid(np.arange(WIDTH) - (WIDTH - 1) / 2, (HEIGHT - 1) / 2 - np.arange(HEIGHT))], axis=-1)
    rays = np.concatenate([rays / 886.81, np.full((HEIGHT, WIDTH, 1), -1.0)], axis=-1)
    wanted = random.normal(size=(HEIGHT, WIDTH, 3))
    wanted /= np.linalg.norm(wanted, axis=-1, keepdims=True)
    wanted[np.sum(wanted * rays, axis=-1) > 0] *= -1
    stored = wanted * random.choice([-1, 1], (HEIGHT, WIDTH, 1)) * random.uniform(0.5, 2, (HEIGHT, WIDTH, 1))
    for scene, count in (("ai_001_001", 4), ("ai_004_002", 2)):
        for number in range(count):
            file = paths(raw, scene, "cam_00", number)["depth_meters"]
            write(file.with_name(f"frame.{number:04d}.normal_cam.hdf5"), stored.astype(np.float32))
    broken = np.where(np.arange(WIDTH)[:, None] == 50, np.nan, stored)
    write(paths(raw, "ai_001_001", "cam_00", 3)["depth_meters"].with_name("frame.0003.normal_cam.hdf5"), broken)
    paths(raw, "ai_001_001", "cam_00", 2)["depth_meters"].with_name("frame.0002.normal_cam.hdf5").unlink()
    assert run(raw, tmp_path, "--normals") == 0
    split = PreparedSplit(f"{tmp_path}/hypersim/train")
    assert len(split) == 4
    example = split[0]
    surface = read_raw(raw, "ai_001_001", "cam_00", 0)["render_entity_id"] != -1
    clear = surface & (np.abs(np.sum(wanted * rays, axis=-1)) > 2e-3)  # those seen edge-on stay as they are
    np.testing.assert_allclose(example["normals"][clear], wanted[clear], atol=1e-4)
    assert not example["normals"][~surface].any()
    remarks = map(json.loads, open(tmp_path / "rgbd" / "hypersim" / "report-train.jsonl"))
    assert sorted(remark["reason"] for remark in remarks) == ["NaN normals", "missing file"]


def _remove(files):
    files["depth_meters"].unlink()


def _truncate(files):
    content = files["color"].read_bytes()
    files["color"].write_bytes(content[: len(content) // 2])


def _empty(files):
    files["color"].write_bytes(b"")


def _change(files, kind, change):
    with h5py.File(files[kind], "r+") as file:
        array = file["dataset"][:]
        del file["dataset"]
        file["dataset"] = change(array)


def _nan_depth(files):
    _change(files, "depth_meters", lambda a: np.where(np.arange(WIDTH) == 50, np.nan, a))


def _nan_colour(files):
    _change(files, "color", lambda a: np.where(np.arange(3) == 1, np.nan, a))


def _entity_zero(files):
    _change(files, "render_entity_id", lambda a: a * (np.arange(WIDTH) > 3).astype(a.dtype))


def _other_size(files):
    _change(files, "depth_meters", lambda a: a[:40])


def _no_surface(files):
    _change(files, "render_entity_id", lambda a: np.full_like(a, -1))


def _other_key(files):
    with h5py.File(files["color"], "w") as file:
        file["data"] = np.zeros((HEIGHT, WIDTH, 3))


def _elsewhere(files):
    os.replace(files["color"], files["color"].with_name("secret.hdf5"))
    with h5py.File(files["color"], "w") as file:
        file["dataset"] = h5py.ExternalLink("secret.hdf5", "/dataset")


def _fifo(files):
    files["color"].unlink()
    os.mkfifo(files["color"])


BROKEN = {
    _remove: "missing file",
    _truncate: "unreadable HDF5",
    _empty: "unreadable HDF5",
    _other_key: "unreadable HDF5",
    _elsewhere: "unreadable HDF5",
    _fifo: "unreadable HDF5",
    _nan_depth: "NaN depth",
    _nan_colour: "NaN colour",
    _entity_zero: "entity id 0",
    _other_size: "size mismatch",
    _no_surface: "no valid depth",
}


@pytest.mark.slow
@pytest.mark.parametrize("damage, reason", BROKEN.items(), ids=lambda value: getattr(value, "__name__", None))
def test_broken_frames_are_left_out_and_reported(raw, tmp_path, capsys, damage, reason):
    damage(paths(raw, "ai_001_001", "cam_00", 1))
    assert run(raw, tmp_path) == 0
    assert f"left out 1 of 6 frames (1 {reason})" in capsys.readouterr().out
    split = PreparedSplit(f"{tmp_path}/hypersim/train")
    names = [split.name_of(index) for index in range(len(split))]
    assert len(names) == 5 and "ai_001_001/rgb_cam_00_fr0001.png" not in names
    (remark,) = map(json.loads, open(tmp_path / "rgbd" / "hypersim" / "report-train.jsonl"))
    assert (remark["frame"], remark["left_out"], remark["reason"]) == ("ai_001_001/rgb_cam_00_fr0001.png", True, reason)


def test_official_filename_list(raw, tmp_path):
    (raw / "metadata_images_split_scene_v1.csv").unlink()
    names = tmp_path / "filename_list_train_filtered.txt"
    names.write_text(
        "ai_004_002/rgb_cam_00_fr0001.png ai_004_002/depth_plane_cam_00_fr0001.png\n\n"
        "ai_001_001/rgb_cam_00_fr0003.png ai_001_001/depth_plane_cam_00_fr0003.png\n"
        "ai_001_001/rgb_cam_01_fr0000.png ai_001_001/depth_plane_cam_01_fr0000.png\n"
    )
    assert run(raw, tmp_path, "--filename_list", str(names)) == 0
    split = PreparedSplit(f"{tmp_path}/hypersim/train")
    assert [split.name_of(index) for index in range(len(split))] == [
        "ai_004_002/rgb_cam_00_fr0001.png",
        "ai_001_001/rgb_cam_00_fr0003.png",
    ]
    (remark,) = map(json.loads, open(tmp_path / "rgbd" / "hypersim" / "report-train.jsonl"))
    assert remark["reason"] == "missing file" and "scene_cam_01_final_hdf5" in remark["detail"]


def test_splits_come_from_the_published_table(raw, tmp_path):
    assert run(raw, tmp_path, "--split", "val") == 0
    assert run(raw, tmp_path, "--split", "train", "--limit", "2") == 0
    assert len(PreparedSplit(f"{tmp_path}/hypersim/val")) == 1
    assert len(PreparedSplit(f"{tmp_path}/hypersim/train")) == 2


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--split", "holdout"], "Hypersim's splits are train, val, test; got 'holdout'"),
        (["--split", "test"], "holds no frames of the test split"),
        (["--filename_list", "/nowhere.txt"], "/nowhere.txt: cannot read this filename list"),
    ],
)
def test_bad_usage(raw, tmp_path, capsys, flags, message):
    assert run(raw, tmp_path, *flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_missing_table_is_explained(raw, tmp_path, capsys):
    (raw / "metadata_images_split_scene_v1.csv").unlink()
    assert run(raw, tmp_path) == 2
    assert "ml-hypersim, or give a --filename_list" in capsys.readouterr().err


def test_a_list_of_another_dataset_is_refused(raw, tmp_path, capsys):
    names = tmp_path / "list.txt"
    names.write_text("rgb/Scene02/clone/frames/rgb/Camera_0/rgb_00000.jpg depth.png\n")
    assert run(raw, tmp_path, "--filename_list", str(names)) == 2
    assert "wanted names such as ai_001_001/rgb_cam_00_fr0000.png; got rgb/Scene02" in capsys.readouterr().err


def test_scenes_that_arrived_later_and_other_flags_are_noticed(raw, tmp_path, capsys):
    hidden = (raw / "ai_004_002").rename(raw / "elsewhere")
    assert run(raw, tmp_path) == 0 and run(raw, tmp_path) == 0
    hidden.rename(raw / "ai_004_002")
    assert run(raw, tmp_path) == 2
    assert "is prepared already, from files of other names or sizes" in capsys.readouterr().err
    assert run(raw, tmp_path, "--normals") == 2
    assert "--normals was False, is True" in capsys.readouterr().err


@pytest.mark.parametrize("table", ["", "a,b\n1,2\n", "\xff\xfe", "scene_name"])
def test_a_table_of_something_else_costs_one_line(raw, tmp_path, capsys, table):
    (raw / hypersim.SPLIT_FILE).write_bytes(table.encode("latin-1"))
    assert run(raw, tmp_path) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_scenes_of_the_table_stay_below_the_folder(raw, tmp_path, capsys):
    path = raw / hypersim.SPLIT_FILE
    path.write_text(path.read_text().replace("ai_004_002", "../../ai_004_002"))
    assert run(raw, tmp_path) == 2
    assert "wanted scenes such as ai_001_001" in (error := capsys.readouterr().err) and error.count("\n") == 1
