"""How many images are computed side by side, and how that is compiled, by platform."""

import jax
import numpy as np
import pytest

from marigold_jax import Marigold
from marigold_jax.inference import pipeline
from marigold_jax.inference.program import denoise, denoise_for

PICTURES = [np.zeros((48, 64, 3), np.uint8)] * 10


@pytest.fixture(scope="module")
def pipe():
    return Marigold.from_pretrained()


@pytest.mark.parametrize(
    ("platform", "resolution", "size"),
    [
        ("cpu", 768, 1),
        ("gpu", 768, 4),
        ("tpu", 768, 8),
        ("tpu", None, 8),
        ("tpu", 769, 4),
        ("tpu", 0, 4),
        ("gpu", 0, 4),
    ],
)
def test_the_default_depends_on_the_platform_and_on_the_size(monkeypatch, pipe, platform, resolution, size):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert pipe.default_batch_size(resolution) == size


def test_a_model_of_a_high_resolution_takes_fewer(monkeypatch, pipe):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(pipe, "default_processing_resolution", 1024)
    assert (pipe.default_batch_size(), pipe.default_batch_size(512)) == (4, 8)


@pytest.mark.parametrize(("batch_size", "chunks"), [(None, [8, 2]), (4, [4, 4, 2]), (1, [1] * 10)])
def test_each_program_is_compiled_for_what_it_computes_side_by_side(monkeypatch, pipe, batch_size, chunks):
    asked = []

    def compiled_for(platform, samples):
        asked.append((platform, samples))
        return lambda program, params, table, canvases, *_: (np.zeros((*canvases.shape[:3], 1), np.float32), None, None)

    monkeypatch.setattr(pipeline, "denoise_for", compiled_for)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    pipe(PICTURES, processing_resolution=64, batch_size=batch_size)
    assert asked == [("tpu", samples) for samples in chunks]


def test_without_options_there_is_one_program():
    assert denoise_for("cpu", 4) is denoise and denoise_for("tpu", 8) is denoise
    assert denoise_for("tpu", 4) is denoise_for("tpu", 4) is not denoise
