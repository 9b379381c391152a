"""Representation alignment (REPA, arXiv 2410.06940): features of the UNet predict those of an ImageNet model.

A network without pretraining learns image features slowly from depth alone. Here, linear heads read two features of the
UNet's decoder, and predict the features of EfficientNet-lite0 for the same image at strides 16 and 32. The image is
enlarged so that a cell of stride 16 is one latent. Heads and teacher are used only in training; checkpoints do not
contain them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from marigold_jax.models.efficientnet import FEATURES, features
from marigold_jax.models.functional import Params
from marigold_jax.models.unet import UNetConfig
from marigold_jax.training.objectives.contract import Batch, Frozen, Metrics

STRIDE = 16  # of the feature with one cell per latent
SMALLEST_VARIANCE = 1e-4  # added to the variance of a channel, which is about 10

# (loss, metrics, params, frozen, batch, taps) -> (loss, metrics)
Addition = Callable[[Array, Metrics, Params, Frozen, Batch, list[Array]], tuple[Array, Metrics]]


def tapped(levels: int) -> dict[int, int]:
    """Returns stride -> first decoder block whose output has that size, in a UNet of `levels` levels."""
    return {stride: levels - 2 - level for level, stride in enumerate(FEATURES)}


def heads(config: UNetConfig) -> Params:
    """Returns the parameters of the heads, which are zeros: `align.STRIDE.kernel` (c, k).

    Raises:
        ValueError: the UNet has fewer than three levels, so none of its features is as coarse as the teacher's last.
    """
    widths = config.block_out_channels
    if len(widths) < 3:
        raise ValueError(f"config.objective.align: wanted a UNet of three levels or more, this one has {len(widths)}")
    return {
        f"align.{stride}.kernel": jnp.zeros((widths[len(widths) - 1 - index], FEATURES[stride][1]))
        for stride, index in tapped(len(widths)).items()
    }


def make_alignment(weight: float) -> Addition:
    """Returns a function that adds `weight` times the alignment loss to that of an objective. With 0 it adds nothing.

    The teacher's parameters are `frozen["teacher"]`.
    """
    if not weight:
        return lambda loss, metrics, params, frozen, batch, taps: (loss, metrics)

    def add(loss, metrics, params, frozen, batch, taps):
        apart = alignment_loss(params, taps, frozen["teacher"], batch["rgb"].astype(jnp.float32))
        return loss + weight * apart, metrics | {"task": loss, "alignment": apart}

    return add


def alignment_loss(
    params: Params, taps: list[Array], teacher: Params, rgb: Float[Array, "b h w 3"]
) -> Float32[Array, ""]:
    """Returns the mean squared error of the heads, summed over both strides. It is about 2 if the heads are zero.

    The channels of the teacher are standardised over the batch, so that all have the same weight.
    """
    found = tapped(len(taps))
    rows, columns = taps[found[STRIDE]].shape[1:3]
    image = jax.image.resize(rgb, (len(rgb), STRIDE * rows, STRIDE * columns, 3), "linear")
    seen = jax.lax.stop_gradient(features(teacher, image))
    loss = jnp.zeros((), jnp.float32)
    for stride, index in found.items():
        truth = seen[stride]
        variance = jnp.var(truth, axis=(0, 1, 2), keepdims=True)
        truth = (truth - jnp.mean(truth, axis=(0, 1, 2), keepdims=True)) / jnp.sqrt(variance + SMALLEST_VARIANCE)
        loss += jnp.mean((taps[index].astype(jnp.float32) @ params[f"align.{stride}.kernel"] - truth) ** 2)
    return loss
