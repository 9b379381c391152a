"""Normals from depth, on surfaces whose normals are known; and Hypersim's turned towards the camera."""

import numpy as np
import pytest

from marigold_jax.data.normals import normals_from_depth, rays, towards_camera

HEIGHT, WIDTH, FOCAL = 60, 90, 300.0


def plane(normal, distance, height=HEIGHT, width=WIDTH, focal=FOCAL):
    """Planar depth of the plane n · P = -distance, as metres, where it lies before the camera; and its unit normal."""
    normal = np.asarray(normal, float) / np.linalg.norm(normal)
    facing = -(rays(height, width, focal) @ normal)
    return np.where(facing > 1e-3, distance / np.maximum(facing, 1e-3), np.inf)[..., None], normal


def degrees(found, wanted):
    return np.degrees(np.arccos(np.clip(np.sum(found * wanted, axis=-1), -1, 1)))


@pytest.mark.parametrize(
    "normal",
    [(0, 0, 1), (0.8, 0, 0.6), (-0.8, 0, 0.6), (0, 1, 0.05), (0, -1, 0.2), (0.5, 0.6, 0.4)],
    ids=["facing", "left wall", "right wall", "floor", "ceiling", "slanted"],
)
def test_planes_are_exact(normal):
    depth, normal = plane(normal, 2.0)
    mask = np.isfinite(depth) & (depth < 200)
    assert mask.mean() > 0.4
    found = normals_from_depth(depth.astype(np.float32), mask, FOCAL)
    known = found.any(axis=-1)
    assert known[mask[..., 0]].mean() > 0.95 and not known[~mask[..., 0]].any()
    np.testing.assert_allclose(np.linalg.norm(found[known], axis=-1), 1, atol=1e-6)
    assert degrees(found[known], normal).max() < 0.1


def test_whole_centimetres_cost_less_than_a_degree():
    """As Virtual KITTI 2 stores its depth, with its focal length: a road, and a wall beside it, 5 to 60 m away."""
    for normal, distance in (((0, 1, 0), 1.5), ((1, 0, 0.2), 8.0)):
        depth, normal = plane(normal, distance, 200, 300, 725.0087)
        mask = (depth > 5) & (depth < 60)
        found = normals_from_depth(np.rint(100 * np.where(mask, depth, 1)) / 100, mask, 725.0087)
        errors = degrees(found[found.any(axis=-1)], normal)
        assert errors.mean() < 1, errors.mean()


def test_edges_stay_sharp():
    """A slanted box before a wall: pixels beside the edge belong to one of the two, and are not bent."""
    wall, wall_normal = plane((0, 0, 1), 6.0)
    box, box_normal = plane((0.6, 0.1, 0.8), 2.0)
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[15:45, 25:60] = True
    depth = np.where(inside[..., None], box, wall)
    found = normals_from_depth(depth, np.ones_like(depth, bool), FOCAL)
    wanted = np.where(inside[..., None], box_normal, wall_normal)
    errors = degrees(found, wanted)
    assert errors.mean() < 1 and np.mean(errors < 1) > 0.97
    assert np.mean(errors > 30) < 0.005  # two pixels in a corner may go astray


def test_a_sphere_is_followed():
    """Curved, so not exact: a ball of 1 m at 4 m, away from its rim."""
    directions = rays(HEIGHT, WIDTH, FOCAL)
    centre = np.array([0.1, -0.05, -4.0])
    a, b = np.sum(directions**2, -1), directions @ centre
    discriminant = b**2 - a * (centre @ centre - 0.35**2)
    hit = discriminant > 0
    depth = np.where(hit, (b - np.sqrt(np.maximum(discriminant, 0))) / a, 8.0)
    outward = depth[..., None] * directions - centre
    outward /= np.linalg.norm(outward, axis=-1, keepdims=True)
    middle = hit & (-np.sum(outward * directions, -1) / np.sqrt(a) > 0.6)
    found = normals_from_depth(depth[..., None], np.ones((HEIGHT, WIDTH, 1), bool), FOCAL)
    assert middle.sum() > 300 and degrees(found, outward)[middle].mean() < 4


def test_nothing_to_see_is_no_normal():
    depth = np.full((20, 20, 1), 3.0)
    mask = np.zeros((20, 20, 1), bool)
    assert not normals_from_depth(depth, mask, FOCAL).any()
    mask[5, 5] = True  # a single pixel has no plane
    assert not normals_from_depth(depth, mask, FOCAL).any()


def test_normals_are_turned_towards_the_camera():
    """A floor seen from above is turned up, at every pixel, though it points away from the optical axis."""
    up = np.broadcast_to([0.0, 1.0, 0.0], (HEIGHT, WIDTH, 3))
    below = rays(HEIGHT, WIDTH, FOCAL)[..., 1] < -1e-2
    for given in (up, -up):
        assert (towards_camera(given, FOCAL)[below] == [0, 1, 0]).all()
