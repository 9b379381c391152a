"""The bundled model, part 1 of 3: its VAE, from scratch, on rendered rooms, still lifes and streets.

    python -m marigold_jax.prepare rooms --data_dir data --fetch_assets --size 144 192 --scenes 800 --views 4
    python -m marigold_jax.prepare rooms --data_dir data --fetch_assets --size 144 192 --scenes 20 --split val
    python -m marigold_jax.train --config rooms_vae --workdir runs/rooms_vae

Hardware and time: 38 minutes on two CPU cores.
Expected: photographs at 24.5 dB PSNR and depth maps at AbsRel 0.030, on validation frames.

The VAE is of Stable Diffusion's kind, with 8 x 8 pixels to a latent of four channels, and small enough to train on two
CPU cores. It learns to encode both photographs and depth maps. Part 2 is `rooms`. `launch/marigold_rooms.sh` shows how
the VAE was later widened and trained to 27 dB.
"""

from typing import Any


def get_config() -> dict[str, dict[str, Any]]:
    return {
        "model": {
            "checkpoint": "scratch",
            "widths": (64, 128, 192),  # of the UNet, which part 2 trains
            "vae_widths": (16, 32, 64, 96),
            "cell": 8,
            "scheduler": {"set_alpha_to_one": True},
            "description": {"default_denoising_steps": 1, "default_processing_resolution": 192},
        },
        "data": {
            "train": (("rooms/train", 1.0),),
            "validation": "rooms/val",
            "size": (144, 192),
            "batch_size": 1,
            "accumulation": 1,
            "num_workers": 0,
        },
        "objective": {"name": "autoencoder"},
        "optim": {
            "learning_rate": 1e-3,
            "total_steps": 4000,
            "final_ratio": 0.05,
            "betas": (0.9, 0.99),
            "clip_norm": 1.0,
            "ema_decay": 0.998,
        },
        "run": {"steps": 4000, "seed": 0, "log_every": 50, "validation_images": 32},
    }
