"""The program, through its own `main`: what it writes, what it says, and its exit status.

A stand-in for the network, whose "depth" is the picture's brightness, makes every value predictable; the last test
runs a real (small, random) checkpoint.
"""

import errno
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
from PIL import Image

import marigold_jax
from marigold_jax import compilation, predict
from marigold_jax.data import geometry as geometries
from marigold_jax.data import predictions
from marigold_jax.data.images import canonical, read_image
from marigold_jax.modality import MODALITIES
from marigold_jax.runtime import files as disk


class Brightness:
    """Answers like the pipeline, at once: depth is the mean of the channels, normals are the channels."""

    default_denoising_steps = 1
    default_processing_resolution = 64
    calls: list
    error = None  # what `run` raises, and from which call on
    loading_error = None

    def __init__(self, modality="depth"):
        self.modality = MODALITIES[modality]
        self.calls = []

    def from_pretrained(self, name_or_path=None, dtype="float32", revision=None, vae=None):
        if self.loading_error:
            raise self.loading_error
        return self

    def sampler(self, num_inference_steps):
        if num_inference_steps == 2000:
            raise ValueError("expected 1 <= num_steps <= 1000, got 2000")

    def run(self, canvases, sizes, num_inference_steps=None, ensemble_size=1, *, batch_size, seed, output_uncertainty):
        assert canvases.dtype == np.float32 and canvases.ndim == 4 and sizes.shape == (len(canvases), 2)
        self.calls.append(canvases.shape)
        if self.error and len(self.calls) >= self.error[1]:
            raise self.error[0]
        depth = self.modality.channels == 1
        prediction = (canvases.mean(axis=3, keepdims=True) + 1) / 2 if depth else canvases
        uncertainty = prediction[..., :1] / 4 if output_uncertainty else None
        return SimpleNamespace(prediction=prediction, uncertainty=uncertainty)


@pytest.fixture
def network(monkeypatch):
    network = Brightness()
    monkeypatch.setattr(marigold_jax, "Marigold", network, raising=False)
    monkeypatch.setattr(compilation, "enable_cache", lambda: None)
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
            np.testing.assert_array_equal(np.asarray(colored), predictions.color(depth, "Spectral"))
        assert record["input"] == str(photos / f"p{index}.png")
        assert record["outputs"] == [name.format(index) for name in names]
        assert record["size"] == list(expected.shape) and record["seconds"] > 0
    captured = capsys.readouterr()
    assert captured.out.startswith("3 of 3 pictures written, 0 skipped, 0 failed in ")
    assert "images/s); " in captured.out and "programs compiled" in captured.out
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
    monkeypatch.setattr(predict, "WAITING_BYTES", 1)
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
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20000)
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


def test_two_pictures_of_one_name(photos, network, capsys):
    picture(photos / "a.jpg", 20, 30)
    picture(photos / "a.png", 20, 30)
    status, folder = run([photos, photos / "a.jpg"])  # the same file twice is no mistake
    assert status == 1
    assert capsys.readouterr().err.splitlines() == [
        f"{photos / 'a.png'}: its outputs would overwrite those of {photos / 'a.jpg'}: rename one of the two"
    ]
    np.testing.assert_allclose(np.load(folder / "depth_npy/a_depth.npy"), brightness(photos / "a.jpg"), atol=1e-6)


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
    assert capsys.readouterr().err == f"{photos / 'p1.png'}: {predict.OUT_OF_MEMORY}\n"
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
    assert captured.err == "interrupted; --skip_existing goes on from here\n"
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
    ],
)
def test_usage_errors(photos, network, capsys, flags, message):
    with pytest.raises(SystemExit) as stopped:
        run(photos, *flags)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (photos.parent / "out").exists()


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


# ---------------------------------------------------------------------------------------------------- a real checkpoint


@pytest.mark.parametrize("modality", ["depth", "normals"])
def test_the_program_saves_what_the_pipeline_returns(tmp_path, photos, modality, monkeypatch):
    monkeypatch.setattr(compilation, "enable_cache", lambda: None)
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
