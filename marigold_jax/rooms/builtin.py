"""Built-in furniture made of boxes and solids of revolution, which needs no download. A piece depends on its name."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np

from marigold_jax.rooms import furniture, meshes, outdoors
from marigold_jax.rooms.palette import Rng
from marigold_jax.rooms.scene import Mesh, Vector

CREATOR = "marigold_jax"
COUNT = 12  # of each kind
Maker = Callable[[Rng, Vector], Mesh]


@dataclass(frozen=True)
class Piece:
    """A piece of furniture; its attributes are those of `catalogue.Model`."""

    name: str
    kind: str
    size: Vector
    elevation: float
    top: float | None
    load: Callable[[], Mesh] = field(repr=False, compare=False)


# kind: maker, smallest and largest size (x, y, z), elevation, top as a share of the height.
PIECES: dict[str, tuple[Maker, Vector, Vector, float, float | None]] = {
    "bed": (furniture.bed, (0.9, 0.7, 1.9), (2.0, 1.2, 2.2), 0, None),
    "sofa": (furniture.sofa, (1.5, 0.7, 0.8), (2.6, 0.95, 1.0), 0, None),
    "armchair": (furniture.sofa, (0.7, 0.7, 0.7), (1.0, 1.0, 0.95), 0, None),
    "chair": (furniture.chair, (0.38, 0.75, 0.4), (0.55, 1.1, 0.6), 0, None),
    "table": (furniture.table, (0.8, 0.7, 0.7), (2.2, 0.78, 1.1), 0, 1),
    "low_table": (furniture.table, (0.6, 0.3, 0.45), (1.3, 0.5, 0.8), 0, 1),
    "desk": (furniture.desk, (1.0, 0.7, 0.55), (1.8, 0.78, 0.85), 0, 1),
    "shelf": (furniture.shelf, (0.5, 0.8, 0.25), (1.8, 2.1, 0.4), 0, 1),
    "cabinet": (furniture.cabinet, (0.5, 0.5, 0.35), (1.8, 1.2, 0.55), 0, 1),
    "wardrobe": (furniture.cabinet, (0.9, 1.8, 0.5), (2.4, 2.3, 0.65), 0, None),
    "chest": (furniture.cabinet, (0.4, 0.4, 0.38), (1.4, 1.0, 0.5), 0, 1),
    "wall_unit": (furniture.cabinet, (0.4, 0.5, 0.3), (1.2, 0.8, 0.4), 1.45, None),
    "kitchen_unit": (furniture.kitchen_unit, (0.55, 0.85, 0.58), (1.4, 0.95, 0.65), 0, 1),
    "bath": (furniture.bath, (1.5, 0.5, 0.7), (1.9, 0.65, 0.9), 0, None),
    "toilet": (furniture.toilet, (0.35, 0.7, 0.55), (0.45, 0.9, 0.75), 0, None),
    "washbasin": (furniture.washbasin, (0.45, 0.9, 0.4), (1.0, 1.05, 0.55), 0, None),
    "lamp": (furniture.lamp, (0.3, 1.3, 0.3), (0.55, 1.9, 0.55), 0, None),
    "table_lamp": (furniture.lamp, (0.18, 0.3, 0.18), (0.4, 0.65, 0.4), 0, None),
    "ceiling_lamp": (furniture.ceiling_lamp, (0.2, 0.3, 0.2), (0.6, 0.9, 0.6), 1.8, None),
    "plant": (furniture.plant, (0.2, 0.25, 0.2), (0.8, 1.5, 0.8), 0, None),
    "picture": (furniture.picture, (0.25, 0.25, 0.02), (1.4, 1.0, 0.05), 1.2, None),
    "mirror": (furniture.mirror, (0.4, 0.5, 0.02), (1.0, 1.5, 0.05), 0.9, None),
    "rug": (furniture.rug, (0.8, 0.008, 0.6), (3.0, 0.02, 2.2), 0, None),
    "curtain": (furniture.curtain, (1.2, 1.5, 0.08), (2.6, 2.4, 0.14), 0.1, None),
    "door": (furniture.door, (0.8, 1.98, 0.1), (1.1, 2.15, 0.16), 0, None),
    "window": (furniture.window, (0.7, 0.9, 0.08), (2.2, 1.6, 0.15), 0.9, None),
    "screen": (furniture.screen, (0.45, 0.35, 0.15), (1.3, 0.85, 0.3), 0, None),
    "ornament": (furniture.ornament, (0.08, 0.06, 0.08), (0.32, 0.4, 0.32), 0, None),
    "floor_item": (furniture.floor_item, (0.22, 0.22, 0.22), (0.5, 0.55, 0.5), 0, None),
    "piano": (furniture.piano, (1.4, 1.1, 0.55), (1.55, 1.3, 0.65), 0, 1),
    "person": (outdoors.person, (0.45, 1.5, 0.3), (0.6, 1.9, 0.4), 0, None),
    "animal": (outdoors.animal, (0.15, 0.25, 0.35), (0.35, 0.7, 0.9), 0, None),
    "vehicle": (outdoors.vehicle, (1.65, 1.35, 3.4), (2.1, 2.3, 5.6), 0, None),
    "tree": (outdoors.tree, (2.0, 3.0, 2.0), (6.0, 9.0, 6.0), 0, None),
    "street_item": (outdoors.street_item, (0.4, 0.7, 0.4), (1.8, 3.6, 0.7), 0, None),
    "building": (outdoors.building, (7.0, 5.0, 7.0), (16.0, 16.0, 12.0), 0, None),
}


@cache
def pieces() -> tuple[Piece, ...]:
    """All pieces: `COUNT` of each kind."""
    return tuple(_piece(kind, number) for kind in PIECES for number in range(COUNT))


def _piece(kind: str, number: int) -> Piece:
    name = f"built-in/{kind} {number:02d}"
    _, smallest, largest, elevation, share = PIECES[kind]
    size = np.random.default_rng([zlib.crc32(name.encode()), 0]).uniform(smallest, largest)
    size = tuple(float(side) for side in size)
    top = None if share is None or size[1] > 1.4 else share * size[1]
    return Piece(name, kind, size, float(elevation), top, partial(_load, name, kind, size))


@cache
def _load(name: str, kind: str, size: Vector) -> Mesh:
    mesh = PIECES[kind][0](np.random.default_rng([zlib.crc32(name.encode()), 1]), size)
    return meshes.fit(mesh, size)
