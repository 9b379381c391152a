"""Alignments against NumPy's least squares, and against every pair of pixels."""

import numpy as np
import pytest

from marigold_jax.data.affine_fit import fit_least_squares
from marigold_jax.evaluation.depth_alignment import (
    ALIGNMENTS,
    align,
    align_disparity,
    align_robust_log,
    fitted_columns,
)
from marigold_jax.evaluation.depth_metrics import depth_scores


def test_alignment_is_numpys_least_squares():
    random = np.random.default_rng(0)
    prediction = random.uniform(0, 1, (7, 9, 1)).astype(np.float32)
    depth = (3 * prediction + 1 + 0.1 * random.standard_normal((7, 9, 1))).astype(np.float32)
    mask = random.random((7, 9, 1)) < 0.7
    columns = np.stack([prediction[mask], np.ones(mask.sum())], axis=1).astype(np.float64)
    wanted = np.linalg.lstsq(columns, depth[mask].astype(np.float64))[0]
    np.testing.assert_allclose(fit_least_squares(prediction, depth, mask), wanted, rtol=1e-10)


def test_alignment_ignores_what_is_masked():
    prediction, depth = np.float32([0.0, 0.5, 1.0, 0.7]), np.float32([1.0, 2.0, 3.0, np.nan])
    mask = np.array([True, True, True, False])
    np.testing.assert_allclose(fit_least_squares(prediction, depth, mask), (2, 1), rtol=1e-12)
    np.testing.assert_allclose(align(prediction, depth, mask), [1, 2, 3, 2.4], rtol=1e-6)


def test_alignment_of_a_constant_is_the_mean():
    ones = np.ones(4, np.float32)
    assert fit_least_squares(ones, np.float32([1, 2, 3, 6]), ones > 0) == (0.0, 3.0)
    with pytest.raises(ValueError, match="the mask is empty"):
        fit_least_squares(ones, ones, ones < 0)


def test_aligned_depth_is_positive():
    """What lies beyond the valid pixels may be aligned to anything."""
    prediction, depth = np.float32([0, 0.5, 1, -10]), np.float32([1, 2, 3, 1])
    assert align(prediction, depth, prediction >= 0)[-1] == 1e-6


def test_disparity_is_fitted_to_the_inverse_of_depth():
    random = np.random.default_rng(0)
    depth = random.uniform(1, 9, (5, 6))
    mask = random.random((5, 6)) < 0.8
    disparity = 3 / depth + 0.2  # known but for scale and shift
    np.testing.assert_allclose(align_disparity(disparity, depth, mask)[mask], depth[mask], rtol=1e-9)
    assert align_disparity(disparity - 100 * ~mask, depth, mask).max() == 1000  # at most a kilometre
    assert set(ALIGNMENTS) == {"least_square", "least_square_disparity", "ransac_log", "none"}
    np.testing.assert_array_equal(ALIGNMENTS["none"](np.float32([2, -1]), np.ones(2), np.ones(2, bool)), [2, 1e-6])


def test_the_robust_fit_is_that_of_all_pairs():
    """Of so few pixels every pair is drawn, and all of them judge: the best pair, then least squares on its inliers."""
    random = np.random.default_rng(3)
    prediction = random.uniform(0, 1, 14)
    logs = 1.5 * prediction + 0.3 + 0.02 * random.normal(size=14)
    logs[:4] = random.uniform(0.5, 4, 4)
    depth, mask = np.expm1(logs), np.ones(14, bool)
    threshold = np.median(np.abs(logs - np.median(logs)))
    inliers = {}  # by what a pair of pixels says
    for i, j in np.argwhere(~np.eye(14, dtype=bool)):
        slope = (logs[i] - logs[j]) / (prediction[i] - prediction[j])
        near = np.abs(logs[i] + slope * (prediction - prediction[i]) - logs) <= threshold + 1e-12
        inliers[tuple(near)] = near.sum()
    most = max(inliers.values())
    fits = []
    for near in (np.array(near) for near, votes in inliers.items() if votes == most):
        slope, shift = np.polyfit(prediction[near], logs[near], 1)
        fits.append(np.expm1(slope * prediction + shift))
    got = align_robust_log(prediction, depth, mask)
    assert min(np.abs(got - fit).max() for fit in fits) < 1e-9


def test_outliers_do_not_move_the_robust_fit():
    random = np.random.default_rng(0)
    prediction = random.uniform(0, 1, (60, 70, 1)).astype(np.float32)
    depth = np.expm1(2.0 * prediction.astype(np.float64) + 0.4)
    mask = random.random((60, 70, 1)) < 0.9
    wrong = random.random((60, 70, 1)) < 0.3
    seen = np.where(wrong, random.uniform(20, 80, depth.shape), depth)
    got = align_robust_log(prediction, np.where(mask, seen, np.nan), mask)
    scores = depth_scores(got, depth, mask & ~wrong)
    assert scores["abs_rel"] < 0.05 < depth_scores(align(prediction, seen, mask), depth, mask & ~wrong)["abs_rel"]
    np.testing.assert_array_equal(got, align_robust_log(prediction, np.where(mask, seen, np.nan), mask))
    every_other = (slice(None), slice(None, None, 2))
    thin = align_robust_log(prediction[every_other], seen[every_other], mask[every_other])
    np.testing.assert_array_equal(align_robust_log(prediction, seen, mask, every_other)[every_other], thin)


def test_a_robust_fit_without_a_choice():
    ones = np.ones(4, np.float32)
    exact = np.expm1(2 * np.linspace(0, 1, 9) + 1)
    np.testing.assert_allclose(align_robust_log(np.linspace(0, 1, 9), exact, exact > 0), exact, rtol=1e-9)
    flat = np.expm1(np.log1p(np.float64([1, 2, 3, 6])).mean())
    np.testing.assert_allclose(align_robust_log(ones, np.float32([1, 2, 3, 6]), ones > 0), flat, rtol=1e-6)
    assert align_robust_log(np.float64([0, 1, 9]), np.float64([1, 2, 3]), np.array([True, True, False]))[-1] <= 1000
    with pytest.raises(ValueError, match="the mask is empty"):
        align_robust_log(ones, ones, ones < 0)


def test_the_fit_on_eth3d_sees_every_so_manieth_column():
    import torch

    row = torch.arange(6048, dtype=torch.float32).expand(1, 2, 6048)
    wanted = torch.nn.functional.interpolate(row, scale_factor=1024 / 6048, mode="nearest")[0, 0].numpy()
    np.testing.assert_array_equal(fitted_columns(6048, 1024), wanted)
    assert fitted_columns(640, 1024) == fitted_columns(640, None) == slice(None)
