"""Where things may stand: upright boxes that keep out of each other's way, along walls, in corners, around tables.

Seen from above, +x is to the right and +z towards the viewer. An angle turns about the vertical: the front of a thing
at angle 0 looks to +z, at 90 degrees to +x. Every search tries a few places at random and gives up with None.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import atan2, cos, hypot, inf, pi, sin

import numpy as np
from embreex import rtcore_scene
from embreex.mesh_construction import TriangleMesh
from jaxtyping import Float32

from marigold_jax.rooms.catalogue import Model
from marigold_jax.rooms.scene import Instance, Material

TRIES = 24
TOP_CELLS = 24  # the surface of a table is known on a grid of so many cells each way
FLAT = 0.002  # metres: what a surface may vary by under a thing that stands on it
EDGE = 0.015  # metres: how far from the edge of a table things stay


@dataclass(frozen=True)
class Box:
    """An upright box: centre and half sizes seen from above, its angle, and from `low` to `high` above the floor."""

    x: float
    z: float
    half_width: float
    half_depth: float
    angle: float
    low: float = -inf
    high: float = inf

    def point(self, right: float, forward: float) -> tuple[float, float]:
        """The world's (x, z) of a point in the box's own frame."""
        c, s = cos(self.angle), sin(self.angle)
        return self.x + right * c + forward * s, self.z - right * s + forward * c

    def corners(self) -> list[tuple[float, float]]:
        w, d = self.half_width, self.half_depth
        return [self.point(-w, -d), self.point(w, -d), self.point(w, d), self.point(-w, d)]

    def grown(self, sides: float, front: float = 0.0) -> "Box":
        """A larger box: by `sides` all around, and by `front` more in front."""
        x, z = self.point(0.0, front / 2)
        return replace(
            self, x=x, z=z, half_width=self.half_width + sides, half_depth=self.half_depth + sides + front / 2
        )


@dataclass(frozen=True)
class Wall:
    """A straight wall, which begins at (x, z) and runs `length` metres to the right of who looks at it from inside."""

    x: float
    z: float
    direction: tuple[float, float]
    length: float

    @property
    def angle(self) -> float:
        """Of what stands with its back to the wall."""
        return atan2(-self.direction[1], self.direction[0])

    def point(self, along: float, inward: float) -> tuple[float, float]:
        dx, dz = self.direction
        return self.x + along * dx - inward * dz, self.z + along * dz + inward * dx

    def box(self, along: float, width: float, depth: float, gap: float = 0.0, low: float = -inf, high: float = inf):
        """A box whose back is `gap` from the wall, centred at `along`."""
        x, z = self.point(along, gap + depth / 2)
        return Box(x, z, width / 2, depth / 2, self.angle, low, high)


@dataclass(frozen=True, eq=False)
class Placed:
    """A model that has its place. `scale` is along its own three axes; `paint` changes its materials, if anything."""

    model: Model
    box: Box
    scale: tuple[float, float, float]
    paint: Callable[[Material], Material] | None

    def instance(self) -> Instance:
        """As the scene wants it. Only here is the model loaded."""
        mesh = self.model.load()
        if self.paint is not None:
            mesh = replace(mesh, materials=tuple(map(self.paint, mesh.materials)))
        return Instance(mesh, transform(self.box.x, self.box.low, self.box.z, self.box.angle, self.scale))


@dataclass
class Plan:
    """A floor: a rectangle (x from, z from, x to, z to), its walls, what is taken, and what has been placed so far."""

    bounds: tuple[float, float, float, float]
    walls: tuple[Wall, ...] = ()
    taken: list[Box] = field(default_factory=list)
    placed: list[Placed] = field(default_factory=list)

    def free(self, box: Box, gap: float = 0.02, front: float = 0.0) -> bool:
        """Whether the box lies within the bounds and stays `gap` away from what is taken (and `front` in front)."""
        x0, z0, x1, z1 = self.bounds
        if not all(x0 <= x <= x1 and z0 <= z <= z1 for x, z in box.corners()):
            return False
        larger = box.grown(gap, front)
        return not any(overlap(larger, other) for other in self.taken)

    def put(self, placed: Placed, solid: bool = True) -> Placed:
        """Places it; what is `solid` takes its space from now on, a rug does not."""
        self.placed.append(placed)
        if solid:
            self.taken.append(placed.box)
        return placed


def overlap(a: Box, b: Box) -> bool:
    """Whether two boxes share space: no axis of either separates them."""
    if a.low >= b.high or b.low >= a.high:
        return False
    dx, dz = b.x - a.x, b.z - a.z
    if hypot(dx, dz) >= hypot(a.half_width, a.half_depth) + hypot(b.half_width, b.half_depth):
        return False
    c, s = abs(cos(a.angle - b.angle)), abs(sin(a.angle - b.angle))
    for one, other in ((a, b), (b, a)):
        ca, sa = cos(one.angle), sin(one.angle)
        if abs(dx * ca - dz * sa) >= one.half_width + other.half_width * c + other.half_depth * s:
            return False
        if abs(dx * sa + dz * ca) >= one.half_depth + other.half_width * s + other.half_depth * c:
            return False
    return True


def transform(
    x: float, y: float, z: float, angle: float = 0.0, scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> Float32[np.ndarray, "4 4"]:
    """Scales along the own axes, turns about the vertical, then moves to (x, y, z)."""
    c, s = cos(angle), sin(angle)
    a, b, d = scale
    return np.array([[c * a, 0, s * d, x], [0, b, 0, y], [-s * a, 0, c * d, z], [0, 0, 0, 1]], np.float32)


# ------------------------------------------------------------------------------------------------------------- a thing


def pick(random: np.random.Generator, models: Iterable[Model], fits: Callable[[Model], bool] = lambda _: True):
    """One of the models that fit, or None."""
    models = [model for model in models if fits(model)]
    return models[random.integers(len(models))] if models else None


def draw_paint(random: np.random.Generator, kind: str) -> Callable[[Material], Material] | None:
    """Other colours than the model's own, or None for those: people dress as they like, a third of the rest is dyed."""
    if kind == "person":
        return _dress(random)
    if random.random() >= 0.35:
        return None
    tint = random.uniform(0.35, 1.0) * random.uniform(0.55, 1.0, 3) ** random.uniform(0.0, 2.0)
    gloss = float(random.uniform(0, 0.5)) if random.random() < 0.3 else None

    def paint(material: Material) -> Material:
        color = tuple(float(c) for c in np.asarray(material.color) * tint)
        return replace(material, color=color, gloss=material.gloss if gloss is None else gloss)

    return paint


def _dress(random: np.random.Generator) -> Callable[[Material], Material]:
    """Grey clothes in any colour; what is coloured, as skin is, stays as it is, but for being lighter or darker."""
    shade = random.uniform(0.7, 1.6)
    cloth = random.uniform(0.03, 0.6, (8, 1)) * random.uniform(0.3, 1.0, (8, 3))
    cloth = iter(cloth.tolist() * 8)

    def paint(material: Material) -> Material:
        mean = np.asarray(material.color, float)
        if material.texture is not None:
            mean = mean * (material.texture[::8, ::8].mean(axis=(0, 1)) / 255) ** 2.2
        grey = mean.max() - mean.min() < 0.2 * mean.max() + 0.01
        wanted = np.asarray(next(cloth)) if grey else np.minimum(mean * shade, 0.8)
        color = np.asarray(material.color) * wanted / np.maximum(mean, 1e-3)
        return replace(material, color=tuple(float(c) for c in color))

    return paint


def at(
    random: np.random.Generator,
    model: Model,
    x: float,
    z: float,
    angle: float,
    low: float = 0.0,
    scale: float | tuple[float, float, float] = 1.0,
) -> Placed:
    """The model there, its lowest point at `low`."""
    scale = (scale, scale, scale) if isinstance(scale, float) else scale
    width, height, depth = (size * factor for size, factor in zip(model.size, scale, strict=True))
    box = Box(x, z, width / 2, depth / 2, angle, low, low + height)
    return Placed(model, box, scale, draw_paint(random, model.kind))


# ------------------------------------------------------------------------------------------------------------ searches


def against_wall(
    plan: Plan,
    random: np.random.Generator,
    model: Model,
    low: float = 0.0,
    gap: float = 0.025,
    front: float = 0.0,
    corner: bool = False,
    walls: tuple[Wall, ...] | None = None,
) -> Placed | None:
    """Back to a wall, front inwards, `gap` from the wall; at one of its ends if `corner`."""
    walls = plan.walls if walls is None else walls
    walls = [wall for wall in walls if wall.length > model.size[0] + 0.07]
    if not walls:
        return None
    chances = np.array([wall.length for wall in walls])
    for _ in range(TRIES):
        wall = walls[random.choice(len(walls), p=chances / chances.sum())]
        first, last = model.size[0] / 2 + 0.03, wall.length - model.size[0] / 2 - 0.03
        along = (first, last)[random.integers(2)] if corner else random.uniform(first, last)
        box = wall.box(along, model.size[0], model.size[2], gap, low, low + model.size[1])
        if plan.free(box, 0.015, front):
            return plan.put(at(random, model, box.x, box.z, box.angle, low))
    return None


def on_floor(
    plan: Plan, random: np.random.Generator, model: Model, gap: float = 0.05, middle: float = 0.0, aligned: bool = False
) -> Placed | None:
    """Anywhere that is free, at least `middle` metres from the edge of the floor; parallel to walls if `aligned`."""
    x0, z0, x1, z1 = plan.bounds
    for _ in range(TRIES):
        margin = max(middle, 0.05) + min(model.size[0], model.size[2]) / 2
        if x1 - x0 < 2 * margin or z1 - z0 < 2 * margin:
            return None
        x, z = random.uniform(x0 + margin, x1 - margin), random.uniform(z0 + margin, z1 - margin)
        angle = random.integers(4) * pi / 2 if aligned else random.uniform(-pi, pi)
        placed = at(random, model, x, z, float(angle))
        if plan.free(placed.box, gap):
            return plan.put(placed)
    return None


def beside(
    plan: Plan, random: np.random.Generator, model: Model, neighbour: Box, side: int, gap: float = 0.05
) -> Placed | None:
    """To the right (`side` 1) or left (-1) of the neighbour, backs in line."""
    right = side * (neighbour.half_width + gap + model.size[0] / 2)
    x, z = neighbour.point(right, model.size[2] / 2 - neighbour.half_depth)
    placed = at(random, model, x, z, neighbour.angle)
    return plan.put(placed) if plan.free(placed.box, 0.01) else None


def facing(
    plan: Plan,
    random: np.random.Generator,
    model: Model,
    target: Box,
    right: float,
    gap: float,
    side: float = 0.0,
    jitter: float = 0.05,
) -> Placed | None:
    """In front of the target (turned by `side` about it), `gap` away and `right` off its middle, looking at it."""
    across = sin(side) ** 2
    reach = target.half_depth * (1 - across) + target.half_width * across
    forward = reach + gap + model.size[2] / 2
    c, s = cos(side), sin(side)
    x, z = target.point(right * c + forward * s, forward * c - right * s)
    placed = at(random, model, x, z, target.angle + side + pi + random.normal() * jitter)
    return plan.put(placed) if plan.free(placed.box, 0.01) else None


# ---------------------------------------------------------------------------------------------------------------- tops


@lru_cache(maxsize=512)
def _tops(model: Model) -> Float32[np.ndarray, "cells cells"]:
    """How high the model is, on a grid over its footprint (rows along z) seen from above; -1 where there is nothing."""
    mesh = model.load()
    scene = rtcore_scene.EmbreeScene()
    TriangleMesh(scene, np.ascontiguousarray(mesh.vertices[mesh.faces], np.float32))
    width, height, depth = model.size
    middle = (np.arange(TOP_CELLS) + 0.5) / TOP_CELLS - 0.5
    x, z = np.meshgrid(middle * width, middle * depth)
    origins = np.stack([x.ravel(), np.full(x.size, height + 1.0), z.ravel()], axis=1).astype(np.float32)
    down = np.tile(np.float32([[0.0, -1.0, 0.0]]), (len(origins), 1))
    hits = scene.run(origins, down, output=True)
    heights = np.where(hits["geomID"] >= 0, height + 1.0 - hits["tfar"], -1.0)
    return heights.reshape(TOP_CELLS, TOP_CELLS).astype(np.float32)


def on_top(
    plan: Plan,
    random: np.random.Generator,
    model: Model,
    support: Placed,
    where: tuple[float, float] | None = None,
    turn: float = pi,
    gap: float = 0.01,
) -> Placed | None:
    """On the surface of what is already placed, where that is flat and free.

    `where` is the wished place, each from -1 to 1 (left to right, back to front); `turn`: how far its front may look
    away from that of the support.
    """
    surface = support.model.top
    if surface is None:
        return None
    heights = _tops(support.model)
    width, depth = 2 * support.box.half_width, 2 * support.box.half_depth
    for attempt in range(TRIES):
        angle = random.uniform(-turn, turn)
        reach_x = (abs(cos(angle)) * model.size[0] + abs(sin(angle)) * model.size[2]) / 2 + EDGE
        reach_z = (abs(sin(angle)) * model.size[0] + abs(cos(angle)) * model.size[2]) / 2 + EDGE
        room_x, room_z = width / 2 - reach_x, depth / 2 - reach_z
        if room_x < 0 or room_z < 0:
            if turn < 0.3:
                return None
            continue
        right, forward = random.uniform(-room_x, room_x), random.uniform(-room_z, room_z)
        if where is not None and attempt < TRIES // 2:
            right, forward = where[0] * room_x, where[1] * room_z
        # The cells that the thing touches, which must all be there, level, and at the height of the top.
        columns = _cells(right - reach_x, right + reach_x, width)
        rows = _cells(forward - reach_z, forward + reach_z, depth)
        under = heights[rows, columns]
        if under.max() - under.min() > FLAT or abs(under.max() - surface) > 0.06:
            continue
        low = support.box.low + float(under.max()) * support.scale[1]
        x, z = support.box.point(right, forward)
        placed = at(random, model, x, z, support.box.angle + angle, low)
        larger = replace(placed.box.grown(gap), low=low + 1e-3)
        if not any(overlap(larger, other) for other in plan.taken if other is not support.box):
            return plan.put(placed)
    return None


def _cells(start: float, stop: float, size: float) -> slice:
    first = int((start / size + 0.5) * TOP_CELLS)
    last = int((stop / size + 0.5) * TOP_CELLS)
    return slice(max(first, 0), min(last, TOP_CELLS - 1) + 1)


def polygon_walls(corners: list[tuple[float, float]]) -> Iterator[Wall]:
    """The walls around a floor, whose corners (x, z) go counterclockwise where z is drawn upwards."""
    for (x, z), (next_x, next_z) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = hypot(next_x - x, next_z - z)
        yield Wall(x, z, ((next_x - x) / length, (next_z - z) / length), length)
