"""Metrics against numbers worked out by hand, and against NumPy's least squares."""

import numpy as np
import pytest

from marigold_jax.metrics import abs_rel, align, align_least_squares, delta, depth_scores


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
    assert abs_rel(prediction, depth, mask) == pytest.approx((0.5 + 0 + 0.25 + 0.25) / 4)
    # Ratios 1.5, 1, 1.333 and 1.25; the last is not less than the threshold.
    assert delta(prediction, depth, mask) == 0.25
    assert delta(prediction, depth, mask, 1.25**2) == 1.0
    assert delta(prediction, depth, mask, 1.4) == 0.75
    assert depth_scores(prediction, depth, mask & (depth < 4)) == {"abs_rel": 0.25, "delta1": 0.5}
