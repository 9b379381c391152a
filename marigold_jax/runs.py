"""A training run on disk: what it started from, its configuration, its checkpoints, and what comes out of it.

| in the run's folder     | what it is                                                                  |
|-------------------------|-----------------------------------------------------------------------------|
| `config.json`           | the resolved configuration; only its section `run` may change later         |
| `checkpoints/00000100/` | Orbax: the training state after 100 steps, and notes (JSON) beside it       |
| `export/`               | the newest weights as a checkpoint folder of diffusers' layout              |

Everything appears under its name only once it is whole, so a run may be killed at any moment.
"""

import dataclasses
import json
import logging
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from orbax.checkpoint import v1 as ocp

from marigold_jax import lora
from marigold_jax.models import functional
from marigold_jax.models.functional import Params, Structure
from marigold_jax.objectives import OBJECTIVES
from marigold_jax.runtime.files import read_json, write_json
from marigold_jax.schedule import NoiseSchedule
from marigold_jax.sharding import Layout
from marigold_jax.weights import checkpoint as checkpoints
from marigold_jax.weights.checkpoint import Checkpoint
from marigold_jax.weights.growth import widen
from marigold_jax.weights.scratch import scratch
from marigold_jax.weights.sources import local, resolve

logger = logging.getLogger(__name__)

CONFIG, CHECKPOINTS, EXPORT = "config.json", "checkpoints", "export"
CHANGEABLE = "run"  # the section of the configuration that a resumed run may change: how long, how often, not what
SCRATCH = "scratch"
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
) -> Checkpoint:
    """Returns the checkpoint that training starts from, its UNet wide enough for the image and the noisy target.

    Args:
        checkpoint: whatever `weights.sources.resolve` understands, as Stable Diffusion 2 or a Marigold; or "scratch".
        prediction: "depth" or "normals".
        scheduler: replaces these keys of the checkpoint's `scheduler_config.json`.
        description: adds these to the `model_index.json` of what will be exported (`default_denoising_steps`, ...).
        inflation_bias: for a plain Stable Diffusion; see `weights.checkpoint.inflate`.
        widths, cell, seed, vae_widths: for "scratch"; see `weights.scratch.scratch`. The VAE of any other checkpoint is
            widened to `vae_widths`, if there are any; see `weights.growth.widen`.
        shapes_only: reads no weights: parameters are `jax.ShapeDtypeStruct`; see `weights.checkpoint.shapes_of`.
    """
    if prediction not in PIPELINES:
        raise ValueError(f"model.prediction is {prediction!r}, wanted one of {', '.join(PIPELINES)}")
    if checkpoint == SCRATCH:
        base = scratch(tuple(widths), cell, seed, tuple(vae_widths))
    elif shapes_only:
        base = checkpoints.shapes_of(local(checkpoint))
    else:
        base = checkpoints.inflate(checkpoints.load(resolve(checkpoint)), bias=inflation_bias)
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
    options = dict(objective)
    if (name := options.pop("name")) not in OBJECTIVES:
        raise ValueError(f"config.objective.name={name}: wanted one of {', '.join(OBJECTIVES)}")
    row, base = OBJECTIVES[name], start_from(**model)
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


def claim(workdir: Path, config: Mapping[str, Any]) -> None:
    """Write `config.json`, or check that the run in this folder is one of this configuration.

    A run that has not saved a checkpoint yet has nothing to lose, and may begin anew with any configuration.

    Raises ValueError that lists every key outside of the section `run` that differs.
    """
    file = workdir / CONFIG
    wanted = json.loads(json.dumps(config))  # as it will be read again: tuples are lists
    if file.is_file() and Checkpoints(workdir / CHECKPOINTS).steps():
        found = read_json(file)
        now, then = (_flat({key: x for key, x in tree.items() if key != CHANGEABLE}) for tree in (wanted, found))
        differences = [
            f"{key} was {then.get(key, 'absent')}, is {now.get(key, 'absent')}"
            for key in sorted(now.keys() | then.keys())
            if now.get(key) != then.get(key) or (key in now) != (key in then)
        ]
        if differences:
            raise ValueError(
                f"{workdir} holds a run of another configuration: {'; '.join(differences)}. Name another --workdir, or "
                "give the same configuration; only config.run may change"
            )
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(file, wanted)


def _flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Leaves by dotted path. An empty section is a leaf, so that it can be told from a missing one."""
    leaves = {}
    for key, value in tree.items():
        name = f"{path}{key}"
        leaves |= _flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return leaves


# ---------------------------------------------------------------------------------------------------------- checkpoints


class CheckpointError(Exception):
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
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

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
            metadata = {"notes": dict(notes), "fingerprint": fingerprint(state)}
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
                    self.path(bad).rename(self.path(bad).with_suffix(".corrupt"))
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
    metadata = ocp.metadata(path).custom_metadata
    state = ocp.load(path, shapes)
    if fingerprint(state) != metadata["fingerprint"]:
        raise ValueError("its contents are not what was written")
    return state, metadata["notes"]


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
    """Without what only helped to train, as the heads of `objectives.alignment`."""
    return {name: params[name] for name in functional.names(structure)}


def with_params(base: Checkpoint, component: str, params: Params) -> Checkpoint:
    return dataclasses.replace(base, **{component: dataclasses.replace(getattr(base, component), params=params)})


def export(checkpoint: Checkpoint, step: int, workdir: Path) -> Path:
    """Write `export/`, a checkpoint folder that `Marigold.from_pretrained` and diffusers load, in place of an older."""
    folder = workdir / EXPORT
    if _exported_step(workdir) == step:
        return folder
    fresh, old = (folder.with_name(f".{EXPORT}.{which}") for which in ("new", "old"))
    for path in (fresh, old):
        shutil.rmtree(path, ignore_errors=True)
    description = {**checkpoint.description, STEP: step}
    checkpoints.save(dataclasses.replace(checkpoint, description=description), fresh)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def exported(workdir: Path) -> Path:
    """The folder with a run's newest weights, written first where the export is missing or old.

    For a run that is over, that is `export/` as it is. Raises FileNotFoundError for a run without a checkpoint.
    """
    workdir = workdir.absolute()  # Orbax reads nothing else
    steps = Checkpoints(workdir / CHECKPOINTS).steps()
    if not steps:
        raise FileNotFoundError(f"{workdir}: this run has not saved a checkpoint yet; wait for one")
    if _exported_step(workdir) == steps[-1]:
        return workdir / EXPORT
    if jax.process_count() > 1:
        raise ValueError(f"{workdir}: step {steps[-1]} is not exported yet; run `predict` with one process once")
    config = read_json(workdir / CONFIG)
    newest = workdir / CHECKPOINTS / f"{steps[-1]:08d}"
    shapes = ocp.metadata(newest).metadata
    chosen = "ema" if "ema" in shapes else "params"
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device) for name, x in shapes[chosen].items()}
    # An ellipsis leaves that part of the state on disk: the optimiser's moments are twice as large as the weights.
    like = {key: wanted if key == chosen else jax.tree.map(lambda x: ..., shapes[key]) for key in shapes}
    params = ocp.load(newest, like)[chosen]
    base = start_of(config["objective"], **config["model"])
    component = OBJECTIVES[config["objective"]["name"]].trains
    before = getattr(base, component)
    whole = lora.merge(before.params, params)
    return export(with_params(base, component, _own(before.structure, whole)), steps[-1], workdir)


def _exported_step(workdir: Path) -> int | None:
    index = workdir / EXPORT / checkpoints.INDEX
    return read_json(index).get(STEP) if index.is_file() else None
