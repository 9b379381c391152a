"""The small model that ships, part three of three: one step, end to end (arXiv 2409.11355).

    python -m marigold_jax.prepare rooms --data_dir data --fetch_assets --size 144 192 \\
        --scenes 1000 --views 4 --seed 1 --name rooms_b
    python -m marigold_jax.train --config configs/rooms_end_to_end.py --workdir runs/rooms_end_to_end

It starts from what `configs/rooms.py` left; to train further what ships, set `model.checkpoint` to marigold-rooms. The
noise stays Gaussian, so that an ensemble has something to average. The loss is the relative error itself, so that what
is near counts for more, as it does in the scores; and parts of frames are magnified, because the network soon knows the
frames by heart. The alignment to features of ImageNet goes on. 72 minutes on two CPU cores, each of them a device:

    export XLA_FLAGS="--xla_force_host_platform_device_count=2 --xla_cpu_multi_thread_eigen=false"

What ships went on from there, the VAE and the UNet by turns: `launch/marigold_rooms.sh` is all of it.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "model": {
                "checkpoint": "runs/rooms",
                "prediction": "depth",
                "scheduler": {"set_alpha_to_one": True, "prediction_type": "sample"},
                "description": {
                    "default_denoising_steps": 1,
                    "default_processing_resolution": 128,
                    "_x0": False,  # these two so that diffusers gives the same depth
                    "_stretch": False,
                },
            },
            "data": {
                "data_dir": "data",
                "train": (("rooms/train", 0.45), ("rooms_b/train", 0.55)),
                "validation": "rooms/val",
                "size": (96, 128),  # (height, width)
                "batch_size": 8,  # a micro-batch, over all devices
                "accumulation": 1,
                "num_workers": 0,
                "flip": True,
                "zoom": 1.5,  # at most, of a part of a frame, which then fills the picture
                "antialias": True,
                "far_fill": True,
            },
            "objective": {
                "name": "end_to_end",
                "prompt_length": 2,
                "noise": "gaussian",
                "strength": 0.0,
                "units": "relative",
                "spread": 0.0,
                "compute_dtype": "float32",
                "remat": "none",
                "align": 3.0,  # how much the features of ImageNet count that the UNet is to have inside
            },
            "optim": {
                "name": "adam",
                "lora_rank": 0,
                "learning_rate": 1e-3,
                "total_steps": 7200,
                "final_ratio": 0.03,
                "warmup_steps": 100,
                "betas": (0.9, 0.99),
                "epsilon": 1e-8,
                "weight_decay": 0.0,
                "clip_norm": 1.0,
                "ema_decay": 0.998,
            },
            "run": {
                "steps": 7200,
                "seed": 0,
                "log_every": 50,
                "checkpoint_every": 500,
                "evaluate_every": 1000,
                "validation_images": 32,
                "max_skipped": 10,
                "fsdp": 1,
            },
        }
    )
