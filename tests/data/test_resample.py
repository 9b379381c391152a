"""Resizing against torch's interpolate, for every method, up and down."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional

from marigold_jax.data.resample import METHODS, resize, resize_8_bits

SIZES = [
    ((37, 53), (16, 16)),  # down, awkward ratios
    ((37, 53), (96, 128)),  # up
    ((64, 48), (32, 24)),  # exact halves
    ((32, 24), (64, 48)),  # exact doubles: legacy nearest and nearest-exact agree
    ((20, 90), (45, 30)),  # one axis up, the other down
    ((20, 30), (20, 17)),  # one axis kept
    ((1, 1), (8, 24)),
    ((9, 300), (23, 768)),
    ((300, 7), (3, 7)),
]


def torch_resize(image, size, method, antialias):
    options = {"antialias": antialias} if method in ("bilinear", "bicubic") else {}
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    return functional.interpolate(tensor, size, mode=method, **options)[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_equals_torch(method, antialias):
    for seed, ((old, new), channels) in enumerate(itertools.product(SIZES, (1, 3))):
        image = np.random.default_rng(seed).uniform(-1, 1, (*old, channels)).astype(np.float32)
        resized = resize(image, new, method, antialias)
        assert resized.shape == (*new, channels) and resized.dtype == np.float32
        expected = torch_resize(image, new, method, antialias)
        np.testing.assert_allclose(resized, expected, atol=1e-5, rtol=0, err_msg=f"{old} -> {new}")


@pytest.mark.parametrize("method", METHODS)
def test_equals_torch_on_long_sides(method):
    """Float32 positions: in float64, nearest picks other pixels and the others drift by more than 1e-5."""
    for seed, (old, new) in enumerate([((2, 4032), (2, 767)), ((2, 1001), (2, 3979)), ((3979, 2), (751, 2))]):
        image = np.random.default_rng(seed).uniform(0, 1, (*old, 1)).astype(np.float32)
        for antialias in (False, True):
            expected = torch_resize(image, new, method, antialias)
            np.testing.assert_allclose(resize(image, new, method, antialias), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_constant_stays_constant_and_same_size_is_the_same_image(method):
    image = np.full((13, 31, 3), 0.7, np.float32)
    np.testing.assert_allclose(resize(image, (40, 11), method, True), 0.7, atol=1e-6)
    assert resize(image, (13, 31), method, True) is image


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((50, 70), (45, 64)),
        ((240, 320), (288, 384)),  # five to six: every sixth value is a half
        ((96, 128), (48, 64)),
        ((48, 64), (96, 128)),
        ((375, 1242), (231, 767)),
        ((403, 604), (50, 75)),
        ((40, 60), (40, 30)),
        ((7, 9), (7, 9)),
    ],
)
def test_8_bits_are_rounded_as_torch_rounds_them(old, new):
    """torchvision resizes a uint8 tensor in float32, and rounds. Not one pixel may go the other way."""
    image = np.random.default_rng(0).integers(0, 256, (*old, 3)).astype(np.float32)
    expected = np.rint(torch_resize(image, new, "bilinear", True))
    np.testing.assert_array_equal(resize_8_bits(image, new), expected)


def test_strided_images_are_read_right():
    image = np.random.default_rng(0).uniform(0, 1, (40, 60, 3)).astype(np.float32)
    turned = image[::-1].transpose(1, 0, 2)
    expected = resize(np.ascontiguousarray(turned), (17, 19), "bilinear", True)
    np.testing.assert_array_equal(resize(turned, (17, 19), "bilinear", True), expected)


def test_errors():
    image = np.zeros((4, 4, 3), np.float32)
    with pytest.raises(ValueError, match=r"one of nearest, nearest-exact, bilinear, bicubic, area; got 'lanczos'"):
        resize(image, (2, 2), "lanczos", True)
    with pytest.raises(ValueError, match="4 x 4 pixels to 0 x 2"):
        resize(image, (0, 2), "bilinear", True)
