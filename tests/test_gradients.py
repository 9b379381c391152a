"""Gradients at what a network can emit: constants, zeros, saturated pixels, one valid pixel, none."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marigold_jax import losses
from marigold_jax.ensemble import ensemble_depth, ensemble_normals
from marigold_jax.gradients import arc_cosine, leading_eigenvector, length, square_root
from marigold_jax.modality import MODALITIES
from marigold_jax.objectives.autoencoder import edge_error
from marigold_jax.objectives.end_to_end import JUDGEMENTS, UNITS

SHAPE = (2, 6, 8)
RANDOM = np.random.default_rng(0)
UNIT = RANDOM.normal(size=(*SHAPE, 3))
UNIT = (UNIT / np.linalg.norm(UNIT, axis=-1, keepdims=True)).astype(np.float32)


def one_zero():
    pixels = RANDOM.uniform(-1, 1, (*SHAPE, 3)).astype(np.float32)
    pixels[0, 2, 3] = 0
    return pixels


PIXELS = {  # decoded
    "ordinary": lambda: RANDOM.uniform(-1, 1, (*SHAPE, 3)).astype(np.float32),
    "one zero": one_zero,
    "zero": lambda: np.zeros((*SHAPE, 3), np.float32),
    "constant": lambda: np.full((*SHAPE, 3), 0.7, np.float32),
    "saturated": lambda: np.where(RANDOM.random((*SHAPE, 3)) < 0.5, -1.0, 1.0).astype(np.float32),
    "all at one end": lambda: np.ones((*SHAPE, 3), np.float32),
    "far outside": lambda: RANDOM.normal(size=(*SHAPE, 3)).astype(np.float32) * 1e4,
    "tiny": lambda: RANDOM.normal(size=(*SHAPE, 3)).astype(np.float32) * 1e-30,
    "right": lambda: UNIT.copy(),
    "right and long": lambda: UNIT * np.float32(1e4),
    "upside down": lambda: -UNIT * np.float32(1e4),
    "along an axis": lambda: np.broadcast_to(np.float32([0, 0, 1]), (*SHAPE, 3)).copy(),
}
MASKS = {
    "all": np.ones((*SHAPE, 1), bool),
    "some": RANDOM.random((*SHAPE, 1)) < 0.5,
    "one": np.arange(np.prod(SHAPE)).reshape(*SHAPE, 1) == 19,  # row 2, column 3 of the first
    "all but one": np.arange(np.prod(SHAPE)).reshape(*SHAPE, 1) != 19,
    "none": np.zeros((*SHAPE, 1), bool),
}


def finite(function, x):
    value, gradient = jax.value_and_grad(function)(jnp.asarray(x))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    return gradient


def batch_of(mask):
    batch = {
        "rgb": np.zeros((*SHAPE, 3), np.float32),
        "target": UNIT[..., :1],
        "normals": np.where(mask, UNIT, 0),
        "mask": mask,
        "depth": np.where(mask, np.float32(2), np.float32(0)),
        "span": np.float32([3.0, 40.0]),
    }
    return {key: jnp.asarray(value) for key, value in batch.items()}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", PIXELS)
def test_end_to_end_losses_have_gradients_everywhere(kind, mask):
    pixels, mask = PIXELS[kind](), MASKS[mask]
    batch = batch_of(mask)
    for target, units in (("normals", None), *(("depth", units) for units in UNITS)):
        judgement, truth = JUDGEMENTS[target], batch["normals" if target == "normals" else "target"]
        weight = None if units is None else UNITS[units](batch)

        def loss(pixels, judgement=judgement, truth=truth, weight=weight):
            read = judgement.read(pixels, batch)
            other = judgement.read(pixels * 1.0, batch)  # members that agree in all
            return judgement.distance(read, jnp.asarray(truth), batch, weight) - judgement.distance(
                read, other, batch, weight
            )

        gradient = finite(loss, pixels)
        if target == "normals":
            assert not np.asarray(gradient)[~mask[..., 0]].any()  # what is not valid teaches nothing


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", PIXELS)
def test_losses_of_latents_have_gradients_everywhere(kind, mask):
    x, mask, truth = PIXELS[kind](), jnp.asarray(MASKS[mask]), jnp.asarray(UNIT)
    finite(lambda x: losses.masked_mse(x, truth, mask), x)
    finite(lambda x: losses.masked_mse(x, jnp.asarray(x), mask), x)
    finite(lambda x: losses.masked_pseudo_huber(x, truth, mask, 1e-3), x)
    finite(lambda x: losses.masked_pseudo_huber(x, jax.lax.stop_gradient(x), mask, 1e-3), x)
    finite(lambda x: jnp.sum(losses.scale_and_shift(x, truth, mask)[0]), x)
    finite(lambda x: edge_error(x - truth), x)


def test_what_is_masked_may_be_anything():
    mask = jnp.asarray(MASKS["all but one"])
    for garbage in (np.nan, np.inf, -np.inf):
        x = PIXELS["ordinary"]()
        x[0, 2, 3] = garbage
        truth = UNIT.copy()
        truth[0, 2, 3] = garbage
        for loss in (losses.masked_mse, partial(losses.masked_pseudo_huber, c=1e-3)):
            finite(lambda x, loss=loss, truth=truth: loss(x, jnp.asarray(truth), mask), x)
        finite(lambda x, truth=truth: jnp.sum(losses.scale_and_shift(x, jnp.asarray(truth), mask)[0]), x)


@pytest.mark.parametrize("kind", PIXELS)
@pytest.mark.parametrize("name", MODALITIES)
def test_predictions_have_gradients_everywhere(kind, name):
    modality = MODALITIES[name]
    for stretch in (False, True):
        traits = {**modality.traits, "_stretch": stretch}

        def summed(pixels, traits=traits):
            maps = modality.from_pixels(pixels, traits)
            return jnp.sum(modality.alone(maps, jnp.ones(SHAPE, bool), traits) ** 2)

        finite(summed, PIXELS[kind]())


@pytest.mark.parametrize("reduction", ["closest", "mean"])
@pytest.mark.parametrize("case", ["ordinary", "zero", "equal", "opposite"])
def test_merged_normals_have_gradients_everywhere(case, reduction):
    maps = {
        "ordinary": UNIT,
        "zero": UNIT * 0,
        "equal": np.stack([UNIT[0]] * 2),
        "opposite": np.stack([UNIT[0], -UNIT[0]]),
    }
    finite(lambda maps: sum(map(jnp.sum, ensemble_normals(maps, reduction=reduction))), maps[case])


@pytest.mark.parametrize("method", ["eigen", "bfgs"])
@pytest.mark.parametrize("reduction", ["median", "mean"])
def test_merged_depth_has_gradients_everywhere(reduction, method):
    def merged(maps):
        return sum(map(jnp.sum, ensemble_depth(maps, method=method, reduction=reduction)))

    first = RANDOM.random((1, 6, 8)).astype(np.float32)
    cases = {
        "ordinary": RANDOM.random((4, 6, 8)).astype(np.float32),
        "equal": np.repeat(first, 4, axis=0),
        "constant": np.full((4, 6, 8), 0.7, np.float32),
        "zero": np.zeros((4, 6, 8), np.float32),
        "one constant": np.concatenate([first, first**2, first * 0 + 0.5, first]),
        "opposite": np.concatenate([first, 1 - first, first, 1 - first]),
    }
    gradient = jax.jit(jax.value_and_grad(merged))
    for name, maps in cases.items():
        assert all(np.isfinite(found).all() for found in gradient(jnp.asarray(maps))), name


def test_values_are_those_of_numpy_and_nan_stays():
    x = np.float32([0, 1e-30, 0.25, 2, np.inf])
    np.testing.assert_array_equal(square_root(jnp.asarray(x)), np.sqrt(x))
    cosines = np.float32([-1.0000001, -1, -0.3, 0, 0.99999994, 1, 1.0000001])
    np.testing.assert_array_equal(arc_cosine(jnp.asarray(cosines)), jnp.arccos(jnp.clip(cosines, -1, 1)))
    np.testing.assert_allclose(length(jnp.asarray(UNIT)), 1, atol=1e-6)
    nan = jnp.full(3, jnp.nan)
    assert np.isnan(square_root(nan)).all() and np.isnan(arc_cosine(nan)).all() and np.isnan(length(nan)).all()


def test_the_gradient_of_an_eigenvector_is_that_of_jax():
    matrix = RANDOM.normal(size=(5, 5))
    matrix = jnp.asarray(matrix + matrix.T, jnp.float32)
    weights = jnp.asarray(RANDOM.normal(size=5), jnp.float32)
    ours, theirs = (
        jax.grad(lambda matrix, vector=vector: jnp.dot(weights, vector(matrix)) ** 2)(matrix)
        for vector in (leading_eigenvector, lambda matrix: jnp.linalg.eigh(matrix)[1][:, -1])
    )
    np.testing.assert_allclose(ours, (theirs + theirs.T) / 2, atol=1e-5)
