"""Buildings as a street shows them: floors of recessed windows, doors, shops, balconies, roofs."""

import numpy as np

from marigold_jax.rooms.finishes import FACADES, FAR_FACADES, ROOFS, any_color, finish, pale
from marigold_jax.rooms.placement import Wall
from marigold_jax.rooms.scene import Material
from marigold_jax.rooms.sheets import Sheets


def house(random: np.random.Generator, sheets: Sheets, wall: Wall, depth: float, height: float, near: bool) -> None:
    """A building whose front is the wall: floors of recessed windows, a door, perhaps shops, balconies and a roof."""
    if not near or random.random() < 0.12:
        skin = sheets.material(*finish(random, FAR_FACADES))
        sheets.block(wall.box(wall.length / 2, wall.length, depth, -depth, 0.0, height), skin)
        _roof(random, sheets, wall, depth, height)
        return
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
    along = np.array([wall.direction[0], 0.0, wall.direction[1]])
    out = np.array([*wall.point(0.0, recess)]) - (wall.x, wall.z)
    inward = -np.array([out[0], 0.0, out[1]])
    origin = np.array([wall.x, 0.0, wall.z])

    def sheet(start: float, stop: float, low: float, high: float, material: int, back: bool = False) -> None:
        corner = origin + along * start + [0, low, 0] + (inward if back else 0)
        sheets.patch(corner, along * (stop - start), (0, high - low, 0), material, (start, low))

    for floor in range(floors):
        y = floor * storey
        face = base if floor == 0 else skin
        low, high, wide = y + sill, y + head, width
        if floor == 0 and shops:
            low, wide = y + 0.3, bay * 0.85
        sheet(0.0, wall.length, high, y + storey, face)
        for number in range(bays):
            left, right = number * bay, (number + 1) * bay
            is_door = floor == 0 and number == door
            start, stop = (left + right - wide) / 2, (left + right + wide) / 2
            bottom = 0.05 if is_door else low
            sheet(left, start, y, high, face)
            sheet(stop, right, y, high, face)
            sheet(start, stop, y, bottom, face)
            sheet(start, stop, bottom, high, trim if is_door else glass, back=True)
            corner = origin + along * start + [0, bottom, 0]
            rise, across = np.array([0, high - bottom, 0]), along * (stop - start)
            for place, a, b in (
                (corner, inward, rise),
                (corner + across, inward, rise),
                (corner, across, inward),
                (corner + rise, across, inward),
            ):
                sheets.patch(place, a, b, trim)
            if wide > 0.7 and not is_door:
                middle = (start + stop) / 2
                sheets.block(wall.box(middle, 0.06, 0.04, -recess, bottom, high), trim)
            if balconies and floor and number % 2 == 0:
                middle = (left + right) / 2
                sheets.block(wall.box(middle, bay * 0.9, 1.0, 0.0, y, y + 0.12), base)
                sheets.block(wall.box(middle, bay * 0.9, 0.04, 0.96, y + 0.12, y + 1.0), trim)
    # The other sides.
    inside = np.array([*wall.point(0.0, -depth)]) - (wall.x, wall.z)
    inside = np.array([inside[0], 0.0, inside[1]])
    tall = np.array([0.0, height, 0.0])
    sheets.patch(origin, inside, tall, skin)
    sheets.patch(origin + along * wall.length, inside, tall, skin)
    sheets.patch(origin + inside, along * wall.length, tall, skin)
    if random.random() < 0.4:
        sheets.block(wall.box(wall.length / 2, wall.length, 0.25, 0.0, height - 0.3, height), trim)
    _roof(random, sheets, wall, depth, height)


def _roof(random: np.random.Generator, sheets: Sheets, wall: Wall, depth: float, height: float) -> None:
    """Flat, or two slopes with gables."""
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
