"""A run's `start.json`: the folder or Hub commit that it began from, and fingerprints of the parts it does not train.

The base of a run may change: another run trains further, a repository on the Hub gets a new commit, or other weights
are copied into the folder. A run's checkpoints hold only the weights that it trains. The others are read from the base
again, at every start and export. So they are compared with the fingerprints, and a base that has changed is refused.

Fingerprints are taken of the weights as read, before any computation, because these bits are the same on all devices.
Weights drawn at random are not, so they have no fingerprint.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from marigold_jax.runtime.files import read_json
from marigold_jax.weights import empty_prompt
from marigold_jax.weights.component import COMPONENTS, Component
from marigold_jax.weights.diffusers_folder import TEXT_COMPONENTS
from marigold_jax.weights.hub import commit_of
from marigold_jax.weights.model import DiffusionModel

NAMES = {  # part -> its name in messages
    **{name: f"the weights of its {name}" for name in COMPONENTS},
    **{f"{name}.config": f"the configuration of its {name}" for name in COMPONENTS},
    **{"empty_prompt": "its empty prompt", "scheduler": "its noise schedule"},
}


def describe(base: DiffusionModel, name: str, frozen: tuple[str, ...], step: int | None = None) -> dict[str, Any]:
    """Returns the contents of `start.json` for a run that begins from `base`.

    Args:
        base: as it was read.
        name: its name in the configuration.
        frozen: those of the components "unet" and "vae" whose original weights the run keeps using.
        step: the step of the weights, if `base` is the export of another run.
    """
    repository, commit = commit_of(base.folder) or (None, None)
    parts = {f"{part}.config": _hash_config(getattr(base, part)) for part in COMPONENTS}
    parts |= {part: _hash_weights(getattr(base, part).params) for part in frozen}
    parts |= {"empty_prompt": _hash_prompt(base), "scheduler": _hash_text(_as_text(base.scheduler.values))}
    folder = str(base.folder) if base.folder.is_absolute() else None  # a base that was created has no folder
    where = {"checkpoint": name, "folder": folder, "repository": repository, "commit": commit, "step": step}
    return where | {"frozen": dict(sorted(parts.items()))}


def read(file: Path) -> dict[str, Any]:
    """Returns the contents of a `start.json`. Raises ValueError, in one line, if the file cannot be one."""
    found = read_json(file)
    text = str | None
    for key, kind in {"checkpoint": str, "folder": text, "repository": text, "commit": text, "frozen": dict}.items():
        if key not in found or not isinstance(found[key], kind):
            raise ValueError(
                f"{file}: {key} is {found.get(key, 'absent')!r}, wanted {getattr(kind, '__name__', kind)}; this file "
                "is written once and says what the run began from: restore it"
            )
    return found


def check(found: Mapping[str, Any], recorded: Mapping[str, Any], file: Path) -> None:
    """Checks that a base has not changed. A part that only one side knows is not compared.

    Args:
        found: `describe` of the base as it is now.
        recorded: the contents of `start.json`.
        file: the path of `start.json`, for the message.

    Raises:
        ValueError: the base has changed; the message names the parts.
    """
    differ = [
        NAMES.get(part, part) for part, value in recorded["frozen"].items() if found["frozen"].get(part, value) != value
    ]
    if differ:
        was, is_now = recorded.get("step"), found.get("step")
        steps = (
            f" (step {was} of that run then, step {is_now} now)" if None not in (was, is_now) and was != is_now else ""
        )
        raise ValueError(
            f"{found['folder']} is not what this run began from{steps}: {', '.join(differ)} changed. Put the original "
            f"back, or start again in another --workdir; {file} says what it was"
        )


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _as_text(values: Mapping[str, Any]) -> str:
    """Returns a JSON object as text, without the notes of the library that wrote it."""
    return json.dumps(
        {key: value for key, value in values.items() if not key.startswith("_") or key == "_class_name"}, sort_keys=True
    )


def _hash_config(part: Component) -> str:
    """Hashes only values that differ from the defaults, so that a key added to the program changes nothing."""
    fields = dataclasses.fields(part.config)
    values = {field.name: value for field in fields if (value := getattr(part.config, field.name)) != field.default}
    return _hash_text(type(part.config).__name__ + json.dumps(values, sort_keys=True, default=str))


def _hash_weights(params: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(params):
        array = np.ascontiguousarray(params[name])
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _hash_prompt(base: DiffusionModel) -> str:
    """Hashes the stored embedding. If there is none, hashes the files that it is computed from."""
    computed = base.folder.is_absolute() and (base.folder / "text_encoder").is_dir()
    if (base.folder / empty_prompt.FILE).is_file() or not computed:
        return _hash_weights({str(length): rows for length, rows in base.empty_prompt.items()})
    digest = hashlib.sha256()
    for path in sorted(path for name in TEXT_COMPONENTS for path in (base.folder / name).glob("*") if path.is_file()):
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
