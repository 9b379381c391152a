"""Every kind of picture, and everything that can be wrong with one."""

import io
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.marigold.marigold_image_processing import MarigoldImageProcessor
from PIL import Image

from marigold_jax.data import images
from marigold_jax.data.geometry import fit, to_canvas
from marigold_jax.data.images import canonical, count_pixels, in_network_range, read_image


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


@pytest.mark.parametrize("limit", [100, 383])  # twice that is less than the 768 pixels
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


def test_large_photographs_are_read_and_beyond_is_one_line(tmp_path, pixels, monkeypatch):
    """Pillow warns of 89 million pixels, and refuses twice as many: photographs of phones lie between."""
    Image.fromarray(pixels).save(tmp_path / "phone.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(read_image(tmp_path / "phone.png"), pixels)
        assert count_pixels(tmp_path / "phone.png") == 768
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 383)
        assert count_pixels(tmp_path / "phone.png") == 0


def test_a_large_photograph_takes_little_more_than_its_pixels(tmp_path):
    """Three bytes a pixel, and Pillow's four: no float of it all, and no second copy."""
    program = """if True:
        import resource, sys
        import numpy as np
        from marigold_jax.data.geometry import fit, to_canvas
        from marigold_jax.data.images import in_network_range, read_image

        def canvas(path):
            image = read_image(path)
            return to_canvas(image, fit(image.shape[:2], 768, 64), "bilinear", in_network_range)

        canvas(sys.argv[1])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        canvas(sys.argv[2])
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 30e6)
    """
    Image.new("RGB", (640, 480), "red").save(tmp_path / "small.jpg")
    Image.new("RGB", (6000, 5000), "red").save(tmp_path / "large.jpg")
    command = [sys.executable, "-c", program, tmp_path / "small.jpg", tmp_path / "large.jpg"]
    assert float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) < 9


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("method", ["bilinear", "bicubic", "nearest-exact", "area"])
def test_a_canvas_by_rows_is_that_of_the_whole_to_the_bit(dtype, method):
    image = np.random.default_rng(0).random((301, 467, 3))
    image = (image * np.iinfo(dtype).max).astype(dtype) if np.dtype(dtype).kind == "u" else image.astype(dtype)
    for resolution, bucket in ((96, 8), (128, 64), (640, 8), (0, 8)):
        geometry = fit(image.shape[:2], resolution, bucket)
        wanted = to_canvas(canonical(image) * 2 - 1, geometry, method)
        np.testing.assert_array_equal(to_canvas(image, geometry, method, in_network_range), wanted)


@pytest.mark.parametrize("suffix", ["mpo", "jpg"])
def test_the_first_picture_of_several(tmp_path, pixels, suffix):
    """Stereo cameras, and phones that add a second view, write MPO, whatever they call it."""
    frames = [Image.fromarray(pixels), Image.fromarray(255 - pixels)]
    frames[0].save(tmp_path / f"x.{suffix}", "MPO", save_all=True, append_images=frames[1:], quality=95)
    assert np.abs(read_image(tmp_path / f"x.{suffix}").astype(int) - pixels).max() <= 8
    assert f".{suffix}" in images.extensions()


def test_heic_of_a_phone(tmp_path, pixels):
    heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = 6  # the container turns the picture; what EXIF says of it must not turn it again
    heif.from_pillow(Image.fromarray(pixels)).save(tmp_path / "x.HEIC", quality=100, exif=exif.tobytes())
    found = read_image(tmp_path / "x.HEIC")
    turned = np.rot90(pixels, -1)
    assert found.shape == turned.shape and np.abs(found.astype(int) - turned).max() <= 12
    assert ".heic" in images.extensions()
    assert count_pixels(tmp_path / "x.HEIC") == 768
    (tmp_path / "cut.heic").write_bytes((tmp_path / "x.HEIC").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cut\.heic: [^\n]+$"):
        read_image(tmp_path / "cut.heic")


def test_avif(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "x.avif", quality=100)
    assert np.abs(read_image(tmp_path / "x.avif").astype(int) - pixels).max() <= 8


def test_heic_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "x.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"x\.heic: a HEIC picture: pip install 'marigold_jax\[heif\]' reads HEIC$"):
        read_image(tmp_path / "x.heic")


NO_PICTURES = {
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n",
    "binary eps": b"\xc5\xd0\xd3\xc6" + bytes(26) + b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "pdf": b"%PDF-1.4\n",
    "wmf": b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(40),
    "emf": b"\x01\x00\x00\x00" + bytes(36) + b" EMF" + bytes(60),
    "psd": b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\0\x09\0\0\0\x09\0\x08\0\3" + bytes(20),
    "fli": bytes(4) + b"\x11\xaf\1\0\x09\0\x09\0\x08\0" + bytes(110),
    "fits": b"SIMPLE  =                    T".ljust(80) + b"BITPIX  = 8".ljust(80) + b"END".ljust(80),
    "grib": b"GRIB\0\0\0\1" + bytes(20),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(20),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "xpm": b"/* XPM */\n",
    "video": b"\0\0\0\x18ftypmp42\0\0\0\0isommp42",
    "matroska": b"\x1aE\xdf\xa3" + bytes(20),
}


@pytest.mark.parametrize("content", NO_PICTURES.values(), ids=NO_PICTURES)
def test_other_formats_start_nothing(tmp_path, monkeypatch, content):
    """Pillow goes by the content: EPS that is called PNG would be given to Ghostscript."""
    Image.init()
    for name in set(Image.OPEN) - set(images.FORMATS):
        monkeypatch.setitem(Image.OPEN, name, (lambda *_, name=name: pytest.fail(f"opened as {name}"), None))
    for start in ("run", "Popen", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, start, lambda *_, **__: pytest.fail("started a program"))
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"x\.png: (not a picture of a supported format|a video; wanted pictures)[^\n]*$"
    ):
        read_image(tmp_path / "x.png")


def test_bytes_in_memory_are_read_too(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    np.testing.assert_array_equal(images.decode(file, "x"), pixels)
    with pytest.raises(ValueError, match="x: the file is empty"):
        images.decode(io.BytesIO(), "x")


def test_every_reader_of_pictures_says_which_formats():
    package = Path(images.__file__).parent.parent
    opens = [line for path in package.rglob("*.py") for line in path.read_text().splitlines() if "Image.open(" in line]
    assert opens and [line for line in opens if "formats=" not in line] == []
