"""The program, through its own `main`: what it writes, what it says, and its exit status.

A stand-in for the network, whose "depth" is the picture's brightness, makes every value predictable; the last test
runs a real (small, random) checkpoint.
"""

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import oracle
import pytest
from PIL import Image
from standin import Brightness

import marigold_jax
from marigold_jax import predict
from marigold_jax.data import geometry as geometries
from marigold_jax.data import images
from marigold_jax.data.colors import color
from marigold_jax.data.images import canonical, read_image
from marigold_jax.inference import journal, predict_files, stream
from marigold_jax.inference.modality import MODALITIES
from marigold_jax.runtime import compilation_cache
from marigold_jax.runtime import files as disk
from marigold_jax.runtime.cache import user_cache


@pytest.fixture
def network(monkeypatch):
    network = Brightness()
    monkeypatch.setattr(marigold_jax, "Marigold", network, raising=False)
    monkeypatch.setattr(compilation_cache, "enable_cache", lambda: None)
    monkeypatch.setattr(compilation_cache, "counts", lambda: (0, 0))  # other tests of this process compile
    return network


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


def picture(path, height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def run(photos, *flags):
    """Runs the program on `photos` (a path or several); returns its status and the output folder."""
    inputs = photos if isinstance(photos, list) else [photos]
    folder = (inputs[0].parent if inputs[0].parent.name != "photos" else inputs[0].parent.parent) / "out"
    status = predict.main(["--input", *map(str, inputs), "--output_dir", str(folder), *map(str, flags)])
    return status, folder


def records(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def brightness(path, resolution=64, bucket=8, method="bilinear", match_input=True):
    image = canonical(read_image(path))
    geometry = geometries.fit(image.shape[:2], resolution, bucket)
    canvas = geometries.to_canvas(image * 2 - 1, geometry, method)
    depth = (canvas.mean(axis=2, keepdims=True) + 1) / 2
    return np.clip(geometries.from_canvas(depth, geometry, match_input, method), 0, 1)[..., 0]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ------------------------------------------------------------------------------------------------------- what comes out


def test_depth_of_a_folder(photos, network, capsys):
    for index, size in enumerate([(60, 90), (90, 60), (33, 47)]):
        picture(photos / f"p{index}.png", *size, seed=index)
    status, folder = run(photos)
    assert status == 0
    names = ("depth_npy/p{}_depth.npy", "depth_bw/p{}_depth.png", "depth_colored/p{}_depth_colored.png")
    assert files(folder) == sorted([name.format(i) for name in names for i in range(3)] + ["predictions.jsonl"])
    for index, record in enumerate(sorted(records(folder), key=lambda record: record["input"])):
        expected = brightness(photos / f"p{index}.png")
        depth = np.load(folder / names[0].format(index))
        assert depth.dtype == np.float32
        np.testing.assert_allclose(depth, expected, atol=1e-6)
        with Image.open(folder / names[1].format(index)) as grey:
            np.testing.assert_array_equal(np.asarray(grey), (depth * np.float32(65535)).astype(np.uint16))
        with Image.open(folder / names[2].format(index)) as colored:
            np.testing.assert_array_equal(np.asarray(colored), color(depth, "Spectral"))
        assert record["input"] == str(photos / f"p{index}.png")
        assert record["outputs"] == [name.format(index) for name in names]
        assert record["size"] == list(expected.shape) and record["seconds"] > 0
    captured = capsys.readouterr()
    assert captured.out.startswith("3 of 3 pictures written, 0 skipped, 0 failed in ")
    assert "images/s); 0 programs compiled, 0 taken from the cache" in captured.out
    assert captured.out.endswith(f"; predictions in {folder}\n")
    assert captured.err == ""


def test_normals(photos, network):
    network.modality = MODALITIES["normals"]
    picture(photos / "p.png", 50, 70)
    status, folder = run(photos)
    assert status == 0
    assert files(folder) == ["normals_npy/p_normals.npy", "normals_vis/p_normals.png", "predictions.jsonl"]
    normals = np.load(folder / "normals_npy/p_normals.npy")
    assert normals.shape == (50, 70, 3) and normals.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-5)  # restored after resizing


@pytest.mark.parametrize("size", [(1, 1), (9, 300), (300, 9), (64, 64)])
@pytest.mark.parametrize("bucket", [8, 64])
def test_sizes_and_buckets(photos, network, size, bucket):
    picture(photos / "p.png", *size)
    status, folder = run(photos, "--processing_res", 128, "--bucket", bucket)
    assert status == 0
    depth = np.load(folder / "depth_npy/p_depth.npy")
    np.testing.assert_allclose(depth, brightness(photos / "p.png", 128, bucket), atol=1e-6)
    assert depth.shape == size


@pytest.mark.parametrize(
    "flag, method", [("bilinear", "bilinear"), ("bicubic", "bicubic"), ("nearest", "nearest-exact")]
)
def test_resample_methods(photos, network, flag, method):
    picture(photos / "p.png", 50, 70)
    _, folder = run(photos, "--resample_method", flag)
    expected = brightness(photos / "p.png", method=method)
    np.testing.assert_allclose(np.load(folder / "depth_npy/p_depth.npy"), expected, atol=1e-6)


def test_output_at_the_processing_size(photos, network):
    picture(photos / "p.png", 100, 140)
    _, folder = run(photos, "--output_processing_res", "--bucket", 8)
    depth = np.load(folder / "depth_npy/p_depth.npy")
    assert depth.shape == (45, 64)
    assert records(folder)[0]["size"] == [45, 64]
    np.testing.assert_allclose(depth, brightness(photos / "p.png", bucket=8, match_input=False), atol=1e-6)


def test_processing_resolution_0_keeps_the_size(photos, network):
    picture(photos / "p.png", 40, 72)
    _, folder = run(photos, "--processing_res", 0, "--bucket", 8)
    assert network.calls == [(1, 40, 72, 3)]
    expected = canonical(read_image(photos / "p.png")).mean(axis=2)
    np.testing.assert_allclose(np.load(folder / "depth_npy/p_depth.npy"), expected, atol=1e-6)


def test_kinds_of_pictures(photos, network):
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    rgb.convert("CMYK").save(photos / "cmyk.tif")
    rgb.quantize(8).save(photos / "palette.png")
    rgb.convert("RGBA").save(photos / "alpha.webp")
    Image.fromarray(np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)).save(photos / "grey16.PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(photos / "turned.jpg", exif=exif)
    status, folder = run(photos)
    assert status == 0
    shapes = {name: np.load(folder / f"depth_npy/{name}_depth.npy").shape for name in
              ("cmyk", "palette", "alpha", "grey16", "turned")}  # fmt: skip
    assert shapes == dict.fromkeys(("cmyk", "palette", "alpha", "grey16"), (20, 30)) | {"turned": (30, 20)}


def test_no_colors_and_uncertainty(photos, network):
    picture(photos / "p.png", 20, 30)
    status, folder = run(photos, "--color_map", "None", "--ensemble_size", 3, "--uncertainty")
    assert status == 0
    assert "uncertainty_npy/p_uncertainty.npy" in files(folder) and not (folder / "depth_colored").exists()
    uncertainty = np.load(folder / "uncertainty_npy/p_uncertainty.npy")
    assert uncertainty.shape == (20, 30) and uncertainty.dtype == np.float32


# ------------------------------------------------------------------------------------------------------------- metres


def test_depth_becomes_metres_where_some_is_known(photos, network, tmp_path):
    picture(photos / "p.png", 40, 60)
    depth = brightness(photos / "p.png")
    references = tmp_path / "references"
    references.mkdir()
    known = [(5, 3), (50, 30), (20, 10)]  # column, row
    lines = [f"{column},{row},{2.5 * depth[row, column] + 0.75}" for column, row in known]
    (references / "p.csv").write_text("\n".join(lines))
    status, folder = run(photos, "--align_to", references)
    assert status == 0
    np.testing.assert_allclose(np.load(folder / "depth_metres_npy/p_depth.npy"), 2.5 * depth + 0.75, atol=1e-5)
    (record,) = records(folder)
    assert record["scale"] == pytest.approx(2.5, abs=1e-4) and record["shift"] == pytest.approx(0.75, abs=1e-4)
    assert record["points"] == 3 and "depth_metres_npy/p_depth.npy" in record["outputs"]


def test_a_picture_without_a_reference_is_named_and_the_others_come_out(photos, network, tmp_path, capsys):
    for name in ("a", "b"):
        picture(photos / f"{name}.png", 40, 60)
    np.save(tmp_path / "a.npy", 1 + brightness(photos / "a.png"))
    status, folder = run(photos, "--align_to", tmp_path)
    assert status == 1 and (folder / "depth_metres_npy/a_depth.npy").exists()
    assert "wanted one reference, .npy, .png, .csv; found 0" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------- programs


def test_one_batch_shape_for_each_canvas(photos, network):
    """Seven wide and two tall pictures, four at a time: the wide ones' last batch is filled up, the tall ones' not."""
    for index in range(9):
        picture(photos / f"p{index}.png", *((60, 120) if index < 7 else (120, 60)), seed=index)
    status, folder = run(photos, "--batch_size", 9, "--ensemble_size", 2, "--processing_res", 128)
    assert status == 0
    assert sorted(network.calls) == [(2, 128, 64, 3), (4, 64, 128, 3), (4, 64, 128, 3)]
    for index in range(9):
        expected = brightness(photos / f"p{index}.png", 128)
        np.testing.assert_allclose(np.load(folder / f"depth_npy/p{index}_depth.npy"), expected, atol=1e-6)


def test_waiting_pictures_are_bounded(photos, network, monkeypatch):
    monkeypatch.setattr(stream, "WAITING_BYTES", 1)
    for index in range(5):
        picture(photos / f"p{index}.png", 20, 30, seed=index)
    status, _ = run(photos, "--batch_size", 4)
    assert status == 0 and network.calls == [(4, 48, 64, 3)] * 5


# ----------------------------------------------------------------------------------------------------- what goes wrong


def test_bad_pictures_cost_one_line_each_and_the_others_come_out(photos, network, capsys, monkeypatch):
    picture(photos / "good.png", 40, 60)
    picture(photos / "whole.png", 64, 64)
    (photos / "truncated.png").write_bytes((photos / "whole.png").read_bytes()[:4000])
    (photos / "whole.png").unlink()
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "text.jpg").write_bytes(b"not a picture")
    picture(photos / "bomb.png", 150, 150)
    picture(photos / "thin.png", 1, 3000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10000)
    status, folder = run([photos, photos / "missing.png", photos / "*.bmp"])
    assert status == 1
    captured = capsys.readouterr()
    lines = dict(line.split(": ", 1) for line in captured.err.splitlines())
    expected = {
        "truncated.png": "truncated",
        "empty.jpg": "the file is empty",
        "text.jpg": "not a picture",
        "bomb.png": "million pixels",
        "thin.png": "too thin",
        "missing.png": "no such file or folder",
        "*.bmp": "no file matches",
    }
    assert set(lines) == {str(photos / name) for name in expected}
    for name, message in expected.items():
        assert message in lines[str(photos / name)]
    assert captured.out.startswith("1 of 6 pictures written, 0 skipped, 7 failed")
    assert {r["input"]: r["error"] for r in records(folder) if "error" in r} == lines
    assert (folder / "depth_npy/good_depth.npy").exists()


def test_not_every_disk_is_endless(photos, network, capsys, monkeypatch):
    """The record itself meets a full disk: one line, and no torn one in it."""
    for index in range(3):
        picture(photos / f"p{index}.png", 20, 30)
    _, folder = run(photos)
    before = (folder / "predictions.jsonl").read_bytes()

    def full(file, lines):
        file.write(lines[:9])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(journal, "append", full)
    capsys.readouterr()
    assert run(photos)[0] == 1
    assert capsys.readouterr().err == f"stopped: {folder / 'predictions.jsonl'}: No space left on device\n"
    monkeypatch.undo()
    assert (folder / "predictions.jsonl").read_bytes()[len(before) :].count(b"\n") == 0


def test_a_torn_record_is_ended_before_the_next(photos, network, monkeypatch):
    picture(photos / "p.png", 20, 30)
    _, folder = run(photos)
    whole = (folder / "predictions.jsonl").read_text()
    (folder / "predictions.jsonl").write_text(whole + whole[:20])
    assert run(photos, "--skip_existing")[0] == 0 and run(photos)[0] == 0
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(lines[index])["input"] for index in (0, 2)] == [str(photos / "p.png")] * 2
    assert lines[1] == whole[:20]


@pytest.mark.parametrize("what", ["out", "out/depth_bw"])
def test_outputs_that_disappear_midway_are_told(photos, network, capsys, what):
    for index in range(8):
        picture(photos / f"p{index}.png", 20, 30)
    answer = network.run

    def remove(*arguments, **options):
        if len(network.calls) == 5:
            for _ in range(500):  # until three are written
                if len(list((photos.parent / "out" / "depth_colored").glob("p*.png"))) >= 3:
                    break
                time.sleep(0.01)
            (photos.parent / what).rename(photos.parent / "elsewhere")
        return answer(*arguments, **options)

    network.run = remove
    status, folder = run(photos, "--batch_size", 1)
    assert status == 1
    captured = capsys.readouterr()
    # Of 7 where one was being written just then.
    assert re.search(rf"^{re.escape(str(folder))}: \d of [78] pictures that were written are gone", captured.err, re.M)
    there = [
        path
        for path in (photos / f"p{index}.png" for index in range(8))
        if (folder / f"depth_bw/{path.stem}_depth.png").exists()
    ]
    assert (
        captured.out.startswith(f"{len(there)} of 8 pictures written, 0 skipped, {8 - len(there)} failed")
        and len(there) <= 5
    )
    failed = {record["input"] for record in records(folder) if "error" in record}
    assert failed == {str(photos / f"p{index}.png") for index in range(8)} - set(map(str, there))
    network.run = answer
    assert run(photos, "--skip_existing")[0] == 0
    assert len(list(folder.glob("depth_*/p*"))) == 24


# ------------------------------------------------------------------------------------------------------------- names


def test_two_pictures_of_one_name_both_come_out(photos, network):
    picture(photos / "a.jpg", 20, 30)
    picture(photos / "a.png", 30, 20)
    picture(photos / "b.png", 30, 20)
    status, folder = run([photos, photos / "a.jpg", photos / ".." / "photos" / "b.png"])  # twice is no mistake
    assert status == 0
    for name in ("a.jpg", "a.png"):
        expected = brightness(photos / name)
        np.testing.assert_allclose(np.load(folder / f"depth_npy/{name}_depth.npy"), expected, atol=1e-6)
    assert (folder / "depth_npy/b_depth.npy").exists() and len(list((folder / "depth_npy").iterdir())) == 3
    network.calls.clear()
    assert run(photos, "--skip_existing")[0] == 0 and network.calls == []


def test_pictures_of_one_name_keep_their_folders(photos, network, capsys):
    for index, name in enumerate(("a/x.png", "b/x.png", "b/y.png")):
        (photos / name).parent.mkdir(exist_ok=True)
        picture(photos / name, 20, 30, seed=index)
    folder = photos.parent / "out"
    flags = ["--output_dir", str(folder), "--input"]
    for inputs in (
        [photos / "a", photos / "b"],
        [photos / "b/y.png", photos / "b/x.png", photos / "a"],
        [photos / "*/*"],
    ):
        shutil.rmtree(folder, ignore_errors=True)
        assert predict.main([*flags, *map(str, inputs)]) == 0
        assert {str(path.relative_to(folder)) for path in folder.rglob("*.npy")} == {
            "depth_npy/a/x_depth.npy",
            "depth_npy/b/x_depth.npy",
            "depth_npy/y_depth.npy",
        }
        for name in ("a/x", "b/x"):
            expected = brightness(photos / f"{name}.png")
            np.testing.assert_allclose(np.load(folder / f"depth_npy/{name}_depth.npy"), expected, atol=1e-6)
    assert {file for record in records(folder) for file in record["outputs"]} == set(files(folder)) - {
        "predictions.jsonl"
    }


def test_another_pictures_outputs_are_no_reason_to_skip(photos, network):
    for index, name in enumerate(("a/x.png", "b/x.png")):
        (photos / name).parent.mkdir()
        picture(photos / name, 20, 30, seed=index)
    flags = ["--output_dir", str(photos.parent / "out"), "--skip_existing", "--input"]
    assert predict.main([*flags, str(photos / "a")]) == 0
    assert predict.main([*flags, str(photos / "b")]) == 0
    depth = np.load(photos.parent / "out/depth_npy/x_depth.npy")
    np.testing.assert_allclose(depth, brightness(photos / "b/x.png"), atol=1e-6)
    network.calls.clear()
    (photos / "b").rename(photos / "c")  # moved, as far as anybody can tell
    assert predict.main([*flags, str(photos / "c")]) == 0 and network.calls == []


@pytest.mark.parametrize("where", ["photos/out", "photos", "out"])
def test_subfolders_on_request(photos, network, capsys, where):
    for name in ("x.png", "day1/x.png", "day1/deep.jpg/y.JPG", ".hidden/z.png"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        picture(photos / name, 20, 30)
    (photos / "day1" / "loop").symlink_to(photos)
    folder = photos.parent / where
    flags = ["--input", str(photos), "--output_dir", str(folder), "--recursive"]
    wanted = {"x_depth.npy", "day1/x_depth.npy", "day1/deep.jpg/y_depth.npy"}
    for more in ([], [], ["--skip_existing"]):
        assert predict.main([*flags, *more]) == 0
        assert {str(path.relative_to(folder / "depth_npy")) for path in folder.rglob("*.npy")} == wanted
    captured = capsys.readouterr()
    assert captured.err == "" and "0 of 3 pictures written, 3 skipped" in captured.out
    # A folder of earlier predictions is no folder of pictures either.
    assert predict.main([*flags[:2], "--output_dir", str(photos / "other"), "--recursive"]) == 0
    assert "3 of 3 pictures written" in capsys.readouterr().out
    assert predict.main(["--input", str(photos / "**" / "*.png"), "--output_dir", str(photos / "more")]) == 0
    assert "2 of 2 pictures written" in capsys.readouterr().out


def test_a_hint_where_only_subfolders_hold_pictures(photos, network, capsys):
    (photos / "day1").mkdir()
    picture(photos / "day1" / "x.png", 20, 30)
    assert run(photos)[0] == 1
    assert (
        capsys.readouterr().err == f"{photos}: no pictures in this folder; its subfolders hold some: add --recursive\n"
    )


def test_what_is_passed_over_is_counted_and_named(photos, network, capsys, monkeypatch):
    picture(photos / "good.png", 20, 30)
    for name in ("a.heic", "b.HEIC", "clip.mp4", "note\x1b[31m.txt", ".DS_Store", "Thumbs.db", "._good.png", ".hidden"):
        (photos / name).write_bytes(b"x")
    (photos / "folder.jpg").mkdir()
    (photos / "folder").mkdir()
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    assert run(photos)[0] == 0
    assert capsys.readouterr().err == (
        f"5 files in {photos} were passed over: a.heic (pip install 'marigold_jax[heif]' reads HEIC), b.HEIC, "
        "clip.mp4, folder.jpg (a folder), note\\x1b[31m.txt\n"
    )


def test_names_too_long_for_a_disk_cost_one_line(photos, network, capsys):
    picture(photos / "good.png", 20, 30)
    for name in ("x" * 250, "é" * 122):
        picture(photos / f"{name}.png", 20, 30)
    for more in ([], ["--skip_existing"]):
        status, folder = run([photos, photos / ("y" * 5000)], *more)
        assert status == 1
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 3 and all("too long" in line for line in errors)
        assert sorted(path.name for path in folder.glob("*/*")) == [
            "good_depth.npy", "good_depth.png", "good_depth_colored.png"
        ]  # fmt: skip


def test_only_regular_files_are_read(photos, network, capsys):
    picture(photos / "good.png", 20, 30)
    os.mkfifo(photos / "pipe.png")
    with socket.socket(socket.AF_UNIX) as plug:
        at = os.getcwd()
        os.chdir(photos)  # the name of a socket must be short
        plug.bind("plug.png")
        os.chdir(at)
    (photos / "broken.png").symlink_to("nowhere.png")
    (photos / "circle.png").symlink_to("circle.png")
    (photos / "noise.png").symlink_to("/dev/zero")
    for inputs in ([photos], [photos / "*"], sorted(photos.iterdir())):
        status, _ = run(inputs if len(inputs) > 1 else inputs[0])
        assert status == 1
        assert sorted(line.removeprefix(f"{photos}/") for line in capsys.readouterr().err.splitlines()) == [
            "broken.png: a link to a file that is not there",
            "circle.png: Too many levels of symbolic links",
            "noise.png: wanted a regular file, found a device",
            "pipe.png: wanted a regular file, found a FIFO",
            "plug.png: wanted a regular file, found a socket",
        ]


def test_what_may_not_be_read(photos, network, capsys, monkeypatch):
    picture(photos / "good.png", 20, 30)
    picture(photos / "secret.png", 20, 30)

    def guarded(path, *mode):
        if "secret" in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open(path, *mode)

    monkeypatch.setattr(images, "open", guarded, raising=False)
    assert run(photos)[0] == 1
    captured = capsys.readouterr()
    assert captured.err == f"{photos / 'secret.png'}: Permission denied\n"
    assert captured.out.startswith("1 of 2 pictures written")


def test_names_that_are_no_text(photos, network, capsys):
    """Control characters never reach a terminal; bytes that are not UTF-8 stay those of the file."""
    for name in (b"caf\xe9.png", b"red\x1b[31m\n.png"):
        picture(os.path.join(os.fsencode(photos), name).decode("utf-8", "surrogateescape"), 20, 30)
    (photos / "bad\x1b[2J.png").write_bytes(b"")
    status, folder = run(photos)
    assert status == 1
    captured = capsys.readouterr()
    assert captured.err == f"{photos}/bad\\x1b[2J.png: the file is empty\n" and "\x1b" not in captured.out
    assert (folder / "predictions.jsonl").read_bytes().isascii()
    made = [record for record in records(folder) if "outputs" in record]
    assert len(made) == 2 and all((folder / file).is_file() for record in made for file in record["outputs"])
    assert b"caf\xe9_depth.npy" in os.listdir(os.fsencode(folder / "depth_npy"))


def test_nothing_to_do(photos, network, capsys):
    status, _ = run(photos)
    assert status == 1 and network.calls == []
    assert capsys.readouterr().err == f"{photos}: no pictures in this folder\n"


@pytest.mark.parametrize("error", [FileNotFoundError("nowhere: no such checkpoint"), ValueError("bad: wrong model")])
def test_wrong_checkpoint(photos, network, capsys, error):
    picture(photos / "p.png", 20, 30)
    network.loading_error = error
    status, _ = run(photos, "--checkpoint", "nowhere")
    assert status == 1
    assert capsys.readouterr().err == f"stopped: {error}\n"


def test_more_steps_than_the_scheduler_has(photos, network, capsys):
    picture(photos / "a.png", 16, 16)
    status, _ = run(photos, "--denoise_steps", 2000)
    assert status == 1
    assert "stopped: expected 1 <= num_steps <= 1000, got 2000" in capsys.readouterr().err


def test_output_folder_that_cannot_be(photos, network, capsys):
    picture(photos / "p.png", 20, 30)
    (photos.parent / "out").write_bytes(b"")
    status, folder = run(photos)
    assert status == 1 and network.calls == []
    assert capsys.readouterr().err == f"--output_dir {folder}: cannot write there: File exists\n"


def fail_from(call, code):
    """An `os.replace` that fails from its `call`-th time on."""
    replace, calls = os.replace, []

    def failing(source, target):
        calls.append(target)
        if len(calls) >= call:
            raise OSError(code, os.strerror(code), str(target))
        replace(source, target)

    return failing


def test_full_disk_stops_early_with_one_line(photos, network, capsys, monkeypatch):
    for index in range(30):
        picture(photos / f"p{index:02}.png", 20, 30)
    monkeypatch.setattr(disk.os, "replace", fail_from(7, errno.ENOSPC))
    status, folder = run(photos)
    assert status == 1 and len(network.calls) < 30
    captured = capsys.readouterr()
    assert captured.err == f"stopped: {folder}: No space left on device\n"
    assert "of 30 pictures written" in captured.out
    assert not list(folder.rglob("*.tmp"))


def test_unwritable_output_is_one_line_a_file(photos, network, capsys, monkeypatch):
    for index in range(3):
        picture(photos / f"p{index}.png", 20, 30)
    monkeypatch.setattr(disk.os, "replace", fail_from(1, errno.EACCES))
    status, folder = run(photos)
    assert status == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and all("Permission denied" in line for line in errors)
    assert files(folder) == ["predictions.jsonl"]


def test_out_of_device_memory(photos, network, capsys):
    for index in range(2):
        picture(photos / f"p{index}.png", 20, 30)
    network.error = RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes.\nmore"), 2
    status, folder = run(photos, "--batch_size", 1)
    assert status == 1
    assert capsys.readouterr().err == f"{photos / 'p1.png'}: {predict_files.OUT_OF_MEMORY}\n"
    assert (folder / "depth_npy/p0_depth.npy").exists()


def test_what_the_network_cannot_be_asked_is_one_line(photos, network, capsys):
    for index in range(2):
        picture(photos / f"p{index}.png", 20, 30)
    network.error = ValueError("MARIGOLD_JAX_STRIPS='on': wanted one of auto, always, never"), 1
    status, _ = run(photos, "--batch_size", 1)
    assert status == 1
    assert capsys.readouterr().err == "stopped: MARIGOLD_JAX_STRIPS='on': wanted one of auto, always, never\n"


def test_nan_is_an_error(photos, network, capsys, monkeypatch):
    picture(photos / "p.png", 20, 30)
    answer = SimpleNamespace(prediction=np.full((1, 64, 64, 1), np.nan, np.float32), uncertainty=None)
    monkeypatch.setattr(network, "run", lambda *_, **__: answer)
    status, folder = run(photos)
    assert status == 1 and files(folder) == ["predictions.jsonl"]
    assert "NaN or infinity" in capsys.readouterr().err


def test_a_bug_is_not_swallowed(photos, network):
    picture(photos / "p.png", 20, 30)
    network.error = TypeError("a mistake in the program"), 1
    with pytest.raises(TypeError, match="a mistake"):
        run(photos)


def test_interruption_and_going_on(photos, network, capsys):
    for index in range(6):
        picture(photos / f"p{index}.png", 20, 30)
    network.error = KeyboardInterrupt(), 4
    status, folder = run(photos, "--batch_size", 1)
    assert status == 130
    captured = capsys.readouterr()
    assert captured.err == "interrupted; add --skip_existing to continue\n"
    done = int(captured.out.split(" of 6 pictures written")[0])
    assert done == len(records(folder)) <= 3 and not list(folder.rglob("*.tmp"))

    network.error = None
    network.calls.clear()
    assert run(photos, "--batch_size", 1, "--skip_existing")[0] == 0
    captured = capsys.readouterr()
    skipped = int(captured.out.split(" skipped")[0].split()[-1])
    assert len(network.calls) + skipped == 6 and skipped >= done
    assert run(photos, "--skip_existing")[0] == 0 and "0 of 6 pictures written, 6 skipped" in capsys.readouterr().out
    # A missing output, or one that was not asked for before, is reason enough.
    (folder / "depth_bw/p3_depth.png").unlink()
    network.calls.clear()
    run(photos, "--skip_existing")
    assert len(network.calls) == 1 and (folder / "depth_bw/p3_depth.png").exists()


# -------------------------------------------------------------------------------------------------------------- flags


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--processing_res", "100"], "multiple of 8"),
        (["--processing_res", "-8"], "multiple of 8"),
        (["--bucket", "60"], "bucket must be a multiple of 8"),
        (["--align_to", "nowhere"], "--align_to nowhere is not a folder"),
        (["--align_to", ".", "--output_processing_res"], "leave out --output_processing_res"),
        (["--bucket", "0"], "--bucket must be at least 8; got 0"),
        (["--color_map", "spectral"], "unknown colour map 'spectral'"),
        (["--ensemble_size", "0"], "--ensemble_size must be at least 1; got 0"),
        (["--denoise_steps", "0"], "--denoise_steps must be at least 1; got 0"),
        (["--batch_size", "-1"], "--batch_size must be at least 0; got -1"),
        (["--uncertainty"], "--ensemble_size 2 or more"),
        (["--resample_method", "area"], "invalid choice"),
        (["--dtype", "float16"], "invalid choice"),
        (["--seed", "4294967296"], "from 0 to 4294967295, got '4294967296'"),
        (["--seed", "-1"], "from 0 to 4294967295, got '-1'"),
        (["--\x1b[31mred"], "unrecognized arguments: --\\x1b[31mred"),
    ],
)
def test_usage_errors(photos, network, capsys, flags, message):
    with pytest.raises(SystemExit) as stopped:
        run(photos, *flags)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (photos.parent / "out").exists()


@pytest.mark.parametrize(
    "flags, inputs, folder, dtype",
    [
        (["a.png"], ["a.png"], "predictions", "float32"),
        (["--seed", "3", "a.png", "--recursive", "b.png"], ["a.png", "b.png"], "predictions", "float32"),
        (["a.png", "-i", "b.png", "c.png", "-o", "x"], ["a.png", "b.png", "c.png"], "x", "float32"),
        (["--input_rgb_dir", "d", "--output_dir", "x", "--half_precision"], ["d"], "x", "bfloat16"),
        (["-i", "d", "--fp16"], ["d"], "predictions", "bfloat16"),
        (["-i", "d", "--x0", "--no-stretch", "e"], ["e", "d"], "predictions", "float32"),
    ],
)
def test_pictures_and_the_official_spellings(flags, inputs, folder, dtype):
    arguments = predict.parse(flags)
    assert (arguments.input, arguments.output_dir, arguments.dtype) == (inputs, Path(folder), dtype)


def test_a_picture_is_all_it_takes(photos, network, monkeypatch, capsys):
    picture(photos / "p.png", 20, 30)
    monkeypatch.chdir(photos)
    assert predict.main(["p.png"]) == 0
    assert (photos / "predictions/depth_npy/p_depth.npy").exists()
    assert capsys.readouterr().out.endswith("; predictions in predictions\n")


def test_no_pictures_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as stopped:
        predict.main(["--seed", "3"])
    assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_metres_are_for_depth_alone(photos, network, capsys):
    network.modality = MODALITIES["normals"]
    picture(photos / "p.png", 20, 30)
    assert run(photos, "--checkpoint", "mine", "--align_to", photos)[0] == 1
    assert capsys.readouterr().err == "stopped: --align_to: mine estimates normals, which have no metres\n"


def test_one_program_is_not_several(photos, network, capsys, monkeypatch):
    picture(photos / "p.png", 20, 30)
    monkeypatch.setattr(compilation_cache, "counts", lambda: (1, 2))
    run(photos)
    assert "; 1 program compiled, 2 taken from the cache; predictions in " in capsys.readouterr().out


def test_help_does_not_wait_for_jax():
    program = """if True:
        import sys
        from marigold_jax import predict
        try:
            predict.main(["--help"])
        except SystemExit as stopped:
            assert stopped.code == 0
        assert not {"jax", "flax", "matplotlib"} & set(sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for flag in ("--input", "--output_dir", "--skip_existing", "default: Spectral", "predictions.jsonl"):
        assert flag in done.stdout


def test_who_has_no_home_goes_without_the_cache(monkeypatch):
    """As in a container that runs as a number nobody gave a name: Path.home() is a RuntimeError there."""

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("MARIGOLD_JAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(OSError):
        user_cache("programs").mkdir(parents=True)
    events, listeners = Counter(), []
    monkeypatch.setattr(compilation_cache, "_events", events)
    monkeypatch.setattr(jax.monitoring, "register_event_listener", lambda listener: None)
    monkeypatch.setattr(jax.monitoring, "register_event_duration_secs_listener", listeners.append)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        compilation_cache.enable_cache()
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    for seconds in (0.1, 3.0):  # what no cache counts is counted all the same
        listeners[0]("/jax/core/compile/backend_compile_duration", seconds, fun_name="f")
    assert compilation_cache.counts() == (1, 0)


# ---------------------------------------------------------------------------------------------------- a real checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["depth", "normals"])
def test_the_program_saves_what_the_pipeline_returns(tmp_path, photos, modality, monkeypatch):
    monkeypatch.setattr(compilation_cache, "enable_cache", lambda: None)
    checkpoint = oracle.save_pipeline(tmp_path / "checkpoint", modality)
    picture(photos / "a.png", 40, 56)
    picture(photos / "b.png", 40, 56, seed=1)
    status, folder = run(photos, "--checkpoint", checkpoint, "--bucket", 8, "--denoise_steps", 1, "--batch_size", 1)
    assert status == 0
    pipe = marigold_jax.Marigold.from_pretrained(checkpoint)
    for name in "ab":
        expected = pipe(read_image(photos / f"{name}.png"), num_inference_steps=1, batch_size=1, bucket=8).prediction[0]
        saved = np.load(folder / f"{modality}_npy/{name}_{modality}.npy")
        np.testing.assert_allclose(saved, expected[..., 0] if modality == "depth" else expected, atol=1e-5)
