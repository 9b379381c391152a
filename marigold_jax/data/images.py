"""Pictures from files: which files, every kind of pixel, one clear line for everything that can be wrong with one."""

import glob
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from functools import cache
from importlib.util import find_spec
from io import BufferedIOBase
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Shaped, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from marigold_jax.inference.outputs import is_journal, is_output
from marigold_jax.runtime.files import printable, regular

# Pillow would try others as well, whatever a file is called: EPS starts Ghostscript.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "GIF", "WEBP", "PPM", "TGA", "JPEG2000", "AVIF")
# What counts as a picture inside a folder; a file that is named outright is opened whatever it is called.
EXTENSIONS = frozenset(
    ".apng .avif .bmp .dib .gif .j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .mpo .pbm .pgm .png .pnm .ppm .tga "
    ".tif .tiff .webp".split()
)
HEIF_EXTENSIONS = frozenset(".heic .heif .hif".split())  # pictures, too, where pillow-heif is installed
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
HEIF_HINT = "pip install 'marigold_jax[heif]' reads HEIC"
SIDECARS = frozenset("thumbs.db ehthumbs.db desktop.ini".split())  # nobody takes them for pictures
NAMED = 20  # files that are passed over, at most, in one line
LOOKED_AT = 1000  # folders, at most, to see whether one of them holds pictures
ROWS_AT_ONCE = 256  # of a picture, while it is copied out of Pillow


def find_images(patterns: list[str], recursive: bool = False) -> tuple[list[Path], list[tuple[str, str]]]:
    """The pictures that `patterns` (files, folders, quoted globs) name, in order, each once, and what went wrong.

    Of a folder, those are the files with a known extension (any case), sorted by name; those of its subfolders too, if
    `recursive`, but not what this program wrote into them. The second list holds pairs (pattern, one line about what is
    wrong with it).
    """
    found, problems, real = {}, [], cache(os.path.realpath)
    for pattern in patterns:
        path = Path(pattern)
        try:
            if path.is_dir():
                matches, unreadable = _pictures_in([path], recursive)
                problem = "no pictures in this folder"
                if not matches and not recursive and _pictures_below(path):
                    problem += "; its subfolders hold some: add --recursive"
            elif os.path.lexists(path):
                matches, unreadable, problem = [path], [], ""
            else:
                matches = sorted(map(Path, _expand(pattern)))
                folders = [match for match in matches if match.is_dir()]
                below, unreadable = _pictures_in(folders, recursive) if recursive else ([], [])
                matches = [match for match in matches if not match.is_dir()] + below
                problem = "no file matches" if glob.has_magic(pattern) else "no such file or folder"
                if folders and not recursive:
                    problem = "only folders match: name them without quotes, or add --recursive"
        except (OSError, ValueError) as error:  # ValueError: a null character
            matches, unreadable, problem = [], [], getattr(error, "strerror", None) or str(error)
        for match in matches:  # two spellings of one entry of a folder are one; a link to a picture is another
            found.setdefault((real(match.parent), match.name), match)
        problems += unreadable
        if not matches and not unreadable:
            problems.append((pattern, problem))
    return list(found.values()), problems


def passed_over(patterns: list[str], recursive: bool = False) -> list[str]:
    """A line for each folder among `patterns` that holds files which `find_images` does not take: how many, and which.

    Hidden files and those that a system leaves behind in a folder of photographs are not worth a word.
    """
    lines, known = [], extensions()
    for folder in filter(os.path.isdir, dict.fromkeys(patterns)):
        others, hinted = [], False
        for below in _folders(Path(folder), []) if recursive else [Path(folder)]:
            for entry in _entries(below, []):
                kind, is_folder = _kind(entry), _is_folder(entry)
                misnamed = is_folder and not recursive and kind in known
                if misnamed or not (is_folder or kind in known or _silent(entry.name)):
                    name = printable((below / entry.name).relative_to(folder))
                    hint = "a folder" if misnamed else HEIF_HINT if kind in HEIF_EXTENSIONS and not hinted else ""
                    hinted |= hint == HEIF_HINT
                    others.append(f"{name} ({hint})" if hint else name)
        if others:
            named = others[:NAMED] + ([f"and {len(others) - NAMED} more"] if len(others) > NAMED else [])
            files = "1 file in {} was" if len(others) == 1 else f"{len(others)} files in {{}} were"
            lines.append(f"{files.format(printable(folder))} passed over: {', '.join(named)}")
    return lines


def extensions() -> frozenset[str]:
    """What counts as a picture inside a folder, with what is installed."""
    return EXTENSIONS | HEIF_EXTENSIONS if find_spec("pillow_heif") else EXTENSIONS


def _pictures_in(folders: list[Path], recursive: bool) -> tuple[list[Path], list[tuple[str, str]]]:
    """Whatever is called like a picture: what is none will be said when it is read. And the folders that cannot be."""
    found, unreadable, known = [], [], extensions()
    for top in folders:
        for folder in _folders(top, unreadable) if recursive else [top]:
            found += [folder / entry.name for entry in _entries(folder, unreadable) if _like_one(entry, known)]
    return found, unreadable


def _pictures_below(folder: Path) -> bool:
    folders, known = islice(_folders(folder, []), LOOKED_AT), extensions()
    return any(_like_one(entry, known) for below in folders for entry in _entries(below, []))


def _like_one(entry: os.DirEntry, known: frozenset[str]) -> bool:
    """By its name; "._" is what macOS keeps of a file beside it."""
    return _kind(entry) in known and not entry.name.startswith("._") and not _is_folder(entry)


def _kind(entry: os.DirEntry) -> str:
    return os.path.splitext(entry.name)[1].lower()


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _silent(name: str) -> bool:
    return name.startswith(".") or name.lower() in SIDECARS or is_journal(name)


def _folders(top: Path, unreadable: list[tuple[str, str]]) -> Iterator[Path]:
    """`top` and the folders below it, sorted, each once however many links lead there.

    Neither hidden ones nor those in which this program has put its predictions.
    """
    seen, waiting = set(), [top]
    while waiting:
        folder = waiting.pop()
        if (real := os.path.realpath(folder)) in seen:
            continue
        seen.add(real)
        yield folder
        below = [entry.name for entry in _entries(folder, []) if _is_folder(entry) and not entry.name.startswith(".")]
        waiting += [folder / name for name in reversed(below) if not is_output(folder, name)]


def _entries(folder: Path, unreadable: list[tuple[str, str]]) -> list[os.DirEntry]:
    """The folder's entries, sorted; none where it cannot be read, which is added to `unreadable`."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        unreadable.append((str(folder), error.strerror))
        return []


def _expand(pattern: str) -> Iterator[str]:
    """As `glob.glob(pattern, recursive=True)`, but "**" comes to each folder once, and not to our own predictions."""
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from glob.glob(pattern)
        return
    at = parts.index("**")
    rest = parts[at + 1 :] or ("*",)
    for top in glob.glob(os.path.join(*parts[:at])) if at else ["."]:
        for folder in _folders(Path(top), []) if os.path.isdir(top) else ():
            yield from _expand(os.path.join(glob.escape(str(folder)), *rest))


def read_ahead(pool: Executor, read: Callable, paths: Iterable[Path], limit: int) -> Iterator:
    """`map(read, paths)`, in order, with at most `limit` pictures read in `pool` before they are asked for."""
    paths = iter(paths)
    pending = deque(pool.submit(read, path) for path in islice(paths, limit))
    while pending:
        result = pending.popleft().result()
        pending.extend(pool.submit(read, path) for path in islice(paths, 1))
        yield result


# ------------------------------------------------------------------------------------------------------------- reading


def read_image(path: str | Path) -> Shaped[np.ndarray, "h w 3"]:
    """`decode` for a file. Raises ValueError for anything that is not a regular file, too."""
    try:
        with open(regular(path), "rb") as file:
            return decode(file, str(path))
    except FileNotFoundError:
        missing = "a link to a file that is not there" if os.path.islink(path) else "no such file"
        raise ValueError(f"{path}: {missing}") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None


def count_pixels(path: str | Path) -> int:
    """How many pixels a picture has, by its header alone; 0 for what `read_image` refuses."""
    try:
        with open(regular(path), "rb") as file, open_image(file) as image:
            return image.width * image.height
    except Exception:  # `read_image` tells which
        return 0


def open_image(file: BufferedIOBase) -> Image.Image:
    """A picture of `FORMATS`, or HEIC where pillow-heif is installed, that is not decoded yet. Raises what Pillow does.

    More than twice `Image.MAX_IMAGE_PIXELS`, 179 million, are Pillow's DecompressionBombError.
    """
    Image.init()  # Pillow looks among the formats that it has loaded already, where some are named
    try:
        return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError:
        if _head(file)[4:12] not in [b"ftyp" + brand for brand in HEIF_BRANDS] or not find_spec("pillow_heif"):
            raise
    import pillow_heif  # an extra, and slow to load

    pillow_heif.register_heif_opener()
    return Image.open(file, formats=["HEIF"])


def decode(file: BufferedIOBase, name: str) -> Shaped[np.ndarray, "h w 3"]:
    """Decodes a picture of any Pillow mode, turned upright by its EXIF orientation; of an animation, the first frame.

    uint8, but uint16 for 16-bit grey, and float32 for floating-point grey within [0, 1]. Transparency is dropped.
    Pillow itself narrows 16-bit colour to 8. Raises ValueError, in one line that begins with `name`, for anything that
    cannot be read: empty, truncated, not a picture that `open_image` knows, or more pixels than Pillow allows.
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
    """What a file is that is no picture which is read here, by its first bytes."""
    if not head:
        return "the file is empty"
    container, brand = head[4:8], head[8:12]
    if container == b"ftyp" and brand in HEIF_BRANDS:
        return "cannot be decoded: damaged HEIC" if find_spec("pillow_heif") else f"a HEIC picture: {HEIF_HINT}"
    if (container == b"ftyp" and not brand.startswith(b"avi")) or head[:4] == b"\x1aE\xdf\xa3" or brand == b"AVI ":
        return "a video; wanted pictures, which `ffmpeg -i VIDEO frame%05d.png` makes of one"
    return f"not a picture of a kind that is read here ({', '.join(FORMATS)})"


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
    image = image if image.mode == "RGB" else image.convert("RGB")
    pixels: UInt8[np.ndarray, "h w 3"] = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, ROWS_AT_ONCE):  # at once, Pillow would make two copies of it all
        rows = image.crop((0, top, image.width, min(top + ROWS_AT_ONCE, image.height)))
        pixels[top : top + ROWS_AT_ONCE] = np.asarray(rows)
    return pixels
