"""A whole checkpoint in memory, and the two ways it lies on disk.

| layout    | what it is for                                | marked by          |
|-----------|-----------------------------------------------|--------------------|
| diffusers | exchange: what the authors publish            | `model_index.json` |
| native    | Orbax: loads onto any sharding, in shares     | `marigold.json`    |
"""

import dataclasses
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from marigold_jax.cache import user_cache
from marigold_jax.models import autoencoder_tiny, unet, vae
from marigold_jax.models.config import config_from_dict, config_to_dict
from marigold_jax.models.functional import Params, Structure, abstract
from marigold_jax.runtime.files import read_json, write_json
from marigold_jax.weights import empty_prompt, silence
from marigold_jax.weights.component import (
    CONFIG,
    config_from_file,
    load_component,
    save_component,
)
from marigold_jax.weights.empty_prompt import EmptyPrompt

INDEX = "model_index.json"
NATIVE = "marigold.json"
NATIVE_PARAMS = "params"


class Kind(NamedTuple):
    """A class of diffusers': its configuration here, its module, and the fixed part of its configuration."""

    config: type
    module: Callable[..., Any]
    fixed: Mapping[str, Any]


# Component -> what it may be, by the name of diffusers' class; the first where nothing is said.
COMPONENTS = {
    "unet": {"UNet2DConditionModel": Kind(unet.UNetConfig, unet.UNet, unet.FIXED)},
    "vae": {
        "AutoencoderKL": Kind(vae.VAEConfig, vae.VAE, vae.FIXED),
        "AutoencoderTiny": Kind(
            autoencoder_tiny.AutoencoderTinyConfig, autoencoder_tiny.AutoencoderTiny, autoencoder_tiny.FIXED
        ),
    },
}
TEXT_COMPONENTS = {"text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}

STABLE_DIFFUSION_2_SCHEDULER = {
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

# What the bias of a widened conv_in is multiplied by. The kernel is halved by both.
INFLATION_BIAS = {"marigold": 1.0, "e2e_ft": 0.5}

Sharding = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]


@dataclasses.dataclass(frozen=True)
class Component:
    config: Any
    structure: Structure
    params: Params


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Everything that prediction and training start from.

    `description`: the scalars of `model_index.json` (`_class_name`, `scale_invariant`, `default_denoising_steps`, ...);
    `scheduler`: the contents of `scheduler_config.json`; `folder`: where it was read from.
    """

    unet: Component
    vae: Component
    empty_prompt: EmptyPrompt
    scheduler: Mapping[str, Any]
    description: Mapping[str, Any]
    folder: Path


def kind_of(component: str, config: Mapping[str, Any], file: Path) -> Kind:
    """What the contents of a component's `config.json` describe. ValueError, which names the file, if nothing known."""
    kinds = COMPONENTS[component]
    class_name = config.get("_class_name", next(iter(kinds)))
    if class_name not in kinds:
        raise ValueError(f"{file}: the {component} is of class {class_name!r}, wanted {' or '.join(kinds)}")
    return kinds[class_name]


def class_name_of(component: str, config: Any) -> str:
    """The name of diffusers' class, from a configuration as it is here."""
    return next(name for name, kind in COMPONENTS[component].items() if type(config) is kind.config)


def load_part(component: str, folder: Path, dtype: Any) -> Component:
    """Read the folder of one component: `config.json` and weights. Raises as `load` does."""
    kind = kind_of(component, read_json(folder / CONFIG), folder / CONFIG)
    return Component(*load_component(folder, *kind, dtype))


def load(folder: Path, dtype: Any = jnp.float32, sharding: Sharding | None = None) -> Checkpoint:
    """Read a checkpoint folder of either layout.

    `dtype`: of the parameters in memory. `sharding`: for a native checkpoint, from "unet.<path>" or "vae.<path>" and a
    shape to the sharding that each array is born with, as `marigold_jax.sharding.Layout.sharding`; None for one device.
    Raises FileNotFoundError or ValueError with one line that names the file.
    """
    if (folder / NATIVE).is_file():
        return _load_native(folder, dtype, sharding)
    if (folder / INDEX).is_file():
        return _load_diffusers(folder, dtype)
    raise FileNotFoundError(f"{folder}: neither {INDEX} (diffusers' layout) nor {NATIVE} (native) is here")


def shapes_of(folder: Path | None) -> Checkpoint:
    """The checkpoint in a folder of diffusers' layout (None: Stable Diffusion 2 at full size) without its weights.

    Parameters are `jax.ShapeDtypeStruct`, float32, the UNet already widened to two latents; the empty prompt is zeros.
    Raises FileNotFoundError or ValueError that names the file.
    """
    configs, scheduler, index = {"unet": unet.SD2, "vae": vae.SD2}, STABLE_DIFFUSION_2_SCHEDULER, {}
    if folder is not None:
        scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
        index = read_json(folder / INDEX)
        for name in COMPONENTS:
            file = folder / name / CONFIG
            kind = kind_of(name, read_json(file), file)
            configs[name] = config_from_file(file, kind.config, kind.fixed)
    configs["unet"] = dataclasses.replace(configs["unet"], in_channels=2 * configs["vae"].latent_channels)
    parts = {}
    for name, config in configs.items():
        module = COMPONENTS[name][class_name_of(name, config)].module
        parts[name] = Component(config, *abstract(lambda rngs, module=module, config=config: module(config, rngs)))
    width = configs["unet"].cross_attention_dim
    return Checkpoint(
        **parts,
        empty_prompt={length: np.zeros((length, width), np.float32) for length in (2, 77)},
        scheduler=scheduler,
        description={key: value for key, value in index.items() if not isinstance(value, list)},
        folder=folder or Path("shapes"),
    )


def _load_diffusers(folder: Path, dtype: Any) -> Checkpoint:
    index = read_json(folder / INDEX)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    parts = {name: load_part(name, folder / name, dtype) for name in COMPONENTS}
    description = {key: value for key, value in index.items() if not isinstance(value, list)}
    return Checkpoint(
        **parts, empty_prompt=_prompt(folder), scheduler=scheduler, description=description, folder=folder
    )


def _prompt(folder: Path) -> EmptyPrompt:
    """The stored answer to the empty prompt: beside the weights, else in the user's cache, else computed and kept."""
    stored = folder / empty_prompt.FILE
    if stored.is_file():
        return empty_prompt.load(stored)
    encoder = folder / "text_encoder"
    if not encoder.is_dir():
        raise FileNotFoundError(
            f"{folder}: needs {empty_prompt.FILE} or text_encoder/, to know what the empty prompt means; copy "
            "text_encoder/ and tokenizer/ from Stable Diffusion 2 or from any Marigold checkpoint into it"
        )
    files = [file.resolve() for file in sorted(encoder.iterdir())]
    identity = "|".join(f"{file}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)
    cached = user_cache("empty_prompt") / f"{hashlib.sha256(identity.encode()).hexdigest()}.safetensors"
    if cached.is_file():
        return empty_prompt.load(cached)
    prompt = empty_prompt.compute(encoder, folder / "tokenizer")
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        partial = cached.with_suffix(f".{os.getpid()}")
        empty_prompt.save(prompt, partial)
        partial.replace(cached)
    except OSError:
        pass  # a read-only home: computed again next time
    return prompt


def _load_native(folder: Path, dtype: Any, sharding: Sharding | None) -> Checkpoint:
    from orbax.checkpoint import v1 as ocp

    sharding = sharding or (lambda name, shape: jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    stored = read_json(folder / NATIVE)
    configs, structures, shapes = {}, {}, {}
    for name in COMPONENTS:
        config_class, module, fixed = kind_of(name, stored[name], folder / NATIVE)
        config = configs[name] = config_from_dict(config_class, stored[name], fixed)
        structures[name], plain = abstract(lambda rngs, module=module, config=config: module(config, rngs))
        shapes[name] = {
            path: jax.ShapeDtypeStruct(x.shape, dtype, sharding=sharding(f"{name}.{path}", x.shape))
            for path, x in plain.items()
        }
    try:
        params = ocp.load(folder / NATIVE_PARAMS, shapes)
    except Exception as error:  # Orbax lets many types through: KeyError, ValueError, OSError, tensorstore's own
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise ValueError(f"{folder / NATIVE_PARAMS}: not readable ({reason}); convert the checkpoint again") from error
    return Checkpoint(
        **{name: Component(configs[name], structures[name], params[name]) for name in COMPONENTS},
        empty_prompt=empty_prompt.load(folder / empty_prompt.FILE),
        scheduler=stored["scheduler"],
        description=stored["description"],
        folder=folder,
    )


def save(checkpoint: Checkpoint, folder: Path, layout: str = "diffusers", dtype: str = "float32") -> None:
    """Write a new folder in the layout "diffusers" or "native"; it appears whole, by rename, or not at all.

    `dtype`: of the weights in the file; "float32" or "float16". Raises ValueError where that cannot hold a weight.
    """
    if folder.exists():
        raise FileExistsError(f"{folder}: exists already; name a new folder")
    for name in COMPONENTS:
        for path, array in getattr(checkpoint, name).params.items():
            if (largest := float(jnp.abs(array).max())) > float(jnp.finfo(dtype).max):
                raise ValueError(f"{name}.{path}: its largest value, {largest:.3g}, does not fit {dtype}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        {"diffusers": _save_diffusers, "native": _save_native}[layout](checkpoint, partial, dtype)
        empty_prompt.save(checkpoint.empty_prompt, partial / empty_prompt.FILE)
        partial.chmod(0o755)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _save_diffusers(checkpoint: Checkpoint, folder: Path, dtype: str) -> None:
    index = dict(checkpoint.description)
    for name, kinds in COMPONENTS.items():
        part = getattr(checkpoint, name)
        class_name = class_name_of(name, part.config)
        save_component(folder / name, class_name, part.config, kinds[class_name].fixed, part.params, dtype)
        index[name] = ["diffusers", class_name]
    index["scheduler"] = ["diffusers", checkpoint.scheduler.get("_class_name", "DDIMScheduler")]
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", checkpoint.scheduler)
    # The text encoder goes along for diffusers' sake, byte for byte, where there is one; silence is easily made.
    for name in TEXT_COMPONENTS:
        if (checkpoint.folder / name).is_dir():
            shutil.copytree(checkpoint.folder / name, folder / name)
    if not (folder / "text_encoder").is_dir() and silence.is_silent(checkpoint.empty_prompt):
        silence.save_text_components(checkpoint.empty_prompt, folder)
    for name, class_name in TEXT_COMPONENTS.items():
        index[name] = ["transformers", class_name] if (folder / name).is_dir() else [None, None]
    write_json(folder / INDEX, index)


def _save_native(checkpoint: Checkpoint, folder: Path, dtype: str) -> None:
    from orbax.checkpoint import v1 as ocp

    parts = {name: getattr(checkpoint, name) for name in COMPONENTS}
    params = {name: jax.tree.map(lambda x: x.astype(dtype), part.params) for name, part in parts.items()}
    ocp.save(folder / NATIVE_PARAMS, params)
    stored = {
        name: {"_class_name": class_name_of(name, part.config)} | config_to_dict(part.config, {})
        for name, part in parts.items()
    }
    stored |= {"scheduler": dict(checkpoint.scheduler), "description": dict(checkpoint.description)}
    write_json(folder / NATIVE, stored)


def with_vae(checkpoint: Checkpoint, folder: Path, dtype: Any = jnp.float32) -> Checkpoint:
    """The checkpoint with the VAE of another folder (`config.json` and weights), as a small one with the same latents.

    Nothing can tell whether latents mean the same, only whether they have the same shape. Raises as `load` does, and
    ValueError where they have not.
    """
    part = load_part("vae", folder, dtype)
    found, wanted = ((vae.latent_channels, vae.downsampling) for vae in (part.config, checkpoint.vae.config))
    if found != wanted:
        raise ValueError(
            f"{folder}: latents of {found[0]} channels, {found[1]} x {found[1]} pixels each; the UNet of "
            f"{checkpoint.folder} was trained with {wanted[0]} channels, {wanted[1]} x {wanted[1]} pixels. Take a VAE "
            "that was made for this family of models"
        )
    return dataclasses.replace(checkpoint, vae=part)


def inflate(checkpoint: Checkpoint, bias: str = "marigold", copies: int = 2) -> Checkpoint:
    """Widen `conv_in` from 4 to 4 · `copies` input channels: the kernel repeated and divided, so that the sum stays.

    `bias`: "marigold" keeps it, "e2e_ft" halves it, as the two papers' code do. A checkpoint that is already wide comes
    back unchanged.
    """
    part, latent = checkpoint.unet, checkpoint.vae.config.latent_channels
    if part.config.in_channels == copies * latent:
        return checkpoint
    if part.config.in_channels != latent:
        raise ValueError(f"conv_in has {part.config.in_channels} input channels: only {latent} can be widened")
    config = dataclasses.replace(part.config, in_channels=copies * latent)
    structure, _ = abstract(lambda rngs: unet.UNet(config, rngs))
    kernel, old_bias = part.params["conv_in.kernel"], part.params["conv_in.bias"]
    wide = {
        "conv_in.kernel": jnp.concatenate([kernel] * copies, axis=2) / np.asarray(copies, kernel.dtype),
        "conv_in.bias": old_bias * np.asarray(INFLATION_BIAS[bias], old_bias.dtype),
    }
    return dataclasses.replace(checkpoint, unet=Component(config, structure, part.params | wide))
