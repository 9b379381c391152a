"""Multi-resolution noise against a NumPy float64 rendering of Marigold's loop, statistic by statistic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch

from marigold_jax.diffusion.noise import (
    annealed_strength,
    gaussian,
    largest_level_sizes,
    level_sizes,
    multi_resolution_noise,
    offset_noise,
    stretch_window,
)

SHAPE = (4, 30, 40, 2)
TIMESTEPS = np.array([0, 400, 700, 999])  # one per sample
STRENGTH = (0.9 * TIMESTEPS / 1000).astype(np.float32)
DRAWS = 2000


def reference_stretch(field, height, width):
    """Bilinear, half-pixel centres, edges repeated, one axis after the other."""
    for axis, side in ((1, height), (2, width)):
        source = field.shape[axis]
        position = np.clip((np.arange(side) + 0.5) * source / side - 0.5, 0, source - 1)
        low = np.floor(position).astype(int)
        weight = (position - low).reshape([-1 if i == axis else 1 for i in range(4)])
        high = np.minimum(low + 1, source - 1)
        field = np.take(field, low, axis) * (1 - weight) + np.take(field, high, axis) * weight
    return field


def reference_noise(rng, shape, strength):
    batch, height, width, channels = shape
    noise = rng.standard_normal(shape)
    sizes = [(height, width)]
    for level in range(10):
        divisor = rng.uniform(2, 4) ** level
        sizes.append(tuple(max(1, int(side / divisor)) for side in sizes[-1]))
        field = rng.standard_normal((batch, *sizes[-1], channels))
        noise += reference_stretch(field, height, width) * strength[:, None, None, None] ** level
        if 1 in sizes[-1]:
            break
    return noise / noise.std(ddof=1), sizes[1:]


@jax.jit
def draw_all(keys, strength):
    return jax.lax.map(lambda key: multi_resolution_noise(key, SHAPE, strength), keys)


@pytest.fixture(scope="module")
def ours():
    return np.asarray(draw_all(jax.random.split(jax.random.key(0), DRAWS), jnp.asarray(STRENGTH)))


@pytest.fixture(scope="module")
def theirs():
    rng = np.random.default_rng(1)
    return np.stack([reference_noise(rng, SHAPE, STRENGTH.astype(np.float64))[0] for _ in range(DRAWS)])


def radial_power(noise):
    """The mean power in rings of spatial frequency, channels averaged: (..., h, w, c) to (..., rings)."""
    height, width = noise.shape[-3:-1]
    power = (np.abs(np.fft.fft2(noise, axes=(-3, -2))) ** 2).mean(-1) / (height * width)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    ring = np.digitize(frequency, [0.01, 0.04, 0.08, 0.12, 0.18, 0.25, 0.35])
    return np.stack([power[..., ring == index].mean(-1) for index in range(ring.max() + 1)], -1)


def assert_same_mean(first, second, resolution):
    """The means over draws differ by less than four standard errors, and these are small enough to mean something."""
    standard_error = np.hypot(first.std(0), second.std(0)) / np.sqrt(len(first))
    assert (standard_error < resolution * second.mean(0)).all(), "too few draws to tell"
    assert (np.abs(first.mean(0) - second.mean(0)) < 4 * standard_error).all()


def test_radial_spectrum_equals_the_reference(ours, theirs):
    assert_same_mean(radial_power(ours), radial_power(theirs), resolution=0.05)


def test_variance_of_every_timestep_equals_the_reference(ours, theirs):
    ours, theirs = ours.var((2, 3, 4)), theirs.var((2, 3, 4))
    assert_same_mean(ours, theirs, resolution=0.005)
    for sample in range(len(TIMESTEPS)):
        assert scipy.stats.ks_2samp(ours[:, sample], theirs[:, sample]).pvalue > 1e-3
    # One deviation divides the whole batch: weak samples end below a variance of 1, strong ones above.
    assert ours[:, 0].mean() < 0.95 and ours[:, 3].mean() > 1.05


def test_total_unbiased_deviation_is_one(ours):
    np.testing.assert_allclose(ours.astype(np.float64).std((1, 2, 3, 4), ddof=1), 1.0, atol=1e-5)


def test_level_sizes_equal_the_reference():
    """Of 60 x 80 latents, 58 % of the draws have four levels and 42 % have three."""
    keys = jax.random.split(jax.random.key(2), 20_000)
    sizes = np.asarray(jax.jit(jax.vmap(lambda key: level_sizes(key, 60, 80)))(keys))
    counts = (sizes[:, :, 0] > 0).sum(1)
    assert ((counts == 3) | (counts == 4)).all()
    np.testing.assert_allclose((counts == 4).mean(), 0.58, atol=0.012)

    rng = np.random.default_rng(3)
    expected = np.zeros((2_000, 4, 2))
    for row in expected:
        drawn = reference_noise(rng, (1, 60, 80, 1), np.ones(1))[1]
        row[: len(drawn)] = drawn
    for level, axis in np.ndindex(4, 2):
        assert scipy.stats.ks_2samp(sizes[:, level, axis], expected[:, level, axis]).pvalue > 1e-3
    assert (sizes <= np.array(largest_level_sizes(60, 80))).all()


@pytest.mark.parametrize(
    ("height", "width", "sizes"),
    [
        (60, 80, [(60, 80), (30, 40), (7, 10), (1, 1)]),
        (44, 152, [(44, 152), (22, 76), (5, 19), (1, 2)]),
        (1, 9, [(1, 9)]),
    ],
)
def test_largest_level_sizes(height, width, sizes):
    assert largest_level_sizes(height, width) == sizes


@pytest.mark.parametrize("target", [(30, 40), (44, 152)])
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 2), (7, 5), (15, 20)])
def test_stretched_window_equals_pytorch(size, target):
    field = np.random.default_rng(4).standard_normal((2, 15, 20, 3), np.float32)
    window = torch.tensor(field[:, : size[0], : size[1]]).movedim(-1, 1)
    theirs = torch.nn.functional.interpolate(window, size=target, mode="bilinear", align_corners=False).movedim(1, -1)
    result = jax.jit(stretch_window, static_argnums=(2, 3))(field, jnp.array(size), *target)
    np.testing.assert_allclose(result, theirs, atol=1e-5)


def test_a_level_that_is_not_reached_adds_nothing():
    field = jnp.ones((1, 4, 5, 2))
    np.testing.assert_array_equal(stretch_window(field, jnp.array([0, 0]), 8, 9), np.zeros((1, 8, 9, 2)))


def test_strength_zero_is_white():
    noise = np.asarray(draw_all(jax.random.split(jax.random.key(5), DRAWS), jnp.zeros(4)))
    power = radial_power(noise).reshape(DRAWS * 4, -1)
    assert (np.abs(power.mean(0) - 1) < 4 * power.std(0) / np.sqrt(len(power))).all()
    assert scipy.stats.kstest(noise[:, 0, 0, 0].ravel(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("side", [(60, 80), (44, 152), (1, 7), (9, 1)])
def test_one_program_serves_all_draws_of_a_shape(side):
    traces = []

    @jax.jit
    def draw(key, strength):
        traces.append(side)
        return multi_resolution_noise(key, (2, *side, 4), strength)

    strength = jnp.array([0.0, 0.9])
    first, second, again = (draw(jax.random.key(seed), strength) for seed in (0, 1, 0))
    assert len(traces) == 1
    assert first.shape == (2, *side, 4) and first.dtype == jnp.float32 and bool(jnp.isfinite(first).all())
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, second)
    np.testing.assert_allclose(np.asarray(first, np.float64).std(ddof=1), 1.0, atol=1e-5)


def test_a_latent_one_pixel_high_is_white():
    """Its level 0 already has a side of 1, so nothing coarser is added, whatever the strength."""
    strong, weak = (multi_resolution_noise(jax.random.key(6), (2, 1, 50, 4), jnp.full(2, s)) for s in (0.9, 0.0))
    np.testing.assert_array_equal(strong, weak)


def test_annealed_strength():
    strength = annealed_strength(0.9, jnp.array([0, 500, 999]), 1000)
    np.testing.assert_allclose(strength, [0.0, 0.45, 0.8991], rtol=1e-6)


def test_gaussian_is_standard():
    noise = np.asarray(gaussian(jax.random.key(7), (4, 64, 64, 4)))
    assert noise.dtype == np.float32
    assert scipy.stats.kstest(noise.ravel(), "norm").pvalue > 1e-3


def test_offset_noise_shares_its_offset_within_a_sample_and_channel():
    strength = jnp.tile(jnp.array([0.0, 0.1, 1.0]), 2000)
    noise = np.asarray(offset_noise(jax.random.key(8), (6000, 4, 5, 2), strength)).reshape(2000, 3, 20, 2)
    np.testing.assert_allclose(noise.var((0, 2, 3)), [1.0, 1.01, 2.0], rtol=0.04)
    # Two pixels of a channel covary by strength², two channels of a pixel not at all.
    between_pixels = (noise[:, :, 0] * noise[:, :, 1]).mean((0, 2))
    np.testing.assert_allclose(between_pixels, [0.0, 0.01, 1.0], atol=0.1)
    between_channels = (noise[..., 0] * noise[..., 1]).mean((0, 2))
    np.testing.assert_allclose(between_channels, np.zeros(3), atol=0.1)
