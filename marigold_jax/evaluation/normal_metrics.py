"""How far predicted surface normals point away from the true ones, in degrees, and scores made of that.

Everything is computed in float64. Lengths do not matter, of either vector: the angle between two is that between the
unit vectors along them. It is taken from cross and dot product, which is exact for small angles too, where the
arccosine of a cosine loses half of the digits. Papers average in two ways: over images, each of which gets scores of
its own (Marigold), or over the pixels of all images as if they were one (DSINE, arXiv 2403.00712).
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, Float64

Angles = Float64[np.ndarray, " n"]
T = TypeVar("T")

# By which factors predicted (x, y, z) become x right, y up, z towards the viewer.
CONVENTIONS = {"x_right": (1, 1, 1), "x_left": (-1, 1, 1)}
UNDECIDED = 90.0  # degrees: what a prediction without a direction scores, as if its cosine were 0
WITHIN = (5.0, 7.5, 11.25, 22.5, 30.0)
BINS = 2**14  # of 0.011 degrees: so many counts are kept, and in the end the angles of a bin or two


def angular_errors(
    prediction: Float[np.ndarray, "h w 3"], truth: Float[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w 1"]
) -> Angles:
    """Returns the angle, in [0, 180] degrees, at each pixel of the mask, row by row.

    Opposite vectors are 180 degrees apart. A prediction of length zero counts as 90, as in the reference; the truth
    must not be zero inside the mask.
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


# Degrees, 0 is perfect; and shares of the pixels that are strictly closer than that, 1 is perfect.
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
    """Returns the scores of the angles of all images together, without ever holding them together.

    `each(function)` applies a function to the angles of every image, in any order; it is called twice. The first time
    sums, counts, and a histogram are taken; the second time, of the angles in the bin where the histogram puts the
    median (or in the two bins), those that differ, so that the median is exact too. Raises ValueError where there are
    no angles at all.
    """
    count, total, squares, *rest = sum(each(_totals), np.zeros(3 + len(WITHIN) + BINS + 1))
    if not count:
        raise ValueError("pooled_angle_scores: every mask is empty")
    closer, histogram = rest[: len(WITHIN)], np.asarray(rest[len(WITHIN) :])
    middle = np.asarray([(count - 1) // 2, count // 2])  # the ranks of the median; one and the same for odd counts
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
    """How many, their sum, that of the squares, how many are within each limit, how many in each bin."""
    closer = [np.count_nonzero(angles < degrees) for degrees in WITHIN]
    histogram = np.bincount(_bin(angles), minlength=BINS + 1)
    return np.concatenate([[angles.size, angles.sum(), angles @ angles, *closer], histogram]).astype(np.float64)


def _bin(angles: Angles) -> np.ndarray:
    return (angles * (BINS / 180)).astype(np.intp)


def _distinct(angles: Angles, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """What is in these bins, each value once, and how often it is there: walls repeat one angle over and over."""
    bins = _bin(angles)
    return np.unique(angles[(bins >= first) & (bins <= last)], return_counts=True)
