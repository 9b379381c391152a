"""Maps as pictures: depth through a colour map or as 16-bit grey, normals as red, green and blue."""

import logging
from collections.abc import Callable
from difflib import get_close_matches
from functools import lru_cache

import numpy as np
from jaxtyping import Float32, UInt8, UInt16

ROWS_AT_ONCE = 256  # drawn in one go, so that the arrays between values and pixels stay small


def color(depth: Float32[np.ndarray, "h w"], color_map: str) -> UInt8[np.ndarray, "h w 3"]:
    """Draws depth in [0, 1] with a matplotlib colour map, truncated to 8 bits. Raises ValueError for an unknown map."""
    table = color_table(color_map)
    return _by_rows(depth, lambda rows: table[np.minimum((rows * len(table)).astype(np.int32), len(table) - 1)])


@lru_cache
def color_table(color_map: str) -> UInt8[np.ndarray, "n 3"]:
    """The colours of a matplotlib colour map, from 0 to 1. Raises ValueError, which suggests others, if unknown."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns where there is no home folder
    import matplotlib  # here, because nothing else needs it and it is slow to load

    if color_map not in matplotlib.colormaps:
        names = {name.lower(): name for name in matplotlib.colormaps}
        alike = [names[name] for name in get_close_matches(color_map.lower(), names)] or ["Spectral", "magma", "gray"]
        raise ValueError(
            f"unknown colour map {color_map!r}: wanted None or one of matplotlib's, such as {', '.join(alike)}"
        )
    colors = matplotlib.colormaps[color_map]
    return (colors(np.arange(colors.N))[:, :3] * 255).astype(np.uint8)


def depth_to_uint16(depth: Float32[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
    """Maps [0, 1] to 0 .. 65535, truncated."""
    return _by_rows(depth, lambda rows: (rows * np.float32(65535)).astype(np.uint16))


def normals_to_uint8(normals: Float32[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Maps [-1, 1] to 0 .. 255, truncated. Red is x (right), green is y (up), blue is z (towards the viewer)."""
    return _by_rows(normals, lambda rows: ((rows + np.float32(1)) * np.float32(127.5)).astype(np.uint8))


def _by_rows(values: np.ndarray, draw: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`draw(values)` a few rows at a time, for a `draw` that treats each row on its own."""
    first = draw(values[:ROWS_AT_ONCE])
    drawn = np.empty((len(values), *first.shape[1:]), first.dtype)
    for top in range(0, len(values), ROWS_AT_ONCE):
        drawn[top : top + ROWS_AT_ONCE] = draw(values[top : top + ROWS_AT_ONCE]) if top else first
    return drawn
