"""Places objects without collisions: along walls, in corners, around and on tables. An object is an upright box here.

Seen from above, +x is to the right and +z towards the viewer. An angle is a rotation about the vertical: the front of
an object faces +z at angle 0, and +x at 90 degrees. Every search tries a few random places, and returns None if none of
them is free.
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
TOP_CELLS = 24  # rows and columns of the grid on which the height of a table's surface is measured
FLAT = 0.002  # metres that a surface may vary by under an object that stands on it
EDGE = 0.015  # metres that objects keep from the edge of a table


@dataclass(frozen=True)
class Box:
    """An upright box, in metres and radians.

    Attributes:
        x, z: its centre, seen from above.
        half_width, half_depth: half its sides, seen from above.
        angle: about the vertical.
        low, high: its lower and upper end above the floor.
    """

    x: float
    z: float
    half_width: float
    half_depth: float
    angle: float
    low: float = -inf
    high: float = inf

    def point(self, right: float, forward: float) -> tuple[float, float]:
        """The world coordinates (x, z) of a point in the box's own frame."""
        c, s = cos(self.angle), sin(self.angle)
        return self.x + right * c + forward * s, self.z - right * s + forward * c

    def corners(self) -> list[tuple[float, float]]:
        w, d = self.half_width, self.half_depth
        return [self.point(-w, -d), self.point(w, -d), self.point(w, d), self.point(-w, d)]

    def grown(self, sides: float, front: float = 0.0) -> "Box":
        """A box that is larger by `sides` on all sides, and by another `front` in front."""
        x, z = self.point(0.0, front / 2)
        return replace(
            self, x=x, z=z, half_width=self.half_width + sides, half_depth=self.half_depth + sides + front / 2
        )


@dataclass(frozen=True)
class Wall:
    """A straight wall. It begins at (x, z) and extends `length` metres to the right, as seen from inside."""

    x: float
    z: float
    direction: tuple[float, float]
    length: float

    @property
    def angle(self) -> float:
        """The angle of an object with its back to the wall."""
        return atan2(-self.direction[1], self.direction[0])

    def point(self, along: float, inward: float) -> tuple[float, float]:
        """The world coordinates (x, z) of a point `along` the wall and `inward` from it, in metres."""
        dx, dz = self.direction
        return self.x + along * dx - inward * dz, self.z + along * dz + inward * dx

    def box(self, along: float, width: float, depth: float, gap: float = 0.0, low: float = -inf, high: float = inf):
        """A box whose back is `gap` metres from the wall, centred at `along`."""
        x, z = self.point(along, gap + depth / 2)
        return Box(x, z, width / 2, depth / 2, self.angle, low, high)


@dataclass(frozen=True, eq=False)
class Placed:
    """A model at its place.

    Attributes:
        model: from the catalogue.
        box: that it occupies.
        scale: along its own three axes.
        paint: changes its materials; None keeps them.
    """

    model: Model
    box: Box
    scale: tuple[float, float, float]
    paint: Callable[[Material], Material] | None

    def instance(self) -> Instance:
        """The instance for the scene. This loads the model's mesh."""
        mesh = self.model.load()
        if self.paint is not None:
            mesh = replace(mesh, materials=tuple(map(self.paint, mesh.materials)))
        return Instance(mesh, transform(self.box.x, self.box.low, self.box.z, self.box.angle, self.scale))


@dataclass
class Plan:
    """A floor and the objects on it.

    Attributes:
        bounds: the rectangle (smallest x, smallest z, largest x, largest z), in metres.
        walls: around it.
        taken: occupied boxes.
        placed: objects so far.
    """

    bounds: tuple[float, float, float, float]
    walls: tuple[Wall, ...] = ()
    taken: list[Box] = field(default_factory=list)
    placed: list[Placed] = field(default_factory=list)

    def free(self, box: Box, gap: float = 0.02, front: float = 0.0) -> bool:
        """Whether a box is within the bounds and at least `gap` metres (in front, also `front`) from occupied ones."""
        x0, z0, x1, z1 = self.bounds
        if not all(x0 <= x <= x1 and z0 <= z <= z1 for x, z in box.corners()):
            return False
        larger = box.grown(gap, front)
        return not any(overlap(larger, other) for other in self.taken)

    def put(self, placed: Placed, solid: bool = True) -> Placed:
        """Adds an object. If it is `solid`, its box is occupied from now on."""
        self.placed.append(placed)
        if solid:
            self.taken.append(placed.box)
        return placed


def overlap(a: Box, b: Box) -> bool:
    """Whether two boxes overlap, by the separating axis theorem."""
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
    """The matrix that scales along the object's own axes, rotates about the vertical, then moves to (x, y, z).

    `angle` is in radians.
    """
    c, s = cos(angle), sin(angle)
    a, b, d = scale
    return np.array([[c * a, 0, s * d, x], [0, b, 0, y], [-s * a, 0, c * d, z], [0, 0, 0, 1]], np.float32)


# ----------------------------------------------------------------------------------------------------------- one object


def pick(random: np.random.Generator, models: Iterable[Model], fits: Callable[[Model], bool] = lambda _: True):
    """A random one of the models that fit, or None."""
    models = [model for model in models if fits(model)]
    return models[random.integers(len(models))] if models else None


def draw_paint(random: np.random.Generator, kind: str) -> Callable[[Material], Material] | None:
    """Draws a change of colours, or None for the model's own: for every person, and a third of the other models."""
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
    """Gives grey materials, such as clothes, a random colour; coloured ones, such as skin, only another brightness."""
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
    """A model at a place.

    Args:
        random: draws its colours.
        model: from the catalogue.
        x, z: of its centre, in metres.
        angle: radians about the vertical.
        low: height of its lowest point, in metres.
        scale: of all axes, or of each.
    """
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
    """Places a model with its back to a wall.

    Args:
        plan: of the room.
        random: draws the wall and the place.
        model: to be placed.
        low: height of its lowest point, in metres.
        gap: metres from the wall.
        front: metres that must be free in front of it.
        corner: whether it is placed at one end of the wall.
        walls: to choose from; None for all.
    """
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
    """Places a model anywhere on the floor.

    Args:
        plan: of the room.
        random: draws the place.
        model: to be placed.
        gap: metres from other objects.
        middle: metres from the edge of the floor.
        aligned: whether it is parallel to the walls.
    """
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
    """Places a model beside another object, with their backs aligned.

    Args:
        plan: of the room.
        random: draws its colours.
        model: to be placed.
        neighbour: the box of the other object.
        side: 1 for its right, -1 for its left.
        gap: metres between the two.
    """
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
    """Places a model so that it faces another object.

    Args:
        plan: of the room.
        random: draws the deviation of the angle.
        model: to be placed.
        target: the box of the other object.
        right: metres to the right of the target's middle.
        gap: metres between the two.
        side: of the target, in radians: 0 is its front, pi its back.
        jitter: standard deviation of the angle, in radians.
    """
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
    """The height of a model on a grid over its footprint (rows along z), seen from above; -1 where it has a hole."""
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
    """Places a model on another object, where its surface is flat and free.

    Args:
        plan: of the room.
        random: draws the place.
        model: to be placed.
        support: the object to stand on.
        where: the preferred place, -1 to 1 from left to right and from back to front; None for any.
        turn: largest angle between their fronts, in radians.
        gap: metres from other objects.
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
        # All cells below the object must exist, be level, and be at the height of the top.
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
    """The walls around a floor. Its corners (x, z) are counterclockwise if z is drawn upwards."""
    for (x, z), (next_x, next_z) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = hypot(next_x - x, next_z - z)
        yield Wall(x, z, ((next_x - x) / length, (next_z - z) / length), length)
