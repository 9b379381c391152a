"""How each dataset stores depth, one row each: its unit, the valid range, the crop, and the size to train at.

The numbers are those of the paper (arXiv 2312.02145, section 4.1). Every prepared dataset has its row in
`metadata.json`, so no program needs this table to read one.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marigold_jax.data.record_reader import wrong

METADATA = "metadata.json"
LARGEST_SIDE = 2**13  # pixels to train at
UNITS = (1e-9, 1e9)  # per metre: beyond this range, float32 overflows


@dataclass(frozen=True)
class DepthFormat:
    """How stored depth becomes metres, and which part of it is used.

    Attributes:
        units_per_metre: metres = stored / units_per_metre.
        min_depth, max_depth: metres; depth is valid where min_depth < metres < max_depth.
        crop: a key of `CROPS`; it applies to every map of an example.
        size: (height, width) to train at; None for the size after the crop.
    """

    units_per_metre: float
    min_depth: float = 1e-5
    max_depth: float = float("inf")
    crop: str = "none"
    size: tuple[int, int] | None = None


DEPTH_FORMATS = {
    "hypersim": DepthFormat(units_per_metre=1000.0, max_depth=65.0, size=(480, 640)),
    "virtual_kitti_2": DepthFormat(units_per_metre=100.0, max_depth=80.0, crop="kitti_benchmark"),
    "rooms": DepthFormat(units_per_metre=1000.0, max_depth=65.0),
}


def _kitti_benchmark(height: int, width: int) -> tuple[slice, slice]:
    """The 352 x 1216 window at the bottom centre that the KITTI depth benchmark scores."""
    if height < 352 or width < 1216:
        raise ValueError(f"the KITTI benchmark crop takes 352 x 1216 pixels; the image has {height} x {width}")
    left = (width - 1216) // 2
    return slice(height - 352, height), slice(left, left + 1216)


CROPS: dict[str, Callable[[int, int], tuple[slice, slice]]] = {
    "none": lambda height, width: (slice(None), slice(None)),
    "kitti_benchmark": _kitti_benchmark,
}


def depth_format_from(metadata: Mapping[str, Any], file: str | Path = METADATA) -> DepthFormat:
    """The depth format in the metadata of a prepared dataset.

    Args:
        metadata: the content of `metadata.json`.
        file: its path, for error messages.

    Raises:
        ValueError: a value is missing or makes no sense; the message names the file and the key.
    """

    def number(key: str, least: float, most: float, wanted: str) -> float:
        value = metadata.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise wrong(file, key, wanted, value)
        return float(value)

    units = number("units_per_metre", *UNITS, "a number above 0")
    near = number("min_depth", 0.0, math.inf, "a number of metres, not below 0")
    far = number("max_depth", 0.0, math.inf, "a number of metres")
    if not near < far:
        raise wrong(file, "max_depth", f"more than min_depth, {near:g}", far)
    crop, size = metadata.get("crop"), metadata.get("size")
    if not isinstance(crop, str) or crop not in CROPS:
        raise wrong(file, "crop", " or ".join(map(repr, CROPS)), crop)
    if size is None:
        return DepthFormat(units, near, far, crop)
    sides = tuple(size) if isinstance(size, list | tuple) else ()
    if len(sides) != 2 or not all(type(side) is int and 0 < side <= LARGEST_SIDE for side in sides):
        raise wrong(file, "size", f"null or [height, width] of 1 to {LARGEST_SIDE}", size)
    return DepthFormat(units, near, far, crop, sides)
