"""Resizing on the host, equal to `torch.nn.functional.interpolate(..., align_corners=False)` for every method.

A separable resize is two banded matrices, one for the rows and one for the columns. A method is therefore only a rule
for the bands: which input pixels an output pixel reads, and with what weights. Positions are computed in float32 on
purpose: torch does so, and on a photograph 4000 pixels wide the rounding decides which pixel `nearest` picks.
"""

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
from jaxtyping import Float32, Shaped
from scipy.sparse import csr_array

# The column pass works on slabs of rows: the transposed copy stays in the processor's cache.
ROWS_AT_ONCE = 64
RESIZED_ROWS_AT_ONCE = 16  # with twelve thousand columns shrunk to a sixteenth, 37 MB of floats


def resize(
    image: Shaped[np.ndarray, "h w c"],
    size: tuple[int, int],
    method: str,
    antialias: bool,
    convert: Callable[[Shaped[np.ndarray, "..."]], Float32[np.ndarray, "..."]] | None = None,
) -> Float32[np.ndarray, "height width c"]:
    """Resizes an image as PyTorch does, to 1e-5.

    An axis that keeps its length is not changed, and an image that keeps both is returned without a copy.

    Args:
        image: (h, w, c) in any value range; float32 unless `convert` is given.
        size: (height, width).
        method: "nearest" (the left pixel), "nearest-exact" (the closest pixel), "bilinear", "bicubic" or "area". As in
            PyTorch, bicubic is Keys' kernel with a = -0.75, or a = -0.5 when antialiased.
        antialias: widens the bilinear and bicubic kernels when shrinking; ignored by the other methods.
        convert: converts pixels to float32, independently of each other. It is applied to a few rows at a time, so
            that a large uint8 photograph is never in memory as floats. The result equals that of `convert(image)` bit
            for bit.

    Raises:
        ValueError: the method is unknown, or a size is 0.
    """
    if method not in METHODS:
        raise ValueError(f"resample method must be one of {', '.join(METHODS)}; got {method!r}")
    if min(size) < 1 or min(image.shape[:2]) < 1:
        raise ValueError(f"cannot resize {image.shape[0]} x {image.shape[1]} pixels to {size[0]} x {size[1]}")
    antialias = antialias and method in ANTIALIASED
    if size[0] != image.shape[0]:
        bands = _bands(image.shape[0], size[0], method, antialias)
        image = _convert_and_apply(bands, image, convert) if convert else _apply_to_rows(bands, image)
    elif convert:
        image = convert(image)
    if size[1] != image.shape[1]:
        image = _apply_to_columns(_bands(image.shape[1], size[1], method, antialias), image)
    return image


def resize_8_bits(image: Float32[np.ndarray, "h w c"], size: tuple[int, int]) -> Float32[np.ndarray, "height width c"]:
    """Resizes whole numbers, 0 to 255, as torchvision resizes a uint8 tensor: antialiased bilinear, then rounded.

    Halves are common there, and which way each goes is decided by the last bit. So, unlike in `resize`, columns come
    first, weights are made as torch's CPU kernel makes them, and each product is added with a single rounding.
    """
    for axis in (1, 0):
        if size[axis] != image.shape[axis]:
            image = _fused(image.swapaxes(0, axis), size[axis]).swapaxes(0, axis)
    return np.rint(image)


def _fused(image: Float32[np.ndarray, "n m c"], new: int) -> Float32[np.ndarray, "k m c"]:
    old = len(image)
    scale = _scale(old, new)
    reach, shrink = max(scale, np.float32(1)), min(np.float32(1) / scale, np.float32(1))
    centre = (np.float64(scale) * (np.arange(new) + 0.5)).astype(np.float32)
    first = np.maximum((np.float64(centre - reach) + 0.5).astype(np.int64), 0)
    after = np.minimum((np.float64(centre + reach) + 0.5).astype(np.int64), old)
    taps = first[:, None] + np.arange((after - first).max())
    away = (np.float64(taps.astype(np.float32) - centre[:, None]) + 0.5) * np.float64(shrink)
    weights = np.where(taps < after[:, None], _triangle(away.astype(np.float32)), np.float32(0))
    weights /= np.add.accumulate(weights, axis=1)[:, -1:]
    total = np.zeros((new, *image.shape[1:]), np.float32)
    for tap, weight in zip(np.minimum(taps, old - 1).T, weights.T, strict=True):
        total = (total + image[tap].astype(np.float64) * weight[:, None, None]).astype(np.float32)
    return total


# -------------------------------------------------------------------------------------------------------------- methods


def _triangle(x: Float32[np.ndarray, "n k"]) -> Float32[np.ndarray, "n k"]:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: Float32[np.ndarray, "n k"], a: float) -> Float32[np.ndarray, "n k"]:
    """Keys' cubic convolution kernel: R. Keys, IEEE TASSP 29(6), 1981, equation 4 with free `a`."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, np.float32(0)))


def _nearest(old: int, new: int, offset: float) -> tuple[np.ndarray, np.ndarray]:
    index = np.floor((np.arange(new, dtype=np.float32) + np.float32(offset)) * _scale(old, new)).astype(np.int64)
    return np.minimum(index, old - 1)[:, None], np.ones((new, 1), np.float32)


def _kernel(old: int, new: int, kernel: Callable, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples `kernel` around each output pixel's centre; a tap beyond the border reads the border pixel."""
    # Rounded once, after the subtraction, as torch's fused multiply-add does.
    source = (_scale(old, new).astype(np.float64) * (np.arange(new) + 0.5) - 0.5).astype(np.float32)
    taps = _taps(source, np.float32(radius))
    return np.clip(taps, 0, old - 1), kernel(taps - source[:, None])


def _antialiased(old: int, new: int, kernel: Callable, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """The kernel grows with the shrinking factor; taps beyond the border are dropped and the rest reweighted."""
    stretch = max(_scale(old, new), np.float32(1))
    source = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * _scale(old, new) - np.float32(0.5)
    taps = _taps(source, radius * stretch)
    weights = np.where((taps >= 0) & (taps < old), kernel((taps - source[:, None]) / stretch), np.float32(0))
    return np.clip(taps, 0, old - 1), weights / weights.sum(axis=1, keepdims=True)


def _area(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Adaptive average pooling: the mean over every input pixel that the output pixel touches, however little of it."""
    first = np.arange(new) * old // new
    last = -(-(np.arange(1, new + 1) * old) // new)  # exclusive, rounded up
    taps = first[:, None] + np.arange((last - first).max())
    weights = np.where(taps < last[:, None], 1 / (last - first)[:, None], 0).astype(np.float32)
    return np.minimum(taps, old - 1), weights


METHODS = {
    "nearest": partial(_nearest, offset=0.0),
    "nearest-exact": partial(_nearest, offset=0.5),
    "bilinear": partial(_kernel, kernel=_triangle, radius=1),
    "bicubic": partial(_kernel, kernel=partial(_cubic, a=-0.75), radius=2),
    "area": _area,
}
ANTIALIASED = {
    "bilinear": partial(_antialiased, kernel=_triangle, radius=1),
    "bicubic": partial(_antialiased, kernel=partial(_cubic, a=-0.5), radius=2),
}

# ----------------------------------------------------------------------------------------------------------- arithmetic


def _scale(old: int, new: int) -> np.float32:
    return np.float32(old) / np.float32(new)


def _taps(source: Float32[np.ndarray, " new"], reach: np.float32) -> Float32[np.ndarray, "new k"]:
    """The (whole) input pixels less than `reach` away from each source position, and perhaps one more."""
    return np.floor(source - reach + np.float32(1))[:, None] + np.arange(int(np.ceil(2 * reach)) + 1, dtype=np.float32)


@lru_cache(maxsize=64)
def _bands(old: int, new: int, method: str, antialias: bool) -> csr_array:
    """The (new, old) float32 matrix that resizes one axis; a folder of photographs asks for the same few all along."""
    taps, weights = (ANTIALIASED if antialias else METHODS)[method](old, new)
    row_starts = np.arange(0, taps.size + 1, taps.shape[1])
    bands = csr_array((weights.ravel(), taps.ravel().astype(np.int32), row_starts), shape=(new, old), dtype=np.float32)
    bands.sum_duplicates()  # border pixels that were read several times
    bands.eliminate_zeros()
    return bands


def _apply_to_rows(bands: csr_array, image: Float32[np.ndarray, "h w c"]) -> Float32[np.ndarray, "height w c"]:
    _, width, channels = image.shape
    return (bands @ image.reshape(len(image), -1)).reshape(-1, width, channels)


def _convert_and_apply(bands: csr_array, image: np.ndarray, convert: Callable) -> Float32[np.ndarray, "height w c"]:
    resized = np.empty((bands.shape[0], *image.shape[1:]), np.float32)
    for start in range(0, len(resized), RESIZED_ROWS_AT_ONCE):
        some = bands[start : start + RESIZED_ROWS_AT_ONCE]
        first, last = some.indices.min(), some.indices.max() + 1
        resized[start : start + some.shape[0]] = _apply_to_rows(some[:, first:last], convert(image[first:last]))
    return resized


def _apply_to_columns(bands: csr_array, image: Float32[np.ndarray, "h w c"]) -> Float32[np.ndarray, "h width c"]:
    height, width, channels = image.shape
    resized = np.empty((height, bands.shape[0], channels), np.float32)
    for start in range(0, height, ROWS_AT_ONCE):
        slab = image[start : start + ROWS_AT_ONCE]
        columns = slab.transpose(1, 0, 2).reshape(width, -1)
        resized[start : start + len(slab)] = (bands @ columns).reshape(-1, len(slab), channels).transpose(1, 0, 2)
    return resized
