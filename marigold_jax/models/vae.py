"""AutoencoderKL of Stable Diffusion, in NHWC: converts pixels in [-1, 1] to latents at 1/8 of the size, and back.

(arXiv 2112.10752, section 3.1; reference: diffusers.) Marigold keeps it frozen and always uses the mean of the
posterior, never a sample (arXiv 2312.02145, section 3.2).
"""

import dataclasses
import functools

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from marigold_jax.models import strips
from marigold_jax.models.attention import attention
from marigold_jax.models.config import ANY, Colours, Count, Factor, Width, Widths, require_multiples
from marigold_jax.models.layers import (
    Downsample,
    GroupNorm,
    Keys,
    Remat,
    ResnetBlock,
    Upsample,
    conv3x3,
    conv_of_norm,
    keep,
)
from marigold_jax.runtime.typed import shown

FIXED = {
    "sample_size": ANY,
    "force_upcast": ANY,  # the reference pipelines ignore it as well
    "act_fn": "silu",
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}

EPSILON = 1e-6  # of every GroupNorm in the VAE


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """The keys of `vae/config.json` that define the network, with diffusers' defaults."""

    in_channels: Colours = 3
    out_channels: Colours = 3
    block_out_channels: Widths = (64,)
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    layers_per_block: Count = 1
    latent_channels: Width = 4
    norm_num_groups: Width = 32
    scaling_factor: Factor = 0.18215

    def __post_init__(self):
        levels = len(self.block_out_channels)
        for key, known in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            if getattr(self, key) != (known,) * levels:
                raise ValueError(f"{key} = {shown(getattr(self, key))}: wanted {levels} times {known}")
        require_multiples("block_out_channels", self.block_out_channels, self.norm_num_groups, "norm_num_groups")

    @property
    def downsampling(self) -> int:
        """Pixels per latent along one side."""
        return 2 ** (len(self.block_out_channels) - 1)


SD2 = VAEConfig(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
)


class AttentionBlock(nnx.Module):
    """Self-attention with a single head that has all channels, added to its input."""

    def __init__(self, channels: int, groups: int, rngs: Keys):
        self.group_norm = GroupNorm(channels, groups, EPSILON)
        self.to_q = nnx.Linear(channels, channels, rngs=rngs)
        self.to_k = nnx.Linear(channels, channels, rngs=rngs)
        self.to_v = nnx.Linear(channels, channels, rngs=rngs)
        self.to_out = nnx.Linear(channels, channels, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        tokens = self.group_norm(x).reshape(b, h * w, c)
        query, key, value = (project(tokens)[:, :, None, :] for project in (self.to_q, self.to_k, self.to_v))
        return x + self.to_out(attention(query, key, value)[:, :, 0, :]).reshape(b, h, w, c)


class MidBlock(nnx.Module):
    """Residual block, attention and residual block at the lowest resolution. Shape (b, i, j, c) is kept."""

    def __init__(self, config: VAEConfig, rngs: Keys):
        width = config.block_out_channels[-1]
        self.resnets = nnx.List(resnet(config, width, width, rngs) for _ in range(2))
        self.attentions = nnx.List([AttentionBlock(width, config.norm_num_groups, rngs)])

    def __call__(self, x: Array, remat: Remat = keep) -> Array:
        for layer in (self.resnets[0], self.attentions[0], self.resnets[1]):
            x = remat(layer)(x)
        return x


class DownBlock(nnx.Module):
    """One level of the encoder: residual blocks, then downsampling by 2, except at the last level."""

    def __init__(self, config: VAEConfig, level: int, rngs: Keys):
        widths = config.block_out_channels
        before, width = widths[max(level - 1, 0)], widths[level]
        self.resnets = nnx.List(
            resnet(config, before if i == 0 else width, width, rngs) for i in range(config.layers_per_block)
        )
        self.downsamplers = nnx.List([Downsample(width, (0, 1), rngs)] if level < len(widths) - 1 else [])

    def __call__(self, x: Array) -> Array:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpBlock(nnx.Module):
    """One level of the decoder: residual blocks, then upsampling by 2, except at the last level."""

    def __init__(self, config: VAEConfig, index: int, rngs: Keys):
        widths = config.block_out_channels[::-1]
        before, width = widths[max(index - 1, 0)], widths[index]
        self.resnets = nnx.List(
            resnet(config, before if i == 0 else width, width, rngs) for i in range(config.layers_per_block + 1)
        )
        self.upsamplers = nnx.List([Upsample(width, rngs)] if index < len(widths) - 1 else [])

    def __call__(self, x: Array, remat: Remat) -> Array:
        for layer in (*self.resnets, *self.upsamplers):
            x = remat(layer)(x)
        return x


def resnet(config: VAEConfig, in_channels: int, out_channels: int, rngs: Keys) -> ResnetBlock:
    return ResnetBlock(in_channels, out_channels, groups=config.norm_num_groups, epsilon=EPSILON, rngs=rngs)


class Encoder(nnx.Module):
    """Pixels (b, h, w, c) to mean and log-variance of the latents, (b, i, j, 2z), before `quant_conv`."""

    def __init__(self, config: VAEConfig, rngs: Keys):
        widths = config.block_out_channels
        self.conv_in = conv3x3(config.in_channels, widths[0], rngs)
        self.down_blocks = nnx.List(DownBlock(config, level, rngs) for level in range(len(widths)))
        self.mid_block = MidBlock(config, rngs)
        self.conv_norm_out = GroupNorm(widths[-1], config.norm_num_groups, EPSILON)
        self.conv_out = conv3x3(widths[-1], 2 * config.latent_channels, rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j z"]:
        x = strips.convolve(self.conv_in, x) if strips.wanted(x, self.conv_in) else self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return conv_of_norm(self.conv_norm_out, self.conv_out, self.mid_block(x))


class Decoder(nnx.Module):
    """Latents (b, i, j, z), after `post_quant_conv`, to pixels (b, h, w, c). `remat` wraps every block."""

    def __init__(self, config: VAEConfig, rngs: Keys):
        widths = config.block_out_channels
        self.conv_in = conv3x3(config.latent_channels, widths[-1], rngs)
        self.mid_block = MidBlock(config, rngs)
        self.up_blocks = nnx.List(UpBlock(config, index, rngs) for index in range(len(widths)))
        self.conv_norm_out = GroupNorm(widths[0], config.norm_num_groups, EPSILON)
        self.conv_out = conv3x3(widths[0], config.out_channels, rngs)

    def __call__(self, z: Float[Array, "b i j z"], remat: Remat) -> Float[Array, "b h w c"]:
        x = self.mid_block(self.conv_in(z), remat)
        for block in self.up_blocks:
            x = block(x, remat)
        return remat(functools.partial(conv_of_norm, self.conv_norm_out, self.conv_out))(x)


class VAE(nnx.Module):
    """`encode` and `decode` between pixels and latents scaled to a standard deviation of about 1."""

    def __init__(self, config: VAEConfig, rngs: Keys):
        z = config.latent_channels
        self.config = config
        self.encoder = Encoder(config, rngs)
        self.decoder = Decoder(config, rngs)
        self.quant_conv = nnx.Conv(2 * z, 2 * z, (1, 1), rngs=rngs)
        self.post_quant_conv = nnx.Conv(z, z, (1, 1), rngs=rngs)

    def encode(self, pixels: Float[Array, "b h w c"]) -> Float[Array, "b i j z"]:
        """Returns scaled latents of pixels in [-1, 1]: the mean of the posterior times `scaling_factor`."""
        moments = self.quant_conv(self.encoder(pixels))
        mean, _ = jnp.split(moments, 2, axis=-1)
        return mean * jnp.asarray(self.config.scaling_factor, mean.dtype)

    def decode(self, latents: Float[Array, "b i j z"], remat: Remat = keep) -> Float[Array, "b h w c"]:
        """Returns pixels of scaled latents: nominally in [-1, 1], not clipped.

        Args:
            latents: as `encode` returns them.
            remat: wraps every block if gradients flow through. `jax.checkpoint` computes the inside again in the
                backward pass instead of storing it.
        """
        z = latents / jnp.asarray(self.config.scaling_factor, latents.dtype)
        return self.decoder(self.post_quant_conv(z), remat)
