"""How far predicted surface normals point away from the true ones, in degrees.

For a prediction p and a true normal g of any length, the angle is atan2(|p × g|, p · g). It equals
arccos(p · g / (|p| |g|)), but is exact for small angles too, where the arccosine loses half of the digits. Everything
is computed in float64.

Papers average in two ways: over images, each with scores of its own (Marigold, arXiv 2312.02145), or over the pixels of
all images together (DSINE, arXiv 2403.00712; E2E-FT, arXiv 2409.11355).
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, Float64

Angles = Float64[np.ndarray, " n"]
T = TypeVar("T")

# The factors that turn predicted (x, y, z) into ours: x right, y up, z towards the viewer.
CONVENTIONS = {"x_right": (1, 1, 1), "x_left": (-1, 1, 1)}
UNDECIDED = 90.0  # degrees; the error of a prediction of length zero, as if its cosine were 0
WITHIN = (5.0, 7.5, 11.25, 22.5, 30.0)  # degrees
BINS = 2**14  # of the histogram for the median: 0.011 degrees each


def angular_errors(
    prediction: Float[np.ndarray, "h w 3"], truth: Float[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w 1"]
) -> Angles:
    """Computes the angles between predicted and true normals.

    Args:
        prediction: normals of any length. Length zero counts as `UNDECIDED`, as in the official evaluation.
        truth: normals of any length, but not zero where the mask is True.
        mask: the pixels to compare.

    Returns:
        The angle at each pixel of the mask, row by row, in [0, 180] degrees.
    """
    inside = mask[..., 0]
    x, y, z = prediction[inside].T.astype(np.float64)
    a, b, c = truth[inside].T.astype(np.float64)
    sine = np.sqrt((y * c - z * b) ** 2 + (z * a - x * c) ** 2 + (x * b - y * a) ** 2)
    cosine = x * a + y * b + z * c
    return np.where((sine == 0) & (cosine == 0), UNDECIDED, np.degrees(np.arctan2(sine, cosine)))


def within(degrees: float) -> str:
    """The name of the score: 11.25 -> "within_11.25"."""
    return f"within_{degrees:g}"


# Angles in degrees, where 0 is perfect; and the shares of pixels strictly within a limit, where 1 is perfect.
ANGLE_METRICS: dict[str, Callable[[Angles], float]] = {
    "mean": np.mean,
    "median": np.median,
    "rmse": lambda angles: np.sqrt(np.mean(angles**2)),
    **{within(degrees): lambda angles, degrees=degrees: np.mean(angles < degrees) for degrees in WITHIN},
}


def angle_scores(angles: Angles) -> dict[str, float]:
    """Returns all rows of `ANGLE_METRICS` for the angles of one image. Raises ValueError where there are none."""
    if not angles.size:
        raise ValueError("angle_scores: the mask is empty; leave this image out")
    return {name: float(metric(angles)) for name, metric in ANGLE_METRICS.items()}


def pooled_angle_scores(each: Callable[[Callable[[Angles], T]], Iterable[T]]) -> dict[str, float]:
    """Computes the scores over the angles of all images together, without holding them all in memory.

    The first pass takes counts, sums and a histogram. The second pass collects the distinct angles in the one or two
    bins that hold the median, so that the median is exact.

    Args:
        each: `each(function)` applies a function to the angles of every image, in any order. It is called twice.

    Returns:
        All rows of `ANGLE_METRICS`.

    Raises:
        ValueError: there are no angles.
    """
    count, total, squares, *rest = sum(each(_totals), np.zeros(3 + len(WITHIN) + BINS + 1))
    if not count:
        raise ValueError("pooled_angle_scores: every mask is empty")
    closer, histogram = rest[: len(WITHIN)], np.asarray(rest[len(WITHIN) :])
    middle = np.asarray([(count - 1) // 2, count // 2])  # the ranks of the median; equal if the count is odd
    ends = np.cumsum(histogram)
    first, last = np.searchsorted(ends, middle, side="right")
    parts = list(each(lambda angles: _distinct(angles, int(first), int(last))))
    values, repeats = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(values)
    below = ends[first] - histogram[first]
    median = values[order][np.searchsorted(np.cumsum(repeats[order]), middle - below, side="right")].mean()
    scores = [total / count, median, np.sqrt(squares / count), *(number / count for number in closer)]
    return dict(zip(ANGLE_METRICS, map(float, scores), strict=True))


def _totals(angles: Angles) -> Float64[np.ndarray, " m"]:
    """The number of angles, their sum, the sum of their squares, the numbers within each limit and in each bin."""
    closer = [np.count_nonzero(angles < degrees) for degrees in WITHIN]
    histogram = np.bincount(_bin(angles), minlength=BINS + 1)
    return np.concatenate([[angles.size, angles.sum(), angles @ angles, *closer], histogram]).astype(np.float64)


def _bin(angles: Angles) -> np.ndarray:
    return (angles * (BINS / 180)).astype(np.intp)


def _distinct(angles: Angles, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct angles in these bins and how often each occurs. A flat wall repeats one angle many times."""
    bins = _bin(angles)
    return np.unique(angles[(bins >= first) & (bins <= last)], return_counts=True)
