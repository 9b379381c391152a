"""Reads the images of a split, prepared or official, and turns whatever goes wrong into one kind of error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.data.raw_frame import BadFrame
from marigold_jax.evaluation.benchmarks import BENCHMARKS
from marigold_jax.evaluation.official_split import OfficialSplit
from marigold_jax.runtime.files import printable

Split = PreparedSplit | OfficialSplit
Example = dict[str, np.ndarray]  # as `PreparedSplit` describes it
LONGEST_NAME = 200  # characters of a name in a message


def open_split(name: str, data_dir: Path, lists: Path | None, part: str) -> Split:
    """Opens a dataset: an official test set, or what `prepare` made.

    Args:
        name: a key of `BENCHMARKS`, or the name of a prepared dataset.
        data_dir: the folder of the datasets.
        lists: the folder of the official filename lists; None: `data_split` in `data_dir`.
        part: the split of a prepared dataset, such as "test".

    Raises:
        ValueError: the dataset is missing or damaged.
    """
    if name in BENCHMARKS:
        return OfficialSplit(name, data_dir, lists or data_dir / "data_split")
    return PreparedSplit(str(data_dir / name / part))


def evenly_spread(split: Split, limit: int | None = None) -> list[int]:
    """The indices of at most `limit` images, evenly spread over the split; without a limit, of all images."""
    count = min(limit or len(split), len(split))
    return [int(index) for index in np.unique(np.linspace(0, len(split) - 1, count).astype(int))]


def read_name(split: Split, index: int) -> str:
    """The name of an image. Raises BadFrame if its record cannot be read."""
    return _read(split.name_of, split, index)


def read_truth(split: Split, index: int) -> Example:
    """An example without its image. Raises BadFrame if its record cannot be read."""
    return _read(split.truth, split, index)


def read_example(split: Split, index: int) -> Example:
    """An example with its image. Raises BadFrame if its record cannot be read."""
    return _read(split.__getitem__, split, index)


def count_pixels(split: Split, index: int) -> int:
    """The number of pixels of an image, from its header alone; 0 if that cannot be read, as `read_example` reports."""
    try:
        return split.count_pixels(index)
    except Exception:  # decoders raise nearly anything on a damaged record
        return 0


def _read(read: Callable[[int], Any], split: Split, index: int) -> Any:
    try:
        return read(index)
    except BadFrame:
        raise
    except Exception as error:  # decoders raise nearly anything on a damaged record
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadFrame("unreadable record", f"{split.path}, number {index}: {reason}") from None


def in_message(name: str) -> str:
    """A name as messages show it: on one line, and shortened in the middle if it is long."""
    name = printable(name)
    return name if len(name) <= LONGEST_NAME else f"{name[:100]}...{name[-90:]}"
