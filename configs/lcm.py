"""Distillation to one to five steps (latent consistency models, arXiv 2310.04378), from any Marigold.

    python -m marigold_jax.train --config configs/lcm.py --workdir runs/lcm --config.data.data_dir=DATA

DATA holds what `python -m marigold_jax.prepare hypersim` and `... virtual_kitti_2` made. The recipe is that of
Marigold's authors: 5 000 steps of 32 samples at a learning rate of 3e-6. The checkpoint that training starts from is
its own teacher. Student, average, teacher, gradient and two moments are 21 GB in float32; with
`--config.optim.lora_rank=64` little more than the teacher's 3.5 GB remains.

What comes out says LCMScheduler, whose steps are chosen from the timesteps that were learned: one to five of them, here
and in diffusers, one by default. For normals, set `model.prediction`, a checkpoint of that kind, and
`run.evaluate_every=0`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "model": {
                "checkpoint": "prs-eth/marigold-depth-v1-1",
                "prediction": "depth",
                "scheduler": {},  # the teacher's noise schedule, and the sampler of the timesteps below
                "description": {"default_denoising_steps": 1, "default_processing_resolution": 768},
            },
            "data": {
                "data_dir": "data",
                "train": (("hypersim/train", 0.9), ("virtual_kitti_2/train", 0.1)),
                "validation": "hypersim/val",
                "size": (),  # (height, width) to train at; empty for each dataset's own
                "batch_size": 2,  # a micro-batch, over all devices
                "accumulation": 16,  # micro-batches to a step
                "num_workers": 4,
                "flip": True,
                "zoom": 1.0,  # at most, of a part of a frame, which then fills the picture
                "antialias": True,
                "far_fill": True,
            },
            "objective": {
                "name": "consistency",
                "prompt_length": 2,
                "grid": 5,  # timesteps that are learned
                "timestep_scaling": 10.0,
                "huber": 1e-3,  # where the loss turns from squared to absolute
                "compute_dtype": "float32",
                "remat": "blocks",
            },
            "optim": {
                "name": "adamw",
                "lora_rank": 0,  # of corrections to attention, which then alone train; 0 trains everything
                "learning_rate": 3e-6,
                "total_steps": 5000,
                "final_ratio": 1.0,  # constant after the warm-up
                "warmup_steps": 100,
                "betas": (0.9, 0.999),
                "epsilon": 1e-8,
                "weight_decay": 0.01,
                "clip_norm": 1.0,
                "ema_decay": 0.95,  # of the target network, which is also what is evaluated and exported
            },
            "run": {
                "steps": 5000,
                "seed": 2024,
                "log_every": 10,
                "checkpoint_every": 500,
                "evaluate_every": 500,  # 0 for never
                "validation_images": 80,
                "max_skipped": 10,
                "fsdp": 1,  # devices over which the parameters are split
                "latents": "",  # "float32" or "bfloat16": encode each dataset once, and train on its latents
            },
        }
    )
