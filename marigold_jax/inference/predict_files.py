"""Predicts for files: what is still to do, what is saved for each picture, and what the record says about it."""

import contextlib
import errno
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from marigold_jax.data.images import count_pixels, read_image
from marigold_jax.inference.journal import Journal, sources
from marigold_jax.inference.known_depth import doubt, read_reference, to_metres
from marigold_jax.inference.outputs import Output, exist, missing, outputs, save_all, too_long
from marigold_jax.inference.stream import Picture, Prediction, Settings, SettingsError, out_of_memory, predict_all
from marigold_jax.runtime.files import printable

if TYPE_CHECKING:
    from marigold_jax.inference.pipeline import Marigold

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
OUT_OF_MEMORY = "out of device memory: lower --processing_res or --batch_size, or use --dtype bfloat16"


class Stop(Exception):
    """Ends the run with one line for the user."""


@dataclass(frozen=True)
class Saving:
    """What is saved, and where.

    Attributes:
        folder: the output folder.
        color_map: a matplotlib colour map; None saves nothing in colour.
        align_to: a folder with the known depth of each picture, for depth in metres; see `known_depth`.
        skip_existing: leave out pictures whose outputs all exist.
    """

    folder: Path
    color_map: str | None = "Spectral"
    align_to: Path | None = None
    skip_existing: bool = False


def predict_files(
    pipe: "Marigold",
    names: Mapping[Path, str],
    settings: Settings,
    saving: Saving,
    journal: Journal,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Predicts for files, saves the outputs and records each picture in the journal.

    Args:
        pipe: the model.
        names: the stem of the outputs of each picture; see `outputs.names`.
        settings: how predictions are made.
        saving: what is saved, and where.
        journal: it must write to the same folder.
        share: (index, count): this process is number `index` of `count`, which share the pictures.

    Raises:
        Stop: nothing more can be done: a full disk, or settings that the network cannot run with.
        OSError: the journal cannot be written.
    """
    extra = {"uncertainty": settings.output_uncertainty, "metres": saving.align_to}
    wanted = outputs(pipe.modality.name, saving.color_map, *(name for name, asked in extra.items() if asked))
    mine = list(names)[share[0] :: share[1]]
    journal.start(total=len(mine))
    todo = _to_do(wanted, names, set(mine), saving, journal)
    done: list[Path] = []

    def save(path: Path, made: Prediction) -> None:
        maps, fit = {"prediction": made.prediction, "uncertainty": made.uncertainty}, {}
        maps = {name: values for name, values in maps.items() if values is not None}
        if saving.align_to:
            reference = read_reference(saving.align_to, names[path], made.original, journal.say)
            maps["metres"], fit = to_metres(made.prediction, *reference)
            if remark := doubt(fit):
                journal.say(f"{printable(path)}: {remark}")
        try:
            files = save_all(wanted, maps, saving.color_map, saving.folder, names[path])
        except OSError as error:
            if error.errno in DISK_FULL:
                raise Stop(f"{saving.folder}: {error.strerror}") from None
            raise
        done.append(path)
        try:
            journal.written(path, files, made.prediction.shape[:2], time.perf_counter() - made.started, **fit)
        except OSError as error:
            raise Stop(in_words(error)) from None

    pictures = (Picture(path, partial(read_image, path), partial(count_pixels, path)) for path in todo)
    try:
        with contextlib.closing(predict_all(pipe, pictures, settings, save)) as outcomes:
            for path, _, error in outcomes:
                if error:
                    journal.failed(path, OUT_OF_MEMORY if out_of_memory(error) else error)
    except SettingsError as error:
        raise Stop(error) from None
    finally:
        _check_again(wanted, names, done, saving.folder, journal)


def in_words(error: Exception) -> str:
    """An error in one line, with the file that it is about."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _to_do(
    wanted: Sequence[Output], names: Mapping[Path, str], mine: set[Path], saving: Saving, journal: Journal
) -> list[Path]:
    """Those of `mine` that are to be predicted. The others are recorded as skipped, or as failed."""
    todo, taken = [], {}
    made = sources(saving.folder) if saving.skip_existing else {}
    for path, name in names.items():
        first = taken.setdefault(name, path)
        if path not in mine:
            continue
        if first is not path:  # links can give two pictures one path
            journal.failed(path, f"its outputs would overwrite those of {first}: rename one of the two")
        elif problem := too_long(wanted, name):
            journal.failed(path, problem)
        elif saving.skip_existing and exist(wanted, saving.folder, name, path, made):
            journal.skipped()
        else:
            todo.append(path)
    return todo


def _check_again(
    wanted: Sequence[Output], names: Mapping[Path, str], done: Sequence[Path], folder: Path, journal: Journal
) -> None:
    """The folder may have been moved or emptied during the run: outputs that no longer exist count as failed."""

    def files(path: Path) -> Iterator[str]:
        return (output.name.format(stem=names[path]) for output in wanted)

    gone = missing(folder, (file for path in done for file in files(path)))
    lost = [path for path in done if gone.intersection(files(path))] if gone else []
    for path in lost:
        journal.lost(path)
    if lost:
        journal.say(
            f"{folder}: {len(lost)} of {len(done)} pictures that were written are gone: their files were moved or "
            "removed during the run; --skip_existing makes them again"
        )
