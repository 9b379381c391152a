"""The stream: every picture has one outcome, memory is bounded, and results are those of the pipeline."""

import threading
import time

import numpy as np
import pytest
from standin import Brightness

from marigold_jax.data.geometry import Geometry
from marigold_jax.inference import stream
from marigold_jax.inference.pipeline import Prepared
from marigold_jax.inference.stream import (
    Batches,
    Picture,
    Settings,
    SettingsError,
    Waiting,
    out_of_memory,
    predict_all,
)


def image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def pictures(sizes):
    return [Picture(i, lambda i=i, size=size: image(*size, seed=i)) for i, size in enumerate(sizes)]


# ------------------------------------------------------------------------------------------------------------- batches


def waiting(canvas, key=0):
    geometry = Geometry(canvas, canvas, canvas)
    return Waiting(key, Prepared(np.zeros((64, 64, 3), np.float32), geometry, None), 0.0)


def grouped(arriving, size, waiting_bytes):
    batches = Batches(size, waiting_bytes)
    for picture in arriving:
        yield from batches.add(picture)
    yield from batches.rest()


def test_batches_are_of_one_canvas_and_keep_everything():
    widths = [64, 128, 64, 64, 128, 192, 64, 64]
    arriving = [waiting((64, width), index) for index, width in enumerate(widths)]
    got = [([each.key for each in batch], places) for batch, places in grouped(arriving, 2, 10**9)]
    # The last picture of width 64 shares its program with the batches before; that of width 192 gets its own.
    assert got == [([0, 2], 2), ([1, 4], 2), ([3, 6], 2), ([5], 1), ([7], 2)]


def test_batches_bound_what_waits():
    one = waiting((64, 64)).prepared.canvas.nbytes
    held, most = 0, 0

    def arriving():
        nonlocal held, most
        for index in range(40):
            held, most = held + one, max(most, held + one)
            yield waiting((64, 64) if index % 2 else (index, 1), index)

    seen = []
    for batch, places in grouped(arriving(), 100, 5 * one):
        assert len(batch) <= places
        held -= len(batch) * one
        seen += batch
    assert len(seen) == 40 and most <= 7 * one


# -------------------------------------------------------------------------------------------------------------- stream


def test_each_picture_comes_out_as_the_pipeline_makes_it():
    pipe, sizes = Brightness(), [(60, 90), (90, 60), (60, 90), (33, 47)]
    settings = Settings(ensemble_size=2, output_uncertainty=True, batch_size=4, resample_method_output="bicubic")
    found = {key: value for key, value, error in predict_all(pipe, pictures(sizes), settings)}
    for index, size in enumerate(sizes):
        prepared = pipe.prepare(image(*size, seed=index))
        depth = (prepared.canvas.mean(axis=2, keepdims=True) + 1) / 2
        wanted, uncertainty = pipe.finish(prepared, depth, depth / 4, resample_method="bicubic")
        assert found[index].prediction.shape == (*size, 1) and found[index].original == size
        np.testing.assert_array_equal(found[index].prediction, wanted)
        np.testing.assert_array_equal(found[index].uncertainty, uncertainty)


def test_the_sizes_of_the_authors():
    ((_, value, error),) = predict_all(Brightness(), pictures([(50, 70)]), Settings(resize="official"))
    assert error is None and value.prediction.shape == (50, 70, 1)


def test_what_goes_wrong_with_one_picture_is_its_outcome():
    def missing():
        raise FileNotFoundError("no such picture")

    def save(key, prediction):
        if key == 2:
            raise OSError("cannot be written")
        return f"saved {key}"

    several = [Picture("gone", missing), Picture("thin", lambda: image(1, 3000)), *pictures([(20, 30)] * 4)]
    outcomes = list(predict_all(Brightness(), several, save=save))
    values = {outcome.key: outcome.value for outcome in outcomes if outcome.error is None}
    errors = {outcome.key: str(outcome.error) for outcome in outcomes if outcome.error}
    assert values == {0: "saved 0", 1: "saved 1", 3: "saved 3"} and len(outcomes) == 6
    assert errors["gone"] == "no such picture" and errors[2] == "cannot be written" and "too thin" in errors["thin"]


def test_too_little_memory_is_the_outcome_of_the_batch():
    pipe = Brightness()
    pipe.error = RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 2
    outcomes = list(predict_all(pipe, pictures([(20, 30)] * 2), Settings(batch_size=1)))
    assert [outcome.error is not None and out_of_memory(outcome.error) for outcome in outcomes] == [False, True]


def test_settings_that_cannot_be_had_end_the_stream():
    pipe = Brightness()
    pipe.error = ValueError("no such thing"), 1
    with pytest.raises(SettingsError, match="no such thing"):
        list(predict_all(pipe, pictures([(20, 30)] * 4), Settings(batch_size=1)))


def test_a_caller_that_stops_leaves_no_thread_and_nothing_half_done():
    before, begun, ended = threading.active_count(), [], []

    def save(key, prediction):
        begun.append(key)
        time.sleep(0.01)
        ended.append(key)

    outcomes = predict_all(Brightness(), pictures([(20, 30)] * 200), Settings(batch_size=1), save)
    next(outcomes)
    outcomes.close()
    assert threading.active_count() == before
    assert sorted(begun) == sorted(ended) and len(ended) < 200


def test_only_a_few_pictures_are_in_memory():
    """However many there are, and however slowly they are saved."""
    read, saved, most = 0, 0, 0
    lock = threading.Lock()

    def reading():
        nonlocal read, most
        with lock:
            read += 1
            most = max(most, read - saved)
        return image(20, 30)

    def save(key, prediction):
        nonlocal saved
        time.sleep(0.002)
        with lock:
            saved += 1

    many = (Picture(index, reading) for index in range(300))
    assert sum(1 for _ in predict_all(Brightness(), many, Settings(batch_size=1), save)) == 300
    assert most <= 4 * stream.THREADS + 2
