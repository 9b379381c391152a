"""The built-in scenes: a pure function of seed and index, geometrically exact, and fast enough to train from."""

import pickle

import numpy as np
import pytest

from marigold_jax.data.loader import DataSource, make_loader
from marigold_jax.data.primitives import WALLS, Camera, Primitives, Scene, draw_scene, render, trace
from marigold_jax.data.targets import NORMALS

SIZE = (48, 64)


def empty_room(**changes):
    """Walls at x = ±2, y = ±1 and z = -5, 1; painted plainly and without noise."""
    fields = {
        "corners": np.float32([[-2, -1, -5], [2, 1, 1]]),
        "boxes": np.zeros((0, 7), np.float32),
        "spheres": np.zeros((0, 4), np.float32),
        "window": np.zeros(4, np.float32),
        "light": np.float32([0, 0.5, 0]),
        "colors": np.full((WALLS + 1, 2, 3), 0.5, np.float32),
        "textures": np.zeros(WALLS + 1, np.int64),
        "waves": np.ones((WALLS + 1, 4, 3), np.float32),
        "sensor": (1.0, 0.0),
        "noise_seed": 0,
    }
    return Scene(**fields | changes)


AHEAD = Camera(yaw=0.0, pitch=0.0, tangent=0.5)


def test_examples_are_as_the_loader_wants_them():
    source = Primitives(3, SIZE)
    assert isinstance(source, DataSource) and len(source) == 3 and source.size == SIZE
    example = source[2]
    shapes = {key: (value.shape, value.dtype) for key, value in example.items()}
    assert shapes == {
        "rgb": ((48, 64, 3), np.uint8),
        "depth": ((48, 64, 1), np.float32),
        "mask": ((48, 64, 1), bool),
        "normals": ((48, 64, 3), np.float32),
    }
    with pytest.raises(IndexError):
        source[3]
    batch = next(make_loader([(source, 1.0)], batch_size=2, seed=0, target=NORMALS))
    assert batch["target"].min() == -1 and batch["target"].max() == 1


def test_a_scene_depends_on_seed_and_index_alone():
    source = Primitives(10, SIZE, seed=5)
    again = pickle.loads(pickle.dumps(source))
    for key, value in source[7].items():
        np.testing.assert_array_equal(value, again[7][key])
        assert not np.array_equal(value, source[6][key]) or key == "mask"
    assert not np.array_equal(source[7]["rgb"], Primitives(10, SIZE, seed=6)[7]["rgb"])


def test_many_scenes_are_sane():
    windows = 0
    for index in range(40):
        example = Primitives(40, SIZE)[index]
        depth, mask, normals = example["depth"], example["mask"], example["normals"]
        assert (depth[mask] > 0.2).all() and (depth[mask] < 12).all() and (depth[~mask] == 0).all()
        np.testing.assert_allclose(np.linalg.norm(normals, axis=-1, keepdims=True), mask, atol=1e-5)
        assert mask.mean() > 0.5 and 10 < example["rgb"].mean() < 245
        windows += not mask.all()
    assert 5 < windows < 30


def test_depth_of_the_back_wall_is_planar():
    """Along the optical axis, not along the ray: the wall is 5 m away in every pixel that sees it."""
    example = render(empty_room(), AHEAD, 48, 64)
    wall = example["normals"][..., 2] == 1
    assert wall[24, 32] and 0.1 < wall.mean() < 0.9
    np.testing.assert_allclose(example["depth"][wall], 5, rtol=1e-6)
    # On the floor, 1 m below the camera, depth is 1 / |y| of the ray.
    y = 0.5 * 48 / 64 * (1 - 2 * 47.5 / 48)
    np.testing.assert_allclose(example["depth"][47, 32, 0], 1 / -y, rtol=1e-5)
    np.testing.assert_allclose(example["normals"][47, 32], [0, 1, 0], atol=1e-6)


def test_a_sphere_and_a_box_are_where_they_should_be():
    sphere = empty_room(spheres=np.float32([[0, 0, -3, 0.5]]))
    example = render(sphere, AHEAD, 49, 65)
    np.testing.assert_allclose(example["depth"][24, 32, 0], 2.5, rtol=1e-6)
    np.testing.assert_allclose(example["normals"][24, 32], [0, 0, 1], atol=1e-6)
    # A cube turned by 45 degrees shows an edge, half a diagonal nearer than its centre.
    cube = empty_room(boxes=np.float32([[0, 0, -3, 0.5, 0.5, 0.5, np.pi / 4]]))
    rays = np.float32([[1e-6], [0], [-1]])
    depth, surface = trace(cube, np.zeros((3, 1), np.float32), rays)
    np.testing.assert_allclose(depth, 3 - 0.5 * 2**0.5, rtol=1e-4)
    assert surface == WALLS
    example = render(cube, AHEAD, 49, 65)
    sideways = example["normals"][24, [28, 36]]
    np.testing.assert_allclose(sideways, [[-(0.5**0.5), 0, 0.5**0.5], [0.5**0.5, 0, 0.5**0.5]], atol=1e-5)


def test_normals_are_those_of_the_surface_that_depth_describes():
    """On planes, the cross product of neighbouring points; also under a camera that is turned."""
    scene, camera = draw_scene(np.random.default_rng(3))
    height, width = 96, 128
    example = render(scene, camera, height, width)
    columns = camera.tangent * ((np.arange(width) + 0.5) / width * 2 - 1)
    rows = -camera.tangent * height / width * ((np.arange(height) + 0.5) / height * 2 - 1)
    rays = np.stack([*np.meshgrid(columns, rows), -np.ones((height, width))], axis=-1)
    points = rays * example["depth"]
    across, down = points[:-1, 1:] - points[:-1, :-1], points[1:, :-1] - points[:-1, :-1]
    numeric = np.cross(down, across)
    numeric /= np.linalg.norm(numeric, axis=-1, keepdims=True) + 1e-12
    agreement = np.einsum("hwc,hwc->hw", numeric, example["normals"][:-1, :-1])
    assert np.mean(agreement > 0.999) > 0.85  # all but edges and spheres
    # Normals face the camera.
    assert (np.einsum("hwc,hwc->hw", rays, example["normals"]) <= 1e-5).all()


def test_the_window_is_a_hole_in_the_back_wall():
    example = render(empty_room(window=np.float32([0.5, 0, 0.25, 0.25])), AHEAD, 96, 128)
    hole = ~example["mask"][..., 0]
    rows, columns = np.nonzero(hole)
    # At 5 m, the image is 5 m wide: 25.6 pixels to a metre.
    np.testing.assert_allclose([columns.min(), columns.max()], [64 + 6.4, 64 + 18.2], atol=0.6)
    np.testing.assert_allclose([rows.min(), rows.max()], [48 - 6.4, 48 + 5.4], atol=0.6)
