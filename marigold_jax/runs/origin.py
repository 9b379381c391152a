"""What a run began from, in its `start.json`: the folder, the Hub's commit, and fingerprints of what stays as it was.

A base moves on: another run trains further, a repository on the Hub gets a new commit, somebody copies other weights
into a folder. What a run has trained is in its own checkpoints; what it has not is read from its base again, at every
start and export. So it is compared, and a base that is another one is refused.

The fingerprints are those of weights as they were read, before anything is computed with them: every device agrees on
them to the bit. That is not so of weights drawn at random, which therefore have none.
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
from marigold_jax.weights.hub import commit_of
from marigold_jax.weights.model import COMPONENTS, TEXT_COMPONENTS, Checkpoint, Component

START = "start.json"
SCRATCH = "scratch"  # the name of a checkpoint that is made and not read
NAMES = {  # part -> what a message calls it
    **{name: f"the weights of its {name}" for name in COMPONENTS},
    **{f"{name}.config": f"the configuration of its {name}" for name in COMPONENTS},
    **{"empty_prompt": "its empty prompt", "scheduler": "its noise schedule"},
}


def describe(base: Checkpoint, name: str, frozen: tuple[str, ...], step: int | None = None) -> dict[str, Any]:
    """Returns what `start.json` says of a run that begins from `base`.

    Args:
        base: as it was read.
        name: what the configuration calls it.
        frozen: the components, of "unet" and "vae", whose weights the run never changes.
        step: where `base` is the export of another run, the step of that.
    """
    repository, commit = commit_of(base.folder) or (None, None)
    parts = {f"{part}.config": _of_config(getattr(base, part)) for part in COMPONENTS}
    parts |= {part: _of_weights(getattr(base, part).params) for part in frozen}
    parts |= {"empty_prompt": _of_prompt(base), "scheduler": _of_text(_said(base.scheduler.values))}
    folder = None if name == SCRATCH else str(base.folder)
    where = {"checkpoint": name, "folder": folder, "repository": repository, "commit": commit, "step": step}
    return where | {"frozen": dict(sorted(parts.items()))}


def read(file: Path) -> dict[str, Any]:
    """Returns what `describe` gave. Raises ValueError with one line for a file that cannot be that."""
    found = read_json(file)
    text = str | None
    for key, kind in {"checkpoint": str, "folder": text, "repository": text, "commit": text, "frozen": dict}.items():
        if key not in found or not isinstance(found[key], kind):
            raise ValueError(
                f"{file}: {key} is {found.get(key, 'absent')!r}, wanted {getattr(kind, '__name__', kind)}; this file "
                "is written once and tells what the run began from: put it back as it was"
            )
    return found


def check(now: Mapping[str, Any], then: Mapping[str, Any], file: Path) -> None:
    """Raises ValueError, which names what differs, unless the base is `now` what it was `then`.

    A part that only one of them knows is no difference.
    """
    differ = [
        NAMES.get(part, part) for part, value in then["frozen"].items() if now["frozen"].get(part, value) != value
    ]
    if differ:
        moved = f" (step {then['step']} of that run then, step {now['step']} now)" if _steps_differ(now, then) else ""
        raise ValueError(
            f"{now['folder']} is not what this run began from{moved}: {', '.join(differ)} changed. Put back what "
            f"was there, or begin anew in another --workdir; {file} tells what it was"
        )


def _steps_differ(now: Mapping[str, Any], then: Mapping[str, Any]) -> bool:
    return now.get("step") is not None and then.get("step") is not None and now["step"] != then["step"]


def _of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _said(values: Mapping[str, Any]) -> str:
    """A JSON object as text, without notes of the library that wrote it."""
    return json.dumps(
        {key: value for key, value in values.items() if not key.startswith("_") or key == "_class_name"}, sort_keys=True
    )


def _of_config(part: Component) -> str:
    """Of what differs from the defaults, so that a key that is new to the program changes nothing."""
    fields = dataclasses.fields(part.config)
    said = {field.name: value for field in fields if (value := getattr(part.config, field.name)) != field.default}
    return _of_text(type(part.config).__name__ + json.dumps(said, sort_keys=True, default=str))


def _of_weights(params: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(params):
        array = np.ascontiguousarray(params[name])
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _of_prompt(base: Checkpoint) -> str:
    """Of the stored answer; where there is none, of the files it is computed from, on whatever device."""
    computed = base.folder.is_absolute() and (base.folder / "text_encoder").is_dir()
    if (base.folder / empty_prompt.FILE).is_file() or not computed:
        return _of_weights({str(length): rows for length, rows in base.empty_prompt.items()})
    digest = hashlib.sha256()
    for path in sorted(path for name in TEXT_COMPONENTS for path in (base.folder / name).glob("*") if path.is_file()):
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
