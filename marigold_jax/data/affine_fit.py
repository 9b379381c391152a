"""Fits a line y = scale · x + shift: by least squares, and two fits that ignore outliers.

Affine-invariant depth is known up to a scale and a shift. These fits find both from pixels where the depth is known.
They compute in float64, and their random draws are the same every time.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Float64

NUM_PAIRS = 1000  # random pairs of points, each of which proposes a line
NUM_TEST_POINTS = 4096  # random points at which a proposed line is tested
SEED = 0
ALL_PAIRS_BELOW = 40  # up to this many points, all pairs propose a line: 780
FEWEST_FOR_OUTLIERS = 5  # with fewer points, none is an outlier
# In standard deviations: how far a point may lie from the proposed line, and from the final one.
FIRST_CUTOFF, FINAL_CUTOFF = 2.5, 4.0
MAX_REFITS = 10  # two or three are usual
TOLERANCE = 0.01  # times the median absolute deviation of y: a point closer to the line is never an outlier

Values = Float64[np.ndarray, " n"]
Indices = np.ndarray


def dot(x: Values, y: Values) -> float:
    """Σ x y. Not by BLAS, which would use all cores for each product while they work on other images."""
    return np.einsum("n,n->", x, y)


def fit_least_squares(
    x: Float[np.ndarray, "*shape"], y: Float[np.ndarray, "*shape"], mask: Bool[np.ndarray, "*shape"]
) -> tuple[float, float]:
    """Fits a line by least squares.

    With centred values u = x − mean(x) and v = y − mean(y), the minimum of Σ (scale · x + shift − y)² is at
    scale = Σ u v / Σ u² and shift = mean(y) − scale · mean(x).

    Args:
        x: the values to be scaled, such as a prediction.
        y: the values to be matched, such as the true depth.
        mask: the points to fit.

    Returns:
        The scale and the shift. If x is constant, the scale is 0 and the shift is the mean of y.

    Raises:
        ValueError: the mask is empty.
    """
    x, y = x[mask].astype(np.float64), y[mask].astype(np.float64)
    if not x.size:
        raise ValueError("fit_least_squares: the mask is empty; leave this image out")
    # Centred values make the normal equations a single division, and lose the least precision.
    x_mean, y_mean = x.mean(), y.mean()
    x -= x_mean
    variance = dot(x, x)
    scale = dot(x, y - y_mean) / variance if variance > 0 else 0.0
    return float(scale), float(y_mean - scale * x_mean)


def fit_robustly(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> tuple[float, float, Bool[np.ndarray, " n"]]:
    """Fits a line by the least median of squares, which nearly half of the points cannot change.

    Each pair of points proposes the line through both (P. Rousseeuw, "Least Median of Squares Regression", JASA 79,
    1984). Up to `ALL_PAIRS_BELOW` points, all pairs are tried; above, `NUM_PAIRS` random ones, tested at
    `NUM_TEST_POINTS` random points. The line with the smallest median residual wins. Then the points near the line are
    fitted by least squares, until the set of these points no longer changes. Without outliers, the result is the
    least-squares line through all points.

    Args:
        x: the values to be scaled.
        y: the values to be matched.

    Returns:
        The scale, the shift, and which points were fitted (True) or are outliers (False).

    Raises:
        ValueError: there are no points.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    every = np.ones(x.shape, bool)
    scale, shift = fit_least_squares(x, y, every)
    if x.size < FEWEST_FOR_OUTLIERS or x.min() == x.max():
        return scale, shift, every
    pairs = _all_pairs(x.size) if x.size <= ALL_PAIRS_BELOW else _random_pairs(x.size)
    scales, shifts, residuals = _proposed_lines(x, y, *pairs)
    medians = [_upper_median(one) for one in residuals]
    if medians:  # none if x is the same at both points of every pair
        best = int(np.argmin(medians))
        scale, shift = scales[best], shifts[best]
    residuals = np.abs(scale * x + shift - y)
    floor = TOLERANCE * np.median(np.abs(y - np.median(y))) + 1e-9 * np.abs(y).max()
    small_sample = 1 + 5 / (x.size - 2) + 50 / (x.size - 2) ** 3  # three of five points are near some line by chance
    near = residuals <= max(FIRST_CUTOFF * small_sample * 1.4826 * _upper_median(residuals), floor)
    for _ in range(MAX_REFITS):
        scale, shift = fit_least_squares(x, y, near)
        residuals = np.abs(scale * x + shift - y)
        deviation = np.sqrt(np.sum(residuals[near] ** 2) / max(np.count_nonzero(near) - 2, 1))
        before, near = near, residuals <= max(FINAL_CUTOFF * small_sample * deviation, floor)
        if np.array_equal(before, near):
            break
    return *fit_least_squares(x, y, near), near


def fit_by_consensus(x: Values, y: Values) -> tuple[float, float]:
    """Fits a line by random sample consensus (M. Fischler and R. Bolles, "Random Sample Consensus", CACM 24, 1981).

    `NUM_PAIRS` random pairs of points propose the lines through them. Each line is tested at `NUM_TEST_POINTS` random
    points: its score is the number of them with |scale · x + shift − y| ≤ t, where t is the median absolute deviation
    of y. The points within t of the best line are fitted by least squares.

    Args:
        x: the values to be scaled.
        y: the values to be matched.

    Returns:
        The scale, which may be negative, and the shift. If x is constant, the scale is 0 and the shift the mean of y.

    Raises:
        ValueError: there are no points.
    """
    near = np.ones(x.shape, bool)
    if x.size and x.min() < x.max():
        threshold = np.median(np.abs(y - np.median(y)))
        scales, shifts, residuals = _proposed_lines(x, y, *_random_pairs(x.size))
        inliers = [np.count_nonzero(one <= threshold) for one in residuals]
        if inliers:
            best = int(np.argmax(inliers))
            near = np.abs(scales[best] * x + shifts[best] - y) <= threshold
    # With a threshold of 0, rounding can put even the two points of the pair off their line.
    return fit_least_squares(x, y, near if near.any() else np.ones(x.shape, bool))


def _all_pairs(count: int) -> tuple[Indices, Indices, Indices]:
    """The first and the second point of each pair, and the points at which lines are tested."""
    return *np.triu_indices(count, 1), np.arange(count)


def _random_pairs(count: int) -> tuple[Indices, Indices, Indices]:
    """As `_all_pairs`, but drawn at random."""
    random = np.random.default_rng(SEED)
    first, second = random.integers(count, size=(2, NUM_PAIRS))
    return first, second, random.choice(count, min(count, NUM_TEST_POINTS), replace=False)


def _proposed_lines(
    x: Values, y: Values, first: Indices, second: Indices, tested: Indices
) -> tuple[Float64[np.ndarray, " m"], Float64[np.ndarray, " m"], Iterator[Values]]:
    """The scale and the shift of the line through each pair with two different x, and its residuals where tested."""
    first, second = first[x[first] != x[second]], second[x[first] != x[second]]
    scales = (y[first] - y[second]) / (x[first] - x[second])
    shifts = y[first] - scales * x[first]
    x, y = x[tested], y[tested]
    residuals = (np.abs(scale * x + shift - y) for scale, shift in zip(scales, shifts, strict=True))
    return scales, shifts, residuals


def _upper_median(values: Values) -> float:
    """More than half of the values are at most this one."""
    return np.partition(values, len(values) // 2)[len(values) // 2]
