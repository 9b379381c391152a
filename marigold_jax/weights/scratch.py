"""A checkpoint without pretrained weights: an untrained UNet, a small exact VAE, and an empty prompt of zeros.

Training can start from it if no pretrained weights are available. The architecture is that of Stable Diffusion, but
smaller, so a model trained from it is exported, loaded and run like any other Marigold model.

The VAE needs no training. The latent of a cell of pixels is its mean colour, and the decoder fills the cell with that
colour. So latents are a coarse image, like those of Stable Diffusion, but with a known meaning. An AutoencoderKL with
these weights computes this in spite of its nonlinear layers:

- a residual block whose last layer is zero is the identity;
- the negative of each colour has its own channel, and silu(x) − silu(−x) = x;
- two constant channels, ±32, dominate the variance of the last GroupNorm, which therefore multiplies by a constant, to
  within 0.1 % for pixels in [−1, 1].
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from marigold_jax.models import unet, vae
from marigold_jax.models.functional import Params, abstract, initialise
from marigold_jax.weights.component import Component
from marigold_jax.weights.diffusers_folder import STABLE_DIFFUSION_2_SCHEDULER
from marigold_jax.weights.model import DiffusionModel
from marigold_jax.weights.model_index import ModelIndex

COLORS = 3
WIDTH = 8  # channels of the VAE: three colours, their negatives, two constants
CONSTANT = 32.0
PROMPT_WIDTH = 16
LAST_OF_BRANCH = ("conv2.kernel", "proj_out.kernel", "conv_out.kernel")
# That of prs-eth/marigold-depth-v1-1: Stable Diffusion's schedule, rescaled so that it ends in pure noise.
SCHEDULER = STABLE_DIFFUSION_2_SCHEDULER.replace({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"})


def scratch(widths: tuple[int, ...], cell: int = 4, seed: int = 0, vae_widths: tuple[int, ...] = ()) -> DiffusionModel:
    """Returns a checkpoint with a randomly initialised UNet.

    Args:
        widths: channels of the UNet at each level, multiples of 16. The two lowest levels have attention.
        cell: pixels per latent along one side, a power of two.
        seed: of the random parameters.
        vae_widths: channels of the VAE at each level, multiples of 8, for an untrained VAE with four latent channels;
            one level more than the image is halved. If empty, the VAE is the exact one.

    Raises:
        ValueError: a number is not of this kind.
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
    return DiffusionModel(
        unet=Component(unet_config, structure, {path: quiet(path, array) for path, array in params.items()}),
        vae=vae_component,
        empty_prompt={length: np.zeros((length, PROMPT_WIDTH), np.float32) for length in (2, 77)},
        scheduler=SCHEDULER,
        index=ModelIndex({"_class_name": "MarigoldDepthPipeline"}),
        folder=Path("scratch"),
    )


def exact_vae(levels: int) -> Component:
    """Returns the VAE whose latents are means of cells; see the docstring of this module."""
    config = vae_config((WIDTH,) * levels, latent_channels=COLORS, norm_num_groups=1, scaling_factor=2.0)
    structure, shapes = abstract(lambda rngs: vae.VAE(config, rngs))
    return Component(config, structure, cell_means({path: x.shape for path, x in shapes.items()}))


def fresh_vae(widths: tuple[int, ...], seed: int) -> Component:
    """Returns an untrained VAE whose residual branches start as zero. Training keeps its latents at deviation 1."""
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
    """Sets the last layers of residual branches and of the network to zero: early training is several times faster."""
    return jnp.zeros_like(array) if path.endswith(LAST_OF_BRANCH) else array


def cell_means(shapes: dict[str, tuple[int, ...]]) -> Params:
    """Returns the parameters of the exact VAE. Parameters that are not set here are zero."""
    params = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    colors = np.arange(COLORS)
    for path, array in params.items():
        if path.endswith("scale"):
            array[:] = 1
        elif path.endswith("downsamplers.0.conv.kernel"):
            array[:2, :2] = np.eye(WIDTH) / 4  # the mean of 2x2 pixels; the padding is at the other end
        elif path.endswith("upsamplers.0.conv.kernel"):
            array[1, 1] = np.eye(WIDTH)
    for half in ("encoder", "decoder"):
        enter, leave = params[f"{half}.conv_in.kernel"], params[f"{half}.conv_out.kernel"]
        enter[1, 1, colors, colors], enter[1, 1, colors, COLORS + colors] = 1, -1
        params[f"{half}.conv_in.bias"][2 * COLORS :] = CONSTANT, -CONSTANT
        # The standard deviation of the eight channels, without the small contribution of the colours.
        params[f"{half}.conv_norm_out.scale"][:] = CONSTANT * (2 / WIDTH) ** 0.5
        leave[1, 1, colors, colors], leave[1, 1, COLORS + colors, colors] = 1, -1
    # The other half of the moments is the log-variance: a variance of nearly zero.
    params["encoder.conv_out.bias"][COLORS:] = -30
    for layer in ("quant_conv", "post_quant_conv"):
        params[f"{layer}.kernel"][0, 0] = np.eye(len(params[f"{layer}.bias"]))
    return {path: jnp.asarray(array) for path, array in params.items()}
