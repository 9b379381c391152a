"""Writes a run's `export/`: the trained weights as a checkpoint folder that `--checkpoint` and diffusers load."""

import contextlib
import dataclasses
import os
import shutil
import time
from pathlib import Path

import jax

from marigold_jax.models import functional
from marigold_jax.models.functional import Params, Structure
from marigold_jax.runs.run_folder import EXPORT
from marigold_jax.runtime.files import read_json
from marigold_jax.runtime.sharding import Layout
from marigold_jax.weights import lora, model_folder
from marigold_jax.weights.diffusers_folder import INDEX
from marigold_jax.weights.model import DiffusionModel
from marigold_jax.weights.model_index import JSON_KEYS

ABANDONED = 24 * 3600  # seconds; a half-written export older than this was left by a killed process


def gather_trained(base: DiffusionModel, component: str, params: Params, layout: Layout) -> DiffusionModel:
    """Returns the model with the trained weights in it, each array whole on one device of every process.

    All processes must call this, because each holds a part of the weights.

    Args:
        base: the model that training began from.
        component: what was trained, "unet" or "vae".
        params: the trained parameters, laid out over the devices by `layout`: all of them, or low-rank corrections.
        layout: of the training.
    """
    before = getattr(base, component)
    gathered = jax.jit(lora.merge, out_shardings=layout.replicated)(before.params, params)
    whole = {name: array.addressable_data(0) for name, array in gathered.items()}
    return with_params(base, component, _own(before.structure, whole))


def merge_trained(base: DiffusionModel, component: str, params: Params) -> DiffusionModel:
    """Returns the model with the trained weights in it, for parameters that are whole already."""
    before = getattr(base, component)
    return with_params(base, component, _own(before.structure, lora.merge(before.params, params)))


def with_params(base: DiffusionModel, component: str, params: Params) -> DiffusionModel:
    """Returns the model with these parameters as its "unet" or "vae"."""
    return dataclasses.replace(base, **{component: dataclasses.replace(getattr(base, component), params=params)})


def _own(structure: Structure, params: Params) -> Params:
    """Drops parameters that only help to train, such as the heads of `training.objectives.alignment`."""
    return {name: params[name] for name in functional.names(structure)}


def export(model: DiffusionModel, step: int, workdir: Path) -> Path:
    """Writes `export/`, replacing an older one, and returns its path."""
    folder = workdir / EXPORT
    for path in workdir.glob(f".{EXPORT}.*"):
        if time.time() - path.stat().st_mtime > ABANDONED:
            shutil.rmtree(path, ignore_errors=True)
    # The process id is part of the name, because a training and a prediction may both write an export now.
    fresh, old = (folder.with_name(f".{EXPORT}.{os.getpid()}.{which}") for which in ("new", "old"))
    for path in (fresh, old):
        shutil.rmtree(path, ignore_errors=True)
    model_folder.save(dataclasses.replace(model, index=model.index.replace(exported_step=step)), fresh)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(old)
    try:
        fresh.rename(folder)
    except OSError:
        if exported_step(workdir) != step:
            raise
        shutil.rmtree(fresh, ignore_errors=True)  # another process has just written the same export
    shutil.rmtree(old, ignore_errors=True)
    return folder


def exported_step(workdir: Path) -> int | None:
    """Returns the step of the weights in `export/`, or None if there is no export or its index cannot be read."""
    index = workdir / EXPORT / INDEX
    try:
        return read_json(index).get(JSON_KEYS["exported_step"]) if index.is_file() else None
    except ValueError:
        return None
