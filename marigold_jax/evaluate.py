"""Scores a depth estimator on prepared datasets, or predictions that anybody saved.

    python -m marigold_jax.evaluate --checkpoint DIR --dataset rooms --data_dir data --output_dir scores --blind
    python -m marigold_jax.evaluate --predictions maps/ --dataset rooms,my_scans --data_dir data --output_dir scores
    python -m marigold_jax.evaluate --checkpoint NAME --dataset nyu_v2,kitti,eth3d,scannet,diode --data_dir official ...

A dataset is one that `prepare` made, or a test set of the papers as Marigold's authors packed it; those have protocols
of their own: see `marigold_jax/data/benchmarks.py`. What the papers report is printed below the scores.

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
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from marigold_jax.data.benchmarks import BENCHMARKS, Benchmark, OfficialSplit, published
from marigold_jax.data.frames import BadFrame
from marigold_jax.data.predictions import save
from marigold_jax.data.resample import resize
from marigold_jax.data.sources import PreparedSplit
from marigold_jax.data.transforms import transform
from marigold_jax.description import OPTIONS, add_flags, given
from marigold_jax.metrics import ALIGNMENTS, METRICS
from marigold_jax.scoring import Look, Map, Split, means, report, score, table

SETTINGS = ("checkpoint", "split", "denoise_steps", "ensemble_size", "processing_res", "seed", "dtype", *OPTIONS)
TOGETHER = 16  # images that a model is given at once
MEAN_OF = 500  # training images in the mean map
SEED = 1234  # the papers'


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m marigold_jax.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    number = {"type": int, "metavar": "N"}
    add("--checkpoint", help="diffusers folder, Hugging Face id or training workdir (default: the one that ships)")
    add("--predictions", type=Path, metavar="DIR", help="score these maps instead of running a model")
    add("--dataset", required=True, metavar="NAME[,NAME]", help=f"what `prepare` made, or {', '.join(BENCHMARKS)}")
    add("--data_dir", type=Path, required=True, metavar="DIR", help="where datasets are kept")
    add("--lists", type=Path, metavar="DIR", help="official filename lists (default: DATA_DIR/data_split)")
    add("--split", default="test", help="of each prepared dataset (default: %(default)s)")
    add("--output_dir", type=Path, required=True, metavar="DIR", help="where scores go; made if missing")
    add("--alignment", choices=ALIGNMENTS, default="least_square", help="(default: %(default)s)")
    add("--denoise_steps", **number, help="denoising steps (default: the checkpoint's own)")
    add("--ensemble_size", **number, default=1, help="predictions merged for each image (default: 1)")
    add(
        "--processing_res", **number, help="longer side for the network (default: the papers', or the checkpoint's own)"
    )
    add("--seed", **number, help="of the noise (default: the papers', 1234)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the network (default: %(default)s)")
    add_flags(add)
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


def saved(folder: Path, split: Split) -> Look:
    """Predictions from NAME.npy, or the name that the official inference gives, (h, w) or (h, w, 1)."""

    def look(index: int) -> Map | None:
        name = split.name_of(index)
        names = [str(Path(name).with_suffix("")), *([split.protocol.official_name(name)] if split.protocol else [])]
        found = [path for path in (folder / f"{one}.npy" for one in names) if path.exists()]
        if not found:
            return None
        try:
            values = np.load(found[0])
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{found[0]}: not a whole .npy file ({error})") from None
        return values.reshape(*values.shape[:2], 1).astype(np.float32)

    return look


def computed(arguments: argparse.Namespace, folder: Path, split: Split, indices: list[int]) -> Look:
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
            pipe = Marigold.from_pretrained(arguments.checkpoint, dtype=arguments.dtype, **given(arguments))
            pipe.sampler(arguments.denoise_steps)
        except (OSError, ValueError, ImportError) as error:
            raise ValueError(error) from None
        if pipe.modality.name != "depth":
            raise ValueError(f"{arguments.checkpoint}: this estimates {pipe.modality.name}, and only depth is scored")
        with tqdm(total=len(todo), desc="predicting", unit="image", disable=None) as bar:
            for start in range(0, len(todo), TOGETHER):
                some = todo[start : start + TOGETHER]
                images = {index: rgb for index in some if (rgb := photograph(split, index)) is not None}
                predictions = pipe(
                    list(images.values()),
                    num_inference_steps=arguments.denoise_steps,
                    ensemble_size=arguments.ensemble_size,
                    processing_resolution=arguments.processing_res,
                    seed=arguments.seed,
                ).prediction
                for index, depth in zip(images, predictions, strict=True):
                    save(paths[index], npy(depth[..., 0]))
                bar.update(len(some))
    return saved(folder, split)


def photograph(split: Split, index: int) -> np.ndarray | None:
    """None where it cannot be read, which will be said when it is to be scored."""
    try:
        return split[index]["rgb"]
    except BadFrame:
        return None


def claim(file: Path, settings: dict[str, Any]) -> None:
    """Notes how the predictions beside it are made; raises Stop if those that are there were made otherwise."""
    found = json.loads(file.read_text()) if file.exists() else settings
    changed = [f"{key} was {found.get(key)}, is {value}" for key, value in settings.items() if found.get(key) != value]
    if changed:
        raise ValueError(
            f"{file.parent} holds predictions made otherwise ({'; '.join(changed)}): name another --output_dir"
        )
    save(file, json.dumps(settings, indent=2).encode() + b"\n")


def blind(train: PreparedSplit, split: Split) -> dict[str, Look]:
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


# --------------------------------------------------------------------------------------------------------- one dataset


def evaluate(arguments: argparse.Namespace, name: str) -> str:
    """Scores one dataset; returns its table, and remarks below it."""
    protocol = BENCHMARKS.get(name)
    if protocol:
        split = OfficialSplit(name, arguments.data_dir, arguments.lists or arguments.data_dir / "data_split")
        arguments = with_defaults(arguments, protocol.processing_resolution, protocol.seed)
    else:
        split = PreparedSplit(str(arguments.data_dir / name / arguments.split))
        arguments = with_defaults(arguments, processing_res=None, seed=SEED)  # None: the checkpoint's own
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
    text = table(["dataset", "estimator", "images", *METRICS], rows)
    return f"{text}\n{comparison(name, protocol, arguments, len(scores), mean)}" if protocol else text


def with_defaults(arguments: argparse.Namespace, processing_res: int | None, seed: int) -> argparse.Namespace:
    """The flags with what the dataset says where the user did not."""
    chosen = {"processing_res": processing_res, "seed": seed}
    given = {key: value for key, value in vars(arguments).items() if value is not None}
    return argparse.Namespace(**vars(arguments) | chosen | given)


def comparison(
    name: str, protocol: Benchmark, arguments: argparse.Namespace, images: int, mean: dict[str, float]
) -> str:
    """What the papers report beside what came out here, or why the two must not be compared."""
    differences = {
        f"{images} images, the papers' split has {protocol.count}": images != protocol.count,
        f"--alignment {arguments.alignment}": arguments.alignment != "least_square",
        f"--processing_res {arguments.processing_res}": (
            not arguments.predictions and arguments.processing_res != protocol.processing_resolution
        ),
    }
    if any(differences.values()):
        return f"not the papers' protocol: {', '.join(what for what, differs in differences.items() if differs)}"
    ours = mean["abs_rel"], mean["delta1"]
    rows = [
        [name, method, *theirs, *(f"{here - there:+.4f}" for here, there in zip(ours, theirs, strict=True))]
        for method, theirs in published(name).items()
    ]
    return table(["dataset", "published", "abs_rel", "delta1", "here, abs_rel", "here, delta1"], rows)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        tables = [evaluate(arguments, name) for name in arguments.dataset.split(",")]
    except (ValueError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("evaluate: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    print("\n\n".join(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
