"""How far an image is from another one."""

import numpy as np
from jaxtyping import Float


def psnr(prediction: Float[np.ndarray, "*shape"], truth: Float[np.ndarray, "*shape"], peak: float = 1.0) -> float:
    """Returns the peak signal-to-noise ratio in decibels, 10 · log₁₀(peak² / mean squared error).

    Args:
        prediction: pixel values.
        truth: the values to be matched.
        peak: the length of the range of values: 1 for [0, 1], 2 for [-1, 1].
    """
    squared = np.mean((prediction.astype(np.float64) - truth.astype(np.float64)) ** 2)
    return float(10 * np.log10(peak**2 / squared)) if squared else float("inf")
