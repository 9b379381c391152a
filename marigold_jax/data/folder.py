"""Any folder of RGB images and depth maps.

    RAW_DIR/rgb/a/1.jpg        any image that `predict` reads, read in the same way
    RAW_DIR/depth/a/1.png      16-bit PNG or TIFF, 32-bit TIFF, .npy, .npz, .h5, .exr or .pfm
    RAW_DIR/mask/a/1.png       optional: an image or an array, nonzero where the depth is valid
    RAW_DIR/normals/a/1.npy    optional: (h, w, 3) in [-1, 1] as an array, .exr or .pfm, or 8-bit PNG: (n + 1) / 2 * 255

Files of a frame have the same path apart from the extension. Alternatively, each line of a filename list holds an RGB
path and a depth path relative to RAW_DIR. Files of a type that cannot be what their folder holds, such as previews and
notes, are not candidates for a frame, and are reported as unused.
"""

import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Shaped

from marigold_jax.data import raw_files
from marigold_jax.data.depth_format import DepthFormat
from marigold_jax.data.filename_list import NO_DEPTH, filename_lines, is_utf8
from marigold_jax.data.images import HEIF_EXTENSIONS, HEIF_HINT, extensions
from marigold_jax.data.raw_frame import (
    BadFrame,
    Frame,
    Part,
    Picture,
    check_depth,
    check_rgb,
    check_sizes,
    orientation_of,
)
from marigold_jax.data.record import Record, quantise, to_mask_png, to_png
from marigold_jax.runtime.files import printable

# Left behind by file browsers and archivers. Names that begin with a dot are ignored too.
LITTER = frozenset(("thumbs.db", "desktop.ini", "__macosx", "@eadir"))
PNG_HEADER = 26  # bytes of a PNG file, which include its bit depth and colour type
AMBIGUOUS, UNKNOWN, MISSING, NOT_UTF8 = "ambiguous", "unknown file type", "missing file", "name is not UTF-8"

OPTIONAL_FOLDERS = ("mask", "normals")  # beside rgb and depth

Unused = tuple[str, str]  # a file's path relative to RAW_DIR, and why it is not used


# ----------------------------------------------------------------------------------------- which files belong together


def list_frames(raw_dir: str, filename_list: str | None, unused: list[Unused] | None = None) -> list[Frame]:
    """Lists one frame for each RGB image, sorted by path, or for each line of a filename list, in its order.

    Args:
        raw_dir: the folder. If it has a folder mask or normals, every frame is expected to have a file in it.
        filename_list: path of the list, or None.
        unused: receives the files that no frame uses.

    Raises:
        ValueError: the folder rgb or depth is missing, or there is no image.
    """
    root, unused = Path(raw_dir), [] if unused is None else unused
    if filename_list:
        return _listed(root, filename_list, unused)
    for name in ("rgb", "depth"):
        if not (root / name).is_dir():
            raise ValueError(
                f"{root} must have the folders rgb and depth; there is no {name}. Or give a --filename_list"
            )
    extra = [name for name in OPTIONAL_FOLDERS if (root / name).is_dir()]
    files = {name: _by_stem(root, name, unused) for name in ("rgb", "depth", *extra)}
    frames = []
    for stem, rgb in sorted(files["rgb"].items()):
        if rgb and not rgb[0].known:
            continue
        paths, problem = {}, None
        for name in files:
            found = files[name].pop(stem, []) if name != "rgb" else rgb
            paths[name] = found[0].path if found else f"{name}/{stem}"
            problem = problem or _problem(name, paths[name], found)
        if not is_utf8(stem):
            problem = NOT_UTF8, f"{printable(paths['rgb'])}: rename it"
        parts = {name: Part(str(root / path)) for name, path in paths.items()}
        frames.append(Frame(_utf8(paths["rgb"]), **parts, problem=problem))
    for name, stems in files.items():
        for found in stems.values() if name != "rgb" else (found for found in stems.values() if not found[0].known):
            reason = (lambda path: "no picture of this name in rgb") if found[0].known else _unknown
            unused.extend((_utf8(file.path), reason(file.path)) for file in found)
    if not frames:
        there = [(name, why) for name, why in unused if name.startswith("rgb/")]
        hint = f"; {HEIF_HINT}" if HEIF_HINT in (why for _, why in there) else ""
        there = f"; found {_few([name for name, _ in there])}{hint}" if there else ""
        raise ValueError(f"{root / 'rgb'} holds no images ({', '.join(sorted(extensions()))}){there}")
    return frames


class _File(NamedTuple):
    """A file, by its path relative to RAW_DIR, and whether its type is one that its folder may hold."""

    path: str
    known: bool


def _by_stem(root: Path, folder: str, unused: list[Unused]) -> dict[str, list[_File]]:
    """The files of a folder, by their path without extension. Files of unknown type are kept only if they are alone."""
    formats = FORMATS[folder]
    stems = defaultdict(list)
    for path in _walk(root, folder, unused):
        stem, extension = os.path.splitext(path.removeprefix(f"{folder}/"))
        stems[stem].append(_File(path, extension.lower() in formats))
    for stem, files in stems.items():
        kept = [file for file in files if file.known] or files
        if folder == "depth" and len(kept) > 1:
            kept = [file for file in kept if not _shallow_png(root / file.path)] or kept
        for file in files:
            if file not in kept:
                unused.append((_utf8(file.path), "preview, 8-bit or in colour" if file.known else _unknown(file.path)))
        stems[stem] = kept
    return stems


def _problem(folder: str, path: str, files: list[_File]) -> tuple[str, str] | None:
    if not files:
        return MISSING, path
    if not files[0].known:
        return UNKNOWN, f"{path}: wanted one of {', '.join(sorted(FORMATS[folder]))}"
    if len(files) > 1:
        return AMBIGUOUS, f"{', '.join(file.path for file in files)}: keep the one that belongs to this frame"
    return None


def _walk(root: Path, folder: str, unused: list[Unused], above: tuple[str, ...] = ()) -> list[str]:
    """All files of a folder and its subfolders, as sorted paths relative to `root`. Links to folders are followed."""
    here = os.path.realpath(root / folder)
    if here in above:
        unused.append((_utf8(folder), "a link to a folder above it"))
        return []
    try:
        with os.scandir(root / folder) as scan:
            entries = sorted((entry.name, entry.is_dir()) for entry in scan)
    except OSError as error:
        unused.append((_utf8(folder), f"unreadable folder: {error.strerror}"))
        return []
    found = []
    for name, is_folder in entries:
        if name.startswith(".") or name.lower() in LITTER:
            continue
        path = f"{folder}/{name}"
        found += _walk(root, path, unused, (*above, here)) if is_folder else [path]
    return found


def _shallow_png(path: Path) -> bool:
    """Whether this is a PNG that cannot be depth: fewer than 16 bits, or in colour."""
    if path.suffix.lower() != ".png" or not path.is_file():
        return False
    with open(path, "rb") as file:
        header = file.read(PNG_HEADER)
    return header[12:16] == b"IHDR" and (header[24], header[25]) != (16, 0)


def _listed(root: Path, filename_list: str, unused: list[Unused]) -> list[Frame]:
    frames = []
    for rgb, depth, *_ in filename_lines(filename_list):
        if depth == NO_DEPTH:
            unused.append((_utf8(rgb), "no depth in the list"))
            continue
        good = is_utf8(rgb) and is_utf8(depth)
        problem = None if good else (NOT_UTF8, f"{printable(rgb)}, {printable(depth)}: rename it")
        frames.append(Frame(_utf8(rgb), Part(str(root / rgb)), Part(str(root / depth)), problem=problem))
    return frames


def _utf8(name: str) -> str:
    return name if is_utf8(name) else printable(name)


def _unknown(path: str) -> str:
    """Why a file of unknown type is not used."""
    heic = path.startswith("rgb/") and Path(path).suffix.lower() in HEIF_EXTENSIONS
    return HEIF_HINT if heic else "unknown kind"


def _few(names: list[str], most: int = 5) -> str:
    """The first few names, for the terminal."""
    return ", ".join([*map(printable, names[:most]), *["..."] * (len(names) > most)])


def hold_out(frames: list[Frame], share: float, seed: int) -> tuple[list[Frame], list[Frame]]:
    """Splits frames into training and validation frames, by whole scenes if there are several.

    A scene is one of several folders side by side; if all frames are in one folder, every frame is a scene. At least
    one frame is held out, and never all. The result depends only on the names and the seed.

    Args:
        frames: all of them.
        share: the share of usable frames to hold out, 0 to 1.
        seed: of the random order of scenes.

    Returns:
        The frames to train on, and those held out.

    Raises:
        ValueError: fewer than two frames can be used.
    """
    usable = [frame for frame in frames if not frame.problem]
    if len(usable) < 2:
        raise ValueError(f"--validation {share:g} needs at least two frames that can be used, found {len(usable)}")
    shared = len(Path(os.path.commonpath([Path(frame.name).parent for frame in frames])).parts)
    scenes = defaultdict(list)
    for frame in frames:
        below = Path(frame.name).parts[shared:]
        scenes[below[0] if len(below) > 1 else os.path.splitext(below[0])[0]].append(frame)
    sizes = {scene: sum(not frame.problem for frame in members) for scene, members in scenes.items()}
    order = [scene for scene in np.random.default_rng(seed).permutation(sorted(scenes)) if sizes[scene]]
    wanted, held, count = min(max(1, round(share * len(usable))), len(usable) - 1), set(), 0
    for scene in order:
        if count + sizes[scene] <= wanted:
            held.add(scene)
            count += sizes[scene]
    if not held:
        held.add(min(order, key=sizes.get))
    taken = {frame.name for scene in held for frame in scenes[scene]}
    return [f for f in frames if f.name not in taken], [f for f in frames if f.name in taken]


# -------------------------------------------------------------------------------------------------------------- reading


def depth_encoding(frames: list[Frame]) -> str:
    """How to store the depth of these frames without loss: "png16" if all files are PNG, otherwise "float32"."""
    extensions = {Path(frame.depth.path).suffix.lower() for frame in frames}
    return "png16" if extensions.isdisjoint(FORMATS["depth"].keys() - {".png"}) else "float32"


def read_frame(frame: Frame, depth_format: DepthFormat, encoding: str) -> Record:
    """Reads a frame into a record. Infinite and NaN depth is stored as 0, which means unknown.

    Args:
        frame: from `list_frames`.
        depth_format: unit and valid range of the depth, to check that some of it is valid.
        encoding: from `depth_encoding`.

    Raises:
        BadFrame: a file is missing or damaged, sizes differ, or no depth is valid.
    """
    if frame.problem:
        raise BadFrame(*frame.problem)
    rgb = check_rgb(frame.rgb.read(), frame.rgb.name)
    content = frame.depth.read()
    values = _decode(content, frame.depth.name, "depth")
    sizes = [("rgb", rgb.size), ("depth", values.shape[:2])]
    record = {"name": frame.name, "rgb": rgb.content, "depth": content if encoding == "png16" else values}
    if encoding == "png16" and orientation_of(content) > 1:
        record["depth"] = to_png(values[..., 0].astype(np.uint16))
    mask = None
    if frame.mask:
        mask = _decode(frame.mask.read(), frame.mask.name, "mask")
        sizes.append(("mask", mask.shape[:2]))
        record["mask"] = to_mask_png(mask)
    if frame.normals:
        content = frame.normals.read()
        normals = _decode(content, frame.normals.name, "normals")
        sizes.append(("normals", normals.shape[:2]))
        record["normals"] = quantise(normals)
        if orientation_of(content) > 1:
            raise BadFrame(
                "EXIF orientation", f"{frame.normals.name}: rotating a map of normals changes their directions"
            )
    _check_fit(rgb, sizes)
    check_depth(values, mask, depth_format, frame.depth.name)
    if rgb.orientation > 1:
        record["note"] = f"rotated as EXIF orientation {rgb.orientation} says: its depth must be upright too"
    return record


def _check_fit(rgb: Picture, sizes: list[tuple[str, tuple[int, int]]]) -> None:
    try:
        check_sizes(sizes)
    except BadFrame as error:
        if rgb.orientation == 1:
            raise
        detail = (
            f"{error.detail}; the image was rotated as its EXIF orientation {rgb.orientation} says, as in predict: "
            "rotate the depth likewise, or remove the orientation from the image"
        )
        raise BadFrame("size mismatch, EXIF orientation", detail) from None


def _depth(array: Shaped[np.ndarray, "h w c"], path: str) -> Float32[np.ndarray, "h w 1"]:
    """Depth has one channel, or three equal ones."""
    if array.shape[2] == 3 and ((array == array[..., :1]) | (array != array)).all():
        array = array[..., :1]
    if array.shape[2] != 1:
        raise BadFrame("depth with several channels", f"{path}: shape {array.shape}")
    with np.errstate(over="ignore"):
        values = array.astype(np.float32)
    return np.where(np.isfinite(values), values, np.float32(0))


def _mask(array: Shaped[np.ndarray, "h w c"], path: str) -> Bool[np.ndarray, "h w 1"]:
    return ((array != 0) & (array == array)).any(axis=-1, keepdims=True)


def _normals(array: Shaped[np.ndarray, "h w c"], path: str) -> Float[np.ndarray, "h w 3"]:
    if array.shape[2] != 3 or array.dtype.kind != "f":
        raise BadFrame(
            "unreadable normals", f"{path}: wanted floats of shape (h, w, 3); got {array.dtype} {array.shape}"
        )
    return array


# For each folder: the reader of each extension, and the check that converts the array that was read.
Readers = dict[str, Callable[[bytes, str], np.ndarray]]
ARRAYS: Readers = {".npy": raw_files.npy, ".npz": raw_files.npz, ".h5": raw_files.hdf5, ".hdf5": raw_files.hdf5}
FLOATS: Readers = {".exr": raw_files.exr, ".pfm": raw_files.pfm}
FORMATS: dict[str, Readers] = {
    "rgb": dict.fromkeys(extensions(), raw_files.picture),
    "depth": {".png": raw_files.png16, ".tif": raw_files.tiff, ".tiff": raw_files.tiff, **ARRAYS, **FLOATS},
    "mask": {**dict.fromkeys((".png", ".tif", ".tiff", ".bmp"), raw_files.picture), **ARRAYS},
    "normals": {".png": raw_files.picture_of_normals, **ARRAYS, **FLOATS},
}
CHECKS = {"depth": _depth, "mask": _mask, "normals": _normals}


def _decode(content: bytes, path: str, purpose: str) -> Shaped[np.ndarray, "h w c"]:
    formats, check = FORMATS[purpose], CHECKS[purpose]
    extension = Path(path).suffix.lower()
    if extension not in formats:
        raise BadFrame(UNKNOWN, f"{path}: wanted one of {', '.join(formats)}")
    return check(formats[extension](content, path), path)
