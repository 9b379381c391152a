"""Figures: predictions beside the truth."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

from marigold_jax.data.colors import color, normals_to_uint8
from marigold_jax.data.contact_sheet import DEPTH_COLORS, Picture, join, unit
from marigold_jax.evaluation.normal_metrics import angular_errors

ERROR_COLORS = "magma"
BRIGHTEST_ERROR = 0.5  # the relative depth error drawn in the brightest colour
BRIGHTEST_ANGLE = 60.0  # the angle in degrees, likewise


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


def _panel(compare: Callable[..., list[Picture]], images: Sequence[Picture], *maps: Sequence[np.ndarray]) -> Picture:
    """One row for each image: the image, and what `compare` draws of its truth, prediction and mask."""
    rows = [[image, *compare(*rest)] for image, *rest in zip(images, *maps, strict=True)]
    joined = [join(row, axis=1) for row in rows]
    width = max(row.shape[1] for row in joined)  # narrower rows are filled with black
    return join([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in joined], axis=0)


def _compare_depth(depth: np.ndarray, prediction: np.ndarray, mask: np.ndarray) -> list[Picture]:
    near, far = (depth[mask].min(), depth[mask].max()) if mask.any() else (0.0, 1.0)
    span = max(far - near, 1e-6)
    shown = [color(unit((metres - near) / span), DEPTH_COLORS) * mask for metres in (depth, prediction)]
    error = np.abs(prediction - depth) / np.where(mask, depth, 1)
    return [*shown, color(unit(error / BRIGHTEST_ERROR), ERROR_COLORS) * mask]


def _compare_normals(truth: np.ndarray, prediction: np.ndarray, mask: np.ndarray) -> list[Picture]:
    error = np.zeros(mask.shape)
    error[mask] = angular_errors(prediction, truth, mask) / BRIGHTEST_ANGLE
    shown = [_as_colors(normals) * mask for normals in (truth, prediction)]
    return [*shown, color(unit(error), ERROR_COLORS) * mask]


def _as_colors(normals: np.ndarray) -> np.ndarray:
    return normals_to_uint8(np.clip(np.nan_to_num(normals), -1, 1).astype(np.float32))
