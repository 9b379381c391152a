"""Trains or fine-tunes a depth (or normals) estimator.

    python -m marigold_jax.train --config quickstart --workdir runs/quickstart
    python -m marigold_jax.train --config hypersim_vkitti --workdir DIR --config.data.batch_size=8 ...

To train on several hosts, run the same command on each (`marigold_jax/runtime/distributed.py` tells how they connect).

A configuration is a recipe and overrides of its keys, as --config.SECTION.KEY=VALUE; `configs/base.py` explains every
key. DIR gets config.json (the whole configuration), metrics.jsonl (one line per logged step), tensorboard/, panels/,
checkpoints/, and at the end export/, which --checkpoint and diffusers load.

The same command continues a run that was stopped or killed, with the same result. Only config.run (but not its seed),
config.data.num_workers, config.data.data_dir and config.data.validation may change then. start.json records the
checkpoint that the run started from; if another one is there now, the run is refused. Only one training at a time can
use DIR.

A configuration is a Python file, and it is executed: use only files whose authors you trust.
Exit status: 0 finished, or stopped by SIGTERM or Ctrl-C with everything saved; 1 failed; 2 wrong usage.
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from marigold_jax.data.loader import DataSource, make_loader
from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.data.primitives import Primitives
from marigold_jax.evaluation import figures
from marigold_jax.runs import run_folder
from marigold_jax.runtime import compilation_cache, distributed, sharding, terminal
from marigold_jax.runtime.files import write
from marigold_jax.training import configuration, encode_dataset, overrides, progress
from marigold_jax.training.objectives.contract import TARGETS
from marigold_jax.training.setup import make_recipe
from marigold_jax.training.step import init_state, make_steps
from marigold_jax.training.validation import VALIDATIONS

NO_VALIDATION = ("", None, "None", "none")  # a flag for a text makes a text of None
BUILT_IN = {"primitives/train": {"count": 100_000, "seed": 0}, "primitives/val": {"count": 1000, "seed": 1}}


def train(config: ConfigDict, workdir: Path) -> None:
    configuration.check(config.to_dict())
    with run_folder.held(workdir) if jax.process_index() == 0 else contextlib.nullcontext():
        train_here(config, workdir)


def train_here(config: ConfigDict, workdir: Path) -> None:
    # ----------------------------------------------------------------------------------------- Claim the run's folder
    # From here on, being asked to stop means to finish the step, save, and leave politely; a second time it means now.
    # On several hosts JAX listens for SIGTERM itself, so that all stop after the same step.
    speaks, alone = jax.process_index() == 0, jax.process_count() == 1
    signals: list[int] = []

    def say(*what: Any) -> None:
        if speaks:
            terminal.say(" ".join(map(str, what)))

    def stop(number: int, frame: Any) -> None:
        signals.append(number)
        signal.signal(number, signal.SIG_DFL)
        os.write(2, b"stopping as soon as this step is over and saved; once more ends it now\n")

    for number in (signal.SIGTERM, signal.SIGINT) if alone else ():
        signal.signal(number, stop)
    if speaks:
        run_folder.claim(workdir, config.to_dict(), configuration.defaults(config.objective.name))
    compilation_cache.enable_cache()

    # -------------------------------------------------------------------------------------- Devices, and what starts
    layout = sharding.Layout(sharding.make_mesh(config.run.fsdp), (("", "fsdp"),))
    say(f"loading the model ({config.model.checkpoint}) and the data")
    base = run_folder.begin(workdir, config.to_dict())
    stored = config.run.get("latents", "")
    recipe = make_recipe(base, config.model.prediction, dict(config.objective), config.run.seed, stored, **config.optim)

    # ----------------------------------------------------------------------------------------------------------- Data
    data, target = config.data, TARGETS[config.model.prediction][0]
    if data.batch_size % jax.process_count():
        raise ValueError(
            f"config.data.batch_size={data.batch_size}: wanted a multiple of the {jax.process_count()} processes"
        )
    mix = mix_of(data.train)
    datasets = {path: opened("train", path, data) for path, _ in mix}
    seen = {
        "size": size_of(data.size, base.vae.config.downsampling),
        "antialias": data.antialias,
        "far_fill": data.far_fill,
    }
    keys = ("rgb", target, "mask", "span", "depth")
    if stored:
        if built_in := datasets.keys() & BUILT_IN.keys():
            raise ValueError(f"config.run.latents={stored}: wanted prepared datasets, not {min(built_in)}")
        if data.zoom != 1:
            raise ValueError(f"config.run.latents={stored}: only whole frames are stored; wanted config.data.zoom=1.0")
        keys = ("latents", "latent_mask")
        how = {"target": config.model.prediction, "dtype": stored, "num_workers": data.num_workers}
        how |= {"stopping": lambda: signals, **seen}
        try:
            datasets = {path: encode_dataset.cached(split, base.vae, **how) for path, split in datasets.items()}
        except InterruptedError as stopped:
            say(f"{stopped}; give the same command again to go on")
            return
    loader = make_loader(
        [(datasets[path], probability) for path, probability in mix],
        batch_size=data.batch_size // jax.process_count(),
        seed=config.run.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=data.num_workers,
        flip=data.flip,
        zoom=data.zoom,
        normals=target == "normals",
        **seen,
    )
    examples = held_out(data, config.run, target)

    # ----------------------------------------------------------------------------------------- Objective and optimiser
    trains, objective, optimiser, ema_decay = recipe.trains, recipe.objective, recipe.optimiser, recipe.ema_decay
    count = progress.flops_counter(jax.grad(recipe.lean, has_aux=True))
    frozen = layout.place(recipe.frozen)
    state = init_state(recipe.params, optimiser, ema=ema_decay is not None, layout=layout)
    # The state has its own copy of what trains; another would only take memory.
    base = run_folder.with_params(base, trains, frozen.get(trains, {}))
    follows = recipe.follows
    del recipe
    steps = {"accumulation": data.accumulation, "seed": config.run.seed, "ema_decay": ema_decay, "layout": layout}
    accumulate, update = make_steps(objective, optimiser, **steps)
    weights = "params" if ema_decay is None else "ema"  # what is evaluated and exported
    validate, judge = VALIDATIONS[trains, config.model.prediction]
    none_yet = {"step": None, judge: float("inf"), "validation": data.validation}

    # --------------------------------------------------------------------------------------------------------- Resume
    checkpoints = run_folder.Checkpoints(workdir / run_folder.CHECKPOINTS)
    last, first, best = config.run.steps, 0, none_yet
    if (restored := checkpoints.restore(state)) is not None:
        state, notes = restored
        first, best = notes["step"], notes["best"]
        loader.set_state(notes["loader"])
        if best.get("validation", data.validation) != data.validation:
            say(f"config.data.validation was {best['validation']}: scores on it say nothing about {data.validation}")
            best = none_yet
    if first >= last:
        say(f"{first} steps are done, config.run.steps={last}: nothing is left to train")
    reporter = progress.Progress(workdir, first, last, data.batch_size * data.accumulation, speak=speaks)

    # ------------------------------------------------------------------------------------------------------- The loop
    earlier = metrics = None
    for step in range(first, last):
        # Later, being asked to stop waits for the end of a step, where it is saved.
        if step == first:
            if signals:
                break
            say(f"step {step + 1} of {last}: compiling, which may take minutes")
        # The step before last is over, or nearly: to ask for that of the last would leave the device without work.
        if earlier is not None and (skipped := int(earlier["skipped"])) >= config.run.max_skipped:
            checkpoints.finish()
            raise FloatingPointError(
                f"step {step}: loss or gradients were not finite {skipped} times in a row; lower "
                f"config.optim.learning_rate, or compute in float32, and start anew, or from {checkpoints.folder}"
            )
        accumulator, flops = None, 0.0
        still = frozen | {"target": state["ema"]} if follows else frozen  # for this step
        for micro in range(data.accumulation):
            batch = next(loader)
            batch = layout.place_batch({key: batch[key] for key in keys})
            accumulator = accumulate(accumulator, state["params"], still, batch, step, micro)
            flops += count(state["params"], still, batch, jax.random.key(0))
        earlier, (state, metrics) = metrics, update(state, accumulator)

        # What is due now, by the number of steps that are done. The last step is evaluated and saved in any case.
        done = step + 1
        if done == first + 1:
            jax.block_until_ready(metrics)
            reporter.restart(done)
        stopping = bool(signals) if alone else multihost_utils.reached_preemption_sync_point(done)
        evaluating = bool(examples) and (done % config.run.evaluate_every == 0 or done == last)
        scores = {}
        if evaluating:
            with reporter.paused(metrics):
                scores, panel = validate(run_folder.trained(base, trains, state[weights], layout), examples)
                if speaks:
                    write(workdir / "panels" / f"step_{done:06d}.png", memoryview(figures.png(panel)))
                    reporter.picture("validation", done, panel)
        if improved := evaluating and scores[judge] < best[judge]:
            best = none_yet | {"step": done, judge: scores[judge]}
        if done % config.run.log_every == 0 or evaluating:
            reporter.record(done, jax.device_get(metrics) | scores, flops)
        if done % config.run.checkpoint_every == 0 or improved or stopping or done == last:
            with reporter.paused(metrics):
                checkpoints.save(done, state, {"step": done, "best": best, "loader": loader.get_state()}, best["step"])
        if stopping:
            break
    batch = None  # on a CPU, its arrays lie in memory that the worker processes share
    loader.close()
    checkpoints.finish()
    reporter.close()

    # -------------------------------------------------------------------------------------------------------- The end
    done = int(state["step"])
    if done < last:
        say(f"stopped after step {done}; give the same command again to go on")
        return
    whole = run_folder.trained(base, trains, state[weights], layout)  # by all processes: each holds a share
    if speaks and (first < last or run_folder.exported_step(workdir) != done):
        run_folder.export(whole, done, workdir)
    say(f"finished: {workdir / run_folder.EXPORT} is ready for --checkpoint, in diffusers' layout")
    distributed.wait_for_all("exported")


def mix_of(train: tuple) -> list[tuple[str, float]]:
    """Datasets and their shares. ValueError for anything else; a flag that Python cannot read arrives as a string."""
    try:
        return [(str(name), float(share)) for name, share in train]
    except (TypeError, ValueError):
        wanted = "(('NAME/SPLIT', 0.9), ('NAME/SPLIT', 0.1))"
        raise ValueError(f"config.data.train: wanted pairs with numbers, {wanted}; found {train}") from None


def size_of(size: tuple, cell: int) -> tuple[int, int] | None:
    """(height, width) to train at, or None for each dataset's own. ValueError for what the VAE cannot halve."""
    size = tuple(size) if isinstance(size, list | tuple) else size
    if size == ():
        return None
    good = isinstance(size, tuple) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)
    if not good or size[0] % cell or size[1] % cell:
        raise ValueError(
            f"config.data.size={size}: wanted (height, width), multiples of {cell}, or () for each its own"
        )
    return size


def opened(key: str, name: str, data: ConfigDict) -> DataSource | Sequence[dict]:
    """The dataset that `config.data` names. ValueError says which key it was, and what can stand there."""
    wanted = "a prepared NAME/SPLIT, as my_scans/train"
    if key == "validation":
        first = str(mix_of(data.train)[0][0]).rpartition("/")[0] or "my_scans"
        wanted = f"a prepared NAME/SPLIT, as {first}/val, or '' to train without validation"
    try:
        if not isinstance(name, str) or not all(name.rpartition("/")[::2]):
            raise ValueError("is no such name")
        return open_dataset(name, data)
    except ValueError as error:
        raise ValueError(f"config.data.{key}={name}: wanted {wanted}; {error}") from None


def held_out(data: ConfigDict, run: ConfigDict, target: str) -> list[dict[str, np.ndarray]]:
    """What the run is judged by: frames from all over the dataset for validation, each once; none where none is wanted.

    Raises ValueError for a dataset that is not there, or has no normals where those are the `target`.
    """
    if not run.evaluate_every or data.validation in NO_VALIDATION:
        return []
    dataset = opened("validation", data.validation, data)
    spread = np.linspace(0, len(dataset) - 1, min(run.validation_images, len(dataset))).astype(int)
    examples = [dataset[int(index)] for index in spread]
    if target == "normals" and "normals" not in examples[0]:
        raise ValueError(f"config.data.validation={data.validation} has no normals; 0 for config.run.evaluate_every")
    return examples


def open_dataset(name: str, data: ConfigDict) -> DataSource:
    if name in BUILT_IN:
        return Primitives(size=tuple(data.size), **BUILT_IN[name])
    return PreparedSplit(str(Path(data.data_dir) / name))


def parse(argv: Sequence[str] | None) -> tuple[ConfigDict, Path]:
    """Returns the configuration and the run's folder. Wrong flags end the program with one line and status 2."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = terminal.Parser("python -m marigold_jax.train", description=__doc__, formatter_class=raw)
    configuration.add_flags(parser)
    folder = "the folder of the run: created if missing, continued if it holds this run"
    parser.add_argument("--workdir", required=True, metavar="DIR", help=folder)
    rest, changes = overrides.split(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(rest)
    if not arguments.workdir:
        parser.error(f"argument --workdir: wanted {folder}; got an empty name")
    try:
        return configuration.load(arguments.config, changes), Path(arguments.workdir).absolute()
    except ValueError as error:
        parser.error(str(error))


def main(argv: Sequence[str] | None = None) -> int:
    config, workdir = parse(argv)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs everything that it does, and errors twice
    try:
        distributed.start()
        train(config, workdir)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        terminal.fail(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(terminal.run(main))
