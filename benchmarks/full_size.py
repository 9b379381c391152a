"""Stable Diffusion 2 at full size (866 M + 84 M parameters), compared with diffusers: same weights, image and noise.

    python benchmarks/full_size.py                   512 px, 1 step: parity, wall time and peak memory
    python benchmarks/full_size.py --modules         also the time of UNet, encoder and decoder one by one
    python benchmarks/full_size.py --steps 4 --resolution 768

The weights are random (norm scales too) and are written once to a temporary folder of 5 GB. Each side runs in its own
process, with the same number of threads, in float32, PyTorch in channels_last. After one warm-up call the two take
turns, so that other load on the machine affects both; the fastest of three calls is reported.
"""

import argparse
import datetime
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def make_checkpoint(folder: Path) -> None:
    sys.path.insert(0, str(HERE.parent / "tests"))
    import diffusers
    import oracle

    pipe = diffusers.MarigoldDepthPipeline(
        unet=oracle.randomise(
            diffusers.UNet2DConditionModel(
                in_channels=8,
                attention_head_dim=(5, 10, 20, 20),
                cross_attention_dim=1024,
                use_linear_projection=True,
            ),
            seed=1,
        ),
        vae=oracle.vae(block_out_channels=(128, 256, 512, 512), norm_num_groups=32, layers_per_block=2),
        scheduler=oracle.SCHEDULERS["v1-1"](),
        text_encoder=oracle.text_encoder(hidden_size=1024, num_hidden_layers=1, num_attention_heads=16),
        tokenizer=oracle.tokenizer(folder.parent / "tokenizer"),
        prediction_type="depth",
        default_denoising_steps=1,
        default_processing_resolution=768,
    )
    pipe.save_pretrained(folder)


def inputs(resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """A photograph-like image (3:4), and initial latents."""
    height, width = resolution * 3 // 4, resolution
    y, x = np.mgrid[0:height, 0:width] / resolution
    image = np.stack([np.sin(9 * x + 5 * y), np.cos(7 * x * y + 2), np.sin(20 * y)], axis=-1) / 2 + 0.5
    latents = np.random.default_rng(0).normal(size=(1, height // 8, width // 8, 4))
    return (image * 255).astype(np.uint8), latents.astype(np.float32)


def torch_side(checkpoint: Path, resolution: int, steps: int) -> dict:
    """The calls to time, by name; "prediction" returns the depth map."""
    import diffusers
    import torch

    torch.set_num_threads(os.cpu_count())
    torch.set_grad_enabled(False)
    pipe = diffusers.MarigoldDepthPipeline.from_pretrained(checkpoint)
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)
    pipe.set_progress_bar_config(disable=True)
    image, latents = inputs(resolution)
    picture, noise = Image.fromarray(image), torch.from_numpy(latents).permute(0, 3, 1, 2)
    options = {"num_inference_steps": steps, "processing_resolution": resolution, "latents": noise}
    pixels = (torch.from_numpy(image)[None] / 255).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    both = torch.cat([noise, noise], 1).contiguous(memory_format=torch.channels_last)
    text = torch.zeros(1, 2, 1024)
    return {
        "prediction": lambda: pipe(picture, **options).prediction,
        "encoder": lambda: pipe.vae.encode(pixels),
        "UNet": lambda: pipe.unet(both, 999, text),
        "decoder": lambda: pipe.vae.decode(noise),
    }


def jax_side(checkpoint: Path, resolution: int, steps: int) -> dict:
    import jax
    import jax.numpy as jnp

    from marigold_jax import Marigold
    from marigold_jax.models import functional

    pipe = Marigold.from_pretrained(checkpoint)
    jax.block_until_ready(pipe.params)
    image, latents = inputs(resolution)
    picture, noise = Image.fromarray(image), jnp.asarray(latents)
    options = {"num_inference_steps": steps, "processing_resolution": resolution, "latents": latents}
    unet, vae = pipe.structures
    apply_unet = jax.jit(lambda p, *inputs: functional.merge(unet, p)(*inputs))
    encode = jax.jit(lambda p, x: functional.merge(vae, p).encode(x))
    decode = jax.jit(lambda p, z: functional.merge(vae, p).decode(z))
    pixels = jnp.asarray(image / 255, jnp.float32)[None]
    both, t, text = jnp.concatenate([noise, noise], -1), jnp.asarray([999]), jnp.zeros((1, 2, 1024))
    return {
        "prediction": lambda: pipe(picture, **options).prediction,
        "encoder": lambda: encode(pipe.params["vae"], pixels).block_until_ready(),
        "UNet": lambda: apply_unet(pipe.params["unet"], both, t, text).block_until_ready(),
        "decoder": lambda: decode(pipe.params["vae"], noise).block_until_ready(),
    }


SIDES = {"diffusers": torch_side, "ours": jax_side}


def serve(side: str, out: Path, *arguments) -> None:
    """For each line of standard input, the name of a call, prints its seconds and the peak memory of this process."""
    started = time.perf_counter()
    calls = SIDES[side](*arguments)
    print("REPORT", time.perf_counter() - started, peak_gib(), flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        result = calls[line.strip()]()
        print("REPORT", time.perf_counter() - started, peak_gib(), flush=True)
        if line.strip() == "prediction":
            np.save(out, result)


class Side:
    """A process that runs one side."""

    def __init__(self, side: str):
        command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.loading, self.loaded = self.answer()

    def call(self, name: str) -> tuple[float, float]:
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> tuple[float, float]:
        for line in self.process.stdout:
            if line.startswith("REPORT"):
                seconds, peak = map(float, line.split()[1:])
                return seconds, peak
        raise SystemExit("a side stopped early; its message is above")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--modules", action="store_true")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "marigold_jax_full_size")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    checkpoint = arguments.scratch / "checkpoint"
    maps = {side: arguments.scratch / f"{side}.npy" for side in SIDES}
    if arguments.side:
        serve(arguments.side, maps[arguments.side], checkpoint, arguments.resolution, arguments.steps)
        return

    if not (checkpoint / "model_index.json").is_file():
        make_checkpoint(checkpoint)
    sides = {name: Side(name) for name in SIDES}
    first = {name: side.call("prediction") for name, side in sides.items()}
    rows = {}
    for call in ["prediction", "encoder", "UNet", "decoder"] if arguments.modules else ["prediction"]:
        if call != "prediction":
            for side in sides.values():
                side.call(call)
        rounds = [{name: side.call(call)[0] for name, side in sides.items()} for _ in range(3)]
        rows[f"{call}, s"] = [min(seconds[name] for seconds in rounds) for name in SIDES]
    rows["first prediction, s"] = [first[name][0] for name in SIDES]
    rows["loading, s"] = [side.loading for side in sides.values()]
    rows["peak while loading, GiB"] = [side.loaded for side in sides.values()]
    rows["peak of a prediction, GiB"] = [first[name][1] for name in SIDES]

    size = sum(file.stat().st_size for file in checkpoint.glob("*/diffusion_pytorch_model.safetensors")) / 2**30
    theirs, ours = (np.load(maps[name]) for name in SIDES)
    print(f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, {arguments.resolution} px, ", end="")
    print(f"{arguments.steps} step(s), float32; checkpoint {size:.2f} GiB")
    print(f"depth: largest difference {np.abs(ours - theirs).max():.1e}, spread {ours.std():.3f}")
    print(f"{'':28}{'diffusers':>10}{'ours':>10}{'ratio':>8}")
    for name, (a, b) in rows.items():
        print(f"{name:28}{a:10.2f}{b:10.2f}{b / a:8.2f}")


if __name__ == "__main__":
    main()
