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

from marigold_jax.models import strips, upsampling
from marigold_jax.models.attention import platform
from marigold_jax.models.upsampling import resize_nearest

MOST_PARTS = 31  # in which GroupNorm sums an image; XLA computes a sum of 32 or more in a kernel of its own on GPUs
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
    """Group normalisation (arXiv 1803.08494), with statistics in float32 that are exact for any mean.

    The statistics take one pass over the input on GPUs, and two elsewhere: on CPUs, XLA would store x - pivot to sum it
    twice, and on TPUs it takes the mean within the convolution before, at no cost. Pixels are summed before the
    channels of a group. Flax's layer reduces both at once, through a reshape that splits the channel axis, and takes
    almost twice as long on CPUs, forward and backward.
    """

    def __init__(self, channels: int, groups: int, epsilon: float):
        self.groups, self.epsilon = groups, epsilon
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(
        self, x: Float[Array, "b h w c"], offset: Float[Array, "b 1 1 c"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Returns the normalised x, or x + offset. The sum is float32 and is never stored."""
        return self._normalised(x, offset, *self._statistics(x, offset))

    def activation(
        self, x: Float[Array, "b h w d"], offset: Float[Array, "b 1 1 d"] | None = None
    ) -> Callable[[Array], Array]:
        """Returns silu(norm(· + offset)) as a function of a part of x, with the statistics of the whole x.

        If x has more channels than the layer, only the first ones are used, without a copy.
        """
        channels = self.scale.shape[0]
        offset, mean, variance = (
            None if each is None else each[..., :channels] for each in (offset, *self._statistics(x, offset))
        )
        return lambda part: nnx.silu(self._normalised(part[..., :channels], offset, mean, variance))

    def _statistics(self, x: Array, offset: Array | None) -> tuple[Array, Array]:
        """Returns mean and variance of the group of each channel: (b, h, w, c) to twice (b, 1, 1, c), float32."""
        size = self.scale.shape[0] // self.groups
        if platform() != "gpu":
            return _in_two_passes(_plus(x, offset), size)
        pivot = _typical(x)[..., ::size]
        pivot = pivot if offset is None else _plus(pivot, jax.lax.stop_gradient(offset[:, 0, 0, ::size]))
        return _in_one_pass(_plus(x, offset), pivot, size)

    def _normalised(self, x: Array, offset: Array | None, mean: Array, variance: Array) -> Array:
        scale, bias = (each[...].astype(jnp.float32).reshape(1, 1, 1, -1) for each in (self.scale, self.bias))
        return ((_plus(x, offset) - mean) * (jax.lax.rsqrt(variance + self.epsilon) * scale) + bias).astype(x.dtype)


def _plus(x: Array, offset: Array | None) -> Array:
    x = x.astype(jnp.float32)
    return x if offset is None else x + offset.astype(jnp.float32)


def _in_two_passes(x: Float[Array, "b h w c"], size: int) -> tuple[Array, Array]:
    """Returns mean and variance of each group of `size` channels, twice (b, 1, 1, c)."""

    def mean(y: Array) -> Array:
        by_group = y.mean(axis=(1, 2)).reshape(y.shape[0], -1, size).mean(axis=-1)
        return _of_each_channel(by_group, size)

    middle = mean(x)
    return middle, mean((x - middle) ** 2)


def _in_one_pass(x: Float[Array, "b h w c"], pivot: Float[Array, "b g"], size: int) -> tuple[Array, Array]:
    """Returns mean and variance as `_in_two_passes` does, from the sums of x - pivot and of its square.

    The pivot must be within a few hundred standard deviations of the mean: without one, a large mean costs up to 2e-2.
    Both sums are taken in the same steps, each of which XLA compiles to one kernel on a GPU.
    """
    b, h, w, c = x.shape
    parts = max(n for n in range(1, MOST_PARTS + 1) if h % n == 0)
    apart = (x - _of_each_channel(pivot, size)).reshape(b, parts, h // parts, w, c)
    sums = jnp.stack([apart.sum(axis=(2, 3)), (apart * apart).sum(axis=(2, 3))])
    by_group = sums.reshape(2, b, parts, c // size, size).swapaxes(2, 3).reshape(2, b, c // size, parts * size)
    first, second = by_group.sum(axis=-1) / (h * w * size)
    return _of_each_channel(pivot + first, size), _of_each_channel(jnp.maximum(second - first**2, 0.0), size)


def _of_each_channel(x: Float[Array, "b g"], size: int) -> Float[Array, "b 1 1 c"]:
    return jnp.repeat(x, size, axis=-1)[:, None, None, :]


def _typical(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """Returns the median of three pixels, float32, so that a single bright spot does no harm. It has no gradient."""
    _, h, w, _ = x.shape
    one, two, three = (x[:, n * h // 4, n * w // 4].astype(jnp.float32) for n in (1, 2, 3))
    return jax.lax.stop_gradient(jnp.maximum(jnp.minimum(one, two), jnp.minimum(jnp.maximum(one, two), three)))


def conv3x3(in_channels: int, out_channels: int, rngs: Keys) -> nnx.Conv:
    return nnx.Conv(in_channels, out_channels, (3, 3), padding=((1, 1), (1, 1)), rngs=rngs)


def conv_of_norm(
    norm: GroupNorm,
    conv: nnx.Conv,
    x: Float[Array, "b h w c"],
    beside: Float[Array, "b h w e"] | None = None,
    shortcut: Callable[[Array], Array] = lambda y: y,
    offset: Float[Array, "b 1 1 c"] | None = None,
) -> Float[Array, "b h w d"]:
    """Returns conv(silu(norm(x + offset))) + shortcut(beside), computed in strips if the image is large.

    Args:
        norm: of the channels of x.
        conv: 3x3.
        x: (b, h, w, c).
        beside: the input of the residual block, (b, h, w, e); None for no shortcut.
        shortcut: from e to the output channels.
        offset: added to every pixel of x, or None.
    """
    if strips.wanted(x, conv):
        return strips.convolve(conv, x, norm.activation(x, offset), beside=beside, shortcut=shortcut)
    y = conv(nnx.silu(norm(x, offset)))
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
        # The convolution could add the embedding itself, but then XLA would first store it for every pixel.
        offset = None if self.time_emb_proj is None else self.time_emb_proj(nnx.silu(time))[:, None, None, :]
        shortcut = {} if self.conv_shortcut is None else {"shortcut": self.conv_shortcut}
        return conv_of_norm(self.norm2, self.conv2, y, x, **shortcut, offset=offset)


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
        if size not in (None, doubled):
            return self.conv(resize_nearest(x, size))
        if strips.wanted(x, self.conv, 2):
            return strips.convolve(self.conv, x, factor=2)
        return upsampling.doubled(self.conv, x) if platform() == "cpu" else self.conv(resize_nearest(x, doubled))


def gelu(x: Array) -> Array:
    """The exact GELU. JAX's default is the tanh approximation, with errors up to 5e-4."""
    return jax.nn.gelu(x, approximate=False)
