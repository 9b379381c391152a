"""A model folder in the layout of diffusers: `model_index.json`, and one folder for each component."""

import dataclasses
import hashlib
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from marigold_jax.diffusion.scheduler_config import SchedulerConfig, unknown_keys
from marigold_jax.models import unet, vae
from marigold_jax.runtime.cache import user_cache
from marigold_jax.runtime.files import read_json, regular, write_json
from marigold_jax.runtime.typed import listed
from marigold_jax.weights import empty_prompt, model_index, null_text_encoder
from marigold_jax.weights.component import (
    COMPONENTS,
    CONFIG,
    Component,
    class_name_of,
    config_from_file,
    kind_of,
    layout_of,
    load_part,
    save_component,
)
from marigold_jax.weights.empty_prompt import EmptyPrompt
from marigold_jax.weights.model import DiffusionModel
from marigold_jax.weights.model_index import ModelIndex
from marigold_jax.weights.other_families import family_of

logger = logging.getLogger(__name__)

INDEX = "model_index.json"
SCHEDULER = "scheduler_config.json"
TEXT_COMPONENTS = {"text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}

STABLE_DIFFUSION_2_SCHEDULER = SchedulerConfig(
    {
        "_class_name": "DDIMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "clip_sample": False,
    }
)


def load(folder: Path, dtype: Any) -> DiffusionModel:
    """Reads a folder; see `model_folder.load`."""
    index, scheduler = _read_index(folder)
    parts = {name: load_part(name, folder / name, dtype) for name in COMPONENTS}
    return DiffusionModel(**parts, empty_prompt=_prompt(folder), scheduler=scheduler, index=index, folder=folder)


def save(model: DiffusionModel, folder: Path, dtype: str) -> None:
    """Writes everything but the empty prompt into an existing folder; see `model_folder.save`."""
    index = dict(model.index.values)
    for name, kinds in COMPONENTS.items():
        part = getattr(model, name)
        class_name = class_name_of(name, part.config)
        save_component(folder / name, class_name, part.config, kinds[class_name].fixed, part.params, dtype)
        index[name] = ["diffusers", class_name]
    index["scheduler"] = ["diffusers", model.scheduler.class_name or "DDIMScheduler"]
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / SCHEDULER, model.scheduler.values)
    # diffusers needs a text encoder: copy it if there is one. One that returns zeros for any prompt is easily made.
    for name in TEXT_COMPONENTS:
        if (model.folder / name).is_dir():
            shutil.copytree(model.folder / name, folder / name, copy_function=_copy)
    if not (folder / "text_encoder").is_dir() and null_text_encoder.is_zero(model.empty_prompt):
        null_text_encoder.save_text_components(model.empty_prompt, folder)
    for name, class_name in TEXT_COMPONENTS.items():
        index[name] = ["transformers", class_name] if (folder / name).is_dir() else [None, None]
    write_json(folder / INDEX, index)


def _copy(source: str, target: str) -> None:
    shutil.copy2(regular(source), target)


def shapes_of(folder: Path | None) -> DiffusionModel:
    """Returns a model without its weights: parameters are `jax.ShapeDtypeStruct`, and the empty prompt is zeros.

    The UNet is already widened to two latents.

    Args:
        folder: in diffusers' layout; None for Stable Diffusion 2 at full size.

    Raises:
        FileNotFoundError, ValueError: one line that names the file.
    """
    configs, scheduler, index = {"unet": unet.SD2, "vae": vae.SD2}, STABLE_DIFFUSION_2_SCHEDULER, ModelIndex({})
    if folder is not None:
        index, scheduler = _read_index(folder)
        for name in COMPONENTS:
            file = folder / name / CONFIG
            kind = kind_of(name, read_json(file), file)
            configs[name] = config_from_file(file, kind.config, kind.fixed)
    configs["unet"] = dataclasses.replace(configs["unet"], in_channels=2 * configs["vae"].latent_channels)
    parts = {}
    for name, config in configs.items():
        structure, shapes = layout_of(COMPONENTS[name][class_name_of(name, config)].module, config)
        parts[name] = Component(config, structure, dict(shapes))
    width = configs["unet"].cross_attention_dim
    return DiffusionModel(
        **parts,
        empty_prompt={length: np.zeros((length, width), np.float32) for length in (2, 77)},
        scheduler=scheduler,
        index=index,
        folder=folder or Path("shapes"),
    )


def _read_index(folder: Path) -> tuple[ModelIndex, SchedulerConfig]:
    """Reads the index and the scheduler of a folder. Raises ValueError for a model of another family."""
    index = read_json(folder / INDEX)
    file, unet_file = folder / "scheduler" / SCHEDULER, folder / "unet" / CONFIG
    scheduler, unet_config = (read_json(file) if file.exists() else {} for file in (file, unet_file))
    if family := family_of(folder, index, unet_config, scheduler):
        raise ValueError(f"{folder}: {family}")
    return model_index.read(index, folder / INDEX), read_scheduler(read_json(file), file)


def read_scheduler(values: Mapping[str, Any], file: Path) -> SchedulerConfig:
    """Returns the known keys of a `scheduler_config.json`. Unknown keys are dropped with a warning."""
    unknown = unknown_keys(values)
    scheduler = SchedulerConfig({key: value for key, value in values.items() if key not in unknown}, file)
    if unknown:
        logger.warning("%s: passing over what is not known here: %s", file, listed(unknown))
    return scheduler


def _prompt(folder: Path) -> EmptyPrompt:
    """Returns the empty prompt: stored in the folder, else in the user's cache, else computed and cached."""
    stored = folder / empty_prompt.FILE
    if os.path.lexists(stored):
        return empty_prompt.load(stored)
    encoder, tokenizer = folder / "text_encoder", folder / "tokenizer"
    if not encoder.is_dir():
        raise FileNotFoundError(
            f"{folder}: needs {empty_prompt.FILE} or text_encoder/ for the embedding of the empty prompt; copy "
            "text_encoder/ and tokenizer/ from Stable Diffusion 2 or from any Marigold checkpoint into it"
        )
    # The cache key: path, size and time of every file that the result depends on.
    files = [file for part in (encoder, tokenizer) if part.is_dir() for file in sorted(part.iterdir()) if file.exists()]
    stats = [(os.path.realpath(file), file.stat()) for file in files]
    identity = "|".join(f"{path}:{stat.st_size}:{stat.st_mtime_ns}" for path, stat in stats)
    name = hashlib.sha256(os.fsencode(identity)).hexdigest()
    cached = user_cache("empty_prompt") / f"{name}.safetensors"
    try:
        return empty_prompt.load(cached)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # cut short, perhaps by a full disk
        logger.info("%s; computing it again", error)
    prompt = empty_prompt.compute(encoder, tokenizer)
    try:
        empty_prompt.save(prompt, cached)
    except OSError:
        pass  # a read-only home: computed again next time
    return prompt
