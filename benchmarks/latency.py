"""Predictions of one checkpoint compared with diffusers: latency by steps and ensemble size, and throughput.

    python benchmarks/latency.py                                       the bundled model, on this machine's CPUs
    python benchmarks/latency.py --checkpoint prs-eth/marigold-depth-v1-1 --dtype bfloat16 --compile

The second is meant for a GPU; both sides use a GPU if there is one. The image has 768x576 pixels and is processed at
that size. After one first call each, which compiles and is reported separately, the two take turns; the median is
reported. Each side aligns ensembles with its own default. The last line predicts several images in one call.
`--compile` applies torch.compile to diffusers.
"""

import argparse
import datetime
import os
import time

import jax
import numpy as np
from PIL import Image

CASES = ((1, 1, 1), (4, 1, 1), (50, 1, 1), (1, 10, 1), (1, 1, 8))  # (denoising steps, members, pictures)
SIZE = (768, 576)  # (width, height)


def torch_side(checkpoint: str, dtype: str, compiled: bool):
    import diffusers
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(os.cpu_count())
    pipe = diffusers.MarigoldDepthPipeline.from_pretrained(checkpoint, torch_dtype=getattr(torch, dtype)).to(device)
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae):
        part.to(memory_format=torch.channels_last)
    if compiled:
        pipe.unet = torch.compile(pipe.unet)
        pipe.vae.decode = torch.compile(pipe.vae.decode)

    def predict(pictures: list[Image.Image], steps: int, members: int) -> None:
        options = {"num_inference_steps": steps, "ensemble_size": members, "processing_resolution": SIZE[0]}
        together = len(pictures) * members if device == "cuda" else 1  # through the UNet, as ours by default
        options |= {"batch_size": together, "generator": torch.Generator(device).manual_seed(0)}
        pipe(pictures, **options).prediction  # noqa: B018

    return predict, f"torch {torch.__version__} on {device}, diffusers {diffusers.__version__}"


def jax_side(checkpoint: str, dtype: str):
    from marigold_jax import Marigold

    pipe = Marigold.from_pretrained(checkpoint, dtype=dtype)

    def predict(pictures: list[Image.Image], steps: int, members: int) -> None:
        pipe(pictures, num_inference_steps=steps, ensemble_size=members, processing_resolution=SIZE[0])

    return predict, f"jax {jax.__version__} on {jax.devices()[0].device_kind}"


def seconds(predict, *arguments) -> float:
    started = time.perf_counter()
    predict(*arguments)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="a diffusers folder or a Hugging Face id (default: the bundled model)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile for diffusers")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls of each (default: 3)")
    arguments = parser.parse_args()

    from marigold_jax.runs.run_folder import locate

    folder = str(locate(arguments.checkpoint))
    sides = (torch_side(folder, arguments.dtype, arguments.compile), jax_side(folder, arguments.dtype))
    width, height = SIZE
    y, x = np.mgrid[0:height, 0:width] / width
    waves = np.stack([np.sin(9 * x + 5 * y), np.cos(7 * x * y + 2), np.sin(20 * y)], axis=-1)
    picture = Image.fromarray(np.uint8(127.5 * waves + 128))

    print(f"{datetime.date.today()}, {os.cpu_count()} cores, {arguments.dtype}, {width}x{height}")
    print("; ".join(name for _, name in sides))
    print(f"{'':24}{'diffusers, s':>14}{'ours, s':>10}{'times as fast':>15}{'first calls, s':>18}")
    for steps, members, count in CASES:
        case = [picture] * count, steps, members
        first = [seconds(predict, *case) for predict, _ in sides]
        taken = [[seconds(predict, *case) for predict, _ in sides] for _ in range(arguments.repeats)]
        theirs, ours = np.median(taken, axis=0)
        title = f"{steps} step{'s' * (steps > 1)}" + (f", ensemble of {members}" if members > 1 else "")
        title += f", {count} pictures" if count > 1 else ""
        print(f"{title:24}{theirs:14.3f}{ours:10.3f}{theirs / ours:15.2f}{first[0]:10.1f}{first[1]:8.1f}", flush=True)


if __name__ == "__main__":
    main()
