"""Both geometries; the diffusers one is run beside diffusers' own image processor."""

import numpy as np
import pytest
import torch
from diffusers.pipelines.marigold.marigold_image_processing import MarigoldImageProcessor

from marigold_jax.data.geometry import (
    RESIZES,
    Geometry,
    default_bucket,
    fit,
    from_canvas,
    official_fit,
    to_canvas,
)

SIZES = [(64, 48), (50, 75), (300, 9), (9, 300), (1, 1), (37, 64), (7, 8)]


@pytest.mark.parametrize("method", ["nearest", "nearest-exact", "bilinear", "bicubic", "area"])
@pytest.mark.parametrize("resolution", [0, 64])
@pytest.mark.parametrize("size", SIZES)
def test_bucket_8_is_diffusers(size, resolution, method):
    random = np.random.default_rng(0)
    image = random.uniform(0, 1, (*size, 3)).astype(np.float32)
    processor = MarigoldImageProcessor()
    expected, padding, original = processor.preprocess(image, resolution, method)
    geometry = fit(size, resolution, bucket=8)
    canvas = to_canvas(image * 2 - 1, geometry, method)
    assert geometry.canvas == canvas.shape[:2]
    np.testing.assert_allclose(canvas, expected[0].permute(1, 2, 0).numpy(), atol=1e-5, rtol=0)

    prediction = random.uniform(0, 1, (*geometry.canvas, 1)).astype(np.float32)
    tensor = processor.unpad_image(torch.from_numpy(prediction).permute(2, 0, 1)[None], padding)
    assert geometry.resized == tensor.shape[2:]
    for match_input in (True, False):
        if match_input:
            tensor = processor.resize_antialias(tensor, original, method, is_aa=False)
        got = from_canvas(prediction, geometry, match_input, method)
        if match_input:
            np.testing.assert_allclose(got, tensor[0].permute(1, 2, 0).numpy(), atol=1e-5, rtol=0)
        else:
            np.testing.assert_array_equal(got, prediction[: geometry.resized[0], : geometry.resized[1]])


@pytest.mark.parametrize(
    "original, resolution, bucket, expected",
    [
        ((3000, 4000), 768, 64, (576, 768)),
        ((2268, 4032), 768, 64, (448, 768)),  # 432 lies between 384 and 448
        ((480, 640), 0, 64, (512, 640)),  # 7.5 buckets round up
        ((479, 640), 0, 64, (448, 640)),
        ((9, 300), 768, 64, (64, 768)),  # never less than one bucket
        ((1, 1), 768, 64, (768, 768)),
        ((30, 40), 40, 16, (32, 48)),
    ],
)
def test_larger_bucket_rounds_and_never_pads(original, resolution, bucket, expected):
    assert fit(original, resolution, bucket) == Geometry(original, expected, expected)


@pytest.mark.parametrize("resolution, bucket", [(0, 64), (1024, 64), (768, 64), (512, 40), (128, 8), (8, 8)])
def test_buckets_never_bend_small_pictures(resolution, bucket):
    assert default_bucket(resolution) == bucket


def test_larger_bucket_resizes_straight_and_back():
    ramp = np.broadcast_to(np.linspace(0, 1, 90, dtype=np.float32)[None, :, None], (50, 90, 3))
    geometry = fit((50, 90), 128, bucket=64)
    canvas = to_canvas(ramp, geometry, "bilinear")
    assert canvas.shape == (64, 128, 3) and canvas.dtype == np.float32
    np.testing.assert_allclose(from_canvas(canvas, geometry, True, "bilinear"), ramp, atol=5e-3)


def test_a_folder_of_mixed_sizes_needs_few_canvases():
    random = np.random.default_rng(0)
    sizes = [tuple(int(side) for side in random.integers(300, 4000, 2)) for _ in range(2000)]
    assert len({fit(size, 768, 64).canvas for size in sizes}) <= 25
    assert len({fit(size, 768, 8).canvas for size in sizes}) > 100


@pytest.mark.parametrize(
    "original, resolution, bucket, message",
    [
        ((10, 10), -8, 8, "must be a multiple of 8, or 0 .* got -8"),
        ((10, 10), 100, 8, "must be a multiple of 8, or 0 .* got 100"),
        ((10, 10), 768, 60, "bucket must be a multiple of 8; got 60"),
        ((10, 10), 768, 0, "bucket must be a multiple of 8; got 0"),
        ((2, 3000), 768, 8, "3000 x 2 pixels is too thin"),
        ((3000, 2), 768, 64, "2 x 3000 pixels is too thin"),
    ],
)
def test_errors(original, resolution, bucket, message):
    with pytest.raises(ValueError, match=message):
        fit(original, resolution, bucket)


@pytest.mark.parametrize(
    ("original", "resolution", "canvas", "predicted"),
    [
        ((4032, 6048), 756, (504, 756), (504, 752)),  # ETH3D
        ((480, 640), 0, (480, 640), (480, 640)),  # NYUv2, ScanNet
        ((352, 1216), 0, (352, 1216), (352, 1216)),  # KITTI
        ((768, 1024), 640, (480, 640), (480, 640)),  # DIODE
        ((450, 300), 768, (768, 512), (768, 512)),
        ((161, 100), 768, (768, 477), (768, 472)),
        ((375, 187), 767, (767, 382), (760, 376)),
        ((100, 161), 768, (477, 768), (472, 768)),
    ],
)
def test_the_authors_cut_off_and_pad_nothing(original, resolution, canvas, predicted):
    assert official_fit(original, resolution) == Geometry(original, predicted, canvas)


def test_the_authors_longer_side_may_lack_a_pixel():
    """156 of the widths from 100 to 3000, at resolution 768."""
    short = [width for width in range(100, 3001) if max(official_fit((width // 2, width), 768).canvas) == 767]
    assert len(short) == 156 and fit((short[0] // 2, short[0]), 768, 8).resized[1] == 768


def test_the_authors_resizing_refuses_what_has_no_latent():
    with pytest.raises(ValueError, match=r"3000 x 20 pixels is too thin: at processing resolution 768 it has 768 x 5"):
        official_fit((20, 3000), 768)
    with pytest.raises(ValueError, match="must not be negative"):
        official_fit((20, 30), -8)
    with pytest.raises(ValueError, match="bilinear, as in the papers"):
        RESIZES["official"].to_canvas(np.zeros((8, 8, 3), np.float32), official_fit((8, 8), 8), "bicubic")
