"""Surface normals by end-to-end fine-tuning (arXiv 2409.11355): one step from zeros, and a loss on decoded normals.

    python -m marigold_jax.train --config e2e_ft_normals --workdir runs/normals --config.data.data_dir=DATA

DATA is the folder that `python -m marigold_jax.prepare hypersim --normals` and `... virtual_kitti_2 --normals` wrote
to. The run starts from Marigold for normals. One more flag starts it from Stable Diffusion 2 (its first layer is
widened and its bias halved, as the authors do), or from the bundled model, which then learns normals instead of depth:

    --config.model.checkpoint=stabilityai/stable-diffusion-2
    --config.model.checkpoint=marigold-rooms

Hardware and time: not timed here. The authors report three days on one H100.
Expected: the authors report on NYU v2, from Marigold, a mean angle of 16.2 degrees and 61.4 % within 11.25 degrees.

The training frames differ from the authors' as in `e2e_ft_depth`. Normals point right along x, up along y and towards
the viewer along z, as Marigold's do. The normals of the authors' own checkpoints point left, so a run that starts from
one of them has to relearn the sign of x.
"""

from typing import Any


def get_config() -> dict[str, dict[str, Any]]:
    return {
        "model": {
            "checkpoint": "prs-eth/marigold-normals-v0-1",
            "prediction": "normals",
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
