"""A bookcase, filled with books, stacks, boxes and gaps."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from marigold_jax.rooms.finishes import any_color, finish, pale
from marigold_jax.rooms.placement import Box
from marigold_jax.rooms.scene import Material, Mesh
from marigold_jax.rooms.sheets import Sheets


@dataclass(frozen=True)
class Contents:
    """What all compartments of a case share.

    Attributes:
        block: adds a block, given left, right, low, high, back, front (metres) and a material.
        palette: the materials of books and boxes.
        back: where the compartments end at the back, in metres.
        depth: of the case, in metres.
        fullness: 0.4 (many gaps) to 1.
    """

    block: Callable[..., None]
    palette: list[int]
    back: float
    depth: float
    fullness: float


def bookcase(
    random: np.random.Generator, width: float, height: float, depth: float
) -> tuple[Mesh, list[tuple[float, float]]]:
    """A bookcase of the given size in metres.

    Returns:
        The mesh, its front towards +z, and the (x, y) of the middle of each compartment.
    """
    sheets = Sheets()
    wood = sheets.material(*finish(random, {"wood": 2, "paint": 1}))
    palette = [sheets.material(Material(any_color(random), gloss=random.uniform(0, 0.4))) for _ in range(14)]
    sheets.material(Material(pale(random, 0.6, 0.8)))  # unused; without it, all later random draws would change
    board = random.uniform(0.015, 0.03)

    def block(left, right, low, high, back, front, material):
        box = Box((left + right) / 2, (back + front) / 2, (right - left) / 2, (front - back) / 2, 0.0, low, high)
        sheets.block(box, material)

    back, front, half = -depth / 2, depth / 2, width / 2
    columns = max(1, round(width / random.uniform(0.6, 1.1)))
    uprights = np.linspace(-half, half - board, columns + 1)
    for x in uprights:
        block(x, x + board, 0.0, height, back, front, wood)
    if random.random() < 0.8:
        block(-half, half, 0.0, height, back, back + 0.006, wood)
    rows = max(2, round(height / random.uniform(0.27, 0.42)))
    levels = np.linspace(0.04, height - board, rows + 1)
    contents = Contents(block, palette, back + 0.01, depth, fullness=random.uniform(0.4, 1.0))
    places = []
    for y in levels:
        block(-half, half, y, y + board, back, front, wood)
    for low, high in pairwise(levels):
        room = high - low - board
        for start, stop in pairwise(uprights):
            places.append(((start + stop) / 2, (low + high) / 2))
            _fill(random, contents, (start + board, stop), low + board, room)
    return sheets.mesh(), places


def _fill(
    random: np.random.Generator, contents: Contents, span: tuple[float, float], floor: float, room: float
) -> None:
    """Fills one compartment with upright books, stacks, boxes and gaps, from left to right.

    Args:
        random: draws what is put there.
        contents: what all compartments share.
        span: where the compartment begins and ends, metres along the case.
        floor: height of its board, in metres.
        room: free height above the board, in metres.
    """
    block, palette, depth, fullness = contents.block, contents.palette, contents.depth, contents.fullness
    x, end = span
    usual = random.uniform(0.6, 0.9) * room
    while x < end - 0.03:
        what = random.choice(["book", "gap", "stack", "box"], p=[0.86, 0.06, 0.05, 0.03])
        material = palette[random.integers(len(palette))]
        if what == "gap" or random.random() > 0.6 + 0.4 * fullness:
            x += random.uniform(0.02, 0.35) * (1.3 - fullness)
        elif what == "book":
            thick = random.uniform(0.012, 0.05)
            tall = min(usual * random.uniform(0.8, 1.12), room - 0.01)
            deep = min(random.uniform(0.55, 0.95) * depth, depth - 0.02)
            if x + thick > end:
                break
            front = depth / 2 - random.uniform(0.0, 0.05)
            block(x, x + thick, floor, floor + tall, max(front - deep, contents.back), front, material)
            x += thick + 0.001
        else:
            wide = random.uniform(0.15, 0.28)
            if x + wide > end:
                break
            y = floor
            for _ in range(random.integers(1, 6) if what == "stack" else 1):
                thick = random.uniform(0.015, 0.04) if what == "stack" else min(random.uniform(0.1, 0.3), room - 0.01)
                if y + thick > floor + room - 0.005:
                    break
                shrink = random.uniform(0, 0.03)
                cover = palette[random.integers(len(palette))] if what == "stack" else material
                block(x + shrink, x + wide - shrink, y, y + thick, contents.back, depth / 2 - 0.01 - shrink, cover)
                y += thick
            x += wide + 0.01
