"""A small Marigold from scratch on built-in scenes: no downloads, and a few minutes on a laptop.

    python -m marigold_jax.train --config quickstart --workdir runs/quickstart

Hardware and time: two and a half minutes on two CPU cores.
Expected: AbsRel 0.163 and δ1 0.786 on unseen scenes. A constant depth scores 0.394 and 0.387.

This shows the whole way from images to a checkpoint that `predict` loads; see the pictures in panels/. It does not show
what Marigold can do: the scenes are boxes and spheres in rooms, and the UNet has 2.7 M parameters and no pretraining.

- The VAE is not learned. A latent is the mean colour of 4 x 4 pixels, which an AutoencoderKL with suitable weights
  computes exactly (`marigold_jax/weights/scratch.py`). Learning a VAE first would take longer than everything else.
- The network predicts the clean latent instead of the velocity. Without pretraining, the few steps are then spent on
  depth and not on recognising noise. One denoising step is then as good as several.
"""

from typing import Any


def get_config() -> dict[str, dict[str, Any]]:
    return {
        "model": {
            "checkpoint": "scratch",
            "widths": (32, 64, 96),
            "scheduler": {"prediction_type": "sample"},
            "description": {"default_denoising_steps": 1, "default_processing_resolution": 96},
        },
        "data": {
            "data_dir": "",  # the scenes are made in memory
            "train": (("primitives/train", 1.0),),
            "validation": "primitives/val",
            "size": (64, 96),
            "batch_size": 16,
            "accumulation": 1,
            "num_workers": 0,
        },
        "objective": {"name": "diffusion"},
        "optim": {
            "learning_rate": 2e-3,
            "total_steps": 500,
            "final_ratio": 0.05,
            "warmup_steps": 20,
            "betas": (0.9, 0.99),
            "ema_decay": 0.99,
        },
        "run": {
            "steps": 500,
            "seed": 0,
            "log_every": 20,
            "checkpoint_every": 100,
            "evaluate_every": 100,
            "validation_images": 16,
        },
    }
