"""Few-step distillation (latent consistency models, arXiv 2310.04378): one step replaces many steps of the teacher.

A consistency function maps any point on the teacher's path from noise to the clean latent to the end of that path. At
a few fixed timesteps, the student learns to predict what the target network, its own moving average, predicts one step
further along the path. The teacher takes that step, by DDIM. At timestep 0 the function is the identity by
construction; from there, correct predictions spread to the noisier timesteps.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32, PRNGKeyArray

from marigold_jax.diffusion.losses import masked_pseudo_huber
from marigold_jax.diffusion.noise import gaussian
from marigold_jax.diffusion.samplers import boundary_scalings
from marigold_jax.diffusion.schedule import NoiseSchedule
from marigold_jax.models import functional
from marigold_jax.models.functional import Params, Structure
from marigold_jax.training.objectives.contract import REMAT, Batch, Frozen, Metrics, Objective, cast, row
from marigold_jax.training.objectives.encoding import Draw, Loss, compose, context_of, make_encode, require_two_latents


def consistency_objective(
    unet_structure: Structure,
    vae_structure: Structure,
    schedule: NoiseSchedule,
    *,
    target: str = "depth",
    grid: int = 5,
    timestep_scaling: float = 10.0,
    huber: float = 1e-3,
    compute_dtype: jax.typing.DTypeLike = jnp.float32,
    remat: str = "none",
) -> Objective:
    """Returns the objective.

    The arguments are those of `consistency_draw` and `consistency_loss`, of which it is the composition.
    """
    loss = consistency_loss(
        unet_structure,
        vae_structure,
        schedule,
        target=target,
        grid=grid,
        timestep_scaling=timestep_scaling,
        huber=huber,
        compute_dtype=compute_dtype,
        remat=remat,
    )
    return compose(vae_structure, consistency_draw(schedule, grid=grid), loss)


def stride_of(schedule: NoiseSchedule, grid: int) -> int:
    """Returns the distance between timesteps of the grid. Raises ValueError if `grid` does not divide their number."""
    count = schedule.num_train_timesteps
    if grid < 1 or count % grid:
        raise ValueError(f"objective: grid is {grid}, wanted a divisor of the {count} timesteps")
    return count // grid


def consistency_draw(schedule: NoiseSchedule, *, grid: int = 5) -> Draw:
    """Returns `draw(key, shape) -> (timesteps (b,), noise (b, i, j, z))`: the random part of the objective.

    The noise is Gaussian, as in prediction. With a grid of 5, timesteps are drawn from 199, 399, 599, 799 and 999.
    """
    stride = stride_of(schedule, grid)

    def draw(
        key: PRNGKeyArray, shape: tuple[int, int, int, int]
    ) -> tuple[Int32[Array, " b"], Float32[Array, "b i j z"]]:
        timestep_key, noise_key = jax.random.split(key)
        index = jax.random.randint(timestep_key, shape[:1], 0, grid, jnp.int32)
        return (index + 1) * stride - 1, gaussian(noise_key, shape)

    return draw


def _consistent(
    schedule: NoiseSchedule, scalings: np.ndarray, x: Array, output: Array, timesteps: Array
) -> Float32[Array, "b i j z"]:
    """Returns the consistency function f(x, t): the end of the path through `x`."""
    c_skip, c_out = jnp.asarray(scalings, jnp.float32)[:, timesteps, None, None, None]
    return c_skip * x + c_out * schedule.predict_x0(x, output, timesteps)


def _step_back(schedule: NoiseSchedule, x_t: Array, output: Array, timesteps: Array, previous: Array) -> Array:
    """Returns the sample at `previous`, one step of DDIM with the teacher's output."""
    x0, noise = schedule.predict_x0(x_t, output, timesteps), schedule.predict_noise(x_t, output, timesteps)
    return schedule.add_noise(x0, noise, previous)


def consistency_loss(
    unet_structure: Structure,
    vae_structure: Structure,
    schedule: NoiseSchedule,
    *,
    target: str = "depth",
    grid: int = 5,
    timestep_scaling: float = 10.0,
    huber: float = 1e-3,
    compute_dtype: jax.typing.DTypeLike = jnp.float32,
    remat: str = "none",
) -> Loss:
    """Returns `loss(params, frozen, batch, timesteps, noise) -> (loss, metrics)`: the deterministic part.

    `frozen` must also hold "unet", the parameters of the teacher, and "target", the moving average of `params`.

    Args:
        unet_structure, vae_structure, schedule: of the networks, and of the noise.
        target: a row of `TARGETS`.
        grid: the number of timesteps that are learned: `original_inference_steps` of the LCM sampler.
        timestep_scaling: that of the LCM sampler.
        huber: the error at which the loss changes from quadratic to linear, in units of the latents.
        compute_dtype: of the networks. Parameters, noise schedule, loss and gradients are always float32.
        remat: a row of `REMAT`, for the student; it saves memory and costs time.

    Raises:
        ValueError: the target or remat is unknown, the grid does not divide the timesteps, or huber is not above 0; or,
            when `loss` is called, the UNet does not read two latents, or predicts epsilon at a timestep of pure noise.
    """
    encode, checkpoint = make_encode(vae_structure, target, compute_dtype), row(REMAT, "remat", remat)
    stride = stride_of(schedule, grid)
    if not huber > 0:
        raise ValueError(f"objective: huber is {huber}, wanted more than 0: at 0 the loss has no gradient")
    scalings = boundary_scalings(np.arange(schedule.num_train_timesteps), timestep_scaling)
    consistent = functools.partial(_consistent, schedule, scalings)

    def loss(
        params: Params, frozen: Frozen, batch: Batch, timesteps: Int32[Array, " b"], noise: Float[Array, "b i j z"]
    ) -> tuple[Float32[Array, ""], Metrics]:
        student, teacher, ema_target = (
            functional.merge(unet_structure, cast(tree, compute_dtype))
            for tree in (params, frozen["unet"], frozen["target"])
        )
        rgb, x0, mask = encode(frozen, batch)
        require_two_latents(student, rgb)
        context = context_of(frozen, len(rgb), compute_dtype)

        def beside_image(x: Array) -> Array:
            return jnp.concatenate([rgb, x.astype(compute_dtype)], axis=-1)

        x_t = schedule.add_noise(x0, noise, timesteps)
        found = consistent(x_t, student(beside_image(x_t), timesteps, context, checkpoint), timesteps)
        # From the first timestep, DDIM steps to 0. There c_out is 0, so the target network does not matter.
        previous = jnp.maximum(timesteps - stride, 0)
        x_previous = _step_back(schedule, x_t, teacher(beside_image(x_t), timesteps, context), timesteps, previous)
        wanted = consistent(x_previous, ema_target(beside_image(x_previous), previous, context), previous)
        value = masked_pseudo_huber(found, jax.lax.stop_gradient(wanted), mask, huber)
        return value, {"valid_latents": jnp.mean(mask, dtype=jnp.float32)}

    return loss
