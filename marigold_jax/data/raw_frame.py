"""A raw frame on its way into a dataset: where its files lie, how they are checked, and the record that is stored.

A reader (`hypersim`, `virtual_kitti_2`, `folder`) lists frames, and reads one frame into a record. A record holds

    name      the frame's RGB path as official filename lists spell it
    rgb       the bytes of a PNG or JPEG file, untouched where the source is one
    depth     the bytes of a 16-bit PNG file, or float32 (h, w, 1); in the source's own unit, 0 where unknown
    mask      the bytes of an 8-bit PNG file, not 0 where valid            (if the dataset has masks)
    normals   int16 (h, w, 3), unit vectors times `sources.NORMAL_UNITS`   (if the dataset has normals)
    note      one line on what was changed in a frame that is kept         (not stored; for the report)
"""

import codecs
import io
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int16, Shaped, UInt8
from PIL import ExifTags, Image, ImageOps

from marigold_jax.data.images import canonical, decode
from marigold_jax.data.images import open_image as open_picture
from marigold_jax.data.prepared import NORMAL_UNITS, Source
from marigold_jax.runtime.files import below, printable, regular

Record = dict[str, Any]


class BadFrame(Exception):
    """The frame is left out. `kind` is what reports count ("missing file"), `detail` is about this frame."""

    def __init__(self, kind: str, detail: object):
        super().__init__(kind, str(detail))
        self.kind = kind
        self.detail = printable(detail)


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
        """Raises BadFrame if the file is missing, unreadable, cut short, or no file at all: a FIFO would never end."""
        try:
            with open(regular(self.path), "rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except FileNotFoundError:
            raise BadFrame("missing file", self.name) from None
        except OSError as error:
            raise BadFrame("unreadable file", f"{self.name}: {error.strerror}") from None
        except ValueError as error:
            raise BadFrame("unreadable file", error) from None
        if not content or (self.size is not None and len(content) < self.size):
            raise BadFrame("truncated file", self.name)
        return content


@dataclass(frozen=True)
class Frame:
    """The files of one frame. A file that should be there and is not may be given by a path that does not exist.

    `problem` is what was seen already when frames were listed, the arguments of a BadFrame.
    """

    name: str
    rgb: Part
    depth: Part
    mask: Part | None = None
    normals: Part | None = None
    problem: tuple[str, str] | None = None

    @property
    def parts(self) -> list[Part]:
        return [part for part in (self.rgb, self.depth, self.mask, self.normals) if part]


def open_image(content: bytes, path: str, formats: Sequence[str] = ()) -> Image.Image:
    """Decodes all of an image, of `formats` if they are given, so that a truncated one shows. Raises BadFrame."""
    Image.init()  # Pillow looks among the formats that it has loaded already, where some are named
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # above twice that size it refuses
            file = io.BytesIO(content)
            image = Image.open(file, formats=formats) if formats else open_picture(file)
            image.load()
        return image
    except Exception as error:  # decoders raise nearly anything on a damaged file
        reason = "" if isinstance(error, Image.UnidentifiedImageError) else f": {error}"
        raise BadFrame("unreadable image", f"{path}{reason}") from None


def orientation_of(content: bytes) -> int:
    """How the EXIF of a picture wants its pixels turned: 1 is not at all, 2 to 8 are the other ways."""
    try:
        with open_picture(io.BytesIO(content)) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # decoders raise nearly anything; whether the picture can be read is asked elsewhere
        return 1
    return orientation if orientation in range(2, 9) else 1


@dataclass(frozen=True)
class Picture:
    """A photograph as it is stored: a file's content, the (height, width), and what its EXIF said of its pixels."""

    content: bytes
    size: tuple[int, int]
    orientation: int


def check_rgb(content: bytes, path: str) -> Picture:
    """What `predict` would see of a picture, in 8 bits. Raises BadFrame where it sees nothing.

    The content of a plain PNG or JPEG stays as it is; any other picture, and one that has to be turned, becomes PNG.
    """
    try:
        pixels = decode(io.BytesIO(content), path)
    except ValueError as error:
        raise BadFrame("unreadable image", error) from None
    if not _plain(content, pixels):
        pixels = pixels if pixels.dtype == np.uint8 else np.rint(canonical(pixels) * 255).astype(np.uint8)
        stored = to_png(pixels)
        return Picture(stored, pixels.shape[:2], orientation_of(content))
    return Picture(content, pixels.shape[:2], 1)


def _plain(content: bytes, pixels: Shaped[np.ndarray, "h w 3"]) -> bool:
    """Whether any reader of PNG and JPEG sees these pixels, whatever it makes of EXIF, palettes and transparency."""
    if not content.startswith((b"\x89PNG", b"\xff\xd8")) or pixels.dtype != np.uint8:
        return False
    image = open_image(content, "", ("PNG", "JPEG", "MPO"))
    plain = image.mode in ("RGB", "L") and orientation_of(content) == 1
    return plain and np.array_equal(np.asarray(image.convert("RGB")), pixels)


def check_depth_png(content: bytes, path: str) -> Shaped[np.ndarray, "h w 1"]:
    """The values of a 16-bit grey PNG, turned upright by EXIF. Raises BadFrame for another kind of PNG."""
    image = open_image(content, path, ("PNG",))
    if not image.mode.startswith("I;16"):
        raise BadFrame("depth is not a 16-bit grey PNG", f"{path}: Pillow mode {image.mode}")
    if orientation_of(content) > 1:
        ImageOps.exif_transpose(image, in_place=True)
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


NO_DEPTH = "None"  # in the second column of official lists
SURROGATES = "surrogateescape"  # as in Python's names of files that are not UTF-8


def filename_lines(path: str | Path) -> list[list[str]]:
    """The columns of each line of a filename list: `rgb depth ...`, relative paths.

    Columns are apart by blanks, or by tabs where a line has any; names with blanks are quoted. Lines that begin with #
    are comments. A name that is not UTF-8 has surrogate characters.

    Raises ValueError, in one line, for a list that is missing, empty or has only one column, and for names that are
    absolute or lead upwards.
    """
    try:
        content = regular(path).read_bytes()
        utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as PowerShell writes it
        text = content.decode("utf-16") if utf16 else content.removeprefix(codecs.BOM_UTF8).decode(errors=SURROGATES)
    except (OSError, ValueError) as error:
        reason = printable(getattr(error, "strerror", None) or error)
        raise ValueError(f"{path}: cannot read this filename list ({reason})") from None
    found = []
    for number, line in enumerate(re.split("\r\n|\r|\n", text), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        columns = _columns(line)
        if len(columns) < 2:
            raise ValueError(
                f"{path}: every line must hold an RGB path and a depth path; line {number} is {printable(line)!r}"
            )
        for name in columns:
            try:
                below(Path(path).parent, name)
            except ValueError:
                raise ValueError(
                    f"{path}: line {number}: wanted relative names, without '..'; got {printable(name)!r}"
                ) from None
        found.append(columns)
    if not found:
        raise ValueError(f"{path}: the filename list is empty")
    return found


def read_filename_list(path: str | Path) -> list[list[str]]:
    """`filename_lines` without those that have no depth map."""
    return [columns for columns in filename_lines(path) if columns[1] != NO_DEPTH]


def is_utf8(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)


COLUMN = re.compile(r"""(?:"[^"]*"|'[^']*'|\S+)(?=\s|$)""")
QUOTED = re.compile(r"""^(["'])(.*)\1$""")


def _columns(line: str) -> list[str]:
    parts = map(str.strip, line.split("\t")) if "\t" in line else (match[0] for match in COLUMN.finditer(line))
    return [QUOTED.sub(r"\2", part) for part in parts if part]
