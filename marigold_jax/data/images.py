"""Reads pictures: every kind of pixel, and one clear line for everything that can be wrong with a file."""

import os
from importlib.util import find_spec
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Shaped, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from marigold_jax.runtime.files import regular

# Pillow goes by the content, whatever a file is called, and would try other formats too: EPS starts Ghostscript.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "GIF", "WEBP", "PPM", "TGA", "JPEG2000", "AVIF")
# What counts as a picture in a folder. A file that is named on the command line is opened whatever its extension.
EXTENSIONS = frozenset(
    ".apng .avif .bmp .dib .gif .j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .mpo .pbm .pgm .png .pnm .ppm .tga "
    ".tif .tiff .webp".split()
)
HEIF_EXTENSIONS = frozenset(".heic .heif .hif".split())  # these too, where pillow-heif is installed
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
HEIF_HINT = "pip install 'marigold_jax[heif]' reads HEIC"
ROWS_AT_ONCE = 256  # copied from Pillow in one go


def extensions() -> frozenset[str]:
    """The extensions of pictures in a folder, given the libraries that are installed."""
    return EXTENSIONS | HEIF_EXTENSIONS if find_spec("pillow_heif") else EXTENSIONS


def read_image(path: str | Path) -> Shaped[np.ndarray, "h w 3"]:
    """`decode` for a file. Raises ValueError for anything that is not a regular file as well."""
    try:
        with open(regular(path), "rb") as file:
            return decode(file, str(path))
    except FileNotFoundError:
        missing = "a link to a file that is not there" if os.path.islink(path) else "no such file"
        raise ValueError(f"{path}: {missing}") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None


def count_pixels(path: str | Path) -> int:
    """The number of pixels, read from the header alone; 0 for a file that `read_image` refuses."""
    try:
        with open(regular(path), "rb") as file, open_image(file) as image:
            return image.width * image.height
    except Exception:  # `read_image` reports it
        return 0


def open_image(file: BufferedIOBase) -> Image.Image:
    """Opens a picture of `FORMATS`, or HEIC where pillow-heif is installed, without decoding it.

    Raises what Pillow raises: DecompressionBombError beyond twice `Image.MAX_IMAGE_PIXELS`, 179 million pixels.
    """
    Image.init()  # with `formats`, Pillow considers only those that it has loaded already
    try:
        return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError:
        if _head(file)[4:12] not in [b"ftyp" + brand for brand in HEIF_BRANDS] or not find_spec("pillow_heif"):
            raise
    import pillow_heif  # an extra, and slow to load

    pillow_heif.register_heif_opener()
    return Image.open(file, formats=["HEIF"])


def decode(file: BufferedIOBase, name: str) -> Shaped[np.ndarray, "h w 3"]:
    """Decodes a picture of any Pillow mode, turned upright by its EXIF orientation. Takes an animation's first frame.

    Transparency is dropped. Pillow itself reduces 16-bit colour to 8 bits.

    Args:
        file: the content.
        name: what errors begin with.

    Returns:
        uint8 pixels; uint16 for 16-bit grey; float32 for floating-point grey within [0, 1].

    Raises:
        ValueError: the picture cannot be read: empty, truncated, of another format, or too many pixels.
    """
    try:
        with open_image(file) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        most = (Image.MAX_IMAGE_PIXELS or 0) * (2 if isinstance(error, Image.DecompressionBombError) else 1)
        raise ValueError(f"{name}: more than {most // 10**6} million pixels; shrink the picture first") from None
    except UnidentifiedImageError:
        raise ValueError(f"{name}: {_what_instead(_head(file))}") from None
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror or error}") from None
    except Exception as error:  # decoders raise nearly anything on a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name}: cannot be decoded: {reason}") from error


def _head(file: BufferedIOBase) -> bytes:
    file.seek(0)
    return file.read(12)


def _what_instead(head: bytes) -> str:
    """What a file is that could not be read as a picture, by its first bytes."""
    if not head:
        return "the file is empty"
    container, brand = head[4:8], head[8:12]
    if container == b"ftyp" and brand in HEIF_BRANDS:
        return "cannot be decoded: damaged HEIC" if find_spec("pillow_heif") else f"a HEIC picture: {HEIF_HINT}"
    if (container == b"ftyp" and not brand.startswith(b"avi")) or head[:4] == b"\x1aE\xdf\xa3" or brand == b"AVI ":
        return "a video; wanted pictures: `ffmpeg -i VIDEO frame%05d.png` makes them"
    return f"not a picture of a supported format ({', '.join(FORMATS)})"


def canonical(image: Image.Image | Shaped[np.ndarray, "..."]) -> Float32[np.ndarray, "h w 3"]:
    """Converts a picture to float32 (h, w, 3) in [0, 1].

    Args:
        image: a PIL image, which is converted to RGB without regard to its EXIF orientation; or an array (h, w),
            (h, w, 1) or (h, w, 3). Unsigned integers are divided by the largest value of their type; floats must lie
            within [0, 1].

    Raises:
        ValueError: other values, types or shapes, as in diffusers.
    """
    if isinstance(image, Image.Image):
        image = _rgb(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        raise ValueError(f"an image must have the shape (h, w), (h, w, 1) or (h, w, 3); got {image.shape}")
    if image.dtype.kind not in "uf":
        raise ValueError(f"an image must hold unsigned integers, or floats within [0, 1]; got {image.dtype}")
    values = image.astype(np.float32)
    if image.dtype.kind == "u":
        values /= np.float32(np.iinfo(image.dtype).max)
    elif not (values.min() >= 0 and values.max() <= 1):  # NaN fails both
        raise ValueError(f"a float image must lie within [0, 1]; got [{values.min():g}, {values.max():g}]")
    return values if values.shape[2] == 3 else np.repeat(values, 3, axis=2)


def pixels_of(image: Image.Image | Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "h w 3"]:
    """Validates a picture as `canonical` does, but keeps integers (h, w, 3) as they are: a quarter of the memory."""
    if isinstance(image, Image.Image):
        image = _rgb(image)
    whole = image.dtype.kind == "u" and image.ndim == 3 and image.shape[2] == 3 and 0 not in image.shape
    return image if whole else canonical(image)


def in_network_range(pixels: Shaped[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w 3"]:
    """Converts pixels to float32 in [-1, 1], which is what the VAE takes."""
    values = canonical(pixels)
    values *= 2
    values -= 1
    return values


def _rgb(image: Image.Image) -> Shaped[np.ndarray, "h w 3"]:
    """RGB pixels. Pillow clips modes I, I;16 and F to 8 bits when it converts them, so they are read directly."""
    if image.mode == "F":
        return canonical(np.asarray(image))
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"integer grey must lie within 0 and 65535; got {grey.min()} to {grey.max()}")
        return np.repeat(grey.astype(np.uint16)[..., None], 3, axis=2)
    if "transparency" in image.info:  # Pillow warns where a palette loses it in one step
        image = image.convert("RGBA")
    image = image if image.mode == "RGB" else image.convert("RGB")
    pixels: UInt8[np.ndarray, "h w 3"] = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, ROWS_AT_ONCE):  # in one go, Pillow would make two copies of the picture
        rows = image.crop((0, top, image.width, min(top + ROWS_AT_ONCE, image.height)))
        pixels[top : top + ROWS_AT_ONCE] = np.asarray(rows)
    return pixels
