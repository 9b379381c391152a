"""Surface normals: out of planar depth, where a dataset has none of its own, and turned towards the camera.

A pinhole camera sees the point Z · (x, y, -1) in a pixel of depth Z, with x = (column - centre) / focal length to the
right and y, likewise, up. Inverse depth is then affine over a plane: 1 / Z = a x + b y + c, whatever its slant, and the
plane's normal that faces the camera is (-a, -b, c), scaled to unit length. So one fits planes to 1 / Z, by least
squares over a few pixels, which also averages out the steps of depth that is stored as whole numbers.

At an edge, pixels on both sides make a plane that is neither's. Of the nine windows that hold a pixel at their centre,
corners and sides, each pixel therefore takes the one that is flattest, as Nagao and Matsuyama (1979) smooth images.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Float64

RADIUS = 3  # windows of 7 x 7: at 10 m, whole centimetres are about one degree of noise
SMALLEST_SHARE = 0.4  # of a window's pixels that must be valid
FLATTER = 0.25  # a window off the centre is taken where its error is less than that times the centre's


def rays(height: int, width: int, focal_length: float) -> Float64[np.ndarray, "h w 3"]:
    """Returns what each pixel sees at depth 1: x right, y up, z to the viewer. The axis runs through the middle."""
    x = (np.arange(width) - (width - 1) / 2) / focal_length
    y = ((height - 1) / 2 - np.arange(height)) / focal_length
    return np.stack([*np.meshgrid(x, y), np.full((height, width), -1.0)], axis=-1)


def towards_camera(normals: Float[np.ndarray, "h w 3"], focal_length: float) -> Float[np.ndarray, "h w 3"]:
    """Returns the normals, those that point away from the camera turned around."""
    away = np.einsum("hwc,hwc->hw", normals, rays(*normals.shape[:2], focal_length)) > 1e-3
    return np.where(away[..., None], -normals, normals)


def normals_from_depth(
    depth: Float[np.ndarray, "h w 1"], mask: Bool[np.ndarray, "h w 1"], focal_length: float
) -> Float64[np.ndarray, "h w 3"]:
    """Returns unit normals (x right, y up, z towards the viewer) of planar depth; 0 where there is too little to see.

    `focal_length`: in pixels. Depth in any unit, valid and positive where `mask` is True.
    """
    valid = mask[..., 0]
    inverse = np.where(valid, 1 / np.where(valid, depth[..., 0].astype(np.float64), 1), 0)
    x, y, _ = np.moveaxis(rays(*valid.shape, focal_length), -1, 0)
    slope_x, slope_y, error = _planes(inverse, valid, x, y)
    best = np.where(np.isfinite(error), FLATTER * error, np.inf)
    a, b = slope_x.copy(), slope_y.copy()
    for there in _offsets(RADIUS):
        moved = _moved(error, there, np.inf)
        better = moved < best
        best = np.where(better, moved, best)
        a, b = (np.where(better, _moved(slope, there, 0.0), chosen) for slope, chosen in ((slope_x, a), (slope_y, b)))
    normals = np.stack([-a, -b, inverse - a * x - b * y], axis=-1)
    known = valid & np.isfinite(best)
    length = np.linalg.norm(normals, axis=-1)
    return np.where(known[..., None], normals / np.where(known, length, 1)[..., None], 0)


def _planes(
    inverse: Float64[np.ndarray, "h w"],
    valid: Bool[np.ndarray, "h w"],
    x: Float64[np.ndarray, "h w"],
    y: Float64[np.ndarray, "h w"],
) -> tuple[Float64[np.ndarray, "h w"], Float64[np.ndarray, "h w"], Float64[np.ndarray, "h w"]]:
    """The plane that fits the window around each pixel: its slopes along x and y, and the mean square of what is left.

    The error is relative to the mean of the window; infinity where too little of it is valid.
    """
    weight = valid.astype(np.float64)
    count = np.maximum(_window_sum(weight), 1)
    x_mean, y_mean, mean = (_window_sum(weight * values) / count for values in (x, y, inverse))

    def covariance(p: np.ndarray, q: np.ndarray, p_mean: np.ndarray, q_mean: np.ndarray) -> np.ndarray:
        return _window_sum(weight * p * q) / count - p_mean * q_mean

    xx, xy, yy = (
        covariance(x, x, x_mean, x_mean),
        covariance(x, y, x_mean, y_mean),
        covariance(y, y, y_mean, y_mean),
    )
    xq, yq, qq = (
        covariance(x, inverse, x_mean, mean),
        covariance(y, inverse, y_mean, mean),
        covariance(inverse, inverse, mean, mean),
    )
    determinant = xx * yy - xy**2
    enough = (count >= SMALLEST_SHARE * (2 * RADIUS + 1) ** 2) & (determinant > 0)
    safe = np.where(enough, determinant, 1)
    slope_x, slope_y = (yy * xq - xy * yq) / safe, (xx * yq - xy * xq) / safe
    left = np.maximum(qq - slope_x * xq - slope_y * yq, 0) / np.where(enough, mean, 1) ** 2
    return slope_x, slope_y, np.where(enough, left, np.inf)


def _offsets(radius: int) -> Iterator[tuple[int, int]]:
    steps = (-radius, 0, radius)
    return ((down, right) for down in steps for right in steps)


def _moved(values: Float64[np.ndarray, "h w"], there: tuple[int, int], outside: float) -> Float64[np.ndarray, "h w"]:
    """What lies `there` (down, right) of each pixel."""
    padded = np.pad(values, RADIUS, constant_values=outside)
    down, right = (RADIUS + step for step in there)
    return padded[down : down + values.shape[0], right : right + values.shape[1]]


def _window_sum(values: Float64[np.ndarray, "h w"]) -> Float64[np.ndarray, "h w"]:
    """Sums over the window around each pixel, as far as it lies in the picture."""
    for axis in (0, 1):
        pads = [(RADIUS, RADIUS) if axis == dimension else (0, 0) for dimension in (0, 1)]
        padded = np.pad(values, pads)
        size = values.shape[axis]
        values = sum(np.take(padded, range(start, start + size), axis) for start in range(2 * RADIUS + 1))
    return values
