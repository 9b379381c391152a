"""The small model that ships, part two of three: the paper's objective, on rendered rooms, still lifes and streets.

    python -m marigold_jax.train --config configs/rooms.py --workdir runs/rooms

It starts from what `configs/rooms_vae.py` left: a VAE that has learned, and a UNet that has not. As in the quickstart,
the network predicts the clean latent; and because it began from nothing, what it has inside is aligned to features of
ImageNet (`pip install -e '.[align]'`). 14 minutes on two CPU cores. Part three is `configs/rooms_end_to_end.py`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "model": {
                "checkpoint": "runs/rooms_vae",
                "prediction": "depth",
                "scheduler": {"set_alpha_to_one": True, "prediction_type": "sample"},
                "description": {"default_denoising_steps": 1, "default_processing_resolution": 128},
            },
            "data": {
                "data_dir": "data",
                "train": (("rooms/train", 1.0),),
                "validation": "rooms/val",
                "size": (96, 128),  # (height, width)
                "batch_size": 8,  # a micro-batch, over all devices
                "accumulation": 1,
                "num_workers": 0,
                "flip": True,
                "zoom": 1.0,  # at most, of a part of a frame, which then fills the picture
                "antialias": True,
                "far_fill": True,
            },
            "objective": {
                "name": "diffusion",
                "prompt_length": 2,
                "noise": "multi_resolution",
                "strength": 0.9,
                "annealed": True,
                "compute_dtype": "float32",
                "remat": "none",
                "align": 3.0,  # how much the features of ImageNet count that the UNet is to have inside
            },
            "optim": {
                "name": "adam",
                "lora_rank": 0,
                "learning_rate": 1e-3,
                "total_steps": 1500,
                "final_ratio": 0.3,
                "warmup_steps": 100,
                "betas": (0.9, 0.99),
                "epsilon": 1e-8,
                "weight_decay": 0.0,
                "clip_norm": 1.0,
                "ema_decay": 0.998,
            },
            "run": {
                "steps": 1500,
                "seed": 0,
                "log_every": 50,
                "checkpoint_every": 500,
                "evaluate_every": 500,
                "validation_images": 32,
                "max_skipped": 10,
                "fsdp": 1,
                "latents": "",  # "float32" or "bfloat16": encode each dataset once, and train on its latents
            },
        }
    )
