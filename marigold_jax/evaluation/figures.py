"""Figures: predictions beside the truth, and contact sheets of a dataset."""

import io
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from marigold_jax.data.colors import color, normals_to_uint8
from marigold_jax.data.transforms import PERCENTILES
from marigold_jax.evaluation.normal_metrics import angular_errors

DEPTH_COLORS, ERROR_COLORS = "Spectral", "magma"
BRIGHTEST_ERROR = 0.5  # the relative depth error drawn in the brightest colour
BRIGHTEST_ANGLE = 60.0  # the angle in degrees, likewise
GAP = 2  # white pixels between pictures

Picture = UInt8[np.ndarray, "_ _ 3"]


def depth_panel(
    images: Sequence[UInt8[np.ndarray, "h w 3"]],
    depths: Sequence[Float[np.ndarray, "h w 1"]],
    predictions: Sequence[Float[np.ndarray, "h w 1"]],
    masks: Sequence[Bool[np.ndarray, "h w 1"]],
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws one row for each image: the image, its true depth, the predicted depth, the relative error.

    The two depth maps of a row share one colour scale: red is near. Errors go from black (0) to white (at least
    `BRIGHTEST_ERROR`). Invalid pixels are black.

    Args:
        images: the images.
        depths: the true depth, in metres.
        predictions: the predicted depth in metres, aligned to the truth.
        masks: the valid pixels of the true depth.
    """
    return _panel(_compare_depth, images, depths, predictions, masks)


def normals_panel(
    images: Sequence[UInt8[np.ndarray, "h w 3"]],
    truths: Sequence[Float[np.ndarray, "h w 3"]],
    predictions: Sequence[Float[np.ndarray, "h w 3"]],
    masks: Sequence[Bool[np.ndarray, "h w 1"]],
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws one row for each image: the image, its true normals, the predicted normals, the angle between them.

    Red, green and blue are x, y and z, from -1 to 1. Angles go from black (0) to white (at least `BRIGHTEST_ANGLE`).
    Invalid pixels are black.

    Args:
        images: the images.
        truths: the true normals.
        predictions: the predicted normals.
        masks: the valid pixels of the true normals.
    """
    return _panel(_compare_normals, images, truths, predictions, masks)


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
        cells.append(_join(small, axis=1))
    cells += [np.zeros_like(cells[0])] * (-len(cells) % columns)
    return _join([_join(cells[start : start + columns], axis=1) for start in range(0, len(cells), columns)], axis=0)


def png(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encodes an image as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def _panel(compare: Callable[..., list[Picture]], images: Sequence[Picture], *maps: Sequence[np.ndarray]) -> Picture:
    """One row for each image: the image, and what `compare` draws of its truth, prediction and mask."""
    rows = [[image, *compare(*rest)] for image, *rest in zip(images, *maps, strict=True)]
    joined = [_join(row, axis=1) for row in rows]
    width = max(row.shape[1] for row in joined)  # narrower rows are filled with black
    return _join([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in joined], axis=0)


def _compare_depth(depth: np.ndarray, prediction: np.ndarray, mask: np.ndarray) -> list[Picture]:
    near, far = (depth[mask].min(), depth[mask].max()) if mask.any() else (0.0, 1.0)
    span = max(far - near, 1e-6)
    shown = [color(_unit((metres - near) / span), DEPTH_COLORS) * mask for metres in (depth, prediction)]
    error = np.abs(prediction - depth) / np.where(mask, depth, 1)
    return [*shown, color(_unit(error / BRIGHTEST_ERROR), ERROR_COLORS) * mask]


def _compare_normals(truth: np.ndarray, prediction: np.ndarray, mask: np.ndarray) -> list[Picture]:
    error = np.zeros(mask.shape)
    error[mask] = angular_errors(prediction, truth, mask) / BRIGHTEST_ANGLE
    shown = [_as_colors(normals) * mask for normals in (truth, prediction)]
    return [*shown, color(_unit(error), ERROR_COLORS) * mask]


def _show_depth(example: dict[str, np.ndarray]) -> Picture:
    """The nearest depth is red, the farthest blue; outliers do not count."""
    depth, mask = example["depth"], example["mask"]
    near, far = np.quantile(depth[mask], PERCENTILES) if mask.any() else (0.0, 1.0)
    return color(_unit((depth - near) / max(far - near, 1e-6)), DEPTH_COLORS) * mask


def _show_normals(example: dict[str, np.ndarray]) -> Picture:
    return np.uint8(np.rint((example["normals"] + 1) * 127.5)) * example["mask"]


SHOWN = {"depth": _show_depth, "normals": _show_normals}  # how contact sheets draw each quantity


def _unit(values: np.ndarray) -> np.ndarray:
    """Clips values to [0, 1]. NaN, which predictions may have where the truth is unknown, becomes 0."""
    return np.clip(np.nan_to_num(values[..., 0]), 0, 1).astype(np.float32)


def _as_colors(normals: np.ndarray) -> np.ndarray:
    return normals_to_uint8(np.clip(np.nan_to_num(normals), -1, 1).astype(np.float32))


def _join(pictures: list[np.ndarray], axis: int) -> np.ndarray:
    gap = list(pictures[0].shape)
    gap[axis] = GAP
    white = np.full(gap, 255, np.uint8)
    parts = [part for picture in pictures for part in (white, picture)]
    return np.concatenate(parts[1:], axis=axis)
