"""A stand-in for the network: its "depth" is the picture's brightness, so every value that comes out is known."""

from types import SimpleNamespace

import numpy as np

from marigold_jax.inference.modality import MODALITIES
from marigold_jax.inference.pipeline import Marigold


class Brightness:
    """Answers like the pipeline, at once: depth is the mean of the channels, normals are the channels."""

    prepare, finish, default_batch_size = Marigold.prepare, Marigold.finish, Marigold.default_batch_size
    downsampling = 8
    default_denoising_steps = 1
    default_processing_resolution = 64
    calls: list
    error = None  # what `run` raises, and from which call on
    loading_error = None

    def __init__(self, modality="depth"):
        self.modality = MODALITIES[modality]
        self.calls = []

    def from_pretrained(self, name_or_path=None, dtype="float32", revision=None, vae=None):
        if self.loading_error:
            raise self.loading_error
        return self

    def sampler(self, num_inference_steps):
        if num_inference_steps == 2000:
            raise ValueError("expected 1 <= num_steps <= 1000, got 2000")

    def run(self, canvases, sizes, num_inference_steps=None, ensemble_size=1, *, batch_size, seed, output_uncertainty):
        assert canvases.dtype == np.float32 and canvases.ndim == 4 and sizes.shape == (len(canvases), 2)
        self.calls.append(canvases.shape)
        if self.error and len(self.calls) >= self.error[1]:
            raise self.error[0]
        depth = self.modality.channels == 1
        prediction = (canvases.mean(axis=3, keepdims=True) + 1) / 2 if depth else canvases
        uncertainty = prediction[..., :1] / 4 if output_uncertainty else None
        return SimpleNamespace(prediction=prediction, uncertainty=uncertainty)
