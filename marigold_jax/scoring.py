"""Scores of estimators over a dataset, and what is written of them."""

import contextlib
import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from tqdm import tqdm

from marigold_jax.angles import ANGLE_METRICS, angle_scores, angular_errors, pooled_angle_scores, within
from marigold_jax.data import panels
from marigold_jax.data.benchmarks import OfficialSplit, fitted_columns
from marigold_jax.data.frames import BadFrame
from marigold_jax.data.sources import PreparedSplit
from marigold_jax.metrics import ALIGNMENTS, METRICS, SMALLEST_DEPTH, depth_scores
from marigold_jax.runtime.files import write

Map = Float[np.ndarray, "h w c"]
Valid = Bool[np.ndarray, "h w 1"]
Look = Callable[[int], Map | None]  # the prediction for image number i of a split; None where it is missing
Split = PreparedSplit | OfficialSplit
Example = dict[str, np.ndarray]
Scores = dict[str, float]
WORST = 10
THREADS = os.cpu_count() or 1  # decoding and NumPy leave the interpreter alone


# --------------------------------------------------------------------------------------------------- depth and normals


@dataclass(frozen=True)
class Quantity:
    """What is estimated, and how that is scored.

    Attributes:
        name: that of a checkpoint's modality, and of the truth in an example.
        channels: of a prediction.
        metrics: the scores of an image.
        headline: the two of them that papers report. An image is the worse, the more it has of the first.
        alignments: names of what takes out of a prediction what it cannot know; the first is the usual one.
        align: a prediction, its example and split, and one of those names, to a prediction that is like the truth.
        valid: the pixels of an example that count.
        measure: an aligned prediction, the truth and the valid pixels, to the scores.
        pool: what papers report in place of means over images, if they do: a function that applies its argument to
            (aligned prediction, truth, valid pixels) of each image, to the scores.
        panel: draws images, truths, aligned predictions and valid pixels.
        sample: what is averaged over a training set, a key of `data.transforms.transform`'s samples.
        constant: a prediction, the same at every pixel, of somebody who does not look.
    """

    name: str
    channels: int
    metrics: tuple[str, ...]
    headline: tuple[str, str]
    alignments: tuple[str, ...]
    align: Callable[[Map, Example, Split, str], Map]
    valid: Callable[[Example], Valid]
    measure: Callable[[Map, Map, Valid], Scores]
    pool: Callable[[Callable], Scores] | None
    panel: Callable[..., np.ndarray]
    sample: str
    constant: tuple[float, ...]


def aligned(prediction: Map, example: Example, split: Split, alignment: str) -> Map:
    """Depth in metres: fitted to the truth, and clipped to the depths that count in the dataset."""
    fit = (slice(None), fitted_columns(prediction.shape[1], split.alignment_width))
    metres = ALIGNMENTS[alignment](prediction, example["depth"], example["mask"], fit)
    return np.maximum(np.clip(metres, *split.limits), SMALLEST_DEPTH)


QUANTITIES = {
    "depth": Quantity(
        name="depth",
        channels=1,
        metrics=tuple(METRICS),
        headline=("abs_rel", "delta1"),
        alignments=tuple(ALIGNMENTS),
        align=aligned,
        valid=lambda example: example["mask"],
        measure=lambda *maps: depth_scores(*maps, list(METRICS)),
        pool=None,
        panel=panels.depth_panel,
        sample="target",
        constant=(1.0,),
    ),
    "normals": Quantity(
        name="normals",
        channels=3,
        metrics=tuple(ANGLE_METRICS),
        headline=("mean", within(11.25)),
        alignments=("none",),
        align=lambda prediction, example, split, alignment: prediction,
        # A vector of length zero stands where no normal is known.
        valid=lambda example: example["mask"] & example["normals"].any(axis=-1, keepdims=True),
        measure=lambda *maps: angle_scores(angular_errors(*maps)),
        pool=lambda each: pooled_angle_scores(lambda function: each(lambda *maps: function(angular_errors(*maps)))),
        panel=panels.normals_panel,
        sample="normals",
        constant=(0.0, 0.0, 1.0),  # every surface faces the camera
    ),
}
DEPTH = QUANTITIES["depth"]


def quantity_of(look: Look, split: Split, indices: Sequence[int]) -> Quantity:
    """What is predicted, by the number of channels; what the dataset holds, where there is no prediction at all.

    Raises ValueError where the dataset does not hold that.
    """
    held = [quantity for quantity in QUANTITIES.values() if quantity.name in split.features]
    first = next((prediction for index in indices if (prediction := look(index)) is not None), None)
    fitting = held if first is None else [one for one in held if one.channels == first.shape[-1]]
    if not fitting:
        wanted = " or ".join(f"{one.name} ({one.channels})" for one in held)
        raise ValueError(f"{split.path}: wanted predictions with the channels of {wanted}; they have {first.shape[-1]}")
    return fitting[0]


# --------------------------------------------------------------------------------------------------------------- scores


def spread(split: Split, limit: int | None = None) -> list[int]:
    """The numbers of at most `limit` images of a split, evenly spread over it; of all without a limit."""
    count = min(limit or len(split), len(split))
    return [int(index) for index in np.unique(np.linspace(0, len(split) - 1, count).astype(int))]


def each(function: Callable[[int], Any], indices: Sequence[int], doing: str) -> Iterator[Any]:
    """The function of each index, in order, from several threads; an error stops them all."""
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            yield from tqdm(pool.map(function, indices), doing, len(indices), unit="image", disable=None, leave=False)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def score(
    look: Look,
    split: Split,
    indices: Sequence[int],
    alignment: str,
    allow_missing: bool,
    quantity: Quantity = DEPTH,
) -> dict[int, Scores]:
    """The scores of each image, by its number.

    Raises ValueError, naming an image, where predictions or images are missing and that is not allowed, where one is
    broken, and where nothing is left to score.
    """

    def one(index: int) -> Scores | str:
        """The scores of an image, none where no pixel is valid, or what is missing."""
        name, prediction = split.name_of(index), look(index)
        if prediction is None:
            return f"the prediction for {name}"
        try:
            example = split.truth(index)
        except BadFrame as error:
            return f"{error.kind}: {error.detail}"
        truth, valid = example[quantity.name], quantity.valid(example)
        if prediction.shape != truth.shape or not np.isfinite(prediction[valid[..., 0]]).all():
            wanted, found = (
                maps.squeeze(2).shape if maps.shape[2] == 1 else maps.shape for maps in (truth, prediction)
            )
            raise ValueError(f"{name}: wanted finite numbers of shape {wanted}; the prediction has shape {found}")
        if not valid.any():
            return {}
        return quantity.measure(quantity.align(prediction, example, split, alignment), truth, valid)

    results = list(each(one, indices, "scoring"))
    missing = [result for result in results if isinstance(result, str)]
    scored = zip(indices, results, strict=True)
    scores = {index: result for index, result in scored if isinstance(result, dict) and result}
    if missing and not allow_missing:
        raise ValueError(f"{len(missing)} images cannot be scored ({missing[0]}); --allow_missing leaves them out")
    if not scores:
        raise ValueError(f"{split.path}: there is nothing to score")
    return scores


def means(scores: Mapping[int, Scores]) -> Scores:
    """Over images, each counting alike."""
    names = next(iter(scores.values()))
    return {name: float(np.mean([one[name] for one in scores.values()])) for name in names}


def pooled(look: Look, split: Split, indices: Sequence[int], alignment: str, quantity: Quantity) -> Scores:
    """Over the valid pixels of all these images, each pixel counting alike; nothing where no paper does so."""

    def over_images(function: Callable[[Map, Map, Valid], Any]) -> Iterator[Any]:
        def one(index: int) -> Any:
            example = split.truth(index)
            prediction = quantity.align(look(index), example, split, alignment)
            return function(prediction, example[quantity.name], quantity.valid(example))

        return each(one, indices, "pooling")

    return quantity.pool(over_images) if quantity.pool else {}


# ------------------------------------------------------------------------------------------------- what is made of them


def report(
    folder: Path,
    split: Split,
    look: Look,
    scores: Mapping[int, Scores],
    summary: Mapping[str, Any],
    alignment: str,
    quantity: Quantity,
) -> None:
    """Writes per_sample.csv, worst.png, and the summary as metrics.json."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["name", *quantity.metrics])
    writer.writerows([split.name_of(index), *(repr(value) for value in one.values())] for index, one in scores.items())
    write(folder / "per_sample.csv", lines.getvalue().encode())
    examples = {}
    for index in sorted(scores, key=lambda index: -scores[index][quantity.headline[0]]):
        with contextlib.suppress(BadFrame):  # its truth could be read, its photograph cannot
            examples[index] = split[index]
        if len(examples) == WORST:
            break
    if examples:
        shown = list(examples.values())
        maps = [quantity.align(look(index), example, split, alignment) for index, example in examples.items()]
        rgb, truth = ([example[key] for example in shown] for key in ("rgb", quantity.name))
        drawn = quantity.panel(rgb, truth, maps, [quantity.valid(example) for example in shown])
        write(folder / "worst.png", panels.png(drawn))
    write(folder / "metrics.json", json.dumps(summary, indent=2, default=str).encode() + b"\n")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns of equal width; numbers that are not whole with four digits."""
    cells = [list(header)] + [[f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
