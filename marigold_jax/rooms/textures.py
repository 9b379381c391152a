"""Procedural textures: plaster, wood, tiles, brick, grass and others. They repeat without a seam.

A family is a function `(rng, size) -> uint8 (size, size, 3)`, sRGB, that draws new colours and proportions on each
call. `FAMILIES` lists them, with the metres that one repeat covers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

Field = Float[np.ndarray, "h w"]
Picture = UInt8[np.ndarray, "h w 3"]
Range = tuple[float | int, float | int]
Painter = Callable[[np.random.Generator, int], Picture]

# ---------------------------------------------------------------------------------------------------------- ingredients


def noise(rng: np.random.Generator, size: int, slope: float, stretch: tuple[float, float] = (1.0, 1.0)) -> Field:
    """Periodic noise of mean 0 and standard deviation 1.

    Args:
        rng: draws the phases.
        size: rows and columns.
        slope: amplitudes are frequency ** -slope.
        stretch: enlarges features vertically and horizontally.
    """
    rows, columns = np.meshgrid(np.fft.fftfreq(size, 1 / size), np.fft.rfftfreq(size, 1 / size), indexing="ij")
    frequency = np.hypot(rows * stretch[0], columns * stretch[1])
    amplitude = np.where(frequency > 0, np.maximum(frequency, 1) ** -slope, 0)
    phase = np.exp(2j * np.pi * rng.random(amplitude.shape))
    field = np.fft.irfft2(amplitude * phase, s=(size, size))
    return field / max(field.std(), 1e-9)


def color(rng: np.random.Generator, hue: Range, saturation: Range, value: Range) -> Float[np.ndarray, "3"]:
    """A random RGB colour, 0 to 1, from ranges of hue (0 red, 1/3 green, 2/3 blue), saturation and value."""
    h, s, v = rng.uniform(*hue), rng.uniform(*saturation), rng.uniform(*value)
    k = (np.array([5, 3, 1]) + 6 * h) % 6
    return v * (1 - s * np.clip(np.minimum(k, 4 - k), 0, 1))


def paint(rgb: Float[np.ndarray, "*s 3"], brightness: Field) -> Picture:
    """Multiplies colours by a brightness of mean 1, and converts to bytes."""
    return (255 * np.clip(rgb * brightness[..., None], 0, 1)).round().astype(np.uint8)


def masonry(
    rng: np.random.Generator, size: int, rows: int, columns: int, gap: float, shift: float | int
) -> tuple[Field, Field, Field]:
    """A pattern of bricks.

    Args:
        rng: draws a number for each brick.
        size: rows and columns of pixels.
        rows, columns: of bricks.
        gap: width of the joints, as a share of the repeat.
        shift: offset of every other row, in bricks.

    Returns:
        1 on bricks and 0 on joints; the random number of each pixel's brick; and the position within the brick from
        top (0) to bottom (1).
    """
    y, x = np.mgrid[:size, :size] / size
    row = (y * rows).astype(int)
    across = x * columns + shift * (row % 2)
    column = np.floor(across).astype(int) % columns
    down, along = y * rows - row, across - np.floor(across)
    edge = np.minimum(np.minimum(down, 1 - down) / rows, np.minimum(along, 1 - along) / columns)
    softness = 0.75 / size
    return np.clip((edge - gap / 2) / softness + 0.5, 0, 1), rng.random((rows, columns))[row, column], down


def blend(
    mask: Float[np.ndarray, "h w"], first: Float[np.ndarray, "*s 3"], second: Float[np.ndarray, "*t 3"]
) -> Float[np.ndarray, "h w 3"]:
    """The first colour where the mask is 1, the second where it is 0."""
    return mask[..., None] * first + (1 - mask[..., None]) * second


def cells(rng: np.random.Generator, size: int, count: int) -> tuple[Field, Field]:
    """Periodic Voronoi cells: the difference of the distances to the nearest two centres, and a number per cell."""
    points, values = rng.random((count, 2)), rng.random(count)
    y, x = np.mgrid[:size, :size] / size
    first, second = np.full((size, size), 9.0), np.full((size, size), 9.0)
    owner = np.zeros((size, size), int)
    for index, (py, px) in enumerate(points):
        dy, dx = np.abs(y - py), np.abs(x - px)
        distance = np.hypot(np.minimum(dy, 1 - dy), np.minimum(dx, 1 - dx))
        nearer = distance < first
        second = np.where(nearer, first, np.minimum(second, distance))
        first, owner = np.where(nearer, distance, first), np.where(nearer, index, owner)
    return second - first, values[owner]


# ------------------------------------------------------------------------------------------------------------- families


def plaster(rng: np.random.Generator, size: int = 256) -> Picture:
    """Painted walls: nearly white, or a pale or a strong colour."""
    saturation = [(0, 0.08), (0.08, 0.3), (0.3, 0.5)][rng.choice(3, p=[0.45, 0.4, 0.15])]
    wall = color(rng, (0, 1), saturation, (0.6, 0.95))
    return paint(wall, 1 + rng.uniform(0.005, 0.03) * noise(rng, size, 1.0) + 0.01 * noise(rng, size, 0.3))


def concrete(rng: np.random.Generator, size: int = 256) -> Picture:
    """Grey, cloudy, sometimes cast in panels."""
    grey = color(rng, (0.05, 0.15), (0, 0.1), (0.4, 0.75))
    bright = 1 + 0.07 * noise(rng, size, 1.4) + 0.03 * noise(rng, size, 0.4)
    if rng.random() < 0.5:
        mask, tone, _ = masonry(rng, size, 2, int(rng.integers(1, 3)), 0.012, 0)
        bright = bright * (0.75 + 0.25 * mask) * (0.95 + 0.1 * tone)
    return paint(grey, bright)


def wallpaper(rng: np.random.Generator, size: int = 256) -> Picture:
    """Stripes, dots, lozenges or waves in two tones of one colour."""
    ground = color(rng, (0, 1), (0.05, 0.4), (0.6, 0.92))
    figure = np.clip(ground * rng.uniform(0.55, 1.25) + rng.uniform(-0.12, 0.12, 3), 0, 1)
    y, x = 2 * np.pi * np.mgrid[:size, :size] / size
    across, down = int(rng.integers(3, 9)), int(rng.integers(3, 9))
    pattern = [
        np.cos(across * x),
        np.cos(across * x) + 0.5 * np.cos(2 * across * x + 1),
        np.cos(across * x) * np.cos(across * y),
        np.cos(across * x) + np.cos(across * y) - 0.8,
        np.cos(across * x + rng.uniform(0.5, 1.5) * np.sin(down * y)),
        np.cos(across * x) + np.cos(down * y) + np.cos((across + 1) * x + down * y),
    ][rng.integers(6)]
    mask = np.clip(pattern * rng.uniform(1.5, 6) + 0.5, 0, 1)
    return paint(blend(mask, figure, ground), 1 + 0.015 * noise(rng, size, 0.5))


def wood(rng: np.random.Generator, size: int = 256) -> Picture:
    """One board's grain, which runs across the picture."""
    light = color(rng, (0.05, 0.1), (0.25, 0.65), (0.3, 0.85))
    warp = noise(rng, size, 1.8, (0.4, 4.0))
    rings = np.sin(2 * np.pi * (rng.integers(2, 6) * np.mgrid[:size, :size][0] / size + rng.uniform(0.3, 0.9) * warp))
    fibres = noise(rng, size, 0.7, (0.3, 12.0))
    return paint(light, 1 + rng.uniform(0.04, 0.1) * rings + 0.05 * fibres + 0.04 * warp)


def planks(rng: np.random.Generator, size: int = 256) -> Picture:
    """Floor boards side by side, in different tones."""
    rows = int(rng.choice([4, 6, 8]))
    mask, tone, _ = masonry(rng, size, rows, int(rng.integers(1, 3)), rng.uniform(0.004, 0.009), rng.uniform(0.3, 0.7))
    grain = noise(rng, size, 0.8, (0.3, 10.0))
    board = color(rng, (0.04, 0.1), (0.15, 0.65), (0.3, 0.85))
    bright = (1 + rng.uniform(0.1, 0.35) * (tone - 0.5)) * (1 + 0.06 * grain) * (0.45 + 0.55 * mask)
    return paint(board, bright)


def parquet(rng: np.random.Generator, size: int = 256) -> Picture:
    """Basket weave: squares of strips, alternately horizontal and vertical."""
    squares, strips = int(rng.choice([2, 4])), int(rng.integers(3, 6))
    y, x = np.mgrid[:size, :size] / size * squares
    turned = (y.astype(int) + x.astype(int)) % 2 == 1
    across, along = np.where(turned, x, y) % 1 * strips, np.where(turned, y, x) % 1
    edge = np.minimum(np.minimum(across % 1, 1 - across % 1) / strips, np.minimum(along, 1 - along))
    mask = np.clip(edge / squares * size / 1.5, 0, 1)
    tone = rng.random((squares, squares, strips))[y.astype(int), x.astype(int), across.astype(int)]
    grain = np.where(turned, noise(rng, size, 0.8, (8.0, 0.3)), noise(rng, size, 0.8, (0.3, 8.0)))
    board = color(rng, (0.05, 0.1), (0.3, 0.65), (0.35, 0.8))
    return paint(board, (1 + 0.3 * (tone - 0.5)) * (1 + 0.05 * grain) * (0.6 + 0.4 * mask))


def tiles(rng: np.random.Generator, size: int = 256) -> Picture:
    """Square ceramic tiles in one colour, or two as on a chessboard."""
    count = int(rng.choice([2, 4, 6]))
    mask, tone, _ = masonry(rng, size, count, count, rng.uniform(0.006, 0.014), 0)
    y, x = (np.mgrid[:size, :size] * count) // size
    first = color(rng, (0, 1), (0, 0.35), (0.5, 0.95))
    chessboard = rng.random() < 0.35
    second = color(rng, (0, 1), (0, 0.5), (0.1, 0.6)) if chessboard else first
    joint = color(rng, (0.05, 0.15), (0, 0.1), (0.3, 0.8))
    tile = blend(((x + y) % 2).astype(float), first, second) * (0.94 + 0.12 * tone)[..., None]
    return paint(blend(mask, tile, joint), 1 + 0.03 * noise(rng, size, 1.3))


def marble(rng: np.random.Generator, size: int = 256) -> Picture:
    """Veins through a pale or a dark stone."""
    stone = color(rng, (0, 1), (0, 0.15), [(0.75, 0.95), (0.12, 0.35)][rng.choice(2, p=[0.75, 0.25])])
    veins = np.exp(-np.abs(noise(rng, size, 1.7)) * rng.uniform(6, 14))
    contrast = rng.uniform(0.25, 0.5) * (-1 if stone.mean() > 0.5 else 1)
    return paint(stone, 1 + contrast * veins + 0.04 * noise(rng, size, 1.5))


def brick(rng: np.random.Generator, size: int = 256) -> Picture:
    """A running bond of bricks in mortar; sometimes painted over."""
    rows = int(rng.choice([6, 8, 10]))
    mask, tone, _ = masonry(rng, size, rows, rows // 2 - 1, rng.uniform(0.012, 0.02), 0.5)
    clay = color(rng, (0.0, 0.08), (0.35, 0.65), (0.35, 0.7))
    mortar = color(rng, (0.05, 0.12), (0.02, 0.15), (0.5, 0.8))
    if rng.random() < 0.25:
        clay = color(rng, (0.05, 0.15), (0, 0.15), (0.7, 0.92))
        mortar = clay * 0.8
    body = clay * (0.8 + 0.4 * tone)[..., None]
    return paint(blend(mask, body, mortar), 1 + 0.08 * noise(rng, size, 0.6))


def carpet(rng: np.random.Generator, size: int = 256) -> Picture:
    """Pile: one colour, finely mottled."""
    pile = color(rng, (0, 1), (0.05, 0.5), (0.2, 0.75))
    return paint(pile, 1 + 0.1 * noise(rng, size, 0.1) + 0.04 * noise(rng, size, 1.5))


def weave(rng: np.random.Generator, size: int = 256) -> Picture:
    """Cloth: plain, checked or striped."""
    y, x = np.mgrid[:size, :size] / size
    cloth, second = color(rng, (0, 1), (0.05, 0.6), (0.25, 0.85)), color(rng, (0, 1), (0.05, 0.6), (0.25, 0.85))
    count = int(rng.integers(3, 9))
    stripes = [np.sin(2 * np.pi * count * axis) > rng.uniform(-0.3, 0.6) for axis in (x, y)]
    amount = [np.zeros_like(x), stripes[0] * 0.9, (stripes[0] * 0.5 + stripes[1] * 0.5)][rng.integers(3)]
    threads = 0.05 * (np.sin(2 * np.pi * 64 * x) + np.sin(2 * np.pi * 64 * y))
    return paint(blend(1 - amount, cloth, second), 1 + threads + 0.03 * noise(rng, size, 0.5))


def oriental(rng: np.random.Generator, size: int = 256) -> Picture:
    """A rug: nested borders around a field of mirrored figures; the picture is the whole rug."""
    palette = [color(rng, (0, 1), (0.3, 0.8), (0.2, 0.75)) for _ in range(4)]
    y, x = np.abs(np.mgrid[:size, :size] / (size - 1) - 0.5)
    border = 0.5 - np.maximum(x, y)
    figure = np.cos(2 * np.pi * rng.uniform(3, 8) * x) + np.cos(2 * np.pi * rng.uniform(3, 8) * y)
    figure = figure + np.cos(2 * np.pi * rng.uniform(3, 9) * (x + y))
    levels = np.digitize(figure, [-0.6, 0.4, 1.4])
    zigzag = (np.cos(2 * np.pi * 20 * x) + np.cos(2 * np.pi * 20 * y) > 0).astype(int)
    index = np.where(border > 0.12, levels, np.where(border > 0.09, 3, np.where(border > 0.035, zigzag, 2)))
    return paint(np.stack(palette)[index], 1 + 0.06 * noise(rng, size, 0.2))


def asphalt(rng: np.random.Generator, size: int = 256) -> Picture:
    """Dark, coarse, patchy."""
    tar = color(rng, (0.5, 0.7), (0, 0.08), (0.22, 0.45))
    return paint(tar, 1 + 0.12 * noise(rng, size, 0.1) + 0.07 * noise(rng, size, 1.6))


def paving(rng: np.random.Generator, size: int = 256) -> Picture:
    """Slabs or setts, in rows that may be shifted."""
    rows, columns = int(rng.choice([2, 4, 6])), int(rng.integers(2, 6))
    mask, tone, _ = masonry(rng, size, rows, columns, rng.uniform(0.01, 0.02), float(rng.choice([0, 0.5])))
    stone = color(rng, (0.03, 0.15), (0.02, 0.25), (0.4, 0.75))
    bright = (0.9 + 0.2 * tone) * (0.6 + 0.4 * mask) * (1 + 0.06 * noise(rng, size, 0.4))
    return paint(stone, bright)


def cobbles(rng: np.random.Generator, size: int = 256) -> Picture:
    """Stones of no regular shape."""
    border, tone = cells(rng, size, int(rng.integers(25, 60)))
    stone = color(rng, (0.03, 0.15), (0.02, 0.2), (0.4, 0.7))
    mask = np.clip(border * 40, 0, 1)
    return paint(stone, (0.75 + 0.5 * tone) * (0.5 + 0.5 * mask) * (1 + 0.06 * noise(rng, size, 0.6)))


def grass(rng: np.random.Generator, size: int = 256) -> Picture:
    """A lawn, fresh or dry."""
    blade = color(rng, (0.17, 0.3), (0.35, 0.6), (0.28, 0.5))
    earth = color(rng, (0.08, 0.13), (0.3, 0.5), (0.3, 0.5))
    mask = np.clip(0.8 + 0.25 * noise(rng, size, 1.2), 0, 1)
    return paint(blend(mask, blade, earth), 1 + 0.2 * noise(rng, size, 0.25, (2.0, 1.0)))


def gravel(rng: np.random.Generator, size: int = 256) -> Picture:
    """Earth and pebbles."""
    earth = color(rng, (0.05, 0.13), (0.1, 0.4), (0.4, 0.7))
    return paint(earth, 1 + 0.15 * noise(rng, size, 0.5) + 0.06 * noise(rng, size, 1.5))


def facade(rng: np.random.Generator, size: int = 256) -> Picture:
    """Windows in a wall, rows and columns of them: one repeat is a few floors high."""
    floors, bays = int(rng.integers(2, 4)), int(rng.integers(2, 5))
    wall = color(rng, (0.0, 0.16), (0.02, 0.45), (0.45, 0.9))
    y, x = np.mgrid[:size, :size] / size
    down, along = y * floors % 1, x * bays % 1
    pane_height, pane_width = rng.uniform(0.4, 0.62), rng.uniform(0.35, 0.65)
    inside = (np.abs(down - 0.45) < pane_height / 2) & (np.abs(along - 0.5) < pane_width / 2)
    frame = (np.abs(down - 0.45) < pane_height / 2 + 0.03) & (np.abs(along - 0.5) < pane_width / 2 + 0.035)
    cross = (np.abs(along - 0.5) < 0.015) | (np.abs(down - 0.4) < 0.012)
    tone = rng.random((floors, bays))[(y * floors).astype(int), (x * bays).astype(int)]
    glass = color(rng, (0.5, 0.65), (0.1, 0.4), (0.12, 0.35)) * (0.7 + 0.8 * tone + 0.4 * (0.5 - down))[..., None]
    trim = color(rng, (0, 1), (0, 0.2), (0.3, 0.95))
    sill = (np.abs(down - 0.95) < 0.02)[..., None] * 0.12
    surface = wall * (1 + 0.05 * noise(rng, size, 0.6))[..., None] - sill
    surface = np.where(frame[..., None], trim, surface)
    surface = np.where((inside & ~cross)[..., None], glass, surface)
    return paint(surface, np.ones((size, size)))


def roof(rng: np.random.Generator, size: int = 256) -> Picture:
    """Rows of clay or slate tiles, each in the shadow of the next."""
    rows = int(rng.choice([8, 12]))
    _, tone, down = masonry(rng, size, rows, rows, 0.0, 0.5)
    clay = (
        color(rng, (0.0, 0.07), (0.4, 0.7), (0.35, 0.65))
        if rng.random() < 0.7
        else color(rng, (0.55, 0.7), (0, 0.2), (0.25, 0.45))
    )
    return paint(clay, (0.8 + 0.3 * tone) * (0.6 + 0.45 * down) * (1 + 0.05 * noise(rng, size, 0.5)))


def leaves(rng: np.random.Generator, size: int = 256) -> Picture:
    """Foliage seen from afar."""
    border, tone = cells(rng, size, 220)
    leaf = color(rng, (0.2, 0.33), (0.3, 0.6), (0.25, 0.5))
    return paint(leaf, (0.65 + 0.6 * tone) * np.clip(0.6 + 25 * border, 0.6, 1) * (1 + 0.1 * noise(rng, size, 0.8)))


def abstract(rng: np.random.Generator, size: int = 256) -> Picture:
    """An abstract painting of bands, blocks and discs in few colours. It should be shown once, not repeated."""
    palette = np.stack([color(rng, (0, 1), (0.1, 0.9), (0.15, 0.95)) for _ in range(6)])
    levels = np.digitize(noise(rng, size, rng.uniform(1.4, 2.4)), np.sort(rng.normal(size=2)))
    picture = palette[levels]
    y, x = np.mgrid[:size, :size] / size
    for _ in range(int(rng.integers(0, 7))):
        cy, cx, ry, rx = rng.uniform([0, 0, 0.04, 0.04], [1, 1, 0.3, 0.3])
        disc, block = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1, (np.abs(y - cy) < ry) & (np.abs(x - cx) < rx)
        picture = np.where((disc if rng.random() < 0.5 else block)[..., None], palette[rng.integers(6)], picture)
    return paint(picture, 1 + 0.05 * noise(rng, size, 0.8))


def landscape(rng: np.random.Generator, size: int = 256) -> Picture:
    """A painting of hills under a sky. It should be shown once, not repeated."""
    y, _ = np.mgrid[:size, :size] / size
    top, bottom = color(rng, (0.5, 0.65), (0.2, 0.7), (0.5, 0.95)), color(rng, (0.02, 0.15), (0.1, 0.5), (0.7, 0.95))
    picture = blend(np.clip(1 - 1.7 * y, 0, 1), top, bottom)
    for layer in range(int(rng.integers(2, 5))):
        ridge = 0.45 + 0.13 * layer + rng.uniform(0.02, 0.07) * noise(rng, size, 1.9)[0]
        hill = color(rng, (0.1, 0.6), (0.1, 0.6), (0.2, 0.7)) * (1 - 0.12 * layer)
        picture = np.where((y > ridge)[..., None], hill, picture)
    return paint(picture, 1 + 0.04 * noise(rng, size, 0.7))


@dataclass(frozen=True)
class Family:
    """A family of textures: its function, the smallest and largest metres of one repeat, and its gloss (0 to 1)."""

    paint: Painter
    metres: tuple[float, float]
    gloss: float = 0.0


FAMILIES: dict[str, Family] = {
    "plaster": Family(plaster, (1.5, 4.0)),
    "wallpaper": Family(wallpaper, (0.5, 1.2)),
    "concrete": Family(concrete, (2.0, 4.0)),
    "brick": Family(brick, (0.6, 0.9)),
    "wood": Family(wood, (0.6, 1.2), 0.2),
    "planks": Family(planks, (0.8, 1.6), 0.25),
    "parquet": Family(parquet, (0.6, 1.2), 0.3),
    "tiles": Family(tiles, (0.4, 1.4), 0.4),
    "marble": Family(marble, (1.0, 2.0), 0.5),
    "carpet": Family(carpet, (0.6, 1.2)),
    "weave": Family(weave, (0.3, 0.8)),
    "oriental": Family(oriental, (2.0, 3.0)),
    "asphalt": Family(asphalt, (2.0, 4.0)),
    "paving": Family(paving, (1.2, 2.4)),
    "cobbles": Family(cobbles, (0.8, 1.6)),
    "grass": Family(grass, (1.5, 3.0)),
    "gravel": Family(gravel, (1.5, 3.0)),
    "facade": Family(facade, (6.0, 10.0)),
    "roof": Family(roof, (1.5, 3.0)),
    "leaves": Family(leaves, (0.8, 1.6)),
    "abstract": Family(abstract, (0.5, 1.5)),
    "landscape": Family(landscape, (0.5, 1.5)),
}
