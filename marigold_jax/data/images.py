"""Pictures from files: which files, every kind of pixel, one clear line for everything that can be wrong with one."""

import glob
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float32, Shaped
from PIL import Image, ImageOps, UnidentifiedImageError

from marigold_jax.runtime.files import regular

# Pillow would try others as well, whatever a file is called: EPS starts Ghostscript.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "GIF", "WEBP", "PPM", "TGA", "JPEG2000", "AVIF")
# What counts as a picture inside a folder; a file that is named outright is opened whatever it is called.
EXTENSIONS = frozenset(
    ".avif .bmp .dib .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()
)


def find_images(patterns: list[str]) -> tuple[list[Path], list[tuple[str, str]]]:
    """The pictures that `patterns` (files, folders, quoted globs) name, in order, each once, and what went wrong.

    Folders are read without their subfolders, sorted by name, and only for files with a known extension (any case). The
    second list holds pairs (pattern, one line about what is wrong with it).
    """
    found, problems = {}, []
    for pattern in patterns:
        path = Path(pattern)
        try:
            if path.is_dir():
                matches = sorted(p for p in path.iterdir() if p.suffix.lower() in EXTENSIONS and p.is_file())
                problem = "no pictures in this folder"
            elif path.exists():
                matches, problem = [path], ""
            else:
                matches = sorted(p for p in map(Path, glob.glob(pattern, recursive=True)) if p.is_file())
                problem = "no file matches" if glob.has_magic(pattern) else "no such file or folder"
        except OSError as error:
            matches, problem = [], error.strerror
        found |= {p.absolute(): p for p in matches if p.absolute() not in found}
        if not matches:
            problems.append((pattern, problem))
    return list(found.values()), problems


def read_ahead(pool: Executor, read: Callable, paths: Iterable[Path], limit: int) -> Iterator:
    """`map(read, paths)`, in order, with at most `limit` pictures read in `pool` before they are asked for."""
    paths = iter(paths)
    pending = deque(pool.submit(read, path) for path in islice(paths, limit))
    while pending:
        result = pending.popleft().result()
        pending.extend(pool.submit(read, path) for path in islice(paths, 1))
        yield result


def read_image(path: str | Path) -> Shaped[np.ndarray, "h w 3"]:
    """`decode` for a file. Raises ValueError for anything that is not a regular file, too."""
    try:
        with open(regular(path), "rb") as file:
            return decode(file, str(path))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None


def decode(file: BinaryIO | BytesIO, name: str) -> Shaped[np.ndarray, "h w 3"]:
    """Decodes a picture of any Pillow mode, turned upright by its EXIF orientation; of an animation, the first frame.

    uint8, but uint16 for 16-bit grey, and float32 for floating-point grey within [0, 1]. Transparency is dropped.
    Pillow itself narrows 16-bit colour to 8. Raises ValueError, in one line that begins with `name`, for anything that
    cannot be read: empty, truncated, not a picture of `FORMATS`, or more pixels than Pillow's guard against
    decompression bombs allows.
    """
    Image.init()  # Pillow looks among the formats that it has loaded already, where some are named
    try:
        with Image.open(file, formats=FORMATS) as image:
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ValueError(f"{name}: more than {limit} million pixels; shrink the picture first") from None
    except UnidentifiedImageError:
        empty = file.seek(0, os.SEEK_END) == 0
        raise ValueError(f"{name}: {'the file is empty' if empty else 'not a picture that Pillow can read'}") from None
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror or error}") from None
    except Exception as error:  # decoders raise nearly anything on a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name}: cannot be decoded: {reason}") from error


def canonical(image: Image.Image | Shaped[np.ndarray, "..."]) -> Float32[np.ndarray, "h w 3"]:
    """A PIL image or an array (h, w), (h, w, 1) or (h, w, 3) as float32 (h, w, 3) in [0, 1].

    Unsigned integers are divided by their type's largest value; floats must already lie within [0, 1]. Raises
    ValueError for other values, types and shapes, as diffusers does. PIL images are converted to RGB; their EXIF
    orientation is ignored.
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


def _rgb(image: Image.Image) -> Shaped[np.ndarray, "h w 3"]:
    """Pillow clips modes I, I;16 and F to 8 bits when asked for RGB, so they are read as they are."""
    if image.mode == "F":
        return canonical(np.asarray(image))
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"integer grey must lie within 0 and 65535; got {grey.min()} to {grey.max()}")
        return np.repeat(grey.astype(np.uint16)[..., None], 3, axis=2)
    if "transparency" in image.info:  # Pillow warns about palettes that lose it in one step
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))
