"""Marigold depth, as in the paper (arXiv 2312.02145): Stable Diffusion 2 fine-tuned on Hypersim and Virtual KITTI 2.

    python -m marigold_jax.train --config hypersim_vkitti --workdir runs/depth --config.data.data_dir=DATA

DATA is the folder that `python -m marigold_jax.prepare hypersim` and `... virtual_kitti_2` wrote to.

Hardware: one device with 24 GB. On larger devices a larger micro-batch trains the same model:
`--config.data.batch_size=32 --config.data.accumulation=1`. `--config.objective.compute_dtype=bfloat16` is about twice
as fast.
Time: not timed here. The authors report two and a half days on one RTX 4090 for 18,000 steps.
Expected: the authors report AbsRel 5.5 % on NYU v2 with an ensemble of ten.

The noise schedule is that of the authors' second release (v1-1): it is rescaled to end in pure noise. Two choices
differ from the authors' code on purpose, and `False` restores theirs: `data.antialias` and `data.far_fill`.
"""

from typing import Any


def get_config() -> dict[str, dict[str, Any]]:
    return {
        "model": {
            "checkpoint": "stabilityai/stable-diffusion-2",  # or any Marigold, or a folder
            "scheduler": {
                "_class_name": "DDIMScheduler",
                "rescale_betas_zero_snr": True,
                "timestep_spacing": "trailing",
            },
            "description": {"default_denoising_steps": 4, "default_processing_resolution": 768},
        },
        "objective": {"name": "diffusion", "remat": "blocks"},
    }
