"""Accuracy and time by number of denoising steps: the table of arXiv 2409.11355, on any prepared dataset.

    python benchmarks/few_steps.py --diffusion runs/rooms --lcm runs/lcm --end_to_end marigold-rooms \\
        --dataset rooms --data_dir data

Works for depth and for normals checkpoints. A checkpoint trained with the diffusion objective is run with 50 steps and
an ensemble of ten, with ten steps, and with one leading and one trailing step; a distilled checkpoint with one step and
with four; an end-to-end fine-tuned checkpoint with one. Times are seconds per image, one image at a time, from pixels
to prediction, without the first image (which compiles).
"""

import argparse
import dataclasses
import datetime
import os
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from marigold_jax import Marigold
from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.evaluation.scoring import QUANTITIES, means, score, spread, table
from marigold_jax.runs.run_folder import locate
from marigold_jax.runtime import compilation_cache
from marigold_jax.weights import model_folder


class Row(NamedTuple):
    """A way to predict: which checkpoint, how many steps and members, and the spacing of timesteps (None: its own)."""

    title: str
    checkpoint: str
    steps: int
    members: int
    spacing: str | None


ROWS = (
    Row("diffusion, 50 steps, ensemble of 10", "diffusion", 50, 10, "trailing"),
    Row("diffusion, 10 steps", "diffusion", 10, 1, "trailing"),
    Row("diffusion, 1 leading step", "diffusion", 1, 1, "leading"),
    Row("diffusion, 1 trailing step", "diffusion", 1, 1, "trailing"),
    Row("LCM, 1 step", "lcm", 1, 1, None),
    Row("LCM, 4 steps", "lcm", 4, 1, None),
    Row("end to end, 1 step", "end_to_end", 1, 1, None),
)


def load(name: str, spacing: str | None) -> Marigold:
    loaded = model_folder.load(locate(name))
    spaced = {} if spacing is None else {"timestep_spacing": spacing}
    return Marigold(dataclasses.replace(loaded, scheduler=loaded.scheduler.replace(spaced)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    for name in dict.fromkeys(row.checkpoint for row in ROWS):
        add(f"--{name}", metavar="NAME|DIR", help="a checkpoint; without it, its rows are left out")
    add("--dataset", required=True, metavar="NAME", help="a dataset made by `prepare`")
    add("--data_dir", type=Path, required=True, metavar="DIR")
    add("--split", default="test")
    add("--limit", type=int, default=100, help="number of images to score, evenly spread (default: 100)")
    add("--seed", type=int, default=1234)
    arguments = parser.parse_args()
    rows = [row for row in ROWS if getattr(arguments, row.checkpoint)]
    if not rows:
        parser.error("name at least one checkpoint: --diffusion, --lcm or --end_to_end")

    compilation_cache.enable_cache()
    split = PreparedSplit(str(arguments.data_dir / arguments.dataset / arguments.split))
    indices = spread(split, arguments.limit)
    lines = []
    for row in rows:
        pipe = load(getattr(arguments, row.checkpoint), row.spacing)
        quantity = QUANTITIES[pipe.modality.name]
        options = {"num_inference_steps": row.steps, "ensemble_size": row.members, "seed": arguments.seed}
        pipe(split[indices[0]]["rgb"], **options)
        predictions, seconds = {}, []
        for index in tqdm(indices, row.title, unit="image", disable=None, leave=False):
            rgb = split[index]["rgb"]
            started = time.perf_counter()
            predictions[index] = pipe(rgb, **options).prediction[0]
            seconds.append(time.perf_counter() - started)
        scores = score(predictions.get, split, indices, quantity.alignments[0], allow_missing=False, quantity=quantity)
        first, second = quantity.headline
        values, mean = [one[first] for one in scores.values()], means(scores)
        error = float(np.std(values) / len(values) ** 0.5)
        lines.append([row.title, mean[first], error, mean[second], float(np.median(seconds))])
    device = jax.devices()[0].device_kind
    print(f"{datetime.date.today()}, {device}, {os.cpu_count()} cores, jax {jax.__version__}; {len(indices)} images")
    first, second = quantity.headline
    print(table([quantity.name, first, "standard error", second, "s per image"], lines))


if __name__ == "__main__":
    main()
