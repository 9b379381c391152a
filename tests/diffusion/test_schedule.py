"""The noise schedule against diffusers' DDIM and DDPM schedulers and against published constants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from marigold_jax.diffusion.schedule import NoiseSchedule
from marigold_jax.diffusion.scheduler_config import SchedulerConfig

STABLE_DIFFUSION_2 = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.8.0",
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
}
PREDICTION_TYPES = ("v_prediction", "epsilon", "sample")
T = jnp.array([0, 1, 499, 998, 999])


def latents(*shape_and_seed):
    *shape, seed = shape_and_seed
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def as_torch(array):
    return torch.tensor(np.asarray(array))


def test_published_alphas_without_rescaling():
    alphas = NoiseSchedule.from_config(SchedulerConfig(STABLE_DIFFUSION_2)).alphas_cumprod
    expected = [0.99914998, 0.8954625, 0.6754323, 0.2776695, 0.0566234, 0.0047167, 0.0046601]
    np.testing.assert_allclose(alphas[[0, 99, 249, 499, 749, 998, 999]], expected, rtol=1e-5)


def test_published_alphas_with_zero_terminal_snr():
    config = SchedulerConfig(STABLE_DIFFUSION_2 | {"rescale_betas_zero_snr": True})
    alphas = NoiseSchedule.from_config(config).alphas_cumprod
    np.testing.assert_allclose(alphas[[0, 249, 499, 749]], [0.9991499, 0.6541889, 0.2423591, 0.0331714], rtol=1e-5)
    np.testing.assert_allclose(alphas[998], 1.97e-7, rtol=2e-3)
    assert alphas[999] == 0.0


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"beta_schedule": "linear"},
        {"num_train_timesteps": 137},
        {"trained_betas": np.linspace(1e-3, 0.9, 17).tolist(), "num_train_timesteps": 17},
    ],
    ids=["scaled_linear", "linear", "137 timesteps", "trained_betas"],
)
def test_alphas_equal_diffusers_to_1e_6(change):
    """Theirs is a float32 cumulative product: 9.3e-7 relative at most for Stable Diffusion 2."""
    config = STABLE_DIFFUSION_2 | change
    ours = NoiseSchedule.from_config(SchedulerConfig(config)).alphas_cumprod
    theirs = DDIMScheduler.from_config(config).alphas_cumprod.double().numpy()
    np.testing.assert_allclose(theirs, ours, rtol=1e-6, atol=1e-10)
    ours = NoiseSchedule.from_config(SchedulerConfig(config | {"rescale_betas_zero_snr": True})).alphas_cumprod
    theirs = DDIMScheduler.from_config(config, rescale_betas_zero_snr=True).alphas_cumprod.double().numpy()
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-6)
    # Near the end their float32 cancels; this is the price they pay, not we.
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-8)
    assert theirs[-1] == ours[-1] == 0.0


def test_silent_keys_mean_what_diffusers_means():
    for scheduler_class in ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler"):
        config = SchedulerConfig({"_class_name": scheduler_class})
        assert {key: getattr(config, key) for key in DDIMScheduler().config if hasattr(config, key)} == {
            key: value for key, value in DDIMScheduler().config.items() if not key.startswith("_")
        }


@pytest.mark.parametrize("zero_snr", [False, True])
def test_add_noise_and_velocity_equal_diffusers(zero_snr):
    x0, noise = latents(5, 3, 4, 2, 0), latents(5, 3, 4, 2, 1)
    config = STABLE_DIFFUSION_2 | {"rescale_betas_zero_snr": zero_snr}
    schedule = NoiseSchedule.from_config(SchedulerConfig(config))
    oracle = DDPMScheduler.from_config(config)
    arguments = as_torch(x0), as_torch(noise), torch.tensor(T.tolist())
    for ours, theirs in (
        (schedule.add_noise, oracle.add_noise(*arguments)),
        (schedule.velocity, oracle.get_velocity(*arguments)),
    ):
        np.testing.assert_allclose(jax.jit(ours)(x0, noise, T), theirs, atol=5e-6)


def test_target_follows_the_prediction_type():
    x0, noise = jnp.asarray(latents(5, 3, 4, 2, 0)), jnp.asarray(latents(5, 3, 4, 2, 1))
    configs = {kind: STABLE_DIFFUSION_2 | {"prediction_type": kind} for kind in PREDICTION_TYPES}
    schedules = {kind: NoiseSchedule.from_config(SchedulerConfig(config)) for kind, config in configs.items()}
    np.testing.assert_array_equal(schedules["sample"].target(x0, noise, T), x0)
    np.testing.assert_array_equal(schedules["epsilon"].target(x0, noise, T), noise)
    velocity = schedules["v_prediction"].velocity(x0, noise, T)
    np.testing.assert_array_equal(schedules["v_prediction"].target(x0, noise, T), velocity)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_predict_x0_equals_diffusers(kind, zero_snr):
    x_t, output = jnp.asarray(latents(5, 3, 4, 2, 2)), jnp.asarray(latents(5, 3, 4, 2, 3))
    config = STABLE_DIFFUSION_2 | {"prediction_type": kind, "rescale_betas_zero_snr": zero_snr}
    schedule = NoiseSchedule.from_config(SchedulerConfig(config))
    if kind == "epsilon" and zero_snr:
        with pytest.raises(ValueError, match=r"epsilon prediction cannot tell x0 at timestep \[999\]"):
            schedule.predict_x0(x_t, output, T)
        return
    oracle = DDIMScheduler.from_config(config)
    oracle.set_timesteps(1000)
    steps = [oracle.step(as_torch(output[i]), t, as_torch(x_t[i])) for i, t in enumerate(T.tolist())]
    theirs = torch.stack([step.pred_original_sample for step in steps])
    np.testing.assert_allclose(schedule.predict_x0(x_t, output, T), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_predictions_recover_what_the_target_was_made_of(kind):
    x0, noise = jnp.asarray(latents(5, 3, 4, 2, 4)), jnp.asarray(latents(5, 3, 4, 2, 5))
    schedule = NoiseSchedule.from_config(SchedulerConfig(STABLE_DIFFUSION_2 | {"prediction_type": kind}))
    x_t, output = schedule.add_noise(x0, noise, T), schedule.target(x0, noise, T)
    # Dividing by √ᾱ = 0.07 or √(1 − ᾱ) = 0.03 loses one digit or two.
    np.testing.assert_allclose(schedule.predict_x0(x_t, output, T), x0, atol=2e-5)
    np.testing.assert_allclose(schedule.predict_noise(x_t, output, T), noise, atol=2e-5)


def test_zero_terminal_snr_ends_in_pure_noise():
    x0, noise = jnp.asarray(latents(1, 3, 4, 2, 0)), jnp.asarray(latents(1, 3, 4, 2, 1))
    schedule = NoiseSchedule.from_config(SchedulerConfig(STABLE_DIFFUSION_2 | {"rescale_betas_zero_snr": True}))
    last = jnp.array([999])
    np.testing.assert_array_equal(schedule.add_noise(x0, noise, last), noise)
    np.testing.assert_array_equal(schedule.target(x0, noise, last), -x0)
    np.testing.assert_array_equal(schedule.predict_x0(noise, -x0, last), x0)


def test_bfloat16_comes_in_and_float32_goes_out():
    schedule = NoiseSchedule.from_config(SchedulerConfig(STABLE_DIFFUSION_2))
    x0, noise = jnp.asarray(latents(5, 3, 4, 2, 0)), jnp.asarray(latents(5, 3, 4, 2, 1)).astype(jnp.bfloat16)
    out = schedule.add_noise(x0, noise, T)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, schedule.add_noise(x0, noise.astype(jnp.float32), T))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "EulerDiscreteScheduler"}, r"_class_name is 'EulerDiscreteScheduler', expected one of .*DDIM"),
        ({"_class_name": None}, "_class_name is None"),
        ({"beta_strat": 0.1, "eta": 0.5}, r"unknown keys \['beta_strat', 'eta'\]"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule is 'squaredcos_cap_v2', expected one of"),
        ({"prediction_type": "flow"}, "prediction_type is 'flow', expected one of"),
        ({"beta_end": 12.0}, r"betas, at least two, all in \(0, 1\]"),
        ({"trained_betas": [0.1, 0.2]}, r"num_train_timesteps=1000 betas.*got shape \(2,\)"),
        ({"num_train_timesteps": 1}, "at least two"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps = 1000000000: wanted a whole number from 1 to 100000"),
        ({"num_train_timesteps": "1000"}, "num_train_timesteps = '1000': wanted a whole number"),
        ({"num_train_timesteps": True}, "num_train_timesteps = True: wanted a whole number"),
        ({"beta_start": -0.1}, "beta_start = -0.1: wanted a number"),
        ({"beta_start": float("nan")}, "beta_start = nan: wanted a number"),
        ({"beta_end": None}, "beta_end = None: wanted a number"),
        ({"trained_betas": "0.1"}, "trained_betas = '0.1': wanted a list"),
        ({"trained_betas": [[0.1]] * 1000}, r"trained_betas = \[\[0.1\], "),
        ({"steps_offset": -1}, "steps_offset = -1: wanted a whole number"),
        ({"clip_sample": "no"}, "clip_sample = 'no': wanted true or false"),
        ({"_class_name": ["DDIMScheduler"]}, r"_class_name = \['DDIMScheduler'\]: wanted text or null"),
        (
            {"beta_start": 1e-30, "beta_end": 1e-30, "rescale_betas_zero_snr": True},
            "add no noise that could be rescaled",
        ),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        NoiseSchedule.from_config(SchedulerConfig(STABLE_DIFFUSION_2 | change))
