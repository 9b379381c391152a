"""Scores on held-out examples during training, with a panel of images for the first few."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jaxtyping import UInt8

from marigold_jax.data.transforms import transform
from marigold_jax.evaluation import figures
from marigold_jax.evaluation.depth_alignment import align
from marigold_jax.evaluation.depth_metrics import depth_scores
from marigold_jax.evaluation.image_metrics import psnr
from marigold_jax.evaluation.normal_metrics import angle_scores, angular_errors, within
from marigold_jax.inference.pipeline import Marigold
from marigold_jax.models import functional
from marigold_jax.training.pixels import depth_to_pixels
from marigold_jax.training.progress import counting
from marigold_jax.weights.model import DiffusionModel

Example = dict[str, np.ndarray]  # of `data.prepared`
Scored = tuple[dict[str, float], UInt8[np.ndarray, "h w 3"]]
PANEL_ROWS = 4


def predict_depth(checkpoint: DiffusionModel, examples: Sequence[Example]) -> Scored:
    """Returns mean AbsRel and δ1 of aligned predictions, and a panel. The noise is the same every time."""
    rgb, depth, mask = ([example[key] for example in examples] for key in ("rgb", "depth", "mask"))
    aligned = list(map(align, _predictions(checkpoint, rgb), depth, mask))
    scores = list(map(depth_scores, aligned, depth, mask))
    return _mean(scores), figures.depth_panel(*(maps[:PANEL_ROWS] for maps in (rgb, depth, aligned, mask)))


def predict_normals(checkpoint: DiffusionModel, examples: Sequence[Example]) -> Scored:
    """Returns the mean angular error in degrees, the share of pixels below 11.25, and a panel. The noise is fixed."""
    rgb, normals, mask = ([example[key] for example in examples] for key in ("rgb", "normals", "mask"))
    known = [valid & normal.any(axis=-1, keepdims=True) for valid, normal in zip(mask, normals, strict=True)]
    predictions = _predictions(checkpoint, rgb)
    scores = _mean(list(map(angle_scores, map(angular_errors, predictions, normals, known))))
    summary = {"mean_angle": scores["mean"], within(11.25): scores[within(11.25)]}
    return summary, figures.normals_panel(*(maps[:PANEL_ROWS] for maps in (rgb, normals, predictions, known)))


def reconstruct(checkpoint: DiffusionModel, examples: Sequence[Example]) -> Scored:
    """Returns the reconstruction errors of the VAE: PSNR of images, AbsRel and δ1 of depth, and a panel.

    Depth is normalised as in training. The panel shows decoded images, and depth as for predictions.
    """
    vae = checkpoint.vae

    @jax.jit
    def through(params: functional.Params, pixels: jax.Array) -> jax.Array:
        module = functional.merge(vae.structure, params)
        return module.decode(module.encode(pixels))

    painted, aligned, scores, samples = [], [], [], []
    for example in _counted(examples):
        size = tuple(side // vae.config.downsampling * vae.config.downsampling for side in example["mask"].shape[:2])
        sample = transform(example, size=size, flip=False, antialias=True, far_fill=True)
        pixels = np.stack([sample["rgb"], np.asarray(depth_to_pixels(sample["target"]))])
        rgb, depth = np.clip(np.asarray(through(vae.params, pixels)), -1, 1)
        depth = align(depth.mean(-1, keepdims=True), sample["depth"], sample["mask"])
        painted.append(np.uint8((rgb + 1) / 2 * 255 + 0.5))
        aligned.append(depth)
        quality = {"psnr": psnr(rgb, sample["rgb"], peak=2.0)}
        scores.append(depth_scores(depth, sample["depth"], sample["mask"]) | quality)
        samples.append(sample)
    depth, mask = ([sample[key] for sample in samples] for key in ("depth", "mask"))
    return _mean(scores), figures.depth_panel(*(maps[:PANEL_ROWS] for maps in (painted, depth, aligned, mask)))


def _predictions(checkpoint: DiffusionModel, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns a prediction for each image, from the same noise. Images of one size are batched."""
    pipe, found = Marigold(checkpoint), {}
    together = pipe.default_batch_size()
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index, picture in enumerate(pictures):
        by_size.setdefault(picture.shape, []).append(index)
    groups = [same[i : i + together] for same in by_size.values() for i in range(0, len(same), together)]
    with counting("validating", len(pictures), "pictures") as done:
        for group in groups:
            found |= zip(group, pipe([pictures[index] for index in group], seed=0).prediction, strict=True)
            done(len(group))
    return [found[index] for index in range(len(pictures))]


def _counted(examples: Sequence[Example]) -> Iterator[Example]:
    with counting("validating", len(examples), "pictures") as done:
        for example in examples:
            yield example
            done(1)


def _mean(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([score[key] for score in scores])) for key in scores[0]}
