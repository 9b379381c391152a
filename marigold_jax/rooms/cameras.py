"""Chooses camera positions and directions: in free space, at a suitable height, with something to see."""

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
    """Limits that a view must satisfy. Shares are of the coarse rays of `rays.glance`.

    Attributes:
        free: metres; at most one ray in fifty may end nearer than this.
        near, near_share: at most this share of rays may end within `near` metres.
        ratio: smallest ratio of the 98th to the 2nd percentile of depth.
        sky: largest share of rays that see the sky.
        largest: largest share of rays that hit the same object, other than the building.
        shell: largest share of rays that hit the building itself, which is the first instance.
        things: smallest number of objects, other than the building, that are hit by at least two rays.
        middle: smallest median of depth, in metres.
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
    """Whether a view satisfies all limits."""
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
    """A camera with the given orientation.

    Args:
        position: (x, y, z) in metres.
        yaw: radians; 0 looks towards -z, pi / 2 towards -x.
        pitch: radians; positive looks upwards.
        roll: radians, about the optical axis.
        field_of_view: radians, horizontal.
    """
    forward = np.array([-sin(yaw) * cos(pitch), sin(pitch), -cos(yaw) * cos(pitch)])
    right = np.array([cos(yaw), 0.0, -sin(yaw)])
    up = np.cross(right, forward)
    axes = np.stack([cos(roll) * right + sin(roll) * up, cos(roll) * up - sin(roll) * right, -forward], axis=1)
    return Camera(tuple(float(p) for p in position), axes.astype(np.float32), float(field_of_view))


def aim_at(
    random: np.random.Generator, position: Vector, target: Vector, field_of_view: float, spread: float = 8.0
) -> Camera:
    """A camera that looks approximately at a target, with a pitch within `PITCH`.

    Args:
        random: draws the deviation and the roll.
        position: of the camera, in metres.
        target: to look at, in metres.
        field_of_view: radians, horizontal.
        spread: standard deviation of the direction, in degrees.
    """
    dx, dy, dz = (t - p for t, p in zip(target, position, strict=True))
    yaw = atan2(-dx, -dz) + radians(spread) * random.normal()
    pitch = atan2(dy, hypot(dx, dz)) + radians(spread) * 0.6 * random.normal()
    pitch = float(np.clip(pitch, radians(PITCH[0]), radians(PITCH[1])))
    return aim(position, yaw, pitch, radians(ROLL) * random.normal(), field_of_view)


def draw_field_of_view(random: np.random.Generator) -> float:
    """A horizontal field of view in radians: 35 to 90 degrees, 62 on average."""
    return radians(float(np.clip(random.normal(62, 13), 35, 90)))


def clear(plan: Plan, position: Vector, room: float) -> bool:
    """Whether a point is at least `room` metres away from all placed objects and from the edge of the floor."""
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
    """Draws views that satisfy the limits, from different places or in different directions.

    If too few are found, the limits are relaxed, and in the end any view is taken that is not inside an object.

    Args:
        count: number of views.
        rays: the scene.
        propose: draws a candidate, or None.
        taste: the limits.

    Raises:
        RuntimeError: there are not enough free places.
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
    """Whether two cameras are close together and look in similar directions."""
    apart = float(np.linalg.norm(np.subtract(a.position, b.position)))
    angle = float(np.dot(a.axes[:, 2], b.axes[:, 2]))
    return apart < 0.4 or (apart < 0.8 and angle > 0.8)
