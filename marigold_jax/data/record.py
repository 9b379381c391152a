"""A record: what a prepared dataset stores of one frame, and how maps are encoded for it.

    name      the path of the frame's RGB image, as the official filename lists spell it
    rgb       bytes of a PNG or JPEG file; the original file where possible
    depth     bytes of a 16-bit PNG file, or float32 (h, w, 1); in the dataset's own unit, 0 where unknown
    mask      bytes of an 8-bit PNG file, nonzero where the depth is valid   (only in datasets with masks)
    normals   int16 (h, w, 3), unit vectors times `NORMAL_UNITS`             (only in datasets with normals)
    note      one line about what was changed in the frame                   (goes to the report, is not stored)

`FEATURES` in `data.record_reader` lists how each entry may be stored.
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int16, Real, Shaped, UInt8
from PIL import Image

Record = dict[str, Any]

NORMAL_UNITS = 32767  # normals are stored as 16-bit integers: an error below 0.002 degrees


@dataclass(frozen=True)
class Feature:
    """How one entry of a record is stored.

    Attributes:
        kind: "Text", "Image" (the bytes of a picture) or "Tensor" (a compressed array); the names are those of TFDS.
        dtype: of the pixels or numbers; empty for text.
        channels: the last axis of (h, w, channels); 0 for text.
    """

    kind: str
    dtype: str = ""
    channels: int = 0


def quantise(normals: Float[np.ndarray, "h w 3"]) -> Int16[np.ndarray, "h w 3"]:
    """Scales normals to unit length, then to 16-bit integers. Vectors that are not finite or shorter than 0.1 become 0.

    `restore_normals` is the inverse.
    """
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    known = np.isfinite(length) & (length > 0.1)
    return np.rint(np.where(known, normals, 0) / np.where(known, length, 1) * NORMAL_UNITS).astype(np.int16)


def restore_normals(stored: Real[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w 3"]:
    """Unit vectors from normals of any length, such as stored ones. Zero, which means unknown, stays zero."""
    vectors = stored.astype(np.float32)
    length = np.sqrt(np.einsum("hwc,hwc->hw", vectors, vectors))[..., None]
    return vectors / np.where(length > 0, length, 1)


def to_png(image: Shaped[np.ndarray, "..."]) -> bytes:
    """Encodes uint8 (h, w) or (h, w, 3), or uint16 (h, w), as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=4)  # as small as the default 6, in half the time
    return buffer.getvalue()


def to_mask_png(mask: Bool[np.ndarray, "h w 1"]) -> bytes:
    """Encodes a mask as an 8-bit PNG: 255 where it is True."""
    grey: UInt8[np.ndarray, "h w"] = mask[..., 0].astype(np.uint8) * np.uint8(255)
    return to_png(grey)
