"""Scoring speed of `evaluate`: 654 saved predictions of 480x640, the size of NYUv2's test split.

    python benchmarks/scoring.py [--images 654]

Random photographs, depth and predictions are first written to a temporary folder in NYUv2's official layout, which is
not timed. Reading, decoding, alignment and all ten metrics are.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from marigold_jax.evaluate import saved
from marigold_jax.evaluation.benchmarks import BENCHMARKS, OfficialSplit
from marigold_jax.evaluation.scoring import means, score

SIZE = (480, 640)


def make(folder: Path, images: int) -> None:
    """Smooth depth and photographs, as compressible as real ones, and predictions with a little noise."""
    random = np.random.default_rng(0)
    container = folder / BENCHMARKS["nyu_v2"].container
    lines = []
    for index in range(images):
        coarse = random.uniform(1, 9, (12, 16)).astype(np.float32)
        depth = np.asarray(Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.BICUBIC)).clip(0.5, 9.5)
        photograph = np.uint8(depth[..., None] * [25, 20, 15] + random.integers(0, 8, (*SIZE, 3)))
        scene = container / "test" / f"scene_{index % 20:04d}"
        scene.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph).save(scene / f"rgb_{index:04d}.png", compress_level=1)
        Image.fromarray(np.uint16(depth * 1000)).save(scene / f"depth_{index:04d}.png", compress_level=1)
        name = f"test/{scene.name}/rgb_{index:04d}"
        prediction = folder / "maps" / f"{name}.npy"
        prediction.parent.mkdir(parents=True, exist_ok=True)
        np.save(prediction, (depth / 10 + 0.01 * random.normal(size=SIZE)).astype(np.float32))
        lines.append(f"{name}.png test/{scene.name}/depth_{index:04d}.png")
    file = folder / "data_split" / "nyu" / "labeled" / "filename_list_test.txt"
    file.parent.mkdir(parents=True)
    file.write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=654)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), arguments.images)
        split = OfficialSplit("nyu_v2", folder, Path(folder) / "data_split")
        look = saved(Path(folder) / "maps", split)
        started = time.perf_counter()
        scores = score(look, split, range(arguments.images), "least_square", allow_missing=False)
        seconds = time.perf_counter() - started
    height, width = SIZE
    rate = arguments.images / seconds
    print(f"{arguments.images} predictions of {height}x{width} scored in {seconds:.1f} s: {rate:.0f} images/s")
    print(f"AbsRel {means(scores)['abs_rel']:.4f}")


if __name__ == "__main__":
    main()
