"""Small random diffusers models and pipelines: what ours is compared with.

Every parameter is random, norm scales and biases included, so that no layer can hide behind an identity.
"""

import json
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers

UNET = {
    "sample_size": 16,
    "in_channels": 8,
    "out_channels": 4,
    "block_out_channels": (16, 32),
    "attention_head_dim": (2, 4),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
    "layers_per_block": 1,
    "use_linear_projection": True,
}
DEEP_UNET = {  # four levels, as Stable Diffusion has
    "block_out_channels": (16, 32, 32, 64),
    "attention_head_dim": (2, 4, 4, 8),
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "layers_per_block": 2,
}
VAE = {
    "block_out_channels": (8, 16, 16, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 64,
}
TINY_VAE = {
    "encoder_block_out_channels": (8,) * 4,
    "decoder_block_out_channels": (8,) * 4,
    "num_encoder_blocks": (1, 2, 1, 1),
    "num_decoder_blocks": (1, 1, 2, 1),
}
CLIP = {
    "vocab_size": 1000,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_act": "gelu",
    "bos_token_id": 3,
    "eos_token_id": 4,
}
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
}
SCHEDULERS = {
    "v1-0": lambda: diffusers.DDIMScheduler(**SCHEDULE, timestep_spacing="leading"),
    "v1-1": lambda: diffusers.DDIMScheduler(**SCHEDULE, timestep_spacing="trailing", rescale_betas_zero_snr=True),
    "lcm": lambda: diffusers.LCMScheduler(**SCHEDULE, original_inference_steps=50, timestep_scaling=10.0),
}
PIPELINES = {"depth": diffusers.MarigoldDepthPipeline, "normals": diffusers.MarigoldNormalsPipeline}


def randomise(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights that keep activations near unit scale; norm scales in [0.5, 1.5], biases away from zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
            elif parameter.ndim == 1:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
            else:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return module.eval()


def unet(seed: int = 1, **overrides) -> diffusers.UNet2DConditionModel:
    return randomise(diffusers.UNet2DConditionModel(**UNET | overrides), seed)


def vae(seed: int = 2, **overrides) -> diffusers.AutoencoderKL:
    return randomise(diffusers.AutoencoderKL(**VAE | overrides), seed)


def tiny_vae(seed: int = 4, **overrides) -> diffusers.AutoencoderTiny:
    """Its pictures lie about the middle of the range, so that not all is clipped."""
    network = randomise(diffusers.AutoencoderTiny(**TINY_VAE | overrides), seed)
    network.decoder.layers[-1].bias.data += 0.4
    return network


def text_encoder(seed: int = 3, **overrides) -> transformers.CLIPTextModel:
    return randomise(transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP | overrides)), seed)


def tokenizer(folder: Path) -> transformers.CLIPTokenizer:
    """A vocabulary of single letters; padded with "!", as Stable Diffusion 2 is."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["!", "a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token="!", model_max_length=77
    )


def pipeline(folder: Path, modality: str = "depth", scheduler: str = "v1-1", **fields):
    """A diffusers pipeline with random weights. `folder` is scratch space for the tokenizer."""
    fields = {"prediction_type": modality, "default_denoising_steps": 2, "default_processing_resolution": 64} | fields
    pipe = PIPELINES[modality](
        unet=unet(),
        vae=vae(),
        scheduler=SCHEDULERS[scheduler](),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(folder / "scratch_tokenizer"),
        **fields,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_pipeline(folder: Path, modality: str = "depth", scheduler: str = "v1-1", **fields) -> Path:
    """The same as a checkpoint folder in diffusers' layout."""
    pipeline(folder.parent, modality, scheduler, **fields).save_pretrained(folder)
    return folder


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(np.moveaxis(np.asarray(x), -1, 1), order="C"))


def nhwc(x: torch.Tensor) -> np.ndarray:
    return np.moveaxis(x.detach().numpy(), 1, -1)
