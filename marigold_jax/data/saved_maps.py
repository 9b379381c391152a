"""Reads saved maps, such as predictions and known depth, with one value or one vector per pixel.

The format is recognised by the content of a file: NumPy's .npy, an .npz archive of one array, or a 16-bit grey PNG.
Files need not be trusted: pickles are refused, and no more memory is allocated than the file fills. For the files of
raw datasets, see `data.raw_files`.
"""

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped
from numpy.lib import format as npy
from PIL import Image

from marigold_jax.data.resample import resize
from marigold_jax.runtime.files import regular

LARGEST = 2**29  # values: the normals of the largest photograph that Pillow opens
ASPECT = 1.5  # a map whose aspect ratio differs from the image's by more belongs to another image
KINDS = {"b": "truth values", "c": "complex numbers", "O": "Python objects", "S": "text", "U": "text", "V": "records"}
HEADERS = {1: npy.read_array_header_1_0, 2: npy.read_array_header_2_0, 3: npy.read_array_header_2_0}


def read_map(path: str | Path, png_unit: float | None) -> Float32[np.ndarray, "h w c"]:
    """Reads a map of one or three channels; see `channels_last` for the accepted shapes.

    Args:
        path: of the file.
        png_unit: the integers of a PNG are divided by it; None refuses PNG.

    Returns:
        The values. NaN and infinity are kept.

    Raises:
        ValueError: the file cannot be read or is not such a map; one line that begins with the path.
    """
    path = Path(path)
    try:
        with open(regular(path), "rb") as file:
            size = path.stat().st_size
            if size > 9 * LARGEST:
                raise ValueError(f"{size} bytes, which is no map of a picture")
            values = array(file.read(), png_unit)
        return channels_last(values)
    except (ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{path}: {' '.join(reason.split()).removeprefix(f'{path}: ')}") from None


def array(content: bytes, png_unit: float | None = None) -> Shaped[np.ndarray, "..."]:
    """The array in the content of a file, of any shape. The message of a ValueError does not name the file."""
    if content.startswith(b"\x89PNG"):
        return _png(content, png_unit)
    if content.startswith(b"PK"):
        content = _only_member(content)
    try:
        file = io.BytesIO(content)
        version = npy.read_magic(file)
        if version[0] not in HEADERS:
            raise ValueError(f"unknown format version {version[0]}.{version[1]}")
        shape, in_columns, kind = HEADERS[version[0]](file)
    except Exception as error:  # the header is Python text, and its parser raises nearly anything
        raise ValueError(f"not a whole .npy file ({_reason(error)})") from None
    if kind.hasobject or kind.kind not in "uif":
        raise ValueError(f"wanted real numbers, found {KINDS.get(kind.kind, kind)}")
    count = math.prod(shape)
    if not shape or not 0 < count <= LARGEST or min(shape) < 0:
        raise ValueError(f"wanted the shape of a map, found {shape}")
    if count * kind.itemsize > len(content) - file.tell():
        raise ValueError(
            f"not a whole .npy file (shape {shape} of {kind} needs {count * kind.itemsize} bytes, it has "
            f"{len(content) - file.tell()})"
        )
    return np.frombuffer(content, kind, count, file.tell()).reshape(shape, order="F" if in_columns else "C")


def channels_last(values: Shaped[np.ndarray, "..."]) -> Float32[np.ndarray, "h w c"]:
    """Converts a map to float32 (h, w, c) with c = 1 or 3.

    Accepts (h, w), (h, w, c) and (c, h, w), each with any number of leading axes of length 1. If the first and the last
    axis could both be channels, the last one is taken. Raises ValueError for other shapes.
    """
    found = values.shape
    while values.ndim > 3 and len(values) == 1:
        values = values[0]
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim == 3 and values.shape[2] not in (1, 3) and len(values) in (1, 3):
        values = values.transpose(1, 2, 0)
    if values.ndim != 3 or values.shape[2] not in (1, 3):
        raise ValueError(f"wanted shape (height, width) or (height, width, 3), found {found}")
    with np.errstate(over="ignore"):  # values too large for float32 become infinite, which callers check
        return values.astype(np.float32)


def check_shape(found: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Raises ValueError if a map of size `found` = (height, width) cannot belong to an image of size `wanted`."""
    stretch = found[0] * wanted[1] / (found[1] * wanted[0])
    if found != wanted and (found == wanted[::-1] or not 1 / ASPECT <= stretch <= ASPECT):
        raise ValueError(
            f"has {found[0]} x {found[1]} pixels, the picture {wanted[0]} x {wanted[1]}: not one picture in two sizes"
        )


def stretched(values: Float32[np.ndarray, "h w c"], size: tuple[int, int]) -> Float32[np.ndarray, "height width c"]:
    """Resizes a map to (height, width), bilinearly, using finite values only. NaN where there are none nearby."""
    finite = np.isfinite(values).all(axis=-1, keepdims=True)
    if finite.all():
        return resize(values, size, "bilinear", antialias=True)
    share = resize(finite.astype(np.float32), size, "bilinear", antialias=True)
    total = resize(np.where(finite, values, np.float32(0)), size, "bilinear", antialias=True)
    return np.where(share > 1e-3, total / np.maximum(share, np.float32(1e-3)), np.float32(np.nan))


def _png(content: bytes, unit: float | None) -> Float32[np.ndarray, "h w"]:
    if unit is None:
        raise ValueError("a PNG says nothing of its unit: save .npy")
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if not image.mode.startswith("I"):
                raise ValueError(f"wanted a 16-bit grey PNG, got Pillow mode {image.mode}")
            return np.asarray(image, np.float32) / np.float32(unit)
    except ValueError:
        raise
    except Exception as error:  # decoders raise nearly anything on a damaged file
        raise ValueError(f"cannot be decoded: {_reason(error)}") from None


def _only_member(content: bytes) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if len(members) != 1:
                raise ValueError(f"wanted an .npz archive of one array, found {len(members)} files")
            if members[0].file_size > 9 * LARGEST:
                raise ValueError(f"an array of {members[0].file_size} bytes, which is no map of a picture")
            with archive.open(members[0]) as file:
                return file.read(members[0].file_size)
    except ValueError:
        raise
    except Exception as error:  # zipfile and the decompressors raise nearly anything on a damaged file
        raise ValueError(f"not a whole .npz archive ({_reason(error)})") from None


def _reason(error: Any) -> str:
    return (str(error) or type(error).__name__)[:200]
