"""How far a predicted depth map is from the truth, after the freedom that affine-invariant depth has is taken out.

Everything is computed in float64 over the pixels where `mask` is True.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64

Fit = tuple[Any, ...]  # NumPy's indexing
EVERYWHERE: Fit = ()
SMALLEST_DISPARITY = 1e-3  # 1 / metres
SMALLEST_DEPTH = 1e-6  # what is aligned to less is taken to be this: depth is positive
FARTHEST = 1e3  # metres: what a robust fit may make of a prediction far outside of what it was fitted to
RANSAC_PAIRS, RANSAC_JUDGES, RANSAC_SEED = 1000, 4096, 0
ALL_PAIRS_OF = 40  # points, of which all pairs are tried: 780
FEWEST_TO_VOTE = 5  # points; of fewer, none is an outlier
VOTE, OUTLIER = (
    2.5,
    4.0,
)  # standard deviations that a point may lie off the line that is voted for, and off the last one
ROUNDS = 10  # of fitting again; it ends by itself after two or three
TOLERANCE = 0.01  # of the median absolute deviation of the values: no point that near to the line is an outlier


def _dot(x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"]) -> float:
    """Σ x y. Not by BLAS, which would take all cores for each product, while they are busy with other images."""
    return np.einsum("n,n->", x, y)


def align_least_squares(
    prediction: Float[np.ndarray, "*shape"], depth: Float[np.ndarray, "*shape"], mask: Bool[np.ndarray, "*shape"]
) -> tuple[float, float]:
    """Returns the scale and the shift that minimise Σ (scale · prediction + shift − depth)².

    A constant prediction gets scale 0 and the mean depth. Raises ValueError where no pixel is valid.
    """
    x, y = prediction[mask].astype(np.float64), depth[mask].astype(np.float64)
    if not x.size:
        raise ValueError("align_least_squares: the mask is empty; leave this image out")
    # Centred, so that the normal equations are a single division, and as exact as can be.
    x_mean, y_mean = x.mean(), y.mean()
    x -= x_mean
    variance = _dot(x, x)
    scale = _dot(x, y - y_mean) / variance if variance > 0 else 0.0
    return float(scale), float(y_mean - scale * x_mean)


def fit_robustly(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> tuple[float, float, Bool[np.ndarray, " n"]]:
    """Returns scale and shift of the line y = scale · x + shift, and the points that it was fitted to: no outliers.

    The least median of squares (P. Rousseeuw, JASA 79, 1984): of lines through two points, that with the smallest
    median residual, which nearly half of the points cannot change. All pairs of at most `ALL_PAIRS_OF` points are
    tried, `RANSAC_PAIRS` of more, judged at `RANSAC_JUDGES` points; the draws are the same every time. The points near
    it are fitted by least squares, and so are those near that line, until nothing changes. Without outliers it is the
    least-squares line of all points. Raises ValueError where there are no points.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    every = np.ones(x.shape, bool)
    scale, shift = align_least_squares(x, y, every)
    if x.size < FEWEST_TO_VOTE or x.min() == x.max():
        return scale, shift, every
    one, other, judges = _pairs(x.size)
    one, other = one[x[one] != x[other]], other[x[one] != x[other]]
    scales = (y[one] - y[other]) / (x[one] - x[other])
    shifts = y[one] - scales * x[one]
    medians = [
        _upper_median(np.abs(scale * x[judges] + shift - y[judges]))
        for scale, shift in zip(scales, shifts, strict=True)
    ]
    if medians:  # or no pair that was drawn differs
        best = int(np.argmin(medians))
        scale, shift = scales[best], shifts[best]
    residuals = np.abs(scale * x + shift - y)
    floor = TOLERANCE * np.median(np.abs(y - np.median(y))) + 1e-9 * np.abs(y).max()
    few = 1 + 5 / (x.size - 2) + 50 / (x.size - 2) ** 3  # three of five are near some line by chance
    near = residuals <= max(VOTE * few * 1.4826 * _upper_median(residuals), floor)
    for _ in range(ROUNDS):
        scale, shift = align_least_squares(x, y, near)
        residuals = np.abs(scale * x + shift - y)
        deviation = np.sqrt(np.sum(residuals[near] ** 2) / max(np.count_nonzero(near) - 2, 1))
        before, near = near, residuals <= max(OUTLIER * few * deviation, floor)
        if np.array_equal(before, near):
            break
    return *align_least_squares(x, y, near), near


def _pairs(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of one and the other point of each pair, and of the points that judge."""
    if count <= ALL_PAIRS_OF:
        return *np.triu_indices(count, 1), np.arange(count)
    random = np.random.default_rng(RANSAC_SEED)
    return *random.integers(count, size=(2, RANSAC_PAIRS)), random.choice(count, min(count, RANSAC_JUDGES), False)


def _upper_median(values: Float64[np.ndarray, " n"]) -> float:
    """More than half of the values are at most that."""
    return np.partition(values, len(values) // 2)[len(values) // 2]


def align(
    prediction: Float[np.ndarray, "*shape"],
    depth: Float[np.ndarray, "*shape"],
    mask: Bool[np.ndarray, "*shape"],
    fit: Fit = EVERYWHERE,
) -> Float[np.ndarray, "*shape"]:
    """Returns the affine-invariant prediction in metres: scaled and shifted to fit the depth, and kept positive.

    `fit` indexes the pixels that the fit sees.
    """
    scale, shift = align_least_squares(prediction[fit], depth[fit], mask[fit])
    return np.maximum(scale * prediction.astype(np.float64) + shift, SMALLEST_DEPTH)


def align_disparity(
    prediction: Float[np.ndarray, "*shape"],
    depth: Float[np.ndarray, "*shape"],
    mask: Bool[np.ndarray, "*shape"],
    fit: Fit = EVERYWHERE,
) -> Float[np.ndarray, "*shape"]:
    """Returns a prediction of disparity, up to scale and shift, as metres: fitted to 1 / depth, then inverted.

    Only where the prediction is positive does it count for the fit. Aligned disparity is at least 0.001, so that depth
    is at most a kilometre.
    """
    inverse = 1 / np.where(mask, depth, 1).astype(np.float64)
    seen = mask & (prediction > 0)
    scale, shift = align_least_squares(prediction[fit], inverse[fit], seen[fit])
    return 1 / np.maximum(scale * prediction.astype(np.float64) + shift, SMALLEST_DISPARITY)


def align_robust_log(
    prediction: Float[np.ndarray, "*shape"],
    depth: Float[np.ndarray, "*shape"],
    mask: Bool[np.ndarray, "*shape"],
    fit: Fit = EVERYWHERE,
) -> Float[np.ndarray, "*shape"]:
    """Returns the prediction as metres: scaled and shifted to fit log(1 + depth), whatever outliers say.

    The protocol of Pixel-Perfect Depth (arXiv 2510.07316), by random sample consensus. `RANSAC_PAIRS` times two valid
    pixels are drawn, and the line through them is judged by how many of at most `RANSAC_JUDGES` others, also drawn,
    lie no farther from it, in log(1 + depth), than the median absolute deviation of that. The best line is fitted again
    by least squares, to every valid pixel that lies so near to it. The draws are the same every time. A prediction that
    is constant where it is valid gets the mean. The scale may be negative. Depth is at most `FARTHEST`.

    Raises ValueError where no pixel is valid.
    """
    x, y = prediction[fit][mask[fit]].astype(np.float64), np.log1p(depth[fit][mask[fit]].astype(np.float64))
    near = np.ones(x.shape, bool)
    if x.size and x.min() < x.max():
        threshold = np.median(np.abs(y - np.median(y)))
        random = np.random.default_rng(RANSAC_SEED)
        one, other = random.integers(x.size, size=(2, RANSAC_PAIRS))
        one, other = one[x[one] != x[other]], other[x[one] != x[other]]
        judges = random.choice(x.size, min(x.size, RANSAC_JUDGES), replace=False)
        scales = (y[one] - y[other]) / (x[one] - x[other])
        shifts = y[one] - scales * x[one]
        votes = [
            np.count_nonzero(np.abs(scale * x[judges] + shift - y[judges]) <= threshold)
            for scale, shift in zip(scales, shifts, strict=True)
        ]
        if votes:
            best = int(np.argmax(votes))
            near = np.abs(scales[best] * x + shifts[best] - y) <= threshold
    # Of the two that made the line one may lie off it by a rounding, where the threshold is zero.
    scale, shift = align_least_squares(x, y, near if near.any() else np.ones(x.shape, bool))
    metres = np.expm1(np.minimum(scale * prediction.astype(np.float64) + shift, np.log1p(FARTHEST)))
    return np.maximum(metres, SMALLEST_DEPTH)


def keep(
    prediction: Float[np.ndarray, "*shape"],
    depth: Float[np.ndarray, "*shape"],
    mask: Bool[np.ndarray, "*shape"],
    fit: Fit = EVERYWHERE,
) -> Float[np.ndarray, "*shape"]:
    """Returns the prediction, which claims to be in metres, and is only kept positive."""
    return np.maximum(prediction.astype(np.float64), SMALLEST_DEPTH)


ALIGNMENTS = {
    "least_square": align,
    "least_square_disparity": align_disparity,
    "ransac_log": align_robust_log,
    "none": keep,
}
# What has to be said of an alignment, since no paper fixes it.
REMARKS = {
    "ransac_log": f"scale and shift to log(1 + depth), by the best of {RANSAC_PAIRS} pairs of pixels (seed "
    f"{RANSAC_SEED}), judged at {RANSAC_JUDGES} pixels with the median absolute deviation as threshold, then least "
    "squares over all pixels within it; compare with nothing but the same"
}


Values = Float64[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Pair:
    """Predicted and true depth, positive, at the valid pixels of one image; and what several metrics make of them."""

    prediction: Values
    truth: Values

    @cached_property
    def error(self) -> Values:
        return self.prediction - self.truth

    @cached_property
    def ratio(self) -> Values:
        return self.prediction / self.truth

    @cached_property
    def log_ratio(self) -> Values:
        return np.log(self.ratio)

    @cached_property
    def worse_ratio(self) -> Values:
        return np.maximum(self.ratio, self.truth / self.prediction)


def _mean_square(values: Values) -> float:
    return _dot(values, values) / len(values)


# 0 is perfect, but 1 for the deltas.
METRICS: dict[str, Callable[[Pair], float]] = {
    "abs_rel": lambda pair: np.mean(np.abs(pair.error) / pair.truth),
    "sq_rel": lambda pair: np.mean(pair.error**2 / pair.truth),
    "rmse_linear": lambda pair: np.sqrt(_mean_square(pair.error)),
    "rmse_log": lambda pair: np.sqrt(_mean_square(pair.log_ratio)),
    "log10": lambda pair: np.mean(np.abs(pair.log_ratio)) / np.log(10),
    "delta1": lambda pair: np.mean(pair.worse_ratio < 1.25),
    "delta2": lambda pair: np.mean(pair.worse_ratio < 1.25**2),
    "delta3": lambda pair: np.mean(pair.worse_ratio < 1.25**3),
    "i_rmse": lambda pair: np.sqrt(_mean_square(pair.error / (pair.prediction * pair.truth))),
    "silog": lambda pair: 100 * np.std(pair.log_ratio),
}


def depth_scores(
    prediction: Float[np.ndarray, "*shape"],
    depth: Float[np.ndarray, "*shape"],
    mask: Bool[np.ndarray, "*shape"],
    names: Sequence[str] = ("abs_rel", "delta1"),
) -> dict[str, float]:
    """Returns the named rows of `METRICS` for one aligned prediction, in metres and positive, as the depth is.

    Raises ValueError where no pixel is valid.
    """
    pair = Pair(prediction[mask].astype(np.float64), depth[mask].astype(np.float64))
    if not pair.truth.size:
        raise ValueError("depth_scores: the mask is empty; leave this image out")
    return {name: float(METRICS[name](pair)) for name in names}


def psnr(prediction: Float[np.ndarray, "*shape"], truth: Float[np.ndarray, "*shape"], peak: float = 1.0) -> float:
    """Returns the peak signal-to-noise ratio in decibels; `peak` is the length of the range of values."""
    squared = np.mean((prediction.astype(np.float64) - truth.astype(np.float64)) ** 2)
    return float(10 * np.log10(peak**2 / squared)) if squared else float("inf")
