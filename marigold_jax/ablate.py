"""Shows how depth scores depend on one choice, as Tables 2 and 3 and Figures 6 and 7 of arXiv 2312.02145 do.

    python -m marigold_jax.ablate --which ensemble --dataset rooms --data_dir data -o ablations
    python -m marigold_jax.ablate --which steps    --dataset rooms --data_dir data -o ablations
    python -m marigold_jax.ablate --which noise --config quickstart ...
    python -m marigold_jax.ablate --which datasets --config quickstart --mix rooms/train primitives/train ...

`ensemble` merges 1 to 20 predictions of a checkpoint. `steps` takes 1 to 50 denoising steps, with trailing and with
leading timesteps. `noise` and `datasets` train a configuration once for each choice, in OUTPUT_DIR/WHICH/, and continue
an interrupted training. Flags such as --config.run.steps=500 change the configuration.

OUTPUT_DIR gets WHICH.csv, WHICH.png and WHICH.svg: the means over images of AbsRel and delta1 after least-squares
alignment, and the standard error of AbsRel.
Exit status: 0 success, 1 something failed, 2 wrong usage, 130 interrupted.
"""

import argparse
import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.evaluation import curves
from marigold_jax.evaluation.estimators import Estimator
from marigold_jax.evaluation.report import table
from marigold_jax.evaluation.scoring import Task, score_all
from marigold_jax.evaluation.splits import evenly_spread
from marigold_jax.runtime import terminal
from marigold_jax.runtime.files import write

SIZES = (1, 2, 3, 5, 10, 15, 20)  # members of an ensemble
STEPS = (1, 2, 4, 10, 25, 50)
SPACINGS = ("trailing", "leading")
NOISES = {
    "Gaussian": {"noise": "gaussian"},
    "multi-resolution": {"noise": "multi_resolution", "annealed": False},
    "annealed multi-resolution": {"noise": "multi_resolution", "annealed": True},
}
SHARES = (0.0, 0.1, 0.5, 0.9, 1.0)  # of the first dataset in a mix of two
LOG_X = ("ensemble", "steps")  # choices that are drawn on a logarithmic axis


class Choice(NamedTuple):
    """One choice: the curve it belongs to, its position there, and the predictions made with it."""

    series: str
    x: int | float | str
    estimator: Estimator


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = terminal.Parser(
        "python -m marigold_jax.ablate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, number, folder = parser.add_argument, {"type": int, "metavar": "N"}, {"type": Path, "metavar": "DIR"}
    add("--which", required=True, choices=ABLATIONS, help="the choice to vary")
    add("--dataset", required=True, metavar="NAME", help="a dataset made by `prepare`")
    add("--data_dir", required=True, **folder, help="folder of the datasets")
    add("--split", default="test", help="split to score (default: %(default)s)")
    add("-o", "--output_dir", required=True, **folder, help="where results are written; created if missing")
    add("--limit", **number, default=100, help="score at most N images, evenly spread (default: %(default)s)")
    add("--checkpoint", help="for ensemble and steps (default: marigold-rooms)")
    resolution = "longer side of the image for the network; 0: its own size"
    add("--processing_res", **number, help=f"{resolution} (default: the checkpoint's own)")
    add("--config", metavar="NAME|FILE", help="for noise and datasets: the recipe or configuration to train")
    add("--mix", nargs=2, metavar="NAME/SPLIT", help="for datasets: the two datasets to mix")
    arguments, overrides = parser.parse_known_args(argv)
    wanted = {"noise": ["config"], "datasets": ["config", "mix"]}.get(arguments.which, [])
    for flag in wanted:
        if getattr(arguments, flag) is None:
            parser.error(f"--which {arguments.which} needs --{flag}")
    for override in overrides:
        if not wanted or not override.startswith("--config."):
            parser.error(f"unknown flag {override}")
    if arguments.limit < 1:
        parser.error(f"--limit must be at least 1; got {arguments.limit}")
    return arguments, overrides


def ensemble(arguments: argparse.Namespace, split: PreparedSplit, overrides: list[str]) -> Iterator[Choice]:
    """Merges the predictions of the seeds 0, 1, ... Each prediction is made once."""
    import jax.numpy as jnp

    from marigold_jax import Marigold
    from marigold_jax.ensemble import ensemble_depth

    pipe = Marigold.from_pretrained(arguments.checkpoint)
    predict = predictor(pipe, arguments)
    members: dict[tuple[int, int], np.ndarray] = {}

    def member(image: int, seed: int) -> np.ndarray:
        if (image, seed) not in members:
            members[image, seed] = predict(split[image]["rgb"], seed=seed)
        return members[image, seed]

    for size in SIZES:

        def estimate(image: int, size: int = size) -> np.ndarray:
            maps = np.stack([member(image, seed)[..., 0] for seed in range(size)])
            return maps[0][..., None] if size == 1 else np.asarray(ensemble_depth(jnp.asarray(maps))[0])[..., None]

        yield Choice("ensemble", size, estimate)


def steps(arguments: argparse.Namespace, split: PreparedSplit, overrides: list[str]) -> Iterator[Choice]:
    """Varies the number of denoising steps and the spacing of timesteps."""
    from marigold_jax import Marigold
    from marigold_jax.runs.locate import locate
    from marigold_jax.weights import model_folder

    loaded = model_folder.load(locate(arguments.checkpoint))
    for spacing in SPACINGS:
        pipe = Marigold(dataclasses.replace(loaded, scheduler=loaded.scheduler.replace({"timestep_spacing": spacing})))
        for count in STEPS:
            predict = predictor(pipe, arguments, num_inference_steps=count)
            yield Choice(spacing, count, lambda image, predict=predict: predict(split[image]["rgb"]))


def noise(arguments: argparse.Namespace, split: PreparedSplit, overrides: list[str]) -> Iterator[Choice]:
    """Trains with each kind of noise."""
    for name, options in NOISES.items():
        flags = [f"--config.objective.{key}={value}" for key, value in options.items()]
        yield Choice("training noise", name, trained(arguments, split, name.replace(" ", "_"), [*overrides, *flags]))


def datasets(arguments: argparse.Namespace, split: PreparedSplit, overrides: list[str]) -> Iterator[Choice]:
    """Trains with each share of the first dataset."""
    first, second = arguments.mix
    for share in SHARES:
        mix = tuple((name, part) for name, part in ((first, share), (second, 1 - share)) if part)
        flags = [*overrides, f"--config.data.train={mix}"]
        yield Choice(f"share of {first}", share, trained(arguments, split, f"{share:g}", flags))


ABLATIONS: dict[str, Callable[..., Iterator[Choice]]] = {
    "ensemble": ensemble,
    "steps": steps,
    "noise": noise,
    "datasets": datasets,
}


def predictor(pipe: Any, arguments: argparse.Namespace, **options: Any) -> Callable[..., np.ndarray]:
    """Returns a function of an image and a seed."""

    def predict(rgb: np.ndarray, seed: int = 0) -> np.ndarray:
        return pipe(rgb, processing_resolution=arguments.processing_res, seed=seed, **options).prediction[0]

    return predict


def trained(arguments: argparse.Namespace, split: PreparedSplit, name: str, flags: list[str]) -> Estimator:
    """Trains in the folder OUTPUT_DIR/WHICH/NAME, or continues there. Raises RuntimeError if the training fails."""
    from marigold_jax import Marigold

    workdir = arguments.output_dir / arguments.which / name
    command = [sys.executable, "-m", "marigold_jax.train", "--config", arguments.config, "--workdir", str(workdir)]
    terminal.say(f"{arguments.which}: {name}")
    if subprocess.run([*command, f"--config.data.data_dir={arguments.data_dir}", *flags]).returncode:
        raise RuntimeError(f"the training in {workdir} failed, see above; run the same command again to continue")
    predict = predictor(Marigold.from_pretrained(workdir), arguments)
    return lambda image: predict(split[image]["rgb"])


def main(argv: list[str] | None = None) -> int:
    arguments, overrides = parse(argv)
    try:
        split = PreparedSplit(str(arguments.data_dir / arguments.dataset / arguments.split))
        indices = evenly_spread(split, arguments.limit)
        # JAX starts here, so that --help and a mistyped flag need not wait for it.
        from marigold_jax.runtime import compilation_cache

        compilation_cache.enable_cache()
        points = []
        for choice in tqdm(ABLATIONS[arguments.which](arguments, split, overrides), unit="point", disable=None):
            scores = score_all(choice.estimator, Task(split, indices)).scores
            points.append(curves.point(choice.series, choice.x, scores))
        write(arguments.output_dir / f"{arguments.which}.csv", curves.to_csv(points))
        for kind, content in curves.draw(arguments.which, points, arguments.which in LOG_X).items():
            write(arguments.output_dir / f"{arguments.which}.{kind}", content)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        terminal.say(f"ablate: {error}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        terminal.say("ablate: interrupted; run the same command again to continue its trainings", sys.stderr)
        return 130
    for line in table(curves.Point._fields, points).splitlines():
        terminal.say(line)
    return 0


if __name__ == "__main__":
    sys.exit(terminal.run(main))
