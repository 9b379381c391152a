"""A raw frame on its way into a dataset: where its files lie, how they are checked, and the record that is stored.

A reader (`hypersim`, `virtual_kitti_2`, `folder`) lists frames, and reads one frame into a record. A record holds

    name      the frame's RGB path as official filename lists spell it
    rgb       the bytes of a PNG or JPEG file, untouched where the source is one
    depth     the bytes of a 16-bit PNG file, or float32 (h, w, 1); in the source's own unit, 0 where unknown
    mask      the bytes of an 8-bit PNG file, not 0 where valid            (if the dataset has masks)
    normals   int16 (h, w, 3), unit vectors times `sources.NORMAL_UNITS`   (if the dataset has normals)
    note      one line on what was changed in a frame that is kept         (not stored; for the report)
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int16, Shaped, UInt8
from PIL import Image

from marigold_jax.data.images import open_image as open_picture
from marigold_jax.data.sources import NORMAL_UNITS, Source

Record = dict[str, Any]


class BadFrame(Exception):
    """The frame is left out. `kind` is what reports count ("missing file"), `detail` is about this frame."""

    def __init__(self, kind: str, detail: object):
        super().__init__(kind, str(detail))
        self.kind = kind
        self.detail = str(detail)


@dataclass(frozen=True)
class Part:
    """A file, or the stretch of a tar archive that holds one; then `member` is its name inside."""

    path: str
    member: str = ""
    offset: int = 0
    size: int | None = None

    @property
    def name(self) -> str:
        return f"{self.path}:{self.member}" if self.member else self.path

    def read(self) -> bytes:
        """Raises BadFrame if the file is missing, unreadable or cut short."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except FileNotFoundError:
            raise BadFrame("missing file", self.name) from None
        except OSError as error:
            raise BadFrame("unreadable file", f"{self.name}: {error.strerror}") from None
        if not content or (self.size is not None and len(content) < self.size):
            raise BadFrame("truncated file", self.name)
        return content


@dataclass(frozen=True)
class Frame:
    """The files of one frame. A file that should be there and is not may be given by a path that does not exist."""

    name: str
    rgb: Part
    depth: Part
    mask: Part | None = None
    normals: Part | None = None


def open_image(content: bytes, path: str) -> Image.Image:
    """Decodes all of an image, so that a truncated one shows. Raises BadFrame."""
    try:
        image = open_picture(io.BytesIO(content))
        image.load()
        return image
    except Exception as error:  # decoders raise nearly anything on a damaged file
        reason = "" if isinstance(error, Image.UnidentifiedImageError) else f": {error}"
        raise BadFrame("unreadable image", f"{path}{reason}") from None


def check_rgb(content: bytes, path: str) -> tuple[bytes, tuple[int, int]]:
    """The bytes to store and the image's (height, width). Files other than PNG and JPEG become PNG."""
    image = open_image(content, path)
    if image.format not in ("PNG", "JPEG"):
        content = to_png(np.asarray(image.convert("RGB")))
    return content, image.size[::-1]


def check_depth_png(content: bytes, path: str) -> Shaped[np.ndarray, "h w 1"]:
    """The values of a 16-bit grey PNG. Raises BadFrame for another kind of PNG."""
    image = open_image(content, path)
    if not image.mode.startswith("I;16"):
        raise BadFrame("depth is not a 16-bit grey PNG", f"{path}: Pillow mode {image.mode}")
    return np.asarray(image)[..., None]


def check_sizes(sizes: Iterable[tuple[str, tuple[int, int]]]) -> None:
    """Raises BadFrame unless all named (height, width) are the same."""
    sizes = list(sizes)
    if len({size for _, size in sizes}) > 1:
        raise BadFrame("size mismatch", ", ".join(f"{name} {height} x {width}" for name, (height, width) in sizes))


def check_depth(
    values: Shaped[np.ndarray, "h w 1"], mask: Bool[np.ndarray, "h w 1"] | None, source: Source, path: str
) -> None:
    """Raises BadFrame unless some pixel is valid."""
    metres = values / np.float32(source.units_per_metre)
    valid = (metres > source.min_depth) & (metres < source.max_depth)
    if mask is not None:
        valid &= mask
    if not valid.any():
        low, high = metres.min(), metres.max()
        limits = f"{source.min_depth:g} and {source.max_depth:g} m"
        raise BadFrame("no valid depth", f"{path}: depth runs from {low:g} to {high:g} m, valid is between {limits}")


def quantise(normals: Float[np.ndarray, "h w 3"]) -> Int16[np.ndarray, "h w 3"]:
    """Normals, made unit vectors, as they are stored. Vectors that are not finite, or shorter than 0.1, become 0."""
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    known = np.isfinite(length) & (length > 0.1)
    return np.rint(np.where(known, normals, 0) / np.where(known, length, 1) * NORMAL_UNITS).astype(np.int16)


def to_png(image: Shaped[np.ndarray, "..."]) -> bytes:
    """Encodes uint8 (h, w) or (h, w, 3), or uint16 (h, w)."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=4)  # as small as the default 6, in half the time
    return buffer.getvalue()


def to_mask_png(mask: Bool[np.ndarray, "h w 1"]) -> bytes:
    grey: UInt8[np.ndarray, "h w"] = mask[..., 0].astype(np.uint8) * np.uint8(255)
    return to_png(grey)


def read_filename_list(path: str | Path) -> list[list[str]]:
    """The columns of each line: `rgb depth ...`, relative paths. Lines without a depth map ("None") are dropped.

    Raises ValueError, in one line, for a list that is missing, empty or has only one column.
    """
    try:
        lines = [line.split() for line in Path(path).read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot read this filename list ({error})") from None
    for number, columns in enumerate(lines, start=1):
        if len(columns) < 2:
            raise ValueError(
                f"{path}: every line must hold an RGB path and a depth path; line {number} is {columns[0]!r}"
            )
    if not lines:
        raise ValueError(f"{path}: the filename list is empty")
    return [columns for columns in lines if columns[1] != "None"]
