"""How far a predicted depth map is from the truth, after the freedom that affine-invariant depth has is taken out.

Everything is computed in float64 over the pixels where `mask` is True.
"""

import numpy as np
from jaxtyping import Bool, Float

SMALLEST_DEPTH = 1e-6  # what is aligned to less is taken to be this: depth is positive


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
    variance = np.square(x - x_mean).mean()
    scale = ((x - x_mean) * (y - y_mean)).mean() / variance if variance > 0 else 0.0
    return float(scale), float(y_mean - scale * x_mean)


def abs_rel(
    prediction: Float[np.ndarray, "*shape"], depth: Float[np.ndarray, "*shape"], mask: Bool[np.ndarray, "*shape"]
) -> float:
    """Returns the mean of |prediction − depth| / depth: 0 is perfect. `depth` is positive where valid."""
    x, y = prediction[mask].astype(np.float64), depth[mask].astype(np.float64)
    return float(np.mean(np.abs(x - y) / y))


def delta(
    prediction: Float[np.ndarray, "*shape"],
    depth: Float[np.ndarray, "*shape"],
    mask: Bool[np.ndarray, "*shape"],
    threshold: float = 1.25,
) -> float:
    """Returns the share of pixels where max(prediction / depth, depth / prediction) < threshold: 1 is perfect.

    δ1 has the threshold 1.25, δ2 and δ3 its second and third power.
    """
    x, y = prediction[mask].astype(np.float64), depth[mask].astype(np.float64)
    return float(np.mean(np.maximum(x / y, y / x) < threshold))


def align(
    prediction: Float[np.ndarray, "*shape"], depth: Float[np.ndarray, "*shape"], mask: Bool[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """Returns the affine-invariant prediction in metres: scaled and shifted to fit the depth, and kept positive."""
    scale, shift = align_least_squares(prediction, depth, mask)
    return np.maximum(scale * prediction.astype(np.float64) + shift, SMALLEST_DEPTH)


def depth_scores(
    prediction: Float[np.ndarray, "*shape"], depth: Float[np.ndarray, "*shape"], mask: Bool[np.ndarray, "*shape"]
) -> dict[str, float]:
    """Returns `abs_rel` and `delta1` of one prediction in metres."""
    return {"abs_rel": abs_rel(prediction, depth, mask), "delta1": delta(prediction, depth, mask)}


def psnr(prediction: Float[np.ndarray, "*shape"], truth: Float[np.ndarray, "*shape"], peak: float = 1.0) -> float:
    """Returns the peak signal-to-noise ratio in decibels; `peak` is the length of the range of values."""
    squared = np.mean((prediction.astype(np.float64) - truth.astype(np.float64)) ** 2)
    return float(10 * np.log10(peak**2 / squared)) if squared else float("inf")
