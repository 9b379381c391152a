"""Scores of estimators over a dataset, and what is written of them."""

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from marigold_jax.data import panels
from marigold_jax.data.benchmarks import OfficialSplit, fitted_columns
from marigold_jax.data.frames import BadFrame
from marigold_jax.data.predictions import save
from marigold_jax.data.sources import PreparedSplit
from marigold_jax.metrics import ALIGNMENTS, METRICS, SMALLEST_DEPTH, depth_scores

Map = Float[np.ndarray, "h w 1"]
Look = Callable[[int], Map | None]  # the prediction for image number i of a split; None where it is missing
Split = PreparedSplit | OfficialSplit
Example = dict[str, np.ndarray]
WORST = 10
THREADS = os.cpu_count() or 1  # decoding and NumPy leave the interpreter alone


def score(
    look: Look, split: Split, indices: Sequence[int], alignment: str, allow_missing: bool
) -> dict[int, dict[str, float]]:
    """The scores of each image, by its number.

    Raises ValueError, naming an image, where predictions or images are missing and that is not allowed, where one is
    broken, and where nothing is left to score.
    """

    def one(index: int) -> dict[str, float] | str:
        """The scores of an image, none where no pixel is valid, or what is missing."""
        name, prediction = split.name_of(index), look(index)
        if prediction is None:
            return f"the prediction for {name}"
        try:
            example = split[index]
        except BadFrame as error:
            return f"{error.kind}: {error.detail}"
        depth, mask = example["depth"], example["mask"]
        if prediction.shape != depth.shape or not np.isfinite(prediction[mask]).all():
            raise ValueError(
                f"{name}: wanted finite numbers of shape {depth.shape[:2]}; the prediction has shape "
                f"{prediction.shape[:2]}"
            )
        metres = aligned(prediction, example, split, alignment) if mask.any() else None
        return {} if metres is None else depth_scores(metres, depth, mask, list(METRICS))

    with ThreadPoolExecutor(THREADS) as pool:
        try:
            results = list(
                tqdm(pool.map(one, indices), "scoring", len(indices), unit="image", disable=None, leave=False)
            )
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    missing = [result for result in results if isinstance(result, str)]
    scored = zip(indices, results, strict=True)
    scores = {index: result for index, result in scored if isinstance(result, dict) and result}
    if missing and not allow_missing:
        raise ValueError(f"{len(missing)} images cannot be scored ({missing[0]}); --allow_missing leaves them out")
    if not scores:
        raise ValueError(f"{split.path}: there is nothing to score")
    return scores


def aligned(prediction: Map, example: Example, split: Split, alignment: str) -> Map:
    """The prediction in metres: fitted to the truth, and clipped to the depths that count in the dataset."""
    fit = (slice(None), fitted_columns(prediction.shape[1], split.alignment_width))
    metres = ALIGNMENTS[alignment](prediction, example["depth"], example["mask"], fit)
    return np.maximum(np.clip(metres, *split.limits), SMALLEST_DEPTH)


def means(scores: dict[int, dict[str, float]]) -> dict[str, float]:
    """Over images, each counting alike."""
    return {name: float(np.mean([one[name] for one in scores.values()])) for name in METRICS}


def report(folder: Path, split: Split, look: Look, scores: dict[int, dict], settings: dict[str, Any]) -> None:
    """Writes metrics.json, per_sample.csv and worst.png."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["name", *METRICS])
    writer.writerows([split.name_of(index), *(repr(value) for value in one.values())] for index, one in scores.items())
    save(folder / "per_sample.csv", lines.getvalue().encode())
    worst = sorted(scores, key=lambda index: -scores[index]["abs_rel"])[:WORST]
    examples = [split[index] for index in worst]
    maps = [
        aligned(look(index), example, split, settings["alignment"])
        for index, example in zip(worst, examples, strict=True)
    ]
    rgb, depth, mask = ([example[key] for example in examples] for key in ("rgb", "depth", "mask"))
    save(folder / "worst.png", panels.png(panels.depth_panel(rgb, depth, maps, mask)))
    summary = {"images": len(scores), **means(scores), "settings": settings}
    save(folder / "metrics.json", json.dumps(summary, indent=2, default=str).encode() + b"\n")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns of equal width; numbers that are not whole with four digits."""
    cells = [list(header)] + [[f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
