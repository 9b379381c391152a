"""A raw frame: where its files are, and the checks they must pass before the frame is stored.

A reader (`hypersim`, `virtual_kitti_2`, `folder`) lists frames, and reads one frame at a time into a record
(`data.record`). A frame that cannot be used raises `BadFrame`, and is left out and reported.
"""

import io
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Shaped
from PIL import ExifTags, Image, ImageOps

from marigold_jax.data.depth_format import DepthFormat
from marigold_jax.data.images import canonical, decode
from marigold_jax.data.images import open_image as open_picture
from marigold_jax.data.record import to_png
from marigold_jax.runtime.files import printable, regular


class BadFrame(Exception):
    """A frame cannot be used, and is left out of the dataset.

    Attributes:
        kind: the reason, which reports count, such as "missing file".
        detail: one line about this frame.
    """

    def __init__(self, kind: str, detail: object):
        super().__init__(kind, str(detail))
        self.kind = kind
        self.detail = printable(detail)


@dataclass(frozen=True)
class Part:
    """A file, or a member of an uncompressed tar archive.

    Attributes:
        path: of the file or archive.
        member: the file's name inside the archive; empty for a plain file.
        offset, size: where the content is, in bytes; None is the rest of the file.
    """

    path: str
    member: str = ""
    offset: int = 0
    size: int | None = None

    @property
    def name(self) -> str:
        return f"{self.path}:{self.member}" if self.member else self.path

    def read(self) -> bytes:
        """The content. Raises BadFrame if the file is missing, unreadable, truncated or not a regular file."""
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
    """The files of one frame. A missing file is given by the path at which it was expected.

    Attributes:
        name: what the record is called; the path of the RGB image in the raw dataset.
        rgb, depth, mask, normals: the files; None where the dataset has no such map.
        problem: the arguments of a `BadFrame`, if listing the frames already showed that this one cannot be used.
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
    """Decodes a whole image, so that a truncated file is noticed.

    Args:
        content: of the file.
        path: for error messages.
        formats: Pillow's names of the formats to accept; empty for all that `data.images` reads.

    Raises:
        BadFrame: the file is not an image of these formats, or is damaged.
    """
    Image.init()  # where formats are named, Pillow searches only those it has loaded already
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
    """The EXIF orientation of a picture, 1 to 8; 1 means that the pixels are upright as stored."""
    try:
        with open_picture(io.BytesIO(content)) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # decoders raise nearly anything; whether the picture can be read is checked elsewhere
        return 1
    return orientation if orientation in range(2, 9) else 1


@dataclass(frozen=True)
class Picture:
    """A photograph ready to be stored.

    Attributes:
        content: of a PNG or JPEG file.
        size: (height, width).
        orientation: the EXIF orientation of the original; `content` is upright.
    """

    content: bytes
    size: tuple[int, int]
    orientation: int


def check_rgb(content: bytes, path: str) -> Picture:
    """A photograph with the pixels that `predict` would read, in 8 bits. Raises BadFrame if it cannot be read.

    A plain PNG or JPEG file is kept unchanged. Any other picture, and one that EXIF rotates, is converted to PNG.
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
    """Whether every PNG and JPEG reader gives these pixels, however it treats EXIF, palettes and transparency."""
    if not content.startswith((b"\x89PNG", b"\xff\xd8")) or pixels.dtype != np.uint8:
        return False
    image = open_image(content, "", ("PNG", "JPEG", "MPO"))
    plain = image.mode in ("RGB", "L") and orientation_of(content) == 1
    return plain and np.array_equal(np.asarray(image.convert("RGB")), pixels)


def check_depth_png(content: bytes, path: str) -> Shaped[np.ndarray, "h w 1"]:
    """The values of a 16-bit grey PNG, rotated as its EXIF says. Raises BadFrame for any other PNG."""
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
    values: Shaped[np.ndarray, "h w 1"], mask: Bool[np.ndarray, "h w 1"] | None, depth_format: DepthFormat, path: str
) -> None:
    """Checks that at least one pixel has valid depth.

    Args:
        values: stored depth, in the unit of `depth_format`.
        mask: False where depth is invalid whatever its value; None where the dataset has no masks.
        depth_format: unit and valid range.
        path: for the error message.

    Raises:
        BadFrame: no pixel is valid.
    """
    metres = values / np.float32(depth_format.units_per_metre)
    valid = (metres > depth_format.min_depth) & (metres < depth_format.max_depth)
    if mask is not None:
        valid &= mask
    if not valid.any():
        low, high = metres.min(), metres.max()
        limits = f"{depth_format.min_depth:g} and {depth_format.max_depth:g} m"
        raise BadFrame("no valid depth", f"{path}: depth runs from {low:g} to {high:g} m, valid is between {limits}")
