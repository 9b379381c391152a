"""Marigold depth, as in the paper (arXiv 2312.02145): Stable Diffusion 2 fine-tuned on Hypersim and Virtual KITTI 2.

    python -m marigold_jax.train --config configs/hypersim_vkitti.py --workdir runs/depth --config.data.data_dir=DATA

DATA holds what `python -m marigold_jax.prepare hypersim` and `... virtual_kitti_2` made. One device of 24 GB suffices,
and on larger ones the micro-batch can grow: `--config.data.batch_size=32 --config.data.accumulation=1` is the
same recipe. The authors report two and a half days on one RTX 4090 for 18 000 steps, and AbsRel 5.5 % on NYU v2 with an
ensemble of ten. This is their second release (v1-1): the noise schedule is rescaled to end in pure noise.

Where the recipe here is better than the authors' code on purpose, `False` restores theirs: `data.antialias`,
`data.far_fill`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "model": {
                "checkpoint": "stabilityai/stable-diffusion-2",  # or any Marigold, or a folder
                "prediction": "depth",
                "inflation_bias": "marigold",
                "scheduler": {
                    "_class_name": "DDIMScheduler",
                    "rescale_betas_zero_snr": True,
                    "timestep_spacing": "trailing",
                },
                "description": {"default_denoising_steps": 4, "default_processing_resolution": 768},
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
                "name": "diffusion",
                "prompt_length": 2,  # tokens of the empty prompt; 77 is the padded one
                "noise": "multi_resolution",
                "strength": 0.9,
                "annealed": True,
                "compute_dtype": "float32",  # "bfloat16" is twice as fast and half as large
                "remat": "blocks",
                "align": 0.0,  # for a UNet that began from nothing: see configs/rooms.py
            },
            "optim": {
                "name": "adam",
                "lora_rank": 0,  # of corrections to attention, which then alone train; 0 trains everything
                "learning_rate": 3e-5,
                "total_steps": 25_000,  # of the decay to final_ratio
                "final_ratio": 0.01,
                "warmup_steps": 100,
                "betas": (0.9, 0.999),
                "epsilon": 1e-8,
                "weight_decay": 0.0,
                "clip_norm": 0.0,  # 0 for none
                "ema_decay": 0.0,  # 0 for none
            },
            "run": {
                "steps": 30_000,
                "seed": 2024,
                "log_every": 10,
                "checkpoint_every": 500,
                "evaluate_every": 500,  # 0 for never
                "validation_images": 80,
                "max_skipped": 10,  # updates in a row that are not finite, before the run stops
                "fsdp": 1,  # devices over which the parameters are split
                "latents": "",  # "float32" or "bfloat16": encode each dataset once, and train on its latents
            },
        }
    )
