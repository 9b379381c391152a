"""From an image's size to the size that the network sees, and back.

The network wants sides that are multiples of 8, and every canvas size is one more program to compile. Two answers:

- bucket 8, which is diffusers': shrink or grow to the processing resolution, then repeat the last row and column
  until both sides are multiples of 8; the padding is cropped from the prediction. Nearly every size is another
  canvas.
- a larger bucket, such as 64: resize straight to multiples of the bucket. That changes the aspect ratio a little and
  pads nothing, so a folder of mixed sizes needs few canvases.

A third one is there to repeat the papers' numbers, "official": what Marigold's authors' own code does. It resizes the
8-bit picture, and rounds to 8 bits again; it pads nothing, so that the VAE passes over what is more than a multiple of
8; the prediction, of that smaller size, is stretched over the whole picture, antialiased; and normals are not made unit
vectors again. ETH3D's 4032x6048 at resolution 756 is resized to 504x756 and predicted at 504x752.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float32, Shaped

from marigold_jax.data.resample import resize, resize_8_bits

PATCH = 8  # the VAE halves the image three times
COARSE = 64  # the bucket for folders of mixed sizes
SHARE = 12  # of the longer side, at most, is a bucket: 64 at resolution 768


@dataclass(frozen=True)
class Geometry:
    """Three (height, width) pairs: the image as it came, the part of the prediction that shows it, and what the network
    is given. The first is resized to the second, and padded to the third; but see `official_fit`."""

    original: tuple[int, int]
    resized: tuple[int, int]
    canvas: tuple[int, int]


def fit(original: tuple[int, int], processing_resolution: int, bucket: int) -> Geometry:
    """The geometry of an image of `original` = (height, width) whose longer side becomes `processing_resolution`.

    Resolution 0 keeps the image's own size. `bucket` 8 pads to multiples of 8; a larger multiple of 8 rounds each
    side to the nearest multiple of it (at least one) and pads nothing. The shorter side is floored, as in diffusers.
    Raises ValueError for a resolution or bucket that is not a multiple of 8, or an image so thin that its shorter
    side would vanish.
    """
    if processing_resolution < 0 or processing_resolution % PATCH:
        raise ValueError(
            f"the processing resolution must be a multiple of {PATCH}, or 0 for the image's own size; "
            f"got {processing_resolution}"
        )
    if bucket < PATCH or bucket % PATCH:
        raise ValueError(f"the bucket must be a multiple of {PATCH}; got {bucket}")
    longest = max(original)
    if min(original) * (processing_resolution or longest) < longest:
        raise ValueError(
            f"an image of {original[1]} x {original[0]} pixels is too thin: at processing resolution "
            f"{processing_resolution} its shorter side would vanish; raise the resolution or crop the image"
        )
    resized = _each(lambda side: side * (processing_resolution or longest) // longest, original)
    if bucket == PATCH:
        return Geometry(original, resized, canvas=_each(lambda side: side + -side % PATCH, resized))
    rounded = _each(lambda side: max(1, (side + bucket // 2) // bucket) * bucket, resized)
    return Geometry(original, resized=rounded, canvas=rounded)


def default_bucket(processing_resolution: int) -> int:
    """The bucket for a folder of mixed sizes: 64, and less below resolution 768, where 64 would bend pictures."""
    if not processing_resolution:
        return COARSE
    return min(COARSE, max(PATCH, processing_resolution // SHARE // PATCH * PATCH))


def to_canvas(
    image: Shaped[np.ndarray, "h w c"], geometry: Geometry, method: str, convert: Callable | None = None
) -> Float32[np.ndarray, "height width c"]:
    """Resizes (antialiased) an image of size `geometry.original` in any value range; pads by repeating its edge.

    The image is float32, or whatever `convert` makes float32 of; see `resize`.
    """
    image = resize(image, geometry.resized, method, antialias=True, convert=convert)
    (height, width), (canvas_height, canvas_width) = geometry.resized, geometry.canvas
    return np.pad(image, ((0, canvas_height - height), (0, canvas_width - width), (0, 0)), mode="edge")


def from_canvas(
    prediction: Float32[np.ndarray, "height width c"], geometry: Geometry, match_input: bool, method: str
) -> Float32[np.ndarray, "h w c"]:
    """Crops the padding from a prediction of size `geometry.canvas`, then resizes it to `geometry.original`.

    Not antialiased, as in diffusers. With `match_input` False the prediction keeps the size `geometry.resized`. Resized
    normals are no longer of unit length: the caller restores that.
    """
    height, width = geometry.resized
    prediction = prediction[:height, :width]
    return resize(prediction, geometry.original, method, antialias=False) if match_input else prediction


def official_fit(original: tuple[int, int], processing_resolution: int) -> Geometry:
    """The geometry of the authors' code: `canvas` is the resized image, `resized` what the VAE makes of it.

    Both sides are cut off, in floating point, so that the longer one may lack a pixel; any resolution will do. Raises
    ValueError where nothing is left of a side.
    """
    if processing_resolution < 0:
        raise ValueError(f"the processing resolution must not be negative; got {processing_resolution}")
    factor = min(processing_resolution / side for side in original) if processing_resolution else 1.0
    canvas = _each(lambda side: int(side * factor), original)
    if min(canvas) < PATCH:
        raise ValueError(
            f"an image of {original[1]} x {original[0]} pixels is too thin: at processing resolution "
            f"{processing_resolution} it has {canvas[1]} x {canvas[0]}, and a latent takes {PATCH} x {PATCH}"
        )
    return Geometry(original, resized=_each(lambda side: side // PATCH * PATCH, canvas), canvas=canvas)


def official_canvas(
    image: Shaped[np.ndarray, "h w 3"], geometry: Geometry, method: str, convert: Callable | None = None
) -> Float32[np.ndarray, "height width 3"]:
    """An image in [-1, 1], rounded to 8 bits, resized, and rounded to 8 bits again; in [-1, 1]."""
    if method != "bilinear":
        raise ValueError(f'resize="official" is bilinear, as in the papers; got {method!r}')
    image = convert(image) if convert else image
    pixels = resize_8_bits(np.rint((image + 1) * np.float32(127.5)), geometry.canvas)
    return pixels / np.float32(255) * 2 - 1


def official_prediction(
    prediction: Float32[np.ndarray, "height width c"], geometry: Geometry, match_input: bool, method: str
) -> Float32[np.ndarray, "h w c"]:
    """A prediction stretched to `geometry.original`, antialiased where it shrinks; the caller restores nothing."""
    return resize(prediction, geometry.original, method, antialias=True) if match_input else prediction


@dataclass(frozen=True)
class Resize:
    """One way there and back: size and resolution to a geometry, an image to its canvas, a prediction to its image.

    `restore`: whether normals get unit length again.
    """

    fit: Callable[..., Geometry]
    to_canvas: Callable[..., np.ndarray]
    from_canvas: Callable[..., np.ndarray]
    restore: bool


RESIZES = {
    "diffusers": Resize(partial(fit, bucket=PATCH), to_canvas, from_canvas, restore=True),
    "official": Resize(official_fit, official_canvas, official_prediction, restore=False),
}


def _each(rule, size: tuple[int, int]) -> tuple[int, int]:
    return rule(size[0]), rule(size[1])
