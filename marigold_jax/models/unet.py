"""UNet2DConditionModel of Stable Diffusion 1 and 2, in NHWC (arXiv 2112.10752, section 3.2; reference: diffusers).

Marigold (arXiv 2312.02145, section 3.2) widens `conv_in` to 8 channels: first the latent of the image, then the noisy
latent of the target. Nothing else changes.
"""

import dataclasses
from typing import Annotated

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from marigold_jax.models.attention import attention
from marigold_jax.models.config import ANY, Count, Epsilon, Heads, Width, Widths, require_multiples
from marigold_jax.models.layers import (
    Downsample,
    GroupNorm,
    Keys,
    Remat,
    ResnetBlock,
    TimestepEmbedding,
    Upsample,
    conv3x3,
    gelu,
    keep,
    sinusoidal_embedding,
)
from marigold_jax.runtime.typed import Between, shown

# Keys of diffusers' config with one supported value, or with any value if it does not matter here
# (`upcast_attention`: softmax and logits are always float32).
FIXED = {
    "sample_size": ANY,
    "upcast_attention": ANY,
    "dropout": ANY,
    "center_input_sample": False,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "mid_block_only_cross_attention": None,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "addition_embed_type_num_heads": ANY,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "projection_class_embeddings_input_dim": None,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "cross_attention_norm": None,
    # Settings of the moving average in training, which some files contain.
    **dict.fromkeys(("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step"), ANY),
    "use_ema_warmup": ANY,
}

DOWN_BLOCKS = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}  # block type -> has attention
UP_BLOCKS = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}
TRANSFORMER_NORM_EPSILON = 1e-6  # of the GroupNorm in a transformer; the resnets use `norm_eps` (1e-5)


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """The keys of `unet/config.json` that define the network, with diffusers' defaults.

    Despite its name, `attention_head_dim` is the number of heads: one number, or one for each block. If
    `use_linear_projection` is false, as in Stable Diffusion 1, the file has 1x1 convolutions instead of two matrices of
    each transformer; the function is the same.
    """

    in_channels: Width = 4
    out_channels: Width = 4
    block_out_channels: Widths = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D")
    up_block_types: tuple[str, ...] = ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3)
    layers_per_block: Count = 2
    attention_head_dim: Heads | tuple[Heads, ...] = 8
    num_attention_heads: Heads | tuple[Heads, ...] | None = None
    cross_attention_dim: Width = 1280
    norm_num_groups: Width = 32
    norm_eps: Epsilon = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: Annotated[int, Between(0, 1)] = 0
    use_linear_projection: bool = False

    def __post_init__(self):
        widths = self.block_out_channels
        levels = len(widths)
        for key, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            types = getattr(self, key)
            if len(types) != levels or not set(types) <= set(known):
                raise ValueError(f"{key} = {shown(types)}: wanted {levels} of {', '.join(known)}")
        if len(self.heads) != levels:
            raise ValueError(f"attention_head_dim = {shown(self.heads)}: wanted one number or {levels}")
        require_multiples("block_out_channels", widths, self.norm_num_groups, "norm_num_groups")
        attends = [DOWN_BLOCKS[down] or UP_BLOCKS[up] for down, up in zip(*self._types(), strict=True)]
        for width, heads, needed in zip(widths, self.heads, [*attends[:-1], True], strict=True):
            if needed:
                require_multiples("block_out_channels", [width], heads, "attention_head_dim")
        if widths[0] % 2 or widths[0] // 2 <= self.freq_shift:
            raise ValueError(f"block_out_channels = {shown(widths)}: wanted an even number first, larger than 2")

    def _types(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Returns the types of the down and up blocks, both from the finest level to the coarsest."""
        return self.down_block_types, self.up_block_types[::-1]

    @property
    def heads(self) -> tuple[int, ...]:
        """The number of attention heads in each level."""
        heads = self.num_attention_heads or self.attention_head_dim
        return heads if isinstance(heads, tuple) else (heads,) * len(self.block_out_channels)


SD2 = UNetConfig(
    in_channels=8, attention_head_dim=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True
)


class Attention(nnx.Module):
    """Multi-head attention of `x` (b, n, c) to itself, or to `context` (b, m, d) if given (arXiv 1706.03762)."""

    def __init__(self, dim: int, context_dim: int, heads: int, rngs: Keys):
        self.heads = heads
        self.to_q = nnx.Linear(dim, dim, use_bias=False, rngs=rngs)
        self.to_k = nnx.Linear(context_dim, dim, use_bias=False, rngs=rngs)
        self.to_v = nnx.Linear(context_dim, dim, use_bias=False, rngs=rngs)
        self.to_out = nnx.Linear(dim, dim, rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"], context: Float[Array, "b m d"] | None = None) -> Float[Array, "b n c"]:
        context = x if context is None else context

        def by_head(y: Array) -> Array:
            return y.reshape(*y.shape[:2], self.heads, -1)

        out = attention(by_head(self.to_q(x)), by_head(self.to_k(context)), by_head(self.to_v(context)))
        return self.to_out(out.reshape(x.shape))


class FeedForward(nnx.Module):
    """GEGLU (arXiv 2002.05202): the first half of the projection is the value, the second half is the gate."""

    def __init__(self, dim: int, rngs: Keys):
        self.proj = nnx.Linear(dim, 8 * dim, rngs=rngs)
        self.out = nnx.Linear(4 * dim, dim, rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        value, gate = jnp.split(self.proj(x), 2, axis=-1)
        return self.out(value * gelu(gate))


class TransformerBlock(nnx.Module):
    """Self-attention, cross-attention to the text and a feed-forward layer, each normalised first and added to x."""

    def __init__(self, dim: int, context_dim: int, heads: int, rngs: Keys):
        def norm() -> nnx.LayerNorm:
            return nnx.LayerNorm(dim, epsilon=1e-5, use_fast_variance=False, rngs=rngs)

        self.norm1, self.attn1 = norm(), Attention(dim, dim, heads, rngs)
        self.norm2, self.attn2 = norm(), Attention(dim, context_dim, heads, rngs)
        self.norm3, self.ff = norm(), FeedForward(dim, rngs)

    def __call__(self, x: Float[Array, "b n c"], context: Float[Array, "b m d"]) -> Float[Array, "b n c"]:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer(nnx.Module):
    """Transformer2DModel with one block: pixels (b, h, w, c) are tokens (b, h·w, c) inside."""

    def __init__(self, dim: int, context_dim: int, heads: int, groups: int, rngs: Keys):
        self.norm = GroupNorm(dim, groups, TRANSFORMER_NORM_EPSILON)
        self.proj_in = nnx.Linear(dim, dim, rngs=rngs)
        self.transformer_blocks = nnx.List([TransformerBlock(dim, context_dim, heads, rngs)])
        self.proj_out = nnx.Linear(dim, dim, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], context: Float[Array, "b m d"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        tokens = self.proj_in(self.norm(x).reshape(b, h * w, c))
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(tokens).reshape(b, h, w, c)


class DownBlock(nnx.Module):
    """One level of the encoder: residual blocks, perhaps each with a transformer, then downsampling by 2."""

    def __init__(self, config: UNetConfig, level: int, rngs: Keys):
        width = config.block_out_channels[level]
        before = config.block_out_channels[max(level - 1, 0)]
        last = level == len(config.block_out_channels) - 1
        self.resnets = nnx.List(
            resnet(config, before if i == 0 else width, width, rngs) for i in range(config.layers_per_block)
        )
        attends = DOWN_BLOCKS[config.down_block_types[level]]
        self.attentions = nnx.List(
            transformer(config, level, rngs) for _ in range(config.layers_per_block if attends else 0)
        )
        self.downsamplers = nnx.List([] if last else [Downsample(width, (1, 1), rngs)])

    def __call__(self, x: Array, time: Array, context: Array, remat: Remat) -> tuple[Array, list[Array]]:
        """Returns the output, and the skip connections for the decoder in the order they are made.

        Args:
            x: (b, h, w, c).
            time: embedding of the timestep, (b, t).
            context: rows of the text encoder, (b, m, d).
            remat: wraps every residual block and transformer.
        """
        skips = []
        for i, block in enumerate(self.resnets):
            x = remat(block)(x, time)
            if self.attentions:
                x = remat(self.attentions[i])(x, context)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        return x, skips


class MidBlock(nnx.Module):
    """Residual block, transformer and residual block at the lowest resolution."""

    def __init__(self, config: UNetConfig, rngs: Keys):
        width = config.block_out_channels[-1]
        self.resnets = nnx.List(resnet(config, width, width, rngs) for _ in range(2))
        self.attentions = nnx.List([transformer(config, -1, rngs)])

    def __call__(self, x: Array, time: Array, context: Array, remat: Remat) -> Array:
        x = remat(self.resnets[0])(x, time)
        x = remat(self.attentions[0])(x, context)
        return remat(self.resnets[1])(x, time)


class UpBlock(nnx.Module):
    """One level of the decoder: as `DownBlock`, with one more residual block. Each one also reads a skip connection."""

    def __init__(self, config: UNetConfig, index: int, rngs: Keys):
        widths = config.block_out_channels
        level = len(widths) - 1 - index
        width, above, below = widths[level], widths[max(level - 1, 0)], widths[min(level + 1, len(widths) - 1)]
        count = config.layers_per_block + 1
        # Each resnet reads the output of the previous one and one skip. The last skip is from the narrower level above.
        inputs = [below if i == 0 else width for i in range(count)]
        skips = [above if i == count - 1 else width for i in range(count)]
        self.resnets = nnx.List(resnet(config, i + s, width, rngs) for i, s in zip(inputs, skips, strict=True))
        attends = UP_BLOCKS[config.up_block_types[index]]
        self.attentions = nnx.List(transformer(config, level, rngs) for _ in range(count if attends else 0))
        self.upsamplers = nnx.List([Upsample(width, rngs)] if level > 0 else [])

    def __call__(
        self,
        x: Array,
        skips: list[Array],
        time: Array,
        context: Array,
        size: tuple[int, int],
        remat: Remat,
    ) -> Array:
        """Returns the output of the block.

        Args:
            x: (b, h, w, c).
            skips: outputs of the encoder, in the order in which they are used.
            time: embedding of the timestep, (b, t).
            context: rows of the text encoder, (b, m, d).
            size: height and width of the next level, odd or even.
            remat: wraps every residual block and transformer.
        """
        for i, (block, skip) in enumerate(zip(self.resnets, skips, strict=True)):
            x = remat(block)(jnp.concatenate([x, skip], axis=-1), time)
            if self.attentions:
                x = remat(self.attentions[i])(x, context)
        for upsample in self.upsamplers:
            x = upsample(x, size)
        return x


def resnet(config: UNetConfig, in_channels: int, out_channels: int, rngs: Keys) -> ResnetBlock:
    time_dim = 4 * config.block_out_channels[0]
    groups, epsilon = config.norm_num_groups, config.norm_eps
    return ResnetBlock(in_channels, out_channels, groups=groups, epsilon=epsilon, time_dim=time_dim, rngs=rngs)


def transformer(config: UNetConfig, level: int, rngs: Keys) -> Transformer:
    width, heads = config.block_out_channels[level], config.heads[level]
    return Transformer(width, config.cross_attention_dim, heads, config.norm_num_groups, rngs)


class UNet(nnx.Module):
    """Predicts epsilon, v or x0 from the latent of the image and the noisy latent of the target.

    Latents may have any size: if a side is odd, the decoder resizes to the size of the skip instead of doubling.
    """

    def __init__(self, config: UNetConfig, rngs: Keys):
        widths, levels = config.block_out_channels, range(len(config.block_out_channels))
        self.config = config
        self.conv_in = conv3x3(config.in_channels, widths[0], rngs)
        self.time_embedding = TimestepEmbedding(widths[0], 4 * widths[0], rngs)
        self.down_blocks = nnx.List(DownBlock(config, level, rngs) for level in levels)
        self.mid_block = MidBlock(config, rngs)
        self.up_blocks = nnx.List(UpBlock(config, index, rngs) for index in levels)
        self.conv_norm_out = GroupNorm(widths[0], config.norm_num_groups, config.norm_eps)
        self.conv_out = conv3x3(widths[0], config.out_channels, rngs)

    def __call__(
        self,
        sample: Float[Array, "b h w c"],
        timesteps: Num[Array, " b"],
        encoder_hidden_states: Float[Array, "b m d"],
        remat: Remat = keep,
        taps: list[Array] | None = None,
    ) -> Float[Array, "b h w k"]:
        """Returns the prediction, in the dtype of the parameters.

        Args:
            sample: latents (b, h, w, 8): the image's four channels, then the target's.
            timesteps: in [0, 1000).
            encoder_hidden_states: rows of the text encoder, (b, m, d); in Marigold, 2 or 77 for the empty prompt.
            remat: wraps every residual block and transformer in training. `jax.checkpoint` computes the inside again
                in the backward pass instead of storing it.
            taps: a list to which the output of each decoder block is appended.
        """
        config, context = self.config, encoder_hidden_states
        waves = sinusoidal_embedding(
            timesteps,
            config.block_out_channels[0],
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        )
        time = self.time_embedding(waves.astype(sample.dtype))

        x = self.conv_in(sample)
        skips = [x]
        for block in self.down_blocks:
            x, more = block(x, time, context, remat)
            skips += more
        x = self.mid_block(x, time, context, remat)
        for block in self.up_blocks:
            mine = [skips.pop() for _ in block.resnets]
            size = skips[-1].shape[1:3] if skips else x.shape[1:3]
            x = block(x, mine, time, context, size, remat)
            if taps is not None:
                taps.append(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(x)))
