"""One training step on latents that were kept, against one that encodes its images first.

    python benchmarks/latent_cache.py                        a small model, for two CPU cores
    python benchmarks/latent_cache.py --full --height 480 --width 640 --batch_size 16 --dtype bfloat16 --remat blocks

The second is Stable Diffusion 2 as the paper trains it, for a GPU of 80 GB.
Random weights, random pictures; gradient and Adam are the same in both. The best step after the first counts. Reading
is left out: `python benchmarks/data_pipeline.py` tells what pixels cost.
"""

import argparse
import datetime
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from marigold_jax.data.latents import to_record
from marigold_jax.models import functional, unet, vae
from marigold_jax.objectives.contract import REMAT, TARGETS
from marigold_jax.objectives.diffusion import diffusion_objective
from marigold_jax.optimiser import iter_exponential, make_optimiser
from marigold_jax.schedule import NoiseSchedule
from marigold_jax.training import init_state, make_steps
from marigold_jax.weights.scratch import SCHEDULER, scratch


def networks(full: bool) -> tuple[tuple[functional.Structure, functional.Params], ...]:
    """Structure and parameters of a UNet and a VAE."""
    if full:
        return (
            functional.initialise(lambda rngs: unet.UNet(unet.SD2, rngs)),
            functional.initialise(lambda rngs: vae.VAE(vae.SD2, rngs)),
        )
    small = scratch((48, 96, 192), cell=8, vae_widths=(16, 32, 64, 64))
    return tuple((part.structure, part.params) for part in (small.unet, small.vae))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the networks of Stable Diffusion 2")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--height", type=int, default=144)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--remat", choices=REMAT, default="none")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each, after one for compiling")
    arguments = parser.parse_args()

    (unet_structure, params), (vae_structure, vae_params) = networks(arguments.full)
    options = {"compute_dtype": jnp.dtype(arguments.dtype), "remat": arguments.remat}
    objective = diffusion_objective(unet_structure, vae_structure, NoiseSchedule.from_config(SCHEDULER), **options)
    optimiser = make_optimiser("adam", iter_exponential(3e-5))
    accumulate, update = make_steps(objective, optimiser, accumulation=1, seed=0)
    state = init_state(params, optimiser)
    width = next(x.shape[0] for path, x in params.items() if path.endswith("attn2.to_k.kernel"))
    del params

    random = np.random.default_rng(0)
    size = (arguments.batch_size, arguments.height, arguments.width)
    pixels = {
        "rgb": random.uniform(-1, 1, (*size, 3)).astype(np.float32),
        "target": random.uniform(-1, 1, (*size, 1)).astype(np.float32),
        "mask": np.ones((*size, 1), bool),
    }
    encode = jax.jit(lambda params, images: functional.merge(vae_structure, params).encode(images))
    images = (pixels["rgb"], TARGETS["depth"][1](pixels["target"]))
    latents = np.stack([np.asarray(encode(vae_params, image)) for image in images], axis=1)
    stored = {"latents": latents, "latent_mask": np.ones((*latents.shape[:1], *latents.shape[2:4], 1), bool)}
    prompt = {"empty_prompt": jnp.zeros((2, width))}

    print(f"{datetime.date.today()}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, ", end="")
    print(f"batch {' x '.join(map(str, size))}, {arguments.dtype}, remat {arguments.remat}", flush=True)
    best = {}
    for name, batch, frozen in (("pixels", pixels, prompt | {"vae": vae_params}), ("latents", stored, prompt)):
        seconds = []
        for step in range(arguments.steps + 1):
            started = time.perf_counter()
            state, metrics = update(state, accumulate(None, state["params"], frozen, batch, step, 0))
            float(metrics["loss"])  # waits for the device
            seconds.append(time.perf_counter() - started)
        best[name] = min(seconds[1:])
        print(f"{name:8}{best[name]:8.3f} s a step{arguments.batch_size / best[name]:9.2f} samples/s", flush=True)
    print(f"{best['pixels'] / best['latents']:.2f} times as fast")
    for dtype in ("float32", "bfloat16"):
        record = to_record(latents[0], stored["latent_mask"][0], dtype)
        print(f"a frame, as it is and mirrored, takes {2 * len(record) / 1000:.0f} kB as {dtype}")


if __name__ == "__main__":
    main()
