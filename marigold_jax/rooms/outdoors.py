"""Builders of the built-in outdoor models: trees, people, animals, vehicles, street furniture, houses."""

from collections.abc import Sequence

import numpy as np

from marigold_jax.rooms import meshes
from marigold_jax.rooms.meshes import assemble, box, cylinder, lathe, rotation, sphere, transform
from marigold_jax.rooms.palette import Rng, glowing, material, picture_of
from marigold_jax.rooms.scene import Material, Mesh, Vector


def tree(rng: Rng, size: Vector) -> Mesh:
    """A trunk with a crown of spheres, of conical layers, or of one ellipsoid."""
    x, y, z = size
    bark, crown = material(rng, "wood"), material(rng, "leaves")
    reach = min(x, z) / 2
    style = rng.integers(3)
    trunk_height = y * rng.uniform(0.2, 0.4) * (0.5 if style == 1 else 1)
    parts = [(cylinder(y * 0.025, y * 0.7, bark, top_radius=y * 0.015, segments=10), (0, 0, 0))]
    if style == 1:
        for layer in range(5):
            bottom = trunk_height + (y - trunk_height) * layer / 5.5
            wide = reach * (1 - layer / 5.5)
            parts.append(
                (
                    lathe([(0, 0.02), (wide, 0), (wide, 0), (0, (y - trunk_height) / 3.5)], crown, segments=14),
                    (0, bottom, 0),
                )
            )
        return meshes.fit(assemble(*parts), size)
    for _ in range(10 if style == 0 else 1):
        ball = _rough(rng, reach * (rng.uniform(0.35, 0.6) if style == 0 else 1), crown)
        ball = transform(ball, meshes.scaling(1, (y - trunk_height) / (2 * reach) * (1.1 if style == 0 else 1), 1))
        spread = reach * 0.5 if style == 0 else 0
        parts.append(
            (ball, (rng.uniform(-spread, spread), trunk_height + rng.uniform(0, spread), rng.uniform(-spread, spread)))
        )
    return meshes.fit(assemble(*parts), size)


def _rough(rng: Rng, radius: float, surface: Material) -> Mesh:
    """A bumpy sphere."""
    ball = sphere(radius, surface, segments=20, tile=1.2)
    directions = meshes.unit(ball.vertices - np.array([0, radius, 0], np.float32))
    bumps = np.zeros(len(directions))
    for _ in range(6):
        bumps += 0.06 * np.sin(directions @ rng.normal(0, 5, 3) + rng.uniform(0, 6))
    vertices = (directions * radius * (1 + bumps[:, None]) + [0, radius, 0]).astype(np.float32)
    return Mesh(vertices, ball.normals, ball.uv, ball.faces, ball.material, ball.materials)


def person(rng: Rng, size: Vector) -> Mesh:
    """A standing person: legs, trunk, arms and a head with hair."""
    x, y, _ = size
    skin, shirt, trousers, hair = (material(rng, name, gloss=0.0) for name in ("skin", "paint", "paint", "dark"))
    leg, wide = y * 0.48, min(x, 0.5)
    limb = lathe([(0, 0), (0.07, 0), (0.06, leg * 0.5), (0.09, leg)], trousers, segments=12)
    trunk = transform(
        lathe([(wide * 0.32, 0), (wide * 0.28, y * 0.1), (wide * 0.4, y * 0.3), (0.06, y * 0.36)], shirt, segments=18),
        meshes.scaling(1, 1, 0.6),
    )
    swing = rng.uniform(-0.4, 0.4)
    arm = lathe([(0.035, 0), (0.045, y * 0.3), (0.0, y * 0.32)], shirt if rng.random() < 0.5 else skin, segments=10)
    head = transform(sphere(y * 0.065, skin, segments=18), meshes.scaling(0.85, 1.1, 1))
    cap = transform(sphere(y * 0.068, hair, segments=18), meshes.scaling(0.9, 0.8, 1))
    parts = [
        *(
            (transform(limb, rotation("x", s * swing * 0.5)), (s * wide * 0.17, 0, -s * swing * leg * 0.25))
            for s in (-1, 1)
        ),
        (trunk, (0, leg, 0)),
        *((transform(arm, rotation("z", -s * 0.12)), (s * wide * 0.5, leg + y * 0.02, 0)) for s in (-1, 1)),
        (head, (0, y * 0.855, 0)),
        (cap, (0, y * 0.89, -y * 0.012)),
    ]
    return assemble(*parts)


def animal(rng: Rng, size: Vector) -> Mesh:
    """Four legs, a trunk, a head that faces forwards, and a tail."""
    x, y, z = size
    fur = material(rng, "carpet", "dark", "skin", gloss=0.0)
    body = transform(sphere(0.5, fur, segments=18), meshes.scaling(x * 0.9, y * 0.42, z * 0.72))
    head = transform(sphere(0.5, fur, segments=16), meshes.scaling(x * 0.7, y * 0.32, z * 0.28))
    tail = transform(cylinder(0.02, z * 0.25, fur, segments=8), rotation("x", -0.8))
    leg = cylinder(x * 0.13, y * 0.42, fur, segments=10)
    ear = cylinder(x * 0.1, y * 0.12, fur, top_radius=0.004, segments=8)
    return assemble(
        (body, (0, y * 0.32, -z * 0.08)),
        (head, (0, y * 0.58, z * 0.34)),
        (tail, (0, y * 0.55, -z * 0.4)),
        *((leg, (sx * x * 0.27, 0, sz * z * 0.22 - z * 0.08)) for sx in (-1, 1) for sz in (-1, 1)),
        *((ear, (s * x * 0.2, y * 0.86, z * 0.3)) for s in (-1, 1)),
    )


def vehicle(rng: Rng, size: Vector) -> Mesh:
    """A car or a van that faces +z: wheels, body, cabin with dark panes, lights."""
    x, y, z = size
    paint, glass, tyre = (
        material(rng, "paint", "white", "dark", "metal", gloss=0.5),
        Material((0.04, 0.05, 0.06), gloss=0.8),
        material(rng, "dark", gloss=0.0),
    )
    wheel_radius = min(0.34, y * 0.22)
    low, belt = wheel_radius * 0.6, y * rng.uniform(0.52, 0.6)
    front, back = (z * rng.uniform(0.2, 0.3), z * rng.uniform(0.35, 0.46)) if z < 5 else (z * 0.4, z * 0.48)
    slant = rng.uniform(0.1, 0.18) * z if z < 5 else 0.05 * z
    cabin = [[-back, belt], [front, belt], [front - slant, y], [-back + slant * 0.5, y]]
    wheel = transform(cylinder(wheel_radius, 0.22, tyre), rotation("z", np.pi / 2))
    hub = transform(cylinder(wheel_radius * 0.55, 0.23, material(rng, "metal")), rotation("z", np.pi / 2))
    parts = [(box((x, belt - low, z), paint), (0, low, 0)), (_extruded(cabin, x * 0.9, paint), (0, 0, 0))]
    centre = np.mean(cabin, axis=0)
    panes = centre + (np.array(cabin) - centre) * [0.9, 0.78]
    parts.append((_extruded(panes.tolist(), x * 0.91, glass), (0, 0, 0)))
    shield = np.array(
        [
            [-0.42, belt + 0.04, front - 0.01],
            [0.42, belt + 0.04, front - 0.01],
            [0.42, y - 0.05, front - slant + 0.03],
            [-0.42, y - 0.05, front - slant + 0.03],
        ]
    )
    parts.append((meshes.quad(shield * [x * 0.95, 1, 1] + [0, 0.01, 0.012], glass), (0, 0, 0)))
    parts += [
        (mesh, (s * (x / 2 - 0.1) + 0.11, wheel_radius, e * z * 0.32))
        for s in (-1, 1)
        for e in (-1, 1)
        for mesh in (wheel, hub)
    ]
    for end, shade in ((1, (0.9, 0.9, 0.8)), (-1, (0.5, 0.03, 0.03))):
        light = box((0.25, 0.12, 0.02), Material(shade, gloss=0.6))
        parts += [(light, (s * (x / 2 - 0.2), belt * 0.75, end * z / 2)) for s in (-1, 1)]
    return meshes.fit(assemble(*parts), size)


def _extruded(outline: Sequence[Sequence[float]], width: float, surface: Material) -> Mesh:
    """A convex outline of (z, y), extruded along x to `width`."""
    column = meshes.prism(np.array([[z, -y] for z, y in outline]), width, surface)
    # The column stands along y over (x, z) = (z, -y): turn it to lie along x.
    turn = np.array([[0, 1, 0, -width / 2], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], np.float32)
    mesh = transform(column, turn)
    if np.linalg.det(turn[:3, :3]) > 0:
        return mesh
    return Mesh(
        mesh.vertices, mesh.normals, mesh.uv, np.ascontiguousarray(mesh.faces[:, ::-1]), mesh.material, mesh.materials
    )


def street_item(rng: Rng, size: Vector) -> Mesh:
    """A lamp post, a sign, a bench or a bin, depending on its size."""
    x, y, z = size
    metal = material(rng, "metal", "dark", "green")
    if y > 1.8:
        if rng.random() < 0.5:
            head = sphere(min(x, z) / 2, glowing(1.5))
            return assemble(
                (cylinder(0.06, y - 0.2, metal, top_radius=0.04, segments=12), (0, 0, 0)), (head, (0, y - min(x, z), 0))
            )
        plate = transform(cylinder(min(x, 0.35), 0.02, material(rng, "paint")), rotation("x", np.pi / 2))
        return assemble((cylinder(0.03, y, metal, segments=10), (0, 0, 0)), (plate, (0, y - min(x, 0.35), 0.03)))
    if x > 1.0:
        wood = material(rng, "wood", "paint")
        planks = [(box((x, 0.03, z / 4 * 0.85), wood), (0, y * 0.5, z * (k / 4 - 0.375))) for k in range(4)]
        back = [(box((x, y * 0.12, 0.03), wood), (0, y * (0.65 + 0.2 * k), -z / 2 + 0.02)) for k in range(2)]
        return assemble(
            *planks,
            *back,
            *((box((0.06, y, 0.05), metal), (s * x * 0.42, 0, -z / 2 + 0.03)) for s in (-1, 1)),
            *((box((0.06, y * 0.5, 0.05), metal), (s * x * 0.42, 0, z / 2 - 0.05)) for s in (-1, 1)),
        )
    wide = min(x, z) / 2
    return lathe(
        [
            (0, 0),
            (wide * 0.85, 0),
            (wide * 0.85, 0),
            (wide * 0.9, y * 0.8),
            (wide, y * 0.8),
            (wide * 0.8, y * 0.95),
            (0, y),
        ],
        metal,
    )


def building(rng: Rng, size: Vector) -> Mesh:
    """A house with painted windows and a flat or pitched roof."""
    x, y, z = size
    wall = Material((1.0, 1.0, 1.0), picture_of("facade", int(rng.integers(1 << 20))))
    cover = material(rng, "roof")
    pitched = rng.random() < 0.6
    eaves = y * rng.uniform(0.72, 0.85) if pitched else y * 0.95
    body = box((x, eaves, z), wall, tile=float(rng.uniform(6, 9)))
    if not pitched:
        cornice = box((x * 1.02, y * 0.05, z * 1.02), material(rng, "concrete", "white"))
        return meshes.fit(assemble((body, (0, 0, 0)), (cornice, (0, eaves, 0))), size)
    gable = [[-z * 0.52, 0.0], [z * 0.52, 0.0], [0.0, y - eaves]]
    return meshes.fit(assemble((body, (0, 0, 0)), (_extruded(gable, x * 1.03, cover), (0, eaves, 0))), size)
