"""How predictions are drawn and saved, and the record of what was done. File names are the official ones."""

import io
import json
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8, UInt16
from PIL import Image
from tqdm import tqdm

from marigold_jax.runtime.files import append_lines, printable, write

JOURNAL = "predictions.jsonl"


@dataclass(frozen=True)
class Output:
    """One file of a prediction: where it goes, what it shows ("prediction" or a key of `MORE`), and its bytes."""

    name: str  # below the output folder; {stem} is the input's name without its extension
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


class Journal:
    """predictions.jsonl (one line a file), the counts, the progress bar, and the messages. Threads may share it.

    `counts` has the keys "written", "skipped" and "failed". Several processes each write a `part`, numbered from 0,
    and the first lets `gather` join them. Raises OSError where the folder or the file cannot be written.
    """

    def __init__(self, folder: Path, part: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self.counts = Counter()
        self.total = 0
        name = f"predictions.{part}.jsonl" if part else JOURNAL
        self._file = append_lines(folder / name)
        self._lock = threading.Lock()
        self._bar = None

    def start(self, total: int) -> None:
        """Shows a progress bar over `total` files, where a person is watching."""
        self.total = total
        self._bar = tqdm(total=total, unit="image", disable=None)

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

    def say(self, line: str) -> None:
        tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._file.close()

    def _note(self, outcome: str, record: dict | None) -> None:
        with self._lock:
            if record:
                self._file.write(f"{json.dumps(record)}\n".encode())
            self.counts[outcome] += 1
            if self._bar is not None:
                self._bar.update()


def gather(folder: Path) -> None:
    """Moves the lines of all parts into predictions.jsonl, those that an interrupted run left behind too."""
    for part in sorted(folder.glob("predictions.*.jsonl")):
        with append_lines(folder / JOURNAL) as file:
            file.write(part.read_bytes())
        part.unlink()


# -------------------------------------------------------------------------------------------------------------- drawing


def color(depth: Float32[np.ndarray, "h w"], color_map: str) -> UInt8[np.ndarray, "h w 3"]:
    """Depth in [0, 1] through a matplotlib colour map, truncated to 8 bits. Raises ValueError for an unknown map."""
    table = color_table(color_map)
    return table[np.minimum((depth * len(table)).astype(np.int32), len(table) - 1)]


@lru_cache
def color_table(color_map: str) -> UInt8[np.ndarray, "n 3"]:
    import matplotlib  # here, because nothing else needs it and it is slow to load

    if color_map not in matplotlib.colormaps:
        names = {name.lower(): name for name in matplotlib.colormaps}
        alike = [names[name] for name in get_close_matches(color_map.lower(), names)] or ["Spectral", "magma", "gray"]
        raise ValueError(f"unknown colour map {color_map!r}: wanted None or one of matplotlib's, as {', '.join(alike)}")
    colors = matplotlib.colormaps[color_map]
    return (colors(np.arange(colors.N))[:, :3] * 255).astype(np.uint8)


def depth_to_uint16(depth: Float32[np.ndarray, "h w"]) -> UInt16[np.ndarray, "h w"]:
    """[0, 1] to 0 .. 65535, truncated."""
    return (depth * np.float32(65535)).astype(np.uint16)


def normals_to_uint8(normals: Float32[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """[-1, 1] to 0 .. 255, truncated: x right, y up, z towards the viewer as red, green, blue."""
    return ((normals + np.float32(1)) * np.float32(127.5)).astype(np.uint8)


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
