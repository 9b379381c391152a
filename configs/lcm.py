"""Distillation of a Marigold to one to five denoising steps: latent consistency models (arXiv 2310.04378).

    python -m marigold_jax.train --config lcm --workdir runs/lcm --config.data.data_dir=DATA

DATA is the folder that `python -m marigold_jax.prepare hypersim` and `... virtual_kitti_2` wrote to. The recipe is that
of Marigold's authors: 5,000 steps of 32 samples at a learning rate of 3e-6. The checkpoint that training starts from is
also the teacher.

Hardware: student, average, teacher, gradient and Adam's two moments take 21 GB in float32. With
`--config.optim.lora_rank=64`, little more than the teacher's 3.5 GB remains.
Time and expected score: not timed.

The export has an LCMScheduler, whose steps are chosen from the timesteps that were learned: one to five, here and in
diffusers, and one by default. To distil normals, set `model.prediction`, a checkpoint for normals, and
`run.evaluate_every=0`.
"""

from typing import Any


def get_config() -> dict[str, dict[str, Any]]:
    return {
        "model": {
            "checkpoint": "prs-eth/marigold-depth-v1-1",
            "scheduler": {},  # the teacher's noise schedule, and a sampler for the timesteps that are learned
            "description": {"default_denoising_steps": 1, "default_processing_resolution": 768},
        },
        "objective": {"name": "consistency", "remat": "blocks"},
        "optim": {
            "name": "adamw",
            "learning_rate": 3e-6,
            "total_steps": 5000,
            "final_ratio": 1.0,  # constant after the warm-up
            "weight_decay": 0.01,
            "clip_norm": 1.0,
            "ema_decay": 0.95,  # the average is the target network, and is what is evaluated and exported
        },
        "run": {"steps": 5000},
    }
