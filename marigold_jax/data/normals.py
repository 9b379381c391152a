"""Surface normals from planar depth, for datasets that have none, and their orientation towards the camera.

In a pixel of depth Z, a pinhole camera sees the point Z · (x, y, -1), with x = (column - centre) / focal length to the
right, and y likewise upwards. Inverse depth is an affine function over any plane, 1 / Z = a x + b y + c, and the normal
of the plane that faces the camera is (-a, -b, c), scaled to unit length. Planes are therefore fitted to 1 / Z, by least
squares over a few pixels. This also averages out the quantisation of depth that is stored in integers.

At an edge, pixels of two surfaces would be fitted by one plane. Each pixel therefore takes the flattest of the nine
windows that have it at their centre, corners or sides, as in the filter of Nagao and Matsuyama (1979).
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Float64

RADIUS = 3  # windows of 7 x 7: at 10 m, whole centimetres are about one degree of noise
SMALLEST_SHARE = 0.4  # of the pixels of a window that must be valid
FLATTER = 0.25  # another window is taken only if its error is below this share of the centred window's


def rays(height: int, width: int, focal_length: float) -> Float64[np.ndarray, "h w 3"]:
    """The point at depth 1 that each pixel sees (x right, y up, z towards the viewer).

    `focal_length` is in pixels; the optical axis passes through the middle of the image.
    """
    x = (np.arange(width) - (width - 1) / 2) / focal_length
    y = ((height - 1) / 2 - np.arange(height)) / focal_length
    return np.stack([*np.meshgrid(x, y), np.full((height, width), -1.0)], axis=-1)


def towards_camera(normals: Float[np.ndarray, "h w 3"], focal_length: float) -> Float[np.ndarray, "h w 3"]:
    """Flips the normals that point away from the camera. `focal_length` is in pixels."""
    away = np.einsum("hwc,hwc->hw", normals, rays(*normals.shape[:2], focal_length)) > 1e-3
    return np.where(away[..., None], -normals, normals)


def normals_from_depth(
    depth: Float[np.ndarray, "h w 1"], mask: Bool[np.ndarray, "h w 1"], focal_length: float
) -> Float64[np.ndarray, "h w 3"]:
    """Estimates normals from planar depth.

    Args:
        depth: along the optical axis, in any unit.
        mask: True where depth is valid; it must be positive there.
        focal_length: in pixels.

    Returns:
        Unit normals, x right, y up, z towards the viewer; 0 where too few pixels are valid.
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
    """Fits a plane to the window around each pixel.

    Args:
        inverse: 1 / depth, 0 where invalid.
        valid: True where depth is valid.
        x, y: the coordinates of each pixel at depth 1.

    Returns:
        The slopes along x and along y, and the mean square error relative to the mean of the window, which is infinity
        where too few pixels are valid.
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
    """The values at an offset `there` = (down, right) from each pixel; `outside` beyond the border."""
    padded = np.pad(values, RADIUS, constant_values=outside)
    down, right = (RADIUS + step for step in there)
    return padded[down : down + values.shape[0], right : right + values.shape[1]]


def _window_sum(values: Float64[np.ndarray, "h w"]) -> Float64[np.ndarray, "h w"]:
    """Sums over the part of the window around each pixel that is inside the image."""
    for axis in (0, 1):
        pads = [(RADIUS, RADIUS) if axis == dimension else (0, 0) for dimension in (0, 1)]
        padded = np.pad(values, pads)
        size = values.shape[axis]
        values = sum(np.take(padded, range(start, start + size), axis) for start in range(2 * RADIUS + 1))
    return values
