"""A whole checkpoint in memory, and the two ways it lies on disk.

| layout    | what it is for                                | marked by          |
|-----------|-----------------------------------------------|--------------------|
| diffusers | exchange: what the authors publish            | `model_index.json` |
| native    | Orbax: loads onto any sharding, in shares     | `marigold.json`    |
"""

import contextlib
import dataclasses
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from marigold_jax.diffusion.scheduler_config import SchedulerConfig, unknown_keys
from marigold_jax.models import autoencoder_tiny, unet, vae
from marigold_jax.models.config import config_from_dict, config_to_dict
from marigold_jax.models.functional import Params, Structure, abstract
from marigold_jax.runtime.cache import user_cache
from marigold_jax.runtime.files import below, printable, read_json, regular, write_json
from marigold_jax.runtime.typed import listed, shown
from marigold_jax.weights import empty_prompt, model_index, null_text_encoder
from marigold_jax.weights.component import (
    CONFIG,
    config_from_file,
    layout_of,
    load_component,
    save_component,
)
from marigold_jax.weights.empty_prompt import EmptyPrompt
from marigold_jax.weights.model_index import ModelIndex
from marigold_jax.weights.other_families import family_of, looks_like_video
from marigold_jax.weights.torch_files import require_finite

logger = logging.getLogger(__name__)

INDEX = "model_index.json"
SCHEDULER = "scheduler_config.json"
NATIVE = "marigold.json"
NATIVE_PARAMS = "params"
FILES = "files"  # in a native checkpoint: the size of each file below it, in bytes


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

# What the bias of a widened conv_in is multiplied by. The kernel is divided by the number of its copies by both.
INFLATION_BIAS = {"marigold": lambda copies: 1.0, "e2e_ft": lambda copies: 1 / copies}

Sharding = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]


@dataclasses.dataclass(frozen=True)
class Component:
    config: Any
    structure: Structure
    params: Params


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Everything that prediction and training start from.

    Attributes:
        scheduler: `scheduler_config.json`.
        index: the scalars of `model_index.json`.
        folder: where it was read from.
    """

    unet: Component
    vae: Component
    empty_prompt: EmptyPrompt
    scheduler: SchedulerConfig
    index: ModelIndex
    folder: Path


def kind_of(component: str, config: Mapping[str, Any], file: Path) -> Kind:
    """What the contents of a component's `config.json` describe. ValueError, which names the file, if nothing known."""
    kinds = COMPONENTS[component]
    class_name = config.get("_class_name", next(iter(kinds)))
    if not isinstance(class_name, str) or class_name not in kinds:
        raise ValueError(f"{file}: the {component} is of class {shown(class_name)}, wanted {' or '.join(kinds)}")
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
    shape to the sharding that each array is born with, as `runtime.sharding.Layout.sharding`; None for one device.
    Raises FileNotFoundError or ValueError with one line that names the file.
    """
    if os.path.lexists(folder / NATIVE):
        loaded = _load_native(folder, dtype, sharding)
    elif os.path.lexists(folder / INDEX):
        loaded = _load_diffusers(folder, dtype)
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


def _what_it_is(folder: Path) -> str:
    """Why a folder without an index does not load."""
    unet_file, scheduler_file = folder / "unet" / CONFIG, folder / "scheduler" / SCHEDULER
    contents = [read_json(file) if file.is_file() else {} for file in (unet_file, scheduler_file)]
    if family := family_of(folder, {}, *contents):
        return family
    held = "; this looks like one part of a checkpoint: name the folder above it" * (folder / CONFIG).is_file()
    return f"neither {INDEX} (diffusers' layout) nor {NATIVE} (native) is here{held}"


def unsuitable(checkpoint: Checkpoint, plain_too: bool = False) -> str:
    """Why no picture can be estimated with these networks; empty where one can. `plain_too`: or trained from them."""
    latent = checkpoint.vae.config.latent_channels
    channels = checkpoint.unet.config.in_channels, checkpoint.unet.config.out_channels
    if channels == (2 * latent, latent) or (plain_too and channels == (latent, latent)):
        return ""
    plain = ". Plain Stable Diffusion must be fine-tuned first" * (channels == (latent, latent))
    return (
        f"{checkpoint.folder}: the UNet maps {channels[0]} to {channels[1]} channels, wanted {2 * latent} to {latent}"
        f"{plain}"
    )


def shapes_of(folder: Path | None) -> Checkpoint:
    """The checkpoint in a folder of diffusers' layout (None: Stable Diffusion 2 at full size) without its weights.

    Parameters are `jax.ShapeDtypeStruct`, float32, the UNet already widened to two latents; the empty prompt is zeros.
    Raises FileNotFoundError or ValueError that names the file.
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
    return Checkpoint(
        **parts,
        empty_prompt={length: np.zeros((length, width), np.float32) for length in (2, 77)},
        scheduler=scheduler,
        index=index,
        folder=folder or Path("shapes"),
    )


def _read_index(folder: Path) -> tuple[ModelIndex, SchedulerConfig]:
    """The index of a folder of diffusers' layout, and its scheduler. ValueError for another family's."""
    index = read_json(folder / INDEX)
    file, unet_file = folder / "scheduler" / SCHEDULER, folder / "unet" / CONFIG
    scheduler, unet_config = (read_json(file) if file.exists() else {} for file in (file, unet_file))
    if family := family_of(folder, index, unet_config, scheduler):
        raise ValueError(f"{folder}: {family}")
    return model_index.read(index, folder / INDEX), _scheduler(read_json(file), file)


def _scheduler(values: Mapping[str, Any], file: Path) -> SchedulerConfig:
    """The known keys of a scheduler's configuration, checked; a warning for those that are not known."""
    unknown = unknown_keys(values)
    scheduler = SchedulerConfig({key: value for key, value in values.items() if key not in unknown}, file)
    if unknown:
        logger.warning("%s: passing over what is not known here: %s", file, listed(unknown))
    return scheduler


def _load_diffusers(folder: Path, dtype: Any) -> Checkpoint:
    index, scheduler = _read_index(folder)
    parts = {name: load_part(name, folder / name, dtype) for name in COMPONENTS}
    return Checkpoint(**parts, empty_prompt=_prompt(folder), scheduler=scheduler, index=index, folder=folder)


def _prompt(folder: Path) -> EmptyPrompt:
    """The stored answer to the empty prompt: beside the weights, else in the user's cache, else computed and kept."""
    stored = folder / empty_prompt.FILE
    if os.path.lexists(stored):
        return empty_prompt.load(stored)
    encoder, tokenizer = folder / "text_encoder", folder / "tokenizer"
    if not encoder.is_dir():
        raise FileNotFoundError(
            f"{folder}: needs {empty_prompt.FILE} or text_encoder/, to know what the empty prompt means; copy "
            "text_encoder/ and tokenizer/ from Stable Diffusion 2 or from any Marigold checkpoint into it"
        )
    # Every file that has a part in the answer, by what changes when it does.
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


def _load_native(folder: Path, dtype: Any, sharding: Sharding | None) -> Checkpoint:
    sharding = sharding or (lambda name, shape: jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    file = folder / NATIVE
    stored = read_json(file)
    for key in (*COMPONENTS, "scheduler", "description"):
        if not isinstance(stored.get(key), dict):
            raise ValueError(f"{file}: {key} = {shown(stored.get(key))}: wanted an object")
    configs, structures, shapes = {}, {}, {}
    for name in COMPONENTS:
        config_class, module, fixed = kind_of(name, stored[name], file)
        try:
            config = configs[name] = config_from_dict(config_class, stored[name], fixed, file)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        structures[name], plain = layout_of(module, config)
        shapes[name] = {
            path: jax.ShapeDtypeStruct(x.shape, dtype, sharding=sharding(f"{name}.{path}", x.shape))
            for path, x in plain.items()
        }
    if FILES in stored:
        _require_whole(stored[FILES], folder, file)
    try:
        params = _restore(folder / NATIVE_PARAMS, shapes)
    except Exception as error:  # Orbax lets many types through: KeyError, ValueError, OSError, tensorstore's own
        reason = printable((str(error).splitlines() or [repr(error)])[0])
        raise ValueError(f"{folder / NATIVE_PARAMS}: not readable ({reason}); convert the checkpoint again") from error
    for name in COMPONENTS:
        for path, array in params[name].items():
            for shard in array.addressable_shards:
                require_finite(np.asarray(shard.data), f"{folder / NATIVE_PARAMS}: {name}.{path}")
    return Checkpoint(
        **{name: Component(configs[name], structures[name], params[name]) for name in COMPONENTS},
        empty_prompt=empty_prompt.load(folder / empty_prompt.FILE),
        scheduler=_scheduler(stored["scheduler"], file),
        index=model_index.read(stored["description"], file),
        folder=folder,
    )


def _restore(folder: Path, shapes: Any) -> Any:
    """The arrays of these shapes from a folder of Orbax's. Nothing is allocated before all shapes agree."""
    from orbax.checkpoint import v1 as ocp

    for path in folder.rglob("*"):
        if not path.is_dir():
            regular(path)
    folder = folder.absolute()  # Orbax reads and writes nothing else
    with _quiet():
        stored = ocp.metadata(folder).metadata
    if stored is None:
        raise ValueError("its own description is damaged")
    found, wanted = (
        {jax.tree_util.keystr(path): x.shape for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}
        for tree in (stored, shapes)
    )
    if wrong := sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)):
        name = wrong[0]
        raise ValueError(
            f"{len(wrong)} arrays do not fit the configuration, such as {name}: found {found.get(name)}, wanted "
            f"{wanted.get(name)}"
        )
    with _quiet():
        return ocp.load(folder, shapes)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the many lines that Orbax writes of a damaged folder before it raises: one line is ours."""
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        absl.setLevel(level)


def _require_whole(sizes: Any, folder: Path, file: Path) -> None:
    """Raises ValueError unless every file of the native checkpoint is as long as `sizes`, noted in `file`, says.

    Orbax reads many at once, and where one is cut short the others end in a heap of messages.
    """
    if not isinstance(sizes, dict):
        raise ValueError(f"{file}: {FILES} = {shown(sizes)}: wanted an object from names to sizes in bytes")
    for name, size in sizes.items():
        try:
            part = regular(below(folder, name))
        except ValueError as error:
            raise ValueError(f"{file}: {FILES}: {error}") from None
        if part.stat().st_size != size:
            raise ValueError(f"{part}: {part.stat().st_size} bytes, wanted {shown(size)}; copy the checkpoint again")


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
    index = dict(checkpoint.index.values)
    for name, kinds in COMPONENTS.items():
        part = getattr(checkpoint, name)
        class_name = class_name_of(name, part.config)
        save_component(folder / name, class_name, part.config, kinds[class_name].fixed, part.params, dtype)
        index[name] = ["diffusers", class_name]
    index["scheduler"] = ["diffusers", checkpoint.scheduler.class_name or "DDIMScheduler"]
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / SCHEDULER, checkpoint.scheduler.values)
    # The text encoder goes along for diffusers' sake, byte for byte, where there is one; silence is easily made.
    for name in TEXT_COMPONENTS:
        if (checkpoint.folder / name).is_dir():
            shutil.copytree(checkpoint.folder / name, folder / name, copy_function=_copy)
    if not (folder / "text_encoder").is_dir() and null_text_encoder.is_silent(checkpoint.empty_prompt):
        null_text_encoder.save_text_components(checkpoint.empty_prompt, folder)
    for name, class_name in TEXT_COMPONENTS.items():
        index[name] = ["transformers", class_name] if (folder / name).is_dir() else [None, None]
    write_json(folder / INDEX, index)


def _copy(source: str, target: str) -> None:
    shutil.copy2(regular(source), target)


def _save_native(checkpoint: Checkpoint, folder: Path, dtype: str) -> None:
    from orbax.checkpoint import v1 as ocp

    parts = {name: getattr(checkpoint, name) for name in COMPONENTS}
    params = {name: jax.tree.map(lambda x: x.astype(dtype), part.params) for name, part in parts.items()}
    with _quiet():
        ocp.save((folder / NATIVE_PARAMS).absolute(), params)
    stored = {
        name: {"_class_name": class_name_of(name, part.config)} | config_to_dict(part.config, {})
        for name, part in parts.items()
    }
    stored |= {"scheduler": dict(checkpoint.scheduler.values), "description": dict(checkpoint.index.values)}
    files = sorted(path for path in (folder / NATIVE_PARAMS).rglob("*") if path.is_file())
    stored[FILES] = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
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

    `bias`: "marigold" keeps it, "e2e_ft" divides it too, as the two papers' code do. A checkpoint that is
    already wide comes back unchanged.
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
        "conv_in.bias": old_bias * np.asarray(INFLATION_BIAS[bias](copies), old_bias.dtype),
    }
    return dataclasses.replace(checkpoint, unet=Component(config, structure, part.params | wide))
