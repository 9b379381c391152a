"""A Marigold fine-tuned on your own RGB-D pairs: low-rank updates (LoRA) of its attention, merged into the export.

    python -m marigold_jax.prepare folder --raw_dir my_scans/ --data_dir data/ --unit mm --validation 0.05
    python -m marigold_jax.train --config own_data --workdir runs/mine

`--validation` holds out some pairs to evaluate the run on. For pairs that were prepared without it:

    --config.data.validation=''

The dataset is named after the folder. For another name, set both splits:

    --config.data.train="(('NAME/train', 1.0),)" --config.data.validation=NAME/val

Hardware: a GPU with 8 to 16 GB. To try it in a few minutes on two CPU cores, start from the bundled model:

    --config.model.checkpoint=marigold-rooms --config.data.size="(96, 128)" --config.run.steps=200

Time and expected score: not timed; they depend on your data.
"""

from typing import Any


def get_config() -> dict[str, dict[str, Any]]:
    return {
        "model": {
            "checkpoint": "prs-eth/marigold-depth-v1-1",  # or any other Marigold, or a folder
            "scheduler": {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"},
            "description": {"default_denoising_steps": 4},
        },
        "data": {
            "train": (("my_scans/train", 1.0),),
            "validation": "my_scans/val",
            "size": (480, 640),  # photographs have many sizes, and a batch has one
            "batch_size": 1,
            "accumulation": 8,
            "num_workers": 2,
        },
        "objective": {"name": "diffusion", "remat": "blocks"},
        "optim": {
            "lora_rank": 16,
            "learning_rate": 1e-4,  # use 3e-5 where all weights train (lora_rank=0)
            "total_steps": 2000,
            "final_ratio": 0.1,
            "warmup_steps": 20,
        },
        "run": {"steps": 2000, "seed": 0, "checkpoint_every": 200, "evaluate_every": 200, "validation_images": 16},
    }
