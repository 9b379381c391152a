"""Scores an estimator over the images of a split."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from marigold_jax.data.raw_frame import BadFrame
from marigold_jax.evaluation.estimators import Estimator
from marigold_jax.evaluation.quantities import DEPTH, QUANTITIES, Map, Quantity, Scores, Valid, matched
from marigold_jax.evaluation.splits import Split, in_message, read_name, read_truth
from marigold_jax.runtime.files import printable

NUM_THREADS = os.cpu_count() or 1  # decoding and NumPy release Python's lock


@dataclass(frozen=True)
class Task:
    """What is scored, and how.

    Attributes:
        split: the images and their truth.
        indices: the images of the split to score.
        quantity: what is predicted.
        alignment: one of `quantity.alignments`.
        allow_missing: leave out images that cannot be scored; otherwise they are an error.
    """

    split: Split
    indices: Sequence[int]
    quantity: Quantity = DEPTH
    alignment: str = "least_square"
    allow_missing: bool = False


@dataclass(frozen=True)
class Result:
    """The scores of some images.

    Attributes:
        scores: the scores of each image, by its index.
        unusable: one line for each image that cannot be scored.
        without_valid_pixels: the number of images whose truth has no valid pixel.
        resized: the number of predictions that were resized to the truth's size.
    """

    scores: dict[int, Scores]
    unusable: list[str]
    without_valid_pixels: int
    resized: int

    def left_out(self) -> str:
        """How many images were left out, and why; "" if there are none."""
        reasons = []
        if self.unusable:
            reasons.append(f"{len(self.unusable)} that cannot be scored ({self.unusable[0]})")
        if self.without_valid_pixels:
            reasons.append(f"{self.without_valid_pixels} in which no pixel of the truth is valid")
        return " and ".join(reasons)


class _Outcome(NamedTuple):
    """The scores of one image (None if no pixel is valid), or the `problem` that it cannot be scored for."""

    scores: Scores | None = None
    problem: str | None = None
    resized: bool = False


def score_all(estimator: Estimator, task: Task) -> Result:
    """Scores every image that can be scored.

    Raises ValueError, naming an image, if one cannot be scored and `task.allow_missing` is False, or if no image is
    left.
    """
    outcomes = list(_in_threads(lambda index: _score_one(estimator, task, index), task.indices, "scoring"))
    scores = {index: one.scores for index, one in zip(task.indices, outcomes, strict=True) if one.scores}
    unusable = [one.problem for one in outcomes if one.problem]
    resized = sum(one.resized for one in outcomes)
    result = Result(scores, unusable, len(outcomes) - len(scores) - len(unusable), resized)
    if unusable and not task.allow_missing:
        raise ValueError(f"{len(unusable)} images cannot be scored ({unusable[0]}); --allow_missing leaves them out")
    if not scores:
        reason = result.left_out() or "it holds no images"
        raise ValueError(f"{task.split.path}: there is nothing to score: {reason}")
    return result


def score_all_pixels(estimator: Estimator, task: Task) -> Scores:
    """The scores over the valid pixels of all images together; empty if papers do not report these for the quantity."""

    def over_images(function: Callable[[Map, Map, Valid], Any]) -> Iterator[Any]:
        def one(index: int) -> Any:
            example = read_truth(task.split, index)
            prediction = aligned(estimator(index), example, task)
            return function(prediction, example[task.quantity.name], task.quantity.valid(example))

        return _in_threads(one, task.indices, "pooling")

    return task.quantity.score_all_pixels(over_images) if task.quantity.score_all_pixels else {}


def aligned(
    prediction: Float[np.ndarray, "i j c"], example: Mapping[str, np.ndarray], task: Task
) -> Float[np.ndarray, "h w c"]:
    """A prediction at the truth's size and in its unit."""
    prediction = matched(prediction, example[task.quantity.name], task.quantity)
    return task.quantity.align(prediction, example, task.split, task.alignment)


def mean_scores(scores: Mapping[int, Scores]) -> Scores:
    """The mean of each score over images."""
    names = next(iter(scores.values()))
    return {name: float(np.mean([one[name] for one in scores.values()])) for name in names}


def predicted_quantity(estimator: Estimator, split: Split, indices: Sequence[int]) -> Quantity:
    """Tells what an estimator predicts by the number of channels; without any prediction, what the split holds.

    Raises ValueError if the split does not hold it.
    """
    held = [quantity for quantity in QUANTITIES.values() if quantity.name in split.features]
    first = None
    for index in indices:
        with contextlib.suppress(ValueError, BadFrame):  # `score_all` reports what is broken
            first = estimator(index)
        if first is not None:
            break
    fitting = held if first is None else [one for one in held if one.channels == first.shape[-1]]
    if not fitting:
        wanted = " or ".join(f"{one.name} ({one.channels})" for one in held)
        raise ValueError(f"{split.path}: wanted predictions with the channels of {wanted}; they have {first.shape[-1]}")
    return fitting[0]


def _score_one(estimator: Estimator, task: Task, index: int) -> _Outcome:
    split, quantity, name = task.split, task.quantity, str(index)
    try:
        name = read_name(split, index)
        prediction = estimator(index)
        if prediction is None:
            return _Outcome(problem=f"the prediction for {in_message(name)} is missing")
        example = read_truth(split, index)
        truth, valid = example[quantity.name], quantity.valid(example)
        resized = prediction.shape[:2] != truth.shape[:2]
        prediction = matched(prediction, truth, quantity)
        if wrong := np.count_nonzero(~np.isfinite(prediction[valid[..., 0]]).all(axis=-1)):
            raise ValueError(f"wanted finite numbers where the truth is valid; found NaN or infinity at {wrong} pixels")
        if not valid.any():
            return _Outcome()
        prediction = quantity.align(prediction, example, split, task.alignment)
        return _Outcome(scores=quantity.score(prediction, truth, valid), resized=resized)
    except BadFrame as error:
        return _Outcome(problem=printable(f"{error.kind}: {error.detail}"))
    except (ValueError, OSError) as error:
        return _Outcome(problem=f"{in_message(name)}: {' '.join(str(error).split())}")


def _in_threads(function: Callable[[int], Any], indices: Sequence[int], description: str) -> Iterator[Any]:
    """Yields the function of each index, in order, computed by several threads. An error stops them all."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        results = pool.map(function, indices)
        try:
            yield from tqdm(results, description, len(indices), unit="image", disable=None, leave=False)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
