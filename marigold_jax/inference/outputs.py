"""How predictions are drawn and saved, and the record of what was done. File names are the official ones."""

import contextlib
import io
import json
import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8, UInt16
from PIL import Image
from tqdm import tqdm

from marigold_jax.runtime.files import append, append_lines, printable, write

JOURNAL = "predictions.jsonl"
LONGEST_NAME = 255  # bytes, on nearly every disk
ROWS_AT_ONCE = 256  # are drawn: what is between values and pixels stays small


@dataclass(frozen=True)
class Output:
    """One file of a prediction: where it goes, what it shows ("prediction" or a key of `MORE`), and its bytes."""

    name: str  # below the output folder; {stem} is one of `names`
    shows: str
    encode: Callable[[np.ndarray, str | None], memoryview]  # (values (h, w, c), colour map) -> the file's content

    def path(self, folder: Path, stem: str) -> Path:
        return folder / self.name.format(stem=stem)


def outputs(modality: str, color_map: str | None, *more: str) -> list[Output]:
    """The files of one prediction of `modality` ("depth" or "normals") and of `more`, keys of `MORE`.

    Without a colour map nothing is coloured.
    """
    table = OUTPUTS[modality] + [MORE[name] for name in more]
    return [output for output in table if color_map or output.encode is not _colored_png]


def save_all(
    wanted: list[Output], maps: dict[str, np.ndarray], color_map: str | None, folder: Path, stem: str
) -> list[str]:
    """Draws and saves one picture's `maps`, "prediction" and perhaps more, each (h, w, c).

    Returns the files' names below `folder`. Raises OSError, and ValueError rather than save NaN or infinity.
    """
    if not all(np.isfinite(values).all() for values in maps.values()):
        raise ValueError("the network answered with NaN or infinity; try --dtype float32, or another checkpoint")
    for output in wanted:
        write(output.path(folder, stem), output.encode(maps[output.shows], color_map))
    return [output.name.format(stem=stem) for output in wanted]


def names(paths: Sequence[Path], folders: Iterable[Path] = ()) -> list[str]:
    """What the outputs of each picture are called: no two the same, and the same for the same pictures in any order.

    That is the file's name without its extension; below one of `folders`, with the subfolders in front of it. Those of
    one name get the folders below the one that all pictures share, and if that is not enough their extension, too:
    a/x.jpg and b/x.jpg become "a/x" and "b/x"; x.jpg and x.png in one folder "x.jpg" and "x.png".
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
    """What is wrong with a name whose outputs no disk would take; empty where nothing is."""
    longest = max(len(part) for output in wanted for part in os.fsencode(output.name.format(stem=name)).split(b"/"))
    if longest <= LONGEST_NAME:
        return ""
    return f"the name is too long: that of an output would have {longest} bytes, wanted {LONGEST_NAME} at most"


def is_journal(name: str) -> bool:
    """Whether a file is our record of what was done, by its name."""
    return name == JOURNAL or (name.startswith("predictions.") and name.endswith(".jsonl"))


def is_output(folder: Path, name: str) -> bool:
    """Whether the subfolder `name` of `folder` holds predictions: it has our name, and lies beside a record of them."""
    ours = {output.name.partition("/")[0] for table in (*OUTPUTS.values(), MORE.values()) for output in table}
    return name in ours and (folder / JOURNAL).exists()


def sources(folder: Path) -> dict[str, str]:
    """Which input each output was made of, by the record in `folder`; of what it does not say, nothing is known."""
    made = {}
    with contextlib.suppress(OSError), open(folder / JOURNAL, "rb") as lines:
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError):  # a torn line, or not ours
                record = json.loads(line)
                made |= dict.fromkeys(record["outputs"], str(record["input"]))
    return made


def exist(wanted: list[Output], folder: Path, name: str, path: Path, made: Mapping[str, str]) -> bool:
    """Whether all outputs of that name are there, and none is known to be another picture's than `path`."""
    return all(
        output.path(folder, name).is_file() and not _another(made.get(output.name.format(stem=name)), path)
        for output in wanted
    )


def _another(source: str | None, path: Path) -> bool:
    """A picture that is not found where it was may have been moved, so that only one that is there is another."""
    try:
        return source is not None and not os.path.samefile(source, path)
    except (OSError, ValueError):
        return False


def missing(folder: Path, files: Iterable[str]) -> set[str]:
    """Those of `files`, names below `folder`, that are not there; one look for each folder, not for each file."""
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


class Journal:
    """predictions.jsonl (one line a file), the counts, the progress bar, and the messages. Threads may share it.

    `counts` has the keys "written", "skipped" and "failed". Several processes each write a `part`, numbered from 0,
    and the first lets `gather` join them. A record that somebody moves or removes is begun again. Raises OSError, with
    the file's name, where the folder or the file cannot be written.
    """

    def __init__(self, folder: Path, part: int = 0):
        self.counts = Counter()
        self.total = 0
        self._path = folder / (f"predictions.{part}.jsonl" if part else JOURNAL)
        self._lock = threading.Lock()
        self._bar = None
        self._open()

    def start(self, total: int) -> None:
        """Shows a progress bar over `total` files, where a person is watching."""
        self.total = total
        self._bar = tqdm(total=total, unit="image", disable=None, file=sys.stderr)

    def written(
        self, source: Path, files: list[str], size: tuple[int, int], seconds: float, **more: int | float
    ) -> None:
        record = {"input": str(source), "outputs": files, "size": size, "seconds": round(seconds, 3)}
        self._note("written", record | more)

    def failed(self, source: Path | str, reason: Exception | str) -> None:
        """`reason` goes to standard error too, in one line that begins with the file."""
        reason = printable(" ".join(str(reason).split()).removeprefix(f"{source}: "))
        self.say(f"{printable(source)}: {reason}")
        self._note("failed", {"input": str(source), "error": reason})

    def skipped(self) -> None:
        self._note("skipped", None)

    def lost(self, source: Path) -> None:
        """What was written of it is gone."""
        with self._lock:
            self.counts.subtract(["written"])
        self._note("failed", {"input": str(source), "error": "its outputs were written, and then removed or moved"})

    def say(self, line: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads it any more
            tqdm.write(printable(line), file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._file.close()

    def _note(self, outcome: str, record: dict | None) -> None:
        with self._lock:
            if record:
                self._append(f"{json.dumps(record)}\n".encode())
            self.counts[outcome] += 1
            if self._bar is not None:
                with contextlib.suppress(OSError):
                    self._bar.update()

    def _append(self, line: bytes) -> None:
        try:
            there = os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path))
        except OSError:
            there = False
        if not there:
            self._file.close()
            self._open()
        try:
            append(self._file, line)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = append_lines(self._path)


def gather(folder: Path) -> None:
    """Moves the lines of all parts into predictions.jsonl, those that an interrupted run left behind too.

    Raises OSError, and then leaves the parts that were not moved.
    """
    for part in sorted(folder.glob("predictions.*.jsonl")):
        lines = part.read_bytes()
        with append_lines(folder / JOURNAL) as file:
            append(file, lines if lines.endswith(b"\n") or not lines else lines + b"\n")
        part.unlink()


# -------------------------------------------------------------------------------------------------------------- drawing


def color(depth: Float32[np.ndarray, "h w"], color_map: str) -> UInt8[np.ndarray, "h w 3"]:
    """Depth in [0, 1] through a matplotlib colour map, truncated to 8 bits. Raises ValueError for an unknown map."""
    table = color_table(color_map)
    return _by_rows(depth, lambda rows: table[np.minimum((rows * len(table)).astype(np.int32), len(table) - 1)])


@lru_cache
def color_table(color_map: str) -> UInt8[np.ndarray, "n 3"]:
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it would tell of a home that is missing
    import matplotlib  # here, because nothing else needs it and it is slow to load

    if color_map not in matplotlib.colormaps:
        names = {name.lower(): name for name in matplotlib.colormaps}
        alike = [names[name] for name in get_close_matches(color_map.lower(), names)] or ["Spectral", "magma", "gray"]
        raise ValueError(f"unknown colour map {color_map!r}: wanted None or one of matplotlib's, as {', '.join(alike)}")
    colors = matplotlib.colormaps[color_map]
    return (colors(np.arange(colors.N))[:, :3] * 255).astype(np.uint8)


def depth_to_uint16(depth: Float32[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
    """[0, 1] to 0 .. 65535, truncated."""
    return _by_rows(depth, lambda rows: (rows * np.float32(65535)).astype(np.uint16))


def normals_to_uint8(normals: Float32[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """[-1, 1] to 0 .. 255, truncated: x right, y up, z towards the viewer as red, green, blue."""
    return _by_rows(normals, lambda rows: ((rows + np.float32(1)) * np.float32(127.5)).astype(np.uint8))


def _by_rows(values: np.ndarray, draw: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`draw(values)`, where each row is drawn of itself."""
    first = draw(values[:ROWS_AT_ONCE])
    drawn = np.empty((len(values), *first.shape[1:]), first.dtype)
    for top in range(0, len(values), ROWS_AT_ONCE):
        drawn[top : top + ROWS_AT_ONCE] = draw(values[top : top + ROWS_AT_ONCE]) if top else first
    return drawn


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


def _colored_png(values: np.ndarray, color_map: str | None) -> memoryview:
    return _png(color(values[..., 0], color_map))


def _normals_png(values: np.ndarray, color_map: str | None) -> memoryview:
    return _png(normals_to_uint8(values))


OUTPUTS = {
    "depth": [
        Output("depth_npy/{stem}_depth.npy", "prediction", _npy),
        Output("depth_bw/{stem}_depth.png", "prediction", _grey_png),
        Output("depth_colored/{stem}_depth_colored.png", "prediction", _colored_png),
    ],
    "normals": [
        Output("normals_npy/{stem}_normals.npy", "prediction", _npy),
        Output("normals_vis/{stem}_normals.png", "prediction", _normals_png),
    ],
}
MORE = {
    "uncertainty": Output("uncertainty_npy/{stem}_uncertainty.npy", "uncertainty", _npy),
    "metres": Output("depth_metres_npy/{stem}_depth.npy", "metres", _npy),
}
