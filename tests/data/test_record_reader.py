"""Prepared datasets of others: nothing in their folder is run, and what is damaged costs one line that names it."""

import json
import os
import shutil
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from marigold_jax import prepare
from marigold_jax.data.loader import make_loader
from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.data.record import to_png
from marigold_jax.data.split_writer import WRITER_OPTIONS

FRAMES = 18  # two shards


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    raw = root / "raw"
    random = np.random.default_rng(0)
    for folder in ("rgb", "depth", "normals"):
        (raw / folder).mkdir(parents=True)
    for index in range(FRAMES):
        Image.fromarray(random.integers(0, 256, (8, 16, 3), np.uint8)).save(raw / "rgb" / f"{index:02d}.png")
        Image.fromarray(random.integers(1000, 9000, (8, 16), np.uint16)).save(raw / "depth" / f"{index:02d}.png")
        np.save(raw / "normals" / f"{index:02d}.npy", random.normal(size=(8, 16, 3)).astype(np.float32))
    flags = ["folder", "--raw_dir", raw, "--data_dir", root / "data", "--name", "mine", "--unit", "mm", "--workers", 1]
    assert prepare.main(list(map(str, flags))) == 0
    return root / "data"


@pytest.fixture
def data(whole, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "data"))


def folder_of(data):
    return data / "rgbd" / "mine" / "1.0.0"


def open_split(data):
    return PreparedSplit(f"{data}/mine/train")


def change(file, *keys, value):
    """Sets, or with `...` removes, what lies under these keys of a JSON file."""
    content = json.loads(file.read_text())
    node = content
    for key in keys[:-1]:
        node = node[key]
    if value is ...:
        del node[keys[-1]]
    else:
        node[keys[-1]] = value
    file.write_text(json.dumps(content))


def refused(data, *words):
    """One line that has all these words, from every way to open a dataset."""
    for attempt in (lambda: open_split(data), lambda: make_loader([(f"{data}/mine/train", 1)], batch_size=1, seed=0)):
        with pytest.raises(ValueError, match=r".") as caught:
            attempt()
        assert "\n" not in str(caught.value)
        assert all(word in str(caught.value) for word in words), caught.value


# ------------------------------------------------------------------------------------------------------ what is opened

PLACES = [
    ("pythonClassName",),
    ("featuresDict", "features", "rgb", "pythonClassName"),
    ("featuresDict", "features", "name", "pythonClassName"),
    ("featuresDict", "features", "more", "pythonClassName"),
    ("featuresDict", "features", "more", "featuresDict", "features", "deep", "pythonClassName"),
    ("featuresDict", "features", "more", "sequence", "feature", "python_class_name"),
]


@pytest.mark.parametrize("keys", PLACES, ids=lambda keys: keys[-2] if len(keys) > 1 else "top")
def test_no_module_that_a_dataset_names_is_imported(data, tmp_path, monkeypatch, capsys, keys):
    (tmp_path / "harmless.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nclass Feature: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    content = json.loads((folder_of(data) / "features.json").read_text())
    node = content
    for key in keys[:-1]:
        node = node.setdefault(key, {})
    node[keys[-1]] = "harmless.Feature"
    (folder_of(data) / "features.json").write_text(json.dumps(content))
    refused(data, "features.json", "pythonClassName" if "N" in keys[-1] else "python_class_name", "harmless.Feature")
    flags = ["folder", "--raw_dir", str(data / ".." / "raw"), "--data_dir", str(data), "--name", "mine", "--unit", "mm"]
    (tmp_path / "raw" / "rgb").mkdir(parents=True)
    (tmp_path / "raw" / "depth").mkdir()
    for folder, pixels in (("rgb", np.zeros((8, 16, 3), np.uint8)), ("depth", np.ones((8, 16), np.uint16))):
        Image.fromarray(pixels).save(tmp_path / "raw" / folder / "1.png")
    assert prepare.main([*flags, "--split", "val", "--workers", "1"]) == 2
    assert "harmless.Feature" in (error := capsys.readouterr().err) and len(error.splitlines()) == 1
    assert "harmless" not in sys.modules and not (tmp_path / "mark").exists()


@pytest.mark.parametrize("key, value", [("moduleName", "harmless"), ("configName", "../../x"), ("version", "9.9.9")])
def test_what_else_an_index_says_is_not_believed(data, tmp_path, monkeypatch, key, value):
    (tmp_path / "harmless.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    change(folder_of(data) / "dataset_info.json", key, value=value)
    assert len(open_split(data)) == FRAMES and open_split(data)[0]["rgb"].shape == (8, 16, 3)
    assert "harmless" not in sys.modules and not (tmp_path / "mark").exists()


FEATURES = ("featuresDict", "features")
DAMAGED = [
    ("metadata.json", ("units_per_metre",), [0, -1, float("nan"), float("inf"), "1000", None, True, [1], 1e300, ...]),
    ("metadata.json", ("min_depth",), [-1, float("nan"), float("inf"), "0", None, {}, ...]),
    ("metadata.json", ("max_depth",), [0, -5, float("nan"), "far", 1e-5, None, ...]),
    ("metadata.json", ("crop",), ["kitti", 3, None, ["none"], {}, ...]),
    ("metadata.json", ("size",), [[0, 0], [10**9, 10**9], [480], [480, 640, 3], "480x640", [1.5, 2], [True, 8], 8, {}]),
    ("features.json", ("featuresDict",), [[], "x", None, {}, ...]),
    ("features.json", ("featuresDict", "features"), [[], {}, 3]),
    ("features.json", (*FEATURES, "rgb"), [..., None, [], {}, "Image"]),
    ("features.json", (*FEATURES, "depth"), [..., 3]),
    ("features.json", (*FEATURES, "name"), [...]),
    ("features.json", (*FEATURES, "normals"), [None, [], {}]),
    ("features.json", (*FEATURES, "depth", "image"), [..., {}, []]),
    ("features.json", (*FEATURES, "depth", "image", "dtype"), ["float64", 3, ["uint16"]]),
    ("features.json", (*FEATURES, "depth", "image", "shape", "dimensions"), [["-1", "-1", "4"], [], 3, ["-1", "-1"]]),
    ("features.json", (*FEATURES, "normals", "tensor", "encoding"), [..., "bytes", 3]),
    ("dataset_info.json", ("name",), ["../../other", 3, ..., None]),
    ("dataset_info.json", ("fileFormat",), ["tfrecord", "riegeli", 3, ...]),
    ("dataset_info.json", ("splits",), [{}, "train", [3], [None], [{}]]),
    ("dataset_info.json", ("splits", 0, "name"), ["../train", "", 3, ..., "/etc/passwd"]),
    (
        "dataset_info.json",
        ("splits", 0, "shardLengths"),
        ["16", {}, [-1], ["x"], [1.5], [None], [16, True], ["1" * 30]],
    ),
    ("dataset_info.json", ("splits", 0, "numBytes"), ["many", -3, 1.5, None, []]),
    ("dataset_info.json", ("splits", 0, "filepathTemplate"), ["../{SPLIT}", "/etc/passwd", 3, ["x"], "{0.__class__}"]),
]


@pytest.mark.parametrize("file, keys, values", DAMAGED, ids=lambda value: value if isinstance(value, str) else None)
def test_a_damaged_key_is_named(whole, data, file, keys, values):
    path = folder_of(data) / file
    for value in values:
        shutil.copy(folder_of(whole) / file, path)
        change(path, *keys, value=value)
        named = "" if value == {} and file == "features.json" else keys[-1]
        refused(data, str(path), named if isinstance(named, str) else "")


@pytest.mark.parametrize("file", ["metadata.json", "features.json", "dataset_info.json"])
def test_a_damaged_file_is_named(data, file):
    path = folder_of(data) / file
    for content in (b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 10**5, b"null"):
        path.write_bytes(content)
        refused(data, str(path))
    path.unlink()
    os.mkfifo(path)
    refused(data, str(path), "FIFO")


@pytest.mark.parametrize("lengths", [[], ["0", "0"], ["0"]])
def test_a_split_without_records_is_refused(data, lengths):
    folder = folder_of(data)
    change(folder / "dataset_info.json", "splits", 0, "shardLengths", value=lengths)
    shutil.copy(shard(data), folder / "rgbd-train.array_record-00000-of-00001")
    refused(data, "dataset_info.json", "'train' has no records")


# --------------------------------------------------------------------------------------------------- shards and records


def shard(data, number=0):
    return folder_of(data) / f"rgbd-train.array_record-{number:05d}-of-00002"


def test_missing_and_short_files_are_named(data):
    content = shard(data).read_bytes()
    shard(data).write_bytes(content[:100])
    refused(data, shard(data).name, "100 bytes cannot hold the 16 records")
    shard(data).unlink()
    refused(data, str(shard(data)), "no such file")
    shard(data).mkdir()
    refused(data, str(shard(data)), "found a folder")
    shard(data).rmdir()
    os.mkfifo(shard(data))
    refused(data, str(shard(data)), "FIFO")


def test_more_records_than_can_be_are_refused(data):
    change(folder_of(data) / "dataset_info.json", "splits", 0, "shardLengths", value=["16", str(10**15)])
    refused(data, shard(data, 1).name, "cannot hold")


def unreadable(data, index, *words):
    """One line from every way to read a frame, with or without worker processes."""
    split = open_split(data)
    for read in (split.__getitem__, split.truth):
        with pytest.raises(ValueError, match=r".") as caught:
            read(index)
        message = str(caught.value)
        assert "\n" not in message and message.startswith(f"{data}/mine/train: record {index} of {shard(data).name}")
        assert all(word in message for word in words), message


def test_damaged_bytes_cost_one_line(data):
    content = bytearray(shard(data).read_bytes())
    content[content.index(b"IDAT") + 9] ^= 255
    shard(data).write_bytes(content)
    damaged = 0
    for index in range(16):
        try:
            open_split(data)[index]
        except ValueError as error:
            damaged += 1
            assert "\n" not in str(error) and f"record {index} of {shard(data).name}: Corrupted" in str(error)
    assert damaged


def rewrite(data, **changes):
    """Writes the first shard anew, 16 times the same record, with these entries; `...` leaves one out."""
    entries = {
        "name": b"rgb/00.png",
        "rgb": to_png(np.zeros((8, 16, 3), np.uint8)),
        "depth": to_png(np.full((8, 16), 2000, np.uint16)),
        "normals/value": zlib.compress(np.full((8, 16, 3), 100, np.int16).tobytes()),
        "normals/shape": [8, 16, 3],
    }
    example = tf_example_pb2.Example()
    for key, value in (entries | changes).items():
        if isinstance(value, list):
            example.features.feature[key].int64_list.value.extend(value)
        elif value is not ...:
            example.features.feature[key].bytes_list.value.append(value)
    write(data, example.SerializeToString())


def write(data, record):
    writer = ArrayRecordWriter(str(shard(data)), WRITER_OPTIONS)
    for _ in range(16):
        writer.write(record)
    writer.close()


def header_of(width, height):
    """A PNG that claims a size."""
    content = to_png(np.zeros((8, 16, 3), np.uint8))
    chunk = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + content[24:29]
    return content[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + content[33:]


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
RECORDS = [
    ({"depth": ...}, "no 'depth'"),
    ({"depth": [1]}, "no 'depth'"),
    ({"depth": b""}, "depth is not a whole PNG or JPEG"),
    ({"depth": to_png(np.ones((8, 15), np.uint16))}, "depth is 8 x 15"),
    ({"depth": to_png(np.ones((8, 16, 3), np.uint8))}, "wanted grey"),
    ({"depth": header_of(60_000, 60_000)}, "more pixels than Pillow allows"),
    ({"normals/shape": ...}, "normals has the shape ()"),
    ({"normals/shape": [8, 16]}, "normals has the shape (8, 16)"),
    ({"normals/shape": [8, 16, 4]}, "wanted (height, width, 3)"),
    ({"normals/shape": [-8, -16, 3]}, "wanted (height, width, 3)"),
    ({"normals/shape": [8, 17, 3]}, "816 bytes"),
    ({"normals/shape": [2**40, 2**40, 3]}, "wanted (height, width, 3)"),
    ({"normals/shape": [8, 15, 3], "normals/value": zlib.compress(bytes(720))}, "normals is 8 x 15"),
    ({"normals/value": ...}, "no 'normals/value'"),
    ({"normals/value": b"garbage"}, "incorrect header"),
    ({"normals/value": zlib.compress(bytes(10**7))}, "does not have the 768 bytes"),
]


@pytest.mark.parametrize("changes, reason", RECORDS, ids=[reason for _, reason in RECORDS])
def test_a_record_of_wrong_content_is_named(data, changes, reason):
    rewrite(data)
    assert open_split(data)[3]["normals"].shape == (8, 16, 3)
    rewrite(data, **changes)
    unreadable(data, 3, reason)


@pytest.mark.parametrize(
    "rgb", [b"", b"garbage", EPS, header_of(60_000, 60_000), to_png(np.zeros((3, 4), np.uint8)), ...]
)
def test_a_photograph_that_is_none_is_named(data, rgb):
    rewrite(data, rgb=rgb)
    with pytest.raises(ValueError, match=r"record 3 of rgbd-train.*rgb") as caught:
        open_split(data)[3]
    assert "\n" not in str(caught.value)
    assert "rgb" not in open_split(data).truth(3)


@pytest.mark.parametrize("name", [b"/etc/passwd", b"../up.png", b"a/../../up.png", b"", b"\xff\xfe", ...])
def test_a_name_never_leads_out(data, name):
    rewrite(data, name=name)
    with pytest.raises(ValueError, match=r"record 3 of rgbd-train") as caught:
        open_split(data).name_of(3)
    assert "\n" not in str(caught.value)


def test_a_record_that_is_none_is_named(data):
    write(data, b"\xff" * 1000)
    unreadable(data, 3)
    shard(data).write_bytes(bytes(2**17))
    unreadable(data, 3)


def test_a_file_with_fewer_records_than_told_is_named(data):
    rewrite(data)
    change(folder_of(data) / "dataset_info.json", "splits", 0, "shardLengths", value=["100", "2"])
    unreadable(data, 50)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_ends_with_that_line(data, num_workers):
    rewrite(data, depth=b"x")
    shard(data, 1).write_bytes(shard(data).read_bytes())
    loader = make_loader([(f"{data}/mine/train", 1)], batch_size=2, seed=0, num_workers=num_workers)
    with pytest.raises(ValueError, match=r"/mine/train: record \d+ of rgbd-train.*: depth is not") as caught:
        next(loader)
    loader.close()
    assert "\n" not in str(caught.value)
