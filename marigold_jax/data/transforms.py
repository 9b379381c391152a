"""From a decoded example to a training sample: flip, normalise, resize, in the reference's order.

The reference (arXiv 2312.02145, section 3.2) takes the 2nd and 98th percentile of the valid depth, at the dataset's own
resolution, to -1 and +1. Two of its choices are better made otherwise, and both ways are here:

- `antialias`: the reference shrinks the RGB image by taking the nearest pixel, which turns fine texture into noise that
  no photograph shows. Bilinear with antialiasing is how `predict` shrinks its photographs.
- `far_fill`: the reference lets the VAE see whatever number an invalid pixel holds. Missing depth is stored as 0, so a
  window or the sky becomes the nearest thing in the picture, and bleeds into the latents of valid pixels beside it.
"""

import numpy as np
from jaxtyping import Bool, Float, Float32, Shaped

from marigold_jax.data.resample import resize

PERCENTILES = (0.02, 0.98)


def transform(
    example: dict[str, np.ndarray], *, size: tuple[int, int] | None, flip: bool, antialias: bool, far_fill: bool
) -> dict[str, np.ndarray]:
    """An example of `data.prepared` as a sample, at `size` = (height, width), or at its own for None.

    The sample holds `rgb` float32 (H, W, 3) in [-1, 1]; `depth` float32 (H, W, 1) in metres, 0 where invalid; `target`
    float32 (H, W, 1) in [-1, 1], near -1, far +1; `span` float32 (), the metres from -1 to +1; `mask` bool (H, W, 1),
    True where valid; `normals` if the example has them, and then `mask` is True only where they are known too. `flip`
    mirrors it. An example without two different valid depths yields targets of zero, an empty mask and no span.
    """
    if flip:
        example = mirror(example)
    limits = percentiles(example["depth"], example["mask"])
    size = size or example["mask"].shape[:2]
    # What comes after the percentiles works pixel by pixel, so it may as well see only the pixels that stay.
    maps = {key: nearest(value, size) for key, value in example.items() if key != "rgb"}
    target, mask = normalise(maps["depth"], maps["mask"], limits)
    if far_fill and limits:
        target = np.where(mask, target, np.float32(1))
    span = np.float32(limits[1] - limits[0] if limits else 0)
    maps |= {"depth": np.where(mask, maps["depth"], np.float32(0)), "target": target, "span": span, "mask": mask}
    if "normals" in maps:
        maps["mask"] = mask & maps["normals"].any(axis=-1, keepdims=True)
    return {"rgb": _rgb(example["rgb"], size, antialias)} | maps


def crop(
    example: dict[str, np.ndarray], window: Float[np.ndarray, "3"] | tuple[float, float, float]
) -> dict[str, np.ndarray]:
    """The part of every map inside `window`: (share of both sides, where it lies from top to bottom, left to right).

    All three lie in [0, 1]; (1, y, x) is the whole example. Depth along the optical axis and normals keep their meaning
    when a part of a picture is magnified: the lens has another focal length, and looks past its axis.
    """
    share, *place = window
    sides = example["mask"].shape[:2]
    kept = [max(1, round(share * side)) for side in sides]
    starts = [int(at * (side - keep + 1)) for at, side, keep in zip(place, sides, kept, strict=True)]
    starts = [min(start, side - keep) for start, side, keep in zip(starts, sides, kept, strict=True)]
    rows, columns = (slice(start, start + keep) for start, keep in zip(starts, kept, strict=True))
    return {key: value[rows, columns] for key, value in example.items()}


def mirror(example: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Left becomes right in every map; normals then point the other way along x."""
    mirrored = {key: np.ascontiguousarray(value[:, ::-1]) for key, value in example.items()}
    if "normals" in example:
        mirrored["normals"] = mirrored["normals"] * np.float32([-1, 1, 1])
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
    """Depth with the two `limits` at -1 and +1, clipped to that, and the mask.

    Invalid pixels get what the formula gives for the number they hold (NaN counts as 0 m). Without limits there is
    nothing to learn: zeros and an empty mask.
    """
    if limits is None:
        return np.zeros_like(depth), np.zeros_like(mask)
    near, far = limits
    return np.clip((np.nan_to_num(depth) - near) / (far - near) * 2 - 1, -1, 1), mask


def nearest(array: Shaped[np.ndarray, "h w c"], size: tuple[int, int]) -> Shaped[np.ndarray, "height width c"]:
    """Takes for each output pixel the closest input pixel (torch's `nearest-exact`), in any type."""
    rows, columns = (_closest(old, new) for old, new in zip(array.shape[:2], size, strict=True))
    return array[rows[:, None], columns]


def _closest(old: int, new: int) -> Shaped[np.ndarray, " new"]:
    """Resizing a ramp of indices tells which ones `resize` reads."""
    ramp = np.arange(old, dtype=np.float32)[:, None, None]
    return resize(ramp, (new, 1), "nearest-exact", antialias=False).ravel().astype(np.intp)


def _rgb(
    rgb: Shaped[np.ndarray, "h w 3"], size: tuple[int, int], antialias: bool
) -> Float32[np.ndarray, "height width 3"]:
    values = resize(rgb.astype(np.float32), size, "bilinear", antialias=True) if antialias else nearest(rgb, size)
    return values.astype(np.float32) / 255 * 2 - 1
