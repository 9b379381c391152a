"""Scores a depth or normals estimator on datasets, or predictions that anybody saved.

    python -m marigold_jax.evaluate --checkpoint DIR --dataset rooms --data_dir data --output_dir scores --blind
    python -m marigold_jax.evaluate --predictions maps/ --dataset rooms,my_scans --data_dir data --output_dir scores
    python -m marigold_jax.evaluate --checkpoint NAME --dataset nyu_v2,kitti,eth3d,scannet,diode --data_dir official ...
    python -m marigold_jax.evaluate --checkpoint NAME --dataset nyu_v2_normals,scannet_normals,ibims_normals ...

A dataset is one that `prepare` made, or a test set of the papers as Marigold's authors packed it; those have protocols
of their own: see `marigold_jax/evaluation/benchmarks.py`. What the papers report is printed below the scores.

Depth is aligned to the truth (--alignment), clipped to the depths that count in the dataset, and compared over the
valid pixels, in float64; scores are means over images. Normals are compared by the angle to the true ones, in degrees,
as means over images and over all pixels together, and on prepared datasets wherever predictions have three channels.
For every DATASET, OUTPUT_DIR gets
    DATASET/metrics.json      the means, the settings they were made with, and how many images were left out
    DATASET/per_sample.csv    the scores of each image
    DATASET/worst.png         the ten worst by AbsRel or mean angle: image, truth, prediction, error
    DATASET/predictions/      of a model: NAME.npy, float32 (height, width) or (height, width, 3); an interrupted run
                              goes on from here
--predictions wants NAME.npy for each image NAME of the dataset, in folders as there, or without them where that is
plain; a missing or broken one is an error, unless --allow_missing. NAME.npz of one array and NAME.png, 16-bit grey, are
read as well, and what `predict` wrote: NAME_depth.npy or NAME_normals.npy, in its folders or alone. Channels may be
first or last, axes of length 1 may be in front, and a map of another size is resized to the truth's, which is said.
--beside takes more such folders, for more rows of the table. --blind adds two estimators that never look: a constant
(normals: everything faces the camera), and the mean map of the split "train".
--resize official resizes as Marigold's authors do, whose numbers the papers have: see `marigold_jax/data/geometry.py`.
Several processes predict a share each; `marigold_jax/runtime/distributed.py` says how they find each other.
Exit status: 0 all is well, 1 something failed, 2 wrong usage, 130 interrupted.
"""

import argparse
import io
import os
import sys
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from marigold_jax.data.geometry import RESIZES
from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.data.raw_frame import BadFrame
from marigold_jax.data.resample import resize
from marigold_jax.data.saved_maps import read_map
from marigold_jax.data.transforms import transform
from marigold_jax.evaluation.benchmarks import BENCHMARKS, NOTES, Benchmark, OfficialSplit, published
from marigold_jax.evaluation.depth_metrics import ALIGNMENTS, REMARKS
from marigold_jax.evaluation.normal_metrics import CONVENTIONS
from marigold_jax.evaluation.scoring import (
    QUANTITIES,
    Judged,
    Look,
    Map,
    Quantity,
    Scores,
    Split,
    brief,
    draw_worst,
    example_of,
    insist,
    judge,
    left_out,
    means,
    name_of,
    pooled,
    quantity_of,
    report,
    spread,
    table,
    truth_of,
)
from marigold_jax.inference.outputs import OUTPUTS
from marigold_jax.runtime import distributed, seeds, terminal
from marigold_jax.runtime.files import below, printable, read_json, write, write_json
from marigold_jax.weights.model_index import OPTIONS, add_flags, given

SETTINGS = ("checkpoint", "split", "denoise_steps", "ensemble_size", "processing_res", "resize", "seed", "dtype")
SETTINGS += tuple(OPTIONS)
# What a setting was before there was a flag for it.
FORMER = {"resize": "diffusers"}
SUFFIXES = (".npy", ".npz", ".png")  # of saved maps, the first that is there
PNG_UNIT = 65535.0  # a grey PNG holds depth from 0 to 1, as `predict` writes it
LONGEST = 200  # bytes of a file name, that its ending fits as well
TOGETHER = 16  # images that a model is given at once
MEAN_OF = 500  # training images in the mean map
SEED = 1234  # the papers'


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = terminal.Parser(
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
    add(
        "--resize",
        choices=RESIZES,
        default="diffusers",
        help="as diffusers does, or as the authors' own code, which made the papers' numbers (default: %(default)s)",
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
    folders = {"predictions": [arguments.predictions], "beside": arguments.beside, "data_dir": [arguments.data_dir]}
    for flag, folder in ((flag, folder) for flag, some in folders.items() for folder in some):
        if folder and not os.path.isdir(folder):
            parser.error(f"--{flag} {printable(folder)} is not a folder")
    for folder in (arguments.output_dir, *arguments.output_dir.parents):  # before a model has worked for hours
        if os.path.lexists(folder) and not os.path.isdir(folder):
            parser.error(f"--output_dir {printable(arguments.output_dir)}: {printable(folder)} is not a folder")
    arguments.names = list(dict.fromkeys(name.strip() for name in arguments.dataset.split(",") if name.strip()))
    try:
        RESIZES[arguments.resize].fit((8, 8), arguments.processing_res or 0)
        if not arguments.names:
            raise ValueError(f"--dataset {arguments.dataset!r} names none")
        for name in arguments.names:
            below(arguments.output_dir, name)
    except ValueError as error:
        parser.error(str(error))
    return arguments


# -------------------------------------------------------------------------------------- estimators: index to prediction


def saved(folder: Path, split: Split, unit: bool = False) -> Look:
    """Predictions that somebody saved, or `compute`. With a `unit` that counts, PNG is refused, which has none."""

    @lru_cache(maxsize=1)
    def stems() -> Counter:
        return Counter(Path(name_of(split, index)).stem for index in range(len(split)))

    def look(index: int) -> Map | None:
        name = name_of(split, index)
        place(folder, name)
        for candidate, alone in spellings(name, split):
            if os.path.lexists(path := folder / candidate):
                if alone and stems()[Path(name).stem] > 1:
                    raise ValueError(f"{printable(path)}: several images have this name, in different folders")
                return read_map(path, png_unit=None if unit else PNG_UNIT)
        return None

    return look


def spellings(name: str, split: Split) -> Iterator[tuple[str, bool]]:
    """The files, below a folder of predictions, that may hold that of an image, the first first.

    The second value is True where the image's folder is left out of the name.
    """
    stem = str(Path(name).with_suffix(""))
    for one in (stem, *([split.protocol.official_name(name)] if split.protocol else [])):
        yield from ((f"{one}{suffix}", False) for suffix in SUFFIXES)
    yield from ((f"{Path(stem).name}{suffix}", True) for suffix in SUFFIXES)
    written = [output.name for kind in OUTPUTS if kind in split.features for output in OUTPUTS[kind]]
    for pattern in (pattern for pattern in written if pattern.endswith(".npy") or pattern.startswith("depth_bw/")):
        for spelling in (pattern, Path(pattern).name):
            yield spelling.format(stem=stem), False
            yield spelling.format(stem=Path(stem).name), True


def place(folder: Path, name: str) -> Path:
    """NAME.npy below the folder. Raises ValueError for a name that would leave it, or that no file can have."""
    path = below(folder, name)
    if max(len(os.fsencode(part)) for part in Path(name).parts) > LONGEST or len(name) > 10 * LONGEST:
        raise ValueError(f"{brief(name)}: a name of {len(name)} characters, too long for a file")
    return path.with_suffix(".npy")


def in_our_axes(look: Look, factors: tuple[int, ...]) -> Look:
    """Normals of another convention, with the axes turned round that differ."""

    def turned(index: int) -> Map | None:
        normals = look(index)
        return normals * np.float32(factors) if normals is not None and normals.shape[2] == len(factors) else normals

    return turned


def compute(arguments: argparse.Namespace, folder: Path, split: Split, indices: list[int]) -> dict[int, str]:
    """Makes the predictions of a model, where they are not in the folder yet; returns why some could not be made."""
    settings = {key: getattr(arguments, key) for key in SETTINGS}
    note = folder / "settings.json"
    agree(note, settings)
    paths, failures = places(folder, split, indices)
    if failures and not arguments.allow_missing:
        raise ValueError(f"{split.path}: {next(iter(failures.values()))}; --allow_missing leaves it out")
    todo = [index for index, path in paths.items() if not path.exists()]
    if not todo:
        return failures
    # JAX starts here, so that --help and a mistyped flag need not wait for it.
    from marigold_jax import Marigold
    from marigold_jax.runtime import compilation_cache

    compilation_cache.enable_cache()
    try:
        pipe = Marigold.from_pretrained(arguments.checkpoint, dtype=arguments.dtype, **given(arguments))
        pipe.sampler(arguments.denoise_steps)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(error) from None
    if pipe.modality.name not in split.features:
        held = " and ".join(name for name in QUANTITIES if name in split.features)
        raise ValueError(f"{called(arguments)} estimates {pipe.modality.name}; {split.path} holds {held}")
    resolution = pipe.default_processing_resolution if arguments.processing_res is None else arguments.processing_res
    write_json(note, settings)
    with tqdm(total=len(todo), desc="predicting", unit="image", disable=None) as bar:
        for start in range(0, len(todo), TOGETHER):
            some, images = todo[start : start + TOGETHER], {}
            for index in some:
                try:
                    rgb = example_of(split, index)["rgb"]
                    RESIZES[arguments.resize].fit(rgb.shape[:2], resolution)
                    images[index] = rgb
                except BadFrame as error:
                    failures[index] = printable(f"{error.kind}: {error.detail}")
                except ValueError as error:
                    failures[index] = str(error)
            predictions = ()
            if images:
                predictions = pipe(
                    list(images.values()),
                    num_inference_steps=arguments.denoise_steps,
                    ensemble_size=arguments.ensemble_size,
                    processing_resolution=resolution,
                    seed=arguments.seed,
                    resize=arguments.resize,
                ).prediction
            for index, prediction in zip(images, predictions, strict=True):
                write(paths[index], npy(prediction.squeeze(2) if prediction.shape[2] == 1 else prediction))
            bar.update(len(some))
    return failures


def places(folder: Path, split: Split, indices: list[int]) -> tuple[dict[int, Path], dict[int, str]]:
    """The file of each image's prediction, or why there can be none."""
    paths, failures, taken = {}, {}, {}
    for index in indices:
        try:
            name = name_of(split, index)
            path = place(folder, name)
            if (other := taken.setdefault(path, name)) != name or path in paths.values():
                raise ValueError(f"{brief(name)}: its prediction would overwrite that of {brief(other)}")
            paths[index] = path
        except BadFrame as error:
            failures[index] = printable(f"{error.kind}: {error.detail}")
        except ValueError as error:
            failures[index] = str(error)
    return paths, failures


def agree(file: Path, settings: dict[str, Any]) -> None:
    """Raises ValueError unless the predictions beside the file, which notes how they are made, were made so."""
    if next(file.parent.rglob("*.npy"), None) is None:
        return  # of a run that ended before its first prediction
    try:
        found = FORMER | read_json(file)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{error}: how the predictions beside it were made is unknown; name another --output_dir, or remove "
            f"{printable(file.parent)}"
        ) from None
    changed = [f"{key} was {found.get(key)}, is {value}" for key, value in settings.items() if found.get(key) != value]
    if changed:
        raise ValueError(
            f"{file.parent} holds predictions made otherwise ({'; '.join(changed)}): name another --output_dir"
        )


def explained(look: Look, failures: dict[int, str]) -> Look:
    """The same, but where no prediction could be made, it is known why."""

    def with_reason(index: int) -> Map | None:
        prediction = look(index)
        if prediction is None and index in failures:
            raise ValueError(failures[index])
        return prediction

    return with_reason


def blind(train: PreparedSplit, split: Split, quantity: Quantity) -> dict[str, Look]:
    """Estimators that know no image: a constant, and the mean of the training split's maps, stretched to fit.

    Depth is normalised before it is averaged. Raises ValueError where the training split does not hold the quantity.
    """
    if quantity.name not in train.features:
        raise ValueError(f"--blind: {train.path} holds no {quantity.name}")
    picks = spread(train, MEAN_OF)
    options = {"size": example_of(train, 0)["mask"].shape[:2], "flip": False, "antialias": True, "far_fill": True}
    mean = sum(transform(example_of(train, index), **options)[quantity.sample] for index in picks)
    mean = mean / np.float32(len(picks))
    constant = np.float32(quantity.constant)
    return {
        "constant": lambda index: np.broadcast_to(constant, truth_of(split, index)[quantity.name].shape),
        "mean map": lambda index: resize(mean, truth_of(split, index)["mask"].shape[:2], "bilinear", antialias=False),
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
    folder = below(arguments.output_dir, name)
    train = PreparedSplit(str(arguments.data_dir / name / "train")) if arguments.blind else None
    failures = {}
    if not arguments.predictions:
        failures = compute(arguments, folder / "predictions", split, indices[index::count])
        if count > 1:
            distributed.wait_for_all(f"{name} predicted")
    if index:
        return ""
    metric = arguments.alignment == "none"
    look = explained(saved(arguments.predictions or folder / "predictions", split, metric), failures)
    quantity = quantity_of(look, split, indices)
    arguments = with_defaults(arguments, alignment=quantity.alignments[0])
    if arguments.alignment not in quantity.alignments:
        raise ValueError(f"--alignment {arguments.alignment}: {name} is scored on {quantity.name}, which has no such")
    if arguments.normals_convention:
        if quantity.name != "normals":
            raise ValueError(f"--normals_convention: {name} is scored on {quantity.name}")
        look = in_our_axes(look, CONVENTIONS[arguments.normals_convention])

    def rows_of(title: str, estimator: Look) -> tuple[list[list[Any]], list[str], Judged, dict[str, Any]]:
        """The rows of an estimator in the table, what is to be said of it, and its scores."""
        judged = judge(estimator, split, indices, arguments.alignment, quantity)
        insist(judged, split, arguments.allow_missing)
        summary = means(judged.scores)
        together = pooled(estimator, split, list(judged.scores), arguments.alignment, quantity)
        rows = [[name, title, len(judged.scores), *summary.values()]]
        rows += [[name, f"{title}, all pixels together", len(judged.scores), *together.values()]] if together else []
        left, said = len(indices) - len(judged.scores), []
        if left:
            said.append(f"{title}: {left} of {len(indices)} images are left out: {left_out(judged)}")
        if judged.resized:
            said.append(
                f"{title}: {judged.resized} of {len(judged.scores)} predictions were resized to the truth's size"
            )
        return rows, said, judged, summary | ({"all_pixels": together} if together else {})

    # First what was asked for, so that nothing beside it can cost its scores; in the table it is the last.
    last, said, judged, summary = rows_of(called(arguments), look)
    remark = REMARKS.get(arguments.alignment)
    settings = {key: value for key, value in vars(arguments).items() if key not in ("output_dir", "names")}
    counts = {"unusable": len(judged.unusable), "without_valid_pixels": judged.blank}
    whole = {"images": len(judged.scores), **summary, "left_out": counts, "resized": judged.resized}
    whole |= {"settings": settings} | ({"remark": remark} if remark else {})
    report(folder, split, judged.scores, whole, quantity)
    try:
        draw_worst(folder / "worst.png", split, look, judged.scores, arguments.alignment, quantity)
    except Exception as error:  # the scores stand, whatever keeps the picture from being drawn
        reason = " ".join(str(error).split()) or type(error).__name__
        terminal.say(f"evaluate: {folder / 'worst.png'}: not drawn: {reason}", sys.stderr)
    estimators = blind(train, split, quantity) if train else {}
    estimators |= {str(other): saved(other, split, metric) for other in arguments.beside}
    rows = []
    for title, estimator in estimators.items():
        more, remarks, *_ = rows_of(title, estimator)
        rows, said = rows + more, said + remarks
    lines = [table(["dataset", "estimator", "images", *quantity.metrics], rows + last), *said]
    lines += [f"{arguments.alignment}: {remark}"] if remark else []
    best = summary.pop("all_pixels", None) or summary
    lines += [comparison(name, protocol, arguments, len(judged.scores), best, quantity)] if protocol else []
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
    resizing = ["Predicted at diffusers' sizes; the papers' numbers were made with --resize official."]
    mine = resizing if not arguments.predictions and arguments.resize != "official" else []
    return "\n".join([text, *NOTES.get(quantity.name, []), *mine])


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    status, tables = 0, []
    try:
        index, count = distributed.start()
        for name in arguments.names:
            try:
                tables.append(evaluate(arguments, name, index, count))
            except (ValueError, OSError, ImportError, BadFrame, RuntimeError) as error:
                status = complain(error)
                if count > 1:
                    break  # the other processes wait for this one
    except (ValueError, OSError, ImportError) as error:
        return complain(error)
    except KeyboardInterrupt:
        terminal.say("evaluate: interrupted; the same command goes on from here", sys.stderr)
        return 130
    if index == 0 and tables:
        for line in "\n\n".join(tables).splitlines():
            terminal.say(line)
    return status


def complain(error: Exception) -> int:
    """Says in one line what went wrong; returns the exit status. Raises what is no fault of the input's."""
    message = " ".join(str(error).split())
    if isinstance(error, BadFrame):
        message = f"{error.kind}: {error.detail}"
    if isinstance(error, RuntimeError):
        if "RESOURCE_EXHAUSTED" not in message:
            raise error
        message = "out of device memory: lower --processing_res, or use --dtype bfloat16"
    terminal.say(f"evaluate: {message}", sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(terminal.run(main))
