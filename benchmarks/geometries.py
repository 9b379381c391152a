"""How much `--bucket 64` changes predictions and how many programs it saves, compared with diffusers' way (bucket 8).

    python benchmarks/geometries.py --checkpoint NAME|DIR --input FOLDER

For each photograph, the two depth maps are compared after a least-squares scale and shift, as in Marigold's evaluation.
The column "other seed" shows how much different noise changes the same prediction.
"""

import argparse

import numpy as np

from marigold_jax import Marigold
from marigold_jax.data.images import find_images, read_image
from marigold_jax.inference.program import denoise


def difference(depth: np.ndarray, reference: np.ndarray) -> float:
    """Mean absolute difference after aligning `depth` to `reference`, over the spread of `reference`."""
    columns = np.stack([depth.ravel(), np.ones(depth.size)], axis=1).astype(np.float64)
    (scale, shift), *_ = np.linalg.lstsq(columns, reference.ravel().astype(np.float64))
    return float(np.abs(scale * depth + shift - reference).mean() / reference.std())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint")
    parser.add_argument("--input", nargs="+", required=True)
    parser.add_argument("--processing_res", type=int, help="longer side, in pixels (default: the checkpoint's own)")
    arguments = parser.parse_args()
    pipe = Marigold.from_pretrained(arguments.checkpoint)
    paths, _ = find_images(arguments.input)
    programs = {8: 0, 64: 0}
    rows = []
    for path in paths:
        try:
            image = read_image(path)
        except ValueError as error:
            print(error)
            continue
        maps = {}
        for bucket, seed in ((8, 0), (64, 0), (8, 1)):
            before = denoise._cache_size()
            maps[bucket, seed] = pipe(
                image, bucket=bucket, seed=seed, processing_resolution=arguments.processing_res
            ).prediction
            programs[bucket] += denoise._cache_size() - before
        if maps[8, 0].std() == 0:
            print(f"{path.name:32} left out: its depth is constant")
            continue
        rows.append([difference(maps[other], maps[8, 0]) for other in ((64, 0), (8, 1))])
        print(f"{path.name:32} bucket 64: {rows[-1][0]:.3f}   other seed: {rows[-1][1]:.3f}")
    bucket, seed = np.median(rows, axis=0)
    print(f"median of {len(rows)}: bucket 64 {bucket:.3f}, other seed {seed:.3f}")
    print(f"programs compiled: bucket 8: {programs[8]}, bucket 64: {programs[64]}")


if __name__ == "__main__":
    main()
