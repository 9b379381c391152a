"""Renders images of a scene with depth and normals: ray casting with Embree, shading with NumPy.

    renderer = Renderer(scene)                     # once: merges the meshes, builds the acceleration structure
    frame = renderer.frame(0, (144, 192), samples=2, seed=0)

Depth and normals come from one ray through the centre of each pixel. Colour is the mean of `samples`² rays.
"""

from dataclasses import dataclass

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from jaxtyping import Bool, Float32, Int, UInt8

from marigold_jax.rooms import atlas, lighting
from marigold_jax.rooms.meshes import merge, transform, turn, unit
from marigold_jax.rooms.scene import Camera, Scene

Vectors = Float32[np.ndarray, "n 3"]

SKY_RAYS = 3  # of ambient light, per pixel
FAR = 1e9  # metres: the length of a ray
MIRROR = 0.04  # smaller reflectances are ignored


@dataclass(frozen=True, eq=False)
class Frame:
    """One view.

    Attributes:
        rgb: sRGB.
        depth: metres along the optical axis; 0 where there is no surface.
        normals: unit, of the triangles, towards the camera; x right, y up, z to the viewer; 0 without a surface.
        mask: True where there is a surface.
        intrinsics: pinhole, in pixels; the centre of the pixel in row i and column j is at (j + 0.5, i + 0.5).
    """

    rgb: UInt8[np.ndarray, "h w 3"]
    depth: Float32[np.ndarray, "h w"]
    normals: Float32[np.ndarray, "h w 3"]
    mask: Bool[np.ndarray, "h w"]
    intrinsics: Float32[np.ndarray, "3 3"]


@dataclass(frozen=True, eq=False)
class Hits:
    """Where rays hit surfaces, with one row for each ray that did; `index` is the number of the ray."""

    index: Int[np.ndarray, " n"]
    distance: Float32[np.ndarray, " n"]  # in lengths of the ray's direction
    position: Vectors
    face: Int[np.ndarray, " n"]
    weights: Float32[np.ndarray, "n 3"]  # of the face's corners
    flat: Vectors  # unit normals of the triangles, and
    normal: Vectors  # smooth ones, both towards the ray's origin


@dataclass(frozen=True, eq=False)
class Centres:
    """The surface at the centre of each pixel, and the light that it receives. Without a surface, the normal is 0.

    The channels of `light` are the ambient irradiance (three colours), the unshaded share of the lamps' irradiance
    (three colours), and the unshaded share of the sun's.
    """

    position: Float32[np.ndarray, "h w 3"]
    normal: Float32[np.ndarray, "h w 3"]
    tolerance: Float32[np.ndarray, "h w"]  # metres off a pixel's plane that still count as its surface
    light: Float32[np.ndarray, "h w 7"]


class Renderer:
    """Renders a scene from each of its cameras."""

    def __init__(self, scene: Scene):
        self.scene = scene
        mesh = merge([transform(instance.mesh, instance.transform) for instance in scene.instances])
        self.vertices, self.normals, self.uv = mesh.vertices, mesh.normals, mesh.uv
        self.faces, self.material = mesh.faces, mesh.material
        corners = mesh.vertices[mesh.faces].astype(np.float64)
        across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        self.flat = unit(across).astype(np.float32)

        textures = {id(m.texture): m.texture for m in mesh.materials if m.texture is not None}
        self.atlas = atlas.build(list(textures.values()))
        position = {key: index for index, key in enumerate(textures)}
        self.texture = np.array([position.get(id(m.texture), -1) for m in mesh.materials], np.intp)
        self.color = np.array([m.color for m in mesh.materials], np.float32)
        self.gloss = np.array([m.gloss for m in mesh.materials], np.float32)
        self.glow = np.array([m.glow for m in mesh.materials], np.float32)
        self.mean_color = self.color.copy()
        textured = self.texture >= 0
        self.mean_color[textured] *= self.atlas.mean[self.texture[textured]]
        self.texels = self._texel_density(corners, across)

        # The shade and bulb of a lamp must not block its own light, so glowing surfaces cast no shadows.
        shining = self.glow.any(1)[mesh.material]
        self.groups = [
            (_embree(mesh.vertices, mesh.faces[group]), group)
            for group in (np.flatnonzero(~shining), np.flatnonzero(shining))
        ]

    def _texel_density(self, corners: np.ndarray, across: np.ndarray) -> Float32[np.ndarray, " m"]:
        """Texels of the full-size texture per metre on each face."""
        uv = self.uv[self.faces].astype(np.float64)
        a, b = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
        stretch = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) / np.maximum(np.linalg.norm(across, axis=1), 1e-12)
        row = np.where(self.texture >= 0, self.atlas.first[self.texture] if len(self.atlas.first) else 0, 0)
        area = (self.atlas.height * self.atlas.width)[row][self.material]
        return np.sqrt(stretch * area).astype(np.float32)

    # ------------------------------------------------------------------------------------------------------------- rays

    def _nearest(self, origins: Vectors, directions: Vectors) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The first face that each ray hits (-1 for none), the distance in lengths of the ray, and where on it."""
        origins, directions = _rows(origins), _rows(directions)
        face, distance = np.full(len(origins), -1), np.full(len(origins), FAR, np.float32)
        place = np.zeros((len(origins), 2), np.float32)
        for embree, group in self.groups:
            if len(group):
                answer = embree.run(origins, directions, distance, output=True)
                met = np.flatnonzero(answer["primID"] >= 0)
                face[met], distance[met] = group[answer["primID"][met]], answer["tfar"][met]
                place[met, 0], place[met, 1] = answer["u"][met], answer["v"][met]
        return face, distance, place

    def cast(self, origins: Vectors, directions: Vectors) -> Hits:
        """The first surface on each ray."""
        face, distance, place = self._nearest(origins, directions)
        index = np.flatnonzero(face >= 0)
        face, distance, (u, v) = face[index], distance[index], place[index].T
        weights = np.stack([1 - u - v, u, v], -1)
        direction = directions[index]
        position = origins[index] + direction * distance[:, None]
        flat = self.flat[face]
        flat = np.where(_dot(flat, direction)[:, None] > 0, -flat, flat)
        normal = unit(np.einsum("nk,nkc->nc", weights, self.normals[self.faces[face]]))
        normal = np.where(_dot(normal, flat)[:, None] < 0, -normal, normal)
        return Hits(index, distance, position, face, weights, flat, normal)

    def reach(
        self, origins: Vectors, directions: Vectors, length: Float32[np.ndarray, " n"] | None = None
    ) -> Bool[np.ndarray, " n"]:
        """Whether no shadow-casting surface is on each ray, up to `length` (in lengths of its direction)."""
        embree, group = self.groups[0]
        if not len(group):
            return np.ones(len(origins), bool)
        if length is None:
            length = np.full(len(origins), FAR, np.float32)
        return embree.run(_rows(origins), _rows(directions), _rows(length), query="OCCLUDED") < 0

    # ----------------------------------------------------------------------------------------------------------- frames

    def frame(self, view: int, size: tuple[int, int], samples: int = 2, seed: int = 0) -> Frame:
        """Renders a view. The same arguments always give the same bytes.

        Args:
            view: index of the camera.
            size: (height, width) in pixels.
            samples: colour rays along each side of a pixel.
            seed: of the sampling pattern of light.
        """
        height, width = size
        camera = self.scene.cameras[view]
        rng = np.random.default_rng([seed, view])
        centre = self.cast(*_camera_rays(camera, size, 1))
        light = self._light_at_centres(centre, camera, size, rng)

        origins, directions = _camera_rays(camera, size, samples)
        seen = self.cast(origins, directions)
        radiance = np.zeros((len(origins), 3), np.float32)
        missed = np.ones(len(origins), bool)
        missed[seen.index] = False
        radiance[missed] = lighting.clouded_sky(self.scene.sky, unit(directions[missed]).astype(np.float32))
        radiance[seen.index] = self._shade(seen, directions[seen.index], camera, size, samples, light)
        radiance *= np.float32(self.scene.exposure[view]) * np.float32(self.scene.white_balance[view])
        color = lighting.tone_map(radiance).reshape(height * samples, width * samples, 3)
        color = sum(color[row::samples, column::samples] for row in range(samples) for column in range(samples))

        depth, mask = np.zeros(height * width, np.float32), np.zeros(height * width, bool)
        normals = np.zeros((height * width, 3), np.float32)
        depth[centre.index], mask[centre.index] = centre.distance, True
        normals[centre.index] = unit(turn(centre.flat, np.asarray(camera.axes).T))
        return Frame(
            rgb=atlas.to_srgb(color / samples**2),
            depth=depth.reshape(size),
            normals=normals.reshape(height, width, 3),
            mask=mask.reshape(size),
            intrinsics=_intrinsics(camera, size),
        )

    # ---------------------------------------------------------------------------------------------------------- shading

    def _light_at_centres(self, hits: Hits, camera: Camera, size: tuple[int, int], rng: np.random.Generator) -> Centres:
        """Estimates the light at the centre of every pixel, and smooths it over pixels of the same surface."""
        height, width = size
        rank = lighting.ranks(size).ravel()[hits.index]
        blocks = lighting.PERIOD**2
        origins = hits.position + hits.flat * (3e-4 + 3e-4 * hits.distance)[:, None]

        ambient = np.zeros((len(rank), 3), np.float32)
        points = lighting.spread(blocks * SKY_RAYS, rng.random(2, np.float32))
        for ray in range(SKY_RAYS):
            directions = lighting.hemisphere(hits.normal, points[rank + blocks * ray])
            below = np.minimum(_dot(directions, hits.flat), 0)
            directions = directions - 2 * below[:, None] * hits.flat
            ambient += self._ambient(origins, directions.astype(np.float32)) / SKY_RAYS

        full, arriving = np.zeros_like(ambient), np.zeros_like(ambient)
        for lamp, source in enumerate(self.scene.lamps):
            light, towards = lighting.lamp_light(self.scene, lamp, hits.position, hits.normal)
            full += light
            lit = np.flatnonzero(light.max(1))
            points = lighting.spread(blocks, rng.random(2, np.float32))[rank[lit]]
            target = np.float32(source.position) + lighting.disc(towards[lit], source.radius, points)
            direction = target - origins[lit]
            length = np.maximum(1 - 1.5 * source.radius / np.linalg.norm(direction, axis=1), 0.01)
            clear = self.reach(origins[lit], direction, length.astype(np.float32))
            arriving[lit] += light[lit] * clear[:, None]

        sun = np.ones((len(rank), 1), np.float32)
        if any(self.scene.sky.sun):
            lit = np.flatnonzero(lighting.sun_light(self.scene, hits.normal).max(1))
            points = lighting.spread(blocks, rng.random(2, np.float32))[rank[lit]]
            axis = np.broadcast_to(np.float32(self.scene.sky.to_sun), (len(lit), 3))
            direction = axis + lighting.disc(axis, self.scene.sky.sun_radius, points)
            sun[lit, 0] = self.reach(origins[lit], direction)

        def image(values: np.ndarray) -> np.ndarray:
            whole = np.zeros((height * width, values.shape[1]), np.float32)
            whole[hits.index] = values
            return whole.reshape(height, width, -1)

        position, normal, distance = image(hits.position), image(hits.normal), image(hits.distance[:, None])
        pixel = 2 * np.tan(camera.field_of_view / 2) / width
        tolerance = (1.5 * pixel * distance[..., 0] + 1e-4).astype(np.float32)
        stack = np.concatenate([image(ambient), image(full), image(arriving), image(sun)], -1)
        stack = lighting.smooth(stack, position, normal, tolerance)
        ambient = lighting.smooth(stack[..., :3], position, normal, tolerance)
        share = stack[..., 6:9] / np.maximum(stack[..., 3:6], 1e-6)
        return Centres(position, normal, tolerance, np.concatenate([ambient, share, stack[..., 9:]], -1))

    def _ambient(self, origins: Vectors, directions: Vectors) -> Vectors:
        """The radiance that arrives along rays: of the sky, or the ambient light tinted by the surface that is hit."""
        face, distance, _ = self._nearest(origins, directions)
        hit = face >= 0
        radiance = np.empty((len(origins), 3), np.float32)
        radiance[~hit] = lighting.sky_light(self.scene.sky, directions[~hit])
        tint = 0.55 + 0.9 * self.mean_color[self.material[face[hit]]]
        radiance[hit] = np.float32(self.scene.ambient) * tint * lighting.occlusion(distance[hit])[:, None]
        return radiance

    def _shade(
        self,
        hits: Hits,
        directions: Vectors,
        camera: Camera,
        size: tuple[int, int],
        samples: int,
        light: Centres,
    ) -> Vectors:
        """The radiance that leaves surfaces towards the camera.

        Args:
            hits: where the rays hit surfaces.
            directions: of these rays.
            camera: that is rendered.
            size: (height, width) of the image.
            samples: rays along each side of a pixel.
            light: at the centres of pixels.
        """
        length = np.linalg.norm(directions, axis=1)
        view = -directions / length[:, None]
        pixel = 2 * np.tan(camera.field_of_view / 2) / size[1]
        albedo = self._albedo(hits, view, hits.distance * pixel / samples, hits.index % samples**2 / samples**2)
        arriving = _from_centres(hits, light, size, samples)
        material = self.material[hits.face]
        gloss = self.gloss[material]

        irradiance, shine = arriving[:, :3].copy(), np.zeros_like(albedo)
        for lamp in range(len(self.scene.lamps)):
            incoming, towards = lighting.lamp_light(self.scene, lamp, hits.position, hits.normal)
            irradiance += incoming * arriving[:, 3:6]
            shine += _highlight(view, towards, hits.normal, gloss) * incoming * arriving[:, 3:6]
        if any(self.scene.sky.sun):
            incoming = lighting.sun_light(self.scene, hits.normal) * arriving[:, 6:7]
            towards = np.broadcast_to(np.float32(self.scene.sky.to_sun), view.shape)
            irradiance += incoming
            shine += _highlight(view, towards, hits.normal, gloss) * incoming

        cosine = _dot(view, hits.normal).clip(0, 1)
        facing = 0.04 + 0.85 * np.clip((gloss - 0.8) / 0.2, 0, 1)  # above a gloss of 0.8, a metallic mirror
        mirror = (gloss * (facing + (1 - facing) * (1 - cosine) ** 5)).astype(np.float32)
        mirror[mirror < MIRROR] = 0
        radiance = albedo * irradiance * (1 - mirror)[:, None] + 0.25 * shine + self.glow[material]
        shiny = np.flatnonzero(mirror)
        if len(shiny):
            bounced = 2 * cosine[shiny, None] * hits.normal[shiny] - view[shiny]
            origins = hits.position[shiny] + hits.flat[shiny] * (3e-4 + 3e-4 * hits.distance[shiny])[:, None]
            radiance[shiny] += mirror[shiny, None] * self._reflection(origins, bounced.astype(np.float32), pixel)
        return radiance

    def _reflection(self, origins: Vectors, directions: Vectors, pixel: float) -> Vectors:
        """The radiance that arrives along mirror rays, in simpler light: no soft shadows, no second reflection."""
        hits = self.cast(origins, directions)
        radiance = lighting.clouded_sky(self.scene.sky, directions)
        albedo = self._albedo(hits, -directions[hits.index], 2 * hits.distance * pixel, np.zeros(len(hits.index)))
        irradiance = np.broadcast_to(np.float32(self.scene.ambient), albedo.shape).copy()
        for lamp in range(len(self.scene.lamps)):
            irradiance += lighting.lamp_light(self.scene, lamp, hits.position, hits.normal)[0]
        if any(self.scene.sky.sun):
            towards = np.broadcast_to(np.float32(self.scene.sky.to_sun), hits.position.shape)
            clear = self.reach(hits.position + hits.flat * 2e-3, towards)
            irradiance += lighting.sun_light(self.scene, hits.normal) * clear[:, None]
        radiance[hits.index] = albedo * irradiance + self.glow[self.material[hits.face]]
        return radiance

    def _albedo(self, hits: Hits, view: Vectors, width: np.ndarray, dither: np.ndarray) -> Vectors:
        """The colours of surfaces, from their material and texture.

        Args:
            hits: where rays hit surfaces.
            view: unit directions to the camera.
            width: of each ray there, in metres. It chooses the level of the texture pyramid.
            dither: 0 to 1, added to the level so that rays of a pixel mix two levels.
        """
        material = self.material[hits.face]
        color = self.color[material]
        textured = np.flatnonzero(self.texture[material] >= 0)
        if len(textured):
            face = hits.face[textured]
            uv = np.einsum("nk,nkc->nc", hits.weights[textured], self.uv[self.faces[face]])
            slant = np.abs(_dot(view[textured], hits.flat[textured])).clip(0.02, 1)
            texels = self.texels[face] * width[textured] / slant**0.75
            level = np.log2(np.maximum(texels, 1e-6)) + dither[textured]
            color[textured] *= self.atlas.look_up(self.texture[material[textured]], uv, level.astype(np.float32))
        return color


# --------------------------------------------------------------------------------------------------------------- pieces


def _embree(vertices: Vectors, faces: Int[np.ndarray, "m 3"]) -> EmbreeScene:
    scene = EmbreeScene()
    TriangleMesh(scene, np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.int32))
    return scene


def _rows(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)


def _dot(first: Vectors, second: Vectors) -> Float32[np.ndarray, " n"]:
    return np.einsum("nc,nc->n", first, second)


def _intrinsics(camera: Camera, size: tuple[int, int]) -> Float32[np.ndarray, "3 3"]:
    height, width = size
    focal = width / 2 / np.tan(camera.field_of_view / 2)
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], np.float32)


def _camera_rays(camera: Camera, size: tuple[int, int], samples: int) -> tuple[Vectors, Vectors]:
    """`samples`² rays per pixel on a regular grid, row by row, of length 1 metre along the optical axis."""
    height, width = size
    tangent = np.tan(camera.field_of_view / 2)
    x = ((np.arange(width * samples) + 0.5) / (width * samples) * 2 - 1) * tangent
    y = (1 - (np.arange(height * samples) + 0.5) / (height * samples) * 2) * tangent * height / width
    local = np.stack(np.broadcast_arrays(x, y[:, None], -1.0), -1).reshape(-1, 3)
    directions = turn(local.astype(np.float32), np.asarray(camera.axes, np.float32))
    return np.broadcast_to(np.float32(camera.position), directions.shape), directions


def _highlight(
    view: Vectors, towards: Vectors, normal: Vectors, gloss: Float32[np.ndarray, " n"]
) -> Float32[np.ndarray, "n 1"]:
    """A Blinn highlight, which is sharper and stronger on glossier surfaces."""
    half = unit(view + towards)
    sharp = 2 ** (3 + 7 * gloss)
    return ((sharp + 8) / 8 * gloss * _dot(half, normal).clip(0) ** sharp)[:, None].astype(np.float32)


def _from_centres(hits: Hits, light: Centres, size: tuple[int, int], samples: int) -> Float32[np.ndarray, "n 7"]:
    """Interpolates the light at rays from the four nearest pixel centres that show the same surface."""
    height, width = size
    row, column = np.divmod(hits.index, width * samples)
    y, x = (row + 0.5) / samples - 0.5, (column + 0.5) / samples - 0.5
    top, left = np.floor(y).astype(np.intp), np.floor(x).astype(np.intp)
    total = np.zeros((len(row), light.light.shape[-1]), np.float32)
    weights = np.zeros(len(row), np.float32)
    positions, normals = light.position.reshape(-1, 3), light.normal.reshape(-1, 3)
    tolerances, lights = light.tolerance.ravel(), light.light.reshape(-1, total.shape[1])
    for down in (0, 1):
        for across in (0, 1):
            pixel = (top + down).clip(0, height - 1) * width + (left + across).clip(0, width - 1)
            near = np.abs(1 - down - (y - top)) * np.abs(1 - across - (x - left))
            normal = normals[pixel]
            same = lighting.same_surface(hits.position, hits.normal, positions[pixel], normal, tolerances[pixel])
            # A thin object that no centre hit takes the light around it.
            weight = (near * (same + 1e-4 * (_dot(normal, normal) > 0))).astype(np.float32)
            total += lights[pixel] * weight[:, None]
            weights += weight
    return total / np.maximum(weights, 1e-9)[:, None]
