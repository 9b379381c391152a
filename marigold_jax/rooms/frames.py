"""Rendered frames as `prepare` wants them: a list of what there will be, and a record of each.

The frame `interior/000012_3` is the fourth view of scene 12; all of it follows from its name, the split, the seed and
the assets.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from zlib import crc32

import numpy as np

from marigold_jax.data.prepared import SOURCES
from marigold_jax.data.raw_frame import BadFrame, Record, quantise, to_png
from marigold_jax.data.transforms import PERCENTILES
from marigold_jax.rooms.catalogue import Catalogue, open_catalogue
from marigold_jax.rooms.render import Renderer
from marigold_jax.rooms.world import KINDS, build

SCENES_A_SEED = 1_000_000
SAMPLES = 2  # along each side of a pixel, of colour
FLATTEST = 1.05  # the least ratio of far to near that shows anything


@dataclass(frozen=True)
class Film:
    """What all frames of a split share. `assets` is a folder, or None for the built-in models."""

    split: str
    seed: int
    views: int
    size: tuple[int, int]
    assets: str | None


@dataclass(frozen=True)
class RoomsFrame:
    film: Film
    kind: str
    scene: int
    view: int

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.scene:06d}_{self.view}.png"


def list_frames(film: Film, scenes: int) -> list[RoomsFrame]:
    """All views of scenes 0, 1, ..., the kinds of which are drawn by their shares."""
    random = np.random.default_rng([film.seed, crc32(film.split.encode())])
    kinds = random.choice(list(KINDS), size=scenes, p=list(KINDS.values()))
    return [RoomsFrame(film, str(kind), i, view) for i, kind in enumerate(kinds) for view in range(film.views)]


def read_frame(frame: RoomsFrame) -> Record:
    """Renders a frame. Raises BadFrame where hardly anything is seen, or all of it at one depth."""
    film = frame.film
    picture = _renderer(film, frame.kind, frame.scene).frame(frame.view, film.size, SAMPLES, seed=frame.view)
    source = SOURCES["rooms"]
    stored = np.rint(picture.depth * source.units_per_metre)
    stored = np.where(picture.mask & (picture.depth < source.max_depth), stored, 0).astype(np.uint16)
    seen = stored[stored > 0]
    if seen.size < stored.size / 10:
        raise BadFrame("hardly any surface", f"{frame.name}: {seen.size} of {stored.size} pixels")
    near, far = np.quantile(seen, PERCENTILES)
    if far < FLATTEST * near:
        raise BadFrame("flat", f"{frame.name}: depth from {near:g} to {far:g} mm")
    return {
        "name": frame.name,
        "rgb": to_png(picture.rgb),
        "depth": to_png(stored),
        "normals": quantise(picture.normals),
    }


# Frames come scene by scene, so that one scene has to be remembered, in each process.
@lru_cache(maxsize=1)
def _renderer(film: Film, kind: str, scene: int) -> Renderer:
    number = film.seed * SCENES_A_SEED + scene
    return Renderer(build(kind, film.split, number, film.views, _catalogue(film.assets, film.split)))


@lru_cache(maxsize=1)
def _catalogue(assets: str | None, split: str) -> Catalogue:
    return open_catalogue(None if assets is None else Path(assets), split)


def card(film: Film) -> str:
    """Markdown on what the split is made of, and whose work that is."""
    catalogue = _catalogue(film.assets, film.split)
    models = sorted((model for kind in catalogue.by_kind.values() for model in kind), key=lambda model: model.name)
    rows = "\n".join(f"| {model.name} | {model.kind} | {model.creator} | {model.licence} |" for model in models)
    return f"""# Rendered interiors, still lifes and streets: the {film.split} split

Made by `python -m marigold_jax.prepare rooms`, seed {film.seed}, {film.views} views a scene, {film.size[0]} x
{film.size[1]} pixels. Depth is along the optical axis, in millimetres; normals point x right, y up, z to the viewer.
The models below may appear; no model of one split appears in another, except where a kind has fewer than three.

| model | kind | creator | licence |
|---|---|---|---|
{rows}
"""
