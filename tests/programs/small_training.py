"""A small training on the built-in scenes, as several tests run it."""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from marigold_jax.training import configuration

ROOT = Path(__file__).parents[2]


STEPS = 6


SMALL = {  # the quickstart, shrunken
    "model.widths": (16, 16),
    "model.description.default_processing_resolution": 24,
    "data.size": (16, 24),
    "data.batch_size": 8,
    "data.accumulation": 2,
    "optim.warmup_steps": 2,
    "optim.learning_rate": 1e-3,
    "run.steps": STEPS,
    "run.log_every": 1,
    "run.checkpoint_every": 2,
    "run.evaluate_every": 3,
    "run.validation_images": 2,
}


def small_config(objective=None, **changes):
    config = configuration.load("quickstart")
    if objective:
        with config.unlocked():
            config.objective = objective
    config.update_from_flattened_dict(SMALL | {key.replace("__", "."): value for key, value in changes.items()})
    return config.lock()


def command(workdir, *more):
    flags = []
    for key, value in SMALL.items():
        flags += [f"--config.{key}={item}" for item in (value if isinstance(value, tuple) else (value,))]
    program = [sys.executable, "-m", "marigold_jax.train", "--config", "configs/quickstart.py", "--workdir", workdir]
    return [*map(str, program), *flags, *more]


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def results(workdir):
    """All that a run computed; not how fast."""
    scalars = [{key: value for key, value in line.items() if key != "samples_per_second"} for line in records(workdir)]
    weights = load_file(workdir / "export" / "unet" / "diffusion_pytorch_model.safetensors")
    return scalars, weights


def assert_same(workdir, reference):
    (scalars, weights), (wanted_scalars, wanted_weights) = results(workdir), results(reference)
    assert scalars == wanted_scalars
    assert weights.keys() == wanted_weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(array, wanted_weights[name], err_msg=name)
