"""The buildings along a street: floors of recessed windows, doors, shops, balconies and roofs."""

from dataclasses import dataclass

import numpy as np

from marigold_jax.rooms.finishes import FACADES, FAR_FACADES, ROOFS, any_color, finish, pale
from marigold_jax.rooms.placement import Wall
from marigold_jax.rooms.scene import Material
from marigold_jax.rooms.sheets import Sheets


@dataclass(frozen=True)
class Front:
    """How the front of a building is divided and what it is made of. Lengths in metres; materials by number.

    Attributes:
        skin, base: the materials of the walls, and of the ground floor.
        glass, trim: of the windows, and of doors, reveals and bars.
        floors, storey: how many floors, and the height of each.
        bays, bay: how many columns of windows, and the width of each.
        width, sill, head: of a window, and where it begins and ends above the floor.
        recess: how far windows lie behind the front.
        shops, balconies: whether the ground floor has shop windows, and the others have balconies.
        door: the bay of the door.
    """

    skin: int
    base: int
    glass: int
    trim: int
    floors: int
    storey: float
    bays: int
    bay: float
    width: float
    sill: float
    head: float
    recess: float
    shops: bool
    balconies: bool
    door: int


@dataclass(frozen=True, eq=False)
class Frame:
    """A wall's place in the world: a point on it at ground level, and unit directions along and out of it."""

    origin: np.ndarray
    along: np.ndarray
    inward: np.ndarray  # as long as the recess of the windows


def house(random: np.random.Generator, sheets: Sheets, wall: Wall, depth: float, height: float, near: bool) -> None:
    """Adds a building behind a wall, with rows of recessed windows and perhaps shops, balconies and a pitched roof.

    Args:
        random: draws its proportions and materials.
        sheets: receives its surfaces.
        wall: its front; the street is on the inner side.
        depth: metres from front to back.
        height: metres from the ground to the roof.
        near: whether windows are modelled; otherwise they are painted.
    """
    if not near or random.random() < 0.12:
        skin = sheets.material(*finish(random, FAR_FACADES))
        sheets.block(wall.box(wall.length / 2, wall.length, depth, -depth, 0.0, height), skin)
        _roof(random, sheets, wall, depth, height)
        return
    front = _draw_front(random, sheets, wall, height)
    out = np.array([*wall.point(0.0, front.recess)]) - (wall.x, wall.z)
    along = np.array([wall.direction[0], 0.0, wall.direction[1]])
    frame = Frame(np.array([wall.x, 0.0, wall.z]), along, -np.array([out[0], 0.0, out[1]]))
    for floor in range(front.floors):
        face = front.base if floor == 0 else front.skin
        y = floor * front.storey
        _sheet(sheets, frame, (0.0, wall.length), (y + front.head, y + front.storey), face)
        for number in range(front.bays):
            _bay(sheets, wall, frame, front, floor, number)
    _other_sides(sheets, wall, frame, front, depth, height)
    if random.random() < 0.4:
        sheets.block(wall.box(wall.length / 2, wall.length, 0.25, 0.0, height - 0.3, height), front.trim)
    _roof(random, sheets, wall, depth, height)


def _draw_front(random: np.random.Generator, sheets: Sheets, wall: Wall, height: float) -> Front:
    skin = sheets.material(*finish(random, FACADES))
    base = sheets.material(*finish(random, FACADES)) if random.random() < 0.4 else skin
    glass = sheets.material(Material(tuple(float(c) for c in random.uniform(0.03, 0.25, 3)), gloss=0.7))
    trim = sheets.material(Material(pale(random, 0.4, 0.9) if random.random() < 0.7 else any_color(random)))
    floors = max(1, round(height / random.uniform(2.8, 3.6)))
    storey = height / floors
    bays = max(1, round(wall.length / random.uniform(1.8, 4.0)))
    bay = wall.length / bays
    width, sill, head = bay * random.uniform(0.35, 0.7), storey * random.uniform(0.2, 0.36), storey * 0.84
    recess = random.uniform(0.08, 0.35)
    shops, balconies = random.random() < 0.35 and floors > 2, random.random() < 0.3
    door = int(random.integers(bays))
    return Front(
        *(skin, base, glass, trim, floors, storey, bays, bay),
        *(width, sill, head, recess, shops, balconies, door),
    )


def _sheet(
    sheets: Sheets,
    frame: Frame,
    span: tuple[float, float],
    heights: tuple[float, float],
    material: int,
    recessed: bool = False,
) -> None:
    """A rectangle in the plane of the front, or behind it by the recess of the windows."""
    (start, stop), (low, high) = span, heights
    corner = frame.origin + frame.along * start + [0, low, 0] + (frame.inward if recessed else 0)
    sheets.patch(corner, frame.along * (stop - start), (0, high - low, 0), material, (start, low))


def _bay(sheets: Sheets, wall: Wall, frame: Frame, front: Front, floor: int, number: int) -> None:
    """One window or the door, with the wall around it."""
    y, face = floor * front.storey, front.base if floor == 0 else front.skin
    low, high, wide = y + front.sill, y + front.head, front.width
    if floor == 0 and front.shops:
        low, wide = y + 0.3, front.bay * 0.85
    left, right = number * front.bay, (number + 1) * front.bay
    is_door = floor == 0 and number == front.door
    start, stop = (left + right - wide) / 2, (left + right + wide) / 2
    bottom = 0.05 if is_door else low
    _sheet(sheets, frame, (left, start), (y, high), face)
    _sheet(sheets, frame, (stop, right), (y, high), face)
    _sheet(sheets, frame, (start, stop), (y, bottom), face)
    _sheet(sheets, frame, (start, stop), (bottom, high), front.trim if is_door else front.glass, recessed=True)
    corner = frame.origin + frame.along * start + [0, bottom, 0]
    rise, across = np.array([0, high - bottom, 0]), frame.along * (stop - start)
    for place, a, b in (
        (corner, frame.inward, rise),
        (corner + across, frame.inward, rise),
        (corner, across, frame.inward),
        (corner + rise, across, frame.inward),
    ):
        sheets.patch(place, a, b, front.trim)
    if wide > 0.7 and not is_door:
        middle = (start + stop) / 2
        sheets.block(wall.box(middle, 0.06, 0.04, -front.recess, bottom, high), front.trim)
    if front.balconies and floor and number % 2 == 0:
        middle = (left + right) / 2
        sheets.block(wall.box(middle, front.bay * 0.9, 1.0, 0.0, y, y + 0.12), front.base)
        sheets.block(wall.box(middle, front.bay * 0.9, 0.04, 0.96, y + 0.12, y + 1.0), front.trim)


def _other_sides(sheets: Sheets, wall: Wall, frame: Frame, front: Front, depth: float, height: float) -> None:
    inside = np.array([*wall.point(0.0, -depth)]) - (wall.x, wall.z)
    inside = np.array([inside[0], 0.0, inside[1]])
    tall = np.array([0.0, height, 0.0])
    sheets.patch(frame.origin, inside, tall, front.skin)
    sheets.patch(frame.origin + frame.along * wall.length, inside, tall, front.skin)
    sheets.patch(frame.origin + inside, frame.along * wall.length, tall, front.skin)


def _roof(random: np.random.Generator, sheets: Sheets, wall: Wall, depth: float, height: float) -> None:
    """A flat roof, or two slopes with gables."""
    along = np.array([wall.direction[0], 0.0, wall.direction[1]]) * wall.length
    inside = np.array([*wall.point(0.0, -depth)]) - (wall.x, wall.z)
    inside = np.array([inside[0], 0.0, inside[1]])
    corner = np.array([wall.x, height, wall.z])
    tiles = sheets.material(*finish(random, ROOFS))
    if height > 14 or random.random() < 0.25:
        sheets.patch(corner, along, inside, tiles)
        return
    rise = np.array([0.0, depth * random.uniform(0.25, 0.5), 0.0])
    eave = -inside * 0.04 - rise * 0.08
    sheets.patch(corner + eave, along, inside / 2 + rise - eave, tiles)
    sheets.patch(corner + inside - inside * -0.04 - rise * 0.08, along, -inside * 0.54 + rise * 1.08, tiles)
    gable = sheets.material(*finish(random, FACADES))
    for start in (corner, corner + along):
        sheets.patch(start, inside, inside / 2 + rise, gable, half=True)
