"""A checkpoint made of nothing: an untrained UNet, an exact little VAE, an empty prompt of zeros.

Training may start from it where no pretrained weights are at hand. It is the real architecture, small, so that what
is trained from it is exported, loaded and run like any other Marigold.

The VAE needs no training. Its latent is the mean colour of each cell of pixels, its decoder paints the cell in that
colour: a coarse image, as latents of Stable Diffusion are, but one that is understood. An AutoencoderKL with these
weights does exactly that, in spite of its nonlinear layers:

- a residual block whose last layer is zero is the identity;
- beside each colour travels its negative, and silu(x) − silu(−x) = x;
- two constant channels, ±32, dominate the variance of the last GroupNorm, which therefore multiplies by a constant, to
  within 0.1 % for pixels in [−1, 1].
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from marigold_jax.models import unet, vae
from marigold_jax.models.functional import Params, abstract, initialise
from marigold_jax.weights.model import STABLE_DIFFUSION_2_SCHEDULER, Checkpoint, Component
from marigold_jax.weights.model_index import ModelIndex

COLORS = 3
WIDTH = 8  # of the VAE: three colours, their negatives, two constants
CONSTANT = 32.0
PROMPT_WIDTH = 16
LAST_OF_BRANCH = ("conv2.kernel", "proj_out.kernel", "conv_out.kernel")
# Marigold's own (prs-eth/marigold-depth-v1-1): Stable Diffusion's schedule, rescaled to end in pure noise.
SCHEDULER = STABLE_DIFFUSION_2_SCHEDULER.replace({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"})


def scratch(widths: tuple[int, ...], cell: int = 4, seed: int = 0, vae_widths: tuple[int, ...] = ()) -> Checkpoint:
    """Returns a checkpoint with a fresh UNet of the given `widths`, one for each level, multiples of 16.

    Attention is in the two lowest levels. `cell`: pixels to a latent, along one side; a power of two. `vae_widths`, one
    for each halving and one more, multiples of 8, gives a fresh VAE that is yet to be trained, with latents of four
    channels, in place of the exact one. Raises ValueError where a number is not as said.
    """
    if len(widths) < 2 or any(width % 16 for width in widths) or cell & (cell - 1):
        raise ValueError(
            f"scratch: widths {widths}, cell {cell}: wanted two or more multiples of 16, and a power of two"
        )
    if vae_widths and (2 ** (len(vae_widths) - 1) != cell or any(width % 8 for width in vae_widths)):
        raise ValueError(
            f"scratch: vae_widths {vae_widths}, cell {cell}: wanted multiples of 8, {cell.bit_length()} of them"
        )
    vae_component = fresh_vae(vae_widths, seed) if vae_widths else exact_vae(cell.bit_length())
    latent_channels = vae_component.config.latent_channels
    plain = len(widths) - 2
    unet_config = unet.UNetConfig(
        in_channels=2 * latent_channels,
        out_channels=latent_channels,
        block_out_channels=widths,
        down_block_types=(*["DownBlock2D"] * plain, *["CrossAttnDownBlock2D"] * 2),
        up_block_types=(*["CrossAttnUpBlock2D"] * 2, *["UpBlock2D"] * plain),
        layers_per_block=1,
        attention_head_dim=tuple(width // 16 for width in widths),
        cross_attention_dim=PROMPT_WIDTH,
        norm_num_groups=8,
        use_linear_projection=True,
    )
    structure, params = initialise(lambda rngs: unet.UNet(unet_config, rngs), seed)
    return Checkpoint(
        unet=Component(unet_config, structure, {path: quiet(path, array) for path, array in params.items()}),
        vae=vae_component,
        empty_prompt={length: np.zeros((length, PROMPT_WIDTH), np.float32) for length in (2, 77)},
        scheduler=SCHEDULER,
        index=ModelIndex({"_class_name": "MarigoldDepthPipeline"}),
        folder=Path("scratch"),
    )


def exact_vae(levels: int) -> Component:
    """The VAE of cell means: see above."""
    config = vae_config((WIDTH,) * levels, latent_channels=COLORS, norm_num_groups=1, scaling_factor=2.0)
    structure, shapes = abstract(lambda rngs: vae.VAE(config, rngs))
    return Component(config, structure, cell_means({path: x.shape for path, x in shapes.items()}))


def fresh_vae(widths: tuple[int, ...], seed: int) -> Component:
    """A VAE that knows nothing, whose residual branches begin as zero. Training keeps its latents at deviation 1."""
    config = vae_config(widths, latent_channels=4, norm_num_groups=2, scaling_factor=1.0)
    structure, params = initialise(lambda rngs: vae.VAE(config, rngs), seed)
    silent = {path: jnp.zeros_like(x) if path.endswith("conv2.kernel") else x for path, x in params.items()}
    return Component(config, structure, silent)


def vae_config(widths: tuple[int, ...], **options: object) -> vae.VAEConfig:
    return vae.VAEConfig(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        **options,
    )


def quiet(path: str, array: jax.Array) -> jax.Array:
    """Every residual branch begins as zero, as does the output: the network learns several times faster at first."""
    return jnp.zeros_like(array) if path.endswith(LAST_OF_BRANCH) else array


def cell_means(shapes: dict[str, tuple[int, ...]]) -> Params:
    """The VAE's parameters: see above. What is not named here is zero."""
    params = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    colors = np.arange(COLORS)
    for path, array in params.items():
        if path.endswith("scale"):
            array[:] = 1
        elif path.endswith("downsamplers.0.conv.kernel"):
            array[:2, :2] = np.eye(WIDTH) / 4  # the mean of two by two pixels; the padding is at the other end
        elif path.endswith("upsamplers.0.conv.kernel"):
            array[1, 1] = np.eye(WIDTH)
    for half in ("encoder", "decoder"):
        enter, leave = params[f"{half}.conv_in.kernel"], params[f"{half}.conv_out.kernel"]
        enter[1, 1, colors, colors], enter[1, 1, colors, COLORS + colors] = 1, -1
        params[f"{half}.conv_in.bias"][2 * COLORS :] = CONSTANT, -CONSTANT
        # The deviation of the eight channels, but for the colours' own small part.
        params[f"{half}.conv_norm_out.scale"][:] = CONSTANT * (2 / WIDTH) ** 0.5
        leave[1, 1, colors, colors], leave[1, 1, COLORS + colors, colors] = 1, -1
    # The other half of the moments is the logarithm of a variance: none to speak of.
    params["encoder.conv_out.bias"][COLORS:] = -30
    for layer in ("quant_conv", "post_quant_conv"):
        params[f"{layer}.kernel"][0, 0] = np.eye(len(params[f"{layer}.bias"]))
    return {path: jnp.asarray(array) for path, array in params.items()}
