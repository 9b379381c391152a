"""The files of a prediction: their names, which are the official ones, and how each is encoded."""

import contextlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from marigold_jax.data.colors import color, depth_to_uint16, normals_to_uint8
from marigold_jax.inference.journal import JOURNAL
from marigold_jax.runtime.files import write

LONGEST_NAME = 255  # bytes, on nearly every disk


@dataclass(frozen=True)
class Output:
    """One file of a prediction.

    Attributes:
        name: where it goes, below the output folder; {stem} is one of `names`.
        shows: the map in it: "prediction" or a key of `EXTRA_OUTPUTS`.
        encode: the map's values (h, w, c) and the name of a colour map, to the content of the file.
        colored: whether it is drawn with a colour map, and left out where there is none.
    """

    name: str
    shows: str
    encode: Callable[[np.ndarray, str | None], memoryview]
    colored: bool = False

    def path(self, folder: Path, stem: str) -> Path:
        return folder / self.name.format(stem=stem)


def _npy(values: np.ndarray, color_map: str | None) -> memoryview:
    buffer = io.BytesIO()
    np.save(buffer, values.squeeze(2) if values.shape[2] == 1 else values)
    return buffer.getbuffer()


def _png(pixels: np.ndarray) -> memoryview:
    buffer = io.BytesIO()
    # A depth map at level 6, the default, takes four times as long to write and is 2 % smaller.
    Image.fromarray(pixels).save(buffer, format="png", compress_level=1)
    return buffer.getbuffer()


def _grey_png(values: np.ndarray, color_map: str | None) -> memoryview:
    return _png(depth_to_uint16(values[..., 0]))


def _colored_png(values: np.ndarray, color_map: str) -> memoryview:
    return _png(color(values[..., 0], color_map))


def _normals_png(values: np.ndarray, color_map: str | None) -> memoryview:
    return _png(normals_to_uint8(values))


# By modality, with the keys of `inference.modality.MODALITIES`.
OUTPUTS = {
    "depth": [
        Output("depth_npy/{stem}_depth.npy", "prediction", _npy),
        Output("depth_bw/{stem}_depth.png", "prediction", _grey_png),
        Output("depth_colored/{stem}_depth_colored.png", "prediction", _colored_png, colored=True),
    ],
    "normals": [
        Output("normals_npy/{stem}_normals.npy", "prediction", _npy),
        Output("normals_vis/{stem}_normals.png", "prediction", _normals_png),
    ],
}
# Of any modality, on request.
EXTRA_OUTPUTS = {
    "uncertainty": Output("uncertainty_npy/{stem}_uncertainty.npy", "uncertainty", _npy),
    "metres": Output("depth_metres_npy/{stem}_depth.npy", "metres", _npy),
}


def outputs(modality: str, color_map: str | None, *more: str) -> list[Output]:
    """The files of one prediction.

    Args:
        modality: a key of `OUTPUTS`.
        color_map: a matplotlib colour map; None leaves out the coloured files.
        more: keys of `EXTRA_OUTPUTS` to add.
    """
    table = OUTPUTS[modality] + [EXTRA_OUTPUTS[name] for name in more]
    return [output for output in table if color_map or not output.colored]


def save_all(
    wanted: list[Output], maps: Mapping[str, np.ndarray], color_map: str | None, folder: Path, stem: str
) -> list[str]:
    """Encodes and saves the maps of one picture.

    Args:
        wanted: the files.
        maps: "prediction", and the keys of `EXTRA_OUTPUTS` that are wanted, each (h, w, c).
        color_map: a matplotlib colour map, or None.
        folder: the output folder.
        stem: the picture's name, one of `names`.

    Returns:
        The names of the files below `folder`.

    Raises:
        OSError: a file cannot be written.
        ValueError: a map holds NaN or infinity.
    """
    if not all(np.isfinite(values).all() for values in maps.values()):
        raise ValueError("the prediction holds NaN or infinity; try --dtype float32, or another checkpoint")
    for output in wanted:
        write(output.path(folder, stem), output.encode(maps[output.shows], color_map))
    return [output.name.format(stem=stem) for output in wanted]


def names(paths: Sequence[Path], folders: Iterable[Path] = ()) -> list[str]:
    """The stem of each picture's output files. No two are the same, and their order does not matter.

    A stem is the file's name without its extension, with the subfolders in front where the picture is below one of
    `folders`. Pictures of the same name get their path below the folder that all pictures share, and their extension
    as well where that is not enough: a/x.jpg and b/x.jpg become "a/x" and "b/x"; x.jpg and x.png in one folder become
    "x.jpg" and "x.png".
    """
    whole = list(map(os.path.abspath, paths))
    above = [os.path.join(os.path.abspath(folder), "") for folder in folders]
    root = os.path.join(os.path.commonpath(set(map(os.path.dirname, whole))), "") if whole else ""
    choices = []
    for path in whole:
        top = next((top for top in above if path.startswith(top)), os.path.join(os.path.dirname(path), ""))
        bare = os.path.splitext(path)[0]
        choices.append((bare.removeprefix(top), bare.removeprefix(root), path.removeprefix(root)))
    level = [0] * len(paths)
    while True:
        chosen = [choice[at] for choice, at in zip(choices, level, strict=True)]
        count = Counter(chosen)
        again = [i for i, name in enumerate(chosen) if count[name] > 1 and level[i] < 2]
        if not again:
            return chosen
        for i in again:
            level[i] += 1


def too_long(wanted: list[Output], name: str) -> str:
    """What is wrong with a name whose output files would have names too long for a disk; empty where nothing is."""
    longest = max(len(part) for output in wanted for part in os.fsencode(output.name.format(stem=name)).split(b"/"))
    if longest <= LONGEST_NAME:
        return ""
    return f"the name is too long: an output's name would have {longest} bytes, wanted at most {LONGEST_NAME}"


def is_output(folder: Path, name: str) -> bool:
    """Whether the subfolder `name` of `folder` holds predictions: it has such a name, and lies beside a record."""
    ours = {output.name.partition("/")[0] for table in (*OUTPUTS.values(), EXTRA_OUTPUTS.values()) for output in table}
    return name in ours and (folder / JOURNAL).exists()


def exist(wanted: list[Output], folder: Path, name: str, path: Path, made: Mapping[str, str]) -> bool:
    """Whether the picture `path` has all its outputs: they exist, and none is known to come from another picture.

    Args:
        wanted: the outputs.
        folder: the output folder.
        name: the picture's stem, one of `names`.
        path: the picture.
        made: which input each output was made from, as far as it is known; see `journal.sources`.
    """
    return all(
        output.path(folder, name).is_file() and not _another(made.get(output.name.format(stem=name)), path)
        for output in wanted
    )


def _another(source: str | None, path: Path) -> bool:
    """Whether `source` is another picture. One that no longer exists may be `path` before it was moved."""
    try:
        return source is not None and not os.path.samefile(source, path)
    except (OSError, ValueError):
        return False


def missing(folder: Path, files: Iterable[str]) -> set[str]:
    """Those of `files`, names below `folder`, that do not exist. Lists each folder once, and stats no file."""
    by_folder: dict[str, set[str]] = {}
    for file in files:
        below, _, name = file.rpartition("/")
        by_folder.setdefault(below, set()).add(name)
    gone = set()
    for below, wanted in by_folder.items():
        with contextlib.suppress(OSError):
            wanted = wanted - set(os.listdir(folder / below))
        gone |= {f"{below}/{name}" for name in wanted}
    return gone
