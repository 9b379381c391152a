"""Sampler tables against diffusers' schedulers: timesteps for every step count, results over whole trajectories."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler

from marigold_jax.diffusion import samplers
from marigold_jax.diffusion.samplers import step
from marigold_jax.diffusion.scheduler_config import SchedulerConfig

MARIGOLD = {  # Marigold v1-0 as published; v1-1 adds trailing spacing and zero terminal SNR
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.30.2",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "timestep_spacing": "leading",
}
LCM = MARIGOLD | {"_class_name": "LCMScheduler", "original_inference_steps": 50, "timestep_scaling": 10.0}
SPACINGS = ("leading", "trailing", "linspace")
PREDICTION_TYPES = ("v_prediction", "epsilon", "sample")
STEP_COUNTS = (1, 2, 3, 4, 6, 7, 10, 50)
SHAPE = (1, 2, 3, 4)


def sampler_table(config, num_steps, **options):
    """The table of the contents of a scheduler_config.json."""
    return samplers.sampler_table(SchedulerConfig(config), num_steps, **options)


def random_outputs(num_steps):
    return np.random.default_rng(num_steps).standard_normal((num_steps + 1, *SHAPE), np.float32)


@jax.jit
def walk_rows(x, rows):
    def body(x, row):
        a, b, c, output, noise = row
        x = step(x, output, noise, a, b, c)
        return x, x

    return jax.lax.scan(body, x, rows)[1]


def walk(table, x, outputs, noises=None):
    """Runs a table as a pipeline does, in one compiled loop, and returns the latent after every step."""
    outputs = np.stack(outputs)
    noises = np.zeros_like(outputs) if noises is None else noises
    return walk_rows(x, (table.a, table.b, table.c, outputs, noises))


def assert_close(ours, theirs, tolerance=1e-5):
    """Relative to the largest value: where little signal is left, x0 is up to 125 times the noise it came from."""
    scale = max(1.0, np.abs(theirs).max())
    np.testing.assert_allclose(ours / scale, theirs / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("set_alpha_to_one", [False, True])
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddim_trajectories_equal_diffusers(spacing, kind, zero_snr, set_alpha_to_one):
    config = MARIGOLD | {
        "timestep_spacing": spacing,
        "prediction_type": kind,
        "rescale_betas_zero_snr": zero_snr,
        "set_alpha_to_one": set_alpha_to_one,
    }
    oracle = DDIMScheduler.from_config(config)
    for num_steps in STEP_COUNTS:
        oracle.set_timesteps(num_steps)
        if kind == "epsilon" and zero_snr and 999 in oracle.timesteps:
            with pytest.raises(ValueError, match=r"epsilon prediction cannot tell x0 at timestep \[999\]"):
                sampler_table(config, num_steps)
            continue
        x, *outputs = random_outputs(num_steps)
        theirs = [torch.from_numpy(x)]
        for t, output in zip(oracle.timesteps, outputs, strict=True):
            theirs.append(oracle.step(torch.from_numpy(output), t, theirs[-1]).prev_sample)
        table = sampler_table(config, num_steps)
        assert not table.c.any()
        # With sample prediction they divide by √(1 − ᾱ), whose float32 error is 6e-5 near t = 0, where ᾱ is almost 1.
        tolerance = 1e-4 if kind == "sample" else 1e-5
        assert_close(walk(table, x, outputs), torch.stack(theirs[1:]).numpy(), tolerance)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@pytest.mark.parametrize(
    "change", [{}, {"original_inference_steps": 100, "timestep_scaling": 0.01}], ids=["", "scaled"]
)
def test_lcm_trajectories_equal_diffusers(kind, zero_snr, change):
    """Marigold LCM's own scaling of 10 leaves c_skip under 3e-9; a scaling of 0.01 makes it matter."""
    config = LCM | {"prediction_type": kind, "rescale_betas_zero_snr": zero_snr} | change
    oracle = LCMScheduler.from_config(config)
    for num_steps in STEP_COUNTS:
        if kind == "epsilon" and zero_snr:
            with pytest.raises(ValueError, match=r"epsilon prediction cannot tell x0 at timestep \[999\]"):
                sampler_table(config, num_steps)
            continue
        oracle.set_timesteps(num_steps)
        x, *outputs = random_outputs(num_steps)
        generator = torch.Generator().manual_seed(num_steps)
        theirs = [torch.from_numpy(x)]
        for t, output in zip(oracle.timesteps, outputs, strict=True):
            theirs.append(oracle.step(torch.from_numpy(output), t, theirs[-1], generator=generator).prev_sample)
        generator.manual_seed(num_steps)
        noises = torch.stack([torch.randn(SHAPE, generator=generator) for _ in outputs]).numpy()
        table = sampler_table(config, num_steps)
        assert table.c[:-1].all() and table.c[-1] == 0
        assert_close(walk(table, x, outputs, noises), torch.stack(theirs[1:]).numpy())


@pytest.mark.parametrize(("spacing", "offset"), [("leading", 0), ("leading", 1), ("trailing", 1), ("linspace", 1)])
def test_ddim_timesteps_equal_diffusers_for_every_step_count(spacing, offset):
    config = MARIGOLD | {"timestep_spacing": spacing, "steps_offset": offset}
    oracle = DDIMScheduler.from_config(config)
    mended = []
    for num_steps in range(1, 1001):
        oracle.set_timesteps(num_steps)
        theirs = oracle.timesteps.numpy()
        if spacing == "leading" and offset == 1 and num_steps == 1000:
            assert theirs[0] == 1000  # one past diffusers' own table
            with pytest.raises(ValueError, match="steps_offset=1 puts the first of 1000 steps at timestep 1000"):
                sampler_table(config, num_steps)
            continue
        if theirs[-1] == -1:
            mended.append(num_steps)
            theirs = theirs[:-1]
        ours = sampler_table(config, num_steps).timesteps
        assert ours.dtype == np.int32 and len(ours) == num_steps
        np.testing.assert_array_equal(ours, theirs, err_msg=f"{num_steps} steps")
    # diffusers' trailing spacing runs one step too many for these, at t = -1.
    assert mended[:5] == ([61, 103, 121, 122, 201] if spacing == "trailing" else [])


def test_mended_step_count_takes_the_same_path_as_diffusers_until_its_stray_step():
    config = MARIGOLD | {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    oracle = DDIMScheduler.from_config(config)
    oracle.set_timesteps(61)
    x, *outputs = random_outputs(61)
    theirs = torch.from_numpy(x)
    for t, output in zip(oracle.timesteps[:-1], outputs, strict=True):
        theirs = oracle.step(torch.from_numpy(output), t, theirs).prev_sample
    assert_close(walk(sampler_table(config, 61), x, outputs)[-1], theirs.numpy())


@pytest.mark.parametrize("grid", [50, 100, 7, 1000])
def test_lcm_timesteps_equal_diffusers_for_every_step_count(grid):
    config = LCM | {"original_inference_steps": grid}
    oracle = LCMScheduler.from_config(config)
    for num_steps in range(1, grid + 1):
        oracle.set_timesteps(num_steps)
        np.testing.assert_array_equal(sampler_table(config, num_steps).timesteps, oracle.timesteps)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MARIGOLD, {1: [1], 4: [751, 501, 251, 1], 10: [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]}),
        (
            MARIGOLD | {"timestep_spacing": "trailing"},
            {1: [999], 2: [999, 499], 3: [999, 666, 332], 4: [999, 749, 499, 249]},
        ),
        (LCM, {1: [999], 2: [999, 499], 3: [999, 679, 339], 4: [999, 759, 499, 259]}),
    ],
    ids=["leading", "trailing", "lcm"],
)
def test_published_timesteps(config, expected):
    assert {n: sampler_table(config, n).timesteps.tolist() for n in expected} == expected


def test_default_last_step_keeps_three_percent_of_the_noise():
    """With a perfect network the last step returns √.99915 · x0 + √.00085 · noise."""
    table = sampler_table(MARIGOLD | {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}, 1)
    x0, noise = 0.5, -2.0  # at t=999 of this schedule, x_t = noise and v = -x0
    np.testing.assert_allclose(table.a * noise - table.b * x0, 0.99957490 * x0 + 0.0291550 * noise, rtol=1e-5)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("num_steps", [1, 2, 6, 10])
def test_final_x0_ends_in_pred_original_sample(num_steps, spacing):
    config = MARIGOLD | {"timestep_spacing": spacing}
    oracle = DDIMScheduler.from_config(config)
    oracle.set_timesteps(num_steps)
    x, *outputs = random_outputs(num_steps)
    theirs = torch.from_numpy(x)
    for t, output in zip(oracle.timesteps, outputs, strict=True):
        result = oracle.step(torch.from_numpy(output), t, theirs)
        theirs = result.prev_sample
    ours = walk(sampler_table(config, num_steps, final_x0=True), x, outputs)
    assert_close(ours[-1], result.pred_original_sample.numpy())
    np.testing.assert_array_equal(ours[:-1], walk(sampler_table(config, num_steps), x, outputs)[:-1])


def test_end_to_end_fine_tuned_single_step_scales_the_output():
    """From zeros, one step of the base schedule is x0 = −√(1 − .0046601) · v."""
    table = sampler_table(MARIGOLD | {"timestep_spacing": "trailing"}, 1, final_x0=True)
    np.testing.assert_allclose(table.b, [-0.9976672], rtol=1e-6)


def test_final_x0_changes_nothing_for_lcm():
    for ours, theirs in zip(sampler_table(LCM, 4, final_x0=True), sampler_table(LCM, 4), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("class_name", ["DDPMScheduler", "PNDMScheduler"])
def test_other_classes_are_sampled_as_ddim(class_name):
    config = MARIGOLD | {"timestep_spacing": "trailing", "variance_type": "fixed_small"}
    for ours, theirs in zip(
        sampler_table(config | {"_class_name": class_name}, 4), sampler_table(config, 4), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_step_takes_python_numbers_no_noise_and_bfloat16():
    x, output = jnp.ones(SHAPE), jnp.ones(SHAPE, jnp.bfloat16)
    result = step(x, output, None, 2.0, -0.5, 0.0)
    assert result.dtype == jnp.float32
    np.testing.assert_array_equal(result, np.full(SHAPE, 1.5))
    np.testing.assert_array_equal(step(x, x, x, np.float32(2), np.float32(3), np.float32(4)), np.full(SHAPE, 9.0))


@pytest.mark.parametrize(
    ("change", "num_steps", "message"),
    [
        ({"_class_name": "EulerDiscreteScheduler"}, 4, "_class_name is 'EulerDiscreteScheduler', expected one of"),
        ({"eta": 1.0, "sigma": 2}, 4, r"unknown keys \['eta', 'sigma'\]"),
        ({"clip_sample": True}, 4, "clip_sample=True is not supported"),
        ({"thresholding": True}, 4, "thresholding=True is not supported"),
        ({"variance_type": "learned"}, 4, "variance_type='learned' is not supported"),
        ({"timestep_spacing": "karras"}, 4, "timestep_spacing is 'karras', expected one of"),
        ({"prediction_type": "flow"}, 4, "prediction_type is 'flow', expected one of"),
        ({}, 0, r"expected 1 <= num_steps <= 1000 \(num_train_timesteps\), got 0"),
        ({}, 1001, "got 1001"),
        ({"_class_name": "LCMScheduler"}, 51, "num_steps <= original_inference_steps <= .* got 51, 50 and 1000"),
        ({"_class_name": "LCMScheduler", "original_inference_steps": 2000}, 4, "got 4, 2000 and 1000"),
    ],
)
def test_refuses(change, num_steps, message):
    with pytest.raises(ValueError, match=message):
        sampler_table(MARIGOLD | change, num_steps)


def test_a_default_that_is_refused_says_where_it_comes_from():
    silent = {key: value for key, value in MARIGOLD.items() if key != "clip_sample"}
    with pytest.raises(ValueError, match=r"clip_sample=True \(diffusers' default, as the file does not say\)"):
        sampler_table(silent, 4)
    sampler_table(silent | {"_class_name": "LCMScheduler"}, 4)  # LCM's default is False
