"""The small model that ships, part one of three: its VAE, from scratch, on rendered rooms, still lifes and streets.

    python -m marigold_jax.prepare rooms --data_dir data --fetch_assets --size 144 192 --scenes 800 --views 4
    python -m marigold_jax.prepare rooms --data_dir data --fetch_assets --size 144 192 --scenes 20 --split val
    python -m marigold_jax.train --config configs/rooms_vae.py --workdir runs/rooms_vae

Stable Diffusion's kind of VAE, eight pixels to a latent of four channels, small enough to be learned by two CPU cores.
It learns to pass both photographs and depth maps: 24.5 dB and AbsRel 0.030 on validation frames after 38 minutes. Part
two is `configs/rooms.py`. `launch/marigold_rooms.sh` tells how it was later widened and brought to 27 dB.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "model": {
                "checkpoint": "scratch",
                "prediction": "depth",
                "widths": (64, 128, 192),  # of the UNet, which waits for its turn
                "vae_widths": (16, 32, 64, 96),
                "cell": 8,  # pixels to a latent, along one side
                "seed": 0,
                "scheduler": {"set_alpha_to_one": True},
                "description": {"default_denoising_steps": 1, "default_processing_resolution": 192},
            },
            "data": {
                "data_dir": "data",
                "train": (("rooms/train", 1.0),),
                "validation": "rooms/val",
                "size": (144, 192),  # (height, width)
                "batch_size": 1,  # a micro-batch, over all devices
                "accumulation": 1,
                "num_workers": 0,
                "flip": True,
                "zoom": 1.0,  # at most, of a part of a frame, which then fills the picture
                "antialias": True,
                "far_fill": True,
            },
            "objective": {
                "name": "autoencoder",
                "prompt_length": 2,
                "decibels": 0.0,
                "absolute": 0.5,
                "edges": 1.0,
                "latents": 0.01,
                "noise": 0.05,
                "compute_dtype": "float32",
                "remat": "none",
            },
            "optim": {
                "name": "adam",
                "lora_rank": 0,
                "learning_rate": 1e-3,
                "total_steps": 4000,
                "final_ratio": 0.05,
                "warmup_steps": 100,
                "betas": (0.9, 0.99),
                "epsilon": 1e-8,
                "weight_decay": 0.0,
                "clip_norm": 1.0,
                "ema_decay": 0.998,
            },
            "run": {
                "steps": 4000,
                "seed": 0,
                "log_every": 50,
                "checkpoint_every": 500,
                "evaluate_every": 500,
                "validation_images": 32,
                "max_skipped": 10,
                "fsdp": 1,
            },
        }
    )
