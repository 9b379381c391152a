"""The whole pipeline against diffusers': same weights, same photographs, same initial latents."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from PIL import Image

from marigold_jax import Marigold
from marigold_jax.data.resample import METHODS
from marigold_jax.ensemble import ensemble_depth
from marigold_jax.inference.program import denoise, member_keys

TOLERANCE = 1e-4  # absolute, of depth in [0, 1] and of unit normals


def photograph(height, width, seed=0):
    """Smooth shapes and a little noise, uint8."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    random = np.random.default_rng(seed)
    waves = [np.sin(7 * x * random.uniform(0.5, 2) + 5 * y * random.uniform(-1, 1) + c) for c in range(3)]
    image = np.stack(waves, axis=-1) * 100 + 128 + random.normal(size=(height, width, 3)) * 10
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """diffusers' pipeline and ours with the same weights, for (modality, scheduler)."""
    made = {}

    def make(modality="depth", scheduler="v1-1"):
        if (modality, scheduler) not in made:
            folder = tmp_path_factory.mktemp(f"{modality}-{scheduler}")
            theirs = oracle.pipeline(folder, modality, scheduler)
            theirs.save_pretrained(folder / "checkpoint")
            made[modality, scheduler] = theirs, Marigold.from_pretrained(folder / "checkpoint")
        return made[modality, scheduler]

    return make


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_is_not_cut_down_to_another(pair, seed):
    _, ours = pair()
    with pytest.raises(ValueError, match="seed: wanted a whole number from 0 to 4294967295"):
        ours(photograph(16, 16), seed=seed)


def latents_for(image, resolution, members, seed=0):
    width, height = image.size
    if resolution:
        height, width = (side * resolution // max(image.size) for side in (height, width))
    shape = (members, -(-height // 8), -(-width // 8), 4)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def run_both(theirs, ours, image, latents, **options):
    theirs_options = {key: value for key, value in options.items() if key != "seed"}
    wanted = theirs(image, latents=oracle.nchw(latents), output_latent=True, **theirs_options)
    found = ours(image, latents=latents, output_latent=True, **options)
    return wanted, found


def assert_same(found, wanted):
    np.testing.assert_allclose(found.prediction, np.clip(wanted.prediction, -1, 1), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(found.latent, oracle.nhwc(wanted.latent), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("steps", [1, 4, 10])
@pytest.mark.parametrize("scheduler", ["v1-0", "v1-1"])
def test_depth(pair, scheduler, steps):
    theirs, ours = pair("depth", scheduler)
    image = photograph(50, 70)  # resized to 45x64, padded to 48x64
    wanted, found = run_both(theirs, ours, image, latents_for(image, 64, 1), num_inference_steps=steps)
    assert found.prediction.shape == (1, 50, 70, 1)
    assert found.prediction.std() > 0.02  # a flat map would prove nothing
    assert_same(found, wanted)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("scheduler", ["v1-0", "v1-1"])
def test_normals(pair, scheduler, steps):
    theirs, ours = pair("normals", scheduler)
    image = photograph(70, 50)
    wanted, found = run_both(theirs, ours, image, latents_for(image, 64, 1), num_inference_steps=steps)
    assert found.prediction.shape == (1, 70, 50, 3)
    assert_same(found, wanted)


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_lcm_with_the_same_fresh_noise(pair, monkeypatch, steps):
    theirs, ours = pair("depth", "lcm")
    image, seed = photograph(50, 70), 3
    latents = latents_for(image, 64, 1)
    key, count = member_keys(jnp.uint32(seed), 1)[0], iter(range(1, 100))

    def noise(shape, **_):
        assert shape[0] == 1
        ours = jax.random.normal(jax.random.fold_in(key, next(count)), latents.shape[1:])
        return oracle.nchw(np.asarray(ours)[None])

    monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", noise)
    wanted, found = run_both(theirs, ours, image, latents, num_inference_steps=steps, seed=seed)
    assert_same(found, wanted)


@pytest.mark.parametrize("resolution", [0, 32, 64, 96])  # native, down, and up
@pytest.mark.parametrize("match", [True, False])
def test_resolutions(pair, resolution, match):
    theirs, ours = pair()
    image = photograph(43, 61)
    latents = latents_for(image, resolution, 1)
    wanted, found = run_both(
        theirs, ours, image, latents, processing_resolution=resolution, match_input_resolution=match
    )
    assert found.prediction.shape == wanted.prediction.shape
    assert_same(found, wanted)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(50, 70), (130, 90)])
def test_resampling_methods(pair, method, size):
    theirs, ours = pair()
    image = photograph(*size)
    options = {"resample_method_input": method, "resample_method_output": method}
    wanted, found = run_both(theirs, ours, image, latents_for(image, 64, 1), **options)
    # Bicubic output overshoots; ours keeps the promised range.
    np.testing.assert_allclose(found.prediction, np.clip(wanted.prediction, 0, 1), rtol=0, atol=TOLERANCE)


def test_each_member_of_an_ensemble(pair):
    theirs, ours = pair()
    image = photograph(50, 70)
    latents = latents_for(image, 64, 5)
    wanted, found = run_both(theirs, ours, image, latents, ensemble_size=5, batch_size=2, output_uncertainty=True)
    np.testing.assert_allclose(found.latent, oracle.nhwc(wanted.latent), rtol=0, atol=TOLERANCE)
    members = []
    for i in range(5):
        single = {"match_input_resolution": False}
        theirs_alone, ours_alone = run_both(theirs, ours, image, latents[i : i + 1], **single)
        assert_same(ours_alone, theirs_alone)
        members.append(ours_alone.prediction[0, ..., 0])
    depth, uncertainty = ensemble_depth(jnp.asarray(np.stack(members)))
    unmatched = ours(
        image,
        latents=latents,
        ensemble_size=5,
        batch_size=2,
        match_input_resolution=False,
        output_uncertainty=True,
    )
    np.testing.assert_allclose(unmatched.prediction[0, ..., 0], depth, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(unmatched.uncertainty[0, ..., 0], uncertainty, rtol=0, atol=TOLERANCE)
    assert found.uncertainty.shape == wanted.uncertainty.shape


@pytest.mark.parametrize("reduction", ["closest", "mean"])
def test_normals_ensemble(pair, reduction):
    theirs, ours = pair("normals")
    image = photograph(50, 70)
    options = {"ensemble_size": 5, "ensembling_kwargs": {"reduction": reduction}, "output_uncertainty": True}
    wanted, found = run_both(theirs, ours, image, latents_for(image, 64, 5), batch_size=3, **options)
    np.testing.assert_allclose(found.uncertainty, wanted.uncertainty, rtol=0, atol=TOLERANCE)
    difference = np.abs(found.prediction - wanted.prediction).max(axis=-1)
    if reduction == "closest":  # where two members are equally close, rounding decides between them
        assert np.mean(difference > TOLERANCE) < 2e-3
    else:
        assert difference.max() < TOLERANCE


@pytest.mark.parametrize(
    "convert",
    [
        np.asarray,
        lambda image: np.asarray(image).astype(np.float32) / 255,
        lambda image: np.asarray(image).astype(np.uint16) * 257,
        lambda image: np.asarray(image)[None],
        lambda image: [image],
    ],
    ids=["uint8", "float", "uint16", "batch", "list"],
)
def test_kinds_of_image(pair, convert):
    _, ours = pair()
    image = photograph(50, 70)
    np.testing.assert_allclose(ours(convert(image)).prediction, ours(image).prediction, rtol=0, atol=1e-5)


def test_a_photograph_is_predicted_alike_in_any_company(pair):
    _, ours = pair()
    images = [photograph(50, 70, seed=1), photograph(64, 40, seed=2), photograph(50, 70, seed=3)]
    alone = [ours(image, seed=7, ensemble_size=3, output_uncertainty=True, output_latent=True) for image in images]
    for batch_size in (1, 2, 6):
        options = {"output_uncertainty": True, "output_latent": True, "batch_size": batch_size}
        mixed = ours(images, seed=7, ensemble_size=3, **options)
        assert isinstance(mixed.prediction, list)
        for field in ("prediction", "uncertainty"):
            for i, single in enumerate(alone):
                np.testing.assert_allclose(getattr(mixed, field)[i], getattr(single, field)[0], rtol=0, atol=1e-5)
    same_size = ours([images[0], images[2]], seed=7)
    assert same_size.prediction.shape == (2, 50, 70, 1)
    assert np.abs(ours(images[0], seed=8).prediction - ours(images[0], seed=7).prediction).max() > 1e-3


def test_images_of_one_bucket_share_a_program(pair):
    _, ours = pair()
    ours(photograph(50, 70), bucket=64)
    compiled = denoise._cache_size()
    for size in ((64, 64), (40, 62), (300, 310)):
        result = ours(photograph(*size), bucket=64)
        assert result.prediction.shape == (1, *size, 1)
    assert denoise._cache_size() == compiled
    ours(photograph(48, 64))
    compiled = denoise._cache_size()
    ours(photograph(47, 64))  # another size, the same canvas
    assert denoise._cache_size() == compiled


def test_latents_come_back_in(pair):
    _, ours = pair()
    image = photograph(50, 70)
    first = ours(image, num_inference_steps=1, output_latent=True)
    again = ours(image, num_inference_steps=1, latents=0.9 * latents_for(image, 64, 1) + 0.1 * first.latent)
    assert again.prediction.shape == first.prediction.shape


def test_bfloat16(pair, tmp_path):
    folder = oracle.save_pipeline(tmp_path / "checkpoint")
    image = photograph(50, 70)
    with jax.numpy_dtype_promotion("standard"):
        half = Marigold.from_pretrained(folder, dtype="bfloat16")(image)
    whole = pair()[1](image)
    assert half.prediction.dtype == np.float32
    assert np.abs(half.prediction - whole.prediction).mean() < 0.02


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_inference_steps": 0}, "num_steps"),
        ({"ensemble_size": 0}, "ensemble_size 0"),
        ({"output_uncertainty": True}, "ensemble_size > 1"),
        ({"processing_resolution": 63}, "multiple of 8"),
        ({"processing_resolution": -8}, "multiple of 8"),
        ({"bucket": 12}, "multiple of 8"),
        ({"resample_method_input": "lanczos"}, "lanczos"),
        ({"latents": np.zeros((1, 3, 3, 4), np.float32)}, "latents: wanted shape"),
        ({"latents": np.zeros((2, 6, 8, 4), np.float32)}, "latents: wanted 1"),
    ],
)
def test_bad_arguments(pair, options, words):
    _, ours = pair()
    with pytest.raises(ValueError, match=words):
        ours(photograph(48, 64), **options)


def test_no_images(pair):
    with pytest.raises(ValueError, match="empty list"):
        pair()[1]([])


def test_default_steps_and_resolution_come_from_the_checkpoint(pair):
    _, ours = pair()
    assert (ours.default_denoising_steps, ours.default_processing_resolution) == (2, 64)
