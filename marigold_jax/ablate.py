"""How scores depend on one choice: the paper's Tables 2 and 3 and Figures 6 and 7, on any prepared dataset.

    python -m marigold_jax.ablate --which ensemble --dataset rooms --data_dir data --output_dir ablations
    python -m marigold_jax.ablate --which steps    --dataset rooms --data_dir data --output_dir ablations
    python -m marigold_jax.ablate --which noise --config FILE ...
    python -m marigold_jax.ablate --which datasets --config FILE --mix rooms/train primitives/train ...

`ensemble` merges 1 to 20 predictions of a checkpoint, `steps` takes 1 to 50 denoising steps with trailing and with
leading timesteps. `noise` and `datasets` train the configuration once for each choice, in OUTPUT_DIR/WHICH/, and go on
where they were interrupted; keys of it may follow, as --config.run.steps=500. (A configuration is a Python file, and is
executed.) OUTPUT_DIR gets WHICH.csv, WHICH.png and
WHICH.svg: means over images of AbsRel and delta1 of least-squares aligned depth, and the standard error of the former.
Exit status: 0 all is well, 1 something failed, 2 wrong usage, 130 interrupted.
"""

import argparse
import csv
import dataclasses
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.evaluation.scoring import Look, means, score, spread, table
from marigold_jax.runtime import terminal
from marigold_jax.runtime.files import write

SIZES = (1, 2, 3, 5, 10, 15, 20)  # of ensembles
STEPS = (1, 2, 4, 10, 25, 50)
SPACINGS = ("trailing", "leading")
NOISES = {
    "Gaussian": {"noise": "gaussian"},
    "multi-resolution": {"noise": "multi_resolution", "annealed": False},
    "annealed multi-resolution": {"noise": "multi_resolution", "annealed": True},
}
SHARES = (0.0, 0.1, 0.5, 0.9, 1.0)  # of the first dataset in the mix
HEADER = ("series", "x", "images", "abs_rel", "abs_rel_error", "delta1")


class Point(NamedTuple):
    """One choice: the curve it belongs to, where on it, and what it predicts for each image."""

    series: str
    x: float | str
    look: Look


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = terminal.Parser(
        "python -m marigold_jax.ablate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    number = {"type": int, "metavar": "N"}
    add("--which", required=True, choices=ABLATIONS)
    add("--dataset", required=True, metavar="NAME", help="what `prepare` made")
    add("--data_dir", type=Path, required=True, metavar="DIR", help="where prepared datasets are kept")
    add("--split", default="test", help="of the dataset (default: %(default)s)")
    add("--output_dir", type=Path, required=True, metavar="DIR", help="where results go; made if missing")
    add("--limit", **number, default=100, help="score so many images, evenly spread (default: %(default)s)")
    add("--checkpoint", help="of ensemble and steps (default: the one that ships)")
    add("--processing_res", **number, help="longer side for the network (default: the checkpoint's own)")
    add("--config", type=Path, metavar="FILE", help="of noise and datasets: what is trained")
    add("--mix", nargs=2, metavar="NAME/SPLIT", help="of datasets: the two that are mixed")
    arguments, overrides = parser.parse_known_args(argv)
    wanted = {"noise": ["config"], "datasets": ["config", "mix"]}.get(arguments.which, [])
    for flag in wanted:
        if getattr(arguments, flag) is None:
            parser.error(f"--which {arguments.which} wants --{flag}")
    for override in overrides:
        if not wanted or not override.startswith("--config."):
            parser.error(f"unknown flag {override}")
    if arguments.limit < 1:
        parser.error(f"--limit must be at least 1; got {arguments.limit}")
    return arguments, overrides


# ------------------------------------------------------------------------------------- what is varied: flags to points


def ensemble(arguments: argparse.Namespace, split: PreparedSplit, overrides: list[str]) -> Iterator[Point]:
    """The merged predictions of the seeds 0, 1, ..., each made once."""
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

        def look(image: int, size: int = size) -> np.ndarray:
            maps = np.stack([member(image, seed)[..., 0] for seed in range(size)])
            return maps[0][..., None] if size == 1 else np.asarray(ensemble_depth(jnp.asarray(maps))[0])[..., None]

        yield Point("ensemble", size, look)


def steps(arguments: argparse.Namespace, split: PreparedSplit, overrides: list[str]) -> Iterator[Point]:
    """The checkpoint with another number of steps, and with another spacing of timesteps."""
    from marigold_jax import Marigold
    from marigold_jax.runs.run_folder import locate
    from marigold_jax.weights import model

    loaded = model.load(locate(arguments.checkpoint))
    for spacing in SPACINGS:
        pipe = Marigold(dataclasses.replace(loaded, scheduler=loaded.scheduler.replace({"timestep_spacing": spacing})))
        for count in STEPS:
            predict = predictor(pipe, arguments, num_inference_steps=count)
            yield Point(spacing, count, lambda image, predict=predict: predict(split[image]["rgb"]))


def noise(arguments: argparse.Namespace, split: PreparedSplit, overrides: list[str]) -> Iterator[Point]:
    """A training for each kind of noise."""
    for name, options in NOISES.items():
        flags = [f"--config.objective.{key}={value}" for key, value in options.items()]
        yield Point("training noise", name, trained(arguments, split, name.replace(" ", "_"), [*overrides, *flags]))


def datasets(arguments: argparse.Namespace, split: PreparedSplit, overrides: list[str]) -> Iterator[Point]:
    """A training for each share of the first dataset."""
    first, second = arguments.mix
    for share in SHARES:
        mix = tuple((name, part) for name, part in ((first, share), (second, 1 - share)) if part)
        flags = [*overrides, f"--config.data.train={mix}"]
        yield Point(f"share of {first}", share, trained(arguments, split, f"{share:g}", flags))


ABLATIONS: dict[str, Callable[..., Iterator[Point]]] = {
    "ensemble": ensemble,
    "steps": steps,
    "noise": noise,
    "datasets": datasets,
}


def predictor(pipe: Any, arguments: argparse.Namespace, **options: Any) -> Callable[..., np.ndarray]:
    """A function of one photograph, and perhaps a seed."""

    def predict(rgb: np.ndarray, seed: int = 0) -> np.ndarray:
        return pipe(rgb, processing_resolution=arguments.processing_res, seed=seed, **options).prediction[0]

    return predict


def trained(arguments: argparse.Namespace, split: PreparedSplit, name: str, flags: list[str]) -> Look:
    """Trains, or goes on training, in a folder of that name. Raises RuntimeError where the training fails."""
    from marigold_jax import Marigold

    workdir = arguments.output_dir / arguments.which / name
    command = [sys.executable, "-m", "marigold_jax.train", "--config", str(arguments.config), "--workdir", str(workdir)]
    terminal.say(f"{arguments.which}: {name}")
    if subprocess.run([*command, f"--config.data.data_dir={arguments.data_dir}", *flags]).returncode:
        raise RuntimeError(f"the training in {workdir} failed: see above; the same command goes on from here")
    predict = predictor(Marigold.from_pretrained(workdir), arguments)
    return lambda image: predict(split[image]["rgb"])


# ----------------------------------------------------------------------------------------------- what is made of it all


def row(point: Point, scores: dict[int, dict[str, float]]) -> list[Any]:
    errors = [one["abs_rel"] for one in scores.values()]
    mean = means(scores)
    return [
        point.series,
        point.x,
        len(scores),
        mean["abs_rel"],
        float(np.std(errors) / len(errors) ** 0.5),
        mean["delta1"],
    ]


def comma_separated(rows: list[list[Any]]) -> bytes:
    lines = io.StringIO()
    csv.writer(lines, lineterminator="\n").writerows([HEADER, *rows])
    return lines.getvalue().encode()


def drawings(which: str, rows: list[list[Any]]) -> dict[str, bytes]:
    """The curves as PNG and SVG, AbsRel left and delta1 right."""
    from matplotlib.figure import Figure  # late: it is slow to load

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, column in zip(figure.subplots(1, 2), ("abs_rel", "delta1"), strict=True):
        at = HEADER.index(column)
        for series in dict.fromkeys(one[0] for one in rows):
            curve = [one for one in rows if one[0] == series]
            names = any(isinstance(one[1], str) for one in curve)  # between which no line would mean anything
            axes.errorbar(
                [one[1].replace(" ", "\n") if names else one[1] for one in curve],
                [one[at] for one in curve],
                yerr=[one[HEADER.index("abs_rel_error")] for one in curve] if column == "abs_rel" else None,
                fmt="o" if names else "o-",
                capsize=3,
                label=series,
            )
        axes.set(xlabel=which, title={"abs_rel": "AbsRel, lower is better", "delta1": "δ1, higher is better"}[column])
        if which in ("ensemble", "steps"):
            axes.set_xscale("log")
            ticks = sorted({one[1] for one in rows})
            axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
            axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    files = {}
    for kind in ("png", "svg"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else None)
        files[kind] = buffer.getvalue()
    return files


def main(argv: list[str] | None = None) -> int:
    arguments, overrides = parse(argv)
    try:
        split = PreparedSplit(str(arguments.data_dir / arguments.dataset / arguments.split))
        indices = spread(split, arguments.limit)
        from marigold_jax.runtime import (
            compilation_cache,  # here, so that --help and a mistyped flag need not wait for JAX
        )

        compilation_cache.enable_cache()
        rows = []
        for point in tqdm(ABLATIONS[arguments.which](arguments, split, overrides), unit="point", disable=None):
            rows.append(row(point, score(point.look, split, indices, "least_square", allow_missing=False)))
        write(arguments.output_dir / f"{arguments.which}.csv", comma_separated(rows))
        for kind, content in drawings(arguments.which, rows).items():
            write(arguments.output_dir / f"{arguments.which}.{kind}", content)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        terminal.say(f"ablate: {error}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        terminal.say("ablate: interrupted; trainings go on from here with the same command", sys.stderr)
        return 130
    for line in table(HEADER, rows).splitlines():
        terminal.say(line)
    return 0


if __name__ == "__main__":
    sys.exit(terminal.run(main))
