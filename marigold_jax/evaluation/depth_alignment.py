"""Turns predicted depth into metres before it is scored: the alignments that `evaluate --alignment` offers.

Affine-invariant depth is known up to a scale and a shift. An alignment fits both to the true depth at the valid pixels,
as the evaluation of arXiv 2312.02145 does (section 4.2), and returns metres. All of
them compute in float64 and have the same arguments:

    prediction    the predicted map, of any shape
    depth         the true depth in metres, of the same shape
    mask          True where the true depth is valid
    fit           indexes the pixels that the fit uses; default: all
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from marigold_jax.data.affine_fit import NUM_PAIRS, NUM_TEST_POINTS, SEED, fit_by_consensus, fit_least_squares

Fit = tuple[Any, ...]  # an index, as NumPy takes it
EVERYWHERE: Fit = ()
SMALLEST_DISPARITY = 1e-3  # 1 / metres
SMALLEST_DEPTH = 1e-6  # metres; aligned depth is clipped to it, since depth is positive
LARGEST_DEPTH = 1e3  # metres; a fit in log space could otherwise give anything at pixels that it did not use


def align(
    prediction: Float[np.ndarray, "*shape"],
    depth: Float[np.ndarray, "*shape"],
    mask: Bool[np.ndarray, "*shape"],
    fit: Fit = EVERYWHERE,
) -> Float[np.ndarray, "*shape"]:
    """Aligns affine-invariant depth by least squares: the papers' alignment (arXiv 2312.02145, section 4.2).

    Minimises Σ (scale · prediction + shift − depth)² over the valid pixels.

    Args:
        prediction: affine-invariant depth, in any unit.
        depth: the true depth, in metres.
        mask: True where the true depth is valid.
        fit: indexes the pixels that the fit uses.

    Returns:
        scale · prediction + shift, in metres, at least `SMALLEST_DEPTH`.

    Raises:
        ValueError: no pixel is valid.
    """
    scale, shift = fit_least_squares(prediction[fit], depth[fit], mask[fit])
    return np.maximum(scale * prediction.astype(np.float64) + shift, SMALLEST_DEPTH)


def align_disparity(
    prediction: Float[np.ndarray, "*shape"],
    depth: Float[np.ndarray, "*shape"],
    mask: Bool[np.ndarray, "*shape"],
    fit: Fit = EVERYWHERE,
) -> Float[np.ndarray, "*shape"]:
    """Aligns affine-invariant disparity (inverse depth) by least squares, as MiDaS predicts it (arXiv 1907.01341).

    Minimises Σ (scale · prediction + shift − 1 / depth)² over the valid pixels where the prediction is positive, then
    inverts.

    Args:
        prediction: affine-invariant disparity, in any unit.
        depth: the true depth, in metres.
        mask: True where the true depth is valid.
        fit: indexes the pixels that the fit uses.

    Returns:
        Depth in metres, at most 1 / `SMALLEST_DISPARITY`: a kilometre.

    Raises:
        ValueError: no pixel is valid with a positive prediction.
    """
    inverse = 1 / np.where(mask, depth, 1).astype(np.float64)
    used = mask & (prediction > 0)
    scale, shift = fit_least_squares(prediction[fit], inverse[fit], used[fit])
    return 1 / np.maximum(scale * prediction.astype(np.float64) + shift, SMALLEST_DISPARITY)


def align_robust_log(
    prediction: Float[np.ndarray, "*shape"],
    depth: Float[np.ndarray, "*shape"],
    mask: Bool[np.ndarray, "*shape"],
    fit: Fit = EVERYWHERE,
) -> Float[np.ndarray, "*shape"]:
    """Aligns to log(1 + depth) by random sample consensus: the protocol of Pixel-Perfect Depth (arXiv 2510.07316).

    Fits scale · prediction + shift to log(1 + depth) with `data.affine_fit.fit_by_consensus`, which ignores outliers.

    Args:
        prediction: depth up to scale and shift in log space, in any unit.
        depth: the true depth, in metres.
        mask: True where the true depth is valid.
        fit: indexes the pixels that the fit uses.

    Returns:
        exp(scale · prediction + shift) − 1, in metres, from `SMALLEST_DEPTH` to `LARGEST_DEPTH`.

    Raises:
        ValueError: no pixel is valid.
    """
    x, y = prediction[fit][mask[fit]].astype(np.float64), np.log1p(depth[fit][mask[fit]].astype(np.float64))
    scale, shift = fit_by_consensus(x, y)
    metres = np.expm1(np.minimum(scale * prediction.astype(np.float64) + shift, np.log1p(LARGEST_DEPTH)))
    return np.maximum(metres, SMALLEST_DEPTH)


def keep(
    prediction: Float[np.ndarray, "*shape"],
    depth: Float[np.ndarray, "*shape"],
    mask: Bool[np.ndarray, "*shape"],
    fit: Fit = EVERYWHERE,
) -> Float[np.ndarray, "*shape"]:
    """Keeps a prediction that is in metres already. Returns it, at least `SMALLEST_DEPTH`."""
    return np.maximum(prediction.astype(np.float64), SMALLEST_DEPTH)


ALIGNMENTS = {
    "least_square": align,
    "least_square_disparity": align_disparity,
    "ransac_log": align_robust_log,
    "none": keep,
}
# Details that no paper fixes. They are printed with the scores.
REMARKS = {
    "ransac_log": f"scale and shift to log(1 + depth), by the best of {NUM_PAIRS} pairs of pixels (seed {SEED}), "
    f"tested at {NUM_TEST_POINTS} pixels with the median absolute deviation as threshold, then least squares over all "
    "pixels within it; comparable only with scores made the same way"
}


def fitted_columns(width: int, most: int | None) -> slice | Int[np.ndarray, " n"]:
    """The columns that the fit uses: at most `most` of them, evenly spaced; all if `most` is None.

    The official evaluation thins out the width of ETH3D in this way, and not the height.
    """
    return slice(None) if not most or width <= most else np.arange(most) * width // most
