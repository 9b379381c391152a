"""Rendered frames for `prepare`: the list of the frames of a split, and the record of each.

The frame `interior/000012_3` is the fourth view of scene 12. It depends only on its name, the split, the seed and the
assets.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from zlib import crc32

import numpy as np

from marigold_jax.data.depth_format import DEPTH_FORMATS
from marigold_jax.data.raw_frame import BadFrame
from marigold_jax.data.record import Record, quantise, to_png
from marigold_jax.data.transforms import PERCENTILES
from marigold_jax.rooms.catalogue import Catalogue, open_catalogue
from marigold_jax.rooms.render import Renderer
from marigold_jax.rooms.world import KINDS, build

SCENES_PER_SEED = 1_000_000
SAMPLES = 2  # colour rays along each side of a pixel
SMALLEST_RATIO = 1.05  # far / near below which a frame counts as flat


@dataclass(frozen=True)
class SplitSettings:
    """What all frames of a split share.

    Attributes:
        split: "train", "val" or "test".
        seed: of the scenes.
        views: images per scene.
        size: (height, width) in pixels.
        assets: the folder of furniture; None for the built-in models.
    """

    split: str
    seed: int
    views: int
    size: tuple[int, int]
    assets: str | None


@dataclass(frozen=True)
class RoomsFrame:
    """One image to render: a view of a numbered scene of a kind (a key of `world.KINDS`)."""

    settings: SplitSettings
    kind: str
    scene: int
    view: int

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.scene:06d}_{self.view}.png"


def list_frames(settings: SplitSettings, scenes: int) -> list[RoomsFrame]:
    """All views of the scenes 0, 1, ..., whose kinds are drawn with the probabilities in `world.KINDS`."""
    random = np.random.default_rng([settings.seed, crc32(settings.split.encode())])
    kinds = random.choice(list(KINDS), size=scenes, p=list(KINDS.values()))
    return [RoomsFrame(settings, str(kind), i, view) for i, kind in enumerate(kinds) for view in range(settings.views)]


def read_frame(frame: RoomsFrame) -> Record:
    """Renders a frame. Raises BadFrame if hardly any surface is visible, or all of it is at nearly the same depth."""
    settings, depth_format = frame.settings, DEPTH_FORMATS["rooms"]
    picture = _renderer(settings, frame.kind, frame.scene).frame(frame.view, settings.size, SAMPLES, seed=frame.view)
    stored = np.rint(picture.depth * depth_format.units_per_metre)
    stored = np.where(picture.mask & (picture.depth < depth_format.max_depth), stored, 0).astype(np.uint16)
    seen = stored[stored > 0]
    if seen.size < stored.size / 10:
        raise BadFrame("hardly any surface", f"{frame.name}: {seen.size} of {stored.size} pixels")
    near, far = np.quantile(seen, PERCENTILES)
    if far < SMALLEST_RATIO * near:
        raise BadFrame("flat", f"{frame.name}: depth from {near:g} to {far:g} mm")
    return {
        "name": frame.name,
        "rgb": to_png(picture.rgb),
        "depth": to_png(stored),
        "normals": quantise(picture.normals),
    }


# The frames of a scene are consecutive, so each process needs to remember only one scene.
@lru_cache(maxsize=1)
def _renderer(settings: SplitSettings, kind: str, scene: int) -> Renderer:
    number = settings.seed * SCENES_PER_SEED + scene
    catalogue = _catalogue(settings.assets, settings.split)
    return Renderer(build(kind, settings.split, number, settings.views, catalogue))


@lru_cache(maxsize=1)
def _catalogue(assets: str | None, split: str) -> Catalogue:
    return open_catalogue(None if assets is None else Path(assets), split)


def card(settings: SplitSettings) -> str:
    """Markdown that describes how the split was made, with the authors and licences of its furniture."""
    catalogue = _catalogue(settings.assets, settings.split)
    models = sorted((model for kind in catalogue.by_kind.values() for model in kind), key=lambda model: model.name)
    rows = "\n".join(f"| {model.name} | {model.kind} | {model.creator} | {model.licence} |" for model in models)
    height, width = settings.size
    return f"""# Rendered interiors, still lifes and streets: the {settings.split} split

Made by `python -m marigold_jax.prepare rooms`, seed {settings.seed}, {settings.views} views a scene, {height} x
{width} pixels. Depth is along the optical axis, in millimetres; normals point x right, y up, z to the viewer.
The models below may appear; no model of one split appears in another, except where a kind has fewer than three.

| model | kind | creator | licence |
|---|---|---|---|
{rows}
"""
