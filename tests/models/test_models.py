"""Parity ladder: random PyTorch weights through the real files and converter, then layer, block and model."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import torch
from jax.experimental.pallas import tpu as pltpu

from marigold_jax.models import attention, clip, functional, unet, vae
from marigold_jax.models.config import config_from_dict
from marigold_jax.models.layers import sinusoidal_embedding
from marigold_jax.models.upsampling import resize_nearest
from marigold_jax.runtime.sharding import Layout, make_mesh
from marigold_jax.weights.component import load_component

KINDS = {
    "unet": (oracle.unet, unet.UNetConfig, unet.UNet, unet.FIXED),
    "vae": (oracle.vae, vae.VAEConfig, vae.VAE, vae.FIXED),
    "clip": (oracle.text_encoder, clip.TextConfig, clip.TextEncoder, clip.FIXED),
}
LAYER, MODEL = 1e-5, 1e-4  # absolute, float32


def both(kind, folder, **overrides):
    make, config_class, module, fixed = KINDS[kind]
    theirs = make(**overrides)
    theirs.save_pretrained(folder)
    _, structure, params = load_component(folder, config_class, module, fixed)
    return theirs, functional.merge(structure, params)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def ints(*values):
    return jnp.asarray(values, jnp.int32)


def as_torch(x):
    return torch.from_numpy(np.array(x))


def assert_close(ours, theirs, tolerance):
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def unets(tmp_path_factory):
    return both("unet", tmp_path_factory.mktemp("unet"), **oracle.DEEP_UNET)


@pytest.fixture(scope="module")
def vaes(tmp_path_factory):
    return both("vae", tmp_path_factory.mktemp("vae"), layers_per_block=2)


@torch.no_grad()
def test_layers_of_the_unet(unets):
    theirs, ours = unets
    x, time, context = normal(2, 7, 5, 16), normal(2, 64), normal(2, 3, 24)
    x32 = normal(2, 7, 5, 32)
    t_time, t_context = as_torch(time), as_torch(context)

    timesteps = ints(0, 1, 499, 999)
    assert_close(sinusoidal_embedding(timesteps, 16), theirs.time_proj(as_torch(timesteps)), LAYER)
    waves = normal(2, 16)
    assert_close(ours.time_embedding(waves), theirs.time_embedding(as_torch(waves)), LAYER)

    for here, there, inputs in (
        (ours.conv_in, theirs.conv_in, normal(2, 7, 5, 8)),
        (ours.conv_norm_out, theirs.conv_norm_out, x),
        (ours.down_blocks[0].attentions[0].norm, theirs.down_blocks[0].attentions[0].norm, x),
        (ours.down_blocks[0].downsamplers[0], theirs.down_blocks[0].downsamplers[0], x),
        (ours.up_blocks[1].upsamplers[0], theirs.up_blocks[1].upsamplers[0], x32),
    ):
        assert_close(here(inputs), oracle.nhwc(there(oracle.nchw(inputs))), LAYER)
    upsample = (ours.up_blocks[1].upsamplers[0], theirs.up_blocks[1].upsamplers[0])
    assert_close(upsample[0](x32, (13, 9)), oracle.nhwc(upsample[1](oracle.nchw(x32), (13, 9))), LAYER)

    for here, there, inputs in (
        (ours.down_blocks[0].resnets[0], theirs.down_blocks[0].resnets[0], x),
        (ours.down_blocks[1].resnets[0], theirs.down_blocks[1].resnets[0], x),  # with a shortcut
    ):
        assert_close(here(inputs, time), oracle.nhwc(there(oracle.nchw(inputs), t_time)), LAYER)

    block, t_block = (side.down_blocks[0].attentions[0].transformer_blocks[0] for side in (ours, theirs))
    tokens = normal(2, 35, 16)
    t_tokens = as_torch(tokens)
    assert_close(block.attn1(tokens), t_block.attn1(t_tokens), LAYER)
    assert_close(block.attn2(tokens, context), t_block.attn2(t_tokens, t_context), LAYER)
    assert_close(block.ff(tokens), t_block.ff(t_tokens), LAYER)
    assert_close(block(tokens, context), t_block(t_tokens, encoder_hidden_states=t_context), LAYER)
    transformer, t_transformer = (side.down_blocks[0].attentions[0] for side in (ours, theirs))
    wanted = t_transformer(oracle.nchw(x), encoder_hidden_states=t_context).sample
    assert_close(transformer(x, context), oracle.nhwc(wanted), LAYER)


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16), (15, 20), (11, 38)])  # even; 60x80 and 44x152 at a quarter: odd levels
def test_unet(unets, size):
    theirs, ours = unets
    x, context = normal(2, *size, 8), normal(2, 2, 24)
    timesteps = ints(1, 999)
    apply = jax.jit(lambda *arguments: ours(*arguments))
    wanted = theirs(oracle.nchw(x), as_torch(timesteps), as_torch(context)).sample
    assert_close(apply(x, timesteps, context), oracle.nhwc(wanted), MODEL)


@torch.no_grad()
@pytest.mark.parametrize("channels", [(4, 4), (12, 8), (16, 12)])
def test_unet_of_other_widths(tmp_path, channels):
    inputs, outputs = channels
    theirs, ours = both(
        "unet",
        tmp_path,
        in_channels=inputs,
        out_channels=outputs,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_eps=1e-3,
        flip_sin_to_cos=False,
        freq_shift=1,
    )
    x, context, timesteps = normal(1, 8, 6, inputs), normal(1, 77, 24), ints(500)
    wanted = theirs(oracle.nchw(x), as_torch(timesteps), as_torch(context)).sample
    assert_close(jax.jit(lambda *inputs: ours(*inputs))(x, timesteps, context), oracle.nhwc(wanted), MODEL)


@torch.no_grad()
def test_unet_of_stable_diffusion_1(tmp_path):
    """Convolutions where Stable Diffusion 2 has matrices, and the same number of heads everywhere."""
    theirs, ours = both("unet", tmp_path, use_linear_projection=False, attention_head_dim=8)
    x, context, timesteps = normal(1, 8, 6, 8), normal(1, 2, 24), ints(500)
    wanted = theirs(oracle.nchw(x), as_torch(timesteps), as_torch(context)).sample
    assert_close(jax.jit(lambda *inputs: ours(*inputs))(x, timesteps, context), oracle.nhwc(wanted), MODEL)


@torch.no_grad()
def test_layers_of_the_vae(vaes):
    theirs, ours = vaes
    x, narrow = normal(2, 7, 6, 32), normal(2, 7, 6, 8)
    for here, there, inputs in (
        (ours.encoder.mid_block.attentions[0], theirs.encoder.mid_block.attentions[0], x),
        (ours.encoder.mid_block, theirs.encoder.mid_block, x),
        (ours.encoder.down_blocks[0].downsamplers[0], theirs.encoder.down_blocks[0].downsamplers[0], narrow),
        (ours.decoder.up_blocks[0].upsamplers[0], theirs.decoder.up_blocks[0].upsamplers[0], x),
        (ours.quant_conv, theirs.quant_conv, narrow),
    ):
        assert_close(here(inputs), oracle.nhwc(there(oracle.nchw(inputs))), LAYER)
    block, t_block = ours.encoder.down_blocks[1].resnets[0], theirs.encoder.down_blocks[1].resnets[0]
    assert_close(block(narrow), oracle.nhwc(t_block(oracle.nchw(narrow), None)), LAYER)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (61, 47)])  # sides that are not multiples of 8 are floored
def test_vae(vaes, size):
    theirs, ours = vaes
    pixels = normal(1, *size, 3).clip(-1, 1)
    wanted = theirs.encode(oracle.nchw(pixels)).latent_dist.mode() * theirs.config.scaling_factor
    latents = jax.jit(lambda pixels: ours.encode(pixels))(pixels)
    assert latents.shape == (1, size[0] // 8, size[1] // 8, 4)
    assert_close(latents, oracle.nhwc(wanted), LAYER)
    decoded = theirs.decode(wanted / theirs.config.scaling_factor).sample
    assert_close(jax.jit(lambda z: ours.decode(z))(oracle.nhwc(wanted)), oracle.nhwc(decoded), MODEL)


@torch.no_grad()
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_text_encoder(tmp_path, activation):
    theirs, ours = both("clip", tmp_path, hidden_act=activation)
    ids = ints([3, 4, 0, 0, 0])
    assert_close(ours(ids), theirs(as_torch(ids).long()).last_hidden_state, MODEL)


@pytest.mark.parametrize("size", [(10, 14), (13, 9), (3, 20), (1, 1)])
def test_resize_nearest_is_pytorchs(size):
    x = normal(1, 5, 7, 2)
    wanted = torch.nn.functional.interpolate(oracle.nchw(x), size, mode="nearest")
    assert_close(resize_nearest(x, size), oracle.nhwc(wanted), 0)


@pytest.mark.parametrize("lengths", [(64, 64), (300, 300), (257, 77), (5, 2)])
@pytest.mark.parametrize("name", ["xla", "blockwise", "flash"])
def test_attention(name, lengths):
    n, m = lengths
    q, k, v = normal(2, n, 3, 16), normal(2, m, 3, 16, seed=1), normal(2, m, 3, 16, seed=2)
    heads_first = [as_torch(x).double().transpose(1, 2) for x in (q, k, v)]
    wanted = torch.nn.functional.scaled_dot_product_attention(*heads_first)
    with pltpu.force_tpu_interpret_mode():  # the TPU kernel, interpreted
        found = attention.IMPLEMENTATIONS[name](q, k, v)
    assert_close(found, wanted.transpose(1, 2), LAYER)


def test_blockwise_attention_has_the_gradient_of_the_plain_one():
    q, k, v, weights = (jnp.asarray(normal(1, 200, 2, 8, seed=seed)) for seed in range(4))

    def loss(name):
        return lambda q, k, v: (attention.IMPLEMENTATIONS[name](q, k, v) * weights).sum()

    for ours, wanted in zip(*(jax.grad(loss(name), (0, 1, 2))(q, k, v) for name in ("blockwise", "xla")), strict=True):
        assert_close(ours, wanted, LAYER)


def test_kernels_are_split_over_devices(monkeypatch):
    """Each device takes its share of the batch: the same result and gradient; and a TPU's kernel compiles for eight."""
    layout = Layout(make_mesh(2))
    q, k, v = (jax.device_put(normal(8, 40, 2, 16, seed=seed), layout.batch) for seed in range(3))

    def meshed(function):
        def call(*arguments):
            with jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh):
                return function(*arguments)

        return jax.jit(call)

    def value(function):
        return meshed(jax.value_and_grad(lambda *qkv: (function(*qkv) ** 2).sum(), (0, 1, 2)))

    whole, split = (value(f)(q, k, v) for f in (attention._xla, attention.on_each_device(attention._xla)))
    for ours, wanted in zip(jax.tree.leaves(split), jax.tree.leaves(whole), strict=True):
        assert_close(ours, wanted, LAYER)

    monkeypatch.setattr(attention, "platform", lambda: "tpu")
    long = jax.ShapeDtypeStruct((8, 1024, 2, 64), jnp.bfloat16, sharding=layout.batch)
    lowered = meshed(attention.attention).trace(long, long, long).lower(lowering_platforms=("tpu",))
    assert "tpu_custom_call" in lowered.as_text()
    with pytest.raises(NotImplementedError, match="cannot be automatically partitioned"):
        meshed(attention._flash.__wrapped__).trace(long, long, long).lower(lowering_platforms=("tpu",))


def test_attention_is_chosen_by_size_width_and_platform(monkeypatch):
    monkeypatch.setattr(attention, "_cudnn_compiles", lambda dtype, width: True)
    attention._choose.cache_clear()
    half = jnp.bfloat16
    assert attention.choose("cpu", jnp.float32, 4096, 4096, 64) == "blockwise"
    assert attention.choose("cpu", jnp.float32, 4096, 2, 64) == "xla"
    assert attention.choose("gpu", half, 4096, 4096, 64) == "cudnn"
    assert attention.choose("gpu", half, 4096, 4096, 512) == "blockwise"  # the VAE's head is too wide for cuDNN
    assert attention.choose("gpu", jnp.float32, 4096, 4096, 64) == "blockwise"
    assert attention.choose("tpu", half, 4800, 4800, 64) == "flash"
    assert attention.choose("tpu", half, 4800, 2, 64) == "xla"
    monkeypatch.setenv("MARIGOLD_JAX_ATTENTION", "xla")
    assert attention.choose("gpu", half, 4096, 4096, 64) == "xla"
    monkeypatch.setenv("MARIGOLD_JAX_ATTENTION", "cudnn")  # where it cannot run, the automatic choice stands
    assert attention.choose("cpu", jnp.float32, 4096, 4096, 64) == "blockwise"
    monkeypatch.setenv("MARIGOLD_JAX_ATTENTION", "fast")
    with pytest.raises(ValueError, match="wanted one of flash, cudnn, blockwise, xla"):
        attention.choose("cpu", jnp.float32, 4096, 4096, 64)
    attention._choose.cache_clear()


def test_missing_cudnn_falls_back_to_blocks(caplog):
    attention._cudnn_compiles.cache_clear()
    attention._choose.cache_clear()
    assert attention.choose("gpu", jnp.bfloat16, 4096, 4096, 64) == "blockwise"  # this machine has no GPU
    assert "cuDNN is not usable here" in caplog.text
    attention._choose.cache_clear()


def test_gpus_that_are_only_compiled_for_have_cudnn(monkeypatch, caplog):
    half = jnp.bfloat16
    mesh = Layout(make_mesh(1, jax.devices()[:1])).mesh.abstract_mesh
    abroad = jax.sharding.AbstractDevice("NVIDIA L4", 58, "gpu")
    attention._choose.cache_clear()
    with jax.sharding.use_abstract_mesh(mesh.update(abstract_device=abroad)):
        assert attention.platform() == "gpu" and attention._elsewhere()
        assert attention.choose("gpu", half, 4096, 4096, 64) == "cudnn"
        assert attention.choose("gpu", half, 4096, 4096, 512) == "blockwise"
        # A GPU that is here is tried, also inside a mesh of several devices.
        monkeypatch.setattr(attention, "_local", lambda platform: tuple(jax.devices()[:1]))
        attention._cudnn_compiles.cache_clear()
        assert not caplog.text and attention.choose("gpu", half, 4096, 4096, 64) == "blockwise"
        assert "cuDNN is not usable here" in caplog.text
    with jax.sharding.use_abstract_mesh(make_mesh(1).abstract_mesh):
        monkeypatch.setattr(attention, "_cudnn", lambda query, key, value: query)
        attention._cudnn_compiles.cache_clear()
        assert attention._cudnn_compiles(jnp.dtype(half), 64)
    attention._cudnn_compiles.cache_clear()
    attention._choose.cache_clear()


def test_bfloat16_stays_close_to_float32(unets):
    _, ours = unets
    structure, params = functional.split(ours)
    x, context, timesteps = normal(1, 12, 16, 8), normal(1, 2, 24), ints(999)
    wanted = jax.jit(lambda *inputs: ours(*inputs))(x, timesteps, context)
    half = functional.merge(structure, {path: array.astype(jnp.bfloat16) for path, array in params.items()})
    with jax.numpy_dtype_promotion("standard"):  # flax's own normalisation needs it
        found = jax.jit(lambda *inputs: half(*inputs))(x.astype(jnp.bfloat16), timesteps, context.astype(jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    assert_close(found.astype(jnp.float32), wanted, 0.05 * float(jnp.abs(wanted).max()))


def test_full_size_models_have_the_published_shapes():
    sizes = {
        unet.SD2: (unet.UNet, 686, 865_922_244),
        vae.SD2: (vae.VAE, 248, 83_653_863),
        clip.SD2: (clip.TextEncoder, 372, 340_387_840),
    }
    for config, (module, tensors, parameters) in sizes.items():
        _, shapes = functional.abstract(lambda rngs, module=module, config=config: module(config, rngs))
        assert (len(shapes), sum(x.size for x in shapes.values())) == (tensors, parameters)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"norm_eps": "small"}, ["norm_eps = 'small': wanted a number from 1e-12 to 0.1"]),
        ({"layers_per_block": True, "in_channels": 10**9}, ["layers_per_block = True: wanted a whole number", "10000"]),
        ({"norm_num_groups": None}, ["norm_num_groups = None: wanted a whole number from 1 to 16384"]),
        ({"block_out_channels": [320, [640], 1280, 1280]}, ["block_out_channels = [320, [640]"]),
        ({"norm_num_groups": 7}, ["block_out_channels", "wanted multiples of norm_num_groups = 7"]),
        ({"attention_head_dim": [5, 3, 20, 20]}, ["block_out_channels = (640,): wanted multiples of attention_head"]),
        ({"block_out_channels": []}, ["block_out_channels", "1 to 8 of them"]),
        ({"act_fn": "mish", "class_embed_type": "timestep"}, ["act_fn = 'mish', only 'silu'", "class_embed_type"]),
        ({"down_block_types": ["DownBlock3D"] * 4}, ["down_block_types", "wanted 4 of DownBlock2D"]),
        ({"use_linear_projection": "no"}, ["use_linear_projection = 'no': wanted true or false"]),
        ({"attention_head_dim": [1, 2]}, ["attention_head_dim", "wanted one number or 4"]),
    ],
)
def test_hyper_parameters_that_cannot_be_had_are_refused(values, words):
    with pytest.raises(ValueError) as error:
        config_from_dict(unet.UNetConfig, {"use_linear_projection": True} | values, unet.FIXED)
    for word in words:
        assert word in str(error.value)
