"""The loader's contract: batch k is a pure function of the seed, whatever the workers, processes and restarts."""

import itertools
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

from marigold_jax import prepare
from marigold_jax.data.loader import Augmentation, Plan, ProcessShare, make_loader
from marigold_jax.data.prepared import PreparedSplit
from marigold_jax.data.targets import NORMALS
from marigold_jax.data.transforms import SampleOptions, crop, transform

SIZES = {"large": 23, "small": 10}
SHAPES = {"large": (24, 32), "small": (16, 40)}


@pytest.fixture(scope="module")
def mix(tmp_path_factory):
    """Two prepared datasets of images of different sizes; the first red value tells which frame it is."""
    root = tmp_path_factory.mktemp("data")
    for name, count in SIZES.items():
        raw = root / "raw" / name
        height, width = SHAPES[name]
        random = np.random.default_rng(count)
        for folder in ("rgb", "depth", "normals"):
            (raw / folder).mkdir(parents=True)
        for index in range(count):
            rgb = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            rgb[..., 0] = index
            Image.fromarray(rgb).save(raw / "rgb" / f"{index:03d}.png")
            depth = random.integers(1000, 9000, (height, width), dtype=np.uint16)
            Image.fromarray(depth).save(raw / "depth" / f"{index:03d}.png")
            np.save(raw / "normals" / f"{index:03d}.npy", unit_vectors(random, height, width))
        flags = ["folder", "--raw_dir", raw, "--data_dir", root, "--unit", "mm", "--workers", 1]
        assert prepare.main(list(map(str, flags))) == 0
    return [(f"{root}/large/train", 0.7), (f"{root}/small/train", 0.3)]


def unit_vectors(random, height, width):
    vectors = random.normal(size=(height, width, 3))
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def take(loader, count):
    batches = list(itertools.islice(loader, count))
    loader.close()
    return batches


def assert_same(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert one[key].dtype == other[key].dtype
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def frames_in(batch):
    return np.rint((batch["rgb"][:, 0, 0, 0] + 1) * 127.5).astype(int)


# ----------------------------------------------------------------------------------------------------------------- plan


def test_datasets_are_drawn_with_their_probabilities():
    plan = Plan(sizes=(100, 50), probabilities=(0.9, 0.1), batch_size=2, seed=1)
    drawn = np.array([plan.dataset(batch) for batch in range(10_000)])
    assert abs((drawn == 0).mean() - 0.9) < 3 * np.sqrt(0.09 / 10_000)
    other = Plan(sizes=(100, 50), probabilities=(0.9, 0.1), batch_size=2, seed=2)
    assert any(plan.dataset(batch) != other.dataset(batch) for batch in range(100))


@pytest.mark.parametrize("batch_size", [1, 4, 30])
def test_every_dataset_walks_through_shuffled_epochs_without_repeats(batch_size):
    plan = Plan(sizes=(23, 10), probabilities=(0.7, 0.3), batch_size=batch_size, seed=5)
    visited = {0: [], 1: []}
    for batch in range(200):
        visited[plan.dataset(batch)].extend(plan.frames(batch))
    for dataset, size in enumerate(plan.sizes):
        epochs = [
            tuple(visited[dataset][start : start + size]) for start in range(0, len(visited[dataset]) - size, size)
        ]
        assert len(epochs) > 3 and all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert len(set(epochs)) == len(epochs)


def test_epochs_go_on_across_blocks_of_drawn_datasets():
    plan = Plan(sizes=(23, 10), probabilities=(0.7, 0.3), batch_size=3, seed=5)
    counted = sum(plan.dataset(batch) == 1 for batch in range(8200))
    last = max(batch for batch in range(8200) if plan.dataset(batch) == 1)
    walk = [frame for batch in range(8200) if plan.dataset(batch) == 1 for frame in plan.frames(batch)]
    assert list(plan.frames(last)) == walk[-3:] and len(walk) == 3 * counted
    assert all(sorted(walk[start : start + 10]) == list(range(10)) for start in range(0, len(walk) - 10, 10))


def test_a_far_batch_is_found():
    plan = Plan(sizes=(53885, 20148), probabilities=(0.9, 0.1), batch_size=32, seed=0)
    assert plan.frames(1_000_000).shape == (32,)


def test_half_of_the_frames_are_mirrored():
    plan = Plan(sizes=(10,), probabilities=(1.0,), batch_size=8, seed=3)
    flips = np.concatenate([plan.flips(batch) for batch in range(1000)])
    assert abs(flips.mean() - 0.5) < 3 * 0.5 / np.sqrt(8000)


# --------------------------------------------------------------------------------------------------------------- loader


def test_batches_hold_what_they_promise(mix):
    seen = set()
    for batch in take(make_loader(mix, batch_size=3, seed=0, target=NORMALS), 12):
        height, width = batch["rgb"].shape[1:3]
        seen.add((height, width))
        assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
            "rgb": ((3, height, width, 3), np.float32),
            "depth": ((3, height, width, 1), np.float32),
            "target": ((3, height, width, 1), np.float32),
            "span": ((3,), np.float32),
            "mask": ((3, height, width, 1), bool),
            "normals": ((3, height, width, 3), np.float32),
        }
        assert batch["rgb"].min() >= -1 and batch["rgb"].max() <= 1
        assert batch["target"].min() == -1 and batch["target"].max() == 1
        assert 1 <= batch["depth"].min() and batch["depth"].max() < 9
        np.testing.assert_allclose(np.linalg.norm(batch["normals"], axis=-1), 1, atol=1e-6)
    assert seen == set(SHAPES.values())


def test_the_loader_follows_the_plan(mix):
    loader = make_loader(mix, batch_size=4, seed=9, augmentation=Augmentation(flip=False))
    plan = Plan(sizes=(23, 10), probabilities=(0.7, 0.3), batch_size=4, seed=9)
    for number, batch in enumerate(take(loader, 10)):
        assert batch["rgb"].shape[1:3] == list(SHAPES.values())[plan.dataset(number)]
        np.testing.assert_array_equal(frames_in(batch), plan.frames(number))


def test_windows_are_those_of_the_plan_and_lie_within_the_frame(mix):
    options = {"size": (16, 24), "antialias": True, "far_fill": True}
    seen = take(
        make_loader(
            mix, batch_size=4, seed=9, augmentation=Augmentation(flip=False, zoom=2.0), options=SampleOptions(**options)
        ),
        3,
    )
    plan = Plan(sizes=(23, 10), probabilities=(0.7, 0.3), batch_size=4, seed=9)
    shares = np.concatenate([plan.windows(batch, 2.0) for batch in range(500)])[:, 0]
    assert 0.5 <= shares.min() < 0.51 and 0.99 < shares.max() <= 1 and abs(shares.mean() - 0.75) < 0.02
    for number, batch in enumerate(seen):
        dataset = PreparedSplit(mix[plan.dataset(number)][0])
        for row, (frame, window) in enumerate(zip(plan.frames(number), plan.windows(number, 2.0), strict=True)):
            wanted = transform(crop(dataset[int(frame)], window), flip=False, **options)
            np.testing.assert_array_equal(batch["rgb"][row], wanted["rgb"])
            np.testing.assert_array_equal(batch["depth"][row], wanted["depth"])
    corners = [crop({"mask": np.arange(20).reshape(4, 5, 1)}, (0.5, at, at))["mask"][..., 0] for at in (0.0, 1.0)]
    np.testing.assert_array_equal(corners, [[[0, 1], [5, 6]], [[13, 14], [18, 19]]])


def test_flips_are_those_of_the_plan(mix):
    plan = Plan(sizes=(23, 10), probabilities=(0.7, 0.3), batch_size=4, seed=9)
    straight = take(make_loader(mix, batch_size=4, seed=9, augmentation=Augmentation(flip=False)), 5)
    mirrored = take(make_loader(mix, batch_size=4, seed=9), 5)
    for number, (before, after) in enumerate(zip(straight, mirrored, strict=True)):
        for row, flip in enumerate(plan.flips(number)):
            np.testing.assert_array_equal(after["depth"][row], before["depth"][row][:, :: -1 if flip else 1])


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 4])
def test_workers_change_nothing(mix, num_workers):
    assert_same(
        take(make_loader(mix, batch_size=2, seed=4), 9),
        take(make_loader(mix, batch_size=2, seed=4, num_workers=num_workers), 9),
    )


def test_processes_share_the_global_batch(mix):
    whole = take(make_loader(mix, batch_size=4, seed=7, target=NORMALS), 8)
    halves = [
        take(make_loader(mix, batch_size=2, seed=7, target=NORMALS, process=ProcessShare(index, 2)), 8)
        for index in range(2)
    ]
    joined = [{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*halves, strict=True)]
    assert_same(whole, joined)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [(0, 0), (0, 2), (2, 0)])
def test_a_resumed_loader_goes_on_exactly(mix, workers):
    whole = take(make_loader(mix, batch_size=2, seed=11), 9)
    first = make_loader(mix, batch_size=2, seed=11, num_workers=workers[0])
    start = [next(first) for _ in range(4)]
    state = json.loads(json.dumps(first.get_state()))
    first.close()
    second = make_loader(mix, batch_size=2, seed=11, num_workers=workers[1])
    second.set_state(state)
    assert_same(whole, start + take(second, 5))


def test_a_run_of_one_process_goes_on_with_two(mix):
    whole = take(make_loader(mix, batch_size=4, seed=2), 5)
    loader = make_loader(mix, batch_size=4, seed=2)
    take(loader, 3)
    second = make_loader(mix, batch_size=2, seed=2, process=ProcessShare(1, 2))
    second.set_state(loader.get_state())
    assert_same([{key: value[2:] for key, value in batch.items()} for batch in whole[3:]], take(second, 2))


def test_a_running_loader_can_be_put_back(mix):
    loader = make_loader(mix, batch_size=2, seed=11)
    state = loader.get_state()
    before = [next(loader) for _ in range(3)]
    loader.set_state(state)
    assert_same(before, take(loader, 3))


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 3}])
def test_a_state_of_other_data_is_refused(mix, change):
    state = make_loader(mix, batch_size=2, seed=0).get_state()
    loader = make_loader(mix, **{"batch_size": 2, "seed": 0} | change)
    with pytest.raises(ValueError, match=f"{next(iter(change))} was [02], is [13]"):
        loader.set_state(state)


def test_workers_never_import_jax(mix):
    class Probe:
        size = None

        def __len__(self):
            return 4

        def __getitem__(self, index):
            ones = np.ones((8, 8, 1), np.float32)
            loaded = sys.modules.get("jax") is not None
            return {"rgb": np.zeros((8, 8, 3), np.uint8), "depth": ones, "mask": ones > 0, "jax": ones * loaded}

    (here,) = take(make_loader([(Probe(), 1)], batch_size=1, seed=0), 1)
    there = take(make_loader([(Probe(), 1)], batch_size=1, seed=0, num_workers=2), 2)
    assert here["jax"].all() and not any(batch["jax"].any() for batch in there)
    assert sys.modules["__main__"].__name__ == "__main__"


def test_every_dataset_can_be_trained_at_one_size(mix):
    batches = take(make_loader(mix, batch_size=2, seed=0, options=SampleOptions(size=(8, 16))), 8)
    assert {batch["rgb"].shape for batch in batches} == {(2, 8, 16, 3)}


# --------------------------------------------------------------------------------------------------------------- errors


class Memory:
    """A dataset in memory, for the errors that prepared datasets do not have."""

    size = None

    def __init__(self, *shapes):
        self.shapes = shapes

    def __len__(self):
        return len(self.shapes)

    def __getitem__(self, index):
        if isinstance(self.shapes[index], Exception):
            raise self.shapes[index]
        depth = np.linspace(1, 2, np.prod(self.shapes[index]), dtype=np.float32).reshape(*self.shapes[index], 1)
        return {"rgb": np.zeros((*self.shapes[index], 3), np.uint8), "depth": depth, "mask": depth > 0}


def test_images_of_several_sizes_need_a_size():
    loader = make_loader([(Memory((8, 8), (8, 16)), 1)], batch_size=2, seed=0)
    with pytest.raises(ValueError, match=r"Memory has images of several sizes .*: give the size to train at"):
        next(loader)
    loader.close()


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("error", "wanted"),
    [(OSError("disk on fire"), OSError), (KeyError("two\nlines"), ValueError), (ZeroDivisionError(), ValueError)],
)
def test_a_broken_frame_is_named(error, wanted, num_workers):
    loader = make_loader([(Memory(error), 1)], batch_size=1, seed=0, num_workers=num_workers)
    with pytest.raises(wanted, match=r"^Memory: frame 0: ") as caught:
        next(loader)
    loader.close()
    assert str(caught.value).partition("frame 0: ")[2] == (" ".join(str(error).split()) or "ZeroDivisionError")
    assert "while reading frame 0 of Memory" in caught.value.__notes__


def test_a_frame_that_cannot_be_used_is_named():
    loader = make_loader([(Memory((8, 8)), 1)], batch_size=1, seed=0, options=SampleOptions(size=(0, 8)))
    with pytest.raises(ValueError, match=r"^Memory: frame 0: "):
        next(loader)
    loader.close()


def test_a_worker_that_dies_is_told_of_in_one_line():
    class Deadly(Memory):
        def __getitem__(self, index):
            os._exit(9)

    loader = make_loader([(Deadly((8, 8)), 1)], batch_size=1, seed=0, num_workers=1)
    with pytest.raises(ChildProcessError, match="exit code 9"):
        next(loader)
    loader.close()


@pytest.mark.parametrize(
    "datasets, options, message",
    [
        ([], {}, "datasets must be pairs"),
        ([(Memory((8, 8)), 0)], {}, "not all of them 0"),
        ([(Memory(), 1)], {}, "Memory is empty"),
        ([(Memory((8, 8)), 1)], {"target": NORMALS}, "Memory has no normals"),
        ([(Memory((8, 8)), 1)], {"process": ProcessShare(index=1)}, "0 <= process.index < process.count"),
        ([("/nowhere/rooms/train", 1)], {}, "no dataset 'rooms' has been prepared in /nowhere"),
    ],
)
def test_bad_arguments_get_one_clear_line(datasets, options, message):
    with pytest.raises(ValueError, match=message):
        make_loader(datasets, **{"batch_size": 1, "seed": 0} | options)


def test_an_unknown_split_is_named(mix):
    path = mix[0][0].replace("train", "test")
    with pytest.raises(ValueError, match="dataset 'large' has the splits train; not 'test'"):
        make_loader([(path, 1)], batch_size=1, seed=0)
