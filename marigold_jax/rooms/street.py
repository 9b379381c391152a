"""Streets, suburbs, squares and parks: a road along z, pavements, buildings on both sides, vehicles and people."""

from dataclasses import dataclass, field
from functools import lru_cache
from math import pi

import numpy as np

from marigold_jax.rooms import meshes
from marigold_jax.rooms.catalogue import Catalogue, Model
from marigold_jax.rooms.facades import house
from marigold_jax.rooms.finishes import (
    FACADES,
    FAR_FACADES,
    GROUNDS,
    LAWNS,
    LEAVES,
    PAVEMENTS,
    ROADS,
    brown,
    finish,
    pale,
)
from marigold_jax.rooms.placement import Box, Placed, Plan, Wall, at, pick, transform
from marigold_jax.rooms.scene import Instance, Material, Mesh
from marigold_jax.rooms.sheets import Sheets

AHEAD, BEHIND = -140.0, 60.0  # metres: the ends of the road
TREES = 10  # procedural variants
TRIANGLES = 450_000  # at most, of models in a scene; models beyond are left out, or replaced by procedural trees


@dataclass(frozen=True)
class Style:
    """A style of street. Lengths are in metres; a pair is the smallest and the largest value.

    Attributes:
        share: the probability of the style, up to normalisation.
        lanes: number of lanes of the road.
        pavement: width of the pavements.
        garden: width between pavement and facades.
        height, width: of buildings.
        gap: between buildings.
        trees, cars, people: per 100 m and side; cars are parked ones.
    """

    share: float
    lanes: tuple[int, int]
    pavement: tuple[float, float]
    garden: tuple[float, float]
    height: tuple[float, float]
    width: tuple[float, float]
    gap: tuple[float, float]
    trees: float
    cars: float
    people: float


STYLES = {
    "city": Style(0.4, (2, 4), (2.0, 5.0), (0.0, 0.0), (9.0, 26.0), (8.0, 24.0), (0.0, 0.0), 6.0, 14.0, 12.0),
    "town": Style(0.25, (1, 2), (1.2, 2.5), (0.0, 2.0), (5.0, 11.0), (6.0, 14.0), (0.0, 3.0), 4.0, 10.0, 6.0),
    "suburb": Style(0.2, (2, 2), (1.2, 2.0), (4.0, 9.0), (4.0, 8.0), (8.0, 15.0), (4.0, 12.0), 10.0, 6.0, 3.0),
    "square": Style(0.08, (0, 0), (9.0, 18.0), (0.0, 0.0), (9.0, 22.0), (10.0, 26.0), (0.0, 0.0), 10.0, 0.0, 25.0),
    "park": Style(0.07, (0, 0), (1.5, 2.5), (10.0, 25.0), (5.0, 14.0), (10.0, 24.0), (0.0, 20.0), 45.0, 0.0, 8.0),
}


@dataclass
class Town:
    """A street that is being built. Lengths are in metres.

    Attributes:
        random: draws everything.
        catalogue: of models.
        style: of the street.
        road: half its width.
        pavement, garden: their widths.
        kerb: height of the pavement above the road.
        plan: what has been placed.
        sheets: surfaces of ground and buildings.
        extras: instances that are not models of the catalogue.
        triangles: how many more triangles models may have.
    """

    random: np.random.Generator
    catalogue: Catalogue
    style: Style
    road: float
    pavement: float
    garden: float
    kerb: float
    plan: Plan
    sheets: Sheets = field(default_factory=Sheets)
    extras: list[Instance] = field(default_factory=list)
    triangles: int = TRIANGLES

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.random.random() < probability


def lay_out(random: np.random.Generator, catalogue: Catalogue, style: str | None = None) -> Town:
    """Builds a street with everything in it. `style` is a key of `STYLES`, or None for a random one."""
    names = list(STYLES)
    chances = np.array([STYLES[name].share for name in names])
    row = STYLES[style or names[random.choice(len(names), p=chances / chances.sum())]]
    lanes = int(random.integers(row.lanes[0], row.lanes[1] + 1))
    road = lanes * random.uniform(2.8, 3.4) / 2 + (random.uniform(2.0, 2.3) if row.cars else 0)
    plan = Plan((-60.0, AHEAD, 60.0, BEHIND))
    kerb = random.uniform(0.06, 0.15) if lanes else 0.0
    town = Town(random, catalogue, row, road, random.uniform(*row.pavement), random.uniform(*row.garden), kerb, plan)
    _ground(town, lanes)
    for side in (-1, 1):
        _buildings(town, side)
    _lamps(town)
    if lanes:
        _parked(town)
        _driving(town, lanes)
    _people(town)
    _street_items(town)
    _trees(town)
    town.extras.insert(0, town.sheets.instance())
    return town


# -------------------------------------------------------------------------------------------------------------- ground


def _ground(town: Town, lanes: int) -> None:
    """Adds the ground to the horizon, the road with its markings, and pavements with kerbs."""
    random, sheets = town.random, town.sheets
    length = BEHIND - AHEAD
    far = sheets.material(*finish(random, GROUNDS if town.garden > 1 else PAVEMENTS))
    pavement = sheets.material(*finish(random, PAVEMENTS if town.style.lanes[1] or town.garden < 1 else GROUNDS))
    sheets.patch((-400, -0.03, 400), (800, 0, 0), (0, 0, -800), far)
    outer = town.road + town.pavement
    if not lanes:
        sheets.block(Box(0.0, (AHEAD + BEHIND) / 2, outer, length / 2, 0.0, -0.02, 0.0), pavement)
        return
    road = sheets.material(*finish(random, ROADS, lighter=2.5))
    stone = sheets.material(Material(pale(random, 0.3, 0.6)))
    white = sheets.material(Material(pale(random, 0.5, 0.85)))
    sheets.patch((-town.road, 0, BEHIND), (2 * town.road, 0, 0), (0, 0, -length), road)
    for side in (-1, 1):
        middle = side * (town.road + 0.06 + town.pavement / 2)
        sheets.block(
            Box(middle, (AHEAD + BEHIND) / 2, town.pavement / 2 - 0.06, length / 2, 0.0, -0.02, town.kerb), pavement
        )
        sheets.block(
            Box(side * (town.road + 0.06), (AHEAD + BEHIND) / 2, 0.06, length / 2, 0.0, -0.02, town.kerb + 0.002), stone
        )
        if town.garden > 0.3:
            middle = side * (outer + 20)
            lawn = sheets.material(*finish(random, LAWNS if town.chance(0.7) else GROUNDS))
            sheets.block(Box(middle, (AHEAD + BEHIND) / 2, 20.0, length / 2, 0.0, -0.02, town.kerb), lawn)
    driven = town.road - (2.1 if town.style.cars else 0)
    for lane in range(1, lanes):
        x = -driven + 2 * driven * lane / lanes
        if lanes == 2 and town.chance(0.3):
            sheets.block(Box(x, (AHEAD + BEHIND) / 2, 0.06, length / 2, 0.0, 0.0, 0.004), white)
            continue
        dash, pause = random.uniform(1.5, 4.0), random.uniform(2.0, 6.0)
        for z in np.arange(AHEAD, BEHIND, dash + pause):
            sheets.patch((x - 0.06, 0.004, z + dash), (0.12, 0, 0), (0, 0, -dash), white)
    if town.chance(0.5):  # a zebra crossing
        z = random.uniform(-35, 0)
        for x in np.arange(-town.road + 0.3, town.road - 0.4, 1.0):
            sheets.patch((x, 0.005, z), (0.5, 0, 0), (0, 0, -3.0), white)


# ----------------------------------------------------------------------------------------------------------- buildings


def _buildings(town: Town, side: int) -> None:
    """Adds a row of buildings along one side (-1 or 1). Near ones have recessed windows, far ones painted ones."""
    random, style = town.random, town.style
    front = side * (town.road + town.pavement + town.garden)
    z = BEHIND - random.uniform(0, 10)
    while z > AHEAD + 5:
        width, height, depth = random.uniform(*style.width), random.uniform(*style.height), random.uniform(8, 14)
        setback = random.choice([0.0, 0.0, random.uniform(0, 1.5)]) + (random.uniform(0, 4) if town.garden > 2 else 0)
        x = front + side * setback
        # The inside of a wall is the street: walls run away from the viewer on the left, towards them on the right.
        wall = Wall(x, z, (0.0, -1.0), width) if side < 0 else Wall(x, z - width, (0.0, 1.0), width)
        middle = (x + side * depth / 2, z - width / 2)
        town.plan.taken.append(Box(*middle, depth / 2, width / 2, 0.0))
        if style.garden[0] > 2 and (model := _model(town, "building")) and town.chance(0.35):
            low = town.kerb if town.style.lanes[1] else 0.0
            town.plan.placed.append(at(random, model, *middle, wall.angle, low))
        else:
            near = -75 < z - width / 2 < 40
            house(random, town.sheets, wall, depth, height, near)
        if style.garden[0] > 2 and town.chance(0.6):
            _hedge(town, side, z, width)
        z -= width + random.uniform(*style.gap)
    end = town.sheets.material(*finish(random, FAR_FACADES))
    if side > 0 and town.chance(0.5):  # something closes the view
        high = random.uniform(*style.height)
        town.sheets.block(Box(random.uniform(-10, 10), AHEAD - 12, random.uniform(20, 60), 8.0, 0.0, -0.1, high), end)


def _hedge(town: Town, side: int, z: float, width: float) -> None:
    """Adds a hedge along the front of a garden, with a gap for the path."""
    random = town.random
    material = town.sheets.material(*finish(random, LEAVES if town.chance(0.7) else FACADES, lighter=1.5))
    x, high = side * (town.road + town.pavement + 0.4), random.uniform(0.5, 1.8)
    gap = random.uniform(0.3, 0.7) * width
    for start, stop in ((0.0, gap - 0.8), (gap + 0.8, width)):
        box = Box(x, z - (start + stop) / 2, 0.3, (stop - start) / 2, 0.0, 0.0, high)
        town.sheets.block(box, material)
        town.plan.taken.append(box)


# ------------------------------------------------------------------------------------------- people, vehicles, objects


def _model(town: Town, kind: str, fits=lambda _: True) -> Model | None:
    return pick(town.random, town.catalogue.models(kind), fits)


def _put(town: Town, placed: Placed, gap: float = 0.1) -> bool:
    """Adds an object if its place is free and enough triangles are left; returns whether it was added."""
    return town.plan.free(placed.box, gap) and _afford(town, placed) and bool(town.plan.put(placed))


def _afford(town: Town, placed: Placed) -> bool:
    """Subtracts a model's triangles from those left. False for a model that has more than a tenth of them."""
    price = len(placed.model.load().faces)
    if price > town.triangles / 10:
        return False
    town.triangles -= price
    return True


def _is_car(model: Model) -> bool:
    return 2.2 < model.size[2] < 7 and model.size[1] > 1.0 and model.size[2] > model.size[0]


def _drives(model: Model) -> bool:
    return _is_car(model) or (1.5 < model.size[2] < 15 and model.size[1] > 1.0 and model.size[2] > model.size[0])


def _is_bicycle(model: Model) -> bool:
    return model.size[2] < 2.2 and 0.7 < model.size[1] < 1.4 and model.size[0] < model.size[2]


def _parked(town: Town) -> None:
    """Adds parked cars at the kerb, facing in the direction of traffic, and a few bicycles on the pavement."""
    random = town.random
    fleet = [model for _ in range(4) if (model := _model(town, "vehicle", _is_car))]
    for side in (-1, 1):
        z = BEHIND - random.uniform(0, 10)
        busy = town.style.cars / 100 * random.uniform(0.2, 1.6)
        while fleet and busy and z > AHEAD + 20:
            model = fleet[random.integers(len(fleet))]
            angle = (pi if side > 0 else 0.0) + (pi if town.chance(0.1) else 0.0) + random.normal() * 0.02
            x = side * (town.road - model.size[0] / 2 - random.uniform(0.08, 0.3))
            _put(town, at(random, model, float(x), float(z - model.size[2] / 2), float(angle)))
            z -= model.size[2] + random.uniform(0.5, 1.6) + random.exponential(max(1 / busy - 5.5, 0.1))
        for _ in range(random.poisson(1.5)):
            bike = _model(town, "vehicle", _is_bicycle)
            if bike:
                x = side * (town.road + random.uniform(0.5, max(0.6, town.pavement - 0.4)))
                angle = random.choice([0, pi / 2, pi]) + random.normal() * 0.1
                _put(town, at(random, bike, float(x), float(random.uniform(-40, 20)), float(angle), town.kerb))


def _driving(town: Town, lanes: int) -> None:
    """Adds moving vehicles. Traffic keeps to the right: on the right, it moves towards -z."""
    random = town.random
    driven = town.road - (2.1 if town.style.cars else 0)
    fleet = [model for _ in range(4) if (model := _model(town, "vehicle", _drives))]
    for lane in range(lanes):
        x = -driven + 2 * driven * (lane + 0.5) / lanes
        away = x > 0.1 or (lanes == 1 and random.random() < 0.5)
        z = BEHIND - random.uniform(0, 40)
        while fleet and z > AHEAD:
            model = fleet[random.integers(len(fleet))]
            angle = (pi if away else 0.0) + random.normal() * 0.03
            _put(town, at(random, model, float(x + random.normal() * 0.1), float(z), float(angle)))
            z -= model.size[2] + 3 + random.exponential(random.choice([8.0, 30.0]))


def _people(town: Town) -> None:
    """Adds people, on the pavements or, in squares and parks, anywhere; some with an animal."""
    random = town.random
    count = random.poisson(town.style.people * random.uniform(0.1, 1.2))
    crowd = [
        model for _ in range(6) if (model := _model(town, "person", lambda m: m.size[1] > 1.4 and m.size[2] < 0.8))
    ]
    for _ in range(count if crowd else 0):
        model = crowd[random.integers(len(crowd))]
        side = random.choice([-1, 1])
        inner = 0.0 if town.kerb == 0 else town.road + 0.3
        x = side * random.uniform(inner, town.road + town.pavement - 0.2)
        z = random.uniform(-45, 25)
        angle = random.choice([0, pi]) + random.normal() * 0.5
        scale = float(random.uniform(0.93, 1.05))
        placed = at(random, model, float(x), float(z), float(angle), town.kerb, scale)
        if _put(town, placed) and town.chance(0.08) and (pet := _model(town, "animal")):
            _put(town, at(random, pet, float(x + 0.8), float(z), float(angle), town.kerb))


def _lamps(town: Town) -> None:
    """Adds street lamps at equal distances along the kerb."""
    random = town.random
    model = _model(town, "street_item", lambda m: m.size[1] > 2.2 and max(m.size[0], m.size[2]) < 1.6)
    if model is None or town.chance(0.25):
        return
    spacing = random.uniform(14, 28)
    for side in (-1, 1) if town.chance(0.6) else (1,):
        x = side * (town.road + 0.45)
        for z in np.arange(BEHIND - random.uniform(0, 10), AHEAD + 30, -spacing):
            # The arm of a lamp, if it has one, extends over the road.
            _put(town, at(random, model, float(x), float(z), -side * pi / 2, town.kerb), 0.02)


def _street_items(town: Town) -> None:
    """Adds benches, bins, hydrants and signs along the kerb or the facades, facing the pavement."""
    random = town.random
    for _ in range(random.poisson(9)):
        model = _model(town, "street_item", lambda m: m.size[1] < 2.2 and max(m.size) < 3)
        if model is None:
            return
        side = random.choice([-1, 1])
        inside = town.road + 0.2 + model.size[2] / 2
        outside = town.road + town.pavement - 0.1 - model.size[2] / 2
        at_kerb = town.chance(0.5)
        x = side * (inside if at_kerb else max(inside, outside))
        angle = side * pi / 2 * (1 if at_kerb else -1)
        _put(town, at(random, model, float(x), float(random.uniform(-45, 25)), float(angle), town.kerb))


def _trees(town: Town) -> None:
    """Adds trees in a row along the kerb, or scattered in the gardens."""
    random, style = town.random, town.style
    in_row = town.garden < 3 or town.chance(0.3)
    if in_row and town.pavement < 1.8:
        return
    spacing = random.uniform(6, 16)
    row = np.arange(BEHIND - random.uniform(0, spacing), AHEAD + 20, -spacing)
    kinds = [_tree(town) for _ in range(2)]
    for side in (-1, 1):
        if town.chance(0.3) and in_row:
            continue
        count = random.poisson(style.trees * 1.5)
        places = row if in_row else random.uniform(-90, 40, count)
        for z in places:
            mesh, model = kinds[random.integers(2)]
            x = side * (town.road + (0.8 if in_row else town.pavement + random.uniform(1.5, max(town.garden - 1, 2))))
            # Only trunks must not collide; crowns may overlap.
            trunk = Box(float(x), float(z), 0.3, 0.3, 0.0, 0.0, 2.0)
            if not town.plan.free(trunk, 0.1):
                continue
            town.plan.taken.append(trunk)
            scale = random.uniform(0.6, 1.15)
            angle = random.uniform(-pi, pi)
            if model is not None:
                placed = at(random, model, float(x), float(z), float(angle), town.kerb, float(scale))
                if _afford(town, placed):
                    town.plan.placed.append(placed)
                    continue
                mesh = _grow(int(random.integers(TREES)))
            town.extras.append(Instance(mesh, transform(x, town.kerb, z, angle, (scale, scale, scale))))


def _tree(town: Town) -> tuple[Mesh | None, Model | None]:
    """A tree of the catalogue, as a model, or a procedural one, as a mesh."""
    model = _model(town, "tree", lambda m: m.size[1] < 13)
    if model is not None and town.chance(0.5):
        return None, model
    return _grow(int(town.random.integers(TREES))), None


@lru_cache(maxsize=TREES)
def _grow(variant: int) -> Mesh:
    """A procedural tree, 3 to 9 metres high: a trunk and a crown of bumpy spheres."""
    random = np.random.default_rng([7, variant])
    height = random.uniform(3.0, 9.0)
    radius = height * random.uniform(0.18, 0.32)
    bark = Material(brown(random))
    leaves, tile = finish(random, LEAVES, lighter=2.5)
    parts = [meshes.cylinder(height * 0.025, height * 0.6, bark, segments=8)]
    for _ in range(random.integers(4, 9)):
        ball = meshes.sphere(radius * random.uniform(0.5, 0.8), leaves, segments=14, tile=tile)
        # Noise that is equal for vertices at the same position.
        waves = np.sin(ball.vertices @ random.normal(size=(3, 6)) * 5 / radius).sum(axis=1, keepdims=True)
        lumpy = ball.vertices * (1 + 0.05 * waves).astype(np.float32)
        ball = Mesh(lumpy.astype(np.float32), ball.normals, ball.uv, ball.faces, ball.material, ball.materials)
        x, z = random.normal(size=2) * radius * 0.45
        y = height * random.uniform(0.42, 0.75)
        parts.append(meshes.transform(ball, meshes.translation(x, y, z)))
    return meshes.merge(parts)
