"""What is written: values, types, names; all of a file or nothing."""

import errno
import io
import json
import os
import sys
import threading
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from diffusers.pipelines.marigold.marigold_image_processing import MarigoldImageProcessor
from PIL import Image

from marigold_jax.data.colors import color, color_table, depth_to_uint16
from marigold_jax.inference import journal as written
from marigold_jax.inference.journal import Journal
from marigold_jax.inference.modality import MODALITIES
from marigold_jax.inference.outputs import OUTPUTS, names, outputs, save_all
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


def test_every_modality_has_outputs():
    assert OUTPUTS.keys() == MODALITIES.keys()


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


def test_names_are_never_two_alike(tmp_path):
    def of(*files, folders=()):
        return names([Path("/p") / file for file in files], [Path("/p") / folder for folder in folders])

    assert of("a/x.jpg", "b/y.jpg") == ["x", "y"]
    assert of("a/x.jpg", "b/x.jpg", "b/y.jpg") == ["a/x", "b/x", "y"]
    assert of("q/a/x.jpg", "q/b/x.jpg") == ["a/x", "b/x"]  # below what all share
    assert of("x.jpg", "x.png", "x.jpg.png") == ["x.jpg", "x.png", "x.jpg.png"]
    assert of("x.png", "a/x.jpg", "a/x.png") == ["x", "a/x.jpg", "a/x.png"]
    assert of("a/x.png", "a/b/x.png", "c.d/e.f.png", folders=["a"]) == ["x", "b/x", "e.f"]
    assert of("a/b/x.png", "c/b/x.png", folders=["a", "c"]) == ["a/b/x", "c/b/x"]
    assert of("../r/x.png", "x.png") == ["r/x", "p/x"]
    assert of() == []
    many = [f"{a}/{b}.{c}" for a in "xyz" for b in ("1", "2", "1.png") for c in ("png", "jpg")]
    assert len(set(of(*many))) == len(many) and dict(zip(many[::-1], of(*many[::-1]), strict=True)) == dict(
        zip(many, of(*many), strict=True)
    )


def test_a_record_that_is_moved_is_begun_again(tmp_path):
    journal = Journal(tmp_path / "out")
    journal.written(Path("a"), [], (1, 1), 0.0)
    (tmp_path / "out").rename(tmp_path / "moved")
    journal.written(Path("b"), [], (1, 1), 0.0)
    journal.close()
    for folder, source in {"moved": "a", "out": "b"}.items():
        assert json.loads((tmp_path / folder / "predictions.jsonl").read_text())["input"] == source


class SmallDisk(io.FileIO):
    """Takes a part of what is written, as the system does, and then says that it is full."""

    def write(self, content):
        size = os.fstat(self.fileno()).st_size
        if size >= 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(content[: 100 - size])


def test_a_disk_that_fills_keeps_whole_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(written, "append_lines", lambda path: SmallDisk(path, "a"))
    journal = Journal(tmp_path)
    journal.failed("a", "x" * 50)
    with pytest.raises(OSError, match=r"No space left on device: '.*predictions\.jsonl'"):
        journal.failed("b", "x" * 50)
    journal.close()
    assert [json.loads(line)["input"] for line in (tmp_path / "predictions.jsonl").read_text().splitlines()] == ["a"]


def test_parts_are_kept_until_all_of_their_lines_are_gathered(tmp_path, monkeypatch):
    lines = {"predictions.jsonl": '{"to', "predictions.1.jsonl": '{"a": 1}\n{"b', "predictions.2.jsonl": '{"c": 3}\n'}
    for name, text in lines.items():
        (tmp_path / name).write_text(text)
    with monkeypatch.context() as full:
        full.setattr(written, "append_lines", lambda path: SmallDisk(path, "a"))
        (tmp_path / "predictions.1.jsonl").write_text(f'{{"a": "{"x" * 100}"}}\n{{"b')
        with pytest.raises(OSError):
            written.gather(tmp_path)
    assert (tmp_path / "predictions.jsonl").read_text() == '{"to'
    written.gather(tmp_path)
    found = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert found == ['{"to', f'{{"a": "{"x" * 100}"}}', '{"b', '{"c": 3}']
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]


def test_a_message_that_nobody_reads_stops_nothing(tmp_path, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    journal = Journal(tmp_path)
    journal.failed("a", "b")
    journal.close()
    assert journal.counts == {"failed": 1}


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
