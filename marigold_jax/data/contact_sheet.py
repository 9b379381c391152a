"""Contact sheets: examples of a prepared dataset in a grid, to be looked at."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from marigold_jax.data.colors import color
from marigold_jax.data.transforms import PERCENTILES

DEPTH_COLORS = "Spectral"
GAP = 2  # white pixels between pictures

Picture = UInt8[np.ndarray, "_ _ 3"]


def contact_sheet(
    examples: Sequence[dict[str, np.ndarray]], columns: int = 4, height: int = 120
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws examples of `data.prepared` in a grid: the image, and what is known of it, such as depth and normals.

    Args:
        examples: at least one. All are resized to the aspect ratio of the first.
        columns: the number of examples side by side.
        height: of each picture, in pixels.
    """
    shape = examples[0]["rgb"].shape
    width = round(height * shape[1] / shape[0])
    cells = []
    for example in examples:
        shown = [example["rgb"], *(draw(example) for name, draw in SHOWN.items() if name in example)]
        small = [np.asarray(Image.fromarray(picture).resize((width, height))) for picture in shown]
        cells.append(join(small, axis=1))
    cells += [np.zeros_like(cells[0])] * (-len(cells) % columns)
    return join([join(cells[start : start + columns], axis=1) for start in range(0, len(cells), columns)], axis=0)


def png(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encodes an image as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def unit(values: np.ndarray) -> np.ndarray:
    """Clips values to [0, 1]. NaN, which predictions may have where the truth is unknown, becomes 0."""
    return np.clip(np.nan_to_num(values[..., 0]), 0, 1).astype(np.float32)


def join(pictures: list[np.ndarray], axis: int) -> np.ndarray:
    """Puts pictures below each other (axis 0) or side by side (axis 1), with a white gap between them."""
    gap = list(pictures[0].shape)
    gap[axis] = GAP
    white = np.full(gap, 255, np.uint8)
    parts = [part for picture in pictures for part in (white, picture)]
    return np.concatenate(parts[1:], axis=axis)


def _show_depth(example: dict[str, np.ndarray]) -> Picture:
    """The nearest depth is red, the farthest blue; outliers do not count."""
    depth, mask = example["depth"], example["mask"]
    near, far = np.quantile(depth[mask], PERCENTILES) if mask.any() else (0.0, 1.0)
    return color(unit((depth - near) / max(far - near, 1e-6)), DEPTH_COLORS) * mask


def _show_normals(example: dict[str, np.ndarray]) -> Picture:
    return np.uint8(np.rint((example["normals"] + 1) * 127.5)) * example["mask"]


SHOWN = {"depth": _show_depth, "normals": _show_normals}  # how contact sheets draw each quantity
