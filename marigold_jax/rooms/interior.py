"""Furnishes rooms: a bed with night tables, a sofa with a low table, a desk, a row of kitchen units, and so on.

A `Furnish` adds one such group to a room, if there is space for it. `purposes` lists the groups of each type of room.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import pi

import numpy as np

from marigold_jax.rooms.catalogue import Catalogue, Model
from marigold_jax.rooms.finishes import PICTURES, RUGS, any_color, finish
from marigold_jax.rooms.placement import Box, Placed, against_wall, at, beside, facing, on_floor, on_top, overlap, pick
from marigold_jax.rooms.scene import Instance, Material
from marigold_jax.rooms.sheets import Sheets
from marigold_jax.rooms.shell import Room

EYE_HEIGHT = 1.55  # metres: the height of the middle of pictures


@dataclass
class Home:
    """A room that is being furnished.

    Attributes:
        random: draws everything.
        catalogue: of models.
        room: walls, openings, and the plan of what has been placed.
        clutter: 0 (nearly empty) to 1 (crowded).
        extras: instances that are not models of the catalogue.
        lights: (kind of lamp, position) of each lamp.
    """

    random: np.random.Generator
    catalogue: Catalogue
    room: Room
    clutter: float
    extras: list[Instance] = field(default_factory=list)
    lights: list[tuple[str, tuple[float, float, float]]] = field(default_factory=list)

    def pick(self, *kinds: str, fits: Callable[[Model], bool] = lambda _: True) -> Model | None:
        """A random model of one of the kinds (each equally likely) that fits below the ceiling, or None."""
        kinds = [kind for kind in kinds if self.catalogue.models(kind)]
        if not kinds:
            return None
        kind = kinds[self.random.integers(len(kinds))]
        tallest = self.room.height - 0.03
        return pick(self.random, self.catalogue.models(kind), lambda model: model.size[1] < tallest and fits(model))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.random.random() < probability


Furnish = Callable[[Home], object]

# -------------------------------------------------------------------------------------------------------------- groups


def along_wall(*kinds: str, front: float = 0.35, corner: bool = False) -> Furnish:
    """Adds one object with its back to a wall."""

    def furnish(home: Home) -> None:
        if model := home.pick(*kinds):
            against_wall(home.room.plan, home.random, model, front=front, corner=corner)

    return furnish


def anywhere(*kinds: str, middle: float = 0.0) -> Furnish:
    """Adds one object somewhere on the floor."""

    def furnish(home: Home) -> None:
        if model := home.pick(*kinds, fits=_stands):
            on_floor(home.room.plan, home.random, model, middle=middle)

    return furnish


def hung(*kinds: str) -> Furnish:
    """Adds one object on a wall, at eye height or at the elevation in the catalogue."""

    def furnish(home: Home) -> None:
        model = home.pick(*kinds)
        if model is None:
            return
        low = model.elevation or max(EYE_HEIGHT + home.random.normal() * 0.1 - model.size[1] / 2, 0.0)
        if low + model.size[1] < home.room.height:
            against_wall(home.room.plan, home.random, model, low=float(low), gap=0.002)

    return furnish


def _stands(model: Model) -> bool:
    """Whether a model stands. Models of people may sit or lie, and would then need a chair or a bed."""
    return model.kind != "person" or (model.size[1] > 1.4 and model.size[2] < 0.8)


def picture(home: Home) -> None:
    """Adds one to three framed pictures in a row on a wall."""
    random, plan = home.random, home.room.plan
    width, height = random.uniform(0.2, 1.2), random.uniform(0.2, 0.9)
    walls = [wall for wall in plan.walls if wall.length > width + 0.2]
    if not walls:
        return
    wall = walls[random.integers(len(walls))]
    along = random.uniform(width / 2 + 0.1, wall.length - width / 2 - 0.1)
    low = EYE_HEIGHT + random.normal() * 0.12 - height / 2
    for _ in range(random.integers(1, 4)):
        box = wall.box(along, width, 0.03, 0.001, float(low), float(low + height))
        if low + height > home.room.height - 0.05 or along + width / 2 > wall.length or not plan.free(box, 0.02):
            return
        plan.taken.append(box)
        home.extras.append(_framed(random, box, wall.box(along, width, 0.02, 0.031)))
        along += width + random.uniform(0.1, 0.4)


def _framed(random: np.random.Generator, box: Box, front: Box) -> Instance:
    """A block with a picture on its front, inside a margin."""
    sheets = Sheets()
    frame = sheets.material(Material(any_color(random), gloss=0.3))
    image, _ = finish(random, PICTURES)
    margin = random.uniform(0.01, 0.06)
    width, height = 2 * box.half_width - 2 * margin, box.high - box.low - 2 * margin
    sheets.block(box, frame)
    x, z = front.point(-width / 2, -front.half_depth)
    end_x, end_z = front.point(width / 2, -front.half_depth)
    # One repeat of the texture covers the frame, whatever its proportions.
    canvas = sheets.material(image, max(width, height))
    sheets.patch((x, box.low + margin, z), (end_x - x, 0, end_z - z), (0, height, 0), canvas)
    return sheets.instance()


def rug(home: Home, box: Box | None = None) -> None:
    """Adds a rug below a box, or at a random place. Objects can stand on it."""
    random, (x0, z0, x1, z1) = home.random, home.room.plan.bounds
    width, depth = random.uniform(1.2, min(3.5, x1 - x0 - 0.4)), random.uniform(1.0, min(3.0, z1 - z0 - 0.4))
    if box is None:
        x = random.uniform(x0 + width / 2 + 0.1, x1 - width / 2 - 0.1)
        z = random.uniform(z0 + depth / 2 + 0.1, z1 - depth / 2 - 0.1)
        angle = 0.0
    else:
        x, z, angle = box.x, box.z, box.angle
        width, depth = max(width, 2 * box.half_width + 0.3), max(depth, 2 * box.half_depth + 0.3)
    area = Box(x, z, width / 2, depth / 2, angle, 0.0, 0.008)
    inside = all(x0 < x < x1 and z0 < z < z1 for x, z in area.corners())
    notched = any(other.low < -1 and abs(other.x - x) < other.half_width + width / 2 for other in home.room.plan.taken)
    if not inside or notched:
        return
    sheets = Sheets()
    material, tile = finish(random, RUGS)
    # The texture is repeated, or covers the rug once.
    top = sheets.material(material, tile if random.random() < 0.3 else max(width, depth))
    sheets.block(area, top)
    home.extras.append(sheets.instance())


def bed(home: Home) -> None:
    """Adds a bed with its head to a wall, and night tables with lamps beside it."""
    model = home.pick("bed")
    placed = model and against_wall(home.room.plan, home.random, model, front=0.4, corner=home.chance(0.3))
    if not placed:
        return
    for side in (-1, 1):
        small = home.pick("chest", "low_table", fits=lambda m: m.size[0] < 0.65 and m.size[1] < 0.75)
        if small and home.chance(0.8):
            night_table = beside(home.room.plan, home.random, small, placed.box, side)
            lamp = home.pick("table_lamp")
            if night_table and lamp and home.chance(0.6):
                _light(home, on_top(home.room.plan, home.random, lamp, night_table, where=(0.0, 0.0)))


def lounge(home: Home) -> None:
    """Adds a sofa with a low table, perhaps on a rug, and armchairs around the table."""
    plan, random = home.room.plan, home.random
    model = home.pick("sofa")
    if model is None:
        return
    sofa = None
    if home.chance(0.7):
        sofa = against_wall(plan, random, model, front=0.7)
    sofa = sofa or on_floor(plan, random, model, gap=0.3, middle=0.6, aligned=True)
    if sofa is None:
        return
    table = home.pick("low_table", fits=lambda m: m.size[1] < 0.6)
    table = table and facing(plan, random, table, sofa.box, random.uniform(-0.2, 0.2), random.uniform(0.3, 0.5))
    if table is None:
        return
    if home.chance(0.6):
        rug(home, table.box.grown(0.5))
    for side in (-pi / 2, pi / 2, pi):
        chair = home.pick("armchair", "armchair", "chair", "sofa", fits=lambda m: m.size[0] < 1.3)
        if chair and home.chance(0.25 + 0.4 * home.clutter):
            facing(plan, random, chair, table.box, 0.0, random.uniform(0.25, 0.6), side, 0.15)


def dining(home: Home) -> None:
    """Adds a table with chairs around it."""
    plan, random = home.room.plan, home.random
    model = home.pick("table", fits=lambda m: m.size[1] < 1.0)
    if model is None:
        return
    table = on_floor(plan, random, model, gap=0.6, middle=0.75, aligned=True)
    table = table or on_floor(plan, random, model, gap=0.1, middle=0.2, aligned=True)
    if table is None:
        return
    if home.chance(0.25):
        rug(home, table.box.grown(0.6))
    if home.chance(0.5):
        ceiling_lamp(home, (table.box.x, table.box.z))
    seats(home, table)


def seats(home: Home, table: Placed) -> None:
    """Adds chairs of one model around a table."""
    chair = home.pick("chair", fits=lambda m: 0.6 < m.size[1] < 1.2 and m.size[0] < 0.75)
    if chair is None:
        return
    pulled = home.random.uniform(0.02, 0.3)
    for side in range(4):
        length = 2 * (table.box.half_depth if side % 2 else table.box.half_width)
        places = int(length / (chair.size[0] + 0.12))
        for place in range(max(places, 1)):
            right = (place + 0.5) * length / max(places, 1) - length / 2
            if home.chance(0.8):
                gap = pulled + home.random.uniform(0, 0.15)
                facing(home.room.plan, home.random, chair, table.box, right, gap, side * pi / 2, 0.1)


def work(home: Home) -> None:
    """Adds a desk, a chair that faces it, and a screen and a lamp on it."""
    plan, random = home.room.plan, home.random
    model = home.pick("desk")
    desk = model and (
        against_wall(plan, random, model, front=0.8)
        if home.chance(0.8)
        else on_floor(plan, random, model, gap=0.5, aligned=True)
    )
    if not desk:
        return
    chair = home.pick("chair", "chair", "armchair", fits=lambda m: m.size[0] < 0.8 and m.size[1] < 1.25)
    if chair:
        facing(plan, random, chair, desk.box, random.uniform(-0.2, 0.2), random.uniform(0.05, 0.4), 0.0, 0.4)
    if screen := home.pick("screen", fits=lambda m: m.size[0] < 0.8):
        on_top(plan, random, screen, desk, where=(random.uniform(-0.5, 0.5), random.uniform(-0.8, 0)), turn=0.25)
    if (lamp := home.pick("table_lamp")) and home.chance(0.5):
        _light(home, on_top(plan, random, lamp, desk, where=(random.choice([-0.9, 0.9]), -0.7)))


def television(home: Home) -> None:
    """Adds a screen on a low cabinet at a wall."""
    stand = home.pick("cabinet", "chest", "low_table", fits=lambda m: m.size[1] < 0.8 and m.size[0] > 0.6)
    stand = stand and against_wall(home.room.plan, home.random, stand, front=0.6)
    if stand and (screen := home.pick("screen", fits=lambda m: m.size[0] < stand.model.size[0])):
        on_top(home.room.plan, home.random, screen, stand, where=(0.0, 0.0), turn=0.1)


def kitchen_run(home: Home) -> None:
    """Adds kitchen units side by side along a wall, and wall units above them."""
    plan, random = home.room.plan, home.random
    wall = plan.walls[random.integers(len(plan.walls))]
    length = min(wall.length, random.uniform(1.5, 5.0))
    for kind, share in (("kitchen_unit", 1.0), ("wall_unit", 0.75)):
        along, misses = 0.03, 0
        while along < length and misses < 14:
            model = home.pick(kind, fits=lambda m: m.size[2] < 0.9)
            if model is None:
                break
            low = 0.0 if kind == "kitchen_unit" else max(model.elevation, 1.4)
            middle = along + model.size[0] / 2
            box = wall.box(middle, model.size[0], model.size[2], 0.02, low, low + model.size[1])
            if along + model.size[0] > wall.length - 0.02 or box.high > home.room.height or not plan.free(box, 0.0):
                along, misses = along + 0.12, misses + 1
                continue
            if home.chance(share):
                plan.put(at(random, model, box.x, box.z, box.angle, float(low)))
            along += model.size[0] + 0.004


def bath(home: Home) -> None:
    """Adds a bath tub along a wall."""
    if model := home.pick("bath"):
        against_wall(home.room.plan, home.random, model, corner=home.chance(0.7), front=0.2)


def curtains(home: Home) -> None:
    """Adds curtains on both sides of some windows."""
    random = home.random
    for wall, openings in zip(home.room.plan.walls, home.room.openings, strict=True):
        for opening in openings:
            if opening.kind != "window" or not home.chance(0.45):
                continue
            model = home.pick("curtain")
            if model is None:
                return
            width = (opening.stop - opening.start) * random.uniform(0.2, 0.4)
            high = min(opening.high + 0.12, home.room.height - 0.02)
            low = 0.03 if home.chance(0.6) else max(opening.low - 0.15, 0.03)
            scale = (width / model.size[0], (high - low) / model.size[1], 0.1 / model.size[2])
            for middle in (opening.start, opening.stop):
                middle = float(np.clip(middle, width / 2 + 0.01, wall.length - width / 2 - 0.01))
                box = wall.box(middle, width, 0.1, 0.03, low, high)
                if home.room.plan.free(box, 0.0) or not _blocked(home, box):
                    home.room.plan.put(at(random, model, box.x, box.z, box.angle, float(low), scale))


def _blocked(home: Home, box: Box) -> bool:
    """Whether furniture is in the way, and not only the space that is kept free in front of a window."""
    return any(overlap(box, placed.box) for placed in home.room.plan.placed)


def ceiling_lamp(home: Home, where: tuple[float, float] | None = None) -> None:
    """Adds a lamp that hangs from the ceiling, at `where` = (x, z), or near the middle of the room."""
    x0, z0, x1, z1 = home.room.plan.bounds
    x, z = where or (home.random.uniform(0.3, 0.7, 2) * (x1 - x0, z1 - z0) + (x0, z0))
    model = home.pick("ceiling_lamp", fits=lambda m: m.size[1] < home.room.height - (1.3 if where else 1.9))
    if model is None:
        return
    low = home.room.height - model.size[1]
    placed = at(home.random, model, float(x), float(z), 0.0, float(low))
    if home.room.plan.free(placed.box, 0.05):
        _light(home, home.room.plan.put(placed))


def floor_lamp(home: Home) -> None:
    """Adds a standing lamp at a wall."""
    if model := home.pick("lamp"):
        _light(home, against_wall(home.room.plan, home.random, model, gap=0.1, corner=home.chance(0.5)))


def _light(home: Home, placed: Placed | None) -> None:
    """Records the position of a lamp's light: below a hanging lamp, above any other, outside its own shade."""
    if placed is None:
        return
    box = placed.box
    y = box.low - 0.08 if placed.model.kind == "ceiling_lamp" else box.high + 0.08
    home.lights.append((placed.model.kind, (box.x, y, box.z)))


def someone(home: Home) -> None:
    """Adds a person to some rooms."""
    if home.chance(0.3):
        anywhere("person")(home)


# Kind of furniture: the kinds of objects on it, and how many per square metre in a crowded room.
ON_TOP = {
    "table": (("ornament", 10), ("plant", 1), ("table_lamp", 0.3)),
    "low_table": (("ornament", 10), ("plant", 1)),
    "desk": (("ornament", 10), ("plant", 1), ("screen", 0.7)),
    "chest": (("ornament", 9), ("plant", 2), ("table_lamp", 1.5), ("screen", 0.7)),
    "cabinet": (("ornament", 9), ("plant", 2), ("table_lamp", 1), ("screen", 0.5)),
    "shelf": (("ornament", 10), ("plant", 2)),
    "kitchen_unit": (("ornament", 12), ("plant", 1)),
    "wardrobe": (("ornament", 3), ("floor_item", 2)),
    "piano": (("ornament", 5), ("plant", 2), ("table_lamp", 1)),
    "washbasin": (("ornament", 6),),
}


def ornaments(home: Home) -> None:
    """Puts objects on the furniture of a room."""
    for support in list(home.room.plan.placed):
        decorate(home, support, home.clutter)


def decorate(home: Home, support: Placed, clutter: float) -> None:
    """Puts objects on one piece of furniture; `clutter` (0 to 1) decides how many."""
    if support.model.top is None:
        return
    area = 4 * support.box.half_width * support.box.half_depth
    for kind, count in ON_TOP.get(support.model.kind, ()):
        for _ in range(min(int(home.random.poisson(count * area * clutter)), 14)):
            model = home.pick(kind, fits=lambda m: max(m.size) < 0.75 and m.size[1] + support.box.high < 3.0)
            if model is None:
                continue
            placed = on_top(home.room.plan, home.random, model, support, turn=0.5 if kind == "screen" else pi)
            if kind == "table_lamp":
                _light(home, placed)
