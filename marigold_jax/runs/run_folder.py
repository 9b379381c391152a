"""A training run on disk: the names in its folder, its configuration, and the lock of the training that works there.

| in the run's folder     | what it is                                                                     |
|-------------------------|--------------------------------------------------------------------------------|
| `config.json`           | the resolved configuration; a resumed run may change the keys in `CHANGEABLE`  |
| `start.json`            | the model that the run began from (`runs.start_record`)                        |
| `checkpoints/00000100/` | the training state after 100 steps (`runs.checkpoints`)                        |
| `export/`               | the newest weights as a checkpoint folder in diffusers' layout (`runs.export`) |
| `.lock`                 | held by the training that works here, if there is one                          |

A file or folder gets its name only once it is complete, so a run may be killed at any moment.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marigold_jax.runs import start_record
from marigold_jax.runs.checkpoints import Checkpoints
from marigold_jax.runtime.files import read_json, write_json
from marigold_jax.runtime.lock import lock
from marigold_jax.weights.diffusers_folder import INDEX
from marigold_jax.weights.hub import local

CONFIG, START, CHECKPOINTS, EXPORT = "config.json", "start.json", "checkpoints", "export"
LOCK = ".lock"
# Keys and sections that a resumed run may change: they decide how long and how often, not what is learned.
CHANGEABLE = ("run", "data.num_workers", "data.data_dir", "data.validation")
FIXED = ("run.seed",)  # but not these
BASE = "model.checkpoint"  # may be another name for the same folder


def is_run(folder: Path) -> bool:
    """Whether this is the folder of a training run."""
    return (folder / CONFIG).is_file() and any((folder / name).is_dir() for name in (CHECKPOINTS, EXPORT))


def config_of(workdir: Path) -> dict[str, Any]:
    """Returns the configuration of the run in this folder. Raises ValueError if the file cannot be one."""
    config = read_json(workdir / CONFIG)
    for section in ("model", "objective"):
        if not isinstance(config.get(section), dict):
            raise ValueError(f"{workdir / CONFIG}: wanted the configuration of a run, with a section {section}")
    return config


def held(workdir: Path) -> contextlib.AbstractContextManager[None]:
    """Locks the run's folder for one training, and creates it if missing.

    The lock ends with its process. Reading a run takes no lock. Raises ValueError, in one line, if another training
    works in the folder.
    """
    _make(workdir)
    return lock(workdir / LOCK, f"{workdir}: another training is at work here; wait for it, or name another --workdir")


def _make(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{workdir}: wanted a folder for the run, and a file is there") from None


def claim(workdir: Path, config: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Writes `config.json`, or checks that the run in this folder has this configuration.

    A run without a checkpoint has nothing to lose, so it may begin again with any configuration.

    Args:
        workdir: the run's folder.
        config: its resolved configuration.
        defaults: for each section, the values of keys that it may lack, as older runs lack newer keys.

    Raises:
        ValueError: keys that are not `CHANGEABLE` differ; the message lists all of them. Or the checkpoints of a
            finished run are gone, so that training here would replace its export.
    """
    file = workdir / CONFIG
    wanted = json.loads(json.dumps(config))  # as read from the file: tuples become lists
    if Checkpoints(workdir / CHECKPOINTS).steps():
        try:
            found = read_json(file)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{error}: {workdir} holds a run whose configuration cannot be told; put {CONFIG} back, or name "
                "another --workdir"
            ) from None
        compared = (_completed(tree, defaults or {}) for tree in (wanted, found))
        now, before = ({key: x for key, x in _flat(tree).items() if not _may_change(key)} for tree in compared)
        differences = [
            f"{key} was {before.get(key, 'absent')}, is {now.get(key, 'absent')}"
            for key in sorted(now.keys() | before.keys())
            if now.get(key) != before.get(key) or (key in now) != (key in before)
            if key != BASE or not _is_base(workdir, now.get(key))
        ]
        if differences:
            raise ValueError(
                f"{workdir} holds a run of another configuration: {'; '.join(differences)}. Name another --workdir, or "
                f"give the same configuration; only {', '.join(CHANGEABLE)} may change, and of these not "
                f"{', '.join(FIXED)}"
            )
    elif (workdir / EXPORT / INDEX).is_file():
        raise ValueError(
            f"{workdir / EXPORT} is the end of a run whose checkpoints are gone; a training here would begin anew "
            "and replace it. Move it away, or name another --workdir"
        )
    _make(workdir)
    write_json(file, wanted)


def _is_base(workdir: Path, name: Any) -> bool:
    """Whether this is another name for the folder that the run in `workdir` began from, as seen from elsewhere."""
    folder, file = local(name) if isinstance(name, str) else None, workdir / START
    if folder is None or not file.is_file():
        return False
    return start_record.read(file)["folder"] in map(str, (folder.resolve(), folder.resolve() / EXPORT))


def _may_change(key: str) -> bool:
    return key not in FIXED and any(key == one or key.startswith(f"{one}.") for one in CHANGEABLE)


def _completed(config: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns a configuration, as JSON holds it, with the keys that its sections lack."""
    known = json.loads(json.dumps(defaults))
    return {
        name: {**known.get(name, {}), **section} if isinstance(section, Mapping) else section
        for name, section in config.items()
    }


def _flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Returns the leaves by dotted path. An empty section is a leaf, to differ from a missing one."""
    leaves = {}
    for key, value in tree.items():
        name = f"{path}{key}"
        leaves |= _flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return leaves
