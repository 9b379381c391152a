"""One training step compared with PyTorch: seconds, samples per second, MFU and peak memory.

    python benchmarks/training_step.py                           the bundled model, on this machine's CPUs
    python benchmarks/training_step.py --full --alone --encode   Stable Diffusion 2, batch 1 at 480x640, 20 GB
    python benchmarks/training_step.py --full --batch_size 32 --dtype bfloat16 --remat blocks --compile

The last is meant for a GPU with 80 GB; both sides use a GPU if there is one. A step is the gradient of the paper's
objective on cached latents with Gaussian noise, and Adam. `--encode` first encodes images and depth with the frozen
VAE. PyTorch runs diffusers' UNet with the same configuration, fused Adam and, for bfloat16, autocast; `--remat` other
than none turns on gradient checkpointing there, and `--compile` applies torch.compile. After one first step each, which
compiles, the two take turns; the median is reported. MFU is the number of operations of our step, without
recomputation, divided by what the device could do in that time: the manufacturer's figure for bfloat16 or, on CPUs, the
fastest of ten products of two 2048x2048 matrices.
"""

import argparse
import datetime
import os
import resource
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from marigold_jax.diffusion.optimiser import iter_exponential, make_optimiser
from marigold_jax.diffusion.schedule import NoiseSchedule
from marigold_jax.hardware.chips import peak_flops
from marigold_jax.hardware.operations import flops
from marigold_jax.models import functional, unet, vae
from marigold_jax.training.objectives.contract import REMAT
from marigold_jax.training.objectives.diffusion import diffusion_objective
from marigold_jax.training.step import init_state, make_steps
from marigold_jax.weights.hub import resolve
from marigold_jax.weights.model_folder import load
from marigold_jax.weights.scratch import SCHEDULER

Step = Callable[[], float]  # takes one step and returns its loss
RATE, CELL = 3e-5, 8


def networks(full: bool) -> list[tuple[functional.Structure, functional.Params]]:
    """Structure and parameters of UNet and VAE: random at full size, otherwise those of the bundled model."""
    if full:
        makes = (lambda rngs: unet.UNet(unet.SD2, rngs)), (lambda rngs: vae.VAE(vae.SD2, rngs))
        return [functional.initialise(make) for make in makes]
    checkpoint = load(resolve(None))
    return [(part.structure, part.params) for part in (checkpoint.unet, checkpoint.vae)]


def make_batch(size: tuple[int, int, int], encode: bool) -> dict[str, np.ndarray]:
    """Random images (b, h, w), or latents of that size."""
    random, (b, h, w) = np.random.default_rng(0), size
    if encode:
        pixels = {key: random.uniform(-1, 1, (*size, c)).astype(np.float32) for key, c in (("rgb", 3), ("target", 1))}
        return pixels | {"mask": np.ones((*size, 1), bool)}
    latents = random.standard_normal((b, 2, h // CELL, w // CELL, 4), np.float32)
    return {"latents": latents, "latent_mask": np.ones((b, h // CELL, w // CELL, 1), bool)}


def jax_side(arguments: argparse.Namespace, batch: dict[str, np.ndarray]) -> tuple[Step, float]:
    """Our step, and its number of operations without recomputation."""
    (unet_structure, params), (vae_structure, vae_params) = networks(arguments.full)
    options = {"noise": "gaussian", "compute_dtype": jnp.dtype(arguments.dtype)}
    schedule = NoiseSchedule.from_config(SCHEDULER)
    objective, lean = (
        diffusion_objective(unet_structure, vae_structure, schedule, remat=remat, **options)
        for remat in (arguments.remat, "none")
    )
    optimiser = make_optimiser("adam", iter_exponential(RATE))
    state = init_state(params, optimiser)
    width = next(x.shape[0] for path, x in params.items() if path.endswith("attn2.to_k.kernel"))
    frozen = {"empty_prompt": jnp.zeros((2, width))} | ({"vae": vae_params} if arguments.encode else {})
    operations = flops(jax.grad(lean, has_aux=True), params, frozen, batch, jax.random.key(0))
    accumulate, update = make_steps(objective, optimiser, accumulation=1, seed=0)
    batch, steps = jax.device_put(batch), iter(range(10**6))

    def step() -> float:
        nonlocal state
        state, metrics = update(state, accumulate(None, state["params"], frozen, batch, next(steps), 0))
        return float(metrics["loss"])  # waits for the device

    return step, operations


def torch_side(arguments: argparse.Namespace, batch: dict[str, np.ndarray]) -> Step:
    """The same in PyTorch, with the modules of diffusers."""
    import diffusers
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    if arguments.full:
        sd2 = {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024, "use_linear_projection": True}
        net = diffusers.UNet2DConditionModel(in_channels=8, **sd2)
        encoder = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            layers_per_block=2,
        )
    else:
        folder = str(resolve(None))
        net = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32)
        encoder = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32)
    net = net.to(device, memory_format=torch.channels_last).train()
    if arguments.remat != "none":
        net.enable_gradient_checkpointing()
    encoder = encoder.to(device, memory_format=torch.channels_last).requires_grad_(False)
    optimiser = torch.optim.Adam(net.parameters(), RATE, fused=True)
    schedule = diffusers.DDIMScheduler.from_config(SCHEDULER.values)
    forward = torch.compile(net) if arguments.compile else net
    tensors = {key: torch.from_numpy(value).to(device) for key, value in batch.items()}
    half = torch.autocast(device, torch.bfloat16, enabled=arguments.dtype == "bfloat16")

    def latents_of() -> tuple[torch.Tensor, torch.Tensor]:
        if not arguments.encode:
            pairs = tensors["latents"].permute(1, 0, 4, 2, 3)
            return pairs[0], pairs[1]
        images = torch.cat([tensors["rgb"], tensors["target"].repeat(1, 1, 1, 3)]).permute(0, 3, 1, 2)
        with torch.no_grad(), half:
            latents = encoder.encode(images).latent_dist.mean * encoder.config.scaling_factor
        return latents.float().chunk(2)

    def step() -> float:
        rgb, target = latents_of()
        noise = torch.randn_like(target)
        t = torch.randint(0, schedule.config.num_train_timesteps, (len(target),), device=device)
        seen = torch.cat([rgb, schedule.add_noise(target, noise, t)], 1).contiguous(memory_format=torch.channels_last)
        with half:
            text = torch.zeros(len(target), 2, net.config.cross_attention_dim, device=device)
            output = forward(seen, t, text, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(output.float(), schedule.get_velocity(target, noise, t))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()  # waits for the device

    return step


def peak_here() -> tuple[float, str]:
    """Peak operations per second of this machine's devices, and the source of that figure."""
    kind, count = jax.devices()[0].device_kind, jax.device_count()
    if known := peak_flops(kind):
        return known * count, f"{known * count / 1e12:.0f} TFLOP/s by the manufacturer"
    matrix, seconds = jnp.ones((2048, 2048)), []
    for _ in range(10):
        started = time.perf_counter()
        (matrix @ matrix).block_until_ready()
        seconds.append(time.perf_counter() - started)
    measured = 2 * 2048**3 / min(seconds)
    return measured, f"{measured / 1e9:.0f} GFLOP/s measured with a matrix product"


def peak_gib() -> str:
    """Peak memory so far: of the accelerator (our side only), or of this process."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        return f"ours took {statistics['peak_bytes_in_use'] / 2**30:.1f} GiB of the device at most"
    return f"this process took {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB at most"


def seconds(step: Step) -> float:
    started = time.perf_counter()
    loss = step()
    assert np.isfinite(loss), loss
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the networks of Stable Diffusion 2, random")
    parser.add_argument("--alone", action="store_true", help="without PyTorch")
    parser.add_argument("--encode", action="store_true", help="encode in every step instead of using cached latents")
    parser.add_argument("--batch_size", type=int, help="(default: 8; with --full 1)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="(default: 96 128; 480 640)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--remat", choices=REMAT, default="none")
    parser.add_argument("--compile", action="store_true", help="torch.compile for PyTorch")
    parser.add_argument("--repeats", type=int, help="timed steps of each (default: 20; with --full 3)")
    arguments = parser.parse_args()
    count = arguments.batch_size or (1 if arguments.full else 8)
    size = (count, *(arguments.size or ((480, 640) if arguments.full else (96, 128))))
    batch = make_batch(size, arguments.encode)

    ours, operations = jax_side(arguments, batch)
    sides = {"ours": ours} if arguments.alone else {"PyTorch": torch_side(arguments, batch), "ours": ours}
    peak, source = peak_here()
    print(f"{datetime.date.today()}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}")
    print(f"batch {' x '.join(map(str, size))}, {'encoded in the step' if arguments.encode else 'latents'}, ", end="")
    print(f"{arguments.dtype}, remat {arguments.remat}, {operations / 1e12:.3g} TFLOP; {source}", flush=True)
    first = {name: seconds(step) for name, step in sides.items()}
    repeats = range(arguments.repeats or (3 if arguments.full else 20))
    taken = [{name: seconds(step) for name, step in sides.items()} for _ in repeats]
    median = {name: float(np.median([row[name] for row in taken])) for name in sides}
    for name, each in median.items():
        print(
            f"{name:8}{each:8.3f} s per step{count / each:9.2f} samples/s, MFU {operations / each / peak:.1%}, "
            f"first step {first[name]:.1f} s"
        )
    if not arguments.alone:
        print(f"ours is {median['PyTorch'] / median['ours']:.2f} times as fast")
    print(peak_gib())


if __name__ == "__main__":
    main()
