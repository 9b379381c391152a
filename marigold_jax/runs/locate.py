"""From a name to a checkpoint folder, where the name may be that of a training run.

The export of a run is written when somebody asks for it. That takes the model that the run began from, and this may be
another run: so the functions of this file call each other.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from marigold_jax.runs import start_record
from marigold_jax.runs.base_model import SCRATCH, ModelOptions, create, make_ready
from marigold_jax.runs.checkpoints import CheckpointError, Checkpoints, first_line, load_weights
from marigold_jax.runs.export import export, exported_step, merge_trained
from marigold_jax.runs.objective_facts import facts_of
from marigold_jax.runs.run_folder import CHECKPOINTS, CONFIG, EXPORT, START, config_of, is_run
from marigold_jax.runtime.files import printable
from marigold_jax.weights import model_folder
from marigold_jax.weights.hub import local, resolve
from marigold_jax.weights.model import DiffusionModel, inflate

logger = logging.getLogger(__name__)


def locate(name: str | Path | None, revision: str | None = None, find: Callable[..., Path] = resolve) -> Path:
    """Returns the checkpoint folder that a name stands for.

    Args:
        name: a run's folder, whose newest weights are then exported if need be; or any name that `find` understands.
        revision: a branch, tag or commit on the Hub.
        find: `weights.hub.resolve`, or `resolve_vae`.

    Raises:
        Exception: as `find` and `exported` do.
    """
    folder = local(name)
    return find(exported(folder) if folder is not None and is_run(folder) else name, revision)


def exported(workdir: Path) -> Path:
    """Returns the folder with a run's newest readable weights. It is written first if it is missing or out of date.

    A checkpoint that cannot be read is skipped, with a warning, and stays where it is.

    Raises:
        FileNotFoundError: the run has not saved a checkpoint yet.
        ValueError: no checkpoint can be read, or the base is not the one that the run began from. One line.
    """
    workdir = workdir.absolute()  # Orbax reads nothing else
    saved, already = Checkpoints(workdir / CHECKPOINTS), exported_step(workdir)
    steps = saved.steps()
    if not steps and already is None:
        raise FileNotFoundError(f"{workdir}: this run has not saved a checkpoint yet; wait for one")
    newer = steps[steps.index(already) + 1 :] if already in steps else steps
    config, corrupt = None, {}
    for step in reversed(newer):
        if jax.process_count() > 1:
            raise ValueError(f"{workdir}: step {step} is not exported yet; run `predict` with one process once")
        config = config or config_of(workdir)
        try:
            params = load_weights(saved.path(step))
        except Exception as error:  # Orbax raises many types
            corrupt[step] = first_line(error)
            continue
        _warn_of(corrupt, saved, f"taking step {step}")
        base, component = base_of(workdir, config), facts_of(config["objective"]).trains
        return export(merge_trained(base, component, params), step, workdir)
    if already is None:
        reasons = "; ".join(f"step {step}: {reason}" for step, reason in corrupt.items())
        raise CheckpointError(f"{saved.folder}: no checkpoint can be read ({reasons})")
    _warn_of(corrupt, saved, f"taking what was exported after step {already}")
    return workdir / EXPORT


def _warn_of(corrupt: Mapping[int, str], saved: Checkpoints, instead: str) -> None:
    for step, reason in corrupt.items():
        logger.warning("%s is corrupt (%s): %s", saved.path(step), reason, instead)


def base_of(workdir: Path, config: Mapping[str, Any]) -> DiffusionModel:
    """Returns the model that the run in this folder began from, ready for training. Nothing is written.

    Raises:
        ValueError: it is no longer the model that the run began from, or the configuration cannot be understood.
    """
    file = workdir / START
    record = start_record.read(file) if file.is_file() else None  # older runs have none
    try:
        base, now = read_base(config, record)
        if record is not None:
            start_record.check(now, record, file)
        options = ModelOptions(**config["model"])
        return make_ready(inflated(base, options), options, config["objective"])
    except (KeyError, TypeError) as error:  # no program of this version wrote it
        raise ValueError(f"{workdir / CONFIG}: not a configuration that is understood here ({error})") from error


def inflated(base: DiffusionModel, options: ModelOptions) -> DiffusionModel:
    """Returns the base with a UNet that reads two latents. One made from "scratch" is as it was asked for."""
    return base if options.checkpoint == SCRATCH else inflate(base, bias=options.inflation_bias)


def read_base(config: Mapping[str, Any], record: Mapping[str, Any] | None) -> tuple[DiffusionModel, dict[str, Any]]:
    """Reads the model that a run of this configuration begins from.

    Args:
        config: of the run; its sections `model` and `objective`, and optionally `optim`, are read.
        record: the contents of the run's `start.json`, which says where to look; None for a run without one.

    Returns:
        The base as it was read, and what `start.json` would say about it.
    """
    options, facts = ModelOptions(**config["model"]), facts_of(config["objective"])
    frozen = {"unet", "vae"} - {facts.trains}
    if config.get("optim", {}).get("lora_rank") or facts.uses_ema_target:
        frozen |= {facts.trains}  # the original weights are used beside those that train
    if options.checkpoint == SCRATCH:
        drawn = {"unet", "vae"} if options.vae_widths else {"unet"}
        base = create(options)
        return base, start_record.describe(base, SCRATCH, tuple(frozen - drawn))
    folder = locate(options.checkpoint) if record is None else _locate_again(record)
    base = model_folder.load(folder.resolve())
    return base, start_record.describe(base, options.checkpoint, tuple(frozen), base.index.exported_step)


def _locate_again(record: Mapping[str, Any]) -> Path:
    """Returns the folder that a run began from. If it is gone, its commit on the Hub or its name is looked up again."""
    if record["folder"] is None:
        raise ValueError(f"{START}: names no folder, though the run began from {record['checkpoint']}")
    folder = Path(record["folder"])
    if folder.is_dir():
        return folder
    if record["commit"]:
        return resolve(f"{record['repository']}@{record['commit']}")
    if local(record["checkpoint"]) is not None:
        return locate(record["checkpoint"])
    raise FileNotFoundError(
        f"{folder}: no such folder, and this run began from it ({printable(record['checkpoint'])}). Put it back there, "
        "or a link to where it is now"
    )
