"""AutoencoderTiny (TAESD), in NHWC: a many times faster replacement for Stable Diffusion's VAE, with the same latents.

Attribute names and indices are those of diffusers. The index of a layer counts activations and resizes too.
"""

import dataclasses
from collections.abc import Iterable
from typing import Annotated

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from marigold_jax.models.config import ANY, Colours, Factor, Width, Widths
from marigold_jax.models.layers import Keys, Remat, conv3x3, keep
from marigold_jax.models.upsampling import resize_nearest
from marigold_jax.runtime.typed import Between

FIXED = {
    "block_out_channels": ANY,  # a copy of the decoder's
    "force_upcast": ANY,
    "latent_magnitude": ANY,  # used only to store latents as bytes
    "latent_shift": ANY,
    "act_fn": "relu",
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
    "shift_factor": 0.0,
}

Blocks = Annotated[tuple[Annotated[int, Between(0, 32)], ...], Between(1, 8)]
LARGEST_LATENT = 3.0  # latents are softly clamped to ± this before they are decoded


@dataclasses.dataclass(frozen=True)
class AutoencoderTinyConfig:
    """The keys of `vae/config.json` that define the network, with diffusers' defaults."""

    in_channels: Colours = 3
    out_channels: Colours = 3
    encoder_block_out_channels: Widths = (64, 64, 64, 64)
    decoder_block_out_channels: Widths = (64, 64, 64, 64)
    num_encoder_blocks: Blocks = (1, 3, 3, 3)
    num_decoder_blocks: Blocks = (3, 3, 3, 1)
    latent_channels: Width = 4
    scaling_factor: Factor = 1.0

    def __post_init__(self):
        levels = len(self.num_encoder_blocks)
        for half in ("encoder", "decoder"):
            widths, blocks = getattr(self, f"{half}_block_out_channels"), getattr(self, f"num_{half}_blocks")
            if not len(widths) == len(blocks) == levels or len(set(widths)) != 1:
                raise ValueError(
                    f"{half}_block_out_channels = {widths}, num_{half}_blocks = {blocks}: "
                    f"wanted {levels} of both, as many as num_encoder_blocks has, and all widths equal"
                )

    @property
    def downsampling(self) -> int:
        """Pixels per latent along one side."""
        return 2 ** (len(self.num_encoder_blocks) - 1)


class Relu(nnx.Module):
    def __call__(self, x: Array) -> Array:
        return nnx.relu(x)


class Double(nnx.Module):
    """Repeats every pixel twice along both sides."""

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
        return resize_nearest(x, (2 * x.shape[1], 2 * x.shape[2]))


class Block(nnx.Module):
    """Three convolutions, added to their input."""

    def __init__(self, channels: int, rngs: Keys):
        convolutions = [conv3x3(channels, channels, rngs) for _ in range(3)]
        self.conv = nnx.List([convolutions[0], Relu(), convolutions[1], Relu(), convolutions[2]])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return nnx.relu(run(self.conv, x) + x)


def run(layers: Iterable[nnx.Module], x: Array, remat: Remat = keep) -> Array:
    for layer in layers:
        x = remat(layer)(x)
    return x


def plain(channels: int, rngs: Keys, strides: int = 1) -> nnx.Conv:
    """A 3x3 convolution without a bias."""
    padding = ((1, 1), (1, 1))
    return nnx.Conv(channels, channels, (3, 3), strides=strides, padding=padding, use_bias=False, rngs=rngs)


class Encoder(nnx.Module):
    def __init__(self, config: AutoencoderTinyConfig, rngs: Keys):
        width = config.encoder_block_out_channels[0]
        layers = []
        for level, count in enumerate(config.num_encoder_blocks):
            enter = plain(width, rngs, strides=2) if level else conv3x3(config.in_channels, width, rngs)
            layers += [enter, *(Block(width, rngs) for _ in range(count))]
        self.layers = nnx.List([*layers, conv3x3(width, config.latent_channels, rngs)])

    def __call__(self, pixels: Float[Array, "b h w c"]) -> Float[Array, "b i j z"]:
        return run(self.layers, (pixels + 1) / 2)


class Decoder(nnx.Module):
    def __init__(self, config: AutoencoderTinyConfig, rngs: Keys):
        width = config.decoder_block_out_channels[0]
        layers = [conv3x3(config.latent_channels, width, rngs), Relu()]
        for level, count in enumerate(config.num_decoder_blocks):
            layers += [Double(), plain(width, rngs)] if level else []
            layers += [Block(width, rngs) for _ in range(count)]
        self.layers = nnx.List([*layers, conv3x3(width, config.out_channels, rngs)])

    def __call__(self, z: Float[Array, "b i j z"], remat: Remat) -> Float[Array, "b h w c"]:
        return run(self.layers, jnp.tanh(z / LARGEST_LATENT) * LARGEST_LATENT, remat) * 2 - 1


class AutoencoderTiny(nnx.Module):
    def __init__(self, config: AutoencoderTinyConfig, rngs: Keys):
        self.config = config
        self.encoder = Encoder(config, rngs)
        self.decoder = Decoder(config, rngs)

    def encode(self, pixels: Float[Array, "b h w c"]) -> Float[Array, "b i j z"]:
        """Returns scaled latents of pixels in [-1, 1], as the UNet reads them."""
        z = self.encoder(pixels)
        return z * jnp.asarray(self.config.scaling_factor, z.dtype)

    def decode(self, latents: Float[Array, "b i j z"], remat: Remat = keep) -> Float[Array, "b h w c"]:
        """Returns pixels of scaled latents: nominally in [-1, 1], not clipped. `remat` wraps every layer."""
        return self.decoder(latents / jnp.asarray(self.config.scaling_factor, latents.dtype), remat)
