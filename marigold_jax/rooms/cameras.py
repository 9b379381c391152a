"""Where the photographer stands: in free space, at a height that suits, looking at something worth a picture."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import atan2, cos, hypot, radians, sin

import numpy as np

from marigold_jax.rooms.placement import Box, Plan
from marigold_jax.rooms.rays import Glance, Rays, glance
from marigold_jax.rooms.scene import Camera, Vector

TRIES = 60
ROLL = 2.0  # degrees, one standard deviation
PITCH = (-35.0, 15.0)  # degrees


@dataclass(frozen=True)
class Taste:
    """Which views are refused. Shares are of the coarse rays.

    Attributes:
        free: this near (metres) there may be nothing, but for one ray in fifty.
        near, near_share: at most this share of rays may end within `near` metres.
        ratio: the 98th percentile of depth over the 2nd must be at least this.
        sky: at most this share may see the sky.
        largest: at most this share may end on one and the same thing (the building itself aside).
        shell: at most this share may end on the building itself, the first instance.
        things: at least so many things, besides the building, are met by two rays or more.
        middle: the median of depth must be at least this, in metres.
    """

    free: float = 0.25
    near: float = 0.4
    near_share: float = 0.35
    ratio: float = 1.3
    sky: float = 0.5
    largest: float = 0.7
    shell: float = 0.93
    things: int = 1
    middle: float = 0.0


def accepts(taste: Taste, seen: Glance) -> bool:
    """Whether a view is worth a picture."""
    depth = seen.depth[np.isfinite(seen.depth)]
    if len(depth) < (1 - taste.sky) * len(seen.depth):
        return False
    if (seen.distance < taste.free).mean() > 0.02 or (seen.distance < taste.near).mean() > taste.near_share:
        return False
    first, last = np.percentile(depth, [2, 98])
    if last < taste.ratio * first:
        return False
    counts = np.bincount(seen.instance[seen.instance >= 0], minlength=1)
    if (counts[1:] >= 2).sum() < taste.things or np.median(depth) < taste.middle:
        return False
    shell, largest = counts[0] / len(seen.depth), counts[1:].max(initial=0) / len(seen.depth)
    return bool(shell <= taste.shell and largest <= taste.largest)


def aim(position: Vector, yaw: float, pitch: float, roll: float, field_of_view: float) -> Camera:
    """A camera that looks to -z at yaw 0, to -x at 90 degrees, upwards where pitch is positive; angles in radians."""
    forward = np.array([-sin(yaw) * cos(pitch), sin(pitch), -cos(yaw) * cos(pitch)])
    right = np.array([cos(yaw), 0.0, -sin(yaw)])
    up = np.cross(right, forward)
    axes = np.stack([cos(roll) * right + sin(roll) * up, cos(roll) * up - sin(roll) * right, -forward], axis=1)
    return Camera(tuple(float(p) for p in position), axes.astype(np.float32), float(field_of_view))


def aim_at(
    random: np.random.Generator, position: Vector, target: Vector, field_of_view: float, spread: float = 8.0
) -> Camera:
    """A camera that looks about there, within the usual pitch; `spread` in degrees."""
    dx, dy, dz = (t - p for t, p in zip(target, position, strict=True))
    yaw = atan2(-dx, -dz) + radians(spread) * random.normal()
    pitch = atan2(dy, hypot(dx, dz)) + radians(spread) * 0.6 * random.normal()
    pitch = float(np.clip(pitch, radians(PITCH[0]), radians(PITCH[1])))
    return aim(position, yaw, pitch, radians(ROLL) * random.normal(), field_of_view)


def draw_field_of_view(random: np.random.Generator) -> float:
    """35 to 90 degrees, around 60."""
    return radians(float(np.clip(random.normal(62, 13), 35, 90)))


def clear(plan: Plan, position: Vector, room: float) -> bool:
    """Whether the point is `room` metres away from all that is placed, and from the edge of the floor."""
    x, y, z = position
    x0, z0, x1, z1 = plan.bounds
    if not (x0 + room < x < x1 - room and z0 + room < z < z1 - room):
        return False
    notches = [box for box in plan.taken if box.low < -1e6]
    solid = notches + [placed.box for placed in plan.placed]
    return not any(_contains(box, x, y, z, room) for box in solid)


def _contains(box: Box, x: float, y: float, z: float, margin: float) -> bool:
    if not box.low - margin < y < box.high + margin:
        return False
    c, s = cos(box.angle), sin(box.angle)
    dx, dz = x - box.x, z - box.z
    right, forward = dx * c - dz * s, dx * s + dz * c
    return bool(abs(right) < box.half_width + margin and abs(forward) < box.half_depth + margin)


def draw_views(count: int, rays: Rays, propose: Callable[[], Camera | None], taste: Taste) -> tuple[Camera, ...]:
    """So many views that the taste accepts, from different places or in different directions.

    Where few can be found, the taste becomes more lenient, up to taking what comes.
    """
    views: list[Camera] = []
    for attempt in range(TRIES * count):
        if len(views) == count:
            break
        camera = propose()
        if camera is None:
            continue
        late = attempt > TRIES * count * 0.6
        if not late and any(_alike(camera, other) for other in views):
            continue
        if accepts(replace(taste, things=1, middle=0.0) if late else taste, glance(rays, camera)):
            views.append(camera)
    patience = 2000
    while len(views) < count and patience:
        patience -= 1
        camera = propose()
        if camera is not None and (glance(rays, camera).distance >= 0.1).all():
            views.append(camera)
    if len(views) < count:
        raise RuntimeError(f"found only {len(views)} of {count} places for a camera: is the floor full?")
    return tuple(views)


def _alike(a: Camera, b: Camera) -> bool:
    """Near each other and looking the same way."""
    apart = float(np.linalg.norm(np.subtract(a.position, b.position)))
    angle = float(np.dot(a.axes[:, 2], b.axes[:, 2]))
    return apart < 0.4 or (apart < 0.8 and angle > 0.8)
