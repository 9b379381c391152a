"""Converts the size of an image to the size that the network processes, and a prediction back.

The network needs sides that are multiples of 8, and each canvas size needs a compiled program of its own. There are two
ways to choose the canvas:

- bucket 8, as in diffusers: resize to the processing resolution, then repeat the last row and column until both sides
  are multiples of 8; the padding is cropped from the prediction. Nearly every image size has its own canvas.
- a larger bucket, such as 64: resize directly to multiples of the bucket. This changes the aspect ratio slightly and
  adds no padding, so a folder of mixed sizes needs few canvases.

A third way, "official", reproduces the numbers of the papers: it is what the code of Marigold's authors does. It
resizes the 8-bit image and rounds to 8 bits again. It adds no padding, so the VAE drops pixels beyond a multiple of 8.
The smaller prediction is stretched over the whole image, antialiased, and normals are not rescaled to unit length.
ETH3D's 4032x6048 at resolution 756 is resized to 504x756 and predicted at 504x752.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float32, Shaped

from marigold_jax.data.resample import resize, resize_8_bits

PATCH = 8  # the VAE halves the image three times
COARSE = 64  # the bucket for folders of mixed sizes
SHARE = 12  # a bucket is at most this fraction (1/12) of the longer side: 64 at resolution 768


@dataclass(frozen=True)
class Geometry:
    """The sizes of an image on its way through the network, each (height, width); but see `official_fit`.

    Attributes:
        original: of the image.
        resized: after resizing; the part of the prediction that is not padding.
        canvas: after padding; what the network processes.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    canvas: tuple[int, int]


def fit(original: tuple[int, int], processing_resolution: int, bucket: int) -> Geometry:
    """The geometry of an image whose longer side becomes `processing_resolution`.

    Args:
        original: (height, width) of the image.
        processing_resolution: a multiple of 8, or 0 for the size of the image. The shorter side is rounded down, as in
            diffusers.
        bucket: 8 pads to multiples of 8; a larger multiple of 8 rounds each side to the nearest multiple of it (at
            least one) and adds no padding.

    Raises:
        ValueError: the resolution or bucket is not a multiple of 8, or the shorter side would become 0.
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
    """The bucket for a folder of mixed sizes: 64, and less below resolution 768, where 64 would distort images."""
    if not processing_resolution:
        return COARSE
    return min(COARSE, max(PATCH, processing_resolution // SHARE // PATCH * PATCH))


def to_canvas(
    image: Shaped[np.ndarray, "h w c"], geometry: Geometry, method: str, convert: Callable | None = None
) -> Float32[np.ndarray, "height width c"]:
    """Resizes an image to its canvas, antialiased, and pads it by repeating its edge.

    Args:
        image: of size `geometry.original`, in any value range; float32 unless `convert` is given.
        geometry: from `fit`.
        method: see `data.resample.resize`.
        convert: see `data.resample.resize`.
    """
    image = resize(image, geometry.resized, method, antialias=True, convert=convert)
    (height, width), (canvas_height, canvas_width) = geometry.resized, geometry.canvas
    return np.pad(image, ((0, canvas_height - height), (0, canvas_width - width), (0, 0)), mode="edge")


def from_canvas(
    prediction: Float32[np.ndarray, "height width c"], geometry: Geometry, match_input: bool, method: str
) -> Float32[np.ndarray, "h w c"]:
    """Crops the padding from a prediction, and resizes it to the image, without antialiasing, as in diffusers.

    Args:
        prediction: of size `geometry.canvas`. Resized normals do not have unit length; the caller restores it.
        geometry: from `fit`.
        match_input: False keeps the size `geometry.resized`.
        method: see `data.resample.resize`.
    """
    height, width = geometry.resized
    prediction = prediction[:height, :width]
    return resize(prediction, geometry.original, method, antialias=False) if match_input else prediction


def official_fit(original: tuple[int, int], processing_resolution: int) -> Geometry:
    """The geometry in the authors' code: `canvas` is the resized image, and `resized` the prediction of the VAE.

    Both sides are truncated in floating point, so the longer one may be a pixel short. Any resolution is accepted.
    Raises ValueError if a side would be smaller than a latent.
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
    """A prediction resized to `geometry.original`, antialiased; the unit length of normals is not restored."""
    return resize(prediction, geometry.original, method, antialias=True) if match_input else prediction


@dataclass(frozen=True)
class Resize:
    """A way of resizing images and predictions.

    Attributes:
        fit: image size and processing resolution to a geometry.
        to_canvas: an image to what the network processes.
        from_canvas: a prediction to the size of its image.
        restore: whether normals are rescaled to unit length afterwards.
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
