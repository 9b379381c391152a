"""The two sizes of networks, pictures and batches that are measured. Both sides build theirs from the same numbers."""

from typing import Any, NamedTuple

import numpy as np
from PIL import Image

LEVELS = 4  # of the VAE: one latent has 8x8 pixels
CELL = 2 ** (LEVELS - 1)
PROMPT_TOKENS = 2


class Size(NamedTuple):
    """What one run measures.

    Attributes:
        unet: keys of diffusers' `unet/config.json`; what is not here has diffusers' default.
        vae: keys of `vae/config.json`, likewise.
        picture: (height, width) of predictions, in pixels.
        training: (height, width) of training, in pixels.
        training_batches: from large to small; the first that fits is measured.
        steps: denoising steps whose latency is measured.
        members: of the ensemble.
        batches: pictures in one call, for the throughput.
        seconds: for which a call is repeated after the first.
    """

    unet: dict[str, Any]
    vae: dict[str, Any]
    picture: tuple[int, int]
    training: tuple[int, int]
    training_batches: tuple[int, ...]
    steps: tuple[int, ...]
    members: int
    batches: tuple[int, ...]
    seconds: float


def _vae(widths: tuple[int, ...], layers: int, groups: int) -> dict[str, Any]:
    return {
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * LEVELS,
        "up_block_types": ("UpDecoderBlock2D",) * LEVELS,
        "layers_per_block": layers,
        "norm_num_groups": groups,
    }


SIZES = {
    "full": Size(
        unet={
            "in_channels": 8,
            "attention_head_dim": (5, 10, 20, 20),
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
        },
        vae=_vae((128, 256, 512, 512), layers=2, groups=32),
        picture=(576, 768),
        training=(480, 640),
        training_batches=(32, 16, 8, 4, 2, 1),
        steps=(1, 4, 50),
        members=10,
        batches=(1, 2, 4, 8, 16),
        seconds=4.0,
    ),
    "small": Size(
        unet={
            "in_channels": 8,
            "block_out_channels": (16, 32),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "attention_head_dim": (2, 4),
            "cross_attention_dim": 24,
            "norm_num_groups": 8,
            "layers_per_block": 1,
            "use_linear_projection": True,
        },
        vae=_vae((8, 8, 8, 16), layers=1, groups=4),
        picture=(64, 96),
        training=(64, 96),
        training_batches=(2,),
        steps=(1, 4),
        members=10,
        batches=(1, 2),
        seconds=0.2,
    ),
}


def training_batches(size: Size, memory: int | None) -> list[int]:
    """The batches that may fit into this many bytes: to compile for one that does not fit may take a minute.

    Parameters, gradients and Adam's moments take 14 GB at full size; a picture with recomputed blocks about 1.5 GB.
    """
    if size is not SIZES["full"] or memory is None:
        return list(size.training_batches)
    return [batch for batch in size.training_batches if 14e9 + 1.5e9 * batch < memory] or [8, 4, 2, 1]


def picture(size: Size) -> Image.Image:
    """What both sides predict for: noise, because the time does not depend on what is seen."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size.picture, 3), np.uint8))
