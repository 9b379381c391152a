"""A model folder in the native layout: `marigold.json`, and arrays in `params/`, written by Orbax.

The arrays load onto any sharding, and each device reads only its share.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from marigold_jax.models.config import config_from_dict, config_to_dict
from marigold_jax.runtime.files import below, printable, read_json, regular, write_json
from marigold_jax.runtime.typed import shown
from marigold_jax.weights import empty_prompt, model_index
from marigold_jax.weights.component import COMPONENTS, Component, class_name_of, kind_of, layout_of
from marigold_jax.weights.diffusers_folder import read_scheduler
from marigold_jax.weights.model import DiffusionModel
from marigold_jax.weights.torch_files import require_finite

NATIVE = "marigold.json"
NATIVE_PARAMS = "params"
FILES = "files"  # in `marigold.json`: the size of each file below the folder, in bytes

Sharding = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]


def load(folder: Path, dtype: Any, sharding: Sharding | None) -> DiffusionModel:
    """Reads a folder; see `model_folder.load`."""
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
    except Exception as error:  # Orbax raises many types: KeyError, ValueError, OSError, tensorstore's own
        reason = printable((str(error).splitlines() or [repr(error)])[0])
        raise ValueError(f"{folder / NATIVE_PARAMS}: not readable ({reason}); convert the checkpoint again") from error
    for name in COMPONENTS:
        for path, array in params[name].items():
            for shard in array.addressable_shards:
                require_finite(np.asarray(shard.data), f"{folder / NATIVE_PARAMS}: {name}.{path}")
    return DiffusionModel(
        **{name: Component(configs[name], structures[name], params[name]) for name in COMPONENTS},
        empty_prompt=empty_prompt.load(folder / empty_prompt.FILE),
        scheduler=read_scheduler(stored["scheduler"], file),
        index=model_index.read(stored["description"], file),
        folder=folder,
    )


def save(model: DiffusionModel, folder: Path, dtype: str) -> None:
    """Writes everything but the empty prompt into an existing folder; see `model_folder.save`."""
    from orbax.checkpoint import v1 as ocp

    parts = {name: getattr(model, name) for name in COMPONENTS}
    params = {name: jax.tree.map(lambda x: x.astype(dtype), part.params) for name, part in parts.items()}
    with _quiet():
        ocp.save((folder / NATIVE_PARAMS).absolute(), params)
    stored = {
        name: {"_class_name": class_name_of(name, part.config)} | config_to_dict(part.config, {})
        for name, part in parts.items()
    }
    stored |= {"scheduler": dict(model.scheduler.values), "description": dict(model.index.values)}
    files = sorted(path for path in (folder / NATIVE_PARAMS).rglob("*") if path.is_file())
    stored[FILES] = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    write_json(folder / NATIVE, stored)


def _restore(folder: Path, shapes: Any) -> Any:
    """Reads arrays of these shapes from a folder of Orbax. Nothing is allocated before all shapes agree."""
    from orbax.checkpoint import v1 as ocp

    for path in folder.rglob("*"):
        if not path.is_dir():
            regular(path)
    folder = folder.absolute()  # Orbax requires it
    with _quiet():
        stored = ocp.metadata(folder).metadata
    if stored is None:
        raise ValueError("its metadata is damaged")
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
    """Suppresses the many lines that Orbax logs about a damaged folder before it raises: our error is one line."""
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        absl.setLevel(level)


def _require_whole(sizes: Any, folder: Path, file: Path) -> None:
    """Raises ValueError unless every file in the folder has the size that `sizes`, read from `file`, says.

    Orbax reads many files at once, and logs many messages if one of them is truncated.
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
