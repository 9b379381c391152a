"""Reads and writes a model folder in either layout.

| layout    | what it is for                                | marked by          |
|-----------|-----------------------------------------------|--------------------|
| diffusers | exchange: what authors publish                | `model_index.json` |
| native    | Orbax: each device reads only its share       | `marigold.json`    |
"""

import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from marigold_jax.runtime.files import read_json
from marigold_jax.weights import diffusers_folder, empty_prompt, native_folder
from marigold_jax.weights.component import COMPONENTS, CONFIG
from marigold_jax.weights.diffusers_folder import INDEX, SCHEDULER
from marigold_jax.weights.model import DiffusionModel
from marigold_jax.weights.native_folder import NATIVE, Sharding
from marigold_jax.weights.other_families import family_of, looks_like_video

logger = logging.getLogger(__name__)


def load(folder: Path, dtype: Any = jnp.float32, sharding: Sharding | None = None) -> DiffusionModel:
    """Reads a model folder in either layout.

    Args:
        folder: of the model.
        dtype: of the parameters in memory.
        sharding: for the native layout: from "unet.<path>" or "vae.<path>" and a shape to the sharding of the array, as
            `runtime.sharding.Layout.sharding`. None for one device.

    Raises:
        FileNotFoundError, ValueError: one line that names the file.
    """
    if os.path.lexists(folder / NATIVE):
        loaded = native_folder.load(folder, dtype, sharding)
    elif os.path.lexists(folder / INDEX):
        loaded = diffusers_folder.load(folder, dtype)
    else:
        raise FileNotFoundError(f"{folder}: {_what_it_is(folder)}")
    width, wanted = loaded.empty_prompt[2].shape[1], loaded.unet.config.cross_attention_dim
    if width != wanted:
        raise ValueError(
            f"{folder}: the embedding of the empty prompt has {width} channels, but the UNet's cross_attention_dim is "
            f"{wanted}: text_encoder/ or {empty_prompt.FILE} belongs to another model"
        )
    if looks_like_video(folder):
        logger.warning("%s: by its name a model of videos; here it estimates each picture by itself", folder)
    return loaded


def save(model: DiffusionModel, folder: Path, layout: str = "diffusers", dtype: str = "float32") -> None:
    """Writes a model folder. It appears only when it is complete, by a rename.

    Args:
        model: to be written.
        folder: to be created.
        layout: "diffusers" or "native".
        dtype: of the weights in the files, "float32" or "float16".

    Raises:
        FileExistsError: the folder exists.
        ValueError: a weight is too large for `dtype`.
    """
    if folder.exists():
        raise FileExistsError(f"{folder}: exists already; name a new folder")
    for name in COMPONENTS:
        for path, array in getattr(model, name).params.items():
            if (largest := float(jnp.abs(array).max())) > float(jnp.finfo(dtype).max):
                raise ValueError(f"{name}.{path}: its largest value, {largest:.3g}, does not fit {dtype}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        {"diffusers": diffusers_folder, "native": native_folder}[layout].save(model, partial, dtype)
        empty_prompt.save(model.empty_prompt, partial / empty_prompt.FILE)
        partial.chmod(0o755)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _what_it_is(folder: Path) -> str:
    """Says why a folder without an index does not load."""
    unet_file, scheduler_file = folder / "unet" / CONFIG, folder / "scheduler" / SCHEDULER
    contents = [read_json(file) if file.is_file() else {} for file in (unet_file, scheduler_file)]
    if family := family_of(folder, {}, *contents):
        return family
    held = "; this looks like one part of a checkpoint: name the folder above it" * (folder / CONFIG).is_file()
    return f"neither {INDEX} (diffusers' layout) nor {NATIVE} (native) is here{held}"
