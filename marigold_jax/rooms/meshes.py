"""Basic shapes and transforms. Shapes stand on y = 0, centred in x and z, front towards +z; lengths are in metres.

Texture coordinates are in metres, divided by `tile`, the side of one repeat of the texture. A brick therefore has the
same size on every wall.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Float32, Real

from marigold_jax.rooms.scene import Material, Mesh

Matrix = Float32[np.ndarray, "4 4"]
Number = float | int
Triple = tuple[Number, Number, Number]

# ----------------------------------------------------------------------------------------------------------- transforms


def translation(x: Number, y: Number, z: Number) -> Matrix:
    """A translation in metres."""
    matrix = np.eye(4, dtype=np.float32)
    matrix[:3, 3] = x, y, z
    return matrix


def scaling(x: Number, y: Number, z: Number) -> Matrix:
    """A scaling along the axes."""
    return np.diag([x, y, z, 1]).astype(np.float32)


def rotation(axis: str, angle: Number) -> Matrix:
    """A rotation about "x", "y" or "z" by `angle` radians, counter-clockwise as seen from the tip of the axis."""
    cosine, sine = np.cos(angle), np.sin(angle)
    first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(4, dtype=np.float32)
    matrix[first, first] = matrix[second, second] = cosine
    matrix[first, second], matrix[second, first] = -sine, sine
    return matrix


def transform(mesh: Mesh, matrix: Float[np.ndarray, "4 4"]) -> Mesh:
    """The mesh after an affine map."""
    linear = matrix[:3, :3].astype(np.float64)
    vertices = turn(mesh.vertices, linear.astype(np.float32)) + matrix[:3, 3].astype(np.float32)
    normals = unit(turn(mesh.normals, np.linalg.inv(linear).T.astype(np.float32)))
    return Mesh(vertices, normals, mesh.uv, mesh.faces, mesh.material, mesh.materials)


def turn(vectors: Float[np.ndarray, "n 3"], matrix: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "n 3"]:
    """The matrix times each row, as plain sums: the threads of a BLAS are slower for such small matrices."""
    return sum(vectors[:, axis, None] * matrix[:, axis] for axis in range(3))


def merge(meshes: Sequence[Mesh]) -> Mesh:
    """Merges meshes into one. A material that several of them share is kept once."""
    if not meshes:
        raise ValueError("merge needs at least one mesh, got none")
    materials = {id(material): material for mesh in meshes for material in mesh.materials}
    index = {key: position for position, key in enumerate(materials)}
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes[:-1])])
    return Mesh(
        vertices=np.concatenate([mesh.vertices for mesh in meshes]),
        normals=np.concatenate([mesh.normals for mesh in meshes]),
        uv=np.concatenate([mesh.uv for mesh in meshes]),
        faces=np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts, strict=True)]).astype(np.int32),
        material=np.concatenate(
            [np.array([index[id(m)] for m in mesh.materials], np.int32)[mesh.material] for mesh in meshes]
        ),
        materials=tuple(materials.values()),
    )


def assemble(*parts: tuple[Mesh, Triple]) -> Mesh:
    """Merges parts (mesh, translation) into one mesh."""
    return merge([transform(mesh, translation(*place)) for mesh, place in parts])


def bounds(mesh: Mesh) -> Float32[np.ndarray, "2 3"]:
    """The lower and the upper corner of the bounding box."""
    return np.stack([mesh.vertices.min(0), mesh.vertices.max(0)])


def fit(mesh: Mesh, size: Triple) -> Mesh:
    """The mesh, scaled along each axis to `size`, centred in x and z, standing on y = 0."""
    lower, upper = bounds(mesh).astype(np.float64)
    extent = upper - lower
    scale = np.where(extent > 1e-6, np.asarray(size) / np.maximum(extent, 1e-6), 1.0)
    origin = (lower + upper) / 2 * [1, 0, 1] + lower * [0, 1, 0]
    return transform(mesh, scaling(*scale) @ translation(*-origin))


def unit(vectors: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """Scales vectors to length 1. Zero vectors stay zero."""
    length = np.sqrt(np.einsum("...c,...c->...", vectors, vectors))[..., None]
    return vectors / np.where(length > 0, length, 1)


# --------------------------------------------------------------------------------------------------------------- shapes


def quad(corners: Real[np.ndarray, "4 3"], material: Material, tile: Number = 1.0) -> Mesh:
    """A parallelogram, its corners counter-clockwise as seen from the front; v runs along the last edge."""
    corners = np.asarray(corners, np.float64)
    right, up = corners[1] - corners[0], corners[3] - corners[0]
    width, height = np.linalg.norm(right) / tile, np.linalg.norm(up) / tile
    normal = unit(np.cross(right, up))
    return Mesh(
        vertices=corners.astype(np.float32),
        normals=np.tile(normal, (4, 1)).astype(np.float32),
        uv=np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32),
        faces=np.array([[0, 1, 2], [0, 2, 3]], np.int32),
        material=np.zeros(2, np.int32),
        materials=(material,),
    )


def box(size: Triple, material: Material, tile: Number = 1.0) -> Mesh:
    """A cuboid."""
    x, y, z = size[0] / 2, size[1], size[2] / 2
    sides = (
        [[-x, 0, z], [x, 0, z], [x, y, z], [-x, y, z]],  # front
        [[x, 0, -z], [-x, 0, -z], [-x, y, -z], [x, y, -z]],  # back
        [[x, 0, z], [x, 0, -z], [x, y, -z], [x, y, z]],  # right
        [[-x, 0, -z], [-x, 0, z], [-x, y, z], [-x, y, -z]],  # left
        [[-x, y, z], [x, y, z], [x, y, -z], [-x, y, -z]],  # top
        [[-x, 0, -z], [x, 0, -z], [x, 0, z], [-x, 0, z]],  # bottom
    )
    return merge([quad(np.array(side), material, tile) for side in sides])


def grid(
    points: Float[np.ndarray, "r c 3"], material: Material, uv: Float[np.ndarray, "r c 2"], *, smooth: bool = True
) -> Mesh:
    """A surface through a grid of points. Seen from the front, columns run to the right and rows upwards.

    Args:
        points: rows and columns of points.
        material: of the whole surface.
        uv: texture coordinates of the points.
        smooth: interpolates normals, for a curved surface; otherwise each cell is flat.
    """
    rows, columns = points.shape[:2]
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    cells = corner[:, None] + np.array([0, 1, columns + 1, columns])
    vertices, uv = points.reshape(-1, 3).astype(np.float64), uv.reshape(-1, 2)
    if not smooth:
        vertices, uv, cells = vertices[cells.ravel()], uv[cells.ravel()], np.arange(cells.size).reshape(-1, 4)
    faces = np.concatenate([cells[:, [0, 1, 2]], cells[:, [0, 2, 3]]])
    across = np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]])
    faces, across = faces[(across**2).sum(1) > 1e-24], across[(across**2).sum(1) > 1e-24]
    normals = np.zeros_like(vertices)
    for vertex in range(3):
        np.add.at(normals, faces[:, vertex], across)
    if smooth:
        normals = _weld(vertices, normals)
    return Mesh(
        vertices.astype(np.float32),
        unit(normals).astype(np.float32),
        uv.astype(np.float32),
        faces.astype(np.int32),
        np.zeros(len(faces), np.int32),
        (material,),
    )


def _weld(vertices: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Adds up the normals of vertices at the same position, such as the seam and the poles of a closed surface."""
    _, place = np.unique(vertices.round(5), axis=0, return_inverse=True)
    total = np.zeros_like(normals)
    np.add.at(total, place.ravel(), normals)
    return total[place.ravel()]


def lathe(
    profile: Sequence[tuple[Number, Number]],
    material: Material,
    *,
    segments: int = 24,
    tile: Number = 1.0,
    smooth: bool = True,
) -> Mesh:
    """A solid of revolution about the vertical axis.

    Args:
        profile: (radius, height) from the bottom up. It is closed at an end of radius 0; a repeated point makes a sharp
            edge.
        material: of the whole surface.
        segments: number of cells around the axis.
        tile: side of one repeat of the texture, in metres.
        smooth: whether normals are interpolated.
    """
    profile = np.asarray(profile, np.float64)
    breaks = [0, *(np.flatnonzero(np.all(np.diff(profile, axis=0) == 0, axis=1)) + 1), len(profile)]
    angle = np.linspace(0, 2 * np.pi, segments + 1)
    around = np.stack([np.sin(angle), np.cos(angle)])
    parts = []
    for piece in (profile[start:end] for start, end in pairwise(breaks)):
        radius, height = piece.T
        points = np.stack(
            [
                radius[:, None] * around[0],
                np.broadcast_to(height[:, None], (len(piece), segments + 1)),
                radius[:, None] * around[1],
            ],
            -1,
        )
        along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(piece, axis=0), axis=1))])
        circumference = 2 * np.pi * max(radius.max(), 1e-3)
        u = np.broadcast_to(angle / (2 * np.pi) * max(1, round(circumference / tile)), (len(piece), segments + 1))
        v = np.broadcast_to(along[:, None] / tile, u.shape)
        parts.append(grid(points, material, np.stack([u, v], -1), smooth=smooth))
    return merge(parts)


def cylinder(
    radius: Number,
    height: Number,
    material: Material,
    *,
    top_radius: Number | None = None,
    segments: int = 20,
    tile: Number = 1.0,
) -> Mesh:
    """A closed cylinder, or a cone if `top_radius` differs from `radius`."""
    top = radius if top_radius is None else top_radius
    profile = [(0, 0), (radius, 0), (radius, 0), (top, height), (top, height), (0, height)]
    return lathe(profile, material, segments=segments, tile=tile)


def sphere(radius: Number, material: Material, *, segments: int = 24, tile: Number = 1.0) -> Mesh:
    """A sphere that rests on y = 0."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, segments // 2 + 1)
    profile = np.stack([np.cos(angle).clip(0) * radius, (np.sin(angle) + 1) * radius], 1)
    profile[[0, -1], 0] = 0
    return lathe([tuple(point) for point in profile], material, segments=segments, tile=tile)


def prism(outline: Real[np.ndarray, "n 2"], height: Number, material: Material, tile: Number = 1.0) -> Mesh:
    """A column over a convex outline of (x, z), counter-clockwise as seen from above (x right, z down the page)."""
    outline = np.asarray(outline, np.float64)
    following = np.roll(outline, -1, axis=0)
    sides = [
        quad(np.array([[a[0], 0, a[1]], [b[0], 0, b[1]], [b[0], height, b[1]], [a[0], height, a[1]]]), material, tile)
        for a, b in zip(outline, following, strict=True)
    ]
    fan = np.array([[0, i, i + 1] for i in range(1, len(outline) - 1)], np.int32)
    for level, up, faces in ((height, 1.0, fan), (0.0, -1.0, fan[:, ::-1])):
        sides.append(
            Mesh(
                vertices=np.insert(outline, 1, level, axis=1).astype(np.float32),
                normals=np.tile(np.array([0, up, 0], np.float32), (len(outline), 1)),
                uv=(outline / tile).astype(np.float32),
                faces=np.ascontiguousarray(faces),
                material=np.zeros(len(fan), np.int32),
                materials=(material,),
            )
        )
    return merge(sides)
