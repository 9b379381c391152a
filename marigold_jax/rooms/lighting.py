"""Light from the sky and from lamps, and the filter that makes a few shadow rays per pixel look smooth.

Units: a white surface under irradiance 1 has radiance 1 (the factor pi is omitted on both sides).

Visibility is sampled at pixel centres with very few rays each. Neighbouring pixels use different directions: in every
4 x 4 block, each pixel has its own share of one evenly distributed set. Averaging over such a block, among pixels of
the same surface only, gives every pixel an estimate from the whole set, which is smooth instead of noisy.
"""

import zlib

import numpy as np
from jaxtyping import Float32, Int

from marigold_jax.rooms.scene import Scene, Sky

Vectors = Float32[np.ndarray, "n 3"]
Image = Float32[np.ndarray, "h w c"]

PERIOD = 4
# Ranks of the pixels of a block; pixels with similar ranks are far apart (Bayer's matrix).
RANKS = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]])
BOX = np.array([0.5, 1, 1, 1, 0.5], np.float32) / PERIOD  # every rank once, centred

# ----------------------------------------------------------------------------------------------------------- directions


def spread(count: int, shift: Float32[np.ndarray, "2"]) -> Float32[np.ndarray, "count 2"]:
    """Points that fill the unit square evenly (the R2 sequence of M. Roberts, 2018), shifted with wrap-around."""
    steps = np.arange(count)[:, None] * np.array([0.7548776662466927, 0.5698402909980532])
    return ((0.5 + steps + shift) % 1).astype(np.float32)


def ranks(size: tuple[int, int]) -> Int[np.ndarray, "h w"]:
    """The index of each pixel's share of the directions, 0 to `PERIOD`² - 1."""
    rows, columns = np.arange(size[0]) % PERIOD, np.arange(size[1]) % PERIOD
    return RANKS[rows[:, None], columns]


def tangents(normals: Vectors) -> tuple[Vectors, Vectors]:
    """Two directions that make a right-handed frame with each unit normal (Duff et al., 2017)."""
    x, y, z = normals.T
    sign = np.where(z >= 0, 1, -1).astype(np.float32)
    a = -1 / (sign + z)
    b = x * y * a
    first = np.stack([1 + sign * x * x * a, sign * b, -sign * x], -1)
    second = np.stack([b, sign + y * y * a, -y], -1)
    return first, second


def hemisphere(normals: Vectors, points: Float32[np.ndarray, "n 2"]) -> Vectors:
    """Maps points of the unit square to directions around the normals, with density proportional to the cosine."""
    first, second = tangents(normals)
    radius, angle = np.sqrt(points[:, 0]), 2 * np.pi * points[:, 1]
    height = np.sqrt(1 - points[:, 0])
    across, along = radius * np.cos(angle), radius * np.sin(angle)
    return first * across[:, None] + second * along[:, None] + normals * height[:, None]


def disc(axes: Vectors, radius: Float32[np.ndarray, " n"] | float, points: Float32[np.ndarray, "n 2"]) -> Vectors:
    """Maps points of the unit square to offsets on discs perpendicular to the unit `axes`; `radius` in metres."""
    first, second = tangents(axes)
    distance, angle = radius * np.sqrt(points[:, 0]), 2 * np.pi * points[:, 1]
    return first * (distance * np.cos(angle))[:, None] + second * (distance * np.sin(angle))[:, None]


# ------------------------------------------------------------------------------------------------------------------ sky


def sky_light(sky: Sky, directions: Vectors) -> Vectors:
    """The radiance of a cloudless sky in unit `directions`: a gradient from horizon to zenith, and haze below."""
    up = directions[:, 1:2]
    share = np.sqrt(np.clip(up, 0, 1))
    horizon, zenith = np.float32(sky.horizon), np.float32(sky.zenith)
    return (horizon + (zenith - horizon) * share) * np.where(up < 0, np.clip(1 + 2 * up, 0.5, 1), 1).astype(np.float32)


def clouded_sky(sky: Sky, directions: Vectors) -> Vectors:
    """`sky_light` with soft clouds on a high plane, the same in all views of a sky."""
    clear = sky_light(sky, directions)
    rng = np.random.default_rng(zlib.crc32(repr((sky.zenith, sky.horizon, sky.to_sun)).encode()))
    plane = directions[:, [0, 2]] / (np.clip(directions[:, 1:2], 0, 1) + 0.12)
    clouds = np.zeros(len(directions), np.float32)
    for octave in range(5):
        for _ in range(4):
            wave = rng.normal(size=2) * 0.8 * 2**octave
            clouds += (
                np.sin(np.einsum("nc,c->n", plane, wave.astype(np.float32)) + rng.uniform(0, 2 * np.pi)) * 0.62**octave
            )
    cover = np.clip(0.45 * (clouds / 1.6 + rng.uniform(-0.8, 0.8)), 0, 1) * np.clip(directions[:, 1] * 8, 0, 1)
    white = np.float32(sky.horizon).max() * 1.1
    return clear + (white - clear) * (0.75 * cover)[:, None]


# ----------------------------------------------------------------------------------------------------------- irradiance


def lamp_light(scene: Scene, lamp: int, positions: Vectors, normals: Vectors) -> tuple[Vectors, Vectors]:
    """The unoccluded irradiance of points from a lamp, and the unit directions to it.

    Args:
        scene: of the lamp.
        lamp: its index.
        positions: of the points, in metres.
        normals: of the surfaces there.
    """
    source = scene.lamps[lamp]
    towards = np.float32(source.position) - positions
    distance = np.sqrt(np.einsum("nc,nc->n", towards, towards))[:, None]
    towards = towards / np.maximum(distance, 1e-6)
    cosine = np.einsum("nc,nc->n", towards, normals).clip(0)
    return np.float32(source.power) * (cosine / np.maximum(distance[:, 0], source.radius) ** 2)[:, None], towards


def sun_light(scene: Scene, normals: Vectors) -> Vectors:
    """The unoccluded irradiance from the sun."""
    return np.float32(scene.sky.sun) * np.einsum("nc,c->n", normals, np.float32(scene.sky.to_sun)).clip(0)[:, None]


# ------------------------------------------------------------------------------------------------------------ smoothing


def smooth(
    image: Image,
    positions: Float32[np.ndarray, "h w 3"],
    normals: Float32[np.ndarray, "h w 3"],
    tolerance: Float32[np.ndarray, "h w"],
    kernel: Float32[np.ndarray, " k"] = BOX,
    stride: int = 1,
) -> Image:
    """A separable filter, down then across, that averages only pixels of the same surface; see `same_surface`.

    Args:
        image: to be filtered.
        positions: of the surface in each pixel, in metres.
        normals: of the surface in each pixel; 0 where there is none.
        tolerance: metres that a pixel may be off the plane of another.
        kernel: weights, of odd number.
        stride: pixels from one weight to the next.
    """
    for axis in (0, 1):
        total, weights = np.zeros_like(image), np.zeros(image.shape[:2], np.float32)
        length, reach = image.shape[axis], len(kernel) // 2
        for tap, share in enumerate(kernel):
            offset = (tap - reach) * stride
            here = [slice(None), slice(None)]
            there = [slice(None), slice(None)]
            here[axis], there[axis] = _overlap(length, offset)
            here, there = tuple(here), tuple(there)
            weight = share * same_surface(
                positions[here], normals[here], positions[there], normals[there], tolerance[here]
            )
            total[here] += image[there] * weight[..., None]
            weights[here] += weight
        image = total / np.maximum(weights, 1e-6)[..., None]
    return image


def _overlap(length: int, offset: int) -> tuple[slice, slice]:
    if offset >= 0:
        return slice(0, max(0, length - offset)), slice(offset, length)
    return slice(-offset, length), slice(0, max(0, length + offset))


def same_surface(
    position: Float32[np.ndarray, "*n 3"],
    normal: Float32[np.ndarray, "*n 3"],
    other_position: Float32[np.ndarray, "*n 3"],
    other_normal: Float32[np.ndarray, "*n 3"],
    tolerance: Float32[np.ndarray, "*n"],
) -> Float32[np.ndarray, "*n"]:
    """A weight, 0 to 1, of how likely two pixels show the same surface: similar normals, and a common plane.

    Args:
        position, normal: of one pixel. A normal of 0 means no surface, and a weight of 0.
        other_position, other_normal: of the other pixel.
        tolerance: metres that the other pixel may be off the plane of the first.
    """
    agreement = np.einsum("...c,...c->...", normal, other_normal)
    distance = np.abs(np.einsum("...c,...c->...", normal, other_position - position))
    return np.clip((agreement - 0.8) * 8, 0, 1) * np.clip(2 - distance / tolerance, 0, 1)


def tone_map(light: Float32[np.ndarray, "*s 3"]) -> Float32[np.ndarray, "*s 3"]:
    """A filmic tone curve to [0, 1] (K. Narkowicz's fit of the ACES reference, 2015), with slight desaturation."""
    luminance = np.einsum("...c,c->...", light, np.float32([0.2126, 0.7152, 0.0722]))[..., None]
    light = 0.8 * (0.85 * light + 0.15 * luminance)
    return np.clip(light * (2.51 * light + 0.03) / (light * (2.43 * light + 0.59) + 0.14), 0, 1)


def occlusion(distance: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    """The share of ambient light from a surface at a distance in metres: near surfaces, as in corners, give less."""
    return 1 - 0.85 * np.exp(-distance / 0.35)
