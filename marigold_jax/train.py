"""Trains or fine-tunes a depth (or normals) estimator.

    python -m marigold_jax.train --config configs/quickstart.py --workdir runs/quickstart
    python -m marigold_jax.train --config configs/hypersim_vkitti.py --workdir DIR --config.data.batch_size=8 ...

Several hosts or processes run the same command (`marigold_jax/runtime/distributed.py` says how they find each other).

Every key of the configuration can be set as --config.section.key=value. DIR holds config.json (resolved), metrics.jsonl
(one line a logged step), tensorboard/, panels/, checkpoints/, and in the end export/, which --checkpoint and diffusers
load. The same command continues a run that was stopped, by whatever means, as if nothing had happened. Then only
config.run (not its seed), config.data.num_workers, config.data.data_dir and config.data.validation may differ. What a
run starts from is written down in start.json; where another checkpoint is there now, the run is not continued. One
training at a time works in DIR.

A configuration is a Python file, and is executed: take none from people whose programs you would not run.
Exit status: 0 finished, or stopped by SIGTERM or Ctrl-C with everything saved; 1 failed; 2 wrong usage.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from jax.experimental import multihost_utils

from marigold_jax.data.loader import DataSource, make_loader
from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.data.primitives import Primitives
from marigold_jax.evaluation import figures
from marigold_jax.runs import run_folder
from marigold_jax.runtime import compilation_cache, distributed, extras, sharding, terminal
from marigold_jax.runtime.cli import fail, parse
from marigold_jax.runtime.files import write
from marigold_jax.training import encode_dataset, progress, settings
from marigold_jax.training.objectives.contract import TARGETS
from marigold_jax.training.setup import make_recipe
from marigold_jax.training.step import init_state, make_steps
from marigold_jax.training.validation import VALIDATIONS

with extras.needed("train", __name__):
    from ml_collections import ConfigDict, config_flags

NO_VALIDATION = ("", None, "None", "none")  # a flag for a text makes a text of None
FLAGS = {
    "config": "the configuration, a Python file, which is executed",
    "workdir": "the run's folder; made if missing, continued if it holds this run",
}
BUILT_IN = {"primitives/train": {"count": 100_000, "seed": 0}, "primitives/val": {"count": 1000, "seed": 1}}


def train(config: ConfigDict, workdir: Path) -> None:
    settings.check(config.to_dict())
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
        run_folder.claim(workdir, config.to_dict())
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


def define_flags() -> None:
    """Not when this file is imported: others have a flag --config too."""
    config_flags.DEFINE_config_file("config", None, FLAGS["config"], lock_config=True)
    flags.DEFINE_string("workdir", None, FLAGS["workdir"])


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_logger().setLevel("CRITICAL")  # Orbax tells everything that it does, and errors twice
    try:
        distributed.start()
        train(flags.FLAGS.config, Path(flags.FLAGS.workdir).absolute())
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        fail(str(error))


if __name__ == "__main__":
    define_flags()
    sys.exit(terminal.run(lambda: app.run(main, flags_parser=lambda argv: parse(argv, __doc__, FLAGS))))
