"""Layers that have another form on another platform: all forms give the same, and what NumPy gives in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from marigold_jax.models import attention, functional, layers
from marigold_jax.models.upsampling import doubled, resize_nearest

LAYER = 1e-5  # absolute, float32
PLATFORMS = ("cpu", "gpu", "tpu")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def module(make, seed=0):
    structure, params = functional.initialise(make)
    return functional.merge(structure, {name: jnp.asarray(normal(*x.shape, seed=seed)) for name, x in params.items()})


def images(kind):
    x = normal(2, 12, 10, 24)
    if kind == "large mean":
        x += 1000
    elif kind == "constant":
        x[:] = 3
    elif kind == "bright spot":  # where one of the pixels is that the pivot is taken from
        x[:, 6, 5] += 1000
    return x


def norm_in_float64(x, scale, bias, groups, epsilon):
    b, h, w, c = x.shape
    parts = x.astype(np.float64).reshape(b, h * w, groups, c // groups)
    mean, variance = parts.mean((1, 3), keepdims=True), parts.var((1, 3), keepdims=True)
    return ((parts - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * scale + bias


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize(
    ("kind", "tolerance"), [("ordinary", LAYER), ("large mean", 5e-4), ("constant", 5e-4), ("bright spot", 5e-5)]
)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_group_norm_is_exact_for_any_mean(monkeypatch, platform, kind, tolerance, offset):
    monkeypatch.setattr(layers, "platform", lambda: platform)
    norm = module(lambda keys: layers.GroupNorm(24, 6, 1e-5))
    x, more = images(kind), normal(2, 1, 1, 24, seed=1) if offset and kind != "constant" else None
    wanted = norm_in_float64(
        x if more is None else x + more, *(np.asarray(p[...]) for p in (norm.scale, norm.bias)), 6, 1e-5
    )
    found = norm(jnp.asarray(x), None if more is None else jnp.asarray(more))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("height", [1, 2, 12, 37, 64])
def test_the_gradient_of_a_residual_block_is_the_same_on_all_platforms(monkeypatch, height):
    block = module(lambda keys: layers.ResnetBlock(8, 16, groups=4, epsilon=1e-5, time_dim=6, rngs=keys))
    structure, params = functional.split(block)
    x, time, weights = (jnp.asarray(normal(*shape)) for shape in ((2, height, 6, 8), (2, 6), (2, height, 6, 16)))

    def loss(params, x):
        return (functional.merge(structure, params)(x, time) * weights).mean()

    found = {}
    for platform in PLATFORMS:
        monkeypatch.setattr(layers, "platform", lambda platform=platform: platform)
        found[platform] = jax.value_and_grad(loss, (0, 1))(params, x)
    for platform in PLATFORMS[1:]:
        for ours, wanted in zip(*(jax.tree.leaves(found[name]) for name in (platform, "cpu")), strict=True):
            np.testing.assert_allclose(ours, wanted, rtol=0, atol=LAYER)


def test_doubling_before_a_convolution_and_within():
    conv = module(lambda keys: nnx.List([layers.conv3x3(6, 5, keys)]))[0]
    x, weights = jnp.asarray(normal(2, 7, 5, 6)), jnp.asarray(normal(2, 14, 10, 5))

    def value(function):
        return jax.value_and_grad(lambda x: (function(x) * weights).mean(), 0)(x)

    plain = value(lambda x: conv(resize_nearest(x, (14, 10))))
    for ours, wanted in zip(value(lambda x: doubled(conv, x)), plain, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=LAYER)
    np.testing.assert_allclose(doubled(conv, x), conv(resize_nearest(x, (14, 10))), rtol=0, atol=2 * LAYER)


@pytest.mark.parametrize("pairs", [0, 300 * 200, 300 * 10**6])
def test_blocks_of_any_size_give_the_same_attention(monkeypatch, pairs):
    monkeypatch.setitem(attention.MOST_PAIRS, "cpu", pairs)
    query, key, value = (jnp.asarray(normal(1, 300, 2, 8, seed=seed)) for seed in range(3))
    found = attention.IMPLEMENTATIONS["blockwise"](query, key, value)
    np.testing.assert_allclose(found, attention.IMPLEMENTATIONS["xla"](query, key, value), rtol=0, atol=LAYER)
