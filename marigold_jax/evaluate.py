"""Scores a depth or normals estimator on datasets, or predictions that anybody saved.

    python -m marigold_jax.evaluate --checkpoint DIR --dataset rooms --data_dir data --output_dir scores --blind
    python -m marigold_jax.evaluate --predictions maps/ --dataset rooms,my_scans --data_dir data --output_dir scores
    python -m marigold_jax.evaluate --checkpoint NAME --dataset nyu_v2,kitti,eth3d,scannet,diode --data_dir official ...
    python -m marigold_jax.evaluate --checkpoint NAME --dataset nyu_v2_normals,scannet_normals,ibims_normals ...

A dataset is one that `prepare` made, or a test set of the papers as Marigold's authors packed it; those have protocols
of their own: see `marigold_jax/data/benchmarks.py`. What the papers report is printed below the scores.

Depth is aligned to the truth (--alignment), clipped to the depths that count in the dataset, and compared over the
valid pixels, in float64; scores are means over images. Normals are compared by the angle to the true ones, in degrees,
as means over images and over all pixels together, and on prepared datasets wherever predictions have three channels.
For every DATASET, OUTPUT_DIR gets
    DATASET/metrics.json      the means, and the settings they were made with
    DATASET/per_sample.csv    the scores of each image
    DATASET/worst.png         the ten worst by AbsRel or mean angle: image, truth, prediction, error
    DATASET/predictions/      of a model: NAME.npy, float32 (height, width) or (height, width, 3); an interrupted run
                              goes on from here
--predictions wants NAME.npy for each image NAME of the dataset, in folders as there; a missing or broken one is an
error, unless --allow_missing. --beside takes more such folders, for more rows of the table. --blind adds two estimators
that never look: a constant (normals: everything faces the camera), and the mean map of the split "train".
Several processes predict a share each; `marigold_jax/distributed.py` says how they find each other.
Exit status: 0 all is well, 1 something failed, 2 wrong usage, 130 interrupted.
"""

import argparse
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from marigold_jax import distributed, seeds
from marigold_jax.angles import CONVENTIONS
from marigold_jax.data.benchmarks import BENCHMARKS, NOTES, Benchmark, OfficialSplit, published
from marigold_jax.data.frames import BadFrame
from marigold_jax.data.resample import resize
from marigold_jax.data.sources import PreparedSplit
from marigold_jax.data.transforms import transform
from marigold_jax.description import OPTIONS, add_flags, given
from marigold_jax.metrics import ALIGNMENTS, REMARKS
from marigold_jax.runtime.files import read_json, write, write_json
from marigold_jax.scoring import (
    QUANTITIES,
    Look,
    Map,
    Quantity,
    Scores,
    Split,
    means,
    pooled,
    quantity_of,
    report,
    score,
    spread,
    table,
)

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
    add("--alignment", choices=ALIGNMENTS, help="of depth (default: least_square)")
    add(
        "--normals_convention",
        choices=CONVENTIONS,
        help="where x points in the normals that are scored, not in those --beside; y is up, z to the viewer "
        "(default: x_right; E2E-FT's are x_left)",
    )
    add("--denoise_steps", **number, help="denoising steps (default: the checkpoint's own)")
    add("--ensemble_size", **number, default=1, help="predictions merged for each image (default: 1)")
    add(
        "--processing_res", **number, help="longer side for the network (default: the papers', or the checkpoint's own)"
    )
    add("--seed", type=seeds.flag, metavar="N", help="of the noise (default: the papers', 1234)")
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
    """Predictions from NAME.npy, or the name that the official inference gives: (h, w), (h, w, c) or (3, h, w)."""

    def look(index: int) -> Map | None:
        name = split.name_of(index)
        names = [str(Path(name).with_suffix("")), *([split.protocol.official_name(name)] if split.protocol else [])]
        found = [path for path in (folder / f"{one}.npy" for one in names) if path.exists()]
        if not found:
            return None
        try:
            return channels_last(np.load(found[0]).astype(np.float32))
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{found[0]}: not a whole .npy file of a prediction ({error})") from None

    return look


def channels_last(values: np.ndarray) -> Map:
    """Official normals have their channels first. Raises ValueError for an array that is no map."""
    if values.ndim == 3 and len(values) == 3 and values.shape[2] != 3:
        return values.transpose(1, 2, 0)
    if values.ndim not in (2, 3):
        raise ValueError(f"wanted shape (height, width) or (height, width, channels), found {values.shape}")
    return values.reshape(*values.shape[:2], -1)


def in_our_axes(look: Look, factors: tuple[int, ...]) -> Look:
    """Normals of another convention, with the axes turned round that differ."""

    def turned(index: int) -> Map | None:
        normals = look(index)
        return normals * np.float32(factors) if normals is not None and normals.shape[2] == len(factors) else normals

    return turned


def compute(arguments: argparse.Namespace, folder: Path, split: Split, indices: list[int]) -> None:
    """Makes the predictions of a model, where they are not in the folder yet."""
    settings = {key: getattr(arguments, key) for key in SETTINGS}
    note = folder / "settings.json"
    agree(note, settings)
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
        if pipe.modality.name not in split.features:
            held = " and ".join(name for name in QUANTITIES if name in split.features)
            raise ValueError(f"{called(arguments)} estimates {pipe.modality.name}; {split.path} holds {held}")
        write_json(note, settings)
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
                for index, prediction in zip(images, predictions, strict=True):
                    write(paths[index], npy(prediction.squeeze(2) if prediction.shape[2] == 1 else prediction))
                bar.update(len(some))


def photograph(split: Split, index: int) -> np.ndarray | None:
    """None where it cannot be read, which will be said when it is to be scored."""
    try:
        return split[index]["rgb"]
    except BadFrame:
        return None


def agree(file: Path, settings: dict[str, Any]) -> None:
    """Raises ValueError if the predictions beside the file, which notes how they are made, were made otherwise."""
    found = read_json(file) if file.exists() else settings
    changed = [f"{key} was {found.get(key)}, is {value}" for key, value in settings.items() if found.get(key) != value]
    if changed:
        raise ValueError(
            f"{file.parent} holds predictions made otherwise ({'; '.join(changed)}): name another --output_dir"
        )


def blind(train: PreparedSplit, split: Split, quantity: Quantity) -> dict[str, Look]:
    """Estimators that know no image: a constant, and the mean of the training split's maps, stretched to fit.

    Depth is normalised before it is averaged. Raises ValueError where the training split does not hold the quantity.
    """
    if quantity.name not in train.features:
        raise ValueError(f"--blind: {train.path} holds no {quantity.name}")
    picks = spread(train, MEAN_OF)
    options = {"size": train[0]["mask"].shape[:2], "flip": False, "antialias": True, "far_fill": True}
    mean = sum(transform(train[index], **options)[quantity.sample] for index in picks) / np.float32(len(picks))
    constant = np.float32(quantity.constant)
    return {
        "constant": lambda index: np.broadcast_to(constant, split[index][quantity.name].shape),
        "mean map": lambda index: resize(mean, split[index]["mask"].shape[:2], "bilinear", antialias=False),
    }


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


# --------------------------------------------------------------------------------------------------------- one dataset


def evaluate(arguments: argparse.Namespace, name: str, index: int = 0, count: int = 1) -> str:
    """Scores one dataset; returns its table, and remarks below it.

    Processes predict a share each; all but the first, which scores, return nothing.
    """
    protocol = BENCHMARKS.get(name)
    if protocol:
        split = OfficialSplit(name, arguments.data_dir, arguments.lists or arguments.data_dir / "data_split")
        arguments = with_defaults(arguments, processing_res=protocol.processing_resolution, seed=protocol.seed)
    else:
        split = PreparedSplit(str(arguments.data_dir / name / arguments.split))
        arguments = with_defaults(arguments, seed=SEED)  # at the checkpoint's own resolution
    indices = spread(split, arguments.limit)
    folder = arguments.output_dir / name
    train = PreparedSplit(str(arguments.data_dir / name / "train")) if arguments.blind else None
    if not arguments.predictions:
        compute(arguments, folder / "predictions", split, indices[index::count])
        if count > 1:
            distributed.wait_for_all(f"{name} predicted")
    if index:
        return ""
    look = saved(arguments.predictions or folder / "predictions", split)
    quantity = quantity_of(look, split, indices)
    arguments = with_defaults(arguments, alignment=quantity.alignments[0])
    if arguments.alignment not in quantity.alignments:
        raise ValueError(f"--alignment {arguments.alignment}: {name} is scored on {quantity.name}, which has no such")
    if arguments.normals_convention:
        if quantity.name != "normals":
            raise ValueError(f"--normals_convention: {name} is scored on {quantity.name}")
        look = in_our_axes(look, CONVENTIONS[arguments.normals_convention])
    estimators = blind(train, split, quantity) if train else {}
    estimators |= {str(other): saved(other, split) for other in arguments.beside}
    rows = []
    for title, estimator in {**estimators, called(arguments): look}.items():
        scores = score(estimator, split, indices, arguments.alignment, arguments.allow_missing, quantity)
        mean = means(scores)
        together = pooled(estimator, split, list(scores), arguments.alignment, quantity)
        rows.append([name, title, len(scores), *mean.values()])
        if together:
            rows.append([name, f"{title}, all pixels together", len(scores), *together.values()])
    remark = REMARKS.get(arguments.alignment)
    settings = {key: value for key, value in vars(arguments).items() if key != "output_dir"}
    summary = {"images": len(scores), **mean} | ({"all_pixels": together} if together else {})
    summary |= {"settings": settings} | ({"remark": remark} if remark else {})
    report(folder, split, look, scores, summary, arguments.alignment, quantity)
    lines = [table(["dataset", "estimator", "images", *quantity.metrics], rows)]
    lines += [f"{arguments.alignment}: {remark}"] if remark else []
    lines += [comparison(name, protocol, arguments, len(scores), together or mean, quantity)] if protocol else []
    return "\n".join(lines)


def called(arguments: argparse.Namespace) -> str:
    """The estimator that is scored, in tables and messages."""
    return str(arguments.predictions or arguments.checkpoint or "the model that ships")


def with_defaults(arguments: argparse.Namespace, **chosen: Any) -> argparse.Namespace:
    """The flags with what the dataset says where the user did not."""
    given = {key: value for key, value in vars(arguments).items() if value is not None}
    return argparse.Namespace(**vars(arguments) | chosen | given)


def comparison(
    name: str, protocol: Benchmark, arguments: argparse.Namespace, images: int, scores: Scores, quantity: Quantity
) -> str:
    """What the papers report beside what came out here, or why the two must not be compared."""
    resolutions = protocol.processing_resolution, protocol.published_resolution
    differences = {
        f"{images} images, the papers' split has {protocol.count}": images != protocol.count,
        f"--alignment {arguments.alignment}": arguments.alignment != quantity.alignments[0],
        f"--processing_res {arguments.processing_res}": (
            not arguments.predictions and arguments.processing_res not in resolutions
        ),
    }
    if any(differences.values()):
        return f"not the papers' protocol: {', '.join(what for what, differs in differences.items() if differs)}"
    rows = [
        [
            name,
            method,
            *theirs,
            *(f"{scores[key] - value:+.4f}" for key, value in zip(quantity.headline, theirs, strict=True)),
        ]
        for method, theirs in published(name).items()
    ]
    if not rows:
        return f"{name}: no published scores are known here"
    text = table(["dataset", "published", *quantity.headline, *(f"here, {key}" for key in quantity.headline)], rows)
    return "\n".join([text, *NOTES.get(quantity.name, [])])


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        index, count = distributed.start()
        tables = [evaluate(arguments, name, index, count) for name in arguments.dataset.split(",")]
    except (ValueError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("evaluate: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    if index == 0:
        print("\n\n".join(tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
