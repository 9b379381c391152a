"""The empty room: floor, ceiling, and walls with windows, doors, doorways and skirting boards."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from marigold_jax.rooms.finishes import FLOORS, TILED_FLOORS, TILED_WALLS, WALLS, brown, finish, pale
from marigold_jax.rooms.placement import Box, Plan, Wall, polygon_walls
from marigold_jax.rooms.scene import Instance, Material
from marigold_jax.rooms.sheets import Sheets

SKIRTING = 0.015  # metres that skirting boards stand out
SHAPES = {"rectangle": 0.75, "L": 0.25}


@dataclass(frozen=True)
class Opening:
    """A hole in a wall, from `start` to `stop` along it and from `low` to `high` above the floor, in metres."""

    kind: str  # "window", "door" or "doorway"
    start: float
    stop: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Room:
    """A room: its plan, its height in metres, and the openings of each wall of the plan."""

    plan: Plan
    height: float
    openings: tuple[tuple[Opening, ...], ...]


# ------------------------------------------------------------------------------------------------------------- the room


def draw_room(random: np.random.Generator, area: tuple[float, float], windows: tuple[int, int]) -> Room:
    """Draws an empty room with one to three doors or doorways; some rooms are L-shaped.

    Args:
        random: draws it.
        area: smallest and largest, in square metres.
        windows: smallest and largest number.
    """
    size = random.uniform(*area)
    aspect = random.uniform(0.65, 1.5)
    width = float(np.clip((size * aspect) ** 0.5, 2.2, 8.0))
    depth = float(np.clip(size / width, 2.2, 10.0))
    height = float(np.clip(random.normal(2.6, 0.25), 2.3, 3.5))
    corners = [(0.0, 0.0), (width, 0.0), (width, depth), (0.0, depth)]
    plan = Plan((0.0, 0.0, width, depth))
    if random.random() < SHAPES["L"] and min(width, depth) > 3.2:
        a, b = random.uniform(0.25, 0.5) * width, random.uniform(0.25, 0.5) * depth
        corners = [(0.0, 0.0), (width, 0.0), (width, depth - b), (width - a, depth - b), (width - a, depth)]
        corners += [(0.0, depth)]
        notch = Box(width - a / 2, depth - b / 2, a / 2, b / 2, 0.0)
        if random.random() < 0.5:
            corners = [(width - x, z) for x, z in reversed(corners)]
            notch = Box(a / 2, notch.z, a / 2, b / 2, 0.0)
        if random.random() < 0.5:
            corners = [(x, depth - z) for x, z in reversed(corners)]
            notch = Box(notch.x, b / 2, a / 2, b / 2, 0.0)
        plan.taken.append(notch)
    plan.walls = tuple(polygon_walls(corners))
    openings = [[] for _ in plan.walls]
    wanted = ["door"] + ["doorway"] * (random.random() < 0.35) + ["door"] * (random.random() < 0.2)
    wanted += ["window"] * int(random.integers(windows[0], windows[1] + 1))
    for kind in wanted:
        for _ in range(8):
            number = int(random.integers(len(plan.walls)))
            opening = _draw_opening(random, kind, plan.walls[number].length, height)
            if opening is None or any(
                opening.start < other.stop + 0.2 and other.start < opening.stop + 0.2 for other in openings[number]
            ):
                continue
            openings[number].append(opening)
            plan.taken.append(_keep_free(plan.walls[number], opening))
            break
    return Room(plan, height, tuple(map(tuple, openings)))


def _draw_opening(random: np.random.Generator, kind: str, length: float, height: float) -> Opening | None:
    width, low, high = {
        "door": (random.uniform(0.75, 0.95), 0.0, 2.05),
        "doorway": (random.uniform(0.8, 1.6), 0.0, random.uniform(2.0, 2.2)),
        "window": (random.uniform(0.6, 2.2), random.choice([0.05, 0.6, 0.85, 1.1]), random.uniform(1.9, height - 0.2)),
    }[kind]
    if width > length - 0.4:
        return None
    start = random.uniform(0.2, length - 0.2 - width)
    return Opening(kind, float(start), float(start + width), float(low), float(min(high, height - 0.1)))


def _keep_free(wall: Wall, opening: Opening) -> Box:
    """The space in front of an opening: a door needs room to pass, a window nothing taller than its sill."""
    depth = 0.25 if opening.kind == "window" else 0.9
    return wall.box(
        (opening.start + opening.stop) / 2, opening.stop - opening.start, depth, 0.0, opening.low, opening.high
    )


# ------------------------------------------------------------------------------------------------------------- building


def build_shell(random: np.random.Generator, room: Room, tiled: bool) -> list[Instance]:
    """The surfaces of a room, in world coordinates. `tiled` draws materials of kitchens and bathrooms."""
    sheets = Sheets()
    x0, z0, x1, z1 = room.plan.bounds
    floor = sheets.material(*finish(random, TILED_FLOORS if tiled else FLOORS))
    ceiling = sheets.material(Material(pale(random, 0.75, 0.95)))
    sheets.patch((x0, 0, z1), (x1 - x0, 0, 0), (0, 0, z0 - z1), floor)
    sheets.patch((x0, room.height, z0), (x1 - x0, 0, 0), (0, 0, z1 - z0), ceiling)
    white = sheets.material(Material(pale(random, 0.6, 0.95) if random.random() < 0.7 else brown(random), gloss=0.15))
    usual = sheets.material(*finish(random, TILED_WALLS if tiled else WALLS))
    lower = sheets.material(*finish(random, TILED_WALLS if tiled else WALLS))
    dado = random.uniform(0.9, 2.1) if random.random() < (0.6 if tiled else 0.12) else 0.0
    skirting = 0.0 if tiled and random.random() < 0.7 else random.uniform(0.06, 0.14)
    for wall, openings in zip(room.plan.walls, room.openings, strict=True):
        main = sheets.material(*finish(random, WALLS)) if random.random() < 0.2 else usual
        _wall(sheets, wall, room.height, openings, main, lower, dado)
        for opening in openings:
            _frame(random, sheets, wall, opening, white, main)
        if skirting:
            for start, stop in _between([o for o in openings if o.low < skirting], wall.length):
                sheets.block(
                    wall.box((start + stop) / 2, stop - start, SKIRTING, 0.0, 0.0, skirting),
                    white,
                )
    return [sheets.instance()]


def _wall(sheets: Sheets, wall: Wall, height: float, openings, main: int, lower: int, dado: float) -> None:
    """Adds the parts of a wall around its openings.

    Args:
        sheets: receives them.
        wall: in the plan.
        height: of the room, in metres.
        openings: of the wall.
        main, lower: materials above and below the dado.
        dado: height of the lower part, in metres; 0 for none.
    """
    along = sorted({0.0, wall.length, *(o.start for o in openings), *(o.stop for o in openings)})
    heights = sorted({0.0, height, dado, *(o.low for o in openings), *(o.high for o in openings)})
    (dx, dz), (x, z) = wall.direction, (wall.x, wall.z)
    for start, stop in pairwise(along):
        for low, high in pairwise(heights):
            u, v = (start + stop) / 2, (low + high) / 2
            if any(o.start < u < o.stop and o.low < v < o.high for o in openings):
                continue
            width = stop - start
            corner = (x + start * dx, low, z + start * dz)
            material = lower if v < dado else main
            sheets.patch(corner, (width * dx, 0, width * dz), (0, high - low, 0), material, (start, low))


@dataclass(frozen=True, eq=False)
class Reveal:
    """The surfaces of a wall's thickness around an opening.

    Attributes:
        thick: of the wall, in metres.
        out: the direction out of the room, `thick` long.
        along: the unit direction along the wall.
        left: the lower corner of the opening at its start.
    """

    thick: float
    out: np.ndarray
    along: np.ndarray
    left: np.ndarray


def _frame(random: np.random.Generator, sheets: Sheets, wall: Wall, opening: Opening, white: int, main: int) -> None:
    """Adds the thickness of the wall, the bars of a window or the jambs of a door, and what is behind a door."""
    reveal = _add_reveal(random, sheets, wall, opening, main)
    bars = random.uniform(0.03, 0.07)
    if opening.kind == "window":
        _add_window(random, sheets, wall, opening, reveal.thick, bars, white)
        return
    for start, stop in ((opening.start - bars, opening.start), (opening.stop, opening.stop + bars)):
        _bar(sheets, wall, (start, stop), (0.0, opening.high + bars), 0.02, 0.0, white)
    _bar(sheets, wall, (opening.start, opening.stop), (opening.high, opening.high + bars), 0.02, 0.0, white)
    if opening.kind == "door":
        _add_door_leaf(random, sheets, wall, opening)
    _add_corridor(random, sheets, wall, opening, reveal, white, main)


def _bar(
    sheets: Sheets,
    wall: Wall,
    span: tuple[float, float],
    heights: tuple[float, float],
    depth: float,
    gap: float,
    material: int,
) -> None:
    """A block on the wall; `span` is along it. `gap` is metres from the wall's surface into the room."""
    (start, stop), (low, high) = span, heights
    sheets.block(wall.box((start + stop) / 2, stop - start, depth, gap, low, high), material)


def _add_reveal(random: np.random.Generator, sheets: Sheets, wall: Wall, opening: Opening, main: int) -> Reveal:
    thick = random.uniform(0.12, 0.35)
    width = opening.stop - opening.start
    outward = -np.array(wall.point(0.0, thick)) + np.array(wall.point(0.0, 0.0))
    out = np.array([outward[0], 0, outward[1]])
    along = np.array([wall.direction[0], 0, wall.direction[1]])
    left, right = (
        np.array([wall.x, 0, wall.z]) + along * position + [0, opening.low, 0]
        for position in (opening.start, opening.stop)
    )
    up = np.array([0, opening.high - opening.low, 0])
    for corner, a, b in (
        (left, out, up),
        (right, out, up),
        (left, along * width, out),
        (left + up, along * width, out),
    ):
        sheets.patch(corner, a, b, main)
    return Reveal(thick, out, along, left)


def _add_window(
    random: np.random.Generator, sheets: Sheets, wall: Wall, opening: Opening, thick: float, bars: float, white: int
) -> None:
    """The bars of a window, each `bars` metres wide, and perhaps a sill."""
    depth, gap = 0.05, -thick * random.uniform(0.4, 0.9)
    panes = int(random.integers(1, 2 + int((opening.stop - opening.start) / 0.6)))
    for position in np.linspace(opening.start, opening.stop, panes + 1):
        position = float(np.clip(position, opening.start + bars / 2, opening.stop - bars / 2))
        span = (position - bars / 2, position + bars / 2)
        _bar(sheets, wall, span, (opening.low, opening.high), depth, gap, white)
    rows = [opening.low, opening.high] + [random.uniform(0.55, 0.75) * opening.high] * (random.random() < 0.4)
    for height in rows:
        height = float(np.clip(height, opening.low + bars / 2, opening.high - bars / 2))
        heights = (height - bars / 2, height + bars / 2)
        _bar(sheets, wall, (opening.start, opening.stop), heights, depth, gap, white)
    if opening.low > 0.3 and random.random() < 0.8:
        span, heights = (opening.start - 0.05, opening.stop + 0.05), (opening.low - 0.03, opening.low)
        _bar(sheets, wall, span, heights, 0.12 + thick / 2, -thick / 2, white)


def _add_door_leaf(random: np.random.Generator, sheets: Sheets, wall: Wall, opening: Opening) -> None:
    """A closed door with a handle, and perhaps panels."""
    width, middle = opening.stop - opening.start, (opening.start + opening.stop) / 2
    leaf = sheets.material(Material(pale(random, 0.5, 0.9) if random.random() < 0.5 else brown(random), gloss=0.2))
    steel = sheets.material(Material((0.5, 0.5, 0.5), gloss=0.8))
    sheets.block(wall.box(middle, width - 0.01, 0.04, -0.06, 0.005, opening.high - 0.005), leaf)
    sheets.block(wall.box(opening.start + 0.11, 0.12, 0.03, 0.0, 1.0, 1.025), steel)
    if random.random() < 0.6:
        lines = random.integers(1, 4)
        for low in np.linspace(0.15, opening.high - 0.15, lines + 1)[:-1]:
            high = float(low + (opening.high - 0.3) / lines - 0.1)
            sheets.block(wall.box(middle, width * 0.65, 0.02, -0.03, float(low), high), leaf)


def _add_corridor(
    random: np.random.Generator,
    sheets: Sheets,
    wall: Wall,
    opening: Opening,
    reveal: Reveal,
    white: int,
    main: int,
) -> None:
    """The space behind a door or doorway."""
    width = opening.stop - opening.start
    reach = random.uniform(1.2, 4.0)
    sides = random.uniform(0.1, 1.0, 2)
    start, total = opening.start - sides[0], width + sides.sum()
    along, out = reveal.along, reveal.out
    corner = np.array([wall.x, 0, wall.z]) + along * start + out
    deep = out / reveal.thick * reach
    tall = np.array([0, opening.high + 0.25, 0])
    for base, a, b in (
        (corner, deep, tall),
        (corner + along * total, deep, tall),
        (corner + deep, along * total, tall),
        (corner, along * total, deep),
        (corner + tall, along * total, deep),
    ):
        sheets.patch(base, a, b, main if b is tall else white)
    # The corridor's own front, beside and above the opening.
    top = np.array([0, 0.25, 0])
    up = np.array([0, opening.high - opening.low, 0])
    sheets.patch(corner, along * sides[0], tall, main)
    sheets.patch(corner + along * (sides[0] + width), along * sides[1], tall, main)
    sheets.patch(reveal.left + up + out, along * width, top, main)


def _between(openings: list[Opening], length: float) -> list[tuple[float, float]]:
    """The intervals of a wall between its openings."""
    ends = [0.0]
    for opening in sorted(openings, key=lambda o: o.start):
        ends += [opening.start - 0.07, opening.stop + 0.07]
    ends.append(length)
    return [(start, stop) for start, stop in zip(ends[::2], ends[1::2], strict=True) if stop - start > 0.03]
