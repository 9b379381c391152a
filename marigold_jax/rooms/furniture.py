"""Builders of the built-in furniture: each makes a piece of a given size (metres), with random proportions."""

import numpy as np

from marigold_jax.rooms import meshes
from marigold_jax.rooms.meshes import assemble, box, cylinder, lathe, rotation, sphere, transform
from marigold_jax.rooms.palette import Rng, glowing, material, picture_of
from marigold_jax.rooms.scene import Material, Mesh, Vector


def _legs(rng: Rng, size: Vector, leg: Material, *, inset: float = 0.02) -> list[tuple[Mesh, Vector]]:
    """Four legs, square or round, under a top of `size`."""
    thick = rng.uniform(0.03, 0.07)
    mesh = box((thick, size[1], thick), leg) if rng.random() < 0.5 else cylinder(thick / 2, size[1], leg, segments=10)
    x, z = size[0] / 2 - thick / 2 - inset, size[2] / 2 - thick / 2 - inset
    return [(mesh, (sx * x, 0.0, sz * z)) for sx in (-1, 1) for sz in (-1, 1)]


def table(rng: Rng, size: Vector) -> Mesh:
    """A top on four legs, or, round, on a column."""
    x, y, z = size
    surface, leg = material(rng, "wood", "wood", "paint", "marble", "white"), material(rng, "wood", "metal", "dark")
    thick = rng.uniform(0.02, 0.06)
    if rng.random() < 0.25:
        radius = min(x, z) / 2
        profile = [(0, 0), (radius * 0.6, 0), (radius * 0.55, 0.03), (0.04, 0.06), (0.04, y - thick)]
        return assemble((lathe(profile, leg), (0, 0, 0)), (cylinder(radius, thick, surface), (0, y - thick, 0)))
    under = (x, y - thick, z)
    shelf = [(box((x * 0.9, 0.02, z * 0.9), surface), (0, y * 0.3, 0))] if rng.random() < 0.2 else []
    return assemble((box((x, thick, z), surface), (0, y - thick, 0)), *_legs(rng, under, leg), *shelf)


def desk(rng: Rng, size: Vector) -> Mesh:
    """A table with drawers under one side."""
    x, y, z = size
    front = material(rng, "wood", "paint", "white")
    width = x * rng.uniform(0.25, 0.4)
    side = rng.choice([-1, 1]) * (x - width) / 2 * 0.96
    top = material(rng, "wood", "white")
    drawers = cabinet(rng, (width, y - 0.1, z * 0.9), body=front, columns=1)
    under = (x, y - 0.03, z)
    return assemble(
        (box((x, 0.03, z), top), (0, y - 0.03, 0)),
        (drawers, (side, 0.06, 0)),
        *_legs(rng, under, material(rng, "metal", "wood")),
    )


def chair(rng: Rng, size: Vector) -> Mesh:
    """Four legs, a seat, and a back made of slats or of one piece."""
    x, y, z = size
    seat_height = float(np.clip(y * rng.uniform(0.45, 0.55), 0.25, 0.55))
    frame, seat = material(rng, "wood", "metal", "paint", "dark"), material(rng, "weave", "wood", "paint")
    parts = [(box((x, 0.05, z), seat), (0, seat_height - 0.05, 0)), *_legs(rng, (x, seat_height - 0.05, z), frame)]
    back, depth = y - seat_height, -z / 2 + 0.02
    parts += [(box((0.04, back, 0.03), frame), (s * (x / 2 - 0.03), seat_height, depth)) for s in (-1, 1)]
    if rng.random() < 0.5:
        parts.append((box((x * 0.95, back * 0.6, 0.03), seat), (0, seat_height + back * 0.38, depth)))
    else:
        count = int(rng.integers(2, 5))
        slat = box((x * 0.95, back / count * 0.45, 0.02), frame)
        parts += [(slat, (0, seat_height + back * (k + 0.5) / count, depth)) for k in range(count)]
    return assemble(*parts)


def stool(rng: Rng, size: Vector) -> Mesh:
    """A round seat on four legs."""
    x, y, z = size
    seat = cylinder(min(x, z) / 2, 0.05, material(rng, "wood", "paint", "weave"))
    legs = _legs(rng, (x * 0.75, y - 0.05, z * 0.75), material(rng, "wood", "metal"))
    return assemble((seat, (0, y - 0.05, 0)), *legs)


def sofa(rng: Rng, size: Vector) -> Mesh:
    """A base, arms, a back, seat cushions and loose cushions."""
    x, y, z = size
    cloth = material(rng, "weave", "paint", "carpet", "dark", gloss=0.05)
    loose = material(rng, "weave", "paint", gloss=0.0)
    arm, back, seat = rng.uniform(0.08, 0.2), rng.uniform(0.15, 0.28), float(rng.uniform(0.36, 0.46) * min(1, y / 0.8))
    inner = x - 2 * arm
    count = max(1, round(inner / rng.uniform(0.6, 0.9)))
    cushion = _cushion((inner / count * 0.98, 0.16, z - back), cloth)
    parts = [
        (box((x, seat - 0.16, z), cloth), (0, 0.06, 0)),
        (box((x, y - 0.06, back), cloth), (0, 0.06, -z / 2 + back / 2)),
        *((box((arm, seat + rng.uniform(0.1, 0.2), z), cloth), (s * (x - arm) / 2, 0.06, 0)) for s in (-1, 1)),
        *((cushion, (inner * ((k + 0.5) / count - 0.5), seat - 0.1, back / 2)) for k in range(count)),
        *_legs(rng, (x * 0.95, 0.06, z * 0.9), material(rng, "dark", "metal")),
    ]
    pillow = transform(_cushion((0.42, 0.36, 0.14), loose), rotation("x", -0.3))
    for k in range(int(rng.integers(0, count + 1))):
        parts.append((pillow, (inner * ((k + 0.5) / count - 0.5), seat + 0.06, -z / 2 + back + 0.1)))
    return assemble(*parts)


def _cushion(size: Vector, cloth: Material) -> Mesh:
    """A box with soft edges: a superellipsoid."""
    rows, columns = np.meshgrid(np.linspace(-np.pi / 2, np.pi / 2, 9), np.linspace(0, 2 * np.pi, 25), indexing="ij")

    def soft(value: np.ndarray) -> np.ndarray:
        return np.sign(value) * np.abs(value) ** 0.4

    points = np.stack(
        [soft(np.cos(rows)) * soft(np.sin(columns)), soft(np.sin(rows)), soft(np.cos(rows)) * soft(np.cos(columns))], -1
    )
    uv = np.stack([columns / (2 * np.pi) * 2, rows / np.pi + 0.5], -1)
    return meshes.fit(meshes.grid(points, cloth, uv), size)


def bed(rng: Rng, size: Vector) -> Mesh:
    """Frame, mattress, blanket, pillows and headboard. The head is at the back."""
    x, y, z = size
    frame, linen = material(rng, "wood", "paint", "white"), material(rng, "white", "paint", gloss=0.0)
    blanket = material(rng, "weave", "paint", "carpet", gloss=0.0)
    low = min(rng.uniform(0.2, 0.35), y * 0.4)
    parts = [
        (box((x, low, z), frame), (0, 0, 0)),
        (_cushion((x * 0.96, 0.24, z * 0.96), linen), (0, low - 0.04, 0)),
        (_cushion((x * 1.0, 0.27, z * rng.uniform(0.55, 0.75)), blanket), (0, low - 0.05, z * 0.13)),
        (box((x, y, 0.05), frame), (0, 0, -z / 2 + 0.025)),
    ]
    count = 1 if x < 1.3 else 2
    pillow = _cushion((x / count * 0.85, 0.14, 0.42), linen)
    parts += [(pillow, (x * ((k + 0.5) / count - 0.5), low + 0.16, -z / 2 + 0.32)) for k in range(count)]
    return assemble(*parts)


def cabinet(rng: Rng, size: Vector, body: Material | None = None, columns: int | None = None) -> Mesh:
    """A body with drawers or doors, and handles."""
    x, y, z = size
    body = body or material(rng, "wood", "wood", "paint", "white")
    front = body if rng.random() < 0.6 else material(rng, "wood", "paint", "white")
    handle = material(rng, "metal", "dark")
    columns = columns or max(1, round(x / rng.uniform(0.4, 0.7)))
    rows = max(1, round(y / rng.uniform(0.2, 0.8)))
    width, height = x / columns, (y - 0.06) / rows
    panel = box((width - 0.012, height - 0.012, 0.02), front)
    knob = box((min(0.14, width * 0.3), 0.015, 0.025), handle) if rows > 1 else box((0.015, 0.15, 0.025), handle)
    parts = [(box((x, y, z - 0.025), body), (0, 0, -0.0125))]
    for row in range(rows):
        for column in range(columns):
            place = (width * (column + 0.5) - x / 2, 0.045 + height * row, z / 2 - 0.02)
            parts += [(panel, place), (knob, (place[0], place[1] + height * 0.55, z / 2))]
    return meshes.fit(assemble(*parts), size)


def shelf(rng: Rng, size: Vector) -> Mesh:
    """Sides, boards, sometimes a back, and rows of books."""
    x, y, z = size
    board = material(rng, "wood", "white", "paint")
    count, thick = max(2, round(y / rng.uniform(0.28, 0.42))), 0.022
    parts = [(box((thick, y, z), board), (s * (x - thick) / 2, 0, 0)) for s in (-1, 1)]
    parts += [(box((x, thick, z), board), (0, (y - thick) * k / count, 0)) for k in range(count + 1)]
    if rng.random() < 0.6:
        parts.append((box((x, y, 0.008), board), (0, 0, -z / 2 + 0.004)))
    for k in range(count):
        if rng.random() < 0.75:
            parts += [
                (mesh, (px - x / 2 + thick, (y - thick) * k / count + thick, -0.02))
                for mesh, px in _books(rng, (x - 2 * thick) * rng.uniform(0.3, 0.95), y / count - 0.05, z * 0.7)
            ]
    return assemble(*parts)


def _books(rng: Rng, width: float, height: float, depth: float) -> list[tuple[Mesh, float]]:
    """A row of books, each with the position of its middle."""
    books, position = [], 0.0
    covers = [material(rng, "paint") for _ in range(6)]
    while (thick := rng.uniform(0.015, 0.05)) + position < width:
        size = (thick * 0.96, height * rng.uniform(0.65, 0.98), depth * rng.uniform(0.8, 1))
        books.append((box(size, covers[rng.integers(6)]), position + thick / 2))
        position += thick
    return books


def kitchen_unit(rng: Rng, size: Vector) -> Mesh:
    """A cabinet under a worktop; or a machine with a round or a square door."""
    x, y, z = size
    if rng.random() < 0.7:
        top = material(rng, "wood", "marble", "dark")
        plinth = box((x, 0.1, z * 0.9), material(rng, "dark"))
        body = cabinet(rng, (x, y - 0.14, z * 0.97), columns=max(1, round(x / 0.6)))
        return assemble((plinth, (0, 0, -z * 0.03)), (body, (0, 0.1, 0)), (box((x, 0.04, z), top), (0, y - 0.04, 0)))
    white, dark = material(rng, "white", "metal"), material(rng, "dark", gloss=0.7)
    door = (
        transform(cylinder(x * 0.3, 0.03, dark), rotation("x", np.pi / 2))
        if rng.random() < 0.5
        else transform(box((x * 0.75, 0.03, y * 0.45), dark), rotation("x", np.pi / 2))
    )
    panel = box((x * 0.9, 0.08, 0.01), dark)
    return assemble(
        (box((x, y, z - 0.03), white), (0, 0, -0.015)),
        (door, (0, y * 0.45, z / 2 - 0.03)),
        (panel, (0, y * 0.86, z / 2 - 0.025)),
    )


def bath(rng: Rng, size: Vector) -> Mesh:
    """A tub: four walls and a bottom."""
    x, y, z = size
    enamel, rim = material(rng, "white"), 0.07
    return assemble(
        (box((x, y * 0.35, z), enamel), (0, 0, 0)),
        *((box((rim, y, z), enamel), (s * (x - rim) / 2, 0, 0)) for s in (-1, 1)),
        *((box((x, y, rim), enamel), (0, 0, s * (z - rim) / 2)) for s in (-1, 1)),
    )


def toilet(rng: Rng, size: Vector) -> Mesh:
    """A bowl with a seat, and a cistern behind it."""
    x, y, z = size
    enamel = material(rng, "white")
    radius = min(x / 2, z * 0.36)
    bowl = lathe(
        [
            (0, 0),
            (radius * 0.6, 0),
            (radius * 0.55, y * 0.2),
            (radius, y * 0.5),
            (radius, y * 0.5),
            (radius * 0.7, y * 0.53),
            (0, y * 0.45),
        ],
        enamel,
    )
    return assemble(
        (transform(bowl, meshes.scaling(1, 1, 1.2)), (0, 0, z / 2 - radius * 1.2)),
        (box((x * 0.95, y * 0.5, z * 0.25), enamel), (0, y * 0.5, -z / 2 + z * 0.125)),
        (box((x * 0.5, y * 0.5, z * 0.4), enamel), (0, 0, -z / 2 + z * 0.2)),
    )


def washbasin(rng: Rng, size: Vector) -> Mesh:
    """A basin on a column or a cabinet, with a tap."""
    x, y, z = size
    enamel, metal = material(rng, "white"), material(rng, "metal", gloss=0.8)
    level, rim = y * 0.84, 0.05
    under = (
        cabinet(rng, (x * 0.9, level - 0.16, z * 0.85)) if rng.random() < 0.5 else cylinder(0.09, level - 0.16, enamel)
    )
    return assemble(
        (under, (0, 0, 0)),
        (box((x, 0.06, z), enamel), (0, level - 0.16, 0)),
        *((box((rim, 0.16, z), enamel), (s * (x - rim) / 2, level - 0.16, 0)) for s in (-1, 1)),
        *((box((x, 0.16, rim * w), enamel), (0, level - 0.16, s * (z - rim * w) / 2)) for s, w in ((-1, 2), (1, 1))),
        (cylinder(0.015, y - level, metal, segments=10), (0, level, -z / 2 + rim)),
        (box((0.025, 0.02, z * 0.35), metal), (0, y - 0.02, -z / 2 + rim + z * 0.17)),
    )


def lamp(rng: Rng, size: Vector) -> Mesh:
    """A foot, a stem and a shade."""
    x, y, z = size
    radius, stem = min(x, z) / 2, material(rng, "metal", "wood", "dark")
    shade = Material((0.85, 0.8, 0.7), glow=(0.9, 0.75, 0.5)) if rng.random() < 0.5 else material(rng, "paint", "white")
    high = y * rng.uniform(0.2, 0.4)
    foot = [
        (0, 0),
        (radius * 0.6, 0),
        (radius * 0.6, 0),
        (radius * 0.5, 0.02),
        (0.012, 0.03),
        (0.012, y - high / 2),
        (0, y - high / 2),
    ]
    if y < 1:
        body = rng.uniform(0.25, 0.5) * radius
        foot = [
            (0, 0),
            (radius * 0.5, 0),
            (body, y * 0.1),
            (body * 1.2, y * 0.3),
            (0.015, y * 0.5),
            (0.012, y - high / 2),
            (0, y - high / 2),
        ]
    top = radius * rng.uniform(0.5, 1.0)
    return assemble(
        (lathe(foot, stem, segments=16), (0, 0, 0)), (lathe([(radius, 0), (top, high)], shade), (0, y - high, 0))
    )


def ceiling_lamp(rng: Rng, size: Vector) -> Mesh:
    """A wire and a shade, or a globe."""
    x, y, z = size
    radius, wire = min(x, z) / 2, material(rng, "dark")
    if rng.random() < 0.4:
        return assemble((cylinder(0.01, y, wire, segments=6), (0, 0, 0)), (sphere(radius, glowing(2)), (0, 0, 0)))
    high = min(y * 0.5, radius * rng.uniform(0.5, 1.4))
    shade = lathe([(radius, 0), (radius * rng.uniform(0.2, 0.7), high)], material(rng, "paint", "metal", "white"))
    bulb = sphere(min(0.04, radius * 0.4), glowing(6), segments=12)
    return assemble(
        (cylinder(0.01, y - high, wire, segments=6), (0, high * 0.9, 0)), (shade, (0, 0, 0)), (bulb, (0, high * 0.2, 0))
    )


def plant(rng: Rng, size: Vector) -> Mesh:
    """Leaves that bend out of a pot."""
    x, y, z = size
    radius = min(x, z) / 2
    pot_height, pot_radius = y * rng.uniform(0.2, 0.35), radius * rng.uniform(0.4, 0.6)
    pot = lathe(
        [
            (0, 0),
            (pot_radius * 0.7, 0),
            (pot_radius * 0.7, 0),
            (pot_radius, pot_height),
            (pot_radius * 0.9, pot_height),
            (0, pot_height * 0.9),
        ],
        material(rng, "paint", "brick", "white"),
    )
    leaf = material(rng, "green")
    parts = [(pot, (0, 0, 0))]
    for _ in range(int(rng.integers(14, 30))):
        parts.append((_leaf(rng, radius, y - pot_height, leaf), (0, pot_height * 0.9, 0)))
    return assemble(*parts)


def _leaf(rng: Rng, reach: float, height: float, leaf: Material) -> Mesh:
    """One leaf: a strip along an arc that rises and falls."""
    along = np.linspace(0, 1, 7)
    lean, width = rng.uniform(0.2, 1), rng.uniform(0.03, 0.12) * height
    out, up = reach * lean * along, height * (along * 1.6 - along**2 * (0.6 + 0.7 * lean)) * rng.uniform(0.6, 1)
    half = width * np.sin(np.pi * np.clip(along * 0.9 + 0.08, 0, 1)) / 2
    points = np.stack([np.stack([s * half, up, out], -1) for s in (-1, 1)], 1)
    uv = np.stack([np.stack([np.full(7, s), along], -1) for s in (0.0, 1.0)], 1)
    return transform(meshes.grid(points, leaf, uv), rotation("y", rng.uniform(0, 2 * np.pi)))


def picture(rng: Rng, size: Vector) -> Mesh:
    """A painting or a landscape in a frame."""
    canvas = Material(
        (1.0, 1.0, 1.0), picture_of(str(rng.choice(["abstract", "landscape"])), int(rng.integers(1 << 20))), 0.1
    )
    return _framed(rng, size, canvas, rng.uniform(0.015, 0.06))


def mirror(rng: Rng, size: Vector) -> Mesh:
    """A pane in a frame."""
    return _framed(rng, size, Material((0.75, 0.78, 0.78), gloss=1.0), rng.uniform(0.01, 0.05))


def _framed(rng: Rng, size: Vector, pane: Material, rim: float) -> Mesh:
    x, y, z = size
    frame = material(rng, "wood", "dark", "white", "metal")
    corners = np.array([[-0.5, 0, 0], [0.5, 0, 0], [0.5, 1, 0], [-0.5, 1, 0]]) * [x - rim, y - rim, 1]
    sheet = meshes.quad(corners, pane)
    sheet = Mesh(
        sheet.vertices,
        sheet.normals,
        np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32),
        sheet.faces,
        sheet.material,
        sheet.materials,
    )
    return assemble(
        (sheet, (0, rim / 2, z / 2 - min(0.01, z / 3))),
        (box((x, y, z / 2), frame), (0, 0, -z / 4)),
        *((box((rim, y, z), frame), (s * (x - rim) / 2, 0, 0)) for s in (-1, 1)),
        *((box((x, rim, z), frame), (0, level, 0)) for level in (0.0, y - rim)),
    )


def screen(rng: Rng, size: Vector) -> Mesh:
    """A dark pane on a foot."""
    x, y, z = size
    case, pane = material(rng, "dark"), Material((0.02, 0.02, 0.025), gloss=0.7)
    low = y * 0.12
    return assemble(
        (box((x, y - low, 0.04), case), (0, low, 0)),
        (box((x * 0.96, (y - low) * 0.92, 0.004), pane), (0, low + (y - low) * 0.04, 0.022)),
        (box((0.06, low, 0.03), case), (0, 0, 0)),
        (box((x * 0.4, 0.015, z), case), (0, 0, 0)),
    )


def rug(rng: Rng, size: Vector) -> Mesh:
    """A rectangular or round rug."""
    x, y, z = size
    if rng.random() < 0.25:
        return transform(cylinder(0.5, y, material(rng, "carpet", "weave"), segments=40), meshes.scaling(x, 1, z))
    if rng.random() < 0.6:
        pile = Material((1.0, 1.0, 1.0), picture_of("oriental", int(rng.integers(1 << 20))))
        flat = box((1, y, 1), pile)
        return transform(flat, meshes.scaling(x, 1, z))
    return box(size, material(rng, "carpet", "weave"))


def curtain(rng: Rng, size: Vector) -> Mesh:
    """Two folded lengths of cloth under a rod, open or closed."""
    x, y, z = size
    cloth = material(rng, "weave", "paint", "white", gloss=0.0)
    open_ = rng.uniform(0.3, 0.98)
    waves = int(rng.integers(4, 9))
    along = np.linspace(0, 1, 8 * waves + 1)
    parts = [
        (
            transform(cylinder(0.012, x, material(rng, "metal", "wood"), segments=8), rotation("z", np.pi / 2)),
            (x / 2, y - 0.02, 0),
        )
    ]
    for side in (-1, 1):
        width = x / 2 * open_
        across = side * (x / 2 - width) + (along - (0 if side > 0 else 1)) * width
        fold = (z / 2 - 0.005) * np.sin(2 * np.pi * waves * along + rng.uniform(0, 6))
        points = np.stack([np.stack([across, np.full_like(along, level), fold], -1) for level in (0.0, y - 0.03)])
        uv = np.stack([np.stack([along * width * 2, np.full_like(along, level)], -1) for level in (0.0, y)])
        parts.append((meshes.grid(points, cloth, uv), (0, 0, 0)))
    return meshes.fit(assemble(*parts), size)


def door(rng: Rng, size: Vector) -> Mesh:
    """A leaf with panels and a handle, in a frame."""
    x, y, z = size
    leaf, metal = material(rng, "wood", "white", "paint"), material(rng, "metal")
    rim = 0.07
    parts = [
        (box((x - 2 * rim, y - rim, z * 0.4), leaf), (0, 0, 0)),
        *((box((rim, y, z), leaf), (s * (x - rim) / 2, 0, 0)) for s in (-1, 1)),
        (box((x, rim, z), leaf), (0, y - rim, 0)),
        (box((0.12, 0.02, z), metal), (x / 2 - rim - 0.12, y * 0.49, 0)),
    ]
    rows = int(rng.integers(0, 4))
    for k in range(rows):
        height = (y - rim) / rows
        panel = box(((x - 2 * rim) * 0.7, height * 0.75, z * 0.55), leaf)
        parts.append((panel, (0, height * (k + 0.125), 0)))
    return assemble(*parts)


def window(rng: Rng, size: Vector) -> Mesh:
    """A frame with bars but no panes, so that one sees through it."""
    x, y, z = size
    frame, rim = material(rng, "white", "wood", "dark", "paint"), rng.uniform(0.04, 0.08)
    columns, rows = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    return assemble(
        *((box((rim, y, z), frame), (s * (x - rim) / 2, 0, 0)) for s in (-1, 1)),
        *((box((x, rim, z), frame), (0, level, 0)) for level in (0.0, y - rim)),
        *(
            (box((rim * 0.6, y - rim, z * 0.5), frame), (x * (k / columns - 0.5), rim / 2, 0))
            for k in range(1, columns)
        ),
        *((box((x - rim, rim * 0.6, z * 0.4), frame), (0, y * k / rows, 0)) for k in range(1, rows)),
    )


def ornament(rng: Rng, size: Vector) -> Mesh:
    """A vase, a ball, a pile of books, a bottle, a mug, a bowl of fruit or a box."""
    glaze = material(rng, "paint", "marble", "white", "tiles", gloss=0.4)
    return ORNAMENTS[rng.integers(len(ORNAMENTS))](rng, size, glaze)


def _vase(rng: Rng, size: Vector, glaze: Material) -> Mesh:
    x, y, z = size
    radius = min(x, z) / 2
    middle, neck = rng.uniform(0.2, 0.7), rng.uniform(0.25, 0.7)
    return lathe(
        [(0, 0), (radius * 0.6, 0), (radius, y * middle), (radius * neck, y * 0.88), (radius * neck * 1.2, y)],
        glaze,
        tile=0.3,
    )


def _ball(rng: Rng, size: Vector, glaze: Material) -> Mesh:
    x, _, z = size
    return sphere(min(x, z) / 2, material(rng, "paint", "weave", "wood", gloss=0.3), tile=0.3)


def _pile_of_books(rng: Rng, size: Vector, glaze: Material) -> Mesh:
    x, y, z = size
    count = int(rng.integers(1, 5))
    books = []
    for k in range(count):
        book = box((x * rng.uniform(0.75, 1), y / count, z * rng.uniform(0.75, 1)), material(rng, "paint"))
        books.append((transform(book, rotation("y", rng.uniform(-0.3, 0.3))), (0, y * k / count, 0)))
    return assemble(*books)


def _bottle(rng: Rng, size: Vector, glaze: Material) -> Mesh:
    x, y, z = size
    wide = min(min(x, z) / 2, y * 0.15)
    neck = wide * 0.35
    profile = [(0, 0), (wide, 0), (wide, 0), (wide, y * 0.6), (neck, y * 0.75), (neck, y), (neck, y), (0, y)]
    return lathe(profile, material(rng, "paint", "green", "dark", gloss=0.6))


def _mug(rng: Rng, size: Vector, glaze: Material) -> Mesh:
    x, y, z = size
    radius = min(x, z) / 2
    tall = min(y, radius * 2)
    handle = box((radius * 0.5, tall * 0.6, radius * 0.2), glaze)
    foot, rim, inner = radius * 0.7, radius * 0.75, radius * 0.65
    profile = [
        *((0, 0), (foot, 0), (foot, 0), (rim, tall)),
        *((radius * 0.68, tall), (inner, tall * 0.1), (0, tall * 0.1)),
    ]
    return assemble((lathe(profile, glaze), (0, 0, 0)), (handle, (radius * 0.8, tall * 0.2, 0)))


def _bowl_of_fruit(rng: Rng, size: Vector, glaze: Material) -> Mesh:
    x, y, z = size
    radius = min(x, z) / 2
    tall = min(y, radius) * 0.6
    profile = [
        *((0, 0), (radius * 0.5, 0), (radius, tall)),
        *((radius * 0.94, tall), (radius * 0.45, tall * 0.15), (0, tall * 0.15)),
    ]
    bowl = lathe(profile, glaze)
    fruit = [
        (
            sphere(radius * 0.33, material(rng, "paint"), segments=14),
            (radius * 0.42 * np.cos(a), tall * 0.4, radius * 0.42 * np.sin(a)),
        )
        for a in np.arange(4) * np.pi / 2 + rng.uniform(0, 2)
    ]
    return assemble((bowl, (0, 0, 0)), *fruit)


def _ornamental_box(rng: Rng, size: Vector, glaze: Material) -> Mesh:
    return box(size, material(rng, "paint", "wood", "weave", "abstract"), tile=max(size))


# Which of them is built is drawn by position: a new one, or another order, changes every rendered scene.
ORNAMENTS = (_vase, _ball, _pile_of_books, _bottle, _mug, _bowl_of_fruit, _ornamental_box)


def floor_item(rng: Rng, size: Vector) -> Mesh:
    """A box, a basket, a ball, a stool or a bin."""
    x, y, z = size
    style = rng.integers(4)
    if style == 0:
        return box(size, material(rng, "wood", "paint", "weave"))
    if style == 1:
        wide = min(x, z) / 2
        return lathe(
            [(0, 0), (wide * 0.8, 0), (wide * 0.8, 0), (wide, y), (wide * 0.95, y), (wide * 0.75, 0.02), (0, 0.02)],
            material(rng, "weave", "metal", "paint"),
            tile=0.4,
        )
    if style == 2:
        return sphere(min(size) / 2, material(rng, "paint", "weave", gloss=0.3), tile=0.4)
    return stool(rng, size)


def piano(rng: Rng, size: Vector) -> Mesh:
    """An upright: case, lid over the keys, keys."""
    x, y, z = size
    case, ivory = material(rng, "dark", "wood", gloss=0.6), material(rng, "white")
    return assemble(
        (box((x, y, z * 0.6), case), (0, 0, -z * 0.2)),
        (box((x, 0.08, z * 0.4), case), (0, y * 0.5, z * 0.3)),
        (box((x * 0.9, 0.02, z * 0.25), ivory), (0, y * 0.5 + 0.08, z * 0.33)),
        *((box((0.08, y * 0.5, 0.08), case), (s * (x / 2 - 0.04), 0, z / 2 - 0.04)) for s in (-1, 1)),
    )
