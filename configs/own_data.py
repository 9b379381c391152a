"""A Marigold adapted to your own RGB-D pairs: low-rank corrections of its attention, which are merged in the end.

    python -m marigold_jax.prepare folder --raw_dir my_scans/ --data_dir data/ --unit mm --validation 0.05
    python -m marigold_jax.train --config configs/own_data.py --workdir runs/mine

`--validation` holds out what the run is judged by. For pairs that were prepared without:

    --config.data.validation=''

The dataset has the name of the folder; for another one, name both of its splits:

    --config.data.train="(('NAME/train', 1.0),)" --config.data.validation=NAME/val

A card of 8 to 16 GB holds it. Without one, try it with the small model that ships, on two CPU cores in some minutes:

    --config.model.checkpoint=marigold-rooms --config.data.size="(96, 128)" --config.run.steps=200
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "model": {
                "checkpoint": "prs-eth/marigold-depth-v1-1",  # or any other Marigold, or a folder
                "prediction": "depth",
                "scheduler": {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"},
                "description": {"default_denoising_steps": 4},
            },
            "data": {
                "data_dir": "data",
                "train": (("my_scans/train", 1.0),),
                "validation": "my_scans/val",  # "" for none
                "size": (480, 640),  # (height, width) to train at, multiples of 8: photographs have many sizes
                "batch_size": 1,  # a micro-batch, over all devices
                "accumulation": 8,  # micro-batches to a step
                "num_workers": 2,
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
            },
            "optim": {
                "name": "adam",
                "lora_rank": 16,  # of corrections to attention, which then alone train; 0 trains everything
                "learning_rate": 1e-4,  # 3e-5 where everything trains
                "total_steps": 2000,  # of the decay to final_ratio
                "final_ratio": 0.1,
                "warmup_steps": 20,
                "betas": (0.9, 0.999),
                "epsilon": 1e-8,
                "weight_decay": 0.0,
                "clip_norm": 0.0,  # 0 for none
                "ema_decay": 0.0,  # 0 for none
            },
            "run": {
                "steps": 2000,
                "seed": 0,
                "log_every": 10,
                "checkpoint_every": 200,
                "evaluate_every": 200,  # 0 for never
                "validation_images": 16,  # at most
                "max_skipped": 10,  # updates in a row that are not finite, before the run stops
                "fsdp": 1,  # devices over which the parameters are split
                "latents": "",  # "float32" or "bfloat16": encode each dataset once, and train on its latents
            },
        }
    )
