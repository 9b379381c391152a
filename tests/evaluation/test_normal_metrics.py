"""Angles between normals against the arccosine in NumPy's float64, and pooled scores against one long array."""

import numpy as np
import pytest

from marigold_jax.data.contact_sheet import GAP
from marigold_jax.evaluation import figures
from marigold_jax.evaluation.normal_metrics import (
    ANGLE_METRICS,
    BINS,
    CONVENTIONS,
    angle_scores,
    angular_errors,
    pooled_angle_scores,
    within,
)

EVERYWHERE = np.ones((1, 1, 1), bool)


def by_arccosine(prediction, truth, mask):
    """Straight from the definition: normalise, multiply, add."""
    wanted = []
    for row, column in np.argwhere(mask[..., 0]):
        p, g = prediction[row, column].astype(np.float64), truth[row, column].astype(np.float64)
        wanted.append(np.degrees(np.arccos(np.clip(np.dot(p / np.linalg.norm(p), g / np.linalg.norm(g)), -1, 1))))
    return np.asarray(wanted)


def by_definition(angles):
    """NumPy on all angles at once."""
    limits = {"within_5": 5, "within_7.5": 7.5, "within_11.25": 11.25, "within_22.5": 22.5, "within_30": 30}
    shares = {name: np.sum(angles < limit) / len(angles) for name, limit in limits.items()}
    return {"mean": np.average(angles), "median": np.median(angles), "rmse": np.sqrt(np.average(angles**2))} | shares


def test_angles_and_scores_of_an_image():
    random = np.random.default_rng(0)
    truth = random.normal(size=(9, 11, 3)).astype(np.float32)
    prediction = (truth + random.normal(size=truth.shape) * random.uniform(0.05, 1)).astype(np.float32)
    mask = random.random((9, 11, 1)) < 0.7
    want = by_arccosine(prediction, truth, mask)
    got = angular_errors(prediction, truth, mask)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-9)
    scores, definition = angle_scores(got), by_definition(want)
    assert list(scores) == list(ANGLE_METRICS) == list(definition)
    for name, value in definition.items():
        assert scores[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize(
    ("prediction", "degrees"),
    [
        ((0, 0, 5), 0),
        ((0, 0, -2), 180),
        ((0, 0, 0), 90),  # no direction at all
        ((0, 1, 0), 90),
        ((1e-20, 0, 1e-20), 45),
        ((1e30, 0, 1e30), 45),
        ((np.sin(1e-9), 0, np.cos(1e-9)), np.degrees(1e-9)),  # the arccosine of the cosine would be zero
    ],
)
def test_known_angles(prediction, degrees):
    got = angular_errors(np.float64([[prediction]]), np.float64([[(0, 0, 1)]]), EVERYWHERE)
    np.testing.assert_allclose(got, [degrees], rtol=1e-9, atol=1e-15)


def test_limits_are_strict_and_no_pixel_is_an_error():
    assert angle_scores(np.float64([5, 4.999, 30, 180]))[within(5.0)] == 0.25
    assert angle_scores(np.float64([5, 4.999, 30, 180]))[within(30.0)] == 0.5
    with pytest.raises(ValueError, match="the mask is empty"):
        angle_scores(angular_errors(np.ones((2, 2, 3)), np.ones((2, 2, 3)), np.zeros((2, 2, 1), bool)))
    with pytest.raises(ValueError, match="every mask is empty"):
        pooled_angle_scores(lambda function: map(function, [np.zeros(0), np.zeros(0)]))


def test_the_other_convention_has_x_left():
    assert CONVENTIONS == {"x_right": (1, 1, 1), "x_left": (-1, 1, 1)}


@pytest.mark.parametrize(
    "images",
    [
        [np.float64([3.0])],
        [np.float64([0, 180])],  # the middle lies between two bins at the ends
        [np.float64([10.0, 10.0, 10.0, 50.0]), np.zeros(0), np.float64([10.0, 70.0])],
        [180 / BINS * np.float64([7, 7.25, 7.5, 7.75]), 180 / BINS * np.float64([7.1, 7.3, 7.9])],  # all in one bin
        [np.random.default_rng(k).uniform(0, 180 / (k + 1), 301 + 7 * k) for k in range(6)],
        [np.random.default_rng(k).integers(0, 40, 300 + k).astype(np.float64) for k in range(5)],  # with many ties
    ],
    ids=["one", "ends", "ties", "one bin", "many", "whole degrees"],
)
def test_pooled_scores_are_those_of_all_pixels_at_once(images):
    got, want = pooled_angle_scores(lambda function: map(function, images)), by_definition(np.concatenate(images))
    assert list(got) == list(want)
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=1e-12, abs=1e-12), name


def test_the_panel_shows_angles_where_they_are_known():
    truth = np.zeros((2, 3, 3), np.float32) + np.float32([0, 0, 1])
    prediction, mask = truth.copy(), np.ones((2, 3, 1), bool)
    prediction[0, 1], prediction[0, 2], mask[0, 2] = (0, 0, -1), np.nan, False
    image = np.full((2, 3, 3), 77, np.uint8)
    drawn = figures.normals_panel([image], [truth], [prediction], [mask])
    photograph, true, predicted, error = (drawn[:, start : start + 3] for start in range(0, 4 * (3 + GAP), 5))
    assert (photograph == 77).all() and (true[1] == (127, 127, 255)).all() and (true[0, 2] == 0).all()
    assert tuple(predicted[0, 1]) == (127, 127, 0) and (predicted[0, 2] == 0).all()
    assert error[0, 0].sum() < 10 and error[0, 1].sum() > 600 and (error[0, 2] == 0).all()
