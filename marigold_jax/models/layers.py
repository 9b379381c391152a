"""The layers that the UNet and the VAE share. NHWC throughout; attribute names are diffusers', since they name weights.

Layers compute in the dtype of their parameters: cast the parameter tree to bfloat16 and the model runs in bfloat16,
with normalisation statistics and softmax in float32 all the same.
"""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num


class Keys:
    """A fresh key for each layer that initialises itself: the one thing that layers ask `nnx.Rngs` for.

    `nnx.Rngs` counts in a traced variable, which makes tracing a model quadratic in its layers: seven seconds for the
    UNet, against one.
    """

    def __init__(self, key: Array):
        self._key = key
        self._count = itertools.count()

    def params(self) -> Array:
        return jax.random.fold_in(self._key, next(self._count))


class GroupNorm(nnx.Module):
    """Group normalisation with the exact two-pass variance: the fast one loses 2e-2 where means are large.

    Pixels are summed before the channels of a group. Flax's own reduces both at once, through a reshape that splits
    the channel axis, and takes almost twice as long on CPUs, forward and backward.
    """

    def __init__(self, channels: int, groups: int, epsilon: float):
        self.groups, self.epsilon = groups, epsilon
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, _, _, channels = x.shape

        def mean(y: Array) -> Array:
            """(b, h, w, c) to (b, 1, 1, c): the mean over pixels and over the channel's group."""
            by_group = y.mean(axis=(1, 2)).reshape(b, self.groups, -1).mean(axis=-1)
            return jnp.repeat(by_group, channels // self.groups, axis=-1)[:, None, None, :]

        centred = x.astype(jnp.float32)
        centred = centred - mean(centred)
        scale, bias = (each[...].astype(jnp.float32).reshape(1, 1, 1, channels) for each in (self.scale, self.bias))
        return (centred * (jax.lax.rsqrt(mean(centred**2) + self.epsilon) * scale) + bias).astype(x.dtype)


def conv3x3(in_channels: int, out_channels: int, rngs: Keys) -> nnx.Conv:
    return nnx.Conv(in_channels, out_channels, (3, 3), padding=((1, 1), (1, 1)), rngs=rngs)


def sinusoidal_embedding(
    timesteps: Num[Array, " b"], dim: int, *, flip_sin_to_cos: bool = True, freq_shift: int = 0
) -> Float[Array, "b dim"]:
    """Sinusoids of the timestep, in float32 whatever the model's dtype; cosines first when `flip_sin_to_cos`."""
    half = dim // 2
    exponent = -jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift)
    angles = timesteps.astype(jnp.float32)[:, None] * jnp.exp(exponent)[None, :]
    waves = (jnp.cos(angles), jnp.sin(angles)) if flip_sin_to_cos else (jnp.sin(angles), jnp.cos(angles))
    return jnp.concatenate(waves, axis=-1)


class TimestepEmbedding(nnx.Module):
    def __init__(self, in_dim: int, dim: int, rngs: Keys):
        self.linear_1 = nnx.Linear(in_dim, dim, rngs=rngs)
        self.linear_2 = nnx.Linear(dim, dim, rngs=rngs)

    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b e"]:
        return self.linear_2(nnx.silu(self.linear_1(x)))


class ResnetBlock(nnx.Module):
    """Two normalised convolutions around an optional time embedding, added to the (projected) input."""

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
        y = self.conv1(nnx.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            y = y + self.time_emb_proj(nnx.silu(time))[:, None, None, :]
        y = self.conv2(nnx.silu(self.norm2(y)))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nnx.Module):
    """A 3x3 convolution of stride 2. The UNet pads (1, 1) on both axes, the VAE (0, 1): they are different layers."""

    def __init__(self, channels: int, padding: tuple[int, int], rngs: Keys):
        self.conv = nnx.Conv(channels, channels, (3, 3), strides=2, padding=(padding, padding), rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
        return self.conv(x)


class Upsample(nnx.Module):
    """Nearest-neighbour resize, by 2 or to `size`, then a 3x3 convolution."""

    def __init__(self, channels: int, rngs: Keys):
        self.conv = conv3x3(channels, channels, rngs)

    def __call__(self, x: Float[Array, "b h w c"], size: tuple[int, int] | None = None) -> Float[Array, "b i j c"]:
        return self.conv(resize_nearest(x, size or (2 * x.shape[1], 2 * x.shape[2])))


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
    """The exact GELU, by erf; JAX's default is the tanh approximation, 5e-4 off."""
    return jax.nn.gelu(x, approximate=False)
