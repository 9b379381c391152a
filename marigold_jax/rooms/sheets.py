"""Rectangles and blocks, collected into one mesh: the walls, floors and facades of rooms and streets."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from marigold_jax.rooms.placement import Box
from marigold_jax.rooms.scene import Instance, Material, Mesh

Numbers = tuple[float | int, float | int, float | int] | Float[np.ndarray, "3"]


@dataclass(frozen=True, eq=False)
class Patch:
    """A parallelogram, in metres.

    Attributes:
        corner: its lower left corner, seen from the front.
        right, up: its sides.
        material: number of its material in `Sheets`.
        origin: where its texture begins.
        half: whether it is only the triangle between `right` and `up`.
    """

    corner: tuple[float, float, float]
    right: tuple[float, float, float]
    up: tuple[float, float, float]
    material: int
    origin: tuple[float, float] = (0.0, 0.0)
    half: bool = False


@dataclass
class Sheets:
    """Collects parallelograms for one mesh. `tiles` are the metres that one repeat of each material's texture spans."""

    materials: list[Material] = field(default_factory=list)
    tiles: list[float] = field(default_factory=list)
    patches: list[Patch] = field(default_factory=list)

    def material(self, material: Material, tile: float = 1.0) -> int:
        """Adds a material and returns its number."""
        self.materials.append(material)
        self.tiles.append(tile)
        return len(self.materials) - 1

    def patch(
        self, corner: Numbers, right: Numbers, up: Numbers, material: int, origin=(0.0, 0.0), half: bool = False
    ) -> None:
        """Adds a parallelogram; see `Patch`."""
        corner, right, up = (tuple(float(value) for value in vector) for vector in (corner, right, up))
        self.patches.append(Patch(corner, right, up, material, origin, half))

    def block(self, box: Box, material: int) -> None:
        """Adds the six faces of a box."""
        across = np.subtract(box.point(1.0, 0.0), (box.x, box.z)) * 2 * box.half_width
        away = np.subtract(box.point(0.0, 1.0), (box.x, box.z)) * 2 * box.half_depth
        x, z = box.point(-box.half_width, -box.half_depth)
        base = np.array([x, box.low, z])
        right, up = np.array([across[0], 0, across[1]]), np.array([0, box.high - box.low, 0])
        front = np.array([away[0], 0, away[1]])
        for corner, a, b in (
            (base + front, right, up),
            (base + right, -right, up),
            (base, front, up),
            (base + right + front, -front, up),
            (base + front + up, right, -front),
            (base, right, front),
        ):
            self.patch(corner, a, b, material)

    def mesh(self) -> Mesh:
        """All patches as one mesh in world coordinates."""
        count = len(self.patches)
        corner = np.array([patch.corner for patch in self.patches], np.float32)
        right = np.array([patch.right for patch in self.patches], np.float32)
        up = np.array([patch.up for patch in self.patches], np.float32)
        number = np.array([patch.material for patch in self.patches], np.int32)
        normal = np.cross(right, up)
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
        tile = np.array(self.tiles, np.float32)[number][:, None]
        origin = np.array([patch.origin for patch in self.patches], np.float32)
        width, height = np.linalg.norm(right, axis=1), np.linalg.norm(up, axis=1)
        size = np.stack([width, height], axis=1)
        ones = np.float32([[0, 0], [1, 0], [1, 1], [0, 1]])
        vertices = corner[:, None] + ones[None, :, :1] * right[:, None] + ones[None, :, 1:] * up[:, None]
        uv = (origin[:, None] + ones[None] * size[:, None]) / tile[:, None]
        first = 4 * np.arange(count, dtype=np.int32)[:, None, None]
        half = np.array([patch.half for patch in self.patches])
        triangles = np.where(half[:, None, None], np.int32([[0, 1, 3], [0, 0, 0]]), np.int32([[0, 1, 2], [0, 2, 3]]))
        faces = (first + triangles).reshape(-1, 3)
        kept = np.stack([np.ones(count, bool), ~half], axis=1).ravel()
        return Mesh(
            vertices=vertices.reshape(-1, 3).astype(np.float32),
            normals=np.repeat(normal, 4, axis=0).astype(np.float32),
            uv=uv.reshape(-1, 2).astype(np.float32),
            faces=faces[kept].astype(np.int32),
            material=np.repeat(number, 2)[kept].astype(np.int32),
            materials=tuple(self.materials),
        )

    def instance(self) -> Instance:
        """The mesh as an instance, which is in world coordinates already."""
        return Instance(self.mesh(), np.eye(4, dtype=np.float32))
