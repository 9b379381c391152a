"""One component of a checkpoint folder (`unet/`, `vae/`, `text_encoder/`): its configuration and its parameters."""

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from marigold_jax.models.config import config_from_dict, config_to_dict
from marigold_jax.models.functional import Params, Structure, abstract
from marigold_jax.runtime.files import read_json, write_json
from marigold_jax.weights import torch_names
from marigold_jax.weights.torch_files import Tensors, require_finite

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
READERS = 4  # tensors read and transposed at the same time


def load_component(
    folder: Path, config_class: type, module: Callable, fixed: Mapping[str, Any], dtype: Any = jnp.float32
) -> tuple[Any, Structure, Params]:
    """Configuration, structure and parameters, a few tensors at a time, each cast to `dtype`.

    Raises FileNotFoundError, or ValueError that names the folder and everything in it that does not fit.
    """
    config = config_from_file(folder / CONFIG, config_class, fixed)
    structure, shapes = layout_of(module, config)
    tensors = Tensors(folder)
    try:
        matches = torch_names.match({path: array.shape for path, array in shapes.items()}, tensors.shapes)
    except ValueError as error:
        raise ValueError(f"{tensors}: {error}") from error

    def read(path):
        stored = torch_names.from_checkpoint(path, shapes[path].ndim, tensors.read(matches[path]))
        with np.errstate(over="ignore"):  # said below, by name
            array = np.ascontiguousarray(stored, dtype=dtype)
        if stored.dtype.itemsize > array.dtype.itemsize:
            require_finite(array, f"{tensors}: {matches[path]} as {array.dtype}")
        return jax.device_put(array)

    with ThreadPoolExecutor(READERS) as pool:
        params = dict(zip(matches, pool.map(read, matches), strict=True))
    return config, structure, params


@functools.lru_cache(maxsize=16)
def layout_of(module: Callable, config: Any) -> tuple[Structure, Mapping[str, jax.ShapeDtypeStruct]]:
    """Structure and shapes of a module, not to be altered: traced once, however often such a checkpoint is loaded."""
    return abstract(lambda rngs: module(config, rngs))


def save_component(
    folder: Path,
    class_name: str,
    config: Any,
    fixed: Mapping[str, Any],
    params: Params,
    dtype: str = "float32",
    file: str = WEIGHTS,
) -> None:
    """The inverse: a folder that diffusers loads, its weights in `dtype`. Names and layout are today's diffusers'."""
    spatial = not getattr(config, "use_linear_projection", True)
    folder.mkdir(parents=True)
    write_json(folder / CONFIG, {"_class_name": class_name} | config_to_dict(config, fixed))
    tensors = {
        torch_names.checkpoint_name(path, np.ndim(array)): torch_names.to_checkpoint(
            path, np.asarray(array, dtype), spatial
        )
        for path, array in params.items()
    }
    save_file(tensors, folder / file, metadata={"format": "pt"})


def config_from_file(file: Path, config_class: type, fixed: Mapping[str, Any]) -> Any:
    values = read_json(file)
    try:
        return config_from_dict(config_class, values, fixed, file)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
