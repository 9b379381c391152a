"""Virtual KITTI 2 from archives and from folders in the published layout."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from marigold_jax import prepare
from marigold_jax.data.loader import make_loader
from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.data.targets import NORMALS

FRAMES = [
    ("Scene02/clone", "Camera_0", 0),
    ("Scene02/clone", "Camera_1", 0),
    ("Scene06/15-deg-left", "Camera_0", 3),
    ("Scene02/fog", "Camera_0", 0),  # a variation that the paper does not use
    ("Scene01/sunset", "Camera_0", 7),  # validation
]


def encode(array, extension):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, {"jpg": "JPEG", "png": "PNG"}[extension])
    return buffer.getvalue()


def files():
    random = np.random.default_rng(0)
    contents = {}
    for folder, camera, number in FRAMES:
        rgb = np.kron(random.integers(0, 256, (25, 54, 3), dtype=np.uint8), np.ones((15, 23, 1), np.uint8))
        depth = random.integers(300, 9000, (375, 1242)).astype(np.uint16)
        depth[:100] = 65535  # sky
        contents[f"{folder}/frames/rgb/{camera}/rgb_{number:05d}.jpg"] = encode(rgb, "jpg")
        contents[f"{folder}/frames/depth/{camera}/depth_{number:05d}.png"] = encode(depth, "png")
    return contents


def write_tar(path, contents, prefix=""):
    with tarfile.open(path, "w") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def archives(root):
    contents = files()
    write_tar(root / "vkitti_2.0.3_rgb.tar", {name: c for name, c in contents.items() if name.endswith("jpg")})
    write_tar(root / "vkitti_2.0.3_depth.tar", {name: c for name, c in contents.items() if name.endswith("png")})
    write_tar(root / "vkitti_2.0.3_classSegmentation.tar", {"Scene02/clone/frames/rgb/Camera_0/rgb_00009.jpg": b"no"})


def one_archive(root):
    """As the official repository packs it: rgb/ and depth/ on top, and every name begins with ./"""
    contents = files()
    top = {f"{'rgb' if name.endswith('jpg') else 'depth'}/{name}": content for name, content in contents.items()}
    write_tar(root / "vkitti.tar", top, prefix="./")


def folders(root):
    for name, content in files().items():
        path = root / ("vkitti_2.0.3_rgb" if name.endswith("jpg") else "vkitti_2.0.3_depth") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def run(raw, data_dir, *flags):
    return prepare.main(
        ["virtual_kitti_2", "--raw_dir", str(raw), "--data_dir", str(data_dir), "--workers", "1", *flags]
    )


def report(data_dir, split="train"):
    return [json.loads(line) for line in open(data_dir / "rgbd" / "virtual_kitti_2" / f"report-{split}.jsonl")]


@pytest.fixture
def raw(tmp_path):
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


@pytest.mark.slow
@pytest.mark.parametrize("layout", [archives, one_archive, folders])
def test_every_layout_gives_the_same_untouched_files(raw, tmp_path, capsys, layout):
    layout(raw)
    assert run(raw, tmp_path) == 0
    assert "has 3 of the 20148 frames of the paper's train split" in capsys.readouterr().out
    split = PreparedSplit(f"{tmp_path}/virtual_kitti_2/train")
    contents = files()
    assert [split.name_of(index) for index in range(len(split))] == [
        "Scene02/clone/frames/rgb/Camera_0/rgb_00000.jpg",
        "Scene02/clone/frames/rgb/Camera_1/rgb_00000.jpg",
        "Scene06/15-deg-left/frames/rgb/Camera_0/rgb_00003.jpg",
    ]
    for index in range(len(split)):
        name = split.name_of(index)
        depth = contents[name.replace("/rgb/", "/depth/").replace("rgb_", "depth_").replace("jpg", "png")]
        example = split[index]
        centimetres = np.asarray(Image.open(io.BytesIO(depth)))[23:, 13:1229]
        np.testing.assert_array_equal(example["depth"][..., 0], (centimetres / 100.0).astype(np.float32))
        np.testing.assert_array_equal(example["mask"][..., 0], centimetres < 8000)
        np.testing.assert_array_equal(example["rgb"], np.asarray(Image.open(io.BytesIO(contents[name])))[23:, 13:1229])
    assert run(raw, tmp_path, "--split", "val") == 0
    assert PreparedSplit(f"{tmp_path}/virtual_kitti_2/val").name_of(0).startswith("Scene01/sunset")


def test_the_loader_serves_the_benchmark_window(raw, tmp_path):
    archives(raw)
    run(raw, tmp_path)
    loader = make_loader([(f"{tmp_path}/virtual_kitti_2/train", 1)], batch_size=2, seed=0)
    batch = next(loader)
    loader.close()
    assert batch["rgb"].shape == (2, 352, 1216, 3)
    assert (batch["target"][:, :70] == 1).all() and not batch["mask"][:, :70].any()  # the sky is far


def test_normals_come_from_depth(raw, tmp_path):
    """A road 1.5 m below the camera, and the sky."""
    folders(raw)
    down = (np.arange(375) - 187) / 725.0087
    road = np.where(down > 1.5 / 300, 1.5 / np.maximum(down, 1e-9) * 100, 65535)
    png = encode(np.broadcast_to(np.rint(road)[:, None], (375, 1242)).astype(np.uint16), "png")
    for path in raw.glob("*depth/**/*.png"):
        path.write_bytes(png)
    assert run(raw, tmp_path, "--normals", "--limit", "1") == 0
    example = PreparedSplit(f"{tmp_path}/virtual_kitti_2/train")[0]
    mask = example["mask"][..., 0]
    known = example["normals"].any(axis=-1)
    assert known[mask].mean() > 0.95 and not known[:100].any()
    angles = np.degrees(np.arccos(np.clip(example["normals"][mask & known] @ [0, 1, 0], -1, 1)))
    assert angles.mean() < 0.5
    loader = make_loader([(f"{tmp_path}/virtual_kitti_2/train", 1)], batch_size=1, seed=0, target=NORMALS)
    batch = next(loader)
    loader.close()
    np.testing.assert_array_equal(batch["mask"][..., 0], batch["mask"][..., 0] & batch["normals"].any(axis=-1))


def test_official_filename_list(raw, tmp_path):
    archives(raw)
    names = tmp_path / "list.txt"
    line = "rgb/{0}/frames/rgb/Camera_0/rgb_{1}.jpg {2}"
    depth = "depth/Scene02/fog/frames/depth/Camera_0/depth_00000.png"
    names.write_text(
        f"{line.format('Scene02/fog', '00000', depth)}\n"
        f"{line.format('Scene02/clone', '00000', 'None')}\n"
        f"{line.format('Scene20/clone', '00005', 'depth/Scene20/clone/frames/depth/Camera_0/depth_00005.png')}\n"
    )
    assert run(raw, tmp_path, "--filename_list", str(names)) == 0
    split = PreparedSplit(f"{tmp_path}/virtual_kitti_2/train")
    assert len(split) == 1 and split.name_of(0) == "Scene02/fog/frames/rgb/Camera_0/rgb_00000.jpg"
    assert [remark["reason"] for remark in report(tmp_path)] == ["missing file"]


def test_a_truncated_archive_loses_only_what_is_behind_its_end(raw, tmp_path, capsys):
    archives(raw)
    path = raw / "vkitti_2.0.3_depth.tar"
    with tarfile.open(path) as archive:
        second = archive.getmembers()[1]
    path.write_bytes(path.read_bytes()[: second.offset_data + second.size // 2])
    assert run(raw, tmp_path) == 0
    assert len(PreparedSplit(f"{tmp_path}/virtual_kitti_2/train")) == 1
    assert {remark["reason"] for remark in report(tmp_path)} == {"truncated file", "missing file"}
    assert "left out 2 of 3 frames" in capsys.readouterr().out


def _missing_rgb(root):
    next(root.glob("*rgb/Scene02/clone/frames/rgb/Camera_1/*")).unlink()


def _truncated_jpeg(root):
    path = next(root.glob("*rgb/Scene02/clone/frames/rgb/Camera_1/*"))
    path.write_bytes(path.read_bytes()[:2000])


def _eight_bit_depth(root):
    path = next(root.glob("*depth/Scene02/clone/frames/depth/Camera_1/*"))
    path.write_bytes(encode(np.zeros((375, 1242), np.uint8), "png"))


def _only_sky(root):
    path = next(root.glob("*depth/Scene02/clone/frames/depth/Camera_1/*"))
    path.write_bytes(encode(np.full((375, 1242), 65535, np.uint16), "png"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage, reason",
    [
        (_missing_rgb, "missing file"),
        (_truncated_jpeg, "unreadable image"),
        (_eight_bit_depth, "depth is not a 16-bit grey PNG"),
        (_only_sky, "no valid depth"),
    ],
)
def test_broken_frames_are_left_out_and_reported(raw, tmp_path, damage, reason):
    folders(raw)
    damage(raw)
    assert run(raw, tmp_path) == 0
    (remark,) = report(tmp_path)
    assert (remark["frame"], remark["reason"]) == ("Scene02/clone/frames/rgb/Camera_1/rgb_00000.jpg", reason)
    assert len(PreparedSplit(f"{tmp_path}/virtual_kitti_2/train")) == 2


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--split", "test"], "Virtual KITTI 2 has the splits train, val; got 'test'"),
        ([], "holds no frames of the train split"),
    ],
)
def test_bad_usage(raw, tmp_path, capsys, flags, message):
    assert run(raw, tmp_path, *flags) == 2
    assert message in capsys.readouterr().err
