"""Marigold's objective (arXiv 2312.02145, section 3.2): denoise the latent of the target, given that of the image."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32, PRNGKeyArray

from marigold_jax.diffusion.losses import masked_mse
from marigold_jax.diffusion.noise import annealed_strength
from marigold_jax.diffusion.schedule import NoiseSchedule
from marigold_jax.models import functional
from marigold_jax.models.functional import Params, Structure
from marigold_jax.training.objectives.alignment import make_alignment
from marigold_jax.training.objectives.contract import NOISES, REMAT, Batch, Frozen, Metrics, Objective, cast, row
from marigold_jax.training.objectives.encoding import Draw, Loss, compose, context_of, make_encode, require_two_latents


def diffusion_objective(
    unet_structure: Structure,
    vae_structure: Structure,
    schedule: NoiseSchedule,
    *,
    target: str = "depth",
    noise: str = "multi_resolution",
    strength: float = 0.9,
    annealed: bool = True,
    compute_dtype: jax.typing.DTypeLike = jnp.float32,
    remat: str = "none",
    align: float = 0.0,
) -> Objective:
    """Returns the objective.

    The arguments are those of `diffusion_draw` and `diffusion_loss`, of which it is the composition.
    """
    draw = diffusion_draw(schedule, noise=noise, strength=strength, annealed=annealed)
    loss = diffusion_loss(
        unet_structure, vae_structure, schedule, target=target, compute_dtype=compute_dtype, remat=remat, align=align
    )
    return compose(vae_structure, draw, loss)


def diffusion_draw(
    schedule: NoiseSchedule, *, noise: str = "multi_resolution", strength: float = 0.9, annealed: bool = True
) -> Draw:
    """Returns `draw(key, shape) -> (timesteps (b,), noise (b, i, j, z))`: the random part of the objective.

    Args:
        schedule: of the noise.
        noise: a row of `NOISES`.
        strength: of the coarse levels ("multi_resolution") or of the offset ("offset").
        annealed: whether the strength of each sample is proportional to its timestep, from 0 to `strength`.

    Raises:
        ValueError: the noise is unknown.
    """
    noise_of, count = row(NOISES, "noise", noise), schedule.num_train_timesteps

    def draw(
        key: PRNGKeyArray, shape: tuple[int, int, int, int]
    ) -> tuple[Int32[Array, " b"], Float32[Array, "b i j z"]]:
        timestep_key, noise_key = jax.random.split(key)
        timesteps = jax.random.randint(timestep_key, shape[:1], 0, count, jnp.int32)
        each = annealed_strength(strength, timesteps, count) if annealed else jnp.full(shape[:1], strength, jnp.float32)
        return timesteps, noise_of(noise_key, shape, each)

    return draw


def diffusion_loss(
    unet_structure: Structure,
    vae_structure: Structure,
    schedule: NoiseSchedule,
    *,
    target: str = "depth",
    compute_dtype: jax.typing.DTypeLike = jnp.float32,
    remat: str = "none",
    align: float = 0.0,
) -> Loss:
    """Returns `loss(params, frozen, batch, timesteps, noise) -> (loss, metrics)`: the deterministic part.

    Args:
        unet_structure, vae_structure: of the networks; see `models.functional`.
        schedule: of the noise.
        target: a row of `TARGETS`.
        compute_dtype: of the networks. Parameters, noise schedule, loss and gradients are always float32.
        remat: a row of `REMAT`; it saves memory and costs time.
        align: weight of the loss in `training.objectives.alignment`. If it is not 0, batches must hold images.

    Raises:
        ValueError: the target or remat is unknown; or, when called, the UNet does not read two latents.
    """
    encode, checkpoint = make_encode(vae_structure, target, compute_dtype), row(REMAT, "remat", remat)
    also = make_alignment(align)

    def loss(
        params: Params,
        frozen: Frozen,
        batch: Batch,
        timesteps: Int32[Array, " b"],
        noise: Float[Array, "b i j z"],
    ) -> tuple[Float32[Array, ""], Metrics]:
        unet = functional.merge(unet_structure, cast(params, compute_dtype))
        rgb, x0, mask = encode(frozen, batch)
        require_two_latents(unet, rgb)
        x_t = schedule.add_noise(x0, noise, timesteps)
        context = context_of(frozen, len(rgb), compute_dtype)
        # The image comes first, as in the released weights.
        both = jnp.concatenate([rgb, x_t.astype(compute_dtype)], axis=-1)
        taps: list[jax.Array] = []
        output = unet(both, timesteps, context, checkpoint, taps)

        value = masked_mse(output, schedule.target(x0, noise, timesteps), mask)
        return also(value, {"valid_latents": jnp.mean(mask, dtype=jnp.float32)}, params, frozen, batch, taps)

    return loss
