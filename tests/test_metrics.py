"""Metrics against numbers worked out by hand, and against NumPy's least squares."""

import math

import numpy as np
import pytest

from marigold_jax.metrics import (
    ALIGNMENTS,
    METRICS,
    align,
    align_disparity,
    align_least_squares,
    depth_scores,
    normals_scores,
)


def test_alignment_is_numpys_least_squares():
    random = np.random.default_rng(0)
    prediction = random.uniform(0, 1, (7, 9, 1)).astype(np.float32)
    depth = (3 * prediction + 1 + 0.1 * random.standard_normal((7, 9, 1))).astype(np.float32)
    mask = random.random((7, 9, 1)) < 0.7
    columns = np.stack([prediction[mask], np.ones(mask.sum())], axis=1).astype(np.float64)
    wanted = np.linalg.lstsq(columns, depth[mask].astype(np.float64))[0]
    np.testing.assert_allclose(align_least_squares(prediction, depth, mask), wanted, rtol=1e-10)


def test_alignment_ignores_what_is_masked():
    prediction, depth = np.float32([0.0, 0.5, 1.0, 0.7]), np.float32([1.0, 2.0, 3.0, np.nan])
    mask = np.array([True, True, True, False])
    np.testing.assert_allclose(align_least_squares(prediction, depth, mask), (2, 1), rtol=1e-12)
    np.testing.assert_allclose(align(prediction, depth, mask), [1, 2, 3, 2.4], rtol=1e-6)


def test_alignment_of_a_constant_is_the_mean():
    ones = np.ones(4, np.float32)
    assert align_least_squares(ones, np.float32([1, 2, 3, 6]), ones > 0) == (0.0, 3.0)
    with pytest.raises(ValueError, match="the mask is empty"):
        align_least_squares(ones, ones, ones < 0)


def test_aligned_depth_is_positive():
    """What lies beyond the valid pixels may be aligned to anything."""
    prediction, depth = np.float32([0, 0.5, 1, -10]), np.float32([1, 2, 3, 1])
    assert align(prediction, depth, prediction >= 0)[-1] == 1e-6


def test_scores_by_hand():
    depth, prediction = np.float32([1, 2, 4, 8]), np.float32([1.5, 2, 3, 10])
    mask = np.array([True, True, True, True])
    scores = depth_scores(prediction, depth, mask, list(METRICS))
    assert scores["abs_rel"] == pytest.approx((0.5 + 0 + 0.25 + 0.25) / 4)
    # Ratios 1.5, 1, 1.333 and 1.25; the last is not less than the threshold.
    assert (scores["delta1"], scores["delta2"], scores["delta3"]) == (0.25, 1.0, 1.0)
    assert scores["sq_rel"] == pytest.approx((0.25 + 0 + 0.25 + 0.5) / 4)
    assert scores["rmse_linear"] == pytest.approx(np.sqrt((0.25 + 0 + 1 + 4) / 4))
    assert depth_scores(prediction, depth, mask & (depth < 4)) == {"abs_rel": 0.25, "delta1": 0.5}
    with pytest.raises(ValueError, match="the mask is empty"):
        depth_scores(prediction, depth, ~mask)


def test_scores_equal_loops_over_pixels():
    """Written out in plain Python, from the definitions (arXiv 1406.2283, and KITTI's development kit)."""
    random = np.random.default_rng(0)
    depth, prediction = random.uniform(0.5, 20, (2, 6, 7, 1))
    mask = random.random((6, 7, 1)) < 0.8
    pairs = [(float(p), float(g)) for p, g in zip(prediction[mask], depth[mask], strict=True)]
    logs = [math.log(p) - math.log(g) for p, g in pairs]
    ratios = [max(p / g, g / p) for p, g in pairs]
    n = len(pairs)
    want = {
        "abs_rel": sum(abs(p - g) / g for p, g in pairs) / n,
        "sq_rel": sum((p - g) ** 2 / g for p, g in pairs) / n,
        "rmse_linear": math.sqrt(sum((p - g) ** 2 for p, g in pairs) / n),
        "rmse_log": math.sqrt(sum(d * d for d in logs) / n),
        "log10": sum(abs(math.log10(p) - math.log10(g)) for p, g in pairs) / n,
        **{f"delta{k}": sum(ratio < 1.25**k for ratio in ratios) / n for k in (1, 2, 3)},
        "i_rmse": math.sqrt(sum((1 / p - 1 / g) ** 2 for p, g in pairs) / n),
        "silog": 100 * math.sqrt(sum(d * d for d in logs) / n - (sum(logs) / n) ** 2),
    }
    got = depth_scores(prediction, depth, mask, list(METRICS))
    assert got.keys() == want.keys() == METRICS.keys()
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=1e-9), name


def test_disparity_is_fitted_to_the_inverse_of_depth():
    random = np.random.default_rng(0)
    depth = random.uniform(1, 9, (5, 6))
    mask = random.random((5, 6)) < 0.8
    disparity = 3 / depth + 0.2  # known but for scale and shift
    np.testing.assert_allclose(align_disparity(disparity, depth, mask)[mask], depth[mask], rtol=1e-9)
    assert align_disparity(disparity - 100 * ~mask, depth, mask).max() == 1000  # at most a kilometre
    assert set(ALIGNMENTS) == {"least_square", "least_square_disparity", "none"}
    np.testing.assert_array_equal(ALIGNMENTS["none"](np.float32([2, -1]), np.ones(2), np.ones(2, bool)), [2, 1e-6])


def test_normals_scores_know_their_angles():
    angles = np.radians([0, 1e-4, 5, 11.2, 11.3, 90, 180, 30])
    truth = np.zeros((2, 4, 3))
    truth[..., 2] = 1
    prediction = np.stack([np.sin(angles), 0 * angles, np.cos(angles)], -1).reshape(2, 4, 3) * 3  # of any length
    mask = np.ones((2, 4, 1), bool)
    mask[1, 3] = False
    scores = normals_scores(prediction, truth, mask)
    assert scores == pytest.approx({"mean_angle": np.degrees(angles[:7].mean()), "within_11_25": 4 / 7}, rel=1e-12)
    with pytest.raises(ValueError, match="the mask is empty"):
        normals_scores(prediction, truth, mask & False)
