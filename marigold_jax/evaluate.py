"""Scores depth or normals on datasets: the predictions of a model, or saved ones.

    python -m marigold_jax.evaluate --checkpoint DIR --dataset rooms --data_dir data -o scores --blind
    python -m marigold_jax.evaluate --predictions maps/ --dataset rooms,my_scans --data_dir data -o scores
    python -m marigold_jax.evaluate --checkpoint NAME --dataset nyu_v2,kitti,eth3d,scannet,diode --data_dir official ...
    python -m marigold_jax.evaluate --checkpoint NAME --dataset nyu_v2_normals,scannet_normals,ibims_normals ...

Datasets are made by `prepare`, or are official test sets as Marigold's authors packed them. Official test sets are
scored by the papers' protocol (see `marigold_jax/evaluation/benchmarks.py`), and their scores are printed below ours.

Depth is aligned to the true depth (--alignment), clipped to the dataset's range and compared at the valid pixels, in
float64. Scores are means over images. Normals are scored by the angle to the true normals in degrees, as means over
images and over all pixels together. On prepared datasets, predictions with three channels are normals.

For every DATASET, OUTPUT_DIR gets:
    DATASET/metrics.json      the means, the settings, and how many images were left out
    DATASET/per_sample.csv    the scores of each image
    DATASET/worst.png         the ten worst images by AbsRel or mean angle: image, truth, prediction, error
    DATASET/predictions/      a model's predictions: NAME.npy, float32 (height, width) or (height, width, 3); an
                              interrupted run continues from them
--predictions expects NAME.npy for each image NAME, in the dataset's folders, or in one folder if no two images have the
same name. It also reads NAME.npz with one array, NAME.png in 16-bit grey, and what `predict` writes: NAME_depth.npy or
NAME_normals.npy. Channels may come first or last, after any axes of length 1. A map of another size is resized to the
truth's size, and a message says so. A missing or broken map is an error, unless --allow_missing is given.
--beside adds more such folders as rows of the table. --blind adds two image-blind baselines: a constant map (normals:
every surface faces the camera) and the mean map of the split "train".
--resize official resizes images as the authors' code does, which produced the papers' scores.
Several processes each predict a share of the images; see `marigold_jax/runtime/distributed.py`.
Exit status: 0 success, 1 something failed, 2 wrong usage, 130 interrupted.
"""

import argparse
import os
import sys
from pathlib import Path

from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.data.raw_frame import BadFrame
from marigold_jax.evaluation.benchmarks import BENCHMARKS, DEFAULT_SEED
from marigold_jax.evaluation.depth_alignment import ALIGNMENTS
from marigold_jax.evaluation.estimators import image_blind_baselines, in_our_axes, saved, with_reasons
from marigold_jax.evaluation.model_predictions import predict_split
from marigold_jax.evaluation.model_settings import ModelSettings, add_model_flags, check_sizes
from marigold_jax.evaluation.normal_metrics import CONVENTIONS
from marigold_jax.evaluation.published import comparison
from marigold_jax.evaluation.report import draw_worst, score_table, summarise, write_scores
from marigold_jax.evaluation.scoring import Task, predicted_quantity
from marigold_jax.evaluation.splits import evenly_spread, open_split
from marigold_jax.inference.predict_files import OUT_OF_MEMORY
from marigold_jax.inference.stream import out_of_memory
from marigold_jax.runtime import distributed, terminal
from marigold_jax.runtime.files import below, printable
from marigold_jax.weights.model_index import OPTIONS


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = terminal.Parser(
        "python -m marigold_jax.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, number, folder = parser.add_argument, {"type": int, "metavar": "N"}, {"type": Path, "metavar": "DIR"}
    add("--checkpoint", help="diffusers folder, Hugging Face id or training workdir (default: marigold-rooms)")
    add("--predictions", **folder, help="score these saved maps instead of running a model")
    add("--dataset", required=True, metavar="NAME[,NAME]", help=f"made by `prepare`, or {', '.join(BENCHMARKS)}")
    add("--data_dir", required=True, **folder, help="folder of the datasets")
    add("--lists", **folder, help="folder of the official filename lists (default: DATA_DIR/data_split)")
    add("--split", default="test", help="split of prepared datasets (default: %(default)s)")
    add("-o", "--output_dir", required=True, **folder, help="where scores are written; created if missing")
    add("--alignment", choices=ALIGNMENTS, help="how depth is aligned to the truth (default: least_square)")
    convention = "direction of x in the normals to score, not in those of --beside; y is up, z towards the viewer"
    add("--normals_convention", choices=CONVENTIONS, help=f"{convention} (default: x_right; E2E-FT uses x_left)")
    add_model_flags(add)
    add("--limit", **number, help="score at most N images, evenly spread over the split")
    add("--beside", nargs="+", default=[], **folder, help="score these saved maps too, as more rows of the table")
    add("--blind", action="store_true", help="add two image-blind baselines: a constant map and the mean training map")
    add("--allow_missing", action="store_true", help="leave out images whose prediction is missing or broken")
    arguments = parser.parse_args(argv)
    try:
        check(arguments)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def check(arguments: argparse.Namespace) -> None:
    """Adds `names`, the datasets. Raises ValueError for flags that cannot work, before a model has run for hours."""
    for flag, smallest in {"denoise_steps": 1, "ensemble_size": 1, "limit": 1, "batch_size": 0, "bucket": 8}.items():
        if (value := getattr(arguments, flag)) is not None and value < smallest:
            raise ValueError(f"--{flag} must be at least {smallest}; got {value}")
    if arguments.predictions and arguments.checkpoint:
        raise ValueError("give --checkpoint or --predictions, not both")
    folders = {"predictions": [arguments.predictions], "beside": arguments.beside, "data_dir": [arguments.data_dir]}
    for flag, folder in ((flag, folder) for flag, some in folders.items() for folder in some):
        if folder and not os.path.isdir(folder):
            raise ValueError(f"--{flag} {printable(folder)} is not a folder")
    for folder in (arguments.output_dir, *arguments.output_dir.parents):
        if os.path.lexists(folder) and not os.path.isdir(folder):
            raise ValueError(f"--output_dir {printable(arguments.output_dir)}: {printable(folder)} is not a folder")
    arguments.names = list(dict.fromkeys(name.strip() for name in arguments.dataset.split(",") if name.strip()))
    check_sizes(arguments.resize, arguments.processing_res, arguments.bucket)
    if not arguments.names:
        raise ValueError(f"--dataset: wanted at least one name; got {arguments.dataset!r}")
    for name in arguments.names:
        below(arguments.output_dir, name)


def evaluate(arguments: argparse.Namespace, name: str, index: int = 0, count: int = 1) -> str:
    """Scores one dataset. Returns its table, with remarks below.

    Each of `count` processes predicts a share of the images. All but the first return "": the first one scores.
    """
    arguments = with_protocol(arguments, name)
    split = open_split(name, arguments.data_dir, arguments.lists, arguments.split)
    train = PreparedSplit(str(arguments.data_dir / name / "train")) if arguments.blind else None
    indices, folder = evenly_spread(split, arguments.limit), below(arguments.output_dir, name)
    model = None if arguments.predictions else ModelSettings.from_flags(vars(arguments), OPTIONS)
    failures = {}
    if model:
        share = indices[index::count]
        failures = predict_split(model, folder / "predictions", split, share, arguments.allow_missing)
        if count > 1:
            distributed.wait_for_all(f"{name} predicted")
    if index:
        return ""
    metric = arguments.alignment == "none"
    estimator = with_reasons(saved(arguments.predictions or folder / "predictions", split, metric), failures)
    quantity = predicted_quantity(estimator, split, indices)
    arguments.alignment = alignment = arguments.alignment or quantity.alignments[0]
    quantity.check(name, alignment, arguments.normals_convention)
    if arguments.normals_convention:
        estimator = in_our_axes(estimator, quantity.conventions[arguments.normals_convention])

    # The estimator in question comes first, so that an error in the others does not cost its scores.
    task = Task(split, indices, quantity, alignment, arguments.allow_missing)
    title = str(arguments.predictions or arguments.checkpoint or "the default checkpoint")
    summary = summarise(title, estimator, task)
    settings = {key: value for key, value in vars(arguments).items() if key not in ("output_dir", "names")}
    write_scores(folder, task, summary, settings)
    if problem := draw_worst(folder / "worst.png", estimator, task, summary.result.scores):
        terminal.say(f"evaluate: {folder / 'worst.png'}: not drawn: {problem}", sys.stderr)
    others = image_blind_baselines(train, split, quantity) if train else {}
    others |= {str(beside): saved(beside, split, metric) for beside in arguments.beside}
    lines = score_table(name, task, summary, [summarise(title, other, task) for title, other in others.items()])
    if name in BENCHMARKS:
        lines.append(comparison(name, len(summary.result.scores), summary.as_published, quantity, alignment, model))
    return "\n".join(lines)


def with_protocol(arguments: argparse.Namespace, name: str) -> argparse.Namespace:
    """The flags, completed by the dataset's protocol where the user gave none."""
    benchmark = BENCHMARKS.get(name)
    protocol = {"processing_res": benchmark.processing_resolution, "seed": benchmark.seed} if benchmark else {}
    given = {key: value for key, value in vars(arguments).items() if value is not None}
    return argparse.Namespace(**vars(arguments) | {"seed": DEFAULT_SEED} | protocol | given)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    status, tables = 0, []
    try:
        index, count = distributed.start()
        for name in arguments.names:
            try:
                tables.append(evaluate(arguments, name, index, count))
            except (ValueError, OSError, ImportError, BadFrame, RuntimeError) as error:
                status = report_error(error)
                if count > 1:
                    break  # the other processes wait for this one
    except (ValueError, OSError, ImportError) as error:
        return report_error(error)
    except KeyboardInterrupt:
        terminal.say("evaluate: interrupted; run the same command again to continue", sys.stderr)
        return 130
    if index == 0 and tables:
        for line in "\n\n".join(tables).splitlines():
            terminal.say(line)
    return status


def report_error(error: Exception) -> int:
    """Prints one line about an error in the input, and returns the exit status. Raises any other error again."""
    message = " ".join(str(error).split())
    if isinstance(error, BadFrame):
        message = f"{error.kind}: {error.detail}"
    if isinstance(error, RuntimeError):
        if not out_of_memory(error):
            raise error
        message = OUT_OF_MEMORY
    terminal.say(f"evaluate: {message}", sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(terminal.run(main))
