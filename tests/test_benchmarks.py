"""The papers' test sets, each on a small tree in its exact layout, and their protocols."""

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marigold_jax import evaluate
from marigold_jax.data import benchmarks
from marigold_jax.data.benchmarks import BENCHMARKS, OfficialSplit
from marigold_jax.data.frames import BadFrame

# Of each test set: how a line of its list looks, the size of its photographs, and where the list lies.
LINES = {
    "nyu_v2": "test/kitchen_0004/rgb_000{i}.png test/kitchen_0004/depth_000{i}.png test/kitchen_0004/filled_000{i}.png",
    "kitti": "2011_09_26/d_sync/image_02/data/000{i}.png d_sync/proj_depth/groundtruth/image_02/000{i}.png 721.5377",
    "eth3d": "rgb/office/images/dslr_images/DSC_{i}.JPG depth/office_dslr_depth/office/ground_truth_depth/DSC_{i}.JPG",
    "scannet": "scene0406_02/color/00030{i}.jpg scene0406_02/depth/00030{i}.png",
    "diode": "indoors/scene_1/0{i}.png indoors/scene_1/0{i}_depth.npy indoors/scene_1/0{i}_depth_mask.npy",
}
SIZES = {"nyu_v2": (480, 640), "kitti": (375, 1242), "eth3d": (40, 60), "scannet": (48, 64), "diode": (48, 64)}
LISTS = {
    "nyu_v2": "nyu_depth/labeled/filename_list_test.txt",
    "kitti": "kitti/eigen_test_files_with_gt.txt",
    "eth3d": "eth3d/eth3d_filename_list.txt",
    "scannet": "scannet_depth/scannet_val_sampled_list_800_1.txt",
    "diode": "diode/diode_val_all_filename_list.txt",
}
OFFICIAL = {  # what the official inference calls its prediction for the first line
    "nyu_v2": "test/kitchen_0004/pred_0000",
    "kitti": "2011_09_26/d_sync/image_02/data/pred_0000",
    "eth3d": "rgb/office/images/dslr_images/pred_DSC_0",
    "scannet": "scene0406_02/color/pred_000300",
    "diode": "indoors/scene_1/pred_00",
}


def encoded(name, metres):
    """The content of a depth file."""
    if name == "eth3d":
        return np.where(metres > 0, metres, np.inf).astype("<f4").tobytes()
    buffer = io.BytesIO()
    if name == "diode":
        np.save(buffer, metres[..., None].astype(np.float32))
    else:
        Image.fromarray(np.rint(metres * BENCHMARKS[name].source.units_per_metre).astype(np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def make(name, data_dir, packed):
    """Two images; returns their depth, 0 where there is none."""
    random = np.random.default_rng(0)
    folder = data_dir / BENCHMARKS[name].container
    depths = []
    for i in range(2):
        rgb, depth, *others = LINES[name].format(i=i).split()
        metres = random.uniform(1, 9, SIZES[name])
        metres[:3, :] = 0
        metres[-1, -5:] = 12 if name in ("nyu_v2", "scannet") else 200  # too far, but for DIODE and ETH3D
        metres[3, 0] = 0.3
        pixels = io.BytesIO()
        image = random.integers(0, 255, (*SIZES[name], 3), np.uint8)
        Image.fromarray(image).save(pixels, "JPEG" if rgb.lower().endswith("jpg") else "PNG")
        contents = {rgb: pixels.getvalue(), depth: encoded(name, metres)}
        if name == "diode":
            mask = io.BytesIO()
            np.save(mask, (metres > 0).astype(np.float32))
            contents[others[0]] = mask.getvalue()
        for path, content in contents.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        depths.append(metres)
    if packed:
        with tarfile.open(f"{folder}.tar", "w") as archive:
            archive.add(folder, ".")
        folder.rename(f"{folder}_unpacked")
    file = data_dir / "data_split" / LISTS[name]
    file.parent.mkdir(parents=True)
    lines = [LINES[name].format(i=i) for i in range(2)]
    file.write_text("\n".join([*lines, "a/missing.png None 721.5377"] if name == "kitti" else lines))
    return depths


@pytest.fixture
def small_eth3d(monkeypatch):
    monkeypatch.setattr(benchmarks, "ETH3D_SIZE", SIZES["eth3d"])


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
@pytest.mark.parametrize("name", BENCHMARKS)
def test_what_is_read_is_what_is_there(name, packed, tmp_path, small_eth3d):
    depths = make(name, tmp_path, packed)
    split = OfficialSplit(name, tmp_path, tmp_path / "data_split")
    assert len(split) == 2
    far = {"nyu_v2": 10, "kitti": 80, "scannet": 10}.get(name, np.inf)
    for index, metres in enumerate(depths):
        example = split[index]
        valid = (metres > 0) & (metres < far)
        if name == "nyu_v2":
            window = np.zeros_like(valid)
            window[45:471, 41:601] = True
        elif name == "kitti":  # 352 x 1216 at the bottom centre, and Eigen's window in it
            metres, valid = metres[23:, 13:1229], valid[23:, 13:1229]
            window = np.zeros_like(valid)
            window[117:321, 43:1172] = True
        else:
            window = np.ones_like(valid)
        np.testing.assert_array_equal(example["mask"][..., 0], valid & window)
        kept = example["mask"]
        half_a_unit = 0 if name in ("eth3d", "diode") else 0.5 / BENCHMARKS[name].source.units_per_metre
        np.testing.assert_allclose(example["depth"][kept], metres[kept[..., 0]], rtol=1e-6, atol=half_a_unit)
        assert example["rgb"].shape == (*metres.shape, 3)
        assert split.name_of(index) == LINES[name].format(i=index).split()[0]
    assert BENCHMARKS[name].official_name(split.name_of(0)) == OFFICIAL[name]


def test_eigen_s_window_is_the_papers_fractions():
    """Of 352 x 1216: rows .3324324 to .91351351, columns .0359477 to .96405229."""
    rows, columns = BENCHMARKS["kitti"].window
    assert rows == (int(0.3324324 * 352), int(0.91351351 * 352))
    assert columns == (int(0.0359477 * 1216), int(0.96405229 * 1216))


def test_the_fit_on_eth3d_sees_every_so_manieth_column():
    import torch

    row = torch.arange(6048, dtype=torch.float32).expand(1, 2, 6048)
    wanted = torch.nn.functional.interpolate(row, scale_factor=1024 / 6048, mode="nearest")[0, 0].numpy()
    np.testing.assert_array_equal(benchmarks.fitted_columns(6048, 1024), wanted)
    assert benchmarks.fitted_columns(640, 1024) == benchmarks.fitted_columns(640, None) == slice(None)


def test_published_scores_stand_under_their_test_set():
    assert benchmarks.published("kitti")["Marigold + E2E-FT, 1 step"] == pytest.approx((0.096, 0.919))
    assert benchmarks.published("diode")["Marigold v1-0, 50 steps, ensemble of 10"] == pytest.approx((0.308, 0.773))


@pytest.mark.parametrize("official", [False, True])
def test_saved_predictions_beside_the_papers(tmp_path, capsys, monkeypatch, official):
    depths = make("kitti", tmp_path, packed=True)
    monkeypatch.setitem(BENCHMARKS, "kitti", dataclasses.replace(BENCHMARKS["kitti"], count=2))
    for index, metres in enumerate(depths):
        name = LINES["kitti"].format(i=index).split()[0]
        path = BENCHMARKS["kitti"].official_name(name) if official else name.removesuffix(".png")
        file = tmp_path / "maps" / f"{path}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, (0.1 * metres[23:, 13:1229] + 3).astype(np.float32))
    flags = ["--dataset", "kitti", "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    flags += ["--predictions", str(tmp_path / "maps")]
    assert evaluate.main(flags) == 0
    assert (
        json.loads((tmp_path / "out" / "kitti" / "metrics.json").read_text())["abs_rel"] < 1e-3
    )  # depth is stored in 1/256 m
    output = capsys.readouterr().out
    assert "Marigold + E2E-FT, 1 step" in output and "-0.095" in output
    assert evaluate.main([*flags, "--limit", "1"]) == 0
    assert "not the papers' protocol: 1 images, the papers' split has 2" in capsys.readouterr().out


def test_what_is_missing_or_broken_is_named(tmp_path, capsys):
    make("scannet", tmp_path, packed=False)
    depth = tmp_path / BENCHMARKS["scannet"].container / "scene0406_02/depth/000301.png"
    depth.write_bytes(depth.read_bytes()[:100])
    split = OfficialSplit("scannet", tmp_path, tmp_path / "data_split")
    with pytest.raises(BadFrame, match=r"000301\.png"):
        split[1]
    rgb = Path(split.path) / split.name_of(1)
    rgb.unlink()
    with pytest.raises(BadFrame, match=r"missing file.*000301\.jpg"):
        split[1]
    for index in range(2):
        file = (tmp_path / "maps" / split.name_of(index)).with_suffix(".npy")
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.random.default_rng(index).random(SIZES["scannet"], np.float32))
    flags = ["--dataset", "scannet", "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    flags += ["--predictions", str(tmp_path / "maps")]
    assert evaluate.main(flags) == 1
    assert "1 images cannot be scored (missing file" in capsys.readouterr().err
    assert evaluate.main([*flags, "--allow_missing"]) == 0
    with pytest.raises(ValueError, match="wanted one filename list"):
        OfficialSplit("scannet", tmp_path, tmp_path)
    with pytest.raises(ValueError, match=r"neither .*diode_val\.tar nor"):
        OfficialSplit("diode", tmp_path, tmp_path)
