"""Strips: what the whole gives, statistics included; less memory; and nothing at all at ordinary sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from marigold_jax.hardware.collectives import collectives
from marigold_jax.models import functional, layers, strips, vae
from marigold_jax.runtime.sharding import Layout, make_mesh

CONFIG = vae.VAEConfig(
    block_out_channels=(8, 16, 16, 32),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    norm_num_groups=4,
)
LAYER, MODEL = 1e-5, 1e-4  # absolute, float32
ROW = 40 * 8  # numbers in a row of the picture below


def normal(*shape, seed=0):
    """Brighter and louder towards the bottom, so that no strip has the statistics of the whole."""
    x = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray((x + 1) * np.linspace(0.2, 3, shape[1])[None, :, None, None], jnp.float32)


def random_module(make):
    """Norm scales and biases random too."""
    structure, params = functional.initialise(make)
    random = np.random.default_rng(1)
    params = {
        path: array + jnp.asarray(0.3 * random.normal(size=array.shape), jnp.float32) if array.ndim == 1 else array
        for path, array in params.items()
    }
    return structure, params


def apply(structure, method):
    """A new function each time: whether strips are used is decided when it is traced."""
    return lambda params, *inputs: getattr(functional.merge(structure, params), method)(*inputs)


def both(monkeypatch, function, *arguments):
    """What a function gives as a whole, and in strips."""
    found = []
    for mode in ("never", "always"):
        monkeypatch.setenv("MARIGOLD_JAX_STRIPS", mode)
        found.append(jax.jit(lambda *arguments: function(*arguments))(*arguments))
    return found


def resnet(inputs, outputs, time_dim=None):
    return lambda rngs: layers.ResnetBlock(inputs, outputs, groups=4, epsilon=1e-6, time_dim=time_dim, rngs=rngs)


def level(channels):
    """The decoder's last level in small: upsampling, a resnet that halves the channels, one that keeps them."""

    def make(rngs):
        half = channels // 2
        return nnx.List([layers.Upsample(channels, rngs), resnet(channels, half)(rngs), resnet(half, half)(rngs)])

    return make


def in_turn(structure):
    def function(params, x):
        for layer in functional.merge(structure, params):
            x = layer(x)
        return x

    return function


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3, 100])  # 11 = 3 * 3 + 2; or one strip
@pytest.mark.parametrize("time_dim", [None, 6])
@pytest.mark.parametrize("channels", [(8, 8), (16, 8), (8, 16)])
def test_resnet(monkeypatch, channels, time_dim, rows):
    structure, params = random_module(resnet(*channels, time_dim))
    monkeypatch.setattr(strips, "STRIP", rows * 2 * 6 * max(channels))
    x, time = normal(2, 11, 6, channels[0]), None if time_dim is None else jnp.ones((2, time_dim))
    whole, found = both(monkeypatch, apply(structure, "__call__"), params, x, time)
    np.testing.assert_allclose(found, whole, rtol=0, atol=LAYER)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_upsample(monkeypatch, rows):
    structure, params = random_module(lambda rngs: layers.Upsample(8, rngs))
    monkeypatch.setattr(strips, "STRIP", rows * 4 * 2 * 6 * 8)
    whole, found = both(monkeypatch, apply(structure, "__call__"), params, normal(2, 7, 6, 8))
    assert found.shape == (2, 14, 12, 8)
    np.testing.assert_allclose(found, whole, rtol=0, atol=LAYER)
    # To another size than double the layer stays whole.
    odd = apply(structure, "__call__")
    assert "dynamic_update_slice" not in str(
        jax.make_jaxpr(lambda p, x: odd(p, x, (13, 12)))(params, normal(2, 7, 6, 8))
    )


@pytest.mark.slow
def test_vae(monkeypatch):
    structure, params = random_module(lambda rngs: vae.VAE(CONFIG, rngs))
    monkeypatch.setattr(strips, "STRIP", 5 * ROW)
    for method, x in (("decode", normal(1, 7, 5, 4) / 5), ("encode", normal(1, 61, 40, 3).clip(-1, 1))):
        whole, found = both(monkeypatch, apply(structure, method), params, x)
        np.testing.assert_allclose(found, whole, rtol=0, atol=MODEL)


@pytest.mark.slow
@pytest.mark.parametrize("remat", [lambda function: function, jax.checkpoint])
def test_gradients(monkeypatch, remat):
    structure, params = random_module(level(16))
    monkeypatch.setattr(strips, "STRIP", 2 * 4 * 5 * 16)

    def loss(params, x):
        return jnp.sum(jnp.sin(remat(in_turn(structure))(params, x)))

    whole, found = both(monkeypatch, jax.grad(loss, (0, 1)), params, normal(1, 7, 5, 16))
    largest = max(jnp.linalg.norm(x.ravel()) for x in jax.tree.leaves(whole))
    for ours, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        # A bias before a normalisation has a gradient of zero, but for rounding.
        scale = jnp.maximum(jnp.linalg.norm(wanted.ravel()), 1e-2 * largest)
        assert jnp.linalg.norm((ours - wanted).ravel()) <= 1e-4 * scale


def test_half_precision_stays_what_it_is(monkeypatch):
    structure, params = random_module(level(16))
    monkeypatch.setattr(strips, "STRIP", 2 * 4 * 5 * 16)
    half = {path: array.astype(jnp.bfloat16) for path, array in params.items()}
    whole, found = both(monkeypatch, in_turn(structure), half, normal(1, 7, 5, 16).astype(jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    spread = float(jnp.std(whole.astype(jnp.float32)))
    np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in (found, whole)), rtol=0, atol=0.05 * spread)


def test_ordinary_sizes_stay_whole(monkeypatch):
    """Stable Diffusion 2's VAE at 480x640, at 768 of any shape, in any batch: the very same program."""
    structure, shapes = functional.abstract(lambda rngs: vae.VAE(vae.SD2, rngs))

    def program(mode, method, *shape):
        monkeypatch.setenv("MARIGOLD_JAX_STRIPS", mode)
        return str(jax.make_jaxpr(apply(structure, method))(shapes, jax.ShapeDtypeStruct(shape, jnp.float32)))

    assert program("auto", "decode", 4, 96, 96, 4) == program("never", "decode", 4, 96, 96, 4)
    assert program("auto", "encode", 4, 768, 768, 3) == program("never", "encode", 4, 768, 768, 3)
    assert "dynamic_update_slice" not in program("auto", "decode", 1, 96, 96, 4)
    assert "dynamic_update_slice" in program("auto", "decode", 1, 96, 128, 4)  # 1024x768


def test_each_device_keeps_to_its_pictures(monkeypatch):
    structure, params = random_module(level(16))
    monkeypatch.setenv("MARIGOLD_JAX_STRIPS", "always")
    layout, x = Layout(make_mesh(1)), normal(8, 7, 5, 16)
    program = jax.jit(in_turn(structure)).lower(params, jax.device_put(x, layout.batch)).compile()
    assert not collectives(program.as_text(), 8)
    found = program(jax.device_put(params, layout.replicated), jax.device_put(x, layout.batch))
    np.testing.assert_allclose(found, jax.jit(in_turn(structure))(params, x), rtol=0, atol=LAYER)


def test_on_a_tpu_all_stays_whole(monkeypatch):
    monkeypatch.delenv("MARIGOLD_JAX_STRIPS", raising=False)
    structure, shapes = functional.abstract(lambda rngs: vae.VAE(vae.SD2, rngs))
    large = jax.ShapeDtypeStruct((1, 96, 128, 4), jnp.float32)
    in_strips = []
    for kind in ("gpu", "tpu"):
        monkeypatch.setattr(strips, "platform", lambda kind=kind: kind)
        in_strips.append("dynamic_update_slice" in str(jax.make_jaxpr(apply(structure, "decode"))(shapes, large)))
    assert in_strips == [True, False]


def test_memory(monkeypatch):
    """Temporaries of the decoder's last level, in arrays as large as its output."""
    monkeypatch.setattr(strips, "STRIP", 2**16)
    structure, shapes = functional.abstract(level(64))
    x = jax.ShapeDtypeStruct((1, 128, 128, 64), jnp.float32)

    def temporaries(mode):
        monkeypatch.setenv("MARIGOLD_JAX_STRIPS", mode)
        program = jax.jit(lambda params, x: in_turn(structure)(params, x).mean()).lower(shapes, x).compile()
        return program.memory_analysis().temp_size_in_bytes / (256 * 256 * 32 * 4)

    in_strips, whole = temporaries("always"), temporaries("never")
    assert in_strips < 3.3 < 4.9 < whole, (in_strips, whole)


def test_a_mistaken_override_is_refused(monkeypatch):
    monkeypatch.setenv("MARIGOLD_JAX_STRIPS", "yes")
    with pytest.raises(ValueError, match="MARIGOLD_JAX_STRIPS='yes': wanted one of auto, always, never"):
        strips.wanted(jnp.zeros((1, 2, 2, 3)), layers.conv3x3(3, 3, layers.Keys(jax.random.key(0))))
