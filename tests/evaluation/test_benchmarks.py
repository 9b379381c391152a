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
from marigold_jax.data.raw_frame import BadFrame
from marigold_jax.evaluation import benchmarks
from marigold_jax.evaluation.benchmarks import BENCHMARKS
from marigold_jax.evaluation.official_split import OfficialSplit
from marigold_jax.evaluation.published import published_scores
from marigold_jax.evaluation.quantities import QUANTITIES

# Of each test set: how a line of its list looks, the size of its photographs, and where the list lies.
LINES = {
    "nyu_v2": "test/kitchen_0004/rgb_000{i}.png test/kitchen_0004/depth_000{i}.png test/kitchen_0004/filled_000{i}.png",
    "kitti": "2011_09_26/d_sync/image_02/data/000{i}.png d_sync/proj_depth/groundtruth/image_02/000{i}.png 721.5377",
    "eth3d": "rgb/office/images/dslr_images/DSC_{i}.JPG depth/office_dslr_depth/office/ground_truth_depth/DSC_{i}.JPG",
    "scannet": "scene0406_02/color/00030{i}.jpg scene0406_02/depth/00030{i}.png",
    "diode": "indoors/scene_1/0{i}.png indoors/scene_1/0{i}_depth.npy indoors/scene_1/0{i}_depth_mask.npy",
    "nyu_v2_normals": "00000{i}_img.png 00000{i}_normal.npy",
    "scannet_normals": "scene0001_01/00117{i}_img.png scene0001_01/00117{i}_normal.npy",
    "ibims_normals": "corridor_0{i}_img.png corridor_0{i}_normal.npy",
    "sintel_normals": "alley_2/frame_000{i}_img.png alley_2/frame_000{i}_normal.npy",
    "diode_normals": "outdoor/scene_00024/scan_00201/07{i}_030.png outdoor/scene_00024/scan_00201/07{i}_030_normal.npy",
    "oasis_normals": "26858{i}_ALI_img.png 26858{i}_ALI_normal.npy",
}
SIZES = {"nyu_v2": (480, 640), "kitti": (375, 1242), "eth3d": (40, 60), "scannet": (48, 64), "diode": (48, 64)}
LISTS = {
    "nyu_v2": "nyu_depth/labeled/filename_list_test.txt",
    "kitti": "kitti/eigen_test_files_with_gt.txt",
    "eth3d": "eth3d/eth3d_filename_list.txt",
    "scannet": "scannet_depth/scannet_val_sampled_list_800_1.txt",
    "diode": "diode/diode_val_all_filename_list.txt",
    "nyu_v2_normals": "nyu_normals/nyuv2_test.txt",
    "scannet_normals": "scannet_normals/scannet_test.txt",
    "ibims_normals": "ibims_normals/ibims_test.txt",
    "sintel_normals": "sintel_normals/sintel_filtered.txt",
    "diode_normals": "diode_normals/diode_test.txt",
    "oasis_normals": "oasis_normals/oasis_test.txt",
}
CONTAINERS = {  # of the normals, as the official configurations name them
    "nyu_v2_normals": "nyuv2/test",
    "scannet_normals": "scannet",
    "ibims_normals": "ibims/ibims",
    "sintel_normals": "sintel",
    "diode_normals": "diode/val",
    "oasis_normals": "oasis/val",
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
@pytest.mark.parametrize("name", SIZES)
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


def make_normals(name, data_dir, packed=False, size=(12, 16)):
    """Two images; returns their normals as they are stored, float64 of any length, zero where there is none."""
    random = np.random.default_rng(1)
    folder = data_dir / CONTAINERS[name]
    lines, truths = [LINES[name].format(i=i) for i in range(2)], []
    for line in lines:
        normals = random.normal(size=(*size, 3)) + np.float64([0, 0, 1.5])
        normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
        normals[2] *= 1.01
        normals[:2] = 0
        normals[3, :4] *= 0.05  # sky, in Sintel
        rgb, truth = line.split()
        (folder / rgb).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (*size, 3), np.uint8)).save(folder / rgb)
        np.save(folder / truth, normals)
        truths.append(normals)
    if packed:
        with tarfile.open(f"{folder}.tar", "w") as archive:
            archive.add(folder, ".")
        folder.rename(f"{folder}_unpacked")
    file = data_dir / "data_split" / LISTS[name]
    file.parent.mkdir(parents=True)
    file.write_text("\n".join(lines) + "\n")
    return truths


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
@pytest.mark.parametrize("name", CONTAINERS)
def test_normals_that_are_read_are_those_that_are_there(name, packed, tmp_path):
    truths = make_normals(name, tmp_path, packed)
    split = OfficialSplit(name, tmp_path, tmp_path / "data_split")
    assert len(split) == 2 and split.features == {"rgb", "normals"}
    for index, normals in enumerate(truths):
        example, length = split[index], np.linalg.norm(normals, axis=-1, keepdims=True)
        known = length > (0.1 if name == "sintel_normals" else 0)
        np.testing.assert_array_equal(QUANTITIES["normals"].valid(example), known)
        np.testing.assert_allclose(
            example["normals"], np.where(known, normals, 0) / np.where(known, length, 1), atol=1e-6
        )
        assert example["rgb"].shape == normals.shape and example["rgb"].dtype == np.uint8
        assert split.name_of(index) == LINES[name].format(i=index).split()[0]
    # The official inference keeps the photograph's name.
    assert f"{BENCHMARKS[name].official_name(split.name_of(0))}.png" == split.name_of(0)


def test_rows_of_normals_are_those_of_the_official_scripts():
    normals = {name: row for name, row in BENCHMARKS.items() if row.truth == "normals"}
    assert set(normals) == set(CONTAINERS)
    counts = {"nyu_v2": 654, "scannet": 300, "ibims": 100, "sintel": 1064, "diode": 771, "oasis": 9999}
    assert {name.removesuffix("_normals"): row.count for name, row in normals.items()} == counts
    assert {name for name, row in normals.items() if row.seed == 4321} == {"nyu_v2_normals", "ibims_normals"}
    large = {name for name, row in normals.items() if row.processing_resolution == 768}
    assert large == {"diode_normals", "oasis_normals"}


def test_eigen_s_window_is_the_papers_fractions():
    """Of 352 x 1216: rows .3324324 to .91351351, columns .0359477 to .96405229."""
    rows, columns = BENCHMARKS["kitti"].window
    assert rows == (int(0.3324324 * 352), int(0.91351351 * 352))
    assert columns == (int(0.0359477 * 1216), int(0.96405229 * 1216))


def test_published_scores_stand_under_their_test_set():
    assert published_scores("kitti")["Marigold + E2E-FT, 1 step"] == pytest.approx((0.096, 0.919))
    assert published_scores("diode")["Marigold v1-0, 50 steps, ensemble of 10"] == pytest.approx((0.308, 0.773))
    assert published_scores("ibims_normals")["Marigold + E2E-FT, 1 step"] == pytest.approx((15.8, 0.699))
    assert published_scores("sintel_normals")["GeoWizard + E2E-FT, 1 step"] == pytest.approx((33.4, 0.224))
    assert published_scores("diode_normals") == {}


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


def test_the_robust_alignment_is_not_the_papers(tmp_path, capsys, monkeypatch):
    depths = make("diode", tmp_path, packed=False)
    monkeypatch.setitem(BENCHMARKS, "diode", dataclasses.replace(BENCHMARKS["diode"], count=2))
    for index, metres in enumerate(depths):
        file = (tmp_path / "maps" / LINES["diode"].format(i=index).split()[0]).with_suffix(".npy")
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, (0.5 * np.log1p(metres) - 0.1).astype(np.float32))
    flags = ["--dataset", "diode", "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    flags += ["--predictions", str(tmp_path / "maps")]
    assert evaluate.main([*flags, "--alignment", "ransac_log"]) == 0
    output = capsys.readouterr().out
    assert "not the papers' protocol: --alignment ransac_log" in output and "published" not in output
    assert "ransac_log: scale and shift to log(1 + depth), by the best of 1000 pairs" in output
    summary = json.loads((tmp_path / "out" / "diode" / "metrics.json").read_text())
    assert "1000 pairs" in summary["remark"] and summary["settings"]["alignment"] == "ransac_log"
    # Metres from 0.3 to 200, of which those below 0.6 are clipped: but for these the fit is exact.
    assert summary["abs_rel"] < 1e-2
    assert evaluate.main(flags) == 0
    assert "Marigold + E2E-FT, 1 step" in capsys.readouterr().out


@pytest.mark.parametrize("official", [False, True], ids=["channels last", "channels first, x left"])
def test_saved_normals_beside_the_papers(tmp_path, capsys, monkeypatch, official):
    name = "nyu_v2_normals"
    truths = make_normals(name, tmp_path)
    monkeypatch.setitem(BENCHMARKS, name, dataclasses.replace(BENCHMARKS[name], count=2))
    random, angles = np.random.default_rng(2), []
    for index, normals in enumerate(truths):
        prediction = (normals + 0.2 * (index + 1) * random.normal(size=normals.shape)).astype(np.float32)
        known = np.linalg.norm(normals, axis=-1) > 0
        a, b = prediction[known].astype(np.float64), normals[known]
        cosines = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
        angles.append(np.degrees(np.arccos(np.clip(cosines, -1, 1))))
        file = (tmp_path / "maps" / LINES[name].format(i=index).split()[0]).with_suffix(".npy")
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, (prediction * np.float32([-1, 1, 1])).transpose(2, 0, 1) if official else prediction)
    flags = ["--dataset", name, "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    flags += ["--predictions", str(tmp_path / "maps"), *(["--normals_convention", "x_left"] if official else [])]
    assert evaluate.main(flags) == 0
    summary = json.loads((tmp_path / "out" / name / "metrics.json").read_text())
    together = np.concatenate(angles)
    assert summary["median"] == pytest.approx(np.mean([np.median(one) for one in angles]), abs=1e-4)  # truth is float32
    assert summary["all_pixels"]["median"] == pytest.approx(np.median(together), abs=1e-4)
    assert summary["all_pixels"]["mean"] == pytest.approx(together.mean(), abs=1e-4)
    output = capsys.readouterr().out
    difference = f"{together.mean() - 16.2:+.4f}"
    assert any("Marigold + E2E-FT" in line and difference in line for line in output.splitlines())
    assert "Published normals: all pixels together" in output
    assert evaluate.main([*flags, "--limit", "1"]) == 0
    assert "not the papers' protocol: 1 images" in capsys.readouterr().out


def test_what_is_missing_or_broken_of_normals_is_named(tmp_path, capsys):
    make_normals("diode_normals", tmp_path)
    split = OfficialSplit("diode_normals", tmp_path, tmp_path / "data_split")
    truth = Path(split.path) / LINES["diode_normals"].format(i=1).split()[1]
    np.save(truth, np.zeros((12, 16)))
    with pytest.raises(BadFrame, match=r"unreadable normals.*071_030_normal\.npy: wanted normals of shape"):
        split[1]
    np.save(truth, np.ones((13, 16, 3)))
    with pytest.raises(BadFrame, match="size mismatch"):
        split[1]
    maps = tmp_path / "maps"
    for index in range(2):
        file = (maps / split.name_of(index)).with_suffix(".npy")
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.ones((12, 16), np.float32))
    flags = ["--dataset", "diode_normals", "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    assert evaluate.main([*flags, "--predictions", str(maps)]) == 1
    assert "wanted predictions with the channels of normals (3); they have 1" in capsys.readouterr().err


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
    assert "1 images cannot be scored (unreadable depth" in capsys.readouterr().err
    (Path(split.path) / split.name_of(0)).unlink()  # maps are scored without photographs, and drawn with them
    assert evaluate.main([*flags, "--allow_missing"]) == 0
    assert not (tmp_path / "out" / "scannet" / "worst.png").exists()
    with pytest.raises(ValueError, match="wanted one filename list"):
        OfficialSplit("scannet", tmp_path, tmp_path)
    with pytest.raises(ValueError, match=r"wanted .*diode_val\.tar or a folder .*; found neither"):
        OfficialSplit("diode", tmp_path, tmp_path)


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
@pytest.mark.parametrize("name", ["../../up.png", "/tmp/absolute.png"])
def test_a_list_names_nothing_outside(name, packed, tmp_path, capsys):
    make("scannet", tmp_path, packed)
    file = tmp_path / "data_split" / LISTS["scannet"]
    for line in (f"{name} scene0406_02/depth/000300.png", f"scene0406_02/color/000300.jpg {name}"):
        file.write_text(f"{LINES['scannet'].format(i=1)}\n{line}\n")
        flags = ["--dataset", "scannet", "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]
        for more in ([], ["--predictions", str(tmp_path), "--allow_missing"]):
            assert evaluate.main([*flags, *more]) == 1
            (error,) = capsys.readouterr().err.splitlines()
            assert file.name in error and "wanted relative names, without '..'" in error
        assert not (tmp_path / "out").exists()


def test_a_list_with_too_few_columns_is_one_line(tmp_path):
    make("diode", tmp_path, packed=False)
    file = tmp_path / "data_split" / LISTS["diode"]
    file.write_text("a.png a_depth.npy\n")
    with pytest.raises(ValueError, match=r"filename_list\.txt: wanted 3 columns; 'a\.png' has fewer"):
        OfficialSplit("diode", tmp_path, tmp_path / "data_split")


def test_only_regular_files_and_whole_members_are_read(tmp_path):
    import os

    make("scannet", tmp_path, packed=False)
    split = OfficialSplit("scannet", tmp_path, tmp_path / "data_split")
    path = Path(split.path) / split.name_of(0)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BadFrame, match="found a FIFO"):
        split[0]
    make("kitti", tmp_path, packed=True)
    packed = OfficialSplit("kitti", tmp_path, tmp_path / "data_split")
    with open(packed.path, "r+b") as archive:
        archive.truncate(Path(packed.path).stat().st_size // 3)
    with pytest.raises((BadFrame, ValueError), match=r"truncated file|missing file|not a complete tar"):
        packed[1]


def test_a_name_without_a_number_is_no_traceback():
    assert BENCHMARKS["nyu_v2"].official_name("a/rgb0001.png") == "a/pred_rgb0001"
