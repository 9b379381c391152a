"""One full-size training step of Stable Diffusion 2: seconds, samples a second and peak memory.

    python benchmarks/training_step.py                                        batch 1 at 480x640, float32
    python benchmarks/training_step.py --batch_size 32 --dtype bfloat16 --remat blocks      on a GPU of 80 GB

Random weights, random pictures; encoding with the frozen VAE, gradient, Adam. The second step and those after it count;
on GPUs and TPUs the device's own peak is printed, elsewhere the process's.
"""

import argparse
import datetime
import os
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np

from marigold_jax.models import functional, unet, vae
from marigold_jax.objectives.contract import REMAT
from marigold_jax.objectives.diffusion import diffusion_objective
from marigold_jax.optimiser import iter_exponential, make_optimiser
from marigold_jax.schedule import NoiseSchedule
from marigold_jax.training import init_state, make_steps

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "clip_sample": False,
}


def peak_gib() -> float:
    statistics = jax.local_devices()[0].memory_stats() or {}
    on_host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return statistics.get("peak_bytes_in_use", on_host) / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--remat", choices=REMAT, default="none")
    parser.add_argument("--steps", type=int, default=2, help="timed steps, after one for compiling")
    arguments = parser.parse_args()

    unet_structure, params = functional.initialise(lambda rngs: unet.UNet(unet.SD2, rngs))
    vae_structure, vae_params = functional.initialise(lambda rngs: vae.VAE(vae.SD2, rngs))
    schedule = NoiseSchedule.from_config(SCHEDULER)
    options = {"compute_dtype": jnp.dtype(arguments.dtype), "remat": arguments.remat}
    objective = diffusion_objective(unet_structure, vae_structure, schedule, **options)
    optimiser = make_optimiser("adam", iter_exponential(3e-5))
    state = init_state(params, optimiser)
    del params
    accumulate, update = make_steps(objective, optimiser, accumulation=1, seed=0)

    random = np.random.default_rng(0)
    size = (arguments.batch_size, arguments.height, arguments.width)
    batch = {
        "rgb": random.uniform(-1, 1, (*size, 3)).astype(np.float32),
        "target": random.uniform(-1, 1, (*size, 1)).astype(np.float32),
        "mask": np.ones((*size, 1), bool),
    }
    frozen = {"vae": vae_params, "empty_prompt": jnp.zeros((2, unet.SD2.cross_attention_dim))}
    seconds = []
    for step in range(arguments.steps + 1):
        started = time.perf_counter()
        state, metrics = update(state, accumulate(None, state["params"], frozen, batch, step, 0))
        loss = float(metrics["loss"])
        seconds.append(time.perf_counter() - started)
        print(f"step {step}: loss {loss:.4f}, {seconds[-1]:.2f} s", flush=True)
    fastest = min(seconds[1:])
    device = jax.devices()[0].device_kind
    print(f"{datetime.date.today()}, {device}, {os.cpu_count()} cores, batch {' x '.join(map(str, size))}, ", end="")
    print(f"{arguments.dtype}, remat {arguments.remat}")
    print(f"{fastest:.2f} s a step, {arguments.batch_size / fastest:.3f} samples/s, peak {peak_gib():.1f} GiB")


if __name__ == "__main__":
    main()
