"""Depth by end-to-end fine-tuning (arXiv 2409.11355): one denoising step from zeros, and a loss on the decoded depth.

    python -m marigold_jax.train --config e2e_ft_depth --workdir runs/e2e_depth --config.data.data_dir=DATA

DATA is the folder that `python -m marigold_jax.prepare hypersim` and `... virtual_kitti_2` wrote to. The run starts
from Marigold. One more flag starts it from Stable Diffusion 2 (its first layer is widened and its bias halved, as the
authors do), or from the bundled model:

    --config.model.checkpoint=stabilityai/stable-diffusion-2
    --config.model.checkpoint=marigold-rooms

Hardware and time: not timed here. The authors report three days on one H100.
Expected: the authors report AbsRel 5.2 % on NYU v2 from Marigold, and 5.4 % from Stable Diffusion.

The training frames are Marigold's. The authors use Hypersim's whole training split and other weathers of Virtual KITTI
2. They compute the percentiles that depth is clipped to after resizing; here this is done before, which makes very
little difference. The export records that denoising starts from zeros and ends in x0, and its scheduler makes diffusers
do the same.
"""

from typing import Any


def get_config() -> dict[str, dict[str, Any]]:
    return {
        "model": {
            "checkpoint": "prs-eth/marigold-depth-v1-0",
            "inflation_bias": "e2e_ft",
            "scheduler": {
                "_class_name": "DDIMScheduler",
                "rescale_betas_zero_snr": False,
                "timestep_spacing": "trailing",
                "set_alpha_to_one": True,  # the last step ends in x0, as in training
            },
            "description": {"default_denoising_steps": 1},
        },
        "objective": {
            "name": "end_to_end",
            "prompt_length": 77,  # in training; predictions use the two tokens that are not padding
            "remat": "blocks",
        },
        "optim": {"name": "adamw", "total_steps": 20_000, "weight_decay": 1e-2, "clip_norm": 1.0},
        "run": {"steps": 20_000},
    }
