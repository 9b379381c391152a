"""What a run begins from, ready for training, and the same at every start of that run."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from marigold_jax.runs import start_record
from marigold_jax.runs.base_model import SCRATCH, ModelOptions, create, make_ready
from marigold_jax.runs.checkpoints import Checkpoints
from marigold_jax.runs.locate import inflated, locate, read_base
from marigold_jax.runs.objective_facts import facts_of
from marigold_jax.runs.run_folder import CHECKPOINTS, START
from marigold_jax.runtime import distributed
from marigold_jax.runtime.files import write_json
from marigold_jax.weights import diffusers_folder, model_folder
from marigold_jax.weights.hub import local
from marigold_jax.weights.model import DiffusionModel

logger = logging.getLogger(__name__)


def start_from(
    options: ModelOptions, objective: Mapping[str, Any] | None = None, shapes_only: bool = False
) -> DiffusionModel:
    """Returns the model that training starts from; see `base_model.make_ready`.

    Args:
        options: section `model` of a configuration.
        objective: section `objective`; None to leave out what depends on it.
        shapes_only: reads no weights: parameters are `jax.ShapeDtypeStruct`; see `weights.diffusers_folder.shapes_of`.

    Raises:
        ValueError: as `make_ready` does, and as `locate` does.
    """
    if objective is not None:
        facts_of(objective)  # an unknown objective is told before anything is read
    name = options.checkpoint
    if name == SCRATCH:
        base = create(options)
    elif shapes_only:
        base = diffusers_folder.shapes_of(locate(name) if local(name) else None)
    else:
        base = inflated(model_folder.load(locate(name)), options)
    return make_ready(base, options, objective)


def begin(workdir: Path, config: Mapping[str, Any]) -> DiffusionModel:
    """Returns the model that the run in this folder starts from, as `start_from` does.

    At the first start, the first process writes `start.json`. A resumed run reads there where to look, and compares
    what it finds with what `start.json` says. All processes must call this.

    Raises:
        ValueError: the base is no longer the one that the run began from. One line.
        FileNotFoundError: the base is gone.
    """
    file, is_main_process = workdir / START, jax.process_index() == 0
    resumes = bool(Checkpoints(workdir / CHECKPOINTS).steps())
    record = start_record.read(file) if resumes and file.is_file() else None
    base, now = read_base(config, record)
    if record is None and is_main_process:
        if resumes:
            logger.warning("%s was not kept when this run began; from now on its base is as it is today", file)
        write_json(file, now)
    distributed.wait_for_all(f"{file} written")
    start_record.check(now, record or start_record.read(file), file)
    options = ModelOptions(**config["model"])
    return make_ready(inflated(base, options), options, config["objective"])
