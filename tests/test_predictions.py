"""What is written: values, types, names; all of a file or nothing."""

import errno
import io
import json
import os
import threading

import matplotlib
import numpy as np
import pytest
from diffusers.pipelines.marigold.marigold_image_processing import MarigoldImageProcessor
from PIL import Image

from marigold_jax.data.predictions import Journal, color, color_table, depth_to_uint16, outputs, save_all
from marigold_jax.runtime import files
from marigold_jax.runtime.files import write


@pytest.fixture
def depth():
    values = np.random.default_rng(0).uniform(0, 1, (9, 14, 1)).astype(np.float32)
    values[0, :4, 0] = [0, 1, 0.5, np.nextafter(np.float32(1), np.float32(0))]
    return values


@pytest.fixture
def normals():
    values = np.random.default_rng(1).normal(size=(9, 14, 3)).astype(np.float32)
    values[0, 0] = [1, 0, 0]
    values[0, 1] = [0, 0, -1]
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def test_depth_files(tmp_path, depth):
    wanted = outputs("depth", "Spectral", "uncertainty")
    uncertainty = depth[::-1] / 7
    names = save_all(wanted, {"prediction": depth, "uncertainty": uncertainty}, "Spectral", tmp_path, "a{b}.c")
    assert names == [
        "depth_npy/a{b}.c_depth.npy",
        "depth_bw/a{b}.c_depth.png",
        "depth_colored/a{b}.c_depth_colored.png",
        "uncertainty_npy/a{b}.c_uncertainty.npy",
    ]
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == sorted(names)
    npy = np.load(tmp_path / names[0])
    assert npy.dtype == np.float32
    np.testing.assert_array_equal(npy, depth[..., 0])
    with Image.open(tmp_path / names[1]) as grey:
        assert grey.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(grey), (depth[..., 0] * 65535).astype(np.uint16))
        assert np.asarray(grey)[0, :3].tolist() == [0, 65535, 32767]  # truncated, not rounded
    with Image.open(tmp_path / names[2]) as colored:
        assert colored.mode == "RGB"
        assert np.asarray(colored)[0, 0].tolist() == [158, 1, 66]  # near is red: .6196, .0039, .2588
        assert np.asarray(colored)[0, 1].tolist() == [94, 79, 162]  # far is blue: .3686, .3098, .6353
    np.testing.assert_array_equal(np.load(tmp_path / names[3]), uncertainty[..., 0])


def test_normals_files(tmp_path, normals):
    names = save_all(outputs("normals", "Spectral"), {"prediction": normals}, "Spectral", tmp_path, "x")
    assert names == ["normals_npy/x_normals.npy", "normals_vis/x_normals.png"]
    npy = np.load(tmp_path / names[0])
    assert npy.shape == (9, 14, 3) and npy.dtype == np.float32
    np.testing.assert_array_equal(npy, normals)
    with Image.open(tmp_path / names[1]) as drawn:
        expected = np.asarray(MarigoldImageProcessor.visualize_normals(normals[None])[0])
        assert np.abs(np.asarray(drawn).astype(int) - expected).max() <= 1  # rounding of (n + 1) / 2 * 255
        assert np.asarray(drawn)[0, 0].tolist() == [255, 127, 127]
        assert np.asarray(drawn)[0, 1].tolist() == [127, 127, 0]


@pytest.mark.parametrize("color_map", ["Spectral", "magma", "gray_r", "tab10", "hsv"])
def test_color_is_matplotlib(depth, color_map):
    expected = (matplotlib.colormaps[color_map](depth[..., 0])[..., :3] * 255).astype(np.uint8)
    np.testing.assert_array_equal(color(depth[..., 0], color_map), expected)


def test_unknown_color_map_names_near_ones():
    with pytest.raises(ValueError, match=r"unknown colour map 'spectral': wanted None or .* Spectral"):
        color_table("spectral")


def test_without_a_color_map_nothing_is_colored():
    assert [output.name for output in outputs("depth", None)] == [
        "depth_npy/{stem}_depth.npy",
        "depth_bw/{stem}_depth.png",
    ]


def test_uint16_covers_the_range():
    assert depth_to_uint16(np.array([[0, 1]], np.float32)).tolist() == [[0, 65535]]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_not_saved(tmp_path, depth, bad):
    depth[3, 4] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        save_all(outputs("depth", None), {"prediction": depth}, None, tmp_path, "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["open", "write", "replace"])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "sub" / "file.npy"
    write(path, b"old")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class FullDisk(io.FileIO):
        def write(self, content):
            super().write(content[:1])
            raise full

    def fail(*_):
        raise full

    if step == "replace":
        monkeypatch.setattr(os, "replace", fail)
    else:
        monkeypatch.setattr(files, "open", fail if step == "open" else FullDisk, raising=False)
    with pytest.raises(OSError, match="No space left"):
        write(path, b"new")
    assert [p.name for p in path.parent.iterdir()] == ["file.npy"] and path.read_bytes() == b"old"


def test_saved_files_have_ordinary_permissions(tmp_path):
    write(tmp_path / "a", b"")
    (tmp_path / "b").write_bytes(b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_journal_appends_whole_lines_from_many_threads(tmp_path, capsys):
    for _ in range(2):
        journal = Journal(tmp_path / "out")
        journal.start(total=40)
        work = [threading.Thread(target=journal.written, args=(tmp_path / "é", ["x"], (2, 3), 0.1)) for _ in range(20)]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
        journal.failed("bad.png", "bad.png: two\nlines")
        journal.skipped()
        journal.close()
        assert journal.counts == {"written": 20, "failed": 1, "skipped": 1}
    records = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert len(records) == 42
    assert records[0] == {"input": str(tmp_path / "é"), "outputs": ["x"], "size": [2, 3], "seconds": 0.1}
    assert records[20] == {"input": "bad.png", "error": "two lines"}
    assert capsys.readouterr().err.splitlines() == ["bad.png: two lines"] * 2
