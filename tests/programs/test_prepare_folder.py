"""Anybody's folder of RGB images and depth maps: every file format, masks, normals, and what can be wrong."""

import json

import numpy as np
import OpenEXR
import pytest
from PIL import Image

from marigold_jax import prepare
from marigold_jax.data.prepared import PreparedSplit

HEIGHT, WIDTH = 12, 17


def depth_in_mm(seed=0):
    return np.random.default_rng(seed).integers(500, 60000, (HEIGHT, WIDTH), dtype=np.uint16)


def save_pfm(path, array, little_endian=True):
    values = array[::-1].astype("<f4" if little_endian else ">f4")
    path.write_bytes(f"Pf\n{WIDTH} {HEIGHT}\n{-1.0 if little_endian else 1.0}\n".encode() + values.tobytes())


def save_exr(path, channels):
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {name: np.ascontiguousarray(values) for name, values in channels.items()}).write(str(path))


@pytest.fixture
def raw(tmp_path):
    """Two frames with 16-bit depth, one of them in a folder of its own."""
    root = tmp_path / "mine"
    random = np.random.default_rng(0)
    for seed, stem in enumerate(("a/1.5", "b")):
        for folder in ("rgb", "depth"):
            (root / folder / stem).parent.mkdir(parents=True, exist_ok=True)
        rgb = random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(rgb).save(root / "rgb" / f"{stem}.png")
        Image.fromarray(depth_in_mm(seed)).save(root / "depth" / f"{stem}.png")
    return root


def run(raw, data_dir, *flags, unit=("--unit", "mm")):
    return prepare.main(["folder", "--raw_dir", str(raw), "--data_dir", str(data_dir), "--workers", "1", *unit, *flags])


def remarks(data_dir):
    return [json.loads(line) for line in open(data_dir / "rgbd" / "mine" / "report-train.jsonl")]


def test_pairs_by_stem(raw, tmp_path):
    assert run(raw, tmp_path) == 0
    split = PreparedSplit(f"{tmp_path}/mine/train")
    assert [split.name_of(index) for index in range(2)] == ["rgb/a/1.5.png", "rgb/b.png"]
    for index in range(2):
        example = split[index]
        np.testing.assert_array_equal(example["rgb"], np.asarray(Image.open(raw / split.name_of(index))))
        np.testing.assert_array_equal(example["depth"][..., 0], (depth_in_mm(index) / 1000).astype(np.float32))
        assert example["mask"].all() and "normals" not in example
    assert split.size is None and remarks(tmp_path) == []


def test_pairs_by_filename_list(raw, tmp_path):
    names = tmp_path / "list.txt"
    names.write_text("rgb/b.png depth/a/1.5.png 721.5\nrgb/a/1.5.png depth/none.png\n")
    assert run(raw, tmp_path, "--filename_list", str(names), "--name", "listed") == 0
    split = PreparedSplit(f"{tmp_path}/listed/train")
    assert len(split) == 1 and split.name_of(0) == "rgb/b.png"
    np.testing.assert_allclose(split[0]["depth"][..., 0], depth_in_mm(0) / 1000, rtol=1e-6)


@pytest.mark.parametrize(
    "unit, metres",
    [(("--unit", "m"), 1), (("--unit", "cm"), 100), (("--unit", "mm"), 1000), (("--depth_scale", "256"), 256)],
)
def test_units(raw, tmp_path, unit, metres):
    assert run(raw, tmp_path, unit=unit) == 0
    depth = PreparedSplit(f"{tmp_path}/mine/train")[0]["depth"][..., 0]
    np.testing.assert_allclose(depth, depth_in_mm(0) / metres, rtol=1e-6)


METRES = (depth_in_mm(1) / 1000).astype(np.float32)
FORMATS = {
    "float32.npy": lambda path: np.save(path, METRES),
    "float64.npy": lambda path: np.save(path, METRES[..., None].astype(np.float64)),
    "little.pfm": lambda path: save_pfm(path, METRES),
    "big.pfm": lambda path: save_pfm(path, METRES, little_endian=False),
    "z.exr": lambda path: save_exr(path, {"Z": METRES}),
    "any.exr": lambda path: save_exr(path, {"depth": METRES}),
    "rgb.exr": lambda path: save_exr(path, {"RGB": np.repeat(METRES[..., None], 3, axis=-1)}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_float_formats_are_kept_to_the_bit(raw, tmp_path, name):
    (raw / "depth" / "b.png").unlink()
    FORMATS[name](raw / "depth" / f"b.{name.rsplit('.')[-1]}")
    assert run(raw, tmp_path, unit=("--unit", "m")) == 0
    split = PreparedSplit(f"{tmp_path}/mine/train")
    assert len(split) == 2, remarks(tmp_path)
    np.testing.assert_array_equal(split[1]["depth"][..., 0], METRES)
    np.testing.assert_array_equal(split[0]["depth"][..., 0], depth_in_mm(0).astype(np.float32))  # PNG among floats


def test_unknown_depth_and_range(raw, tmp_path):
    (raw / "depth" / "b.png").unlink()
    depth = METRES.copy()
    depth[0, :5] = [np.nan, np.inf, -np.inf, 0, -1]
    depth[1, :2] = [0.2, 70]
    np.save(raw / "depth" / "b.npy", depth)
    assert run(raw, tmp_path, "--min_depth", "0.25", "--max_depth", "65", unit=("--unit", "m")) == 0
    example = PreparedSplit(f"{tmp_path}/mine/train")[0]
    assert np.isfinite(example["depth"]).all()
    want = np.isfinite(depth) & (depth > 0.25) & (depth < 65)
    np.testing.assert_array_equal(example["mask"][..., 0], want)
    assert example["rgb"].shape == (HEIGHT, WIDTH, 3)


def test_masks_and_normals(raw, tmp_path):
    random = np.random.default_rng(2)
    mask = random.random((HEIGHT, WIDTH)) < 0.5
    normals = random.normal(size=(HEIGHT, WIDTH, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    (raw / "mask" / "a").mkdir(parents=True)
    (raw / "normals" / "a").mkdir(parents=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(raw / "mask" / "a" / "1.5.png")
    np.save(raw / "mask" / "b.npy", mask)
    np.save(raw / "normals" / "a" / "1.5.npy", normals)
    Image.fromarray(np.rint((normals + 1) / 2 * 255).astype(np.uint8)).save(raw / "normals" / "b.png")
    assert run(raw, tmp_path) == 0
    split = PreparedSplit(f"{tmp_path}/mine/train")
    for index, tolerance in ((0, 3e-5), (1, 0.01)):
        np.testing.assert_array_equal(split[index]["mask"][..., 0], mask)
        np.testing.assert_allclose(split[index]["normals"], normals, atol=tolerance)


def test_jpeg_is_kept_and_other_pictures_become_png(raw, tmp_path):
    image = Image.open(raw / "rgb" / "b.png")
    image.save(raw / "rgb" / "b.jpg", quality=60)
    Image.open(raw / "rgb" / "a" / "1.5.png").save(raw / "rgb" / "a" / "1.5.bmp")
    (raw / "rgb" / "b.png").unlink()
    (raw / "rgb" / "a" / "1.5.png").unlink()
    assert run(raw, tmp_path) == 0
    split = PreparedSplit(f"{tmp_path}/mine/train")
    np.testing.assert_array_equal(split[0]["rgb"], np.asarray(Image.open(raw / "rgb" / "a" / "1.5.bmp")))
    np.testing.assert_array_equal(split[1]["rgb"], np.asarray(Image.open(raw / "rgb" / "b.jpg")))


def _truncated_rgb(root):
    path = root / "rgb" / "b.png"
    path.write_bytes(path.read_bytes()[:300])


def _replace_depth(root, name, content):
    (root / "depth" / "b.png").unlink()
    (root / "depth" / name).write_bytes(content)


def _wrong_size(root):
    Image.fromarray(depth_in_mm()[:5]).save(root / "depth" / "b.png")


def _colour_depth(root):
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "depth" / "b.png")


def _all_zero(root):
    Image.fromarray(np.zeros_like(depth_in_mm())).save(root / "depth" / "b.png")


BROKEN = [
    (_truncated_rgb, "unreadable image"),
    (_wrong_size, "size mismatch"),
    (_colour_depth, "depth is not a 16-bit grey PNG"),
    (_all_zero, "no valid depth"),
    (lambda root: (root / "depth" / "b.png").unlink(), "missing file"),
    (lambda root: (root / "depth" / "b.png").write_bytes(b""), "truncated file"),
    (lambda root: (root / "depth" / "b.png").write_bytes(b"not a picture"), "unreadable image"),
    (lambda root: _replace_depth(root, "b.txt", b"1 2 3"), "unknown file type"),
    (lambda root: _replace_depth(root, "b.npy", b"\x93NUMPY"), "unreadable array"),
    (
        lambda root: np.save(root / "depth" / "b.npy", np.zeros(3)) or (root / "depth" / "b.png").unlink(),
        "unreadable array",
    ),
    (lambda root: _replace_depth(root, "b.pfm", b"Pf\n17 12\n-1.0\n1234"), "unreadable PFM"),
    (lambda root: _replace_depth(root, "b.exr", b"exr"), "unreadable EXR"),
    (lambda root: (root / "mask").mkdir() or np.save(root / "mask" / "b.npy", np.zeros((HEIGHT, WIDTH))), None),
]


@pytest.mark.slow
@pytest.mark.parametrize("damage, reason", BROKEN)
def test_broken_frames_are_left_out_and_reported(raw, tmp_path, capfd, damage, reason):
    damage(raw)
    status = run(raw, tmp_path)
    found = {remark["frame"]: remark["reason"] for remark in remarks(tmp_path)}
    if reason is None:  # no mask beside one, nothing valid in the other: there is nothing to make
        assert status == 1 and found == {"rgb/a/1.5.png": "missing file", "rgb/b.png": "no valid depth"}
        assert "no dataset was made: not one of the 2 frames can be used" in capfd.readouterr().err
        assert not (tmp_path / "rgbd" / "mine" / "1.0.0").exists()
    else:
        assert status == 0 and found == {"rgb/b.png": reason}
        assert len(PreparedSplit(f"{tmp_path}/mine/train")) == 1


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--min_depth", "5", "--max_depth", "5"], "--min_depth from 0 to below --max_depth"),
        (["--workers", "0"], "--workers must be at least 1; got 0"),
        (["--name", "a/b"], "--name must consist of letters, digits, _ and -; got 'a/b'"),
    ],
)
def test_bad_flags(raw, tmp_path, capsys, flags, message):
    assert run(raw, tmp_path, *flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("prepare: ")


def test_bad_folders(raw, tmp_path, capsys):
    assert run(tmp_path / "nowhere", tmp_path) == 2
    assert f"--raw_dir {tmp_path}/nowhere is not a folder" in capsys.readouterr().err
    assert run(raw / "rgb", tmp_path) == 2
    assert "must have the folders rgb and depth; there is no rgb" in capsys.readouterr().err
    (raw / "rgb" / "b.png").unlink()
    (raw / "rgb" / "a" / "1.5.png").unlink()
    assert run(raw, tmp_path) == 2
    assert "holds no images" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, message",
    [("", "the filename list is empty"), ("rgb/a.png depth/a.png\nrgb/b.png\n", "line 2 is 'rgb/b.png'")],
)
def test_bad_filename_lists(raw, tmp_path, capsys, content, message):
    names = tmp_path / "list.txt"
    names.write_text(content)
    assert run(raw, tmp_path, "--filename_list", str(names)) == 2
    assert message in capsys.readouterr().err


def test_the_unit_must_be_stated(raw, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run(raw, tmp_path, unit=())
    assert caught.value.code == 2 and "one of the arguments --unit --depth_scale is required" in capsys.readouterr().err
