"""Readers of raw data files that hold one array: NumPy, HDF5, EXR, PFM, TIFF and PNG.

Every reader takes (content, path) and returns an array (h, w, channels) as stored. `path` is used in error messages,
and to open EXR files. A file that is damaged or has another shape raises BadFrame. For maps that programs of this
package have saved, see `data.saved_maps`.
"""

import io
import math
import re
import zipfile

import numpy as np
from jaxtyping import Float32, Shaped, UInt8, UInt16

from marigold_jax.data.images import decode
from marigold_jax.data.raw_frame import BadFrame, check_depth_png, open_image
from marigold_jax.runtime import extras

LARGEST = 2**30  # bytes of one array; a header may claim anything
PFM = re.compile(rb"(P[fF])\s+(\d{1,6})\s+(\d{1,6})\s+([-+.\deE]{1,30})(?:\r\n|\s)")
BITS, SAMPLE_FORMAT, UNSIGNED = 258, 339, 1  # TIFF tags and a value; without the tag, samples are unsigned


def npy(content: bytes, path: str) -> Shaped[np.ndarray, "h w c"]:
    """An array saved by `np.save`."""
    return _channels(_numpy(io.BytesIO(content), len(content), path), path)


def npz(content: bytes, path: str) -> Shaped[np.ndarray, "h w c"]:
    """The only array of an archive saved by `np.savez`."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if len(members) != 1:
                found = ", ".join(member.filename.removesuffix(".npy") for member in members[:8]) or "none"
                raise BadFrame("unreadable array", f"{path}: wanted one array, found {found}")
            with archive.open(members[0]) as file:
                return _channels(_numpy(file, members[0].file_size, path), path)
    except BadFrame:
        raise
    except Exception as error:  # zipfile raises nearly anything on a damaged archive
        raise BadFrame("unreadable array", f"{path}: {error}") from None


def _numpy(file: io.IOBase, size: int, path: str) -> np.ndarray:
    """`np.load` without pickles, and without allocating more memory than the file fills."""
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = read[min(version, (2, 0))](file)
        wanted = math.prod(shape) * dtype.itemsize
        if dtype.kind not in "biuf" or len(shape) not in (2, 3) or 0 in shape:
            raise ValueError(f"wanted numbers of shape (h, w) or (h, w, c); got {dtype} {shape}")
        if wanted > min(size, LARGEST):
            raise ValueError(f"{dtype} {shape} takes {wanted} bytes, and the file holds {size}")
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # a header is an expression in Python, and is parsed as one
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadFrame("unreadable array", f"{path}: {reason}") from None


def hdf5(content: bytes, path: str) -> Shaped[np.ndarray, "h w c"]:
    """The only dataset of an HDF5 file."""
    from marigold_jax.data.hdf5 import read_dataset  # needs h5py

    try:
        array = read_dataset(content, path)
    except ValueError as error:
        raise BadFrame("unreadable HDF5", error) from None
    return _channels(array, path)


def pfm(content: bytes, path: str) -> Float32[np.ndarray, "h w c"]:
    """A portable float map: Pf or PF, width, height, scale (negative: little-endian), then rows from the bottom."""
    try:
        header = PFM.match(content)
        width, height = int(header[2]), int(header[3])
        channels = {b"Pf": 1, b"PF": 3}[header[1]]
        order = "<f4" if float(header[4]) < 0 else ">f4"
        array = np.frombuffer(content, order, height * width * channels, header.end())
        return array.reshape(height, width, channels)[::-1].astype(np.float32)
    except (ValueError, TypeError):
        raise BadFrame("unreadable PFM", path) from None


def exr(content: bytes, path: str) -> Float32[np.ndarray, "h w c"]:
    """Three channels of an EXR file (RGB or XYZ), or one: the only channel, or else the first of Z, Y and R."""
    with extras.needed("prepare"):
        import OpenEXR  # needed for this format only

    try:
        with OpenEXR.File(path, separate_channels=True) as file:
            channels = {name: channel.pixels.astype(np.float32) for name, channel in file.channels().items()}
    except Exception as error:
        raise BadFrame("unreadable EXR", f"{path}: {' '.join(str(error).split())}") from None
    for names in ("RGB", "XYZ"):
        if set(names) <= set(channels):
            return np.stack([channels[name] for name in names], axis=-1)
    wanted = [name for name in (*"ZYR", *channels) if name in channels]
    if not wanted:
        raise BadFrame("unreadable EXR", f"{path}: no channels")
    return _channels(channels[wanted[0]], path)


def tiff(content: bytes, path: str) -> Shaped[np.ndarray, "h w 1"]:
    """One page of one channel: integers of 16 or 32 bits, or floats."""
    image = open_image(content, path, ("TIFF",))
    if getattr(image, "n_frames", 1) > 1:
        raise BadFrame("several pages", f"{path}: wanted one, found {image.n_frames}")
    if not (image.mode.startswith("I") or image.mode == "F"):
        raise BadFrame("TIFF is neither 16-bit nor 32-bit grey", f"{path}: Pillow mode {image.mode}")
    array = np.asarray(image)
    tags = image.tag_v2
    if array.dtype.kind == "i" and tags.get(BITS) == (32,) and tags.get(SAMPLE_FORMAT, (UNSIGNED,)) == (UNSIGNED,):
        array = array.astype(np.int32).view(np.uint32)  # Pillow has no mode for unsigned 32-bit integers
    return array[..., None]


def png16(content: bytes, path: str) -> UInt16[np.ndarray, "h w 1"]:
    """A 16-bit grey PNG."""
    return check_depth_png(content, path)


def picture(content: bytes, path: str) -> Shaped[np.ndarray, "h w 3"]:
    """Any image, as `data.images` reads it."""
    try:
        return decode(io.BytesIO(content), path)
    except ValueError as error:
        raise BadFrame("unreadable image", error) from None


def picture_of_normals(content: bytes, path: str) -> Float32[np.ndarray, "h w 3"]:
    """Normals stored as 8-bit colour, (n + 1) / 2 * 255; returned in [-1, 1]."""
    pixels: UInt8[np.ndarray, "h w 3"] = picture(content, path)
    if pixels.dtype != np.uint8:
        raise BadFrame("unreadable normals", f"{path}: wanted 8-bit colour; got grey of {pixels.dtype}")
    return pixels.astype(np.float32) / 255 * 2 - 1


def _channels(array: np.ndarray, path: str) -> Shaped[np.ndarray, "h w c"]:
    if array.ndim not in (2, 3) or array.dtype.kind not in "biuf" or not array.size:
        raise BadFrame(
            "unreadable array", f"{path}: wanted numbers of shape (h, w) or (h, w, c); got {array.dtype} {array.shape}"
        )
    if array.ndim == 2:
        return array[..., None]
    return np.moveaxis(array, 0, -1) if array.shape[0] == 1 and array.shape[2] > 3 else array  # (1, h, w)
