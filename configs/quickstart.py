"""A small Marigold from scratch on built-in scenes: no downloads, a few minutes on a laptop.

    python -m marigold_jax.train --config configs/quickstart.py --workdir runs/quickstart

Two and a half minutes on two CPU cores. In the end AbsRel is 0.163 and δ1 0.786 on scenes that it has not seen, where
a constant depth gets 0.394 and 0.387. This is the whole way, from images to a checkpoint that `predict` loads, not what
Marigold can do: rooms of boxes and spheres lit by a torch, a UNet of 2.7 M parameters, no pretrained knowledge. Look at
the panels.

- The VAE is not learned. Its latent is the mean colour of 4 x 4 pixels, which an AutoencoderKL with suitable weights
  computes exactly (`marigold_jax/weights/scratch.py`). Learning one first would take longer than all the rest.
- The network predicts the clean latent instead of the velocity: without pretraining, that spends the few steps there
  are on depth and not on recognising noise. One denoising step is then as good as several.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "model": {
                "checkpoint": "scratch",
                "prediction": "depth",
                "widths": (32, 64, 96),  # of the UNet, one for each level
                "cell": 4,  # pixels to a latent, along one side
                "seed": 0,
                "scheduler": {"prediction_type": "sample"},
                "description": {"default_denoising_steps": 1, "default_processing_resolution": 96},
            },
            "data": {
                "data_dir": "",
                "train": (("primitives/train", 1.0),),
                "validation": "primitives/val",
                "size": (64, 96),  # (height, width) of the scenes
                "batch_size": 16,  # a micro-batch, over all devices
                "accumulation": 1,  # micro-batches to a step
                "num_workers": 0,
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
                "compute_dtype": "float32",
                "remat": "none",
            },
            "optim": {
                "name": "adam",
                "lora_rank": 0,  # of corrections to attention, which then alone train; 0 trains everything
                "learning_rate": 2e-3,
                "total_steps": 500,
                "final_ratio": 0.05,
                "warmup_steps": 20,
                "betas": (0.9, 0.99),
                "epsilon": 1e-8,
                "weight_decay": 0.0,
                "clip_norm": 0.0,  # 0 for none
                "ema_decay": 0.99,
            },
            "run": {
                "steps": 500,
                "seed": 0,
                "log_every": 20,
                "checkpoint_every": 100,
                "evaluate_every": 100,
                "validation_images": 16,
                "max_skipped": 10,
                "fsdp": 1,
                "latents": "",  # encode a prepared dataset once and keep its latents as "float32" or "bfloat16"
            },
        }
    )
