"""Every key of a configuration, with its unit and its default. A recipe beside this file states only what differs.

The numbers are those of Marigold's paper (arXiv 2312.02145): Stable Diffusion 2, fine-tuned for depth on Hypersim and
Virtual KITTI 2. `--config.SECTION.KEY=VALUE` on the command line overrides a recipe. A run's `config.json` records
every value that the run uses.
"""

from typing import Any

# What each objective takes beside the keys that all of them share.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "diffusion": {  # Marigold: predict the noise (or velocity, or clean latent) of a noised depth latent
        "noise": "multi_resolution",  # or "gaussian", "offset"
        "strength": 0.9,  # of the coarser scales of multi_resolution noise, or of the offset; in [0, 1]
        "annealed": True,  # scale the strength by the timestep, from 0 to the value above
        "align": 0.0,  # weight of aligning the UNet's features to an ImageNet classifier's; 0 turns it off
    },
    "end_to_end": {  # E2E-FT (arXiv 2409.11355): one denoising step, and a loss on the decoded prediction
        "noise": "zeros",  # or "gaussian", "offset", "multi_resolution"
        "strength": 0.9,  # as above
        "units": "metres",  # of the depth error; or "normalised": each scene's range is 2; or "relative" to the depth
        "align": 0.0,  # as above
        "spread": 0.0,  # weight of the distance between two predictions for one image; 1 gives the fair CRPS
    },
    "consistency": {  # latent consistency distillation (arXiv 2310.04378)
        "grid": 5,  # number of timesteps that the student learns
        "timestep_scaling": 10.0,  # factor on timesteps in the boundary condition
        "huber": 1e-3,  # error, in latent units, above which the loss grows linearly
    },
    "autoencoder": {  # trains the VAE, on images and on depth maps
        "decibels": 0.0,  # weight of the PSNR of each picture
        "absolute": 0.5,  # weight of the absolute error
        "edges": 1.0,  # weight of the error of image gradients
        "latents": 0.01,  # weight of the latents' distance from mean 0 and standard deviation 1
        "noise": 0.05,  # standard deviation of the noise that is added to latents before they are decoded
    },
}


def get_config(objective: str = "diffusion") -> dict[str, dict[str, Any]]:
    """Returns the defaults of a configuration with this objective."""
    return {
        "model": {
            # A Hugging Face id, a diffusers folder, another run's folder, or "scratch" for random weights.
            "checkpoint": "stabilityai/stable-diffusion-2",
            "prediction": "depth",  # or "normals"
            "inflation_bias": "marigold",  # how a 4-channel first layer is widened to 8; "e2e_ft" halves its bias too
            "scheduler": {},  # keys that replace those of the checkpoint's scheduler_config.json
            "description": {},  # keys that are added to the model_index.json of the export
            "widths": (),  # channels of the UNet at each level; for "scratch"
            "vae_widths": (),  # channels of the VAE at each level; an existing VAE is widened to them
            "cell": 4,  # pixels along one side of a latent; for "scratch"
            "seed": 0,  # of random weights
        },
        "data": {
            "data_dir": "data",  # the folder that `prepare` wrote to
            "train": (("hypersim/train", 0.9), ("virtual_kitti_2/train", 0.1)),  # (NAME/SPLIT, share of the batches)
            "validation": "hypersim/val",  # NAME/SPLIT; "" for none
            "size": (),  # (height, width) in pixels to train at, multiples of 8; () for each dataset's own size
            "batch_size": 2,  # images in a micro-batch, over all devices
            "accumulation": 16,  # micro-batches in a step
            "num_workers": 4,  # processes that load images; 0 loads them in the training process
            "flip": True,  # mirror half of the images
            "zoom": 1.0,  # largest magnification of a random crop; 1 uses whole images
            "antialias": True,  # False resizes images without a low-pass filter, as Marigold's authors do
            "far_fill": True,  # give invalid depth the farthest value; False gives the nearest, as the authors do
        },
        "objective": {
            "name": objective,  # a key of OBJECTIVES above; its options are added here
            "prompt_length": 2,  # tokens of the empty prompt: 2, or 77 with padding
            "compute_dtype": "float32",  # or "bfloat16": about twice as fast, and half the memory for activations
            "remat": "none",  # "blocks" or "dots" recompute activations in the backward pass, to save memory
            **OBJECTIVES.get(objective, {}),
        },
        "optim": {
            "name": "adam",  # or "adamw", "adafactor"
            "lora_rank": 0,  # trains only low-rank updates of the attention layers; 0 trains all weights
            "learning_rate": 3e-5,  # after the warm-up
            "total_steps": 25_000,  # steps after which the learning rate has fallen to final_ratio
            "final_ratio": 0.01,  # last learning rate, relative to learning_rate; 1 keeps it constant
            "warmup_steps": 100,  # steps of linear warm-up from 0
            "betas": (0.9, 0.999),  # decay of Adam's moments
            "epsilon": 1e-8,  # of Adam
            "weight_decay": 0.0,  # L2 for "adam", decoupled for "adamw"
            "clip_norm": 0.0,  # largest global norm of a gradient; 0 for no clipping
            "ema_decay": 0.0,  # of the averaged weights, which are evaluated and exported; 0 for no average
        },
        "run": {
            "steps": 30_000,  # optimiser steps
            "seed": 2024,  # of the order of the data, and of noise
            "log_every": 10,  # steps
            "checkpoint_every": 500,  # steps
            "evaluate_every": 500,  # steps; 0 for never
            "validation_images": 80,  # at most
            "max_skipped": 10,  # consecutive updates that are not finite before the run stops
            "fsdp": 1,  # devices over which the parameters are split
            "latents": "",  # "float32" or "bfloat16": encode each dataset once, and train on the stored latents
        },
    }
