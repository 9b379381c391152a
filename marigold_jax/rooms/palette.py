"""Materials of the built-in furniture: textures by family, and plain colours."""

from functools import lru_cache

import numpy as np

from marigold_jax.rooms import textures
from marigold_jax.rooms.scene import Material

Rng = np.random.Generator
PLAIN = {
    "paint": (((0, 1), (0.0, 0.5), (0.3, 0.9)), 0.15),
    "white": (((0.05, 0.15), (0.0, 0.08), (0.8, 0.95)), 0.3),
    "metal": (((0.55, 0.65), (0, 0.08), (0.4, 0.75)), 0.6),
    "dark": (((0.5, 0.7), (0, 0.2), (0.12, 0.25)), 0.4),
    "green": (((0.2, 0.36), (0.3, 0.6), (0.2, 0.5)), 0.1),
    "skin": (((0.04, 0.08), (0.25, 0.5), (0.4, 0.9)), 0.05),
}


@lru_cache(maxsize=256)
def picture_of(family: str, seed: int) -> np.ndarray:
    return textures.FAMILIES[family].paint(np.random.default_rng(seed), 128)


def material(rng: Rng, *families: str, gloss: float | None = None) -> Material:
    """Draws a material of one of the families: a key of `textures.FAMILIES`, or of `PLAIN` for a plain colour."""
    family = families[rng.integers(len(families))]
    if family in PLAIN:
        ranges, shine = PLAIN[family]
        srgb = textures.color(rng, *ranges)
        return Material(tuple(float(c) for c in srgb**2.2), None, shine if gloss is None else gloss)
    shine = textures.FAMILIES[family].gloss if gloss is None else gloss
    return Material((1.0, 1.0, 1.0), picture_of(family, int(rng.integers(40))), shine)


def glowing(strength: float | int = 3) -> Material:
    """The material of a lit shade or bulb; `strength` scales its radiance."""
    return Material((0.8, 0.75, 0.65), glow=(1.0 * strength, 0.85 * strength, 0.6 * strength))
