"""Predicts for any number of pictures in bounded memory: read ahead, infer in batches, finish and save on threads.

    for outcome in predict_all(pipe, pictures, Settings(ensemble_size=10), save):
        ...                          # one for each picture, in the order in which they are done

The main thread keeps the device busy. Reader threads decode pictures and resize them for the network, within a budget
of pixels. Writer threads fetch predictions from the device, resize them back, and call `save`.
"""

import contextlib
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float32, Shaped

from marigold_jax.runtime.budget import Budget

if TYPE_CHECKING:
    from marigold_jax.inference.pipeline import Marigold, Prepared

THREADS = min(8, os.cpu_count() or 1)  # to read, and as many to finish and save
PIXELS_AT_ONCE = 2**27  # being read, and as many being finished: 1.3 and 2 GB; a larger picture goes alone
WAITING_BYTES = 2**28  # of pictures that wait for others of their size: about 50 at resolution 768

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How predictions are made. Names and defaults are those of `Marigold.__call__`, which explains them.

    The bucket is 8, as there; `data.geometry.default_bucket` is better for pictures of mixed sizes.
    """

    num_inference_steps: int | None = None
    ensemble_size: int = 1
    processing_resolution: int | None = None
    bucket: int = 8
    resize: str = "diffusers"
    batch_size: int | None = None
    seed: int = 0
    resample_method_input: str = "bilinear"
    resample_method_output: str = "bilinear"
    match_input_resolution: bool = True
    output_uncertainty: bool = False


class SettingsError(ValueError):
    """The settings or the environment ask for something that the network cannot do, whatever the picture."""


class Picture(NamedTuple):
    """A picture that has not been read yet.

    Attributes:
        key: the caller's name for it, of any type.
        read: returns it as `Marigold.prepare` takes it. Runs on a reader thread; its ValueError or OSError counts
            against this picture alone.
        count_pixels: its size, without reading it all. It bounds how much is read at the same time; 0 sets no bound.
    """

    key: Any
    read: Callable[[], Shaped[np.ndarray, "..."]]
    count_pixels: Callable[[], int] = lambda: 0


class Prediction(NamedTuple):
    """The maps of one picture, at its own size or at the processing size.

    Attributes:
        prediction: depth (h, w, 1) in [0, 1], 0 near and 1 far; or unit normals (h, w, 3).
        uncertainty: (h, w, 1) where it was asked for, else None.
        original: (height, width) of the picture.
        started: when reading it began, by `time.perf_counter`.
    """

    prediction: Float32[np.ndarray, "h w c"]
    uncertainty: Float32[np.ndarray, "h w 1"] | None
    original: tuple[int, int]
    started: float


class Outcome(NamedTuple):
    """What became of one picture: what `save` returned for it, or the error that it met."""

    key: Any
    value: Any = None
    error: Exception | None = None


class Waiting(NamedTuple):
    """A picture that is ready for the network."""

    key: Any
    prepared: "Prepared"
    started: float


class Batch(NamedTuple):
    """Pictures of one canvas size; `places` >= len(pictures) is the number that the program is compiled for."""

    pictures: list[Waiting]
    places: int


class Batches:
    """Groups pictures by the size of their canvas.

    A batch is ready when `size` pictures are together. When the pictures that wait exceed `waiting_bytes`, the oldest
    batch goes incomplete, so memory is bounded however sizes are mixed. Batches of one canvas have the same number of
    places wherever a full one has gone before, so that there is one program for each canvas.
    """

    def __init__(self, size: int, waiting_bytes: int):
        self._size, self._most = size, waiting_bytes
        self._waiting: dict[tuple[int, int], list[Waiting]] = {}
        self._compiled: set[tuple[int, int]] = set()

    def add(self, picture: Waiting) -> list[Batch]:
        """Adds a picture; returns the batches that are ready now."""
        canvas = picture.prepared.geometry.canvas
        batch = self._waiting.setdefault(canvas, [])
        batch.append(picture)
        ready = [canvas] if len(batch) == self._size else []
        if sum(each.prepared.canvas.nbytes for batch in self._waiting.values() for each in batch) > self._most:
            ready = ready or [next(iter(self._waiting))]
        self._compiled.update(ready)
        return [Batch(self._waiting.pop(canvas), self._size) for canvas in ready]

    def rest(self) -> list[Batch]:
        """The batches that are still incomplete at the end."""
        waiting, self._waiting = self._waiting, {}
        return [
            Batch(batch, self._size if canvas in self._compiled else len(batch)) for canvas, batch in waiting.items()
        ]


def predict_all(
    pipe: "Marigold",
    pictures: Iterable[Picture],
    settings: Settings = Settings(),
    save: Callable[[Any, Prediction], T] = lambda key, prediction: prediction,
) -> Iterator[Outcome]:
    """Predicts for each picture and yields what became of it, in the order of completion.

    Args:
        pipe: the model.
        pictures: read lazily and in order, a few ahead of the device.
        settings: the same for all pictures. Results are those of `pipe(picture, ...)` with the same options, and do not
            depend on which pictures share a batch.
        save: called with (key, prediction) on a writer thread. What it returns is the value of the outcome; without it,
            that is the `Prediction`, and the caller must keep up, since only about `THREADS` outcomes are held back.

    Yields:
        One `Outcome` for each picture. A ValueError or OSError from reading, a ValueError from preparing the picture,
        an error of the device (RuntimeError; see `out_of_memory`), and a ValueError, OSError or RuntimeError from
        `save` are outcomes of the picture. The others go on.

    Raises:
        SettingsError: the settings cannot be had.
        Exception: any other exception, from `save` for instance, ends the stream. What was started is finished, also on
            Ctrl-C and when the caller stops iterating; what was not is dropped.
    """
    batch_size = settings.batch_size or pipe.default_batch_size(settings.processing_resolution)
    images_per_call = max(1, batch_size // settings.ensemble_size)
    stages = _Stages(pipe, settings, batch_size, save)
    batches = Batches(images_per_call, WAITING_BYTES)
    most = max(images_per_call, THREADS)
    with ThreadPoolExecutor(THREADS) as readers, ThreadPoolExecutor(THREADS) as writers, _dropping(readers, writers):
        saving: deque[Future] = deque()

        def infer(ready: Iterable[Batch]) -> Iterator[Outcome]:
            for batch in ready:
                fetched = stages.infer(batch, writers)
                saving.extend(
                    writers.submit(stages.finish, picture, fetched, place)
                    for place, picture in enumerate(batch.pictures)
                )
                while len(saving) > most:
                    yield saving.popleft().result()

        for picture in _read_ahead(readers, stages.read, pictures, limit=2 * THREADS):
            if isinstance(picture, Outcome):
                yield picture
            else:
                yield from infer(batches.add(picture))
        yield from infer(batches.rest())
        while saving:
            yield saving.popleft().result()


def out_of_memory(error: Exception) -> bool:
    """Whether an error means that the device has too little memory."""
    return isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


@contextlib.contextmanager
def _dropping(*pools: Executor) -> Iterator[None]:
    """After a full disk or Ctrl-C: what the pools have begun is finished, what they have not is dropped."""
    try:
        yield
    except BaseException:
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
        raise


def _read_ahead(pool: Executor, read: Callable[[Picture], T], pictures: Iterable[Picture], limit: int) -> Iterator[T]:
    """`map(read, pictures)`, in order, with at most `limit` pictures read in `pool` before they are asked for."""
    pictures = iter(pictures)
    pending = deque(pool.submit(read, picture) for picture in islice(pictures, limit))
    while pending:
        result = pending.popleft().result()
        pending.extend(pool.submit(read, picture) for picture in islice(pictures, 1))
        yield result


class _Stages:
    """The three stages of one stream: read, infer, finish."""

    def __init__(self, pipe: "Marigold", settings: Settings, batch_size: int, save: Callable[[Any, Prediction], Any]):
        self.pipe, self.settings, self.batch_size, self.save = pipe, settings, batch_size, save
        self.reading, self.finishing = Budget(PIXELS_AT_ONCE), Budget(PIXELS_AT_ONCE)

    def read(self, picture: Picture) -> Waiting | Outcome:
        """On a reader thread: reads one picture and resizes it for the network."""
        started, settings = time.perf_counter(), self.settings
        try:
            with self.reading.holding(picture.count_pixels()):
                prepared = self.pipe.prepare(
                    picture.read(),
                    settings.processing_resolution,
                    settings.resample_method_input,
                    settings.bucket,
                    settings.resize,
                )
            return Waiting(picture.key, prepared, started)
        except (OSError, ValueError) as error:
            return Outcome(picture.key, error=error)

    def infer(self, batch: Batch, writers: Executor) -> Future:
        """On the main thread: starts the device on a batch. Its maps are fetched by a writer thread."""
        full: Sequence[Waiting] = batch.pictures + batch.pictures[-1:] * (batch.places - len(batch.pictures))
        try:
            raw = self.pipe.run(
                np.stack([picture.prepared.canvas for picture in full]),
                np.array([picture.prepared.geometry.resized for picture in full], np.int32),
                num_inference_steps=self.settings.num_inference_steps,
                ensemble_size=self.settings.ensemble_size,
                batch_size=self.batch_size,
                seed=self.settings.seed,
                output_uncertainty=self.settings.output_uncertainty,
            )
        except RuntimeError as error:  # the program does not fit the device
            (failed := Future()).set_exception(error)
            return failed
        except ValueError as error:
            raise SettingsError(error) from None
        maps = raw.prediction, raw.uncertainty
        return writers.submit(lambda: tuple(None if values is None else np.asarray(values) for values in maps))

    def finish(self, picture: Waiting, fetched: Future, place: int) -> Outcome:
        """On a writer thread: resizes the maps of one picture and saves them."""
        try:
            prediction, uncertainty = fetched.result()
            original = picture.prepared.geometry.original
            with self.finishing.holding(math.prod(original)):
                maps = self.pipe.finish(
                    picture.prepared,
                    prediction[place],
                    None if uncertainty is None else uncertainty[place],
                    self.settings.match_input_resolution,
                    self.settings.resample_method_output,
                )
                return Outcome(picture.key, self.save(picture.key, Prediction(*maps, original, picture.started)))
        except (OSError, ValueError, RuntimeError) as error:
            return Outcome(picture.key, error=error)
