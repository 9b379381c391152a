"""Pairs of RGB images and depth maps in anybody's folder.

    RAW_DIR/rgb/a/1.jpg        any picture that Pillow reads
    RAW_DIR/depth/a/1.png      16-bit PNG, .npy, .exr or .pfm
    RAW_DIR/mask/a/1.png       optional: 8-bit picture or .npy, not 0 where the depth is valid
    RAW_DIR/normals/a/1.npy    optional: (h, w, 3) in [-1, 1] as .npy or .exr, or 8-bit PNG: (n + 1) / 2 * 255

Files belong together that have the same path without extension. Or a filename list names them: each line an RGB path
and a depth path relative to RAW_DIR.
"""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, Shaped

from marigold_jax.data.frames import (
    BadFrame,
    Frame,
    Part,
    Record,
    check_depth,
    check_depth_png,
    check_rgb,
    check_sizes,
    open_image,
    quantise,
    read_filename_list,
    to_mask_png,
)
from marigold_jax.data.sources import Source

RGB_EXTENSIONS = frozenset(".png .jpg .jpeg .bmp .webp .tif .tiff .ppm".split())


def list_frames(raw_dir: str, filename_list: str | None) -> list[Frame]:
    """One frame for each RGB image, sorted by path, or for each line of the list, in its order.

    If there is a mask or normals folder, every frame is expected to have a file in it. Raises ValueError if there is no
    rgb or no depth folder, or no image.
    """
    root = Path(raw_dir)
    if filename_list:
        pairs = [columns[:2] for columns in read_filename_list(filename_list)]
        return [Frame(rgb, Part(str(root / rgb)), Part(str(root / depth))) for rgb, depth in pairs]
    for name in ("rgb", "depth"):
        if not (root / name).is_dir():
            raise ValueError(
                f"{root} must have the folders rgb and depth; there is no {name}. Or give a --filename_list"
            )
    extra = [name for name in ("mask", "normals") if (root / name).is_dir()]
    files = {name: _by_stem(root / name) for name in ("rgb", "depth", *extra)}
    frames = []
    for stem, rgb in sorted(files["rgb"].items()):
        if rgb.suffix.lower() in RGB_EXTENSIONS:
            others = {name: Part(str(files[name].get(stem, root / name / stem))) for name in ("depth", *extra)}
            frames.append(Frame(str(rgb.relative_to(root)), Part(str(rgb)), **others))
    if not frames:
        raise ValueError(f"{root / 'rgb'} holds no images ({', '.join(sorted(RGB_EXTENSIONS))})")
    return frames


def depth_encoding(frames: list[Frame]) -> str:
    """How to store the depth of all of them without loss: "png16" if the files are PNG, or else "float32"."""
    extensions = {Path(frame.depth.path).suffix.lower() for frame in frames}
    return "png16" if extensions.isdisjoint(DEPTH[0].keys() - {".png"}) else "float32"


def read_frame(frame: Frame, source: Source, encoding: str) -> Record:
    """Infinite and NaN depth is unknown: 0. Raises BadFrame for files that are missing, broken or of several sizes."""
    rgb, size = check_rgb(frame.rgb.read(), frame.rgb.name)
    content = frame.depth.read()
    values = _decode(content, frame.depth.name, DEPTH)
    sizes = [("rgb", size), ("depth", values.shape[:2])]
    record = {"name": frame.name, "rgb": rgb, "depth": content if encoding == "png16" else values}
    mask = None
    if frame.mask:
        mask = _decode(frame.mask.read(), frame.mask.name, MASK)
        sizes.append(("mask", mask.shape[:2]))
        record["mask"] = to_mask_png(mask)
    if frame.normals:
        normals = _decode(frame.normals.read(), frame.normals.name, NORMALS)
        sizes.append(("normals", normals.shape[:2]))
        record["normals"] = quantise(normals)
    check_sizes(sizes)
    check_depth(values, mask, source, frame.depth.name)
    return record


def _by_stem(folder: Path) -> dict[str, Path]:
    return {str(p.relative_to(folder).with_suffix("")): p for p in sorted(folder.rglob("*")) if p.is_file()}


# --------------------------------------------------------------------------------------------------------- file formats


def _npy(content: bytes, path: str) -> Shaped[np.ndarray, "..."]:
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise BadFrame("unreadable array", f"{path}: {error}") from None
    if array.ndim not in (2, 3) or array.dtype.kind not in "biuf":
        raise BadFrame(
            "unreadable array", f"{path}: want numbers of shape (h, w) or (h, w, c); got {array.dtype} {array.shape}"
        )
    return array if array.ndim == 3 else array[..., None]


def _pfm(content: bytes, path: str) -> Float32[np.ndarray, "h w c"]:
    """Portable float map: three lines (Pf or PF; width height; scale, negative: little-endian), then rows bottom up."""
    try:
        kind, shape, scale, values = content.split(b"\n", 3)
        width, height = map(int, shape.split())
        channels = {b"Pf": 1, b"PF": 3}[kind.strip()]
        array = np.frombuffer(values, "<f4" if float(scale) < 0 else ">f4", count=height * width * channels)
    except (ValueError, KeyError):
        raise BadFrame("unreadable PFM", path) from None
    return array.reshape(height, width, channels)[::-1].astype(np.float32)


def _exr(content: bytes, path: str) -> Float32[np.ndarray, "h w c"]:
    """Three channels (R, G, B or X, Y, Z), or one: the only one there is, or else Z, Y or R, whichever comes first."""
    import OpenEXR  # preparing other formats works without it

    try:
        with OpenEXR.File(path, separate_channels=True) as file:
            channels = {name: channel.pixels.astype(np.float32) for name, channel in file.channels().items()}
    except Exception as error:
        raise BadFrame("unreadable EXR", f"{path}: {' '.join(str(error).split())}") from None
    for names in ("RGB", "XYZ"):
        if set(names) <= set(channels):
            return np.stack([channels[name] for name in names], axis=-1)
    wanted = [name for name in (*"ZYR", *channels) if name in channels]
    return channels[wanted[0]][..., None]


def _depth(array: Shaped[np.ndarray, "h w c"], path: str) -> Float32[np.ndarray, "h w 1"]:
    """Three channels must be three times the same."""
    if array.shape[2] == 3 and (array == array[..., :1]).all():
        array = array[..., :1]
    if array.shape[2] != 1:
        raise BadFrame("depth with several channels", f"{path}: shape {array.shape}")
    values = array.astype(np.float32)
    return np.where(np.isfinite(values), values, np.float32(0))


def _mask(array: Shaped[np.ndarray, "h w c"], path: str) -> Bool[np.ndarray, "h w 1"]:
    return (array != 0).any(axis=-1, keepdims=True)


def _normals(array: Shaped[np.ndarray, "h w c"], path: str) -> Float[np.ndarray, "h w 3"]:
    if array.shape[2] != 3 or array.dtype.kind != "f":
        raise BadFrame("unreadable normals", f"{path}: want floats of shape (h, w, 3); got {array.dtype} {array.shape}")
    return array


def _picture(content: bytes, path: str, mode: str) -> Shaped[np.ndarray, "h w c"]:
    array = np.asarray(open_image(content, path).convert(mode))
    return array if array.ndim == 3 else array[..., None]


def _picture_of_normals(content: bytes, path: str) -> Float32[np.ndarray, "h w 3"]:
    return _picture(content, path, "RGB").astype(np.float32) / 255 * 2 - 1


# What a file is good for: how its content becomes an array, by extension, and what the array must be.
DEPTH = ({".png": check_depth_png, ".npy": _npy, ".exr": _exr, ".pfm": _pfm}, _depth)
MASK = ({".png": partial(_picture, mode="L"), ".npy": _npy}, _mask)
NORMALS = ({".png": _picture_of_normals, ".npy": _npy, ".exr": _exr, ".pfm": _pfm}, _normals)


def _decode(content: bytes, path: str, purpose: tuple[dict[str, Callable], Callable]) -> Shaped[np.ndarray, "h w c"]:
    formats, check = purpose
    extension = Path(path).suffix.lower()
    if extension not in formats:
        raise BadFrame("unknown file type", f"{path}: want one of {', '.join(formats)}")
    return check(formats[extension](content, path), path)
