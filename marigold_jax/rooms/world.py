"""Builds complete scenes by number: `build` returns the same scene for the same arguments."""

from collections.abc import Callable
from math import cos, pi, radians, sin
from zlib import crc32

import numpy as np

from marigold_jax.rooms import cameras, illumination, purposes, still_life, street
from marigold_jax.rooms.cameras import Taste
from marigold_jax.rooms.catalogue import Catalogue
from marigold_jax.rooms.illumination import Light
from marigold_jax.rooms.interior import Home
from marigold_jax.rooms.placement import Placed
from marigold_jax.rooms.rays import Rays, build_rays, glance
from marigold_jax.rooms.scene import Camera, Instance, Scene, Vector

Builder = Callable[[np.random.Generator, int, Catalogue], Scene]


def build(kind: str, split: str, seed: int, views: int, catalogue: Catalogue) -> Scene:
    """Builds a scene. It depends only on the arguments.

    Args:
        kind: a key of `KINDS`.
        split: "train", "val" or "test"; the same numbers give other scenes in another split.
        seed: number of the scene.
        views: number of cameras.
        catalogue: the models of the split.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: wanted one of {', '.join(KINDS)}; got {kind!r}")
    random = np.random.default_rng([crc32(kind.encode()), crc32(split.encode()), seed])
    return BUILDERS[kind][1](random, views, catalogue)


def _scene(
    random: np.random.Generator,
    instances: list[Instance],
    rays: Rays,
    shining: Light,
    views: tuple[Camera, ...],
    placed: list[Placed],
) -> Scene:
    """Assembles a scene, and draws the exposure and white balance of each view.

    Args:
        random: draws them.
        instances: all surfaces; the first one is the building or the ground.
        rays: of these instances.
        shining: the light.
        views: the cameras.
        placed: the models in the scene.
    """
    return Scene(
        instances=tuple(instances),
        lamps=shining.lamps,
        sky=shining.sky,
        ambient=shining.ambient,
        cameras=views,
        exposure=tuple(illumination.expose(random, rays, shining, camera) for camera in views),
        white_balance=tuple(illumination.white_balance(random, shining) for _ in views),
        names=tuple(sorted({each.model.name for each in placed if each.model.name})),
    )


# ------------------------------------------------------------------------------------------------------------ interiors

INTERIOR = Taste(shell=0.85, things=4, middle=1.4)
# Heights of cameras above the floor, in metres, and their probabilities.
HEIGHTS = {"standing": (1.5, 1.75), "seated": (1.0, 1.3), "table": (0.7, 0.95), "low": (0.25, 0.6), "high": (1.8, 2.1)}
HEIGHT_SHARES = (0.5, 0.25, 0.12, 0.07, 0.06)


def _instances(home: Home) -> list[Instance]:
    return home.extras + [placed.instance() for placed in home.room.plan.placed]


def _indoors(random: np.random.Generator, home: Home) -> Light:
    outward = [
        (wall.direction[1], 0.0, -wall.direction[0])
        for wall, openings in zip(home.room.plan.walls, home.room.openings, strict=True)
        for opening in openings
        if opening.kind == "window"
    ]
    x0, z0, x1, z1 = home.room.plan.bounds
    return illumination.indoors(random, home.lights, outward, ((x0 + x1) / 2, (z0 + z1) / 2), home.room.height)


def _interior(random: np.random.Generator, count: int, catalogue: Catalogue) -> Scene:
    home = purposes.furnish(random, catalogue)
    plan = home.room.plan
    instances = _instances(home)
    rays = build_rays(instances)
    x0, z0, x1, z1 = plan.bounds
    interesting = [each for each in plan.placed if max(each.model.size) > 0.35 and each.box.low < 1.2]

    def propose() -> Camera | None:
        name = list(HEIGHTS)[random.choice(len(HEIGHTS), p=HEIGHT_SHARES)]
        y = min(random.uniform(*HEIGHTS[name]), home.room.height - 0.25)
        position = (random.uniform(x0, x1), y, random.uniform(z0, z1))
        if not cameras.clear(plan, position, 0.2):
            return None
        if interesting and random.random() < 0.75:
            box = interesting[random.integers(len(interesting))].box
            target = (box.x, (box.low + box.high) / 2, box.z)
        else:
            target = (random.uniform(x0, x1), random.uniform(0.5, 1.4), random.uniform(z0, z1))
        if np.hypot(target[0] - position[0], target[2] - position[2]) < 0.8:
            return None
        return cameras.aim_at(random, position, target, cameras.draw_field_of_view(random))

    views = cameras.draw_views(count, rays, propose, INTERIOR)
    return _scene(random, instances, rays, _indoors(random, home), views, plan.placed)


# ---------------------------------------------------------------------------------------------------------- still lifes

CLOSE = Taste(free=0.12, near=0.3, near_share=0.5, ratio=1.3, largest=0.9, shell=0.8, things=2)
OCCLUDED = 0.35  # share of views for which an object in the foreground is drawn


def _still_life(random: np.random.Generator, count: int, catalogue: Catalogue) -> Scene:
    picture = still_life.arrange(random, catalogue)
    plan = picture.home.room.plan
    instances = _instances(picture.home)
    rays = build_rays(instances)

    def propose() -> Camera | None:
        target, angle = picture.targets[random.integers(len(picture.targets))]
        away = random.uniform(0.3, 1.6)
        around = angle + random.uniform(-1.2, 1.2)
        rise = radians(random.uniform(-5, 50))
        position = _around(target, away, around, rise)
        if (
            position[1] < 0.1
            or position[1] > picture.home.room.height - 0.15
            or not cameras.clear(plan, position, 0.08)
        ):
            return None
        wide = cameras.draw_field_of_view(random)
        return cameras.aim_at(random, position, target, wide, spread=6.0)

    views = cameras.draw_views(count, rays, propose, CLOSE)
    arms = [still_life.occluder(random, camera) for camera in views if random.random() < OCCLUDED]
    kept = [arm for arm in arms if _harmless(arm, instances, views)]
    if kept:
        instances = instances + kept
        rays = build_rays(instances)
    return _scene(random, instances, rays, _indoors(random, picture.home), views, plan.placed)


def _around(target: Vector, away: float, angle: float, rise: float) -> Vector:
    level = away * cos(rise)
    return target[0] + level * sin(angle), target[1] + away * sin(rise), target[2] + level * cos(angle)


def _harmless(arm: Instance, instances: list[Instance], views: tuple[Camera, ...]) -> bool:
    """Whether the arm covers at most 35 % of each view, and no camera is inside it."""
    alone = build_rays([arm])
    for camera in views:
        seen = glance(alone, camera)
        hit = np.isfinite(seen.depth)
        if hit.mean() > 0.35 or (seen.distance[hit] < 0.12).any():
            return False
    return True


# -------------------------------------------------------------------------------------------------------------- streets

OUTSIDE = Taste(
    free=0.4, near=1.2, near_share=0.25, ratio=2.0, sky=0.55, largest=0.45, shell=0.97, things=3, middle=4.0
)


def _street(random: np.random.Generator, count: int, catalogue: Catalogue) -> Scene:
    town = street.lay_out(random, catalogue)
    instances = town.extras + [placed.instance() for placed in town.plan.placed]
    rays = build_rays(instances)
    walkable = town.road + town.pavement - 0.4

    def propose() -> Camera | None:
        driving = town.kerb > 0 and random.random() < 0.45
        x = random.uniform(-town.road, town.road) if driving else random.choice([-1, 1]) * random.uniform(0, walkable)
        y = random.uniform(1.2, 1.7) if driving or random.random() < 0.8 else random.uniform(1.7, 3.5)
        position = (float(x), y + town.kerb, random.uniform(-30, 25))
        if not cameras.clear(town.plan, position, 0.4):
            return None
        yaw = random.choice([0.0, 0.0, 0.0, pi]) + random.normal() * (0.2 if driving else 0.55)
        pitch = radians(float(np.clip(random.normal(-2, 6), -30, 15)))
        wide = cameras.draw_field_of_view(random)
        return cameras.aim(position, float(yaw), pitch, radians(cameras.ROLL) * random.normal(), wide)

    views = cameras.draw_views(count, rays, propose, OUTSIDE)
    return _scene(random, instances, rays, illumination.outdoors(random), views, town.plan.placed)


# The probability of each kind of scene, and the function that builds it.
BUILDERS: dict[str, tuple[float, Builder]] = {
    "interior": (0.55, _interior),
    "still_life": (0.2, _still_life),
    "street": (0.25, _street),
}
KINDS = {kind: share for kind, (share, _) in BUILDERS.items()}
