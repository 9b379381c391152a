"""The renderer against a brute-force ray caster in float64, and against what a camera and light must do."""

import dataclasses

import numpy as np
import pytest

from marigold_jax.rooms import atlas, lighting, meshes
from marigold_jax.rooms.render import Renderer
from marigold_jax.rooms.scene import Camera, Instance, Lamp, Material, Scene, Sky
from marigold_jax.rooms.textures import FAMILIES

GREY, RED, BLUE = Material((0.5, 0.5, 0.5)), Material((0.8, 0.05, 0.05)), Material((0.05, 0.05, 0.8))
SIZE = (48, 64)
DARK = Sky((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
WHITE = Sky((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
DAY = Sky((0.3, 0.5, 0.9), (0.7, 0.8, 0.9))


def camera(position=(0.0, 1.0, 3.0), pitch=0.0, field_of_view=1.0):
    """Looks along -z, `pitch` radians upwards."""
    axes = meshes.rotation("x", pitch)[:3, :3]
    return Camera(position, axes, field_of_view)


def make_scene(*parts, lamps=(), sky=WHITE, ambient=(1.0, 1.0, 1.0), cameras=None):
    instances = tuple(Instance(mesh, meshes.translation(*place)) for mesh, place in parts)
    cameras = cameras or (camera(),)
    count = len(cameras)
    return Scene(instances, lamps, sky, ambient, cameras, (1.0,) * count, ((1.0, 1.0, 1.0),) * count)


def furnished():
    """A few hundred triangles: floor, wall, boxes, balls, a vase; lamp, sun and sky."""
    floor = meshes.transform(meshes.box((6, 0.1, 6), GREY), meshes.translation(0, -0.1, 0))
    return make_scene(
        (floor, (0, 0, 0)),
        (meshes.box((4, 2, 0.1), BLUE), (-1, 0, -2.0)),
        (meshes.transform(meshes.box((0.6, 0.5, 0.6), RED), meshes.rotation("y", 0.5)), (0.7, 0, 0)),
        (meshes.sphere(0.4, GREY, segments=12), (-0.8, 0, 0.3)),
        (meshes.lathe([(0, 0), (0.2, 0), (0.3, 0.5), (0.1, 0.9)], RED, segments=10), (0, 0, -0.8)),
        lamps=(Lamp((1.0, 2.5, 1.0), 0.1, (4.0, 4.0, 4.0)),),
        sky=dataclasses.replace(DAY, sun=(1.0, 1.0, 0.9), to_sun=(0.6, 0.8, 0.0)),
        cameras=(camera(pitch=-0.2), camera((1.0, 1.5, 2.5), -0.4, 1.3)),
    )


@pytest.fixture(scope="module")
def renderer():
    return Renderer(furnished())


def brute_force(scene, view, pixels, size):
    """Depth and normal at (row, column) by Möller and Trumbore's intersection with every triangle, in float64."""
    eye = scene.cameras[view]
    height, width = size
    tangent = np.tan(eye.field_of_view / 2)
    row, column = pixels.T
    x = (2 * (column + 0.5) / width - 1) * tangent
    y = (1 - 2 * (row + 0.5) / height) * tangent * height / width
    axes = eye.axes.astype(np.float64)
    rays = x[:, None] * axes[:, 0] + y[:, None] * axes[:, 1] - axes[:, 2]
    depth, normals = np.full(len(rays), np.inf), np.zeros((len(rays), 3))
    for instance in scene.instances:
        matrix = instance.transform.astype(np.float64)
        vertices = instance.mesh.vertices @ matrix[:3, :3].T + matrix[:3, 3]
        for a, b, c in vertices[instance.mesh.faces]:
            first, second = b - a, c - a
            across = np.cross(rays, second)
            determinant = across @ first
            with np.errstate(all="ignore"):
                offset = np.asarray(eye.position) - a
                u = across @ offset / determinant
                v = rays @ np.cross(offset, first) / determinant
                distance = np.cross(offset, first) @ second / determinant
            hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (distance > 0) & (distance < depth)
            depth[hit] = distance[hit]
            normals[hit] = np.cross(first, second) / np.linalg.norm(np.cross(first, second))
    normals = normals @ axes
    facing = np.einsum("nc,nc->n", normals, np.stack([x, y, -np.ones_like(x)], -1))
    return np.where(np.isinf(depth), 0, depth), normals * np.where(facing > 0, -1, 1)[:, None]


@pytest.mark.parametrize("view", [0, 1])
def test_depth_and_normals_are_those_of_a_brute_force_ray_cast(renderer, view):
    size = (96, 128)
    frame = renderer.frame(view, size, samples=1)
    pixels = np.random.default_rng(view).integers(0, size, (1000, 2))
    depth, normals = brute_force(renderer.scene, view, pixels, size)
    ours, theirs = frame.depth[tuple(pixels.T)], frame.normals[tuple(pixels.T)]
    # A ray along an edge may see either side of it, at single precision.
    agree = np.abs(ours - depth) < 1e-3
    assert agree.mean() > 0.998
    assert np.abs(ours - depth)[agree].max() < 1e-4
    same = np.einsum("nc,nc->n", theirs, normals) > np.cos(np.radians(0.1))
    assert (same | (depth == 0)).mean() > 0.995
    assert 0.2 < (depth > 0).mean() < 1


def test_normals_are_the_slope_of_depth(renderer):
    frame = renderer.frame(0, (96, 128), samples=1)
    focal, (height, width) = frame.intrinsics[0, 0], frame.depth.shape
    column, row = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    depth = frame.depth.astype(np.float64)
    points = np.stack(
        [(column - frame.intrinsics[0, 2]) / focal * depth, -(row - frame.intrinsics[1, 2]) / focal * depth, -depth], -1
    )
    right, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
    slope = meshes.unit(np.cross(-down, -right))
    normals = frame.normals.astype(np.float64)
    around = np.stack([np.roll(normals, shift, axis) for axis in (0, 1) for shift in (-1, 1)])
    flat = (np.einsum("khwc,hwc->khw", around, normals) > 0.99999).all(0)
    # Two parallel planes have one normal too: there, depth jumps.
    smooth = np.abs(right[..., 2]) + np.abs(down[..., 2]) < 0.3
    inside = (flat & frame.mask)[1:-1, 1:-1] & smooth
    angle = np.degrees(np.arccos(np.einsum("hwc,hwc->hw", slope, normals[1:-1, 1:-1]).clip(-1, 1)))[inside]
    assert inside.mean() > 0.4
    assert np.percentile(angle, 99) < 1
    np.testing.assert_allclose(np.linalg.norm(normals[frame.mask], axis=-1), 1, atol=1e-5)


def test_same_seed_same_bytes(renderer):
    first, again, other = (renderer.frame(0, SIZE, 2, seed) for seed in (3, 3, 4))
    assert first.rgb.tobytes() == again.rgb.tobytes()
    assert first.depth.tobytes() == again.depth.tobytes()
    assert (first.rgb != other.rgb).any()
    assert first.depth.tobytes() == other.depth.tobytes()
    assert Renderer(furnished()).frame(0, SIZE, 2, 3).rgb.tobytes() == first.rgb.tobytes()


def test_sky_is_masked():
    frame = Renderer(make_scene((meshes.box((1, 1, 1), GREY), (0, 0.5, 0)), sky=DAY)).frame(0, SIZE)
    assert not frame.mask[0, 0] and frame.mask[24, 32]
    assert (frame.depth[~frame.mask] == 0).all() and (frame.normals[~frame.mask] == 0).all()
    assert (frame.depth[frame.mask] > 2).all()
    assert frame.rgb[0, 0, 2] > 100


def test_right_is_right_and_up_is_up():
    scene = make_scene((meshes.sphere(0.3, RED), (0.8, 0.7, 0)), (meshes.sphere(0.3, BLUE), (0, 1.3, 0)))
    frame = Renderer(scene).frame(0, SIZE)
    red, blue = (frame.rgb[..., a] > frame.rgb[..., b].astype(int) + 60 for a, b in ((0, 2), (2, 0)))
    assert np.argwhere(red).mean(0) == pytest.approx([24, 32 + 64 / 2 / np.tan(0.5) * 0.8 / 3], abs=1)
    assert np.argwhere(blue)[:, 0].mean() < 20
    assert np.argwhere(blue)[:, 1].mean() == pytest.approx(31.5, abs=0.5)


@pytest.mark.parametrize("field_of_view", [0.6, 1.4])
def test_field_of_view(field_of_view):
    """A wall that is as wide as the view fills the picture; and the intrinsics say so."""
    width = 2 * 3 * np.tan(field_of_view / 2)
    wall = meshes.quad(np.array([[-0.5, -9, 0], [0.5, -9, 0], [0.5, 9, 0], [-0.5, 9, 0]]) * [width, 1, 1], GREY)
    frame = Renderer(make_scene((wall, (0, 0, 0)), cameras=(camera(field_of_view=field_of_view),))).frame(0, SIZE)
    assert frame.mask.all()
    np.testing.assert_allclose(frame.depth, 3, atol=1e-5)
    np.testing.assert_allclose(frame.normals, np.broadcast_to([0, 0, 1.0], (*SIZE, 3)), atol=1e-6)
    focal = 64 / width * 3
    np.testing.assert_allclose(frame.intrinsics, [[focal, 0, 32], [0, focal, 24], [0, 0, 1]], rtol=1e-5)
    narrower = meshes.transform(wall, meshes.scaling(0.9, 1, 1))
    frame = Renderer(make_scene((narrower, (0, 0, 0)), cameras=(camera(field_of_view=field_of_view),))).frame(0, SIZE)
    assert frame.mask[0].sum() == pytest.approx(0.9 * 64, abs=1)


def test_colour_is_antialiased_and_depth_is_not():
    leaning = meshes.transform(meshes.box((1, 1.3, 0.001), RED), meshes.rotation("z", 0.2))
    wall = meshes.quad(np.array([[-9, -9, 0], [9, -9, 0], [9, 9, 0], [-9, 9, 0]]), BLUE)
    frame = Renderer(make_scene((leaning, (0, 0.3, 0)), (wall, (0, 0, -3)))).frame(0, SIZE, samples=4)
    assert set(frame.depth.round(2).ravel().tolist()) == {3.0, 6.0}
    red = frame.rgb[..., 0].astype(int)
    assert 20 < ((red > red.min() + 30) & (red < red.max() - 30)).sum() < 200


def test_shadows_and_ambient_occlusion():
    """Light from the right: the floor to the left of a wall is dark; and so is a corner under a plain sky."""
    floor = meshes.quad(np.array([[-5, 0, 5], [5, 0, 5], [5, 0, -5], [-5, 0, -5]]), GREY)
    wall = meshes.box((0.05, 1, 4), GREY)
    above = (dataclasses.replace(camera(), position=(0.0, 5.0, 0.0), axes=meshes.rotation("x", -np.pi / 2)[:3, :3]),)
    for light in (
        {"sky": DARK, "lamps": (Lamp((2.0, 2.0, 0.0), 0.05, (3.0, 3.0, 3.0)),)},
        {"sky": dataclasses.replace(DARK, sun=(1.0, 1.0, 1.0), to_sun=(0.7071, 0.7071, 0.0))},
    ):
        scene = make_scene((floor, (0, 0, 0)), (wall, (0, 0, 0)), ambient=(0.05,) * 3, cameras=above, **light)
        rgb = Renderer(scene).frame(0, SIZE).rgb.astype(int)
        left, right = rgb[24, 32 - 5, 0], rgb[24, 32 + 5, 0]
        assert left < right / 2
        far = rgb[24, 3, 0]  # beyond the shadow
        assert far > 1.5 * left
    scene = make_scene((floor, (0, 0, 0)), (wall, (0, 0, 0)), sky=DAY, ambient=(0.1,) * 3, cameras=above)
    rgb = Renderer(scene).frame(0, SIZE).rgb.astype(int)
    assert rgb[24, 32 + 3, 0] < 0.9 * rgb[24, 60, 0]


def test_light_is_smooth():
    """No speckle: on a plain floor in a penumbra and in ambient light, neighbours differ little from their mean."""
    frame = Renderer(furnished()).frame(0, (96, 128), samples=1)
    floor = (frame.normals @ np.float32([0, np.cos(0.2), np.sin(0.2)])) > 0.999
    light = frame.rgb[..., 0].astype(float)
    curvature = np.abs(2 * light[:, 1:-1] - light[:, 2:] - light[:, :-2])
    inside = floor[:, 1:-1] & floor[:, 2:] & floor[:, :-2]
    assert inside.sum() > 1000
    assert np.median(curvature[inside]) <= 2
    assert np.percentile(curvature[inside], 90) < 12


def test_a_mirror_shows_what_is_before_it_and_glow_needs_no_light():
    mirror = meshes.quad(np.array([[-3, -3, 0], [3, -3, 0], [3, 3, 0], [-3, 3, 0]]), Material((0.7,) * 3, gloss=1.0))
    ball = meshes.sphere(0.5, Material((0.0,) * 3, glow=(2.0, 0.0, 0.0)))
    frame = Renderer(make_scene((mirror, (0, 0, 0)), (ball, (0, 0.5, 6)), sky=DARK, ambient=(0.0,) * 3)).frame(0, SIZE)
    assert frame.rgb[24, 32, 0] > 150 and frame.rgb[24, 32, 1] < 100
    assert frame.rgb[24, 2].max() < 30
    assert frame.depth[24, 32] == pytest.approx(3)


def test_textures_are_upright_and_fade_to_their_mean():
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:32, :, 0], picture[32:, :, 2] = 255, 255  # red above blue
    wall = meshes.quad(np.array([[-1, 0, 0], [1, 0, 0], [1, 2, 0], [-1, 2, 0]]), Material((1.0,) * 3, picture), tile=2)
    near = Renderer(make_scene((wall, (0, 0, 0)))).frame(0, SIZE).rgb.astype(int)
    assert near[18, 32, 0] > near[18, 32, 2] + 100 and near[30, 32, 2] > near[30, 32, 0] + 100
    book = atlas.build([picture])
    place = np.full((1, 2), 0.3, np.float32)
    zero = np.zeros(1, np.intp)
    np.testing.assert_allclose(book.look_up(zero, place, np.float32([20.0])), [[0.5, 0, 0.5]], atol=0.01)
    np.testing.assert_allclose(book.look_up(zero, place, np.float32([0.0])), [[0, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(book.mean, [[0.5, 0, 0.5]], atol=1e-6)


def test_smoothing_stays_on_its_surface():
    """Two planes with a step between them keep their means; each is constant, as the pattern repeats."""
    height, width = 24, 32
    column, row = np.meshgrid(np.arange(width), np.arange(height))
    step = np.where(column < 16, 0.0, 1.0)
    positions = np.stack([column * 0.1, row * 0.1, step], -1).astype(np.float32)
    normals = np.broadcast_to(np.float32([0, 0, 1]), positions.shape)
    pattern = (lighting.ranks((height, width)) / 15 + 10 * step)[..., None].astype(np.float32)
    result = lighting.smooth(pattern, positions, normals, np.full((height, width), 0.01, np.float32))
    np.testing.assert_allclose(result[4:-4, 4:12], 0.5, atol=1e-5)
    np.testing.assert_allclose(result[4:-4, 20:28], 10.5, atol=1e-5)
    assert np.abs(result - 0.5 - 10 * step[..., None]).max() < 0.5


def test_directions():
    random = np.random.default_rng(0)
    normals = meshes.unit(random.normal(size=(500, 3))).astype(np.float32)
    first, second = lighting.tangents(normals)
    np.testing.assert_allclose(np.cross(first, second), normals, atol=1e-5)
    around = lighting.hemisphere(normals, lighting.spread(500, random.random(2, np.float32)))
    cosine = np.einsum("nc,nc->n", around, normals)
    assert cosine.min() >= 0 and cosine.mean() == pytest.approx(2 / 3, abs=0.01)
    np.testing.assert_allclose(np.linalg.norm(around, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_textures_are_functions_of_the_seed_and_tile(family):
    paint = FAMILIES[family].paint
    picture, again, other = (paint(np.random.default_rng(seed), 64) for seed in (1, 1, 2))
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
    assert (picture == again).all() and (picture != other).any()
    if family not in ("abstract", "landscape", "oriental", "roof"):  # shown once, or lit from above
        jumps = np.abs(np.diff(np.concatenate([picture, picture[:1]]).astype(int), axis=0)).mean((1, 2))
        assert jumps[-1] <= max(2.5 * np.sort(jumps)[-4], 8)


def test_shapes():
    box, ball = meshes.box((1, 2, 3), GREY), meshes.sphere(0.5, RED)
    np.testing.assert_allclose(meshes.bounds(box), [[-0.5, 0, -1.5], [0.5, 2, 1.5]])
    np.testing.assert_allclose(meshes.bounds(ball), [[-0.5, 0, -0.5], [0.5, 1, 0.5]], atol=1e-2)
    both = meshes.merge([box, ball, box])
    assert both.materials == (GREY, RED) and len(both.faces) == 2 * 12 + len(ball.faces)
    for mesh in (box, ball, meshes.cylinder(0.3, 1, GREY), meshes.prism(np.array([[1, 1], [1, -1], [-1, 0]]), 1, RED)):
        corners = mesh.vertices[mesh.faces]
        across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        outward = corners.mean(1) - meshes.bounds(mesh).mean(0)
        assert (np.einsum("nc,nc->n", across, outward) > 0).all()
        assert (np.einsum("nc,nkc->nk", across, mesh.normals[mesh.faces]) > 0).all()
    fitted = meshes.fit(ball, (2, 1, 4))
    np.testing.assert_allclose(np.ptp(meshes.bounds(fitted), axis=0), [[2, 1, 4]][0], rtol=1e-5)
    with pytest.raises(ValueError, match="at least one mesh"):
        meshes.merge([])
