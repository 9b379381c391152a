"""How far a depth map is from the truth, once it is in metres (see `depth_alignment`).

Everything is computed in float64 over the pixels where `mask` is True. With predicted depth p and true depth g, both
positive, over n pixels:

    abs_rel       mean |p − g| / g                       sq_rel      mean (p − g)² / g
    rmse_linear   √ mean (p − g)²                        rmse_log    √ mean (ln p − ln g)²
    log10         mean |log₁₀ p − log₁₀ g|               i_rmse      √ mean (1 / p − 1 / g)², in 1 / metres
    delta1..3     share of pixels with max(p / g, g / p) < 1.25, 1.25², 1.25³
    silog         100 · standard deviation of ln p − ln g

Sources: D. Eigen et al., arXiv 1406.2283 (abs_rel, sq_rel, rmse, delta); KITTI's depth development kit (i_rmse, silog).
Marigold reports abs_rel and delta1 (arXiv 2312.02145, section 4.2).
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Float64

from marigold_jax.data.affine_fit import dot

Values = Float64[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Pair:
    """Predicted and true depth at the valid pixels of one image, both positive, and what several metrics share."""

    prediction: Values
    truth: Values

    @cached_property
    def error(self) -> Values:
        return self.prediction - self.truth

    @cached_property
    def ratio(self) -> Values:
        return self.prediction / self.truth

    @cached_property
    def log_ratio(self) -> Values:
        return np.log(self.ratio)

    @cached_property
    def worse_ratio(self) -> Values:
        return np.maximum(self.ratio, self.truth / self.prediction)


def _mean_square(values: Values) -> float:
    return dot(values, values) / len(values)


# A perfect score is 0; for the deltas, 1.
METRICS: dict[str, Callable[[Pair], float]] = {
    "abs_rel": lambda pair: np.mean(np.abs(pair.error) / pair.truth),
    "sq_rel": lambda pair: np.mean(pair.error**2 / pair.truth),
    "rmse_linear": lambda pair: np.sqrt(_mean_square(pair.error)),
    "rmse_log": lambda pair: np.sqrt(_mean_square(pair.log_ratio)),
    "log10": lambda pair: np.mean(np.abs(pair.log_ratio)) / np.log(10),
    "delta1": lambda pair: np.mean(pair.worse_ratio < 1.25),
    "delta2": lambda pair: np.mean(pair.worse_ratio < 1.25**2),
    "delta3": lambda pair: np.mean(pair.worse_ratio < 1.25**3),
    "i_rmse": lambda pair: np.sqrt(_mean_square(pair.error / (pair.prediction * pair.truth))),
    "silog": lambda pair: 100 * np.std(pair.log_ratio),
}


def depth_scores(
    prediction: Float[np.ndarray, "*shape"],
    depth: Float[np.ndarray, "*shape"],
    mask: Bool[np.ndarray, "*shape"],
    names: Sequence[str] = ("abs_rel", "delta1"),
) -> dict[str, float]:
    """Scores one aligned depth map.

    Args:
        prediction: depth in metres, positive where the mask is True.
        depth: the true depth in metres, likewise.
        mask: the pixels to score.
        names: keys of `METRICS`.

    Returns:
        The named scores.

    Raises:
        ValueError: the mask is empty.
    """
    pair = Pair(prediction[mask].astype(np.float64), depth[mask].astype(np.float64))
    if not pair.truth.size:
        raise ValueError("depth_scores: the mask is empty; leave this image out")
    return {name: float(METRICS[name](pair)) for name in names}
