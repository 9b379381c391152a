"""Turns a decoded example into a training sample: flip, normalise and resize, in the order of the reference.

The reference (Marigold, arXiv 2312.02145, section 3.2) maps the 2nd and 98th percentile of valid depth, computed at the
dataset's own resolution, to -1 and +1. Two of its choices have a better alternative here, which is the default:

- `antialias`: the reference shrinks the RGB image to nearest pixels, which turns fine texture into noise that no
  photograph has. The alternative is bilinear resizing with antialiasing, as in `predict`.
- `far_fill`: the reference encodes whatever value an invalid pixel holds. Missing depth is stored as 0, so a window or
  the sky becomes the nearest surface, and its latents affect those of valid pixels beside it. The alternative is far
  depth, +1.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Shaped

from marigold_jax.data.resample import resize
from marigold_jax.data.targets import TARGETS

PERCENTILES = (0.02, 0.98)


@dataclass(frozen=True)
class SampleOptions:
    """How the examples of all datasets become samples.

    Attributes:
        size: (height, width) of the samples; None for the size of each dataset.
        antialias, far_fill: see above; with both False, samples are those of the reference.
    """

    size: tuple[int, int] | None = None
    antialias: bool = True
    far_fill: bool = True

    def for_size(self, size: tuple[int, int] | None) -> dict[str, Any]:
        """The keyword arguments of `transform` for a dataset of this size."""
        return {"size": self.size or size, "antialias": self.antialias, "far_fill": self.far_fill}


DEFAULT_OPTIONS = SampleOptions()


def transform(
    example: dict[str, np.ndarray], *, size: tuple[int, int] | None, flip: bool, antialias: bool, far_fill: bool
) -> dict[str, np.ndarray]:
    """Turns an example into a training sample.

    Args:
        example: see `data.prepared.PreparedSplit`. Maps of other names are resized to nearest pixels.
        size: (height, width) of the sample; None keeps the size of the example.
        flip: mirrors the sample left to right.
        antialias: resizes RGB bilinearly with antialiasing; otherwise to nearest pixels.
        far_fill: sets the depth target of invalid pixels to +1.

    Returns:
        A dictionary:

            rgb       float32 (H, W, 3) in [-1, 1]
            depth     float32 (H, W, 1) in metres, 0 where invalid
            target    float32 (H, W, 1) in [-1, 1]: affine-invariant depth, -1 near, +1 far
            span      float32 (), metres between targets -1 and +1
            mask      bool (H, W, 1), True where depth, and every other map of `TARGETS` in the example, is known
            normals   float32 (H, W, 3), as in the example; if it has them

        If valid depth has fewer than two values, the target and the span are 0 and the mask is False everywhere.
    """
    if flip:
        example = mirror(example)
    limits = percentiles(example["depth"], example["mask"])
    size = size or example["mask"].shape[:2]
    # Everything after the percentiles works pixel by pixel, so only the remaining pixels need to be processed.
    maps = {key: nearest(value, size) for key, value in example.items() if key != "rgb"}
    target, mask = normalise(maps["depth"], maps["mask"], limits)
    if far_fill and limits:
        target = np.where(mask, target, np.float32(1))
    span = np.float32(limits[1] - limits[0] if limits else 0)
    maps |= {"depth": np.where(mask, maps["depth"], np.float32(0)), "target": target, "span": span, "mask": mask}
    for target_row in TARGETS.values():
        if target_row.is_known and target_row.map in maps:
            maps["mask"] = maps["mask"] & target_row.is_known(maps[target_row.map])
    return {"rgb": _rgb(example["rgb"], size, antialias)} | maps


def crop(
    example: dict[str, np.ndarray], window: Float[np.ndarray, "3"] | tuple[float, float, float]
) -> dict[str, np.ndarray]:
    """Crops every map of an example to a window of the same aspect ratio.

    Depth along the optical axis and normals stay correct when the crop is enlarged: it corresponds to a camera with a
    longer focal length and a shifted principal point.

    Args:
        example: see `data.prepared.PreparedSplit`.
        window: three numbers in [0, 1]: the share of height and width that is kept, and the position of the window from
            top to bottom and from left to right. (1, y, x) is the whole example.
    """
    share, *place = window
    sides = example["mask"].shape[:2]
    kept = [max(1, round(share * side)) for side in sides]
    starts = [int(at * (side - keep + 1)) for at, side, keep in zip(place, sides, kept, strict=True)]
    starts = [min(start, side - keep) for start, side, keep in zip(starts, sides, kept, strict=True)]
    rows, columns = (slice(start, start + keep) for start, keep in zip(starts, kept, strict=True))
    return {key: value[rows, columns] for key, value in example.items()}


def mirror(example: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Mirrors every map left to right, and adjusts its values as the row in `TARGETS` says."""
    mirrored = {key: np.ascontiguousarray(value[:, ::-1]) for key, value in example.items()}
    for target in TARGETS.values():
        if target.mirror and target.map in mirrored:
            mirrored[target.map] = target.mirror(mirrored[target.map])
    return mirrored


def percentiles(
    depth: Float32[np.ndarray, "h w 1"], mask: Bool[np.ndarray, "h w 1"]
) -> tuple[np.float32, np.float32] | None:
    """The 2nd and 98th percentile (linear interpolation) of valid depth; None if they are equal or nothing is valid."""
    valid = depth[mask]
    if not valid.size:
        return None
    near, far = np.quantile(valid, PERCENTILES).astype(np.float32)
    return (near, far) if far > near else None


def normalise(
    depth: Float32[np.ndarray, "h w 1"],
    mask: Bool[np.ndarray, "h w 1"],
    limits: tuple[np.float32, np.float32] | None,
) -> tuple[Float32[np.ndarray, "h w 1"], Bool[np.ndarray, "h w 1"]]:
    """Maps depth linearly so that `limits` become -1 and +1, and clips.

    Args:
        depth: metres. Invalid pixels are mapped by the same formula; NaN counts as 0 m.
        mask: True where depth is valid.
        limits: metres, from `percentiles`; None gives zeros and an empty mask.

    Returns:
        The normalised depth, and the mask.
    """
    if limits is None:
        return np.zeros_like(depth), np.zeros_like(mask)
    near, far = limits
    return np.clip((np.nan_to_num(depth) - near) / (far - near) * 2 - 1, -1, 1), mask


def nearest(array: Shaped[np.ndarray, "h w c"], size: tuple[int, int]) -> Shaped[np.ndarray, "height width c"]:
    """Resizes to the closest pixels (`nearest-exact` in PyTorch), for any dtype."""
    rows, columns = (_closest(old, new) for old, new in zip(array.shape[:2], size, strict=True))
    return array[rows[:, None], columns]


def _closest(old: int, new: int) -> Shaped[np.ndarray, " new"]:
    """The indices that `resize` reads, found by resizing a ramp of indices."""
    ramp = np.arange(old, dtype=np.float32)[:, None, None]
    return resize(ramp, (new, 1), "nearest-exact", antialias=False).ravel().astype(np.intp)


def _rgb(
    rgb: Shaped[np.ndarray, "h w 3"], size: tuple[int, int], antialias: bool
) -> Float32[np.ndarray, "height width 3"]:
    values = resize(rgb.astype(np.float32), size, "bilinear", antialias=True) if antialias else nearest(rgb, size)
    return values.astype(np.float32) / 255 * 2 - 1
