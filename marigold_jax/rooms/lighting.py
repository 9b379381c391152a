"""Light: what the sky sends, what of the lamps reaches a point, and how to make few rays look smooth.

Units: a white surface under irradiance 1 has radiance 1 (the factor pi is left out on both sides).

Visibility is found at pixels' centres with very few rays each. Neighbouring pixels look in different directions: in
every 4 x 4 block each pixel has its own share of one well-spread set. Averaging over such a block, among pixels of the
same surface only, then gives every pixel the same estimate from the whole set: smooth, and not noisy.
"""

import zlib

import numpy as np
from jaxtyping import Float32, Int

from marigold_jax.rooms.scene import Scene, Sky

Vectors = Float32[np.ndarray, "n 3"]
Image = Float32[np.ndarray, "h w c"]

PERIOD = 4
# Ranks of the pixels of a block, such that near ranks are far apart (Bayer's matrix).
RANKS = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]])
BOX = np.array([0.5, 1, 1, 1, 0.5], np.float32) / PERIOD  # every rank once, centred

# ----------------------------------------------------------------------------------------------------------- directions


def spread(count: int, shift: Float32[np.ndarray, "2"]) -> Float32[np.ndarray, "count 2"]:
    """Points that fill the unit square evenly (the R2 sequence of M. Roberts, 2018), shifted and wrapped."""
    steps = np.arange(count)[:, None] * np.array([0.7548776662466927, 0.5698402909980532])
    return ((0.5 + steps + shift) % 1).astype(np.float32)


def ranks(size: tuple[int, int]) -> Int[np.ndarray, "h w"]:
    """Which of the `PERIOD`² shares of directions each pixel has."""
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
    """Directions around the normals, as dense as the cosine, from points of the unit square."""
    first, second = tangents(normals)
    radius, angle = np.sqrt(points[:, 0]), 2 * np.pi * points[:, 1]
    height = np.sqrt(1 - points[:, 0])
    across, along = radius * np.cos(angle), radius * np.sin(angle)
    return first * across[:, None] + second * along[:, None] + normals * height[:, None]


def disc(axes: Vectors, radius: Float32[np.ndarray, " n"] | float, points: Float32[np.ndarray, "n 2"]) -> Vectors:
    """Offsets on a disc that faces along unit axes."""
    first, second = tangents(axes)
    distance, angle = radius * np.sqrt(points[:, 0]), 2 * np.pi * points[:, 1]
    return first * (distance * np.cos(angle))[:, None] + second * (distance * np.sin(angle))[:, None]


# ------------------------------------------------------------------------------------------------------------------ sky


def sky_light(sky: Sky, directions: Vectors) -> Vectors:
    """The radiance of a cloudless sky: from the horizon's to the zenith's; below the horizon, haze over ground."""
    up = directions[:, 1:2]
    share = np.sqrt(np.clip(up, 0, 1))
    horizon, zenith = np.float32(sky.horizon), np.float32(sky.zenith)
    return (horizon + (zenith - horizon) * share) * np.where(up < 0, np.clip(1 + 2 * up, 0.5, 1), 1).astype(np.float32)


def clouded_sky(sky: Sky, directions: Vectors) -> Vectors:
    """`sky_light` with soft clouds on a plane high above, the same in all views of a sky."""
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
    """Irradiance from a lamp where nothing is in its way, and the unit directions to it."""
    source = scene.lamps[lamp]
    towards = np.float32(source.position) - positions
    distance = np.sqrt(np.einsum("nc,nc->n", towards, towards))[:, None]
    towards = towards / np.maximum(distance, 1e-6)
    cosine = np.einsum("nc,nc->n", towards, normals).clip(0)
    return np.float32(source.power) * (cosine / np.maximum(distance[:, 0], source.radius) ** 2)[:, None], towards


def sun_light(scene: Scene, normals: Vectors) -> Vectors:
    """Irradiance from the sun where nothing is in its way."""
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
    """A box filter, down then across, that mixes only pixels of one surface.

    A pixel counts where its normal agrees and it lies in the plane of the centre's, up to `tolerance` (metres).
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
    """How much a pixel's light says about another's, 0 to 1. A pixel without a surface has a normal of 0: never."""
    agreement = np.einsum("...c,...c->...", normal, other_normal)
    distance = np.abs(np.einsum("...c,...c->...", normal, other_position - position))
    return np.clip((agreement - 0.8) * 8, 0, 1) * np.clip(2 - distance / tolerance, 0, 1)


def tone_map(light: Float32[np.ndarray, "*s 3"]) -> Float32[np.ndarray, "*s 3"]:
    """A film's curve, 0 to 1: a little toe, a soft shoulder (K. Narkowicz's fit of the ACES reference, 2015).

    As film does, it takes strong colours back a little: the curve alone would make them gaudy.
    """
    luminance = np.einsum("...c,c->...", light, np.float32([0.2126, 0.7152, 0.0722]))[..., None]
    light = 0.8 * (0.85 * light + 0.15 * luminance)
    return np.clip(light * (2.51 * light + 0.03) / (light * (2.43 * light + 0.59) + 0.14), 0, 1)


def occlusion(distance: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    """The share of the ambient light that comes from a surface at a distance: corners are dark."""
    return 1 - 0.85 * np.exp(-distance / 0.35)
