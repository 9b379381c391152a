"""A wider VAE computes what the narrow one did, and its new channels can learn different things."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marigold_jax.models import functional
from marigold_jax.runs.base_model import ModelOptions
from marigold_jax.runs.start import start_from
from marigold_jax.training.objectives.autoencoder import autoencoder_objective
from marigold_jax.weights.growth import widen
from marigold_jax.weights.scratch import fresh_vae

NARROW = (8, 8, 16, 24)


@pytest.fixture(scope="module")
def narrow():
    """Every layer at work, with norms and biases that are nothing special."""
    part = fresh_vae(NARROW, seed=0)
    random = np.random.default_rng(0)
    params = {path: x + 0.1 * random.normal(size=x.shape) for path, x in sorted(part.params.items())}
    return type(part)(part.config, part.structure, {path: jnp.asarray(x, jnp.float32) for path, x in params.items()})


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(1)
    pictures = {"rgb": random.uniform(-1, 1, (2, 32, 48, 3)), "target": random.uniform(-1, 1, (2, 32, 48, 1))}
    return {key: jnp.asarray(x, jnp.float32) for key, x in pictures.items()}


@pytest.mark.slow
@pytest.mark.parametrize("widths", [(8, 8, 32, 48), (24, 24, 16, 24)])
def test_wider_is_the_same_function(narrow, batch, widths):
    outputs = []
    for part in (narrow, widen(narrow, widths)):
        vae = functional.merge(part.structure, part.params)
        latents = vae.encode(batch["rgb"])
        outputs.append((latents, vae.decode(latents)))
    for before, after in zip(*outputs, strict=True):
        np.testing.assert_allclose(before, after, atol=1e-5 * float(np.abs(before).max()))


@pytest.mark.slow
def test_copies_learn_different_things(narrow, batch):
    wide = widen(narrow, (8, 8, 16, 48))
    objective = autoencoder_objective(wide.structure, wide.structure, None)
    gradients = jax.grad(lambda params: objective(params, {}, batch, jax.random.key(0))[0])(wide.params)
    path = "encoder.down_blocks.3.resnets.0.conv1.kernel"
    first, second = gradients[path][..., 0::2], gradients[path][..., 1::2]
    assert np.linalg.norm(first - second) > 0.05 * np.linalg.norm(first)


@pytest.mark.parametrize("shapes_only", [False, True])
def test_a_run_may_start_from_a_wider_vae(shapes_only):
    start = start_from(ModelOptions("marigold-rooms", vae_widths=(16, 32, 128, 384)), shapes_only=shapes_only)
    assert start.vae.config.block_out_channels == (16, 32, 128, 384)
    assert start.vae.params["decoder.conv_in.kernel"].shape == (3, 3, 4, 384)


def test_what_cannot_be_widened_is_said(narrow):
    for widths, wanted in (
        (
            (8, 8, 16, 32),
            r"vae_widths=\(8, 8, 16, 32\): wanted multiples of \(8, 8, 16, 24\), the VAE's own, or \(\) to",
        ),
        ((8, 8, 16), "wanted multiples"),
        ((16, 8, 16, 24), "wanted adjacent widths to be equal exactly where"),
        ((16, 16, 16, 24), "wanted adjacent widths to be equal exactly where"),
    ):
        with pytest.raises(ValueError, match=wanted):
            widen(narrow, widths)
    assert widen(narrow, NARROW) is narrow
