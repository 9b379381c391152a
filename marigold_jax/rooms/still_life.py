"""Close-ups: a table, desk or counter with objects on it, or a bookcase; often with an arm in the foreground."""

from dataclasses import dataclass
from math import pi

import numpy as np

from marigold_jax.rooms import meshes
from marigold_jax.rooms.bookcase import bookcase
from marigold_jax.rooms.catalogue import Catalogue, Model
from marigold_jax.rooms.finishes import TOPS, any_color, brown, finish, pale
from marigold_jax.rooms.interior import (
    Home,
    along_wall,
    ceiling_lamp,
    curtains,
    decorate,
    kitchen_run,
    ornaments,
    picture,
    seats,
)
from marigold_jax.rooms.placement import Box, Placed, against_wall, on_floor, on_top
from marigold_jax.rooms.scene import Camera, Instance, Material, Vector
from marigold_jax.rooms.sheets import Sheets
from marigold_jax.rooms.shell import build_shell, draw_room

SUPPORTS = ("table", "desk", "low_table", "chest", "cabinet", "shelf", "kitchen_unit")
SUBJECTS = {"counter": 0.3, "furniture": 0.45, "books": 0.25}


@dataclass
class StillLife:
    """A room, and the points in it that cameras look at.

    Attributes:
        home: the furnished room.
        targets: each a point, and the angle of the front of the furniture that it is on.
    """

    home: Home
    targets: list[tuple[Vector, float]]


def arrange(random: np.random.Generator, catalogue: Catalogue) -> StillLife:
    """Builds and furnishes a room around one subject (see `SUBJECTS`)."""
    home = Home(random, catalogue, draw_room(random, (6.0, 25.0), (0, 2)), clutter=float(random.uniform(0.3, 1.0)))
    home.extras += build_shell(random, home.room, tiled=bool(random.random() < 0.25))
    names = list(SUBJECTS)
    subject = names[random.choice(len(names), p=list(SUBJECTS.values()))]
    targets = books(home) if subject == "books" else []
    for _ in range(0 if targets else 12):
        support = _support(home, subject)
        if support is None:
            continue
        targets = lay(home, support)
        if len(targets) >= 2:
            break
    if home.chance(0.3):
        kitchen_run(home)
    background = along_wall("shelf", "cabinet", "chest", "sofa", "wardrobe", "plant", "armchair", "lamp", "bed")
    for _ in range(random.integers(1, 7)):
        background(home)
    for _ in range(random.integers(0, 4)):
        picture(home)
    ceiling_lamp(home)
    curtains(home)
    before = len(home.room.plan.placed)
    ornaments(home)
    if not targets:  # any other object in the room
        targets = [(_middle(placed), placed.box.angle) for placed in home.room.plan.placed[before:] or _any(home)]
    return StillLife(home, targets)


def _any(home: Home) -> list[Placed]:
    placed = home.room.plan.placed
    if not placed:
        model = home.pick("plant") or home.pick("chair")
        on_floor(home.room.plan, home.random, model)
    return placed


def _middle(placed: Placed) -> Vector:
    return placed.box.x, (placed.box.low + placed.box.high) / 2, placed.box.z


def _support(home: Home, subject: str) -> Placed | None:
    """Adds the furniture that objects will stand on: a model of the catalogue, or a plain counter."""
    random, plan = home.random, home.room.plan
    model = counter(random) if subject == "counter" else home.pick(*SUPPORTS, fits=lambda m: m.top is not None)
    if model is None:
        return None
    if model.kind in ("table", "low_table") and home.chance(0.6):
        placed = on_floor(plan, random, model, gap=0.4, middle=0.3, aligned=True)
        if placed is not None and home.chance(0.6):
            seats(home, placed)
        return placed
    return against_wall(plan, random, model, front=0.7)


def counter(random: np.random.Generator) -> Model:
    """A counter: a slab on a body or on legs, in a material of `finishes.TOPS`."""
    width, depth, height = random.uniform(0.8, 2.4), random.uniform(0.5, 1.0), random.uniform(0.4, 0.95)
    sheets = Sheets()
    top = sheets.material(*finish(random, TOPS))
    body = sheets.material(Material(brown(random) if random.random() < 0.5 else pale(random, 0.2, 0.9), gloss=0.2))
    thick = random.uniform(0.02, 0.06)
    sheets.block(Box(0.0, 0.0, width / 2, depth / 2, 0.0, height - thick, height), top)
    if random.random() < 0.5:
        sheets.block(Box(0.0, 0.0, width / 2 - 0.02, depth / 2 - 0.03, 0.0, 0.0, height - thick), body)
    else:
        for x in (-width / 2 + 0.04, width / 2 - 0.04):
            for z in (-depth / 2 + 0.04, depth / 2 - 0.04):
                sheets.block(Box(x, z, 0.025, 0.025, 0.0, 0.0, height - thick), body)
    mesh = sheets.mesh()
    size = (float(width), float(height), float(depth))
    kind = "table" if depth > 0.7 else "chest"
    return Model("", kind, size, 0.0, float(height), "", "", lambda: mesh)


def lay(home: Home, support: Placed) -> list[tuple[Vector, float]]:
    """Puts two to nine objects on the support, and returns their positions as targets."""
    random, plan = home.random, home.room.plan
    wanted = int(random.integers(2, 10))
    kinds = {"ornament": 0.76, "plant": 0.12, "table_lamp": 0.06, "screen": 0.06}
    targets = []
    tallest = random.uniform(0.2, 0.7)
    for _ in range(3 * wanted):
        kind = list(kinds)[random.choice(len(kinds), p=list(kinds.values()))]
        model = home.pick(kind, fits=lambda m: max(m.size) < tallest and max(m.size) > 0.06)
        if model is None:
            continue
        placed = on_top(plan, random, model, support, turn=0.6 if kind == "screen" else pi)
        if placed is not None:
            targets.append((_middle(placed), support.box.angle))
        if len(targets) == wanted:
            break
    decorate(home, support, 0.3)
    return targets


# --------------------------------------------------------------------------------------------------------------- books


def books(home: Home) -> list[tuple[Vector, float]]:
    """Adds a bookcase to a wall, and returns the middles of its compartments as targets; none if there is no space."""
    random, plan = home.random, home.room.plan
    width, depth = random.uniform(0.8, 3.0), random.uniform(0.22, 0.36)
    height = min(random.uniform(1.2, 2.6), home.room.height - 0.05)
    for _ in range(20):
        wall = plan.walls[random.integers(len(plan.walls))]
        if wall.length < width + 0.1:
            continue
        along = random.uniform(width / 2 + 0.04, wall.length - width / 2 - 0.04)
        box = wall.box(along, width, depth, 0.02, 0.0, height)
        if plan.free(box, 0.01, 0.5):
            break
    else:
        return []
    plan.taken.append(box)
    mesh, places = bookcase(random, width, height, depth)
    name = Model("", "shelf", (float(width), float(height), float(depth)), 0.0, None, "", "", lambda: mesh)
    plan.placed.append(Placed(name, box, (1.0, 1.0, 1.0), None))
    return [((*_at(box, x, y),), box.angle) for x, y in places]


def _at(box: Box, right: float, y: float) -> Vector:
    x, z = box.point(right, box.half_depth)
    return x, float(y), z


# ----------------------------------------------------------------------------------------------------------- occluders


def occluder(random: np.random.Generator, camera: Camera) -> Instance:
    """An arm-like object that reaches into the image from one side or from below."""
    skin = np.array([0.62, 0.4, 0.3]) * random.uniform(0.15, 1.25)
    color = any_color(random) if random.random() < 0.5 else tuple(float(c) for c in np.clip(skin, 0, 1))
    radius, length = random.uniform(0.025, 0.06), random.uniform(0.3, 0.6)
    taper = random.uniform(0.5, 1.0)
    angles = np.linspace(0, pi / 2, 5)
    profile = [(0.0, 0.0), (radius, 0.0), (radius, 0.0)]
    profile += [(radius * taper * np.cos(a), length + radius * taper * np.sin(a)) for a in angles]
    arm = meshes.lathe([(float(max(r, 0)), float(y)) for r, y in profile], Material(color), segments=14)
    # In the camera's frame: it enters at a side or at the bottom, and its tip is well inside the image.
    reach = np.tan(camera.field_of_view / 2)
    distance = random.uniform(0.28, 0.6)
    around = random.choice([0.0, pi, -pi / 2]) + random.normal() * 0.5
    edge = np.array([np.cos(around), 0.75 * np.sin(around)]) * reach * distance
    tip = np.array([*(edge * random.uniform(0.45, 0.85)), -distance])
    foot = np.array([*(edge * 1.6), -distance * random.uniform(0.4, 0.9)])
    axis = (tip - foot) / np.linalg.norm(tip - foot)
    side = np.cross(axis, [0, 0, 1.0])
    side /= np.linalg.norm(side)
    local = np.stack([side, axis, np.cross(side, axis)], axis=1)
    matrix = np.eye(4, dtype=np.float32)
    matrix[:3, :3] = camera.axes @ local
    matrix[:3, 3] = camera.axes @ (tip - axis * length) + camera.position
    return Instance(arm, matrix)
