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

from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.data.raw_frame import BadFrame
from marigold_jax.data.saved_maps import check_shape, stretched
from marigold_jax.evaluation import figures
from marigold_jax.evaluation.benchmarks import OfficialSplit
from marigold_jax.evaluation.depth_alignment import ALIGNMENTS, SMALLEST_DEPTH, fitted_columns
from marigold_jax.evaluation.depth_metrics import METRICS, depth_scores
from marigold_jax.evaluation.normal_metrics import (
    ANGLE_METRICS,
    angle_scores,
    angular_errors,
    pooled_angle_scores,
    within,
)
from marigold_jax.runtime.files import printable, write

Map = Float[np.ndarray, "h w c"]
Valid = Bool[np.ndarray, "h w 1"]
# The prediction for image number i of a split: None where it is missing, ValueError in one line where it is broken.
Look = Callable[[int], Map | None]
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
        restore: after resizing, back to what a prediction is.
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
    restore: Callable[[Map], Map]
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
        restore=lambda depth: depth,
        panel=figures.depth_panel,
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
        restore=lambda normals: normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), np.float32(1e-6)),
        panel=figures.normals_panel,
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
    first = None
    for index in indices:
        with contextlib.suppress(ValueError, BadFrame):  # broken, which is said when it is to be scored
            first = look(index)
        if first is not None:
            break
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


@dataclass(frozen=True)
class Judged:
    """What came of some images: the `scores` by their number, one line for each that is `unusable`, how many are
    `blank` (no pixel of the truth is valid), and how many predictions were `resized`."""

    scores: dict[int, Scores]
    unusable: list[str]
    blank: int
    resized: int


def judge(look: Look, split: Split, indices: Sequence[int], alignment: str, quantity: Quantity = DEPTH) -> Judged:
    """Scores every image that can be."""

    def one(index: int) -> tuple[Scores | None, str | None, bool]:
        """The scores of an image, None where no pixel is valid; or why there are none; and whether it was resized."""
        name = str(index)
        try:
            name = name_of(split, index)
            prediction = look(index)
            if prediction is None:
                return None, f"the prediction for {brief(name)} is missing", False
            example = truth_of(split, index)
            truth, valid = example[quantity.name], quantity.valid(example)
            resized = prediction.shape[:2] != truth.shape[:2]
            prediction = matched(prediction, truth, quantity)
            if wrong := np.count_nonzero(~np.isfinite(prediction[valid[..., 0]]).all(axis=-1)):
                raise ValueError(f"wanted finite numbers where the truth is valid; {wrong} pixels have none")
            if not valid.any():
                return None, None, False
            aligned = quantity.align(prediction, example, split, alignment)
            return quantity.measure(aligned, truth, valid), None, resized
        except BadFrame as error:
            return None, printable(f"{error.kind}: {error.detail}"), False
        except (ValueError, OSError) as error:
            return None, f"{brief(name)}: {' '.join(str(error).split())}", False

    results = list(each(one, indices, "scoring"))
    scores = {index: scores for index, (scores, _, _) in zip(indices, results, strict=True) if scores}
    unusable = [why for _, why, _ in results if why]
    return Judged(scores, unusable, len(results) - len(scores) - len(unusable), sum(resized for *_, resized in results))


def insist(judged: Judged, split: Split, allow_missing: bool) -> None:
    """Raises ValueError, naming an image, where some are unusable and that is not allowed, or nothing was scored."""
    many = len(judged.unusable)
    if many and not allow_missing:
        raise ValueError(f"{many} images cannot be scored ({judged.unusable[0]}); --allow_missing leaves them out")
    if not judged.scores:
        raise ValueError(f"{split.path}: there is nothing to score: {left_out(judged) or 'it holds no images'}")


def left_out(judged: Judged) -> str:
    """How many images were left out, and why, in words; "" for none."""
    reasons = []
    if judged.unusable:
        reasons.append(f"{len(judged.unusable)} that cannot be scored ({judged.unusable[0]})")
    if judged.blank:
        reasons.append(f"{judged.blank} in which no pixel of the truth is valid")
    return " and ".join(reasons)


def score(
    look: Look,
    split: Split,
    indices: Sequence[int],
    alignment: str,
    allow_missing: bool,
    quantity: Quantity = DEPTH,
) -> dict[int, Scores]:
    """The scores of each image, by its number.

    Raises ValueError, naming an image, where predictions or images are missing or broken and that is not allowed, and
    where nothing is left to score.
    """
    judged = judge(look, split, indices, alignment, quantity)
    insist(judged, split, allow_missing)
    return judged.scores


def name_of(split: Split, index: int) -> str:
    """Raises BadFrame where the record cannot be read."""
    return _read(split.name_of, split, index)


def truth_of(split: Split, index: int) -> Example:
    """Raises BadFrame where the record cannot be read."""
    return _read(split.truth, split, index)


def example_of(split: Split, index: int) -> Example:
    """The photograph, too. Raises BadFrame where the record cannot be read."""
    return _read(split.__getitem__, split, index)


def _read(read: Callable[[int], Any], split: Split, index: int) -> Any:
    try:
        return read(index)
    except BadFrame:
        raise
    except Exception as error:  # decoders raise nearly anything on a damaged record
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadFrame("unreadable record", f"{split.path}, number {index}: {reason}") from None


def brief(name: str) -> str:
    """A name for a message: on one line, and not longer than that."""
    name = printable(name)
    return name if len(name) <= 200 else f"{name[:100]}...{name[-90:]}"


def matched(
    prediction: Float[np.ndarray, "i j k"], truth: Float[np.ndarray, "h w c"], quantity: Quantity
) -> Float[np.ndarray, "h w c"]:
    """The prediction at the truth's size. Raises ValueError for one of other channels, or of another picture."""
    if prediction.shape[2] != truth.shape[2]:
        raise ValueError(f"wanted {truth.shape[2]} channels, as {quantity.name} has; found {prediction.shape[2]}")
    if prediction.shape[:2] == truth.shape[:2]:
        return prediction
    check_shape(prediction.shape[:2], truth.shape[:2])
    return quantity.restore(stretched(prediction, truth.shape[:2]))


def means(scores: Mapping[int, Scores]) -> Scores:
    """Over images, each counting alike."""
    names = next(iter(scores.values()))
    return {name: float(np.mean([one[name] for one in scores.values()])) for name in names}


def pooled(look: Look, split: Split, indices: Sequence[int], alignment: str, quantity: Quantity) -> Scores:
    """Over the valid pixels of all these images, each pixel counting alike; nothing where no paper does so."""

    def over_images(function: Callable[[Map, Map, Valid], Any]) -> Iterator[Any]:
        def one(index: int) -> Any:
            example = truth_of(split, index)
            prediction = matched(look(index), example[quantity.name], quantity)
            prediction = quantity.align(prediction, example, split, alignment)
            return function(prediction, example[quantity.name], quantity.valid(example))

        return each(one, indices, "pooling")

    return quantity.pool(over_images) if quantity.pool else {}


# ------------------------------------------------------------------------------------------------- what is made of them


def report(
    folder: Path, split: Split, scores: Mapping[int, Scores], summary: Mapping[str, Any], quantity: Quantity
) -> None:
    """Writes per_sample.csv, and the summary as metrics.json."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["name", *quantity.metrics])
    writer.writerows([name_of(split, index), *(repr(value) for value in one.values())] for index, one in scores.items())
    write(folder / "per_sample.csv", lines.getvalue().encode(errors="backslashreplace"))
    write(folder / "metrics.json", json.dumps(summary, indent=2, default=str).encode() + b"\n")


def draw_worst(
    file: Path, split: Split, look: Look, scores: Mapping[int, Scores], alignment: str, quantity: Quantity
) -> None:
    """Draws the worst of what was scored, whose photographs can be read; no file where there is none."""
    file.unlink(missing_ok=True)  # one of an earlier run would show something else
    examples = {}
    for index in sorted(scores, key=lambda index: -scores[index][quantity.headline[0]]):
        with contextlib.suppress(BadFrame):  # its truth could be read, its photograph cannot
            examples[index] = example_of(split, index)
        if len(examples) == WORST:
            break
    if examples:
        shown = list(examples.values())
        maps = [
            quantity.align(matched(look(index), example[quantity.name], quantity), example, split, alignment)
            for index, example in examples.items()
        ]
        rgb, truth = ([example[key] for example in shown] for key in ("rgb", quantity.name))
        drawn = quantity.panel(rgb, truth, maps, [quantity.valid(example) for example in shown])
        write(file, figures.png(drawn))


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns of equal width; numbers that are not whole with four digits."""
    cells = [list(header)] + [[f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
