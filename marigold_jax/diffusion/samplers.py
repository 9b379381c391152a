"""Samplers as tables: from pure noise to x0 in a few linear steps.

Every DDIM step (arXiv 2010.02502, equation 12 with η = 0) and every LCM step (arXiv 2310.04378) is
`x ← a · x + b · output + c · noise`, and only the three numbers depend on the step. So a sampler is a table of
timesteps, a, b and c with one row per step, and one function, `step`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64, Int, Int32

from marigold_jax.diffusion.schedule import NoiseSchedule
from marigold_jax.diffusion.scheduler_config import SchedulerConfig


class SamplerTable(NamedTuple):
    """One row per denoising step, in the order of the steps. A pytree of NumPy arrays that `jax.lax.scan` can walk.

    Attributes:
        timesteps: input of the network; decreasing.
        a: weight of the current latent.
        b: weight of the network's output.
        c: weight of new Gaussian noise; zero for DDIM and in the last row of LCM.
    """

    timesteps: Int32[np.ndarray, " n"]
    a: Float32[np.ndarray, " n"]
    b: Float32[np.ndarray, " n"]
    c: Float32[np.ndarray, " n"]


def step(
    x: Float[Array, "b h w c"],
    model_output: Float[Array, "b h w c"],
    noise: Float[Array, "b h w c"] | None,
    a: Float[jax.typing.ArrayLike, ""],
    b: Float[jax.typing.ArrayLike, ""],
    c: Float[jax.typing.ArrayLike, ""],
) -> Float32[Array, "b h w c"]:
    """Returns the latent after one step, in float32.

    Args:
        x: the current latent.
        model_output: of the network, for x and the timestep of this row.
        noise: standard Gaussian noise, drawn anew in every step. None if the column c is all zeros.
        a: weight of x, from this row of the table.
        b: weight of the output.
        c: weight of the noise.
    """
    x = a * x.astype(jnp.float32) + b * model_output.astype(jnp.float32)
    return x if noise is None else x + c * noise.astype(jnp.float32)


def boundary_scalings(timesteps: Int[np.ndarray, " n"], timestep_scaling: float) -> Float64[np.ndarray, "2 n"]:
    """Returns c_skip and c_out of the consistency function `c_skip · x_t + c_out · x0`, which is the identity at t = 0.

    As in arXiv 2310.04378, with σ_data = 0.5. Except for the first few timesteps, c_skip is nearly 0.
    """
    scaled = timestep_scaling * timesteps
    return np.stack([0.25 / (scaled**2 + 0.25), scaled / np.sqrt(scaled**2 + 0.25)])


# Timesteps in decreasing order, as diffusers computes them, for `total` trained and `num_steps` wanted timesteps.
# The slice in "trailing" corrects a rounding error: np.arange returns one value too many for some step counts (61, 103,
# 121, ...), and diffusers then runs an extra step at t = −1, which it treats as the noisiest timestep.
_SPACINGS = {
    "leading": lambda total, num_steps, offset: np.arange(num_steps)[::-1] * (total // num_steps) + offset,
    "trailing": lambda total, num_steps, offset: np.round(np.arange(total, 0, -total / num_steps))[:num_steps] - 1,
    "linspace": lambda total, num_steps, offset: np.round(np.linspace(0, total - 1, num_steps))[::-1],
}


def _ddim_timesteps(config: SchedulerConfig, num_steps: int) -> Int[np.ndarray, " n"]:
    spacing, total = config.timestep_spacing, config.num_train_timesteps
    if spacing not in _SPACINGS:
        raise ValueError(
            f"scheduler config: timestep_spacing is {spacing!r}, expected one of {sorted(_SPACINGS)}; "
            "use trailing for few steps"
        )
    return _SPACINGS[spacing](total, num_steps, config.steps_offset).astype(np.int64)


def _lcm_timesteps(config: SchedulerConfig, num_steps: int) -> Int[np.ndarray, " n"]:
    """Selects evenly from the grid on which the model was distilled. Spacing and offset of the config are not used."""
    grid_size, total = config.original_inference_steps, config.num_train_timesteps
    if not num_steps <= grid_size <= total:
        raise ValueError(
            f"LCM: expected num_steps <= original_inference_steps <= num_train_timesteps, got {num_steps}, {grid_size} "
            f"and {total}; lower the number of steps"
        )
    grid = np.arange(grid_size, 0, -1) * (total // grid_size) - 1
    return grid[np.floor(np.linspace(0, grid_size, num_steps, endpoint=False)).astype(np.int64)]


def _ddim_weights(
    config: SchedulerConfig, schedule: NoiseSchedule, timesteps: Int[np.ndarray, " n"], final_x0: bool
) -> Float64[np.ndarray, "3 n"]:
    # As in diffusers, the stride is the same for every spacing. If it does not divide evenly, a step does not end
    # exactly at the timestep of the next row.
    previous = timesteps - schedule.num_train_timesteps // len(timesteps)
    final = 1.0 if config.set_alpha_to_one else schedule.alphas_cumprod[0]
    alphas_previous = np.where(previous >= 0, schedule.alphas_cumprod[np.maximum(previous, 0)], final)
    if final_x0:
        alphas_previous[-1] = 1.0
    x0_weights, noise_weights = schedule.inversion(timesteps)
    a, b = np.sqrt(alphas_previous) * x0_weights + np.sqrt(1 - alphas_previous) * noise_weights
    return np.stack([a, b, np.zeros_like(a)])


def _lcm_weights(
    config: SchedulerConfig, schedule: NoiseSchedule, timesteps: Int[np.ndarray, " n"], final_x0: bool
) -> Float64[np.ndarray, "3 n"]:
    c_skip, c_out = boundary_scalings(timesteps, config.timestep_scaling)
    x_weight, output_weight = c_out * schedule.inversion(timesteps)[0]
    # Noise is added to each estimate of x0 up to the timestep of the next row, except to the last, which is the result.
    alphas_next = np.append(schedule.alphas_cumprod[timesteps[1:]], 1.0)
    signal, sigma = np.sqrt(alphas_next), np.sqrt(1 - alphas_next)
    return np.stack([signal * (x_weight + c_skip), signal * output_weight, sigma])


_SAMPLERS = {
    "DDIMScheduler": (_ddim_timesteps, _ddim_weights),
    "DDPMScheduler": (_ddim_timesteps, _ddim_weights),
    "PNDMScheduler": (_ddim_timesteps, _ddim_weights),
    "LCMScheduler": (_lcm_timesteps, _lcm_weights),
}

# Values that would change the result, and that a linear step cannot express.
_UNSUPPORTED = {"clip_sample": [True], "thresholding": [True], "variance_type": ["learned", "learned_range"]}


def sampler_table(config: SchedulerConfig, num_steps: int, *, final_x0: bool = False) -> SamplerTable:
    """Builds the sampler that a diffusers scheduler_config.json describes, computed in float64.

    DDPM and PNDM configs are sampled with DDIM. Such a file names the scheduler that made images (Stable Diffusion) or
    added the noise in training (end-to-end fine-tuning), but models of this family are always run with DDIM.

    Args:
        config: its class name chooses the sampler.
        num_steps: the number of network evaluations, 1 .. num_train_timesteps (LCM: .. original_inference_steps).
        final_x0: DDIM returns its last estimate of x0 (arXiv 2409.11355). Otherwise `set_alpha_to_one=False`, which
            these configs have, leaves 3 % of the predicted noise in the result. LCM always returns its estimate.

    Raises:
        ValueError: the config has an unknown class or value, or needs what is not supported here; the number of
            steps is out of range; or the network predicts the noise at a timestep that holds no signal.
    """
    config.require_known_class()
    for key, refused in _UNSUPPORTED.items():
        if (value := getattr(config, key)) in refused:
            origin = "" if key in config.values else " (diffusers' default, as the file does not say)"
            raise ValueError(
                f"scheduler config: {key}={value!r}{origin} is not supported; "
                f"expected any value but {refused}: latent diffusion neither clips nor predicts variances"
            )
    schedule = NoiseSchedule.from_config(config)
    total = schedule.num_train_timesteps
    if not 1 <= num_steps <= total:
        raise ValueError(f"expected 1 <= num_steps <= {total} (num_train_timesteps), got {num_steps}")
    timesteps_of, weights_of = _SAMPLERS[config.class_name]
    timesteps = timesteps_of(config, num_steps)
    if timesteps[0] >= total:
        raise ValueError(
            f"scheduler config: steps_offset={config.steps_offset} puts the first of {num_steps} steps at timestep "
            f"{timesteps[0]}, expected at most {total - 1}; take fewer steps"
        )
    weights = weights_of(config, schedule, timesteps, final_x0)
    return SamplerTable(timesteps.astype(np.int32), *weights.astype(np.float32))
