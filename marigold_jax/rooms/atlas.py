"""All textures of a scene in one array, each as a mip pyramid, so that many points can be looked up at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8


def linear(srgb: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*s"]:
    """sRGB, 0 to 1, to linear light (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


LINEAR = linear(np.arange(256) / 255).astype(np.float32)  # of each byte


@dataclass(frozen=True, eq=False)
class Atlas:
    """The levels of texture `i` are rows `first[i]` to `last[i]` of `start`, `height` and `width`. Texels are sRGB."""

    texels: UInt8[np.ndarray, "n 3"]
    start: Int[np.ndarray, " l"]
    height: Int[np.ndarray, " l"]
    width: Int[np.ndarray, " l"]
    first: Int[np.ndarray, " t"]
    last: Int[np.ndarray, " t"]
    mean: Float32[np.ndarray, "t 3"]  # linear

    def look_up(
        self, texture: Int[np.ndarray, " n"], uv: Float32[np.ndarray, "n 2"], level: Float32[np.ndarray, " n"]
    ) -> Float32[np.ndarray, "n 3"]:
        """Linear colours of points, interpolated bilinearly.

        Args:
            texture: index of each point's texture.
            uv: texture coordinates; textures repeat with period 1.
            level: of the pyramid, 0 for full size; rounded down.
        """
        row = np.minimum(self.first[texture] + np.maximum(level, 0).astype(np.intp), self.last[texture])
        start, height, width = self.start[row], self.height[row], self.width[row]
        x, y = uv[:, 0] % 1 * width - 0.5, (1 - uv[:, 1] % 1) * height - 0.5
        left, top = np.floor(x).astype(np.intp), np.floor(y).astype(np.intp)
        right_share, bottom_share = (x - left).astype(np.float32), (y - top).astype(np.float32)
        left, right, top, bottom = left % width, (left + 1) % width, top % height, (top + 1) % height
        color = np.zeros((len(uv), 3), np.float32)
        for line, down in ((top, 1 - bottom_share), (bottom, bottom_share)):
            for column, across in ((left, 1 - right_share), (right, right_share)):
                color += LINEAR[self.texels[start + line * width + column]] * (down * across)[:, None]
        return color


def build(textures: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Atlas:
    """Builds the pyramids: every texture is halved down to one pixel, averaging linear light."""
    texels, height, width, first, mean = [np.zeros((1, 3), np.uint8)], [1], [1], [], []
    for texture in textures:
        first.append(len(height))
        light = LINEAR[texture]
        mean.append(light.mean((0, 1)))
        while True:
            texels.append(to_srgb(light).reshape(-1, 3))
            height.append(light.shape[0])
            width.append(light.shape[1])
            if max(light.shape[:2]) == 1:
                break
            light = _half(light)
    return Atlas(
        texels=np.concatenate(texels),
        start=np.cumsum([0, *(len(level) for level in texels[:-1])]),
        height=np.array(height),
        width=np.array(width),
        first=np.array(first, np.intp),
        last=np.array([*(index - 1 for index in first[1:]), len(height) - 1], np.intp)[: len(first)],
        mean=np.array(mean, np.float32).reshape(-1, 3),
    )


def _half(light: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "i j 3"]:
    for axis in (0, 1):
        length = light.shape[axis]
        if length > 1:
            pairs = light.take(range(length // 2 * 2), axis)
            light = (
                pairs.take(range(0, length // 2 * 2, 2), axis) + pairs.take(range(1, length // 2 * 2, 2), axis)
            ) / 2
    return light


def to_srgb(light: Float32[np.ndarray, "*s 3"]) -> UInt8[np.ndarray, "*s 3"]:
    """Linear light, 0 to 1, as sRGB bytes (IEC 61966-2-1)."""
    light = np.clip(light, 0, 1)
    return (255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) + 0.5).astype(
        np.uint8
    )
