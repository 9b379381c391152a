"""Endless batches from several datasets, each batch from one of them.

Which frames make up batch k, in which order, which of them are mirrored, and what part of each is seen, is a pure
function of the seed and k: `Plan`. Processes take consecutive shares of it, and worker processes take turns, so neither
number changes what is learned from, and to continue a run is to ask for the next k.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from marigold_jax.data.latent_store import LatentSplit
from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.data.transforms import crop, transform
from marigold_jax.data.worker import as_main
from marigold_jax.runtime import extras

BLOCK = 4096  # batches whose sources are drawn at once
ENDLESS = 2**40
SOURCE, ORDER, FLIP, ZOOM = range(4)  # separate streams of randomness


@runtime_checkable
class DataSource(Protocol):
    """Decoded examples by index, as `PreparedSplit` gives them; `size` is (height, width) to resize to, or None."""

    size: tuple[int, int] | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class Plan:
    """Which frames are in which batch. `sizes` counts each dataset's frames; `batch_size` is that of all processes."""

    sizes: tuple[int, ...]
    probabilities: tuple[float, ...]
    batch_size: int
    seed: int

    def source(self, batch: int) -> int:
        """Which dataset batch number `batch` is drawn from, with the given probabilities."""
        return int(_sources(self, batch // BLOCK)[batch % BLOCK])

    def frames(self, batch: int) -> Int[np.ndarray, " batch_size"]:
        """Indices of the batch's frames in its dataset; each epoch of a dataset visits every frame once, shuffled."""
        source = self.source(batch)
        block = _sources(self, batch // BLOCK)[: batch % BLOCK]
        earlier = _sources_before(self, batch // BLOCK)[source] + np.count_nonzero(block == source)
        positions = earlier * self.batch_size + np.arange(self.batch_size)
        size = self.sizes[source]
        return np.array([_order(self.seed, source, int(p // size), size)[p % size] for p in positions])

    def flips(self, batch: int) -> Bool[np.ndarray, " batch_size"]:
        """Which of the batch's frames are mirrored: each with probability 1/2."""
        return _random(self.seed, FLIP, batch).random(self.batch_size) < 0.5

    def windows(self, batch: int, zoom: float) -> Float[np.ndarray, "batch_size 3"]:
        """Which part of each frame is seen, as `transforms.crop` wants it; sides are 1 / zoom to 1 of the frame's."""
        part = _random(self.seed, ZOOM, batch).random((self.batch_size, 3))
        part[:, 0] = 1 - part[:, 0] * (1 - 1 / zoom)
        return part


@dataclass(frozen=True)
class Batches:
    """Batches by number, counted from `first`; each process makes the rows `share` of them. Grain reads this."""

    datasets: tuple[DataSource | LatentSplit, ...]
    plan: Plan
    share: slice
    flip: bool
    zoom: float
    normals: bool
    options: dict[str, Any]
    first: int = 0

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        number = self.first + index
        dataset = self.datasets[self.plan.source(number)]
        frames = self.plan.frames(number)[self.share]
        flips = self.plan.flips(number)[self.share] & self.flip
        windows = self.plan.windows(number, self.zoom)[self.share]
        samples = [
            self._sample(dataset, int(frame), bool(flip), window)
            for frame, flip, window in zip(frames, flips, windows, strict=True)
        ]
        first = next(iter(samples[0]))
        shapes = {sample[first].shape[:-1] for sample in samples}
        if len(shapes) > 1:
            raise ValueError(
                f"{_name(dataset)} has images of several sizes ({sorted(shapes)}): give the size to train at, "
                "config.data.size"
            )
        return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}

    def _sample(
        self, dataset: DataSource | LatentSplit, frame: int, flip: bool, window: np.ndarray
    ) -> dict[str, np.ndarray]:
        if isinstance(dataset, LatentSplit):
            return dataset.sample(frame, flip)
        example = _read(dataset, frame, self.normals)
        with _naming(dataset, frame):
            return transform(crop(example, window), flip=flip, **_options(self.options, dataset))


@dataclass(frozen=True)
class BothWays:
    """The samples of one frame after another, counted from `first`: as it is and mirrored. Grain reads this.

    After the last frame comes the first again: a worker that came to an end would take what it made with it.
    """

    dataset: DataSource
    frames: tuple[int, ...]
    normals: bool
    options: dict[str, Any]
    first: int = 0

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        frame = self.frames[(self.first + index) % len(self.frames)]
        example = _read(self.dataset, frame, self.normals)
        options = _options(self.options, self.dataset)
        with _naming(self.dataset, frame):
            both = [transform(example, flip=flip, **options) for flip in (False, True)]
        return {key: np.stack([sample[key] for sample in both]) for key in both[0]}


class Loader(Iterator):
    """Draws batch after batch; `get_state` and `set_state` are for checkpoints, `close` ends the worker processes."""

    def __init__(self, batches: Batches | BothWays, num_workers: int):
        self._batches = batches
        self._num_workers = num_workers
        self._next = 0
        self._iterator = None
        self._waiting = deque()

    def __next__(self) -> dict[str, np.ndarray]:
        try:
            if self._iterator is None:
                self._start()
            batch = self._waiting.popleft() if self._waiting else next(self._iterator)
        except RuntimeError as error:  # a worker process is gone: killed, or out of memory
            raise ChildProcessError(" ".join(str(error).split())) from error
        self._next += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """What is needed to continue with the batch that comes next: numbers only, the same on every process."""
        return {"next_batch": self._next, "plan": asdict(self._batches.plan)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues where `get_state` was called, with any number of workers and processes.

        Raises ValueError if the datasets, their probabilities, the global batch size or the seed are not the same.
        """
        now, then = asdict(self._batches.plan), state["plan"]
        differences = [
            f"{key} was {then.get(key)}, is {now[key]}" for key in now if _plain(now[key]) != _plain(then.get(key))
        ]
        if differences:
            raise ValueError(f"cannot continue with other data: {'; '.join(differences)}")
        self.close()
        self._next = int(state["next_batch"])

    def close(self) -> None:
        """Ends the worker processes. The next batch would start them again."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None
        self._waiting.clear()

    def _start(self) -> None:
        with extras.needed("train"):
            import grain
            from absl import flags

        dataset = grain.MapDataset.source(replace(self._batches, first=self._next))
        if self._num_workers == 0:
            # An element is a whole batch: the one that is being made and the one that waits are read-ahead enough.
            self._iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))
            return
        if not flags.FLAGS.is_parsed():  # as in a notebook; Grain reads its own flags here
            flags.FLAGS.mark_as_parsed()
        serial = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        workers = grain.MultiprocessingOptions(num_workers=self._num_workers, per_worker_buffer_size=2)
        with as_main():
            self._iterator = iter(serial.mp_prefetch(workers))
            # Workers take turns, so after one batch from each of them all have started.
            self._waiting.extend(next(self._iterator) for _ in range(self._num_workers))


def make_loader(
    datasets: Sequence[tuple[str | DataSource | LatentSplit, int | float]],
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    size: tuple[int, int] | None = None,
    flip: bool = True,
    zoom: float = 1.0,
    antialias: bool = True,
    far_fill: bool = True,
    normals: bool = False,
) -> Loader:
    """Endless batches of `batch_size` samples for this process: what `transform` gives, stacked on axis 0.

    `datasets` pairs a prepared split (DATA_DIR/NAME/SPLIT, or any `DataSource`) with its probability. Each batch comes
    from one dataset, the same on all processes; row r of process p is row p * batch_size + r of the global batch.
    Batches and their order depend on nothing but the seed, the datasets with their probabilities, and batch_size *
    process_count.

    A `LatentSplit` in the place of a dataset gives `latents` and `latent_mask` of the same frames and flips that the
    dataset would have given; of the options below, only `flip` and `num_workers` mean anything to it.

    `size` (height, width) replaces the datasets' own training sizes. `flip` mirrors every second sample at random.
    `zoom` is how many times a part of a frame, chosen at random, may be magnified to fill the picture: 1 is never.
    `antialias` and `far_fill` are explained in `data.transforms`; the reference behaves as with both False. `normals`
    asks for normals, which all datasets must then have. Workers hand batches over in shared memory (/dev/shm): two for
    each worker. Raises ValueError for datasets that are missing, empty or without normals, and for numbers that make no
    sense.
    """
    if not datasets or min(probability for _, probability in datasets) < 0 or not sum(p for _, p in datasets) > 0:
        raise ValueError(f"datasets must be pairs (dataset, probability), not all of them 0; got {list(datasets)}")
    if batch_size < 1 or num_workers < 0 or seed < 0 or not 0 <= process_index < process_count or zoom < 1:
        raise ValueError(
            "want batch_size >= 1, num_workers >= 0, seed >= 0, 0 <= process_index < process_count and zoom >= 1; "
            f"got {batch_size=}, {num_workers=}, {seed=}, {process_index=}, {process_count=}, {zoom=}"
        )
    opened = tuple(PreparedSplit(dataset) if isinstance(dataset, str) else dataset for dataset, _ in datasets)
    for dataset in opened:
        if len(dataset) == 0:
            raise ValueError(f"{_name(dataset)} is empty")
        if normals and not isinstance(dataset, LatentSplit) and "normals" not in dataset[0]:
            raise ValueError(f"{_name(dataset)} has no normals")
    total = sum(probability for _, probability in datasets)
    plan = Plan(
        sizes=tuple(len(dataset) for dataset in opened),
        probabilities=tuple(probability / total for _, probability in datasets),
        batch_size=batch_size * process_count,
        seed=seed,
    )
    share = slice(process_index * batch_size, (process_index + 1) * batch_size)
    options = {"size": size, "antialias": antialias, "far_fill": far_fill}
    return Loader(Batches(opened, plan, share, flip, zoom, normals, options), num_workers)


@contextmanager
def _naming(dataset: DataSource, frame: int) -> Iterator[None]:
    """Errors inside say which frame it was, in one line: worker processes hand over that line, and not what led to it.

    A ValueError or an OSError stays one; anything else becomes a ValueError.
    """
    try:
        yield
    except Exception as error:
        name, told = _name(dataset), " ".join(str(error).split()) or type(error).__name__
        if told.startswith(f"{name}: "):  # it says so itself
            raise
        kind = type(error) if type(error) in (ValueError, OSError) else ValueError
        named = kind(f"{name}: frame {frame}: {told}")
        named.add_note(f"while reading frame {frame} of {name}")
        raise named from error


def _read(dataset: DataSource, frame: int, normals: bool) -> dict[str, np.ndarray]:
    with _naming(dataset, frame):
        example = dataset[frame]
    return {key: value for key, value in example.items() if key != "normals" or normals}


def _options(options: dict[str, Any], dataset: DataSource) -> dict[str, Any]:
    """The options of `transform`: where no size was given, the dataset's own counts."""
    return options | {"size": options["size"] or dataset.size}


def _random(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


@lru_cache(maxsize=8)
def _sources(plan: Plan, block: int) -> Int[np.ndarray, " block"]:
    return _random(plan.seed, SOURCE, block).choice(len(plan.sizes), size=BLOCK, p=plan.probabilities)


@lru_cache(maxsize=8)
def _sources_before(plan: Plan, block: int) -> Int[np.ndarray, " sources"]:
    """How many batches each dataset gave before this block."""
    counts = np.zeros(len(plan.sizes), np.int64)
    for earlier in range(block):
        counts += np.bincount(_sources(plan, earlier), minlength=len(counts))
    return counts


@lru_cache(maxsize=16)
def _order(seed: int, source: int, epoch: int, size: int) -> Int[np.ndarray, " size"]:
    return _random(seed, ORDER, source, epoch).permutation(size)


def _plain(value: Any) -> Any:
    """JSON turns tuples into lists."""
    return list(value) if isinstance(value, tuple) else value


def _name(dataset: DataSource | LatentSplit) -> str:
    return getattr(dataset, "path", type(dataset).__name__)
