"""Every kind of picture, and everything that can be wrong with one."""

import warnings

import numpy as np
import pytest
import torch
from diffusers.pipelines.marigold.marigold_image_processing import MarigoldImageProcessor
from PIL import Image

from marigold_jax.data.images import canonical, find_images, read_image


@pytest.fixture
def pixels():
    """Smooth colours, so that modes with chroma subsampling or another gamut stay close."""
    y, x = np.mgrid[0:24, 0:32].astype(np.float32) / 32
    return np.stack([40 + 150 * x, 60 + 120 * y, 90 + 60 * (x + y)], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(
    "mode, suffix",
    [
        ("1", "png"),
        ("L", "png"),
        ("LA", "png"),
        ("P", "png"),
        ("P", "gif"),
        ("RGB", "png"),
        ("RGB", "bmp"),
        ("RGB", "webp"),
        ("RGBA", "png"),
        ("RGBA", "tif"),
        ("CMYK", "tif"),
        ("CMYK", "jpg"),
        ("YCbCr", "tif"),
        ("LAB", "tif"),
    ],
)
def test_modes(tmp_path, pixels, mode, suffix):
    path = tmp_path / f"picture.{suffix}"
    if mode == "LAB":  # Pillow cannot convert to it: mid grey, L* = 50
        image = Image.merge("LAB", [Image.new("L", (32, 24), value) for value in (128, 128, 128)])
    else:
        image = Image.fromarray(pixels).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    image.save(path, lossless=True)
    got = read_image(path)
    assert got.shape == (24, 32, 3) and got.dtype == np.uint8
    assert np.abs(got.astype(int) - expected).max() <= (5 if suffix == "jpg" else 0)
    if mode == "LAB":
        assert np.abs(got.astype(int) - 119).max() <= 2  # sRGB of L* = 50


@pytest.mark.parametrize("mode", ["HSV", "PA"])
def test_modes_that_no_file_holds(pixels, mode):
    image = Image.fromarray(pixels).convert("HSV" if mode == "HSV" else "P")
    if mode == "PA":
        image = image.convert("PA")
    np.testing.assert_array_equal(canonical(image), np.asarray(image.convert("RGB"), np.float32) / np.float32(255))


def test_palette_transparency_is_dropped_without_a_warning(tmp_path, pixels):
    path = tmp_path / "palette.png"
    image = Image.fromarray(pixels).quantize(16)
    image.save(path, transparency=bytes(range(16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(path), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode, suffix", [("I;16", "png"), ("I;16", "tif"), ("I", "tif")])
def test_16_bit_grey_keeps_its_bits(tmp_path, mode, suffix):
    grey = np.arange(24 * 32).reshape(24, 32) * 85
    path = tmp_path / f"grey.{suffix}"
    Image.fromarray(grey.astype(np.uint16 if mode == "I;16" else np.int32)).save(path)
    got = read_image(path)
    assert got.dtype == np.uint16
    np.testing.assert_array_equal(got, np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_allclose(canonical(got)[..., 1], grey / 65535, atol=1e-7)


def test_float_grey(tmp_path):
    path = tmp_path / "float.tif"
    grey = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    Image.fromarray(grey).save(path)
    np.testing.assert_array_equal(read_image(path), np.repeat(grey[..., None], 3, axis=2))
    Image.fromarray(grey * 2).save(path)
    with pytest.raises(ValueError, match=r"float.tif: .*within \[0, 1\]; got \[0, 2\]"):
        read_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    upright = np.zeros((24, 32, 3), np.uint8)
    upright[:8, :8] = 255  # the top left corner is white
    turn_back = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(turn_back(upright))).save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path), upright)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_first_frame_of_an_animation(tmp_path, suffix):
    path = tmp_path / f"moving.{suffix}"
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(read_image(path)[0, 0], [255, 0, 0])


def test_damaged_files(tmp_path, pixels):
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(whole)
    Image.fromarray(pixels).save(tmp_path / "whole.jpg")
    files = {
        "truncated.png": (whole.read_bytes()[:3000], "truncated"),
        "header.png": (whole.read_bytes()[:20], ""),
        "truncated.jpg": ((tmp_path / "whole.jpg").read_bytes()[:-200], "[Tt]runcated"),
        "empty.png": (b"", "the file is empty"),
        "text.jpg": (b"hello", "not a picture"),
        "flipped.png": (whole.read_bytes()[:60] + b"\x00" * 400 + whole.read_bytes()[460:], ""),
    }
    for name, (content, message) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}: .*{message}") as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"missing\.png: no such file"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(ValueError, match="found a folder"):
        read_image(tmp_path)


@pytest.mark.parametrize("limit", [100, 500])  # 768 pixels: beyond Pillow's error, and within its warning
def test_bombs_are_refused(tmp_path, pixels, monkeypatch, limit):
    Image.fromarray(pixels).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"bomb\.png: more than 0 million pixels"):
            read_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3)])
def test_canonical_is_diffusers(shape, dtype):
    image = np.random.default_rng(0).random(shape)
    image = (image * np.iinfo(dtype).max).astype(dtype) if np.dtype(dtype).kind == "u" else image.astype(dtype)
    batched = image.reshape(1, 5, 7, -1)  # diffusers reads an unbatched single channel as a row of images
    expected = MarigoldImageProcessor.load_image_canonical(batched)[0].permute(1, 2, 0)
    assert expected.dtype == torch.float32
    np.testing.assert_array_equal(canonical(image), expected.numpy())


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((4, 4, 3), np.int32), "unsigned integers, or floats .* got int32"),
        (np.zeros((4, 4, 3), bool), "got bool"),
        (np.zeros((4, 4, 3), complex), "got complex128"),
        (np.full((4, 4, 3), 1.5, np.float32), r"within \[0, 1\]; got \[1.5, 1.5\]"),
        (np.full((4, 4, 3), -0.1, np.float32), r"within \[0, 1\]"),
        (np.array([[0.5, np.nan]]), r"within \[0, 1\]; got \[nan, nan\]"),
        (np.zeros((4, 4, 4), np.uint8), r"got \(4, 4, 4\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"got \(2, 4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), r"got \(0, 4, 3\)"),
    ],
)
def test_canonical_refuses(image, message):
    with pytest.raises(ValueError, match=message):
        canonical(image)


def test_find_images(tmp_path):
    for name in ("b.PNG", "a.jpg", "notes.txt", "c[1].webp"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "sub.png").mkdir()
    (tmp_path / "empty").mkdir()

    def names(*patterns):
        found, problems = find_images([str(tmp_path / pattern) for pattern in patterns])
        return [path.name for path in found], [problem for _, problem in problems]

    assert names("") == (["a.jpg", "b.PNG", "c[1].webp"], [])
    assert names("b.PNG", "", "a.jpg") == (["b.PNG", "a.jpg", "c[1].webp"], [])  # each once
    assert names("notes.txt") == (["notes.txt"], [])
    assert names("c[1].webp", "*.jpg") == (["c[1].webp", "a.jpg"], [])  # an existing file is not a pattern
    assert names("empty", "x.png", "*.bmp", "a.jpg") == (
        ["a.jpg"],
        ["no pictures in this folder", "no such file or folder", "no file matches"],
    )
