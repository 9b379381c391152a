"""Depth ensembling: accuracy against a known truth and time, compared with diffusers.

    python benchmarks/ensemble.py

Ten members of 576x768 in each of four toy ensembles, merged by diffusers' `MarigoldDepthPipeline.ensemble_depth` and by
both methods of `marigold_jax.ensemble`, all with their defaults, on the CPU. Errors are taken after a least-squares
affine fit of the merged map to the truth, as usual for affine-invariant depth. Times are those of a call as users make
it, the best of several (diffusers: of one). The first call of each method compiles, and is listed separately. Needs
diffusers, torch and SciPy; takes about two minutes.
"""

import argparse
import os
import platform
import time
from datetime import date

import numpy as np

MEMBERS = 10
NOISE = 0.03


def depth_scene(height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """A room with six boxes in it; depth in [0.1, 1]."""
    rows, columns = (np.arange(height)[:, None] + 0.5) / height, (np.arange(width)[None] + 0.5) / width
    depth = 1 - 0.6 * np.abs(rows - 0.45) - 0.25 * columns
    for _ in range(6):
        centre, half, near = (
            generator.uniform(0.2, 0.9, 2),
            generator.uniform(0.05, 0.2, 2),
            generator.uniform(0.1, 0.6),
        )
        box = (np.abs(rows - centre[0]) < half[0]) & (np.abs(columns - centre[1]) < half[1])
        depth = np.where(box, np.minimum(depth, near + 0.1 * columns), depth)
    return 0.1 + 0.9 * (depth - depth.min()) / np.ptp(depth)


def low_frequency(height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """A random smooth map of at most one wave across, mean 0 and deviation 1."""
    rows, columns = np.pi * np.arange(height)[:, None] / height, np.pi * np.arange(width)[None] / width
    waves = [(i, j) for i in range(3) for j in range(3) if i + j]
    phases = np.pi * generator.uniform(size=(len(waves), 2))
    weights = generator.normal(size=len(waves))
    field = sum(
        weight * np.cos(i * rows + phase[0]) * np.cos(j * columns + phase[1])
        for (i, j), weight, phase in zip(waves, weights, phases, strict=True)
    )
    return (field - field.mean()) / field.std()


def toy_ensemble(kind: str, height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(truth, members): the truth under random scales and shifts with pixel noise, and what `kind` adds to that."""
    generator = np.random.default_rng(seed)
    truth = depth_scene(height, width, generator)
    shape = (MEMBERS, height, width)
    scale, shift = generator.uniform(0.6, 1.0, (MEMBERS, 1, 1)), generator.uniform(0.0, 0.2, (MEMBERS, 1, 1))
    members = scale * truth + shift + NOISE * generator.normal(size=shape)
    if kind == "outliers":  # two pixels in a thousand are anything from -0.5 to 1.5
        members = np.where(generator.random(shape) < 0.002, generator.uniform(-0.5, 1.5, shape), members)
    elif kind == "drift":  # a smooth error of the size of the noise
        members += NOISE * np.stack([low_frequency(height, width, generator) for _ in range(MEMBERS)])
    elif kind == "broken":  # two members are unrelated to the scene
        for member in range(2):
            noise = NOISE * generator.normal(size=(height, width))
            members[member] = 0.5 + 0.2 * low_frequency(height, width, generator) + noise
    return truth.astype(np.float32), members.astype(np.float32)


KINDS = ("noise", "outliers", "drift", "broken")


def fitted_errors(depth: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """(RMSE, AbsRel) after the affine least-squares fit of depth to truth."""
    depth, truth = depth.astype(np.float64).ravel(), truth.astype(np.float64).ravel()
    fitted = np.polyval(np.polyfit(depth, truth, 1), depth)
    return float(np.sqrt(np.mean((fitted - truth) ** 2))), float(np.mean(np.abs(fitted - truth) / truth))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=576)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=10, help="calls of ours; the fastest is reported")
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

    import diffusers
    import jax
    import jax.numpy as jnp
    import torch

    from marigold_jax.ensemble import ensemble_depth

    def call(method, maps):
        start = time.perf_counter()
        depth, _ = jax.block_until_ready(ensemble_depth(maps, method=method))
        return depth, time.perf_counter() - start

    methods = ("eigen", "bfgs")
    example = jnp.asarray(np.random.default_rng(0).random((MEMBERS, arguments.height, arguments.width), np.float32))
    first_seconds = {method: call(method, example)[1] for method in methods}

    def run_diffusers(members):
        start = time.perf_counter()
        depth, _ = diffusers.MarigoldDepthPipeline.ensemble_depth(
            torch.from_numpy(members)[:, None], output_uncertainty=True
        )
        return depth[0, 0].numpy(), time.perf_counter() - start

    def run_ours(method, members):
        calls = [call(method, jnp.asarray(members)) for _ in range(arguments.repeats)]
        return np.asarray(calls[0][0]), min(seconds for _, seconds in calls)

    print(f"{date.today()}  {platform.machine()}, {os.cpu_count()} cores  jax {jax.__version__}, ", end="")
    print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
    print(f"{MEMBERS} members of {arguments.height}x{arguments.width}, with uncertainty; the first call ", end="")
    print(", ".join(f"{method} {seconds:.2f} s" for method, seconds in first_seconds.items()))
    print(f"\n{'ensemble':10s} {'method':10s} {'RMSE':>8s} {'AbsRel':>8s} {'seconds':>9s} {'faster':>8s}")
    for seed, kind in enumerate(KINDS):
        truth, members = toy_ensemble(kind, arguments.height, arguments.width, seed)
        rows = {"diffusers": run_diffusers(members)} | {method: run_ours(method, members) for method in methods}
        for method, (depth, seconds) in rows.items():
            rmse, absrel = fitted_errors(depth, truth)
            faster = f"{rows['diffusers'][1] / seconds:7.0f}x"
            print(f"{kind:10s} {method:10s} {rmse:8.5f} {absrel:8.5f} {seconds:9.4f} {faster}", flush=True)


if __name__ == "__main__":
    main()
