"""A training run on disk: what it started from, its configuration, its checkpoints, and what comes out of it.

| in the run's folder     | what it is                                                                  |
|-------------------------|-----------------------------------------------------------------------------|
| `config.json`           | the resolved configuration; `CHANGEABLE` is what of it may change later     |
| `start.json`            | what it began from, and fingerprints of what it does not train              |
| `checkpoints/00000100/` | Orbax: the training state after 100 steps, and notes (JSON) beside it       |
| `export/`               | the newest weights as a checkpoint folder of diffusers' layout              |
| `.lock`                 | held by the training that runs here, if one does                            |

Everything appears under its name only once it is whole, so a run may be killed at any moment.
"""

import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from marigold_jax.diffusion.schedule import NoiseSchedule
from marigold_jax.models import functional
from marigold_jax.models.functional import Params, Structure
from marigold_jax.runs import origin
from marigold_jax.runs.origin import SCRATCH, START
from marigold_jax.runtime import distributed
from marigold_jax.runtime.files import printable, read_json, write_json
from marigold_jax.runtime.lock import lock
from marigold_jax.runtime.sharding import Layout
from marigold_jax.training.objectives import OBJECTIVES
from marigold_jax.weights import lora
from marigold_jax.weights import model as checkpoints
from marigold_jax.weights.growth import widen
from marigold_jax.weights.hub import local, resolve
from marigold_jax.weights.model import Checkpoint
from marigold_jax.weights.scratch import scratch

logger = logging.getLogger(__name__)

CONFIG, CHECKPOINTS, EXPORT = "config.json", "checkpoints", "export"
LOCK = ".lock"
# What of the configuration a resumed run may change: how long, how often and with what at hand; not what is learned.
CHANGEABLE = ("run", "data.num_workers", "data.data_dir", "data.validation")
FIXED = ("run.seed",)  # of these
BASE = "model.checkpoint"  # which may have another name now
NUMBER = re.compile("[0-9]{8,12}")  # the name of a checkpoint; whatever else lies beside it is somebody else's
FORGOTTEN = 24 * 3600  # seconds after which what is half-written was left by a process that was killed
STEP = "_exported_step"  # in the description of an export: the step that its weights are from
KEPT = ("default_processing_resolution",)  # of the description of what a run starts from
LONGEST_REASON = 120
PIPELINES = {"depth": "MarigoldDepthPipeline", "normals": "MarigoldNormalsPipeline"}


# ----------------------------------------------------------------------------------------------------------- beginnings


def start_from(
    checkpoint: str,
    prediction: str = "depth",
    scheduler: Mapping[str, Any] | None = None,
    description: Mapping[str, Any] | None = None,
    inflation_bias: str = "marigold",
    widths: Sequence[int] = (),
    cell: int = 4,
    seed: int = 0,
    vae_widths: Sequence[int] = (),
    shapes_only: bool = False,
    base: Checkpoint | None = None,
) -> Checkpoint:
    """Returns the checkpoint that training starts from, its UNet wide enough for the image and the noisy target.

    Args:
        checkpoint: whatever `locate` understands, as Stable Diffusion 2 or a Marigold; or "scratch".
        prediction: "depth" or "normals".
        scheduler: replaces these keys of the checkpoint's `scheduler_config.json`.
        description: adds these to the `model_index.json` of what will be exported (`default_denoising_steps`, ...).
        inflation_bias: for a plain Stable Diffusion; see `weights.model.inflate`.
        widths, cell, seed, vae_widths: for "scratch"; see `weights.scratch.scratch`. The VAE of any other checkpoint is
            widened to `vae_widths`, if there are any; see `weights.growth.widen`.
        shapes_only: reads no weights: parameters are `jax.ShapeDtypeStruct`; see `weights.model.shapes_of`.
        base: what `checkpoint` is, where it has been read already.
    """
    if prediction not in PIPELINES:
        raise ValueError(f"model.prediction is {prediction!r}, wanted one of {', '.join(PIPELINES)}")
    if checkpoint == SCRATCH:
        base = base or scratch(tuple(widths), cell, seed, tuple(vae_widths))
    elif shapes_only:
        base = checkpoints.shapes_of(locate(checkpoint) if local(checkpoint) else None)
    else:
        base = checkpoints.inflate(base or checkpoints.load(locate(checkpoint)), bias=inflation_bias)
    if vae_widths and checkpoint != SCRATCH:
        base = dataclasses.replace(base, vae=widen(base.vae, tuple(vae_widths), seed))
    traits = {"scale_invariant": True, "shift_invariant": True} if prediction == "depth" else {}
    kept = {key: base.description[key] for key in KEPT if base.description.get(key) is not None}
    index = {"_class_name": PIPELINES[prediction], "prediction_type": prediction, **traits, **kept}
    index |= description or {}
    return dataclasses.replace(base, scheduler={**base.scheduler, **(scheduler or {})}, description=index)


def start_of(objective: Mapping[str, Any], scheduler: Mapping[str, Any] | None = None, **model: Any) -> Checkpoint:
    """Returns what a run starts from, by these two sections of its configuration; described as what it will become.

    Raises ValueError for an unknown objective, or one with a teacher where `scheduler` alters the noise schedule that
    the teacher learned on; and as `start_from` does.
    """
    row, base = _objective({"objective": objective}), start_from(**model)
    options = dict(objective)
    name = options.pop("name")
    replaced = {**base.scheduler, **row.scheduler(**options), **(scheduler or {})}
    if row.follows:
        teacher, student = map(NoiseSchedule.from_config, (base.scheduler, replaced))
        if not student.same_as(teacher):
            raise ValueError(
                f"config.model.scheduler={dict(scheduler or {})}: with the objective {name} wanted the noise schedule "
                f"that the teacher {model['checkpoint']} learned on; leave betas and prediction_type out"
            )
    described = {**row.describe(**options), **base.description}
    return dataclasses.replace(base, scheduler=replaced, description=described)


def begin(workdir: Path, config: Mapping[str, Any]) -> Checkpoint:
    """Returns what the run in this folder starts from, as `start_of` does: the same at every start.

    The first time, `start.json` is written, by the first process. Later it says where to look, and what is found there
    is compared with it; all processes do so, and must all call this. Raises ValueError, in one line, where the base has
    become another one, and FileNotFoundError where it is gone.
    """
    file, speaks = workdir / START, jax.process_index() == 0
    resumes = bool(Checkpoints(workdir / CHECKPOINTS).steps())
    then = origin.read(file) if resumes and file.is_file() else None
    base, now = _base(config, then)
    if then is None and speaks:
        if resumes:
            logger.warning("%s was not kept when this run began; from now on its base is as it is today", file)
        write_json(file, now)
    distributed.wait_for_all(f"{file} written")
    origin.check(now, then or origin.read(file), file)
    return start_of(config["objective"], **config["model"], base=base)


def _base(config: Mapping[str, Any], then: Mapping[str, Any] | None) -> tuple[Checkpoint, dict[str, Any]]:
    """What a run of this configuration starts from, as it was read, and what `start.json` would say of it."""
    model, row = config["model"], _objective(config)
    other = "vae" if row.trains == "unet" else "unet"
    # What is only corrected, or followed from where it began, is there in full beside what trains.
    keeps = (other, row.trains) if config.get("optim", {}).get("lora_rank") or row.follows else (other,)
    if model["checkpoint"] == SCRATCH:
        made = {key: model[key] for key in ("widths", "cell", "seed", "vae_widths") if key in model}
        base = start_from(SCRATCH, **made)
        drawn = ("unet", "vae") if made.get("vae_widths") else ("unet",)
        return base, origin.describe(base, SCRATCH, tuple(name for name in keeps if name not in drawn))
    folder = locate(model["checkpoint"]) if then is None else _located_again(then)
    base = checkpoints.load(folder.resolve())
    return base, origin.describe(base, model["checkpoint"], keeps, base.description.get(STEP))


def _located_again(then: Mapping[str, Any]) -> Path:
    """The folder that a run began from; or, where that is gone, what its name or its commit on the Hub now means."""
    if then["folder"] is None:
        raise ValueError(f"{START}: names no folder, though the run began from {then['checkpoint']}")
    folder = Path(then["folder"])
    if folder.is_dir():
        return folder
    if then["commit"]:
        return resolve(f"{then['repository']}@{then['commit']}")
    if local(then["checkpoint"]) is not None:
        return locate(then["checkpoint"])
    raise FileNotFoundError(
        f"{folder}: no such folder, and this run began from it ({printable(then['checkpoint'])}). Put it back there, "
        "or a link to where it is now"
    )


def _objective(config: Mapping[str, Any]) -> Any:
    """The row of the objective. Raises ValueError for an unknown one."""
    if (name := config["objective"].get("name")) not in OBJECTIVES:
        raise ValueError(f"config.objective.name={name}: wanted one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def held(workdir: Path) -> contextlib.AbstractContextManager[None]:
    """Holds the run's folder for one training: made if missing. ValueError, in one line, where another runs there.

    The lock dies with its process. Who only reads the run does not ask for it.
    """
    _make(workdir)
    return lock(workdir / LOCK, f"{workdir}: another training is at work here; wait for it, or name another --workdir")


def _make(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{workdir}: wanted a folder for the run, and a file is there") from None


def claim(workdir: Path, config: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Write `config.json`, or check that the run in this folder is one of this configuration.

    A run that has not saved a checkpoint yet has nothing to lose, and may begin anew with any configuration.
    `defaults`: section -> key -> the value that counts where a configuration lacks the key, as older runs' do.

    Raises ValueError that lists every key that differs and is not `CHANGEABLE`.
    """
    file = workdir / CONFIG
    wanted = json.loads(json.dumps(config))  # as it will be read again: tuples are lists
    if Checkpoints(workdir / CHECKPOINTS).steps():
        try:
            found = read_json(file)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{error}: {workdir} holds a run whose configuration cannot be told; put {CONFIG} back, or name "
                "another --workdir"
            ) from None
        compared = (_completed(tree, defaults or {}) for tree in (wanted, found))
        now, then = ({key: x for key, x in _flat(tree).items() if not _may_change(key)} for tree in compared)
        differences = [
            f"{key} was {then.get(key, 'absent')}, is {now.get(key, 'absent')}"
            for key in sorted(now.keys() | then.keys())
            if now.get(key) != then.get(key) or (key in now) != (key in then)
            if key != BASE or not _is_base(workdir, now.get(key))
        ]
        if differences:
            raise ValueError(
                f"{workdir} holds a run of another configuration: {'; '.join(differences)}. Name another --workdir, or "
                f"give the same configuration; only {', '.join(CHANGEABLE)} may change, and of these not "
                f"{', '.join(FIXED)}"
            )
    elif (workdir / EXPORT / checkpoints.INDEX).is_file():
        raise ValueError(
            f"{workdir / EXPORT} is the end of a run whose checkpoints are gone; a training here would begin anew "
            "and replace it. Move it away, or name another --workdir"
        )
    _make(workdir)
    write_json(file, wanted)


def _is_base(workdir: Path, name: Any) -> bool:
    """Whether this is another name, as from another folder, of what the run in `workdir` began from."""
    folder, file = local(name) if isinstance(name, str) else None, workdir / START
    if folder is None or not file.is_file():
        return False
    return origin.read(file)["folder"] in map(str, (folder.resolve(), folder.resolve() / EXPORT))


def _may_change(key: str) -> bool:
    return key not in FIXED and any(key == one or key.startswith(f"{one}.") for one in CHANGEABLE)


def _completed(config: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A configuration as JSON holds it, with the default of every key that it lacks."""
    known = json.loads(json.dumps(defaults))
    return {
        name: {**known.get(name, {}), **section} if isinstance(section, Mapping) else section
        for name, section in config.items()
    }


def _flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Leaves by dotted path. An empty section is a leaf, so that it can be told from a missing one."""
    leaves = {}
    for key, value in tree.items():
        name = f"{path}{key}"
        leaves |= _flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return leaves


# ---------------------------------------------------------------------------------------------------------- checkpoints


class CheckpointError(ValueError):
    """One line for the user: what could not be written or read, and what is safe."""


class Checkpoints:
    """The checkpoints of a run: written in the background, checked when read, the newest `keep` and the best kept."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = folder, keep
        self._pending: tuple[int, Any, int | None] | None = None  # step, Orbax's response, the best step

    def steps(self) -> list[int]:
        """The steps after which there is a whole checkpoint, in order."""
        if not self.folder.is_dir():
            return []
        names = [path.name for path in self.folder.iterdir() if NUMBER.fullmatch(path.name) and path.is_dir()]
        return sorted(int(name) for name in names if self.path(int(name)).name == name)

    def path(self, step: int) -> Path:
        return self.folder / f"{step:08d}"

    def save(self, step: int, state: Any, notes: Mapping[str, Any], best: int | None = None) -> None:
        """Begin to write a checkpoint; returns as soon as `state` has been copied to the host and may be donated.

        `notes`: anything JSON can hold. `best`: the step whose checkpoint is to be kept as well. Raises CheckpointError
        where this or the checkpoint before could not be written; call `finish` to be sure of this one.
        """
        self.finish()
        if step in self.steps():
            return
        try:
            from orbax.checkpoint import v1 as ocp  # late, here and below: to find an export takes none of it

            # Of each part as well, so that one can be read and checked without the rest.
            parts = {key: fingerprint({key: part}) for key, part in state.items()}
            metadata = {"notes": dict(notes), "fingerprint": fingerprint(state), "parts": parts}
            self._pending = step, ocp.save_async(self.path(step), state, custom_metadata=metadata), best
        except Exception as error:  # Orbax lets many types through: OSError, ValueError, tensorstore's own
            raise self._not_written(step, error) from error

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, then delete what is no longer wanted."""
        if self._pending is None:
            return
        (step, response, best), self._pending = self._pending, None
        try:
            response.result()
        except Exception as error:
            raise self._not_written(step, error) from error
        if jax.process_index() == 0:
            steps = self.steps()
            for old in steps[: -self.keep]:
                if old != best:
                    self._delete(self.path(old))

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest readable state and its notes, or None where nothing was saved yet.

        `like`: a state of the wanted shapes and shardings, on any number of devices. Its memory is given up before
        anything is read. A checkpoint whose fingerprint is
        not that of its contents is set aside as `<step>.corrupt`, with a warning. Raises CheckpointError where there
        are checkpoints and none can be read.
        """
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        if jax.process_index() == 0:
            for path in (*self.folder.glob("*.orbax-checkpoint-tmp*"), *self.folder.glob("*.deleted")):
                shutil.rmtree(path, ignore_errors=True)  # what a killed process left half-written or half-deleted
        corrupt: dict[int, str] = {}
        if self.steps():
            jax.tree.map(lambda x: x.delete(), like)
        for step in reversed(self.steps()):
            try:
                state, notes = _load(self.path(step), shapes)
            except Exception as error:
                corrupt[step] = _first_line(error)
                continue
            for bad, reason in corrupt.items():
                logger.warning("%s is corrupt (%s): going on from step %d", self.path(bad), reason, step)
                if jax.process_index() == 0:
                    self._set_aside(self.path(bad))
            return state, notes
        if corrupt:
            reasons = "; ".join(f"step {step}: {reason}" for step, reason in corrupt.items())
            raise CheckpointError(f"{self.folder}: no checkpoint can be read ({reasons}); move it away to start anew")
        return None

    def _not_written(self, step: int, error: Exception) -> CheckpointError:
        for path in self.folder.glob(f"{self.path(step).name}.*"):
            shutil.rmtree(path, ignore_errors=True)  # give back what a full disk is short of
        steps = self.steps()
        safe = f"step {steps[-1]} is safe" if steps else "there is none before it"
        return CheckpointError(
            f"{self.path(step)}: the checkpoint could not be written ({_first_line(error)}); {safe}. Make room and "
            "give the same command again to go on from there"
        )

    def _set_aside(self, path: Path) -> None:
        """As `<step>.corrupt`, or under the next name that is free."""
        names = (f"{path.name}.corrupt{number or ''}" for number in range(len(list(self.folder.iterdir())) + 1))
        path.rename(next(aside for name in names if not (aside := path.with_name(name)).exists()))

    def _delete(self, path: Path) -> None:
        """Out of sight first: deleting takes time, and the process may end meanwhile."""
        doomed = path.with_suffix(".deleted")
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def fingerprint(state: Any) -> int:
    """A checksum of every bit of a tree of arrays: the same on any number of devices.

    Orbax notices a file that is cut short, but not a bit that flipped. Words are added as integers, on the devices, and
    addition modulo 2³² does not care in which order.
    """
    sums = jax.device_get([(jax.tree_util.keystr(path), _sum_of_words(x)) for path, x in _leaves(state)])
    return zlib.crc32(json.dumps([(name, int(total)) for name, total in sums]).encode())


@jax.jit
def _sum_of_words(x: Array) -> Array:
    words = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
    return jnp.sum(words.astype(jnp.uint32), dtype=jnp.uint32)


def _leaves(tree: Any) -> list[tuple[Any, Array]]:
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def _load(path: Path, shapes: Any) -> tuple[Any, dict[str, Any]]:
    from orbax.checkpoint import v1 as ocp

    metadata = ocp.metadata(path).custom_metadata
    state = ocp.load(path, shapes)
    if fingerprint(state) != metadata["fingerprint"]:
        raise ValueError("its contents are not what was written")
    return state, metadata["notes"]


def _load_weights(path: Path) -> Params:
    """What a checkpoint holds of weights: their average, where one was kept. Raises whatever Orbax does."""
    from orbax.checkpoint import v1 as ocp

    found = ocp.metadata(path)
    shapes = found.metadata
    chosen = "ema" if "ema" in shapes else "params"
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device) for name, x in shapes[chosen].items()}
    # An ellipsis leaves that part of the state on disk: the optimiser's moments are twice as large as the weights.
    like = {key: wanted if key == chosen else jax.tree.map(lambda x: ..., shapes[key]) for key in shapes}
    params = ocp.load(path, like)[chosen]
    parts = (found.custom_metadata or {}).get("parts", {})  # older runs have none
    if chosen in parts and fingerprint({chosen: params}) != parts[chosen]:
        raise ValueError("its contents are not what was written")
    return params


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) < LONGEST_REASON else f"... {line[-LONGEST_REASON:]}"  # the reason comes last


# ----------------------------------------------------------------------------------------------------------------- ends


def trained(base: Checkpoint, component: str, params: Params, layout: Layout) -> Checkpoint:
    """Returns the checkpoint with what trained in its "unet" or "vae", which is whole on one device of each process."""
    before = getattr(base, component)
    gathered = jax.jit(lora.merge, out_shardings=layout.replicated)(before.params, params)
    whole = {name: array.addressable_data(0) for name, array in gathered.items()}
    return with_params(base, component, _own(before.structure, whole))


def _own(structure: Structure, params: Params) -> Params:
    """Without what only helped to train, as the heads of `training.objectives.alignment`."""
    return {name: params[name] for name in functional.names(structure)}


def with_params(base: Checkpoint, component: str, params: Params) -> Checkpoint:
    return dataclasses.replace(base, **{component: dataclasses.replace(getattr(base, component), params=params)})


def export(checkpoint: Checkpoint, step: int, workdir: Path) -> Path:
    """Write `export/`, a checkpoint folder that `Marigold.from_pretrained` and diffusers load, in place of an older."""
    folder = workdir / EXPORT
    for path in workdir.glob(f".{EXPORT}.*"):
        if time.time() - path.stat().st_mtime > FORGOTTEN:
            shutil.rmtree(path, ignore_errors=True)
    # Names of this process's own: a training and those who look at it may all write an export now.
    fresh, old = (folder.with_name(f".{EXPORT}.{os.getpid()}.{which}") for which in ("new", "old"))
    for path in (fresh, old):
        shutil.rmtree(path, ignore_errors=True)
    description = {**checkpoint.description, STEP: step}
    checkpoints.save(dataclasses.replace(checkpoint, description=description), fresh)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(old)
    try:
        fresh.rename(folder)
    except OSError:
        if exported_step(workdir) != step:
            raise
        shutil.rmtree(fresh, ignore_errors=True)  # another process has just put the same there
    shutil.rmtree(old, ignore_errors=True)
    return folder


def exported(workdir: Path) -> Path:
    """The folder with a run's newest readable weights, written first where the export is missing or old.

    For a run that is over, that is `export/` as it is. A checkpoint that cannot be read is passed over, with a warning,
    and left where it is. Raises FileNotFoundError for a run without a checkpoint, and ValueError, in one line, where
    none can be read or the base is not what the run began from.
    """
    workdir = workdir.absolute()  # Orbax reads nothing else
    kept, there = Checkpoints(workdir / CHECKPOINTS), exported_step(workdir)
    steps = kept.steps()
    if not steps and there is None:
        raise FileNotFoundError(f"{workdir}: this run has not saved a checkpoint yet; wait for one")
    config, corrupt = None, {}
    for step in reversed(steps):
        if there == step:
            break
        if jax.process_count() > 1:
            raise ValueError(f"{workdir}: step {step} is not exported yet; run `predict` with one process once")
        config = config or _config_of(workdir)
        try:
            params = _load_weights(kept.path(step))
        except Exception as error:  # Orbax lets many types through
            corrupt[step] = _first_line(error)
            continue
        _passed_over(kept, corrupt, f"taking step {step}")
        base, component = _begun(workdir, config), _objective(config).trains
        before = getattr(base, component)
        whole = lora.merge(before.params, params)
        return export(with_params(base, component, _own(before.structure, whole)), step, workdir)
    if there is None:
        reasons = "; ".join(f"step {step}: {reason}" for step, reason in corrupt.items())
        raise CheckpointError(f"{kept.folder}: no checkpoint can be read ({reasons})")
    _passed_over(kept, corrupt, f"taking what was exported after step {there}")
    return workdir / EXPORT


def _passed_over(kept: Checkpoints, corrupt: Mapping[int, str], instead: str) -> None:
    for step, reason in corrupt.items():
        logger.warning("%s is corrupt (%s): %s", kept.path(step), reason, instead)


def _config_of(workdir: Path) -> dict[str, Any]:
    """The configuration of the run in this folder. Raises ValueError for what cannot be one."""
    config = read_json(workdir / CONFIG)
    for section in ("model", "objective"):
        if not isinstance(config.get(section), dict):
            raise ValueError(f"{workdir / CONFIG}: wanted the configuration of a run, with a section {section}")
    return config


def _begun(workdir: Path, config: Mapping[str, Any]) -> Checkpoint:
    """What the run in this folder began from; nothing is written."""
    file = workdir / START
    then = origin.read(file) if file.is_file() else None  # older runs have none
    try:
        base, now = _base(config, then)
        if then is not None:
            origin.check(now, then, file)
        return start_of(config["objective"], **config["model"], base=base)
    except (KeyError, TypeError) as error:  # what no program of this version wrote
        raise ValueError(f"{workdir / CONFIG}: not a configuration that is understood here ({error})") from error


def exported_step(workdir: Path) -> int | None:
    """The step whose weights are in `export/`; None where nothing is, or what is broken."""
    index = workdir / EXPORT / checkpoints.INDEX
    try:
        return read_json(index).get(STEP) if index.is_file() else None
    except ValueError:
        return None


# -------------------------------------------------------------------------------------------------------------- by name


def is_run(folder: Path) -> bool:
    """Whether this is the folder of a training run."""
    return (folder / CONFIG).is_file() and any((folder / name).is_dir() for name in (CHECKPOINTS, EXPORT))


def locate(name: str | Path | None, revision: str | None = None, find: Callable[..., Path] = resolve) -> Path:
    """The checkpoint folder that a name means: what `weights.hub.resolve` makes of it, or a run's newest weights.

    `find`: `resolve`, or `resolve_vae`. Raises as they do, and as `exported` does.
    """
    folder = local(name)
    return find(exported(folder) if folder is not None and is_run(folder) else name, revision)
