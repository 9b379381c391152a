"""Materials of surfaces: which textures suit a floor, a wall or a facade, and how often each is drawn."""

from functools import cache
from zlib import crc32

import numpy as np
from jaxtyping import UInt8

from marigold_jax.rooms.scene import Color, Material
from marigold_jax.rooms.textures import FAMILIES

TEXTURE_SIZE = 256
VARIANTS = 48  # of each texture; painting a new one for each surface would take most of the time

# Shares need not add up to 1. "paint" is a plain colour without a texture.
FLOORS = {"planks": 4, "parquet": 2, "carpet": 3, "tiles": 2, "wood": 1, "concrete": 1, "marble": 1, "paint": 1.5}
TILED_FLOORS = {"tiles": 5, "marble": 1, "planks": 1, "paving": 1, "concrete": 1}
WALLS = {"paint": 5, "plaster": 4, "wallpaper": 2, "brick": 0.7, "concrete": 0.6, "planks": 0.4, "weave": 0.2}
TILED_WALLS = {"tiles": 5, "paint": 2, "marble": 0.7, "plaster": 1}
TOPS = {"wood": 5, "planks": 1, "marble": 1.5, "paint": 2, "concrete": 0.5, "tiles": 0.5, "weave": 1}
RUGS = {"oriental": 3, "weave": 2, "carpet": 2, "abstract": 1}
PICTURES = {"abstract": 3, "landscape": 2}
FACADES = {"plaster": 4, "brick": 3, "concrete": 1.5, "paint": 2, "planks": 0.5, "tiles": 0.3}
FAR_FACADES = {"facade": 1}
ROOFS = {"roof": 1}
ROADS = {"asphalt": 4, "cobbles": 0.5, "concrete": 0.5}
PAVEMENTS = {"paving": 4, "asphalt": 1, "concrete": 1, "cobbles": 0.5}
GROUNDS = {"grass": 3, "gravel": 1}
LAWNS = {"grass": 1}
LEAVES = {"leaves": 1}


@cache
def _texture(family: str, variant: int) -> UInt8[np.ndarray, "h w 3"]:
    random = np.random.default_rng([crc32(family.encode()), variant])
    return FAMILIES[family].paint(random, TEXTURE_SIZE)


def finish(random: np.random.Generator, shares: dict[str, float | int], lighter: float = 1.0) -> tuple[Material, float]:
    """Draws a material.

    Args:
        random: draws it.
        shares: one of the tables above.
        lighter: textures are brightened by a random factor from 1 to this.

    Returns:
        The material, and the metres that one repeat of its texture spans.
    """
    names = list(shares)
    chances = np.array([shares[name] for name in names], float)
    name = names[random.choice(len(names), p=chances / chances.sum())]
    if name == "paint":
        return Material(paint(random)), 1.0
    family = FAMILIES[name]
    shade = random.uniform(0.75, 1.0) * random.uniform(0.9, 1.0, 3) * lighter ** random.random()
    material = Material(
        color=tuple(float(c) for c in shade),
        texture=_texture(name, int(random.integers(VARIANTS))),
        gloss=family.gloss * float(random.uniform(0, 1)),
    )
    return material, float(random.uniform(*family.metres))


def paint(random: np.random.Generator) -> Color:
    """The colour of a painted wall: usually light and unsaturated, sometimes strong."""
    strength = random.choice([0.08, 0.25, 0.7], p=[0.5, 0.35, 0.15])
    return tuple(float(c) for c in random.uniform(0.35, 0.9) * (1 - strength * random.random(3)))


def pale(random: np.random.Generator, low: float = 0.6, high: float = 0.95) -> Color:
    """A colour near white; `low` and `high` bound its brightness."""
    return tuple(float(c) for c in random.uniform(low, high) * random.uniform(0.9, 1.0, 3))


def brown(random: np.random.Generator) -> Color:
    """The colour of wood."""
    value = random.uniform(0.08, 0.5)
    return float(value), float(value * random.uniform(0.5, 0.75)), float(value * random.uniform(0.2, 0.5))


def any_color(random: np.random.Generator) -> Color:
    """Any colour, from nearly black to bright and from grey to saturated."""
    return tuple(float(c) for c in random.uniform(0.05, 0.85) * random.uniform(0.2, 1.0, 3) ** random.uniform(0, 2))
