"""The rendered world, with the built-in furniture: scenes are reproducible, and things in them stand as things do."""

from functools import cache

import numpy as np
import pytest

from marigold_jax.rooms import purposes, world
from marigold_jax.rooms.catalogue import open_catalogue
from marigold_jax.rooms.placement import Box, overlap
from marigold_jax.rooms.rays import build_rays, cast
from marigold_jax.rooms.render import Renderer

HUNG = {"wall_unit", "picture", "mirror", "curtain", "ceiling_lamp"}
SIZE = (24, 32)


@cache
def catalogue(split="train"):
    return open_catalogue(None, split)


@cache
def scene(kind, seed=0, split="train", views=2):
    return world.build(kind, split, seed, views, catalogue(split))


@cache
def home(seed):
    return purposes.furnish(np.random.default_rng([1, seed]), catalogue())


def frame(kind, view=0):
    return Renderer(scene(kind)).frame(view, SIZE, samples=1, seed=0)


def extent(placed):
    """The world-to-object matrix of what is placed, and its bounds there, from its triangles alone."""
    instance = placed.instance()
    return instance.transform.astype(np.float64), np.stack(
        [instance.mesh.vertices.min(0), instance.mesh.vertices.max(0)]
    )


def share_space(first, second, slack=0.004):
    """Whether a grid of points in the first thing's bounds meets the second's."""
    (matrix, bounds), (other_matrix, other_bounds) = first, second
    steps = np.linspace(0, 1, 17)
    points = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    scale = np.linalg.norm(matrix[:3, :3], axis=0)
    margin = slack / scale
    inside = bounds[0] + margin + points * np.maximum(bounds[1] - bounds[0] - 2 * margin, 0)
    there = (np.c_[inside, np.ones(len(inside))] @ matrix.T) @ np.linalg.inv(other_matrix).T
    return bool(((there[:, :3] > other_bounds[0]) & (there[:, :3] < other_bounds[1])).all(axis=1).any())


def test_kinds_are_a_mixture():
    assert sum(world.KINDS.values()) == pytest.approx(1)
    with pytest.raises(ValueError, match="interior, still_life, street; got 'cellar'"):
        world.build("cellar", "train", 0, 1, catalogue())


@pytest.mark.slow
@pytest.mark.parametrize("kind", world.KINDS)
def test_same_arguments_same_bytes(kind):
    again = world.build(kind, "train", 0, 2, catalogue())
    for view in range(2):
        first, second = frame(kind, view), Renderer(again).frame(view, SIZE, samples=1, seed=0)
        for name in ("rgb", "depth", "normals", "mask"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.slow
@pytest.mark.parametrize("kind", world.KINDS)
def test_other_seeds_and_splits_are_other_scenes(kind):
    positions = {scene(kind, seed, split).cameras[0].position for seed in (0, 1) for split in ("train", "test")}
    assert len(positions) == 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", world.KINDS)
def test_views_have_depth_and_light(kind):
    built = scene(kind)
    assert len(built.cameras) == len(built.exposure) == len(built.white_balance) == 2
    for view, camera in enumerate(built.cameras):
        np.testing.assert_allclose(camera.axes.T @ camera.axes, np.eye(3), atol=1e-5)
        assert np.linalg.det(camera.axes) > 0 and np.radians(35) <= camera.field_of_view <= np.radians(90)
        seen = frame(kind, view)
        depth = seen.depth[seen.mask]
        assert (
            seen.mask.mean() > 0.35
            and (depth > 0.05).all()
            and np.percentile(depth, 98) > 1.2 * np.percentile(depth, 2)
        )
        assert 25 < seen.rgb.mean() < 225


def test_splits_share_no_model():
    names = {split: {n for kind in world.KINDS for n in scene(kind, 0, split).names} for split in ("train", "test")}
    assert names["train"] and names["test"] and not names["train"] & names["test"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_furniture_keeps_out_of_each_others_way(seed):
    things = [(placed.model, extent(placed)) for placed in home(seed).room.plan.placed]
    for index, (model, first) in enumerate(things):
        for other, second in things[:index]:
            clash = share_space(first, second) or share_space(second, first)
            assert not clash, f"{model.name} stands in {other.name}"


@pytest.mark.parametrize("seed", range(20))
def test_nothing_floats_and_nothing_sinks(seed):
    room = home(seed).room
    placed = room.plan.placed
    supports = [each.instance() for each in placed if each.model.top is not None]
    tops = build_rays(supports) if supports else None
    for each in placed:
        instance = each.instance()
        world_vertices = instance.mesh.vertices @ instance.transform[:3, :3].T + instance.transform[:3, 3]
        lowest = world_vertices[world_vertices[:, 1].argmin()]
        if each.model.kind == "ceiling_lamp":
            assert world_vertices[:, 1].max() == pytest.approx(room.height, abs=2e-3)
        elif each.model.kind in HUNG:
            assert lowest[1] > -2e-3 and world_vertices[:, 1].max() < room.height + 2e-3
        elif abs(lowest[1]) > 2e-3:
            start = lowest[None] + np.float32([[0, 0.02, 0]])
            others = build_rays([s for s in supports if not np.array_equal(s.transform, instance.transform)])
            travelled = cast(others if each.model.top is not None else tops, start, np.float32([[0, -1, 0]]))[0]
            assert travelled[0] == pytest.approx(0.02, abs=2e-3), f"{each.model.name} floats or sinks"


@pytest.mark.parametrize("seed", range(3))
def test_cameras_stand_inside_the_room(seed):
    built = scene("interior", seed)
    rays = build_rays(list(built.instances))
    up_and_down = np.float32([[0, 1, 0], [0, -1, 0]])
    for camera in built.cameras:
        distance, _ = cast(rays, np.tile(np.float32(camera.position), (2, 1)), up_and_down)
        assert (distance > 0.05).all() and distance.sum() < 3.6, "there is a ceiling above and a floor below"


def test_overlap_agrees_with_points():
    random = np.random.default_rng(0)
    answers = []
    for _ in range(200):
        a, b = (
            Box(*random.uniform(-1, 1, 2), *random.uniform(0.1, 0.8, 2), random.uniform(-3, 3), 0.0, 1.0) for _ in "ab"
        )
        right, forward = (np.linspace(-1, 1, 60)[:, None] * (half - 1e-9) for half in (a.half_width, a.half_depth))
        c, s = np.cos(a.angle), np.sin(a.angle)
        x, z = a.x + right * c + forward.T * s, a.z - right * s + forward.T * c
        c, s = np.cos(b.angle), np.sin(b.angle)
        dx, dz = x - b.x, z - b.z
        met = (np.abs(dx * c - dz * s) < b.half_width) & (np.abs(dx * s + dz * c) < b.half_depth)
        answers.append((overlap(a, b), bool(met.any())))
    # Points miss a corner that is barely inside, and never claim too much.
    assert all(exact for exact, sampled in answers if sampled)
    assert sum(exact != sampled for exact, sampled in answers) <= 6
    assert 40 < sum(exact for exact, _ in answers) < 180


def test_what_is_above_does_not_overlap():
    cupboard, counter = (Box(0.0, 0.0, 1.0, 1.0, 0.0, low, low + 0.8) for low in (1.4, 0.0))
    assert not overlap(cupboard, counter) and overlap(counter, counter)
