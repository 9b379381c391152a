"""A model folder of either layout, read and written.

| layout    | what it is for                                | marked by          |
|-----------|-----------------------------------------------|--------------------|
| diffusers | exchange: what the authors publish            | `model_index.json` |
| native    | Orbax: loads onto any sharding, in shares     | `marigold.json`    |
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
    """Read a checkpoint folder of either layout.

    `dtype`: of the parameters in memory. `sharding`: for a native checkpoint, from "unet.<path>" or "vae.<path>" and a
    shape to the sharding that each array is born with, as `runtime.sharding.Layout.sharding`; None for one device.
    Raises FileNotFoundError or ValueError with one line that names the file.
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
            f"{folder}: the answer to the empty prompt is {width} numbers wide, and the UNet's cross_attention_dim is "
            f"{wanted}: text_encoder/ or {empty_prompt.FILE} belongs to another model"
        )
    if looks_like_video(folder):
        logger.warning("%s: by its name a model of videos; here it estimates each picture by itself", folder)
    return loaded


def save(model: DiffusionModel, folder: Path, layout: str = "diffusers", dtype: str = "float32") -> None:
    """Write a new folder in the layout "diffusers" or "native"; it appears whole, by rename, or not at all.

    `dtype`: of the weights in the file; "float32" or "float16". Raises ValueError where that cannot hold a weight.
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
    """Why a folder without an index does not load."""
    unet_file, scheduler_file = folder / "unet" / CONFIG, folder / "scheduler" / SCHEDULER
    contents = [read_json(file) if file.is_file() else {} for file in (unet_file, scheduler_file)]
    if family := family_of(folder, {}, *contents):
        return family
    held = "; this looks like one part of a checkpoint: name the folder above it" * (folder / CONFIG).is_file()
    return f"neither {INDEX} (diffusers' layout) nor {NATIVE} (native) is here{held}"
