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
