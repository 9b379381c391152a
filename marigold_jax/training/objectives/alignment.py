"""Representation alignment (REPA, arXiv 2410.06940): features inside the UNet, compared with those of ImageNet.

A network that begins from nothing learns what things look like from depth alone, slowly. Here linear heads read two
features of the UNet's decoder, and are to say what EfficientNet-lite0 sees in the same image at strides 16 and 32. The
image is magnified until a cell of stride 16 is a latent. Heads and teacher only help to train; no checkpoint has them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from marigold_jax.models.efficientnet import FEATURES, features
from marigold_jax.models.functional import Params
from marigold_jax.models.unet import UNetConfig
from marigold_jax.training.objectives.contract import Batch, Frozen, Metrics

STRIDE = 16  # of the feature that has one cell to a latent
SMALLEST_VARIANCE = 1e-4  # of a channel, whose own is some ten

# (loss, metrics, params, frozen, batch, taps) -> (loss, metrics)
Addition = Callable[[Array, Metrics, Params, Frozen, Batch, list[Array]], tuple[Array, Metrics]]


def tapped(levels: int) -> dict[int, int]:
    """Stride -> the first block of a UNet's decoder, of so many levels, that puts out a feature of that size."""
    return {stride: levels - 2 - level for level, stride in enumerate(FEATURES)}


def heads(config: UNetConfig) -> Params:
    """Returns the heads' parameters, zeros: `align.STRIDE.kernel` (c, k).

    Raises ValueError for a UNet of fewer than three levels: it has no feature as coarse as the teacher's last.
    """
    widths = config.block_out_channels
    if len(widths) < 3:
        raise ValueError(f"config.objective.align: wanted a UNet of three levels or more, this one has {len(widths)}")
    return {
        f"align.{stride}.kernel": jnp.zeros((widths[len(widths) - 1 - index], FEATURES[stride][1]))
        for stride, index in tapped(len(widths)).items()
    }


def make_alignment(weight: float) -> Addition:
    """Returns what adds `weight` times the alignment loss to an objective's own; for 0, what adds nothing.

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
    """Returns the mean squared errors of the heads, summed over the two strides; 2 for heads of zero.

    The teacher's channels are standardised over the batch, so that all count the same.
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
