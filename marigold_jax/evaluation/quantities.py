"""What can be scored: one record for depth, one for normals. Another quantity is another record."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from marigold_jax.data.saved_maps import check_shape, stretched
from marigold_jax.evaluation import figures
from marigold_jax.evaluation.depth_alignment import ALIGNMENTS, SMALLEST_DEPTH, fitted_columns
from marigold_jax.evaluation.depth_metrics import METRICS, depth_scores
from marigold_jax.evaluation.normal_metrics import (
    ANGLE_METRICS,
    CONVENTIONS,
    angle_scores,
    angular_errors,
    pooled_angle_scores,
    within,
)
from marigold_jax.evaluation.splits import Example, Split

Map = Float[np.ndarray, "h w c"]
Valid = Bool[np.ndarray, "h w 1"]
Scores = dict[str, float]
# Applies a function of (aligned prediction, truth, valid pixels) to every image.
OverImages = Callable[[Callable[[Map, Map, Valid], Any]], Iterable[Any]]


@dataclass(frozen=True)
class Quantity:
    """What a model predicts, and how predictions are scored.

    Attributes:
        name: the name of a checkpoint's modality, and the key of the truth in an example.
        channels: the number of channels of a prediction.
        metrics: the names of an image's scores.
        headline: the two scores that papers report. The larger the first, the worse the image.
        alignments: the names of the alignments to choose from. The first is the papers'.
        align: turns (prediction, example, split, name of an alignment) into a prediction in the unit of the truth.
        valid: the pixels of an example that are scored.
        score: turns (aligned prediction, truth, valid pixels) into an image's scores.
        score_all_pixels: the scores over the pixels of all images, for quantities that papers report in this way.
        restore: makes a resized prediction valid again.
        panel: draws lists of images, truths, aligned predictions and valid pixels.
        sample: the key of `data.transforms.transform`'s samples that the mean training map averages.
        constant: the value at every pixel of the constant baseline.
        conventions: the factors that turn the axes of a prediction into ours, by the name of its convention.
    """

    name: str
    channels: int
    metrics: tuple[str, ...]
    headline: tuple[str, str]
    alignments: tuple[str, ...]
    align: Callable[[Map, Example, Split, str], Map]
    valid: Callable[[Example], Valid]
    score: Callable[[Map, Map, Valid], Scores]
    score_all_pixels: Callable[[OverImages], Scores] | None
    restore: Callable[[Map], Map]
    panel: Callable[..., np.ndarray]
    sample: str
    constant: tuple[float, ...]
    conventions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def check(self, dataset: str, alignment: str, convention: str | None) -> None:
        """Raises ValueError for an alignment or a convention (None: ours) that the quantity does not have."""
        if alignment not in self.alignments:
            allowed = ", ".join(self.alignments)
            raise ValueError(f"--alignment {alignment}: {dataset} is scored on {self.name}, which allows {allowed}")
        if convention and convention not in self.conventions:
            raise ValueError(f"--normals_convention: {dataset} is scored on {self.name}")


def _align_depth(prediction: Map, example: Example, split: Split, alignment: str) -> Map:
    """Depth in metres, aligned to the truth and clipped to the range of the dataset."""
    fit = (slice(None), fitted_columns(prediction.shape[1], split.alignment_width))
    metres = ALIGNMENTS[alignment](prediction, example["depth"], example["mask"], fit)
    return np.maximum(np.clip(metres, *split.limits), SMALLEST_DEPTH)


def _score_all_angles(over_images: OverImages) -> Scores:
    return pooled_angle_scores(lambda function: over_images(lambda *maps: function(angular_errors(*maps))))


QUANTITIES = {
    "depth": Quantity(
        name="depth",
        channels=1,
        metrics=tuple(METRICS),
        headline=("abs_rel", "delta1"),
        alignments=tuple(ALIGNMENTS),
        align=_align_depth,
        valid=lambda example: example["mask"],
        score=lambda *maps: depth_scores(*maps, list(METRICS)),
        score_all_pixels=None,
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
        # The truth is a vector of length zero where no normal is known.
        valid=lambda example: example["mask"] & example["normals"].any(axis=-1, keepdims=True),
        score=lambda *maps: angle_scores(angular_errors(*maps)),
        score_all_pixels=_score_all_angles,
        restore=lambda normals: normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), np.float32(1e-6)),
        panel=figures.normals_panel,
        sample="normals",
        constant=(0.0, 0.0, 1.0),  # every surface faces the camera
        conventions=CONVENTIONS,
    ),
}
DEPTH = QUANTITIES["depth"]


def matched(
    prediction: Float[np.ndarray, "i j k"], truth: Float[np.ndarray, "h w c"], quantity: Quantity
) -> Float[np.ndarray, "h w c"]:
    """Resizes a prediction to the truth's size.

    Raises ValueError if it has other channels, or an aspect ratio that cannot be the same image's.
    """
    if prediction.shape[2] != truth.shape[2]:
        raise ValueError(f"wanted {truth.shape[2]} channels for {quantity.name}, found {prediction.shape[2]}")
    if prediction.shape[:2] == truth.shape[:2]:
        return prediction
    check_shape(prediction.shape[:2], truth.shape[:2])
    return quantity.restore(stretched(prediction, truth.shape[:2]))
