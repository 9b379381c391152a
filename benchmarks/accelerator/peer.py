"""The same in PyTorch: diffusers' Marigold pipeline and a plain training step of its UNet, with random weights.

As fast as it goes without other packages: bfloat16, channels_last, scaled_dot_product_attention (diffusers' default),
torch.compile of the UNet and of the VAE's two halves, fused Adam. The text encoder is replaced by its output.
"""

import functools
import gc
import resource
from collections.abc import Iterator

import diffusers
import torch
from networks import CELL, PROMPT_TOKENS, SIZES, Size, picture, training_batches
from timing import Case, attempt, first_that_fits, timed, while_it_gains

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def device() -> Case:
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    return {"platform": DEVICE, "kind": name}


def memory() -> Case:
    """The peak so far: what PyTorch has taken from the device, or the memory of this process."""
    if DEVICE == "cuda":
        return {"peak_bytes": torch.cuda.max_memory_allocated()}
    return {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def compiles(size: Size) -> bool:
    """torch.compile pays where there is a GPU; a small run would spend its time with it."""
    return DEVICE == "cuda" and size is not SIZES["small"]


def unet(size: Size, dtype: torch.dtype) -> diffusers.UNet2DConditionModel:
    with torch.device(DEVICE):  # diffusers' own random weights, drawn on the device
        network = diffusers.UNet2DConditionModel(**size.unet)
    return network.to(dtype=dtype, memory_format=torch.channels_last)


def vae(size: Size) -> diffusers.AutoencoderKL:
    with torch.device(DEVICE):
        network = diffusers.AutoencoderKL(**size.vae)
    return network.to(dtype=torch.bfloat16, memory_format=torch.channels_last).requires_grad_(False)


# ---------------------------------------------------------------------------------------------------------- predictions


class Predictor:
    """`MarigoldDepthPipeline` in bfloat16, and a picture of the size that is measured."""

    def __init__(self, size: Size):
        torch.set_grad_enabled(False)
        self.size = size
        self.pipe = diffusers.MarigoldDepthPipeline(
            unet=unet(size, torch.bfloat16).eval(),
            vae=vae(size).eval(),
            scheduler=diffusers.DDIMScheduler(**SCHEDULE),
            text_encoder=None,
            tokenizer=None,
            prediction_type="depth",
        )
        width = size.unet["cross_attention_dim"]
        self.pipe.empty_text_embedding = torch.randn(1, PROMPT_TOKENS, width, device=DEVICE, dtype=torch.bfloat16)
        self.pipe.set_progress_bar_config(disable=True)
        if compiles(size):
            for part in (self.pipe.unet, self.pipe.vae.encoder, self.pipe.vae.decoder):
                part.compile()
        self.picture = picture(size)

    def call(self, steps: int, members: int, batch: int) -> None:
        self.pipe(
            [self.picture] * batch,
            num_inference_steps=steps,
            ensemble_size=members,
            processing_resolution=max(self.size.picture),
            batch_size=batch * members,
        )

    def case(self, steps: int = 1, members: int = 1, batch: int = 1) -> Case:
        def measure() -> Case:
            found = timed(lambda: self.call(steps, members, batch), self.size.seconds)
            return found | memory() | {"compiled": compiles(self.size)}

        return attempt({"steps": steps, "members": members, "batch": batch}, measure)


def latency(size: Size) -> Iterator[Case]:
    predictor = Predictor(size)
    for steps in size.steps:
        yield predictor.case(steps=steps)


def ensemble(size: Size) -> Iterator[Case]:
    yield Predictor(size).case(members=size.members)


def throughput(size: Size) -> Iterator[Case]:
    predictor = Predictor(size)
    yield from while_it_gains(predictor.case(batch=batch) for batch in size.batches)


# ------------------------------------------------------------------------------------------------------------- training


class Trainer:
    """Gradient and Adam of the denoising objective, with float32 weights and bfloat16 autocast."""

    def __init__(self, size: Size, batch: int, latents: bool):
        self.size, self.latents, (height, width) = size, latents, size.training
        self.net = unet(size, torch.float32).train()
        self.net.enable_gradient_checkpointing()  # ours recomputes its blocks too: configs/hypersim_vkitti.py
        self.vae = None if latents else vae(size)
        self.optimiser = torch.optim.Adam(self.net.parameters(), 3e-5, fused=True)
        self.schedule = diffusers.DDIMScheduler(**SCHEDULE)
        self.forward = torch.compile(self.net) if compiles(size) else self.net
        shape = (2 * batch, 4, height // CELL, width // CELL) if latents else (2 * batch, 3, height, width)
        self.pairs = torch.randn(shape, device=DEVICE)
        self.text = torch.randn(batch, PROMPT_TOKENS, size.unet["cross_attention_dim"], device=DEVICE)

    def call(self) -> None:
        pairs = self.pairs
        if self.vae is not None:
            with torch.no_grad():
                encoded = self.vae.encode(pairs.to(torch.bfloat16)).latent_dist.mean
            pairs = encoded.float() * self.vae.config.scaling_factor
        rgb, target = pairs.chunk(2)
        noise = torch.randn_like(target)
        t = torch.randint(0, self.schedule.config.num_train_timesteps, (len(target),), device=DEVICE)
        seen = torch.cat([rgb, self.schedule.add_noise(target, noise, t)], 1)
        with torch.autocast(DEVICE, torch.bfloat16):
            output = self.forward(seen.contiguous(memory_format=torch.channels_last), t, self.text, return_dict=False)
        loss = torch.nn.functional.mse_loss(output[0].float(), self.schedule.get_velocity(target, noise, t))
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        loss.item()  # waits for the device


def _training(latents: bool, size: Size) -> Iterator[Case]:
    def case(batch: int) -> Case:
        def measure() -> Case:
            gc.collect()
            torch.cuda.empty_cache()
            found = timed(Trainer(size, batch, latents).call, size.seconds)
            return found | memory() | {"compiled": compiles(size), "optimiser": "adam", "remat": "blocks"}

        return attempt({"batch": batch, "latents": latents}, measure)

    total = torch.cuda.get_device_properties(0).total_memory if DEVICE == "cuda" else None
    return first_that_fits(map(case, training_batches(size, total)))


training_latents = functools.partial(_training, True)
training_images = functools.partial(_training, False)
