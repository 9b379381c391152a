"""Metrics against numbers worked out by hand, and against loops in plain Python."""

import math

import numpy as np
import pytest

from marigold_jax.evaluation.depth_metrics import METRICS, depth_scores


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
