"""The purposes of rooms (living room, kitchen, ...) and their furniture, one row each in `PURPOSES`."""

from dataclasses import dataclass

import numpy as np

from marigold_jax.rooms.catalogue import Catalogue
from marigold_jax.rooms.interior import (
    Furnish,
    Home,
    along_wall,
    anywhere,
    bath,
    bed,
    ceiling_lamp,
    curtains,
    dining,
    floor_lamp,
    hung,
    kitchen_run,
    lounge,
    ornaments,
    picture,
    rug,
    someone,
    television,
    work,
)
from marigold_jax.rooms.shell import build_shell, draw_room


@dataclass(frozen=True)
class Purpose:
    """One purpose of a room.

    Attributes:
        share: the probability that a room has this purpose, up to normalisation.
        area: smallest and largest, in square metres.
        windows: smallest and largest number.
        rows: groups of furniture in the order in which they are added, each with its smallest and largest number.
        tiled: whether floor and walls are tiled.
    """

    share: float
    area: tuple[float, float]
    windows: tuple[int, int]
    rows: tuple[tuple[Furnish, int, int], ...]
    tiled: bool = False


storage = along_wall("shelf", "cabinet", "chest", "wardrobe")
books = along_wall("shelf")
corner_plant = along_wall("plant", corner=True, front=0.0)

PURPOSES = {
    "living": Purpose(
        0.26,
        (14.0, 45.0),
        (1, 3),
        (
            (lounge, 1, 1),
            (television, 0, 1),
            (along_wall("shelf", "cabinet", "chest", "piano", "shelf"), 0, 4),
            (dining, 0, 1),
            (along_wall("armchair", "sofa", "chair"), 0, 2),
            (corner_plant, 0, 3),
            (floor_lamp, 0, 2),
        ),
    ),
    "bedroom": Purpose(
        0.17,
        (9.0, 25.0),
        (1, 2),
        (
            (bed, 1, 1),
            (along_wall("wardrobe"), 0, 2),
            (along_wall("chest", "cabinet", "shelf"), 0, 2),
            (work, 0, 1),
            (along_wall("chair", "armchair"), 0, 1),
            (rug, 0, 1),
            (corner_plant, 0, 1),
            (floor_lamp, 0, 1),
        ),
    ),
    "kitchen": Purpose(
        0.13,
        (7.0, 25.0),
        (1, 2),
        ((kitchen_run, 1, 3), (dining, 0, 1), (storage, 0, 2), (along_wall("chair"), 0, 1), (corner_plant, 0, 1)),
        tiled=True,
    ),
    "office": Purpose(
        0.13,
        (8.0, 35.0),
        (1, 3),
        (
            (work, 1, 4),
            (books, 0, 3),
            (along_wall("cabinet", "chest"), 0, 2),
            (dining, 0, 1),
            (along_wall("chair", "armchair"), 0, 2),
            (corner_plant, 0, 2),
            (floor_lamp, 0, 1),
        ),
    ),
    "bath": Purpose(
        0.09,
        (4.9, 14.0),
        (0, 1),
        (
            (bath, 1, 1),
            (along_wall("washbasin"), 1, 2),
            (along_wall("toilet"), 1, 1),
            (along_wall("cabinet", "chest", "shelf"), 0, 1),
            (hung("mirror"), 0, 2),
        ),
        tiled=True,
    ),
    "dining": Purpose(
        0.08,
        (10.0, 30.0),
        (1, 3),
        ((dining, 1, 2), (along_wall("cabinet", "chest", "shelf"), 0, 3), (floor_lamp, 0, 1), (corner_plant, 0, 3)),
    ),
    "child": Purpose(
        0.06,
        (8.0, 18.0),
        (1, 2),
        ((bed, 1, 2), (work, 0, 1), (storage, 1, 3), (rug, 0, 1), (anywhere("floor_item", "ornament"), 1, 9)),
    ),
    "hall": Purpose(
        0.04,
        (5.0, 14.0),
        (0, 1),
        ((storage, 0, 3), (along_wall("chair", "low_table"), 0, 2), (hung("mirror"), 0, 2), (rug, 0, 1)),
    ),
    "storage": Purpose(
        0.04,
        (5.0, 20.0),
        (0, 1),
        ((storage, 2, 6), (along_wall("floor_item"), 1, 5), (anywhere("floor_item", "chair"), 0, 6)),
    ),
}
# Added to every room afterwards.
EVERYWHERE = (
    (along_wall("shelf", "chest", "cabinet", "chair", "plant", "floor_item", "low_table", "armchair", front=0.2), 0, 5),
    (curtains, 1, 1),
    (ceiling_lamp, 0, 2),
    (ornaments, 1, 1),
    (picture, 0, 5),
    (hung("picture", "mirror"), 0, 1),
    (anywhere("floor_item"), 0, 4),
    (anywhere("plant"), 0, 2),
    (someone, 0, 2),
    (anywhere("animal"), 0, 1),
)


def furnish(random: np.random.Generator, catalogue: Catalogue, purpose: str | None = None) -> Home:
    """Builds and furnishes a room of a purpose: a key of `PURPOSES`, or None for a random one."""
    names = list(PURPOSES)
    chances = np.array([PURPOSES[name].share for name in names])
    purpose = purpose or names[random.choice(len(names), p=chances / chances.sum())]
    row = PURPOSES[purpose]
    home = Home(random, catalogue, draw_room(random, row.area, row.windows), float(random.beta(1.8, 1.2)))
    home.extras += build_shell(random, home.room, row.tiled)
    for act, least, most in row.rows + EVERYWHERE:
        wanted = least + (most - least) * home.clutter * random.uniform(0.5, 1.3)
        for _ in range(min(int(wanted + random.random()), most)):
            act(home)
    return home
