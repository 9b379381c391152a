"""The bundled model, part 3 of 3: its UNet again, end to end in one step (arXiv 2409.11355).

    python -m marigold_jax.prepare rooms --data_dir data --fetch_assets --size 144 192 \\
        --scenes 1000 --views 4 --seed 1 --name rooms_b
    python -m marigold_jax.train --config rooms_end_to_end --workdir runs/rooms_end_to_end

Hardware and time: 72 minutes on two CPU cores, with each core as a device:

    export XLA_FLAGS="--xla_force_host_platform_device_count=2 --xla_cpu_multi_thread_eigen=false"

Expected score: not measured at this stage.

The run starts from the result of `rooms`. To train the bundled model further, use `model.checkpoint=marigold-rooms`.
The initial noise stays Gaussian, so that the members of an ensemble differ. The loss is the relative error, which is
what AbsRel measures. Random crops are magnified, because the network soon overfits whole frames. The alignment to
ImageNet features continues. The bundled model was trained further from here, its VAE and its UNet in turns:
`launch/marigold_rooms.sh` has every step.
"""

from typing import Any


def get_config() -> dict[str, dict[str, Any]]:
    return {
        "model": {
            "checkpoint": "runs/rooms",
            "scheduler": {"set_alpha_to_one": True, "prediction_type": "sample"},
            "description": {
                "default_denoising_steps": 1,
                "default_processing_resolution": 128,
                "_x0": False,  # with these two, diffusers gives the same depth
                "_stretch": False,
            },
        },
        "data": {
            "train": (("rooms/train", 0.45), ("rooms_b/train", 0.55)),
            "validation": "rooms/val",
            "size": (96, 128),
            "batch_size": 8,
            "accumulation": 1,
            "num_workers": 0,
            "zoom": 1.5,
        },
        "objective": {"name": "end_to_end", "noise": "gaussian", "strength": 0.0, "units": "relative", "align": 3.0},
        "optim": {
            "learning_rate": 1e-3,
            "total_steps": 7200,
            "final_ratio": 0.03,
            "betas": (0.9, 0.99),
            "clip_norm": 1.0,
            "ema_decay": 0.998,
        },
        "run": {"steps": 7200, "seed": 0, "log_every": 50, "evaluate_every": 1000, "validation_images": 32},
    }
