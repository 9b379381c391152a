"""Layers that the UNet and the VAE share, in NHWC. Attribute names are those of diffusers, because they name weights.

Layers compute in the dtype of their parameters: cast the parameters to bfloat16, and the model runs in bfloat16, except
for the statistics of normalisation and softmax, which are always float32.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from marigold_jax.models import strips

Remat = Callable[[Callable], Callable]  # wraps the call of a block: `jax.checkpoint`, or nothing


def keep(block: Callable) -> Callable:
    """The `Remat` that changes nothing: all activations are stored for the backward pass."""
    return block


class Keys:
    """Gives each layer a new random key. It replaces `nnx.Rngs`; layers use only its method `params`.

    `nnx.Rngs` counts in a traced variable, so the time to trace a model is quadratic in the number of layers: seven
    seconds for the UNet instead of one.
    """

    def __init__(self, key: Array):
        self._key = key
        self._count = itertools.count()

    def params(self) -> Array:
        return jax.random.fold_in(self._key, next(self._count))


class GroupNorm(nnx.Module):
    """Group normalisation (arXiv 1803.08494) with a two-pass variance. One pass loses 2e-2 for large means.

    Pixels are summed before the channels of a group. Flax's layer reduces both at once, through a reshape that splits
    the channel axis, and takes almost twice as long on CPUs, forward and backward.
    """

    def __init__(self, channels: int, groups: int, epsilon: float):
        self.groups, self.epsilon = groups, epsilon
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        centred = x.astype(jnp.float32)
        centred = centred - self._mean(centred)
        return self._scaled(centred, self._mean(centred**2)).astype(x.dtype)

    def activation(self, x: Float[Array, "b h w d"]) -> Callable[[Array], Array]:
        """Returns silu(norm(·)) as a function of a part of x, with the statistics of the whole x.

        If x has more channels than the layer, only the first ones are used, without a copy.
        """
        channels = self.scale.shape[0]
        mean = self._mean(x.astype(jnp.float32))
        variance = self._mean((x.astype(jnp.float32) - mean) ** 2)[..., :channels]
        mean = mean[..., :channels]

        def of_part(part: Array) -> Array:
            return nnx.silu(self._scaled(part[..., :channels].astype(jnp.float32) - mean, variance).astype(x.dtype))

        return of_part

    def _mean(self, x: Array) -> Array:
        """Returns the mean over all pixels and over the group of each channel: (b, h, w, c) to (b, 1, 1, c)."""
        size = self.scale.shape[0] // self.groups
        by_group = x.mean(axis=(1, 2)).reshape(x.shape[0], -1, size).mean(axis=-1)
        return jnp.repeat(by_group, size, axis=-1)[:, None, None, :]

    def _scaled(self, centred: Array, variance: Array) -> Array:
        scale, bias = (each[...].astype(jnp.float32).reshape(1, 1, 1, -1) for each in (self.scale, self.bias))
        return centred * (jax.lax.rsqrt(variance + self.epsilon) * scale) + bias


def conv3x3(in_channels: int, out_channels: int, rngs: Keys) -> nnx.Conv:
    return nnx.Conv(in_channels, out_channels, (3, 3), padding=((1, 1), (1, 1)), rngs=rngs)


def conv_of_norm(
    norm: GroupNorm,
    conv: nnx.Conv,
    x: Float[Array, "b h w c"],
    beside: Float[Array, "b h w e"] | None = None,
    shortcut: Callable[[Array], Array] = lambda y: y,
) -> Float[Array, "b h w d"]:
    """Returns conv(silu(norm(x))) + shortcut(beside), computed in strips if the image is large.

    Args:
        norm: of the channels of x.
        conv: 3x3.
        x: (b, h, w, c).
        beside: the input of the residual block, (b, h, w, e); None for no shortcut.
        shortcut: from e to the output channels.
    """
    if strips.wanted(x, conv):
        return strips.convolve(conv, x, norm.activation(x), beside=beside, shortcut=shortcut)
    y = conv(nnx.silu(norm(x)))
    return y if beside is None else y + shortcut(beside)


def sinusoidal_embedding(
    timesteps: Num[Array, " b"], dim: int, *, flip_sin_to_cos: bool = True, freq_shift: int = 0
) -> Float[Array, "b dim"]:
    """Returns sinusoids of the timestep (arXiv 1706.03762, section 3.5), in float32 for every model dtype.

    Args:
        timesteps: (b,).
        dim: number of sinusoids, even.
        flip_sin_to_cos: cosines first.
        freq_shift: 0 or 1, subtracted from the number of frequencies; diffusers' name.
    """
    half = dim // 2
    exponent = -jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift)
    angles = timesteps.astype(jnp.float32)[:, None] * jnp.exp(exponent)[None, :]
    waves = (jnp.cos(angles), jnp.sin(angles)) if flip_sin_to_cos else (jnp.sin(angles), jnp.cos(angles))
    return jnp.concatenate(waves, axis=-1)


class TimestepEmbedding(nnx.Module):
    """Two linear layers from the sinusoids (b, d) to the embedding of the timestep (b, e)."""

    def __init__(self, in_dim: int, dim: int, rngs: Keys):
        self.linear_1 = nnx.Linear(in_dim, dim, rngs=rngs)
        self.linear_2 = nnx.Linear(dim, dim, rngs=rngs)

    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b e"]:
        return self.linear_2(nnx.silu(self.linear_1(x)))


class ResnetBlock(nnx.Module):
    """Two convolutions after normalisation, added to the input; the time embedding, if any, is added between them.

    If the number of channels changes, the input goes through a 1x1 convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        epsilon: float,
        time_dim: int | None = None,
        rngs: Keys,
    ):
        self.norm1 = GroupNorm(in_channels, groups, epsilon)
        self.conv1 = conv3x3(in_channels, out_channels, rngs)
        self.time_emb_proj = None if time_dim is None else nnx.Linear(time_dim, out_channels, rngs=rngs)
        self.norm2 = GroupNorm(out_channels, groups, epsilon)
        self.conv2 = conv3x3(out_channels, out_channels, rngs)
        narrow = in_channels == out_channels
        self.conv_shortcut = None if narrow else nnx.Conv(in_channels, out_channels, (1, 1), rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], time: Float[Array, "b t"] | None = None) -> Float[Array, "b h w d"]:
        channels = self.conv1.out_features
        if self.time_emb_proj is None and x.shape[-1] == 2 * channels and strips.wanted(x, self.conv1):
            both = strips.convolve_in_place(self.conv1, x, self.norm1.activation(x), self.conv_shortcut)
            rest = {"beside": both, "shortcut": lambda strip: strip[..., channels:]}
            return strips.convolve(self.conv2, both, self.norm2.activation(both), **rest)
        y = conv_of_norm(self.norm1, self.conv1, x)
        if self.time_emb_proj is not None:
            y = y + self.time_emb_proj(nnx.silu(time))[:, None, None, :]
        shortcut = {} if self.conv_shortcut is None else {"shortcut": self.conv_shortcut}
        return conv_of_norm(self.norm2, self.conv2, y, x, **shortcut)


class Downsample(nnx.Module):
    """A 3x3 convolution of stride 2. On both axes, the UNet pads (1, 1) and the VAE pads (0, 1)."""

    def __init__(self, channels: int, padding: tuple[int, int], rngs: Keys):
        self.conv = nnx.Conv(channels, channels, (3, 3), strides=2, padding=(padding, padding), rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
        return self.conv(x)


class Upsample(nnx.Module):
    """Nearest-neighbour resize, by 2 or to `size`, then a 3x3 convolution."""

    def __init__(self, channels: int, rngs: Keys):
        self.conv = conv3x3(channels, channels, rngs)

    def __call__(self, x: Float[Array, "b h w c"], size: tuple[int, int] | None = None) -> Float[Array, "b i j c"]:
        doubled = (2 * x.shape[1], 2 * x.shape[2])
        if size in (None, doubled) and strips.wanted(x, self.conv, 2):
            return strips.convolve(self.conv, x, factor=2)
        return self.conv(resize_nearest(x, size or doubled))


def resize_nearest(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b i j c"]:
    """Nearest-neighbour resize with source index floor(i · in / out): PyTorch's "nearest", not "nearest-exact"."""
    b, h, w, c = x.shape
    if size == (2 * h, 2 * w):
        doubled = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
        return doubled.reshape(b, 2 * h, 2 * w, c)
    rows = jnp.arange(size[0]) * h // size[0]
    columns = jnp.arange(size[1]) * w // size[1]
    return jnp.take(jnp.take(x, rows, axis=1), columns, axis=2)


def gelu(x: Array) -> Array:
    """The exact GELU. JAX's default is the tanh approximation, with errors up to 5e-4."""
    return jax.nn.gelu(x, approximate=False)
