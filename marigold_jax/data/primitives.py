"""Built-in scenes: a room with boxes and spheres, textured, lit and ray-cast, with exact depth and normals.

They need no download, so training can be tried, tested and timed anywhere. Scene `index` depends only on the seed and
the index. As in real datasets, some pixels have no valid depth: those of a window to the sky.
"""

from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8

# World and camera frames: x right, y up, z towards the viewer, in metres. The camera is at the origin. Rays are scaled
# to advance one metre along the optical axis, so that the distance travelled along a ray *is* the depth.
Vectors = Float32[np.ndarray, "3 n"]

TEXTURES, TEXTURE_SHARES = ("plain", "checker", "stripes", "clouds"), (0.4, 0.2, 0.2, 0.2)
# The lamp is near the camera, so distant surfaces are dark. A model can learn this cue within minutes.
AMBIENT, LAMP, FALLOFF = 0.1, 1.4, 0.12
WALLS = 6  # surfaces 0 .. 5: -x, +x, floor, ceiling, back, front; then the boxes, then the spheres


@dataclass(frozen=True)
class Primitives:
    """`count` scenes of `size` = (height, width), as examples like those of `data.prepared.PreparedSplit`.

    An example holds `rgb` uint8 (h, w, 3), `depth` float32 (h, w, 1) in metres along the optical axis, 0 in the window;
    `mask` bool (h, w, 1); and `normals` float32 (h, w, 3), unit vectors in the camera's frame, 0 in the window.
    """

    count: int
    size: tuple[int, int]
    seed: int = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        scene, camera = draw_scene(np.random.default_rng((self.seed, int(index))))
        return render(scene, camera, *self.size)


@dataclass(frozen=True)
class Camera:
    """Radians to the left and upwards from -z, and the tangent of half the horizontal field of view."""

    yaw: float
    pitch: float
    tangent: float


@dataclass(frozen=True)
class Scene:
    """A room, the objects in it, and their materials; the material arrays have one row for each surface.

    Attributes:
        corners: (2, 3) lower and upper corner of the room, around the camera.
        boxes: (k, 7) centre, half sizes, and the angle that each is turned about the vertical.
        spheres: (k, 4) centre and radius.
        window: centre (x, y) and half sizes of the hole in the back wall; sizes of 0 for none.
        light: position of the lamp.
        colors: (s, 2, 3) the two linear colours of each surface.
        textures: (s,) indices into `TEXTURES`.
        waves: (s, 4, 3) wave vectors of the texture, in radians per metre.
        sensor: exposure, and the deviation of the noise in an image of range 1.
        noise_seed: of the sensor's noise.
    """

    corners: Float32[np.ndarray, "2 3"]
    boxes: Float32[np.ndarray, "k 7"]
    spheres: Float32[np.ndarray, "l 4"]
    window: Float32[np.ndarray, "4"]
    light: Float32[np.ndarray, "3"]
    colors: Float32[np.ndarray, "s 2 3"]
    textures: Int[np.ndarray, " s"]
    waves: Float32[np.ndarray, "s 4 3"]
    sensor: tuple[float, float]
    noise_seed: int


# -------------------------------------------------------------------------------------------------------------- drawing


def draw_scene(random: np.random.Generator) -> tuple[Scene, Camera]:
    """A room of 3 to 8 metres with two to five boxes and one to four spheres, seen by a camera at a person's height."""
    camera = Camera(random.uniform(-0.35, 0.35), random.uniform(-0.25, 0.08), np.tan(random.uniform(0.45, 0.65)))
    left, right, back = random.uniform(1.5, 4.0), random.uniform(1.5, 4.0), random.uniform(3.5, 8.0)
    floor, ceiling = -random.uniform(0.9, 1.7), random.uniform(0.9, 1.8)
    corners = np.array([[-left, floor, -back], [right, ceiling, 1.5]])

    def place(distance: float) -> tuple[float, float]:
        """A point on the floor, roughly within the field of view."""
        angle = camera.yaw + random.uniform(-0.6, 0.6)
        return -distance * np.sin(angle), -distance * np.cos(angle)

    boxes, spheres = [], []
    for _ in range(random.integers(2, 6)):
        x, z = place(random.uniform(1.6, back))
        half = random.uniform(0.15, [0.55, 0.9, 0.55])
        boxes.append([x, floor + half[1], z, *half, random.uniform(0, np.pi / 2)])
    for _ in range(random.integers(1, 5)):
        x, z = place(random.uniform(1.6, back))
        radius = random.uniform(0.15, 0.5)
        y = floor + radius if random.random() < 0.6 else random.uniform(floor + radius, ceiling - radius)
        spheres.append([x, y, z, radius])
    surfaces = WALLS + len(boxes) + len(spheres)
    window = [random.uniform(-left, right) / 2, (floor + ceiling) / 2 + 0.2, random.uniform(0.3, 0.9), 0.5]
    wavelengths = random.uniform(0.15, 1.2, (surfaces, 4, 1))
    scene = Scene(
        corners=corners.astype(np.float32),
        boxes=np.asarray(boxes, np.float32),
        spheres=np.asarray(spheres, np.float32),
        window=np.asarray(window if random.random() < 0.4 else [0, 0, 0, 0], np.float32),
        light=random.uniform([-1, 0.2, -0.5], [1, ceiling, 0.5]).astype(np.float32),
        colors=random.uniform(0.3, 0.95, (surfaces, 2, 3)).astype(np.float32),
        textures=random.choice(len(TEXTURES), surfaces, p=TEXTURE_SHARES),
        waves=(random.normal(size=(surfaces, 4, 3)) * 2 * np.pi / (wavelengths * 3**0.5)).astype(np.float32),
        sensor=(random.uniform(0.8, 1.3), random.uniform(0.0, 0.02)),
        noise_seed=int(random.integers(2**32)),
    )
    return scene, camera


# ------------------------------------------------------------------------------------------------------------ rendering


def render(scene: Scene, camera: Camera, height: int, width: int) -> dict[str, np.ndarray]:
    """The scene as an example: see `Primitives`."""
    rays, axes = _rays(camera, height, width)
    depth, surface = trace(scene, np.zeros((3, 1), np.float32), rays)
    points = depth * rays
    normals = _normals(scene, points, rays, surface)
    outside = _in_window(scene, points, surface)

    towards_light = scene.light[:, None] - points
    distance = np.sqrt(_dot(towards_light, towards_light))
    # Shadow rays start a millimetre in front of the surface, or it would shade itself; 1 is the lamp.
    blocked = trace(scene, points + 1e-3 * normals, towards_light, room=False)[0] < 1
    direct = np.maximum(_dot(normals, towards_light) / distance, 0) * ~blocked / (1 + FALLOFF * distance**2)
    color = _paint(scene, points, surface) * (AMBIENT + LAMP * direct)
    color = np.where(outside, np.float32([[0.7], [0.85], [1.0]]), color)
    gain, noise = scene.sensor
    random = np.random.default_rng(scene.noise_seed)
    pixels = np.clip(gain * color, 0, 1) ** np.float32(1 / 2.2)
    pixels += np.float32(noise) * random.standard_normal(pixels.shape, np.float32)

    seen = ~outside
    in_camera = np.stack([_dot(axis[:, None], normals) for axis in axes])

    def image(values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(values.T).reshape(height, width, -1)

    rgb: UInt8[np.ndarray, "h w 3"] = image((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8))
    return {"rgb": rgb, "depth": image(depth * seen), "mask": image(seen), "normals": image(in_camera * seen)}


def trace(
    scene: Scene, origins: Float32[np.ndarray, "3 m"], rays: Vectors, room: bool = True
) -> tuple[Float32[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Finds the nearest surface on each ray.

    Args:
        scene: the room and its objects.
        origins: one for all rays, or one for each.
        rays: directions.
        room: whether the walls count.

    Returns:
        The distance in lengths of each ray, infinity for no surface; and the number of the surface.
    """
    nearest = np.full(rays.shape[1], np.inf, np.float32)
    surface = np.zeros(rays.shape[1], np.int64)
    if room:
        nearest, surface = _hit_room(scene.corners, origins, rays)
    objects = [(_hit_box, box) for box in scene.boxes] + [(_hit_sphere, sphere) for sphere in scene.spheres]
    for number, (hit, shape) in enumerate(objects, start=WALLS):
        travelled = hit(shape, origins, rays)
        closer = travelled < nearest
        nearest = np.where(closer, travelled, nearest)
        surface = np.where(closer, number, surface)
    return nearest, surface


def _rays(camera: Camera, height: int, width: int) -> tuple[Vectors, Float32[np.ndarray, "3 3"]]:
    """A ray through the centre of each pixel, and the camera's axes (rows), both in world coordinates."""
    columns = (np.arange(width) + 0.5) / width * 2 - 1
    rows = (np.arange(height) + 0.5) / height * 2 - 1
    x, y = np.meshgrid(camera.tangent * columns, -camera.tangent * height / width * rows)
    across = np.array([np.cos(camera.yaw), 0, -np.sin(camera.yaw)])
    backward = np.array([np.sin(camera.yaw), 0, np.cos(camera.yaw)])
    upward = np.array([0.0, 1.0, 0.0])
    # Looking up tilts the vertical towards the viewer.
    up = np.cos(camera.pitch) * upward + np.sin(camera.pitch) * backward
    back = np.cos(camera.pitch) * backward - np.sin(camera.pitch) * upward
    rays = across[:, None] * x.ravel() + up[:, None] * y.ravel() - back[:, None]
    return rays.astype(np.float32), np.stack([across, up, back]).astype(np.float32)


# --------------------------------------------------------------------------------------------------------------- shapes


def _hit_room(corners: np.ndarray, origins: np.ndarray, rays: Vectors) -> tuple[np.ndarray, np.ndarray]:
    """From inside, a ray hits the first of the three walls that it approaches."""
    rays = _nonzero(rays)
    wall = np.where(rays > 0, corners[1][:, None], corners[0][:, None])
    travelled = (wall - origins) / rays
    axis = travelled.argmin(axis=0)
    towards_positive = np.take_along_axis(rays, axis[None], axis=0)[0] > 0
    return travelled.min(axis=0), 2 * axis + towards_positive


def _hit_box(box: np.ndarray, origins: np.ndarray, rays: Vectors) -> np.ndarray:
    """The slab method: a ray is inside the box while it is between all three pairs of faces."""
    centre, half, angle = box[:3, None], box[3:6, None], box[6]
    start, direction = _turn(origins - centre, angle), _nonzero(_turn(rays, angle))
    middle, reach = -start / direction, np.abs(half / direction)
    enter, leave = (middle - reach).max(axis=0), (middle + reach).min(axis=0)
    return np.where((enter < leave) & (enter > 0), enter, np.float32(np.inf))


def _hit_sphere(sphere: np.ndarray, origins: np.ndarray, rays: Vectors) -> np.ndarray:
    """The smaller root of |origin + t ray - centre|² = radius²."""
    start = origins - sphere[:3, None]
    a, b = _dot(rays, rays), _dot(start, rays)
    discriminant = b * b - a * (_dot(start, start) - sphere[3] ** 2)
    travelled = (-b - np.sqrt(np.maximum(discriminant, 0))) / a
    return np.where((discriminant > 0) & (travelled > 0), travelled, np.float32(np.inf))


def _normals(scene: Scene, points: Vectors, rays: Vectors, surface: Int[np.ndarray, " n"]) -> Vectors:
    """Unit normals of the surfaces at the points, towards the camera."""
    facing = np.zeros((WALLS, 3), np.float32)
    facing[range(WALLS), np.arange(WALLS) // 2] = [1, -1] * 3
    normals = facing[np.minimum(surface, WALLS - 1)].T.copy()
    for number, box in enumerate(scene.boxes, start=WALLS):
        here = np.flatnonzero(surface == number)
        inside = _turn(points[:, here] - box[:3, None], box[6]) / box[3:6, None]
        axis = np.abs(inside).argmax(axis=0)
        local = np.zeros_like(inside)
        local[axis, range(len(here))] = np.sign(inside[axis, range(len(here))])
        normals[:, here] = _turn(local, -box[6])
    for number, sphere in enumerate(scene.spheres, start=WALLS + len(scene.boxes)):
        here = np.flatnonzero(surface == number)
        outward = points[:, here] - sphere[:3, None]
        normals[:, here] = outward / np.sqrt(_dot(outward, outward))
    return normals


def _in_window(scene: Scene, points: Vectors, surface: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    x, y, half_width, half_height = scene.window
    return (surface == 4) & (np.abs(points[0] - x) < half_width) & (np.abs(points[1] - y) < half_height)


def _paint(scene: Scene, points: Vectors, surface: Int[np.ndarray, " n"]) -> Float32[np.ndarray, "3 n"]:
    """Solid textures: functions of the point in space, so that nothing needs unwrapping."""
    mix = np.empty(points.shape[1], np.float32)
    for number in np.unique(surface):
        here = np.flatnonzero(surface == number)
        # The offset keeps the checker's faces off the coordinate planes, where rounding would speckle it.
        waves = np.sin(sum(scene.waves[number, :, axis, None] * (points[axis, here] + 0.137) for axis in range(3)))
        mix[here] = {
            "plain": lambda waves: np.zeros_like(waves[0]),
            "checker": lambda waves: np.float32(waves[0] * waves[1] > 0),
            "stripes": lambda waves: 0.5 + 0.5 * waves[0],
            "clouds": lambda waves: 0.5 + 0.125 * waves.sum(axis=0),
        }[TEXTURES[scene.textures[number]]](waves)
    first, second = scene.colors[surface].transpose(1, 2, 0)
    return first + (second - first) * mix


# ----------------------------------------------------------------------------------------------------------- arithmetic


def _dot(a: Float32[np.ndarray, "3 m"], b: Float32[np.ndarray, "3 n"]) -> np.ndarray:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _turn(vectors: Float32[np.ndarray, "3 m"], angle: np.ndarray | np.float32) -> Float32[np.ndarray, "3 m"]:
    """Transforms vectors to a frame that is rotated by `angle` about the vertical."""
    cos, sin = np.cos(angle), np.sin(angle)
    x, y, z = vectors
    return np.stack([cos * x - sin * z, y, sin * x + cos * z])


def _nonzero(x: np.ndarray) -> np.ndarray:
    """Avoids division by zero for directions parallel to a face: the distance becomes very large instead."""
    return np.where(np.abs(x) < 1e-9, np.float32(1e-9), x)
