"""Scores a depth estimator on prepared datasets, or predictions that anybody saved.

    python -m marigold_jax.evaluate --checkpoint DIR --dataset rooms --data_dir data --output_dir scores --blind
    python -m marigold_jax.evaluate --predictions maps/ --dataset rooms,my_scans --data_dir data --output_dir scores

Each prediction is aligned to the truth (--alignment), clipped to the depths that count in the dataset, and compared
over the valid pixels, in float64; scores are means over images. For every DATASET, OUTPUT_DIR gets
    DATASET/metrics.json      the means, and the settings they were made with
    DATASET/per_sample.csv    the scores of each image
    DATASET/worst.png         the ten worst by AbsRel: image, truth, prediction, relative error
    DATASET/predictions/      of a model: NAME.npy, float32 (height, width); an interrupted run goes on from here
--predictions wants NAME.npy for each image NAME of the dataset, in folders as there; a missing or broken one is an
error, unless --allow_missing. --beside takes more such folders, for more rows of the table. --blind adds two estimators
that never look: a constant, and the mean map of the split "train".
Exit status: 0 all is well, 1 something failed, 2 wrong usage, 130 interrupted.
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from marigold_jax.data import panels
from marigold_jax.data.predictions import save
from marigold_jax.data.resample import resize
from marigold_jax.data.sources import PreparedSplit
from marigold_jax.data.transforms import transform
from marigold_jax.metrics import ALIGNMENTS, METRICS, SMALLEST_DEPTH, depth_scores

Map = Float[np.ndarray, "h w 1"]
Look = Callable[[int], Map | None]  # the prediction for image number i of a split; None where it is missing
SETTINGS = ("checkpoint", "split", "denoise_steps", "ensemble_size", "processing_res", "seed", "dtype")
TOGETHER = 16  # images that a model is given at once
MEAN_OF = 500  # training images in the mean map
WORST = 10


class Stop(Exception):
    """Ends the program with one line for the user."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m marigold_jax.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    number = {"type": int, "metavar": "N"}
    add("--checkpoint", help="diffusers folder, Hugging Face id or training workdir (default: the one that ships)")
    add("--predictions", type=Path, metavar="DIR", help="score these maps instead of running a model")
    add("--dataset", required=True, metavar="NAME[,NAME]", help="what `prepare` made")
    add("--data_dir", type=Path, required=True, metavar="DIR", help="where prepared datasets are kept")
    add("--split", default="test", help="of each dataset (default: %(default)s)")
    add("--output_dir", type=Path, required=True, metavar="DIR", help="where scores go; made if missing")
    add("--alignment", choices=ALIGNMENTS, default="least_square", help="(default: %(default)s)")
    add("--denoise_steps", **number, help="denoising steps (default: the checkpoint's own)")
    add("--ensemble_size", **number, default=1, help="predictions merged for each image (default: 1)")
    add("--processing_res", **number, default=0, help="longer side for the network (default: 0, the image's own)")
    add("--seed", **number, default=1234, help="of the noise (default: %(default)s, the papers')")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the network (default: %(default)s)")
    add("--limit", **number, help="score only so many images, evenly spread")
    add(
        "--beside",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="score these maps too, each a row of the table",
    )
    add("--blind", action="store_true", help="score two estimators that never look at the image as well")
    add("--allow_missing", action="store_true", help="leave out images without a usable prediction")
    arguments = parser.parse_args(argv)
    for flag in ("denoise_steps", "ensemble_size", "limit"):
        if (value := getattr(arguments, flag)) is not None and value < 1:
            parser.error(f"--{flag} must be at least 1; got {value}")
    if arguments.predictions and arguments.checkpoint:
        parser.error("give --checkpoint or --predictions, not both")
    for flag, folders in (("predictions", [arguments.predictions]), ("beside", arguments.beside)):
        for folder in folders:
            if folder and not folder.is_dir():
                parser.error(f"--{flag} {folder} is not a folder")
    return arguments


# -------------------------------------------------------------------------------------- estimators: index to prediction


def saved(folder: Path, split: PreparedSplit) -> Look:
    """Predictions from NAME.npy, (h, w) or (h, w, 1)."""

    def look(index: int) -> Map | None:
        path = folder / Path(split.name_of(index)).with_suffix(".npy")
        try:
            values = np.load(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError) as error:
            raise Stop(f"{path}: not a whole .npy file ({error})") from None
        return values.reshape(*values.shape[:2], 1).astype(np.float32)

    return look


def computed(arguments: argparse.Namespace, folder: Path, split: PreparedSplit, indices: list[int]) -> Look:
    """Predictions of a model, which are made first, where they are not in the folder yet."""
    settings = {key: getattr(arguments, key) for key in SETTINGS}
    claim(folder / "settings.json", settings)
    paths = {index: folder / Path(split.name_of(index)).with_suffix(".npy") for index in indices}
    todo = [index for index, path in paths.items() if not path.exists()]
    if todo:
        # JAX starts here, so that --help and a mistyped flag need not wait for it.
        from marigold_jax import Marigold, compilation

        compilation.enable_cache()
        try:
            pipe = Marigold.from_pretrained(arguments.checkpoint, dtype=arguments.dtype)
            pipe.sampler(arguments.denoise_steps)
        except (OSError, ValueError, ImportError) as error:
            raise Stop(error) from None
        if pipe.modality.name != "depth":
            raise Stop(f"{arguments.checkpoint}: this estimates {pipe.modality.name}, and only depth is scored")
        with tqdm(total=len(todo), desc="predicting", unit="image", disable=None) as bar:
            for start in range(0, len(todo), TOGETHER):
                some = todo[start : start + TOGETHER]
                predictions = pipe(
                    [split[index]["rgb"] for index in some],
                    num_inference_steps=arguments.denoise_steps,
                    ensemble_size=arguments.ensemble_size,
                    processing_resolution=arguments.processing_res,
                    seed=arguments.seed,
                ).prediction
                for index, depth in zip(some, predictions, strict=True):
                    save(paths[index], npy(depth[..., 0]))
                bar.update(len(some))
    return saved(folder, split)


def claim(file: Path, settings: dict[str, Any]) -> None:
    """Notes how the predictions beside it are made; raises Stop if those that are there were made otherwise."""
    if file.exists() and (found := json.loads(file.read_text())) != settings:
        changed = [f"{key} was {found.get(key)}, is {value}" for key, value in settings.items() if found[key] != value]
        raise Stop(f"{file.parent} holds predictions made otherwise ({'; '.join(changed)}): name another --output_dir")
    save(file, json.dumps(settings, indent=2).encode() + b"\n")


def blind(train: PreparedSplit, split: PreparedSplit) -> dict[str, Look]:
    """Estimators that know no image: a constant, and the mean of normalised training depth, stretched to fit."""
    picks = np.unique(np.linspace(0, len(train) - 1, MEAN_OF).astype(int))
    options = {"size": train[0]["mask"].shape[:2], "flip": False, "antialias": True, "far_fill": True}
    mean = np.mean([transform(train[int(index)], **options)["target"] for index in picks], axis=0)
    return {
        "constant": lambda index: np.ones_like(split[index]["depth"]),
        "mean map": lambda index: resize(mean, split[index]["mask"].shape[:2], "bilinear", antialias=False),
    }


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


# --------------------------------------------------------------------------------------------------------------- scores


def score(look: Look, split: PreparedSplit, indices: list[int], alignment: str, allow_missing: bool) -> dict[int, dict]:
    """The scores of each image, by its number. Raises Stop, naming the images, where predictions are missing."""
    scores, missing = {}, []
    for index in tqdm(indices, desc="scoring", unit="image", disable=None, leave=False):
        example = split[index]
        prediction = look(index)
        if prediction is None:
            missing.append(split.name_of(index))
        elif prediction.shape != example["depth"].shape or not np.isfinite(prediction[example["mask"]]).all():
            raise Stop(
                f"{split.name_of(index)}: wanted finite numbers of shape {example['depth'].shape[:2]}; the prediction "
                f"has shape {prediction.shape[:2]}"
            )
        elif example["mask"].any():
            scores[index] = depth_scores(aligned(prediction, example, split, alignment), *truth(example), list(METRICS))
    if missing and not allow_missing:
        raise Stop(f"{len(missing)} predictions are missing, such as {missing[0]}; --allow_missing leaves them out")
    if not scores:
        raise Stop(f"{split.path}: there is nothing to score")
    return scores


def aligned(prediction: Map, example: dict[str, np.ndarray], split: PreparedSplit, alignment: str) -> Map:
    metres = ALIGNMENTS[alignment](prediction, *truth(example))
    return np.maximum(np.clip(metres, split.source.min_depth, split.source.max_depth), SMALLEST_DEPTH)


def truth(example: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return example["depth"], example["mask"]


def means(scores: dict[int, dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in scores.values()])) for name in METRICS}


def report(folder: Path, split: PreparedSplit, look: Look, scores: dict[int, dict], settings: dict[str, Any]) -> None:
    """metrics.json, per_sample.csv and worst.png."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["name", *METRICS])
    writer.writerows([split.name_of(index), *(repr(value) for value in one.values())] for index, one in scores.items())
    save(folder / "per_sample.csv", lines.getvalue().encode())
    worst = sorted(scores, key=lambda index: -scores[index]["abs_rel"])[:WORST]
    examples = [split[index] for index in worst]
    maps = [
        aligned(look(index), example, split, settings["alignment"])
        for index, example in zip(worst, examples, strict=True)
    ]
    rgb, depth, mask = ([example[key] for example in examples] for key in ("rgb", "depth", "mask"))
    save(folder / "worst.png", panels.png(panels.depth_panel(rgb, depth, maps, mask)))
    summary = {"images": len(scores), **means(scores), "settings": settings}
    save(folder / "metrics.json", json.dumps(summary, indent=2, default=str).encode() + b"\n")


def evaluate(arguments: argparse.Namespace, name: str) -> list[list[Any]]:
    """Scores one dataset; returns the rows of the table."""
    split = PreparedSplit(str(arguments.data_dir / name / arguments.split))
    count = min(arguments.limit or len(split), len(split))
    indices = [int(index) for index in np.unique(np.linspace(0, len(split) - 1, count).astype(int))]
    folder = arguments.output_dir / name
    estimators = blind(PreparedSplit(str(arguments.data_dir / name / "train")), split) if arguments.blind else {}
    estimators |= {str(other): saved(other, split) for other in arguments.beside}
    if arguments.predictions:
        main_name, look = str(arguments.predictions), saved(arguments.predictions, split)
    else:
        main_name = str(arguments.checkpoint or "the model that ships")
        look = computed(arguments, folder / "predictions", split, indices)
    rows = []
    for title, estimator in {**estimators, main_name: look}.items():
        scores = score(estimator, split, indices, arguments.alignment, arguments.allow_missing)
        if estimator is look:
            settings = {key: value for key, value in vars(arguments).items() if key != "output_dir"}
            report(folder, split, look, scores, settings)
        mean = means(scores)
        rows.append([name, title, len(scores), *(mean[key] for key in METRICS)])
    return rows


def table(rows: list[list[Any]]) -> str:
    header = ["dataset", "estimator", "images", *METRICS]
    cells = [header] + [[f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        rows = [row for name in arguments.dataset.split(",") for row in evaluate(arguments, name)]
    except (Stop, ValueError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("evaluate: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
