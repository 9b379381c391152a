"""Learning a VAE: what its loss measures, and that a run of it goes down, is judged and exported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marigold_jax.data.primitives import Primitives
from marigold_jax.evaluation.image_metrics import psnr
from marigold_jax.models import functional
from marigold_jax.training import validation
from marigold_jax.training.objectives.autoencoder import autoencoder_objective, edge_error
from marigold_jax.weights.scratch import scratch


def test_edge_error_equals_numpy():
    error = np.random.default_rng(0).normal(size=(2, 8, 12, 3))
    want, image = 0.0, error
    for _ in range(3):
        want += np.abs(image[:, 1:] - image[:, :-1]).mean() + np.abs(image[:, :, 1:] - image[:, :, :-1]).mean()
        image = (image[:, ::2, ::2] + image[:, 1::2, ::2] + image[:, ::2, 1::2] + image[:, 1::2, 1::2]) / 4
    np.testing.assert_allclose(edge_error(jnp.float32(error)), want, rtol=1e-5)


def test_psnr_of_a_known_error():
    truth = np.zeros((4, 4, 3), np.float32)
    assert psnr(truth + 0.1, truth) == pytest.approx(20, abs=1e-4)
    assert psnr(truth + 0.1, truth, peak=2.0) == pytest.approx(20 + 20 * np.log10(2), abs=1e-4)
    assert psnr(truth, truth) == float("inf")


@pytest.mark.slow
def test_the_loss_is_what_its_parts_add_up_to():
    base = scratch((16, 16), 4)  # its VAE paints every cell in its mean colour
    random = np.random.default_rng(0)
    batch = {
        "rgb": random.uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32),
        "target": random.uniform(-1, 1, (2, 16, 24, 1)).astype(np.float32),
    }
    weights = {"decibels": 0.1, "absolute": 0.3, "edges": 0.7, "latents": 0.2, "noise": 0.0}
    losses = {}
    for remat in ("none", "blocks"):
        objective = autoencoder_objective(base.unet.structure, base.vae.structure, None, remat=remat, **weights)
        losses[remat], metrics = objective(base.vae.params, {}, batch, jax.random.key(0))
    pixels = np.concatenate([batch["rgb"], np.repeat(batch["target"], 3, -1)]).astype(np.float64)
    cells = pixels.reshape(4, 4, 4, 6, 4, 3).mean((2, 4))
    error = np.repeat(np.repeat(cells, 4, 1), 4, 2) - pixels
    z = 2 * cells  # the scaling factor
    spread = np.mean(z.mean((0, 1, 2)) ** 2) + np.mean((z.std((0, 1, 2)) - 1) ** 2)
    edges = float(edge_error(jnp.float32(error)))
    decibels = -10 * np.log10(np.mean(error**2, (1, 2, 3)) / 4)
    want = np.mean(error**2) - 0.1 * np.mean(decibels) + 0.3 * np.mean(np.abs(error)) + 0.7 * edges + 0.2 * spread
    np.testing.assert_allclose([losses["none"], losses["blocks"]], want, rtol=2e-3)  # the VAE is exact to 0.1 %
    of_each = [psnr(picture + wrong, picture, peak=2.0) for picture, wrong in zip(pixels[:2], error[:2], strict=True)]
    np.testing.assert_allclose(metrics["psnr"], np.mean(of_each), atol=0.02)


@pytest.mark.slow
def test_a_fresh_vae_has_the_shape_that_was_asked_for():
    base = scratch((16, 32), 8, vae_widths=(8, 8, 16, 16))
    vae = functional.merge(base.vae.structure, base.vae.params)
    latents = vae.encode(jnp.zeros((1, 32, 48, 3)))
    assert latents.shape == (1, 4, 6, 4) and vae.decode(latents).shape == (1, 32, 48, 3)
    assert base.unet.config.in_channels == 8 and base.unet.config.out_channels == 4
    with pytest.raises(ValueError, match="wanted multiples of 8, 4 of them"):
        scratch((16, 32), 8, vae_widths=(8, 8))


def test_reconstructions_are_judged_beside_their_panel():
    examples = [Primitives(2, (32, 48))[i] for i in range(2)]
    scores, panel = validation.reconstruct(scratch((16, 16), 4), examples)
    assert scores.keys() == {"abs_rel", "delta1", "psnr"}
    assert 0 < scores["abs_rel"] < 0.2 and 15 < scores["psnr"] < 40
    assert panel.dtype == np.uint8 and panel.shape[2] == 3
