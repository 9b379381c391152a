"""Casts a few rays through a scene, to judge what a camera would see before the view is accepted."""

from dataclasses import dataclass
from math import tan

import numpy as np
from embreex import rtcore_scene
from embreex.mesh_construction import TriangleMesh
from jaxtyping import Float32, Int

from marigold_jax.rooms.scene import Camera, Instance

COARSE = (12, 16)  # rows and columns of rays


@dataclass(frozen=True, eq=False)
class Rays:
    """An Embree scene of all triangles; `first` is the index of the first triangle of each instance."""

    scene: rtcore_scene.EmbreeScene
    vertices: Float32[np.ndarray, "n 3"]
    faces: Int[np.ndarray, "m 3"]
    first: Int[np.ndarray, " instances"]


@dataclass(frozen=True, eq=False)
class Glance:
    """What the rays of a camera hit. For the sky, distance and depth are infinite, and instance is -1.

    Attributes:
        distance: from the camera, in metres.
        depth: along the optical axis, in metres.
        points: that were hit.
        normals: unit, towards the camera.
        instance: index of the instance that was hit.
    """

    distance: Float32[np.ndarray, " rays"]
    depth: Float32[np.ndarray, " rays"]
    points: Float32[np.ndarray, "rays 3"]
    normals: Float32[np.ndarray, "rays 3"]
    instance: Int[np.ndarray, " rays"]


def build_rays(instances: list[Instance]) -> Rays:
    """Builds the Embree scene of all instances."""
    vertices = np.concatenate(
        [each.mesh.vertices @ each.transform[:3, :3].T + each.transform[:3, 3] for each in instances]
    )
    starts = np.cumsum([0] + [len(each.mesh.vertices) for each in instances])
    faces = np.concatenate([each.mesh.faces + start for each, start in zip(instances, starts, strict=False)])
    vertices, faces = np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.int32)
    scene = rtcore_scene.EmbreeScene()
    TriangleMesh(scene, vertices, faces)
    return Rays(scene, vertices, faces, np.cumsum([0] + [len(each.mesh.faces) for each in instances[:-1]]))


def cast(rays: Rays, origins: Float32[np.ndarray, "n 3"], directions: Float32[np.ndarray, "n 3"]):
    """Casts rays.

    Returns:
        The distance to the nearest surface, in lengths of each direction, infinite for none; and the index of the
        triangle that was hit, -1 for none.
    """
    hits = rays.scene.run(
        np.ascontiguousarray(origins, np.float32), np.ascontiguousarray(directions, np.float32), output=True
    )
    missed = hits["geomID"] < 0
    return np.where(missed, np.float32(np.inf), hits["tfar"]), np.where(missed, -1, hits["primID"])


def glance(rays: Rays, camera: Camera, grid: tuple[int, int] = COARSE) -> Glance:
    """Casts a grid of rays through a camera, with aspect ratio 4 : 3."""
    rows, columns = grid
    reach = tan(camera.field_of_view / 2)
    x, y = np.meshgrid(
        ((np.arange(columns) + 0.5) / columns * 2 - 1) * reach, (1 - (np.arange(rows) + 0.5) / rows * 2) * reach * 0.75
    )
    local = np.stack([x.ravel(), y.ravel(), -np.ones(x.size)], axis=1).astype(np.float32)
    directions = local @ camera.axes.T.astype(np.float32)
    origins = np.tile(np.float32(camera.position), (len(directions), 1))
    depth, triangle = cast(rays, origins, directions)
    corners = rays.vertices[rays.faces[triangle]]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    normals *= -np.sign((normals * directions).sum(axis=1, keepdims=True))
    instance = np.searchsorted(rays.first, triangle, side="right") - 1
    finite = np.where(np.isfinite(depth), depth, 0).astype(np.float32)
    return Glance(
        distance=(depth * np.linalg.norm(directions, axis=1)).astype(np.float32),
        depth=depth.astype(np.float32),
        points=origins + finite[:, None] * directions,
        normals=normals.astype(np.float32),
        instance=np.where(triangle < 0, -1, instance),
    )
