"""Speed of the data loader: training samples per second, with and without worker processes.

    python benchmarks/data_pipeline.py

Makes a synthetic dataset of 1024 x 768 PNG images and 16-bit depth (the size of Hypersim), prepares it, and reads it at
640 x 480, resized as in the official code and antialiased.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from marigold_jax import prepare
from marigold_jax.data.loader import make_loader


def write_frames(root: Path, frames: int) -> None:
    """Writes textured slopes with sensor noise, which have about as many bytes as rendered frames."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:768, :1024]
    for folder in ("rgb", "depth"):
        (root / folder).mkdir(parents=True)
    for index in tqdm(range(frames), desc="writing frames", disable=None):
        waves = 127 + 60 * np.sin(x / (20 + index)) + 40 * np.cos(y / 21)
        rgb = waves[..., None] + random.normal(0, 3, (768, 1024, 3))
        depth = 2000 + 2 * x + y + random.normal(0, 3, x.shape)
        Image.fromarray(rgb.clip(0, 255).astype(np.uint8)).save(root / "rgb" / f"{index:03d}.png")
        Image.fromarray(depth.astype(np.uint16)).save(root / "depth" / f"{index:03d}.png")


def measure(path: str, num_workers: int, antialias: bool, batch_size: int, seconds: float) -> tuple[float, float]:
    """Returns the seconds to the first batches, and the samples per second after that."""
    loader = make_loader(
        [(path, 1)], batch_size=batch_size, seed=0, size=(480, 640), num_workers=num_workers, antialias=antialias
    )
    start = time.perf_counter()
    for _ in range(1 + 3 * num_workers):  # use up what was read ahead while the workers started
        next(loader)
    first, batches = time.perf_counter() - start, 0
    start = time.perf_counter()
    while time.perf_counter() < start + seconds:
        next(loader)
        batches += 1
    elapsed = time.perf_counter() - start
    loader.close()
    return first, batches * batch_size / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--batch_size", type=int, default=2, help="the official micro-batch (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each measurement (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_frames(Path(folder, "raw"), args.frames)
        prepare.main(["folder", "--raw_dir", f"{folder}/raw", "--data_dir", folder, "--unit", "mm"])
        print(f"{os.cpu_count()} cores, batches of {args.batch_size}, 1024 x 768 -> 640 x 480")
        print("workers  rgb resize   start s  images/s")
        for num_workers in args.workers:
            for antialias in (False, True):
                first, rate = measure(f"{folder}/raw/train", num_workers, antialias, args.batch_size, args.seconds)
                print(f"{num_workers:7d}  {'antialiased' if antialias else 'nearest':11s}  {first:7.1f}  {rate:8.1f}")


if __name__ == "__main__":
    main()
