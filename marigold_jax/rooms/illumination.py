"""Draws the light of a scene (daylight, lamps, evening), and the exposure and white balance of its cameras."""

from dataclasses import dataclass
from math import cos, pi, radians, sin

import numpy as np

from marigold_jax.rooms.rays import Rays, cast, glance
from marigold_jax.rooms.scene import Camera, Color, Lamp, Sky, Vector

# Colour temperatures in kelvin, and the linear RGB of a black body, scaled to a largest component of 1.
TEMPERATURES = (2000, 2700, 3000, 4000, 5000, 6500, 8000, 12000)
BLACK_BODY = (
    (1.0, 0.245, 0.01),
    (1.0, 0.38, 0.095),
    (1.0, 0.44, 0.156),
    (1.0, 0.617, 0.381),
    (1.0, 0.775, 0.617),
    (1.0, 0.95, 0.98),
    (0.767, 0.812, 1.0),
    (0.55, 0.66, 1.0),
)
MIDDLE = 0.24  # the exposure brings the mean of the linear image to about this
ALBEDO = 0.45  # of a typical surface


@dataclass(frozen=True)
class Light:
    """All light sources of a scene. `temperature` is the colour temperature of the dominant light, in kelvin."""

    lamps: tuple[Lamp, ...]
    sky: Sky
    ambient: Color
    temperature: float


def black_body(temperature: float) -> np.ndarray:
    """Linear RGB of a colour temperature in kelvin, scaled to a largest component of 1."""
    table = np.array(BLACK_BODY)
    return np.array([np.interp(temperature, TEMPERATURES, table[:, channel]) for channel in range(3)])


def _color(values: np.ndarray) -> Color:
    return tuple(float(value) for value in values)


def _direction(random: np.random.Generator, lowest: float, highest: float) -> Vector:
    height, around = radians(random.uniform(lowest, highest)), random.uniform(-pi, pi)
    return (cos(height) * sin(around), sin(height), cos(height) * cos(around))


def draw_sky(random: np.random.Generator, towards: Vector | None = None) -> tuple[Sky, Color, float]:
    """Draws a daytime sky.

    Args:
        random: draws it.
        towards: an approximate direction of the sun, for instance so that it shines through a window.

    Returns:
        The sky, the ambient light in the shade, and the colour temperature in kelvin.
    """
    weather = random.choice(["clear", "cloudy", "overcast", "low sun"], p=[0.35, 0.25, 0.25, 0.15])
    blue = np.array([0.35, 0.58, 1.0]) * random.uniform(0.5, 1.0)
    grey = np.array([0.8, 0.88, 1.0]) * random.uniform(0.6, 1.0)
    haze = np.array([0.75, 0.87, 1.0]) * random.uniform(0.8, 1.2)
    mix, sun, temperature = {
        "clear": (random.uniform(0.0, 0.3), random.uniform(2.0, 4.0), 5500.0),
        "cloudy": (random.uniform(0.3, 0.8), random.uniform(0.3, 2.0), 6000.0),
        "overcast": (1.0, 0.0, 6800.0),
        "low sun": (random.uniform(0.1, 0.6), random.uniform(1.0, 2.5), 3800.0),
    }[weather]
    zenith = blue * (1 - mix) + grey * mix
    horizon = haze * (1 - mix) + grey * mix
    if weather == "low sun":
        horizon = horizon * black_body(random.uniform(2700, 4500))
    to_sun = _direction(random, 4.0, 15.0) if weather == "low sun" else _direction(random, 18.0, 65.0)
    if towards is not None:
        aimed = np.array(towards) + random.normal(size=3) * (0.6, 0.0, 0.6)
        aimed[1] = np.tan(radians(random.uniform(12, 50))) * np.hypot(aimed[0], aimed[2])
        to_sun = tuple(float(c) for c in aimed / np.linalg.norm(aimed))
    sky = Sky(
        zenith=_color(zenith),
        horizon=_color(horizon),
        sun=_color(sun * black_body(min(temperature, 5600.0))),
        to_sun=to_sun,
        sun_radius=float(random.uniform(0.005, 0.03)) if weather != "cloudy" else 0.06,
    )
    # Light reflected by clouds, ground and walls makes the shade less blue than the sky.
    ambient = (zenith * 0.6 + horizon * 0.4) * random.uniform(0.35, 0.6)
    ambient = 0.5 * ambient + 0.5 * ambient.mean()
    return sky, _color(ambient), temperature


def outdoors(random: np.random.Generator) -> Light:
    """Draws the light of a street by day."""
    sky, ambient, temperature = draw_sky(random)
    return Light((), sky, ambient, temperature)


def indoors(
    random: np.random.Generator,
    lights: list[tuple[str, Vector]],
    outward: list[Vector],
    middle: tuple[float, float],
    height: float,
) -> Light:
    """Draws the light of a room by day or in the evening.

    Args:
        random: draws it.
        lights: (kind, position) of the lamps in the room.
        outward: the directions that its windows face.
        middle: (x, z) of the middle of the room; a bulb is added there, below the ceiling, if there is no other light.
        height: of the room, in metres.
    """
    by_day = bool(outward) and random.random() < 0.65
    towards = outward[random.integers(len(outward))] if by_day and random.random() < 0.7 else None
    sky, shade, temperature = draw_sky(random, towards)
    warm = float(random.choice([random.uniform(2700, 3300), random.uniform(3500, 5000), random.uniform(5500, 6500)]))
    if by_day:
        strength = random.uniform(0.25, 0.7)
        ambient = np.array(shade) * strength
        lit = random.random() < 0.35
    else:
        night = random.uniform(0.002, 0.12)
        sky = Sky(_color(np.array(sky.zenith) * night), _color(np.array(sky.horizon) * night))
        ambient, lit, temperature = black_body(warm) * random.uniform(0.06, 0.3), True, warm
    lamps = []
    if lit:
        burning = [light for light in lights if random.random() < 0.75] or lights[:1]
        if not any(kind == "ceiling_lamp" for kind, _ in burning) and (not burning or random.random() < 0.6):
            x, z = middle
            place = (x + random.normal() * 0.4, height - random.uniform(0.12, 0.3), z + random.normal() * 0.4)
            burning = [*burning, ("ceiling_lamp", place)]
        for kind, position in burning:
            power = random.uniform(1.5, 4.0) if kind == "ceiling_lamp" else random.uniform(0.4, 1.6)
            tone = black_body(warm + random.normal() * 150)
            position = tuple(float(p) for p in position)
            lamps.append(Lamp(position, float(random.uniform(0.04, 0.12)), _color(power * tone)))
    return Light(tuple(lamps), sky, _color(ambient), temperature)


def white_balance(random: np.random.Generator, light: Light) -> Color:
    """Draws gains of the three colours that remove part of the light's tint, as a camera's white balance does."""
    share = random.uniform(0.35, 1.0)
    temperature = float(np.clip(share * light.temperature + (1 - share) * 5800 + random.normal() * 250, 2700, 8000))
    gains = 1 / black_body(temperature)
    gains = np.clip(gains / gains[1], 0.5, 2.5)
    return _color(gains / (gains @ (0.2126, 0.7152, 0.0722)))


def expose(random: np.random.Generator, rays: Rays, light: Light, camera: Camera) -> float:
    """Draws an exposure: a factor that brings the mean of the image to about `MIDDLE`, within a third of a stop.

    Args:
        random: draws the deviation.
        rays: the scene.
        light: of the scene.
        camera: the view to be exposed.
    """
    seen = glance(rays, camera)
    surface = seen.instance >= 0
    start = seen.points + 2e-3 * seen.normals
    arriving = np.tile(np.array(light.ambient), (len(start), 1)) * 0.8
    for lamp in light.lamps:
        away = (np.float32(lamp.position) - start).astype(np.float32)
        distance = np.maximum(np.linalg.norm(away, axis=1), 0.1)
        facing = np.maximum((seen.normals * away).sum(axis=1) / distance, 0)
        free = cast(rays, start.astype(np.float32), away)[0] > 1
        arriving += (facing * free / distance**2)[:, None] * np.array(lamp.power)
    if sum(light.sky.sun) > 0:
        to_sun = np.tile(np.float32(light.sky.to_sun), (len(start), 1))
        facing = np.maximum((seen.normals * to_sun).sum(axis=1), 0)
        free = ~np.isfinite(cast(rays, start.astype(np.float32), to_sun)[0])
        arriving += (facing * free)[:, None] * np.array(light.sky.sun)
    sky = (np.array(light.sky.zenith) + np.array(light.sky.horizon)) / 2
    luminance = (0.2126, 0.7152, 0.0722)
    radiance = (ALBEDO * arriving @ luminance)[surface]
    # The sky and sunlit patches may be slightly overexposed, but must not make the rest black.
    ground = float(np.minimum(radiance, 4 * np.median(radiance)).mean())
    seen_sky = 1 - surface.mean()
    typical = (1 - 0.4 * seen_sky) * ground + 0.4 * seen_sky * float(min(sky @ luminance, 4 * ground))
    return float(MIDDLE * 2 ** random.normal(0, 0.33) / max(typical, 1e-4))
