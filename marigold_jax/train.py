"""Trains or fine-tunes a depth (or normals) estimator.

    python -m marigold_jax.train --config quickstart --workdir runs/quickstart
    python -m marigold_jax.train --config hypersim_vkitti --workdir DIR --config.data.batch_size=8 ...

To train on several hosts, run the same command on each; `marigold_jax/runtime/distributed.py` explains how they find
each other.

A configuration is a recipe plus overrides of single keys, --config.SECTION.KEY=VALUE; `configs/base.py` explains every
key. DIR gets config.json (the whole configuration), metrics.jsonl (one line per logged step), tensorboard/, panels/,
checkpoints/, and at the end export/, which --checkpoint and diffusers load.

The same command continues a run that was stopped or killed, with the same result. Only config.run (but not its seed),
config.data.num_workers, config.data.data_dir and config.data.validation may change then. start.json records the
checkpoint that the run started from; if it has changed since, the run is not resumed. Only one training at a time can
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
from jax.experimental import multihost_utils

from marigold_jax.data.contact_sheet import png
from marigold_jax.runs import run_folder
from marigold_jax.runs.checkpoints import Checkpoints
from marigold_jax.runs.export import export, exported_step, gather_trained, with_params
from marigold_jax.runs.start import begin
from marigold_jax.runtime import compilation_cache, distributed, extras, sharding, terminal
from marigold_jax.runtime.files import write
from marigold_jax.training import progress
from marigold_jax.training.datasets import batch_keys, training_batches, validation_examples
from marigold_jax.training.setup import make_setup
from marigold_jax.training.step import init_state, make_steps
from marigold_jax.training.targets import VALIDATIONS

with extras.needed("train", __name__):
    from ml_collections import ConfigDict

    from marigold_jax.training import configuration, overrides


def train(config: ConfigDict, workdir: Path) -> None:
    configuration.check(config.to_dict())
    with run_folder.held(workdir) if jax.process_index() == 0 else contextlib.nullcontext():
        train_here(config, workdir)


def train_here(config: ConfigDict, workdir: Path) -> None:
    # ----------------------------------------------------------------------------------------- Claim the run's folder
    # From here on, a first signal to stop finishes the step and saves it; a second one ends the process at once.
    # On several hosts JAX listens for SIGTERM itself, so that all of them stop after the same step.
    is_main_process, single_process = jax.process_index() == 0, jax.process_count() == 1
    signals: list[int] = []

    def say(*what: Any) -> None:
        if is_main_process:
            terminal.say(" ".join(map(str, what)))

    def stop(number: int, frame: Any) -> None:
        signals.append(number)
        signal.signal(number, signal.SIG_DFL)
        os.write(2, b"stopping once this step is finished and saved; a second signal stops at once\n")

    for number in (signal.SIGTERM, signal.SIGINT) if single_process else ():
        signal.signal(number, stop)
    sections = config.to_dict()
    if is_main_process:
        run_folder.claim(workdir, sections, configuration.defaults(config.objective.name))
    compilation_cache.enable_cache()

    # ----------------------------------------------------------------------------- Devices, model, objective, optimiser
    layout = sharding.Layout(sharding.make_mesh(config.run.fsdp), (("", "fsdp"),))
    say(f"loading the model ({config.model.checkpoint}) and the data")
    base = begin(workdir, sections)
    setup = make_setup(base, sections)

    # ----------------------------------------------------------------------------------------------------------- Data
    data, keys = config.data, batch_keys(sections)
    try:
        loader = training_batches(sections, base.vae, stopping=lambda: signals)
    except InterruptedError as stopped:
        say(f"{stopped}; give the same command again to continue")
        return
    examples = validation_examples(sections)

    # ------------------------------------------------------------------------------------------------- Training state
    trains, ema_decay, uses_ema_target = setup.trains, setup.ema_decay, setup.uses_ema_target
    count_flops = progress.flops_counter(jax.grad(setup.lean_objective, has_aux=True))
    frozen = layout.place(setup.frozen)
    state = init_state(setup.params, setup.optimiser, ema=ema_decay is not None, layout=layout)
    accumulate, update = make_steps(
        setup.objective,
        setup.optimiser,
        accumulation=data.accumulation,
        seed=config.run.seed,
        ema_decay=ema_decay,
        layout=layout,
        batch_size=data.batch_size,
    )
    # The state has its own copy of the parameters that train: free the original.
    base = with_params(base, trains, frozen.get(trains, {}))
    del setup
    weights = "params" if ema_decay is None else "ema"  # what is validated and exported
    validation = VALIDATIONS[trains][config.model.prediction]
    primary_metric = validation.primary_metric
    none_yet = {"step": None, primary_metric: float("inf"), "validation": data.validation}

    # --------------------------------------------------------------------------------------------------------- Resume
    checkpoints = Checkpoints(workdir / run_folder.CHECKPOINTS)
    last, first, best = config.run.steps, 0, none_yet
    if (restored := checkpoints.restore(state)) is not None:
        state, notes = restored
        first, best = notes["step"], notes["best"]
        loader.set_state(notes["loader"])
        if best.get("validation", data.validation) != data.validation:
            say(f"config.data.validation was {best['validation']}: its scores do not compare with {data.validation}")
            best = none_yet
    if first >= last:
        say(f"{first} steps are done, config.run.steps={last}: nothing is left to train")
    reporter = progress.Progress(workdir, first, last, data.batch_size * data.accumulation, is_main_process)

    # ------------------------------------------------------------------------------------------------------- The loop
    earlier = metrics = None
    for step in range(first, last):
        # Signals before the first step end the run here. Later ones wait until the step is saved.
        if step == first:
            if signals:
                break
            say(f"step {step + 1} of {last}: compiling, which may take minutes")
        # These metrics are two steps old and available by now. Waiting for newer ones would leave the device idle.
        if earlier is not None and (skipped := int(earlier["skipped"])) >= config.run.max_skipped:
            checkpoints.finish()
            raise FloatingPointError(
                f"step {step}: loss or gradients were not finite {skipped} times in a row; lower "
                f"config.optim.learning_rate, or compute in float32, and start anew, or from {checkpoints.folder}"
            )
        accumulator, flops = None, 0.0
        frozen_now = frozen | {"target": state["ema"]} if uses_ema_target else frozen
        for micro in range(data.accumulation):
            batch = next(loader)
            batch = layout.place_batch({key: batch[key] for key in keys})
            accumulator = accumulate(accumulator, state["params"], frozen_now, batch, step, micro)
            flops += count_flops(state["params"], frozen_now, batch, jax.random.key(0))
        earlier, (state, metrics) = metrics, update(state, accumulator)

        # What is due after this step. The last step is always validated and saved.
        done = step + 1
        if done == first + 1:
            jax.block_until_ready(metrics)
            reporter.restart(done)
        stopping = bool(signals) if single_process else multihost_utils.reached_preemption_sync_point(done)
        evaluating = bool(examples) and (done % config.run.evaluate_every == 0 or done == last)
        scores = {}
        if evaluating:
            with reporter.paused(metrics):
                scores, panel = validation.validate(gather_trained(base, trains, state[weights], layout), examples)
                if is_main_process:
                    write(workdir / "panels" / f"step_{done:06d}.png", memoryview(png(panel)))
                    reporter.picture("validation", done, panel)
        if improved := evaluating and scores[primary_metric] < best[primary_metric]:
            best = none_yet | {"step": done, primary_metric: scores[primary_metric]}
        if done % config.run.log_every == 0 or evaluating:
            reporter.record(done, jax.device_get(metrics) | scores, flops)
        if done % config.run.checkpoint_every == 0 or improved or stopping or done == last:
            with reporter.paused(metrics):
                checkpoints.save(done, state, {"step": done, "best": best, "loader": loader.get_state()}, best["step"])
        if stopping:
            break
    batch = None  # on a CPU, its arrays lie in memory shared with the worker processes
    loader.close()
    checkpoints.finish()
    reporter.close()

    # --------------------------------------------------------------------------------------------------------- Export
    done = int(state["step"])
    if done < last:
        say(f"stopped after step {done}; give the same command again to continue")
        return
    trained = gather_trained(base, trains, state[weights], layout)  # by all processes: each holds a part
    if is_main_process and (first < last or exported_step(workdir) != done):
        export(trained, done, workdir)
    say(f"finished: {workdir / run_folder.EXPORT} is ready for --checkpoint, in diffusers' layout")
    distributed.wait_for_all("exported")


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
