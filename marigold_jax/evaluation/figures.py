"""Panels: what a network makes of a few images, beside what it should have made of them."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from marigold_jax.data.colors import color, normals_to_uint8
from marigold_jax.data.transforms import PERCENTILES
from marigold_jax.evaluation.normal_metrics import angular_errors

DEPTH_COLORS, ERROR_COLORS = "Spectral", "magma"
WORST = 0.5  # the relative error that is drawn brightest
WORST_ANGLE = 60.0  # likewise, in degrees
GAP = 2  # white pixels between pictures


def depth_panel(
    images: Sequence[UInt8[np.ndarray, "h w 3"]],
    depths: Sequence[Float[np.ndarray, "h w 1"]],
    predictions: Sequence[Float[np.ndarray, "h w 1"]],
    masks: Sequence[Bool[np.ndarray, "h w 1"]],
) -> UInt8[np.ndarray, "height width 3"]:
    """One row for each image: the image, its true depth, the predicted depth, the relative error.

    Depths are in metres, the predicted aligned to the true, and share one colour scale in each row: red is near. Errors
    go from black (none) to white (`WORST` or more). What is invalid is black.
    """
    rows = []
    for image, depth, prediction, mask in zip(images, depths, predictions, masks, strict=True):
        near, far = (depth[mask].min(), depth[mask].max()) if mask.any() else (0.0, 1.0)
        span = max(far - near, 1e-6)
        shown = [color(_unit((metres - near) / span), DEPTH_COLORS) * mask for metres in (depth, prediction)]
        error = np.abs(prediction - depth) / np.where(mask, depth, 1)
        shown.append(color(_unit(error / WORST), ERROR_COLORS) * mask)
        rows.append([image, *shown])
    return _below(rows)


def normals_panel(
    images: Sequence[UInt8[np.ndarray, "h w 3"]],
    truths: Sequence[Float[np.ndarray, "h w 3"]],
    predictions: Sequence[Float[np.ndarray, "h w 3"]],
    masks: Sequence[Bool[np.ndarray, "h w 1"]],
) -> UInt8[np.ndarray, "height width 3"]:
    """One row for each image: the image, its true normals, the predicted ones, the angle between them.

    Red, green and blue are x, y and z, in [-1, 1]. Angles go from black (none) to white (`WORST_ANGLE` or more). What
    is invalid is black.
    """
    rows = []
    for image, truth, prediction, mask in zip(images, truths, predictions, masks, strict=True):
        shown = [_rainbow(normals) * mask for normals in (truth, prediction)]
        error = np.zeros(mask.shape)
        error[mask] = angular_errors(prediction, truth, mask) / WORST_ANGLE
        shown.append(color(_unit(error), ERROR_COLORS) * mask)
        rows.append([image, *shown])
    return _below(rows)


def contact_sheet(
    examples: Sequence[dict[str, np.ndarray]], columns: int = 4, height: int = 120
) -> UInt8[np.ndarray, "height width 3"]:
    """Examples of `data.prepared`: the image, its depth (the nearest red, the farthest blue) and its normals, if any.

    All are shrunk to the shape of the first one at this `height`.
    """
    shape = examples[0]["rgb"].shape
    width = round(height * shape[1] / shape[0])
    cells = []
    for example in examples:
        depth, mask = example["depth"], example["mask"]
        near, far = np.quantile(depth[mask], PERCENTILES) if mask.any() else (0.0, 1.0)
        shown = [example["rgb"], color(_unit((depth - near) / max(far - near, 1e-6)), DEPTH_COLORS) * mask]
        if "normals" in example:
            shown.append(np.uint8(np.rint((example["normals"] + 1) * 127.5)) * mask)
        small = [np.asarray(Image.fromarray(picture).resize((width, height))) for picture in shown]
        cells.append(_join(small, axis=1))
    cells += [np.zeros_like(cells[0])] * (-len(cells) % columns)
    return _join([_join(cells[start : start + columns], axis=1) for start in range(0, len(cells), columns)], axis=0)


def png(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """The content of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def _unit(values: np.ndarray) -> np.ndarray:
    """In [0, 1]. What is no number, as predictions may have it where nothing is known of the truth, is 0."""
    return np.clip(np.nan_to_num(values[..., 0]), 0, 1).astype(np.float32)


def _rainbow(normals: np.ndarray) -> np.ndarray:
    return normals_to_uint8(np.clip(np.nan_to_num(normals), -1, 1).astype(np.float32))


def _below(rows: list[list[np.ndarray]]) -> np.ndarray:
    """Pictures side by side in each row, and rows one below the other, black where one is narrower."""
    joined = [_join(row, axis=1) for row in rows]
    width = max(row.shape[1] for row in joined)
    return _join([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in joined], axis=0)


def _join(pictures: list[np.ndarray], axis: int) -> np.ndarray:
    gap = list(pictures[0].shape)
    gap[axis] = GAP
    white = np.full(gap, 255, np.uint8)
    parts = [part for picture in pictures for part in (white, picture)]
    return np.concatenate(parts[1:], axis=axis)
