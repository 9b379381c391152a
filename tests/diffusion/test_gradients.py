"""Gradients at what a network can emit: constants, zeros, saturated pixels, one valid pixel, none."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marigold_jax.diffusion import losses
from marigold_jax.diffusion.gradients import arc_cosine, leading_eigenvector, length, square_root
from marigold_jax.ensemble import ensemble_depth, ensemble_normals
from marigold_jax.inference.modality import MODALITIES
from marigold_jax.training.objectives.autoencoder import edge_error
from marigold_jax.training.objectives.end_to_end import UNITS
from marigold_jax.training.targets import TARGETS

SHAPE = (2, 8, 8)
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


def assert_finite(found, *case):
    for number, (value, gradient) in enumerate(found):
        assert np.isfinite(value), (*case, number)
        assert np.isfinite(gradient).all(), (*case, number)


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


@pytest.mark.parametrize("target, units", [("normals", "metres"), *(("depth", units) for units in UNITS)])
def test_end_to_end_losses_have_gradients_everywhere(target, units):
    modality = TARGETS[target]

    def loss(pixels, batch, apart):
        weight = UNITS[units](batch) if modality.has_units else None
        read = modality.from_pixels(pixels, batch)
        truth = batch[modality.key]
        one = modality.distance(read, truth, batch, weight)
        # Members that are all the same.
        return one - apart * modality.distance(read, modality.from_pixels(pixels * 1.0, batch), batch, weight)

    gradient = jax.jit(jax.value_and_grad(loss))
    for kind, make in PIXELS.items():
        for name, mask in MASKS.items():
            for apart in (0.0, 0.5):
                found = gradient(jnp.asarray(make()), batch_of(mask), apart)
                assert_finite([found], kind, name, apart)
                if target == "normals":  # what is not valid teaches nothing
                    assert not np.asarray(found[1])[~mask[..., 0]].any()


def test_losses_of_latents_have_gradients_everywhere():
    huber = partial(losses.masked_pseudo_huber, c=1e-3)
    functions = [
        losses.masked_mse,
        huber,
        lambda x, truth, mask: losses.masked_mse(x, jax.lax.stop_gradient(x), mask),
        lambda x, truth, mask: huber(x, jax.lax.stop_gradient(x), mask),
        lambda x, truth, mask: jnp.sum(losses.scale_and_shift(x, truth, mask)[0]),
        lambda x, truth, mask: edge_error(x - truth),
    ]
    gradients = jax.jit(lambda *inputs: [jax.value_and_grad(function)(*inputs) for function in functions])
    for kind, make in PIXELS.items():
        for name, mask in MASKS.items():
            assert_finite(gradients(jnp.asarray(make()), jnp.asarray(UNIT), jnp.asarray(mask)), kind, name)
    for garbage in (np.nan, np.inf, -np.inf):  # where the mask is False, anything may be
        x, truth = PIXELS["ordinary"](), UNIT.copy()
        x[0, 2, 3] = truth[0, 2, 3] = garbage
        inputs = (jnp.asarray(x), jnp.asarray(truth), jnp.asarray(MASKS["all but one"]))
        assert_finite(gradients(*inputs)[:5], garbage)


@pytest.mark.parametrize("name", MODALITIES)
def test_predictions_have_gradients_everywhere(name):
    modality = MODALITIES[name]

    def summed(pixels, stretch):
        traits = {**modality.traits, "stretch": stretch}
        maps = modality.from_pixels(pixels, traits)
        return jnp.sum(modality.alone(maps, jnp.ones(SHAPE, bool), traits) ** 2)

    gradients = jax.jit(lambda pixels: [jax.value_and_grad(summed)(pixels, stretch) for stretch in (False, True)])
    for kind, make in PIXELS.items():
        assert_finite(gradients(jnp.asarray(make())), kind)


@pytest.mark.parametrize("reduction", ["closest", "mean"])
def test_merged_normals_have_gradients_everywhere(reduction):
    maps = {
        "ordinary": UNIT,
        "zero": UNIT * 0,
        "equal": np.stack([UNIT[0]] * 2),
        "opposite": np.stack([UNIT[0], -UNIT[0]]),
    }
    gradient = jax.jit(jax.value_and_grad(lambda maps: sum(map(jnp.sum, ensemble_normals(maps, reduction=reduction)))))
    for name, case in maps.items():
        assert_finite([gradient(jnp.asarray(case))], name)


@pytest.mark.slow
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
        assert_finite([gradient(jnp.asarray(maps))], name)


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
