"""The bundled model, part 2 of 3: its UNet, with the paper's objective, on rendered rooms and streets.

    python -m marigold_jax.train --config rooms --workdir runs/rooms

Hardware and time: 14 minutes on two CPU cores. Needs `pip install -e '.[align]'`.
Expected score: not measured at this stage.

The run starts from the result of `rooms_vae`: a trained VAE and an untrained UNet. As in `quickstart`, the network
predicts the clean latent. Because the UNet has no pretraining, its features are aligned to those of an ImageNet
classifier. Part 3 is `rooms_end_to_end`.
"""

from typing import Any


def get_config() -> dict[str, dict[str, Any]]:
    return {
        "model": {
            "checkpoint": "runs/rooms_vae",
            "scheduler": {"set_alpha_to_one": True, "prediction_type": "sample"},
            "description": {"default_denoising_steps": 1, "default_processing_resolution": 128},
        },
        "data": {
            "train": (("rooms/train", 1.0),),
            "validation": "rooms/val",
            "size": (96, 128),
            "batch_size": 8,
            "accumulation": 1,
            "num_workers": 0,
        },
        "objective": {"name": "diffusion", "align": 3.0},
        "optim": {
            "learning_rate": 1e-3,
            "total_steps": 1500,
            "final_ratio": 0.3,
            "betas": (0.9, 0.99),
            "clip_norm": 1.0,
            "ema_decay": 0.998,
        },
        "run": {"steps": 1500, "seed": 0, "log_every": 50, "validation_images": 32},
    }
