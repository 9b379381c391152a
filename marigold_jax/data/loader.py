"""Endless batches from several datasets; every batch comes from one of them.

Which frames make up batch k, in which order, which of them are mirrored and how they are cropped depends only on the
seed and k (`Plan`). The number of processes and of worker processes therefore changes nothing, and to resume a run is
to ask for batch k + 1.
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
from marigold_jax.data.loader_worker import as_main
from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.data.targets import DEPTH, OPTIONAL_MAPS, Target
from marigold_jax.data.transforms import DEFAULT_OPTIONS, SampleOptions, crop, transform
from marigold_jax.runtime import extras

BLOCK = 4096  # batches whose datasets are drawn at once
ENDLESS = 2**40
DATASET, ORDER, FLIP, ZOOM = range(4)  # separate random streams


@runtime_checkable
class DataSource(Protocol):
    """Random access to examples (see `data.prepared.PreparedSplit`); `size` is (height, width) to train at, or None."""

    size: tuple[int, int] | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class Plan:
    """Which frames are in which batch. It is saved in checkpoints, to check that a resumed run has the same data.

    Attributes:
        sizes: number of frames of each dataset.
        probabilities: with which a batch is drawn from each dataset; they add up to 1.
        batch_size: of all processes together.
        seed: of every random choice.
    """

    sizes: tuple[int, ...]
    probabilities: tuple[float, ...]
    batch_size: int
    seed: int

    def dataset(self, batch: int) -> int:
        """The index of the dataset that batch number `batch` is drawn from."""
        return int(_datasets(self, batch // BLOCK)[batch % BLOCK])

    def frames(self, batch: int) -> Int[np.ndarray, " batch_size"]:
        """Indices of the batch's frames in its dataset. Each epoch of a dataset visits every frame once, shuffled."""
        dataset = self.dataset(batch)
        block = _datasets(self, batch // BLOCK)[: batch % BLOCK]
        earlier = _batches_before(self, batch // BLOCK)[dataset] + np.count_nonzero(block == dataset)
        positions = earlier * self.batch_size + np.arange(self.batch_size)
        size = self.sizes[dataset]
        return np.array([_order(self.seed, dataset, int(p // size), size)[p % size] for p in positions])

    def flips(self, batch: int) -> Bool[np.ndarray, " batch_size"]:
        """Which of the batch's frames are mirrored: each with probability 1/2."""
        return _random(self.seed, FLIP, batch).random(self.batch_size) < 0.5

    def windows(self, batch: int, zoom: float) -> Float[np.ndarray, "batch_size 3"]:
        """The crop of each frame, for `transforms.crop`: its sides are between 1 / zoom and 1 of the frame's."""
        part = _random(self.seed, ZOOM, batch).random((self.batch_size, 3))
        part[:, 0] = 1 - part[:, 0] * (1 - 1 / zoom)
        return part


@dataclass(frozen=True)
class Augmentation:
    """Random changes to training samples.

    Attributes:
        flip: mirrors each sample left to right with probability 1/2.
        zoom: the largest factor by which a random crop is enlarged to the full size; 1 never crops.
    """

    flip: bool = True
    zoom: float = 1.0


@dataclass(frozen=True)
class ProcessShare:
    """Which of `count` processes this is; each makes an equal, consecutive share of every batch."""

    index: int = 0
    count: int = 1


@dataclass(frozen=True)
class Batches:
    """Batches by number, as a random-access source for Grain.

    Attributes:
        datasets: in the order of the plan.
        plan: which frames are in which batch.
        share: the rows of each batch that this process makes.
        target: what is learned.
        options: of `data.transforms.transform`.
        augmentation: random flips and crops.
        first: the number of the batch at index 0.
    """

    datasets: tuple[DataSource | LatentSplit, ...]
    plan: Plan
    share: slice
    target: Target
    options: SampleOptions
    augmentation: Augmentation
    first: int = 0

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        number = self.first + index
        dataset = self.datasets[self.plan.dataset(number)]
        frames = self.plan.frames(number)[self.share]
        flips = self.plan.flips(number)[self.share] & self.augmentation.flip
        windows = self.plan.windows(number, self.augmentation.zoom)[self.share]
        samples = [
            self._sample(dataset, int(frame), bool(flip), window)
            for frame, flip, window in zip(frames, flips, windows, strict=True)
        ]
        first = next(iter(samples[0]))
        shapes = {sample[first].shape[:-1] for sample in samples}
        if len(shapes) > 1:
            raise ValueError(
                f"{_name(dataset)} has images of several sizes ({sorted(shapes)}): give the size to train at in "
                "config.data.size"
            )
        return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}

    def _sample(
        self, dataset: DataSource | LatentSplit, frame: int, flip: bool, window: np.ndarray
    ) -> dict[str, np.ndarray]:
        if isinstance(dataset, LatentSplit):
            return dataset.sample(frame, flip)
        example = _read(dataset, frame, self.target)
        with _naming(dataset, frame):
            return transform(crop(example, window), flip=flip, **self.options.for_size(dataset.size))


@dataclass(frozen=True)
class BothWays:
    """Pairs of samples, one frame after another: the frame as stored, and mirrored. A random-access source for Grain.

    The last frame is followed by the first again. If the source ended, Grain's workers would end too, and with them the
    shared memory of batches that have not been read yet.

    Attributes:
        dataset: to read from.
        frames: indices of its frames, in order.
        target: what is learned.
        options: of `data.transforms.transform`.
        first: the position in `frames` of the pair at index 0.
    """

    dataset: DataSource
    frames: tuple[int, ...]
    target: Target
    options: SampleOptions
    first: int = 0

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        frame = self.frames[(self.first + index) % len(self.frames)]
        example = _read(self.dataset, frame, self.target)
        options = self.options.for_size(self.dataset.size)
        with _naming(self.dataset, frame):
            both = [transform(example, flip=flip, **options) for flip in (False, True)]
        return {key: np.stack([sample[key] for sample in both]) for key in both[0]}


class Loader(Iterator):
    """An endless iterator over batches, whose position can be saved and restored. `close` ends the worker processes."""

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
        except RuntimeError as error:  # a worker process has ended: killed, or out of memory
            raise ChildProcessError(" ".join(str(error).split())) from error
        self._next += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """What is needed to resume with the next batch. It holds numbers only, the same on every process."""
        return {"next_batch": self._next, "plan": asdict(self._batches.plan)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state that `get_state` returned, with any number of workers and processes.

        Raises ValueError if the datasets, their probabilities, the global batch size or the seed differ.
        """
        now, then = asdict(self._batches.plan), state["plan"]
        differences = [
            f"{key} was {then.get(key)}, is {now[key]}" for key in now if _plain(now[key]) != _plain(then.get(key))
        ]
        if differences:
            raise ValueError(f"cannot resume with other data: {'; '.join(differences)}")
        self.close()
        self._next = int(state["next_batch"])

    def close(self) -> None:
        """Ends the worker processes. The next call of `next` starts them again."""
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
            # An element is a whole batch, so one in progress and one waiting are enough read-ahead.
            self._iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))
            return
        if not flags.FLAGS.is_parsed():  # as in a notebook; Grain reads its own flags
            flags.FLAGS.mark_as_parsed()
        serial = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        workers = grain.MultiprocessingOptions(num_workers=self._num_workers, per_worker_buffer_size=2)
        with as_main():
            self._iterator = iter(serial.mp_prefetch(workers))
            # Workers take turns: once each has delivered a batch, all have started.
            self._waiting.extend(next(self._iterator) for _ in range(self._num_workers))


def make_loader(
    datasets: Sequence[tuple[str | DataSource | LatentSplit, int | float]],
    *,
    batch_size: int,
    seed: int,
    target: Target = DEPTH,
    options: SampleOptions = DEFAULT_OPTIONS,
    augmentation: Augmentation = Augmentation(),
    process: ProcessShare = ProcessShare(),
    num_workers: int = 0,
) -> Loader:
    """Endless batches of training samples: the dictionaries of `data.transforms.transform`, stacked on axis 0.

    Every batch comes from one dataset, the same on all processes. Row r of process p is row p * batch_size + r of the
    global batch. Batches and their order depend only on the seed, on the datasets with their probabilities, and on
    batch_size * process.count.

    Args:
        datasets: pairs (dataset, probability). A dataset is the path DATA_DIR/NAME/SPLIT of a prepared split, or any
            `DataSource`, or a `LatentSplit`. A `LatentSplit` gives `latents` and `latent_mask` of the frames and flips
            that its dataset would have given, and ignores every option but `augmentation.flip` and `num_workers`.
        batch_size: samples per batch on this process.
        seed: of every random choice.
        target: what is learned; all datasets must have its map.
        options: size and resampling of the samples.
        augmentation: random flips and crops.
        process: which share of the global batch to make.
        num_workers: worker processes; 0 reads in this process. Each keeps two batches in shared memory (/dev/shm).

    Raises:
        ValueError: a dataset is missing, empty or lacks the target's map; or a number is out of range.
    """
    if not datasets or min(probability for _, probability in datasets) < 0 or not sum(p for _, p in datasets) > 0:
        raise ValueError(f"datasets must be pairs (dataset, probability), not all of them 0; got {list(datasets)}")
    in_range = batch_size >= 1 and num_workers >= 0 and seed >= 0 and augmentation.zoom >= 1
    if not (in_range and 0 <= process.index < process.count):
        raise ValueError(
            "wanted batch_size >= 1, num_workers >= 0, seed >= 0, zoom >= 1 and 0 <= process.index < process.count; "
            f"got {batch_size=}, {num_workers=}, {seed=}, {augmentation} and {process}"
        )
    opened = tuple(PreparedSplit(dataset) if isinstance(dataset, str) else dataset for dataset, _ in datasets)
    for dataset in opened:
        if len(dataset) == 0:
            raise ValueError(f"{_name(dataset)} is empty")
        is_optional = target.map in OPTIONAL_MAPS and not isinstance(dataset, LatentSplit)
        if is_optional and target.map not in dataset[0]:
            raise ValueError(f"{_name(dataset)} has no {target.name}")
    total = sum(probability for _, probability in datasets)
    plan = Plan(
        sizes=tuple(len(dataset) for dataset in opened),
        probabilities=tuple(probability / total for _, probability in datasets),
        batch_size=batch_size * process.count,
        seed=seed,
    )
    share = slice(process.index * batch_size, (process.index + 1) * batch_size)
    return Loader(Batches(opened, plan, share, target, options, augmentation), num_workers)


@contextmanager
def _naming(dataset: DataSource, frame: int) -> Iterator[None]:
    """Adds the frame to errors raised inside, in one line: worker processes pass on the line, but not the cause.

    ValueError and OSError keep their type; any other error becomes a ValueError.
    """
    try:
        yield
    except Exception as error:
        name, reason = _name(dataset), " ".join(str(error).split()) or type(error).__name__
        if reason.startswith(f"{name}: "):  # already named
            raise
        kind = type(error) if type(error) in (ValueError, OSError) else ValueError
        named = kind(f"{name}: frame {frame}: {reason}")
        named.add_note(f"while reading frame {frame} of {name}")
        raise named from error


def _read(dataset: DataSource, frame: int, target: Target) -> dict[str, np.ndarray]:
    """An example without the optional maps that the target does not need."""
    with _naming(dataset, frame):
        example = dataset[frame]
    return {key: value for key, value in example.items() if key not in OPTIONAL_MAPS or key == target.map}


def _random(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


@lru_cache(maxsize=8)
def _datasets(plan: Plan, block: int) -> Int[np.ndarray, " block"]:
    """The dataset of each batch of a block."""
    return _random(plan.seed, DATASET, block).choice(len(plan.sizes), size=BLOCK, p=plan.probabilities)


@lru_cache(maxsize=8)
def _batches_before(plan: Plan, block: int) -> Int[np.ndarray, " datasets"]:
    """How many batches were drawn from each dataset before this block."""
    counts = np.zeros(len(plan.sizes), np.int64)
    for earlier in range(block):
        counts += np.bincount(_datasets(plan, earlier), minlength=len(counts))
    return counts


@lru_cache(maxsize=16)
def _order(seed: int, dataset: int, epoch: int, size: int) -> Int[np.ndarray, " size"]:
    return _random(seed, ORDER, dataset, epoch).permutation(size)


def _plain(value: Any) -> Any:
    """JSON turns tuples into lists."""
    return list(value) if isinstance(value, tuple) else value


def _name(dataset: DataSource | LatentSplit) -> str:
    return getattr(dataset, "path", type(dataset).__name__)
