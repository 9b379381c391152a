"""Reads and writes one component of a model (`unet/`, `vae/`, `text_encoder/`): configuration and parameters."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from marigold_jax.models import autoencoder_tiny, unet, vae
from marigold_jax.models.config import config_from_dict, config_to_dict
from marigold_jax.models.functional import Params, Structure, abstract
from marigold_jax.runtime.files import read_json, write_json
from marigold_jax.runtime.typed import shown
from marigold_jax.weights import torch_names
from marigold_jax.weights.torch_files import Tensors, require_finite

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
READERS = 4  # tensors read and transposed at the same time


class Kind(NamedTuple):
    """The implementation of a class of diffusers.

    Attributes:
        config: our dataclass of its `config.json`.
        module: from a configuration and keys to the `nnx.Module`.
        fixed: the keys of `config.json` that have one supported value; see `models.config`.
    """

    config: type
    module: Callable[..., Any]
    fixed: Mapping[str, Any]


# Component -> its possible classes in diffusers. The first one is the default for files without a class name.
COMPONENTS = {
    "unet": {"UNet2DConditionModel": Kind(unet.UNetConfig, unet.UNet, unet.FIXED)},
    "vae": {
        "AutoencoderKL": Kind(vae.VAEConfig, vae.VAE, vae.FIXED),
        "AutoencoderTiny": Kind(
            autoencoder_tiny.AutoencoderTinyConfig, autoencoder_tiny.AutoencoderTiny, autoencoder_tiny.FIXED
        ),
    },
}


@dataclasses.dataclass(frozen=True)
class Component:
    """A network in memory: its configuration, its structure and its parameters."""

    config: Any
    structure: Structure
    params: Params


def kind_of(component: str, config: Mapping[str, Any], file: Path) -> Kind:
    """Returns the kind that the contents of a `config.json` describe. Raises ValueError if it is unknown."""
    kinds = COMPONENTS[component]
    class_name = config.get("_class_name", next(iter(kinds)))
    if not isinstance(class_name, str) or class_name not in kinds:
        raise ValueError(f"{file}: the {component} is of class {shown(class_name)}, wanted {' or '.join(kinds)}")
    return kinds[class_name]


def class_name_of(component: str, config: Any) -> str:
    """Returns the name of diffusers' class for one of our configurations."""
    return next(name for name, kind in COMPONENTS[component].items() if type(config) is kind.config)


def load_part(component: str, folder: Path, dtype: Any) -> Component:
    """Reads the folder of a component: `config.json` and weights. Raises as `load_component`."""
    kind = kind_of(component, read_json(folder / CONFIG), folder / CONFIG)
    return Component(*load_component(folder, *kind, dtype))


def load_component(
    folder: Path, config_class: type, module: Callable, fixed: Mapping[str, Any], dtype: Any = jnp.float32
) -> tuple[Any, Structure, Params]:
    """Reads a component in diffusers' layout, a few tensors at a time.

    Args:
        folder: with `config.json` and weights.
        config_class: our dataclass of `config.json`.
        module: from a configuration and keys to the `nnx.Module`.
        fixed: the keys of `config.json` that have one supported value.
        dtype: of the parameters in memory.

    Returns:
        Configuration, structure and parameters.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: one line that names the folder and everything in it that does not fit.
    """
    config = config_from_file(folder / CONFIG, config_class, fixed)
    structure, shapes = layout_of(module, config)
    tensors = Tensors(folder)
    try:
        matches = torch_names.match({path: array.shape for path, array in shapes.items()}, tensors.shapes)
    except ValueError as error:
        raise ValueError(f"{tensors}: {error}") from error

    def read(path):
        stored = torch_names.from_torch(path, shapes[path].ndim, tensors.read(matches[path]))
        with np.errstate(over="ignore"):  # reported below, with the name
            array = np.ascontiguousarray(stored, dtype=dtype)
        if stored.dtype.itemsize > array.dtype.itemsize:
            require_finite(array, f"{tensors}: {matches[path]} as {array.dtype}")
        return jax.device_put(array)

    with ThreadPoolExecutor(READERS) as pool:
        params = dict(zip(matches, pool.map(read, matches), strict=True))
    return config, structure, params


@functools.lru_cache(maxsize=16)
def layout_of(module: Callable, config: Any) -> tuple[Structure, Mapping[str, jax.ShapeDtypeStruct]]:
    """Returns structure and shapes of a module. They are cached, so do not change them."""
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
    """Writes a folder that diffusers and transformers load, with the names and the layout of their current versions.

    Args:
        folder: to be created.
        class_name: diffusers' class.
        config: our configuration.
        fixed: further keys of `config.json`.
        params: of the component.
        dtype: of the weights in the file.
        file: name of the file of weights.
    """
    spatial = not getattr(config, "use_linear_projection", True)
    folder.mkdir(parents=True)
    write_json(folder / CONFIG, {"_class_name": class_name} | config_to_dict(config, fixed))
    tensors = {
        torch_names.torch_name(path, np.ndim(array)): torch_names.to_torch(path, np.asarray(array, dtype), spatial)
        for path, array in params.items()
    }
    save_file(tensors, folder / file, metadata={"format": "pt"})


def config_from_file(file: Path, config_class: type, fixed: Mapping[str, Any]) -> Any:
    values = read_json(file)
    try:
        return config_from_dict(config_class, values, fixed, file)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
