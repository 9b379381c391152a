"""Estimators to be scored: functions from the index of an image to its prediction."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.data.resample import resize
from marigold_jax.data.saved_maps import read_map
from marigold_jax.data.transforms import transform
from marigold_jax.evaluation.quantities import Map, Quantity
from marigold_jax.evaluation.splits import Split, evenly_spread, in_message, read_example, read_name, read_truth
from marigold_jax.inference.outputs import OUTPUTS
from marigold_jax.runtime.files import below, printable

# Returns the prediction for an image, None if it is missing. Raises ValueError, with one line, if it is broken.
Estimator = Callable[[int], Map | None]

SUFFIXES = (".npy", ".npz", ".png")  # of saved maps; the first one found counts
PNG_UNIT = 65535.0  # a grey PNG holds depth from 0 to 1, as `predict` writes it
LONGEST_PART = 200  # bytes of a file or folder name; the file system allows 255, with the suffix
MEAN_MAP_IMAGES = 500  # training images in the mean training map


def saved(folder: Path, split: Split, metric: bool = False) -> Estimator:
    """Reads predictions from files.

    Args:
        folder: the folder of the predictions, see `file_names`.
        split: the images.
        metric: predictions are in metres. PNG files, which have no unit, are then an error.
    """

    @lru_cache(maxsize=1)
    def stems() -> Counter:
        return Counter(Path(read_name(split, index)).stem for index in range(len(split)))

    def estimate(index: int) -> Map | None:
        name = read_name(split, index)
        prediction_file(folder, name)
        for candidate, without_folder in file_names(name, split):
            if os.path.lexists(path := folder / candidate):
                if without_folder and stems()[Path(name).stem] > 1:
                    raise ValueError(f"{printable(path)}: several images have this name, in different folders")
                return read_map(path, png_unit=None if metric else PNG_UNIT)
        return None

    return estimate


def file_names(name: str, split: Split) -> Iterator[tuple[str, bool]]:
    """The names that the saved prediction for an image may have, in order of preference.

    Yields pairs of a path below the folder of predictions, and whether it leaves out the image's own folder.
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


def prediction_file(folder: Path, name: str) -> Path:
    """NAME.npy below the folder. Raises ValueError if the name leads out of the folder, or is too long for a file."""
    path = below(folder, name)
    if max(len(os.fsencode(part)) for part in Path(name).parts) > LONGEST_PART or len(name) > 10 * LONGEST_PART:
        raise ValueError(f"{in_message(name)}: a name of {len(name)} characters, too long for a file")
    return path.with_suffix(".npy")


def in_our_axes(estimator: Estimator, factors: tuple[int, ...]) -> Estimator:
    """Multiplies the channels of predictions by `factors`, to convert another convention of axes."""

    def converted(index: int) -> Map | None:
        prediction = estimator(index)
        if prediction is None or prediction.shape[2] != len(factors):
            return prediction
        return prediction * np.float32(factors)

    return converted


def with_reasons(estimator: Estimator, failures: Mapping[int, str]) -> Estimator:
    """The same estimator, but for missing predictions it raises ValueError with the reason, if `failures` has one."""

    def explained(index: int) -> Map | None:
        prediction = estimator(index)
        if prediction is None and index in failures:
            raise ValueError(failures[index])
        return prediction

    return explained


def image_blind_baselines(train: PreparedSplit, split: Split, quantity: Quantity) -> dict[str, Estimator]:
    """Two baselines that do not use the image: a constant map, and the mean training map resized to the image.

    Depth is normalised before it is averaged. Raises ValueError if the training split does not hold the quantity.
    """
    if quantity.name not in train.features:
        raise ValueError(f"--blind: {train.path} holds no {quantity.name}")
    indices = evenly_spread(train, MEAN_MAP_IMAGES)
    options = {"size": read_example(train, 0)["mask"].shape[:2], "flip": False, "antialias": True, "far_fill": True}
    mean = sum(transform(read_example(train, index), **options)[quantity.sample] for index in indices)
    mean = mean / np.float32(len(indices))
    constant = np.float32(quantity.constant)
    return {
        "constant": lambda index: np.broadcast_to(constant, read_truth(split, index)[quantity.name].shape),
        "mean map": lambda index: resize(mean, read_truth(split, index)["mask"].shape[:2], "bilinear", antialias=False),
    }
