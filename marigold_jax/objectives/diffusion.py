"""Marigold's objective (arXiv 2312.02145, section 3.2): denoise the target's latent beside the image's."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32, PRNGKeyArray

from marigold_jax.losses import latent_mask, masked_mse
from marigold_jax.models import functional
from marigold_jax.models.functional import Params, Structure
from marigold_jax.noise import annealed_strength
from marigold_jax.objectives.contract import (
    NOISES,
    REMAT,
    TARGETS,
    Batch,
    Frozen,
    Metrics,
    Objective,
    cast,
    mask_of,
    row,
)
from marigold_jax.schedule import NoiseSchedule

Draw = Callable[[PRNGKeyArray, tuple[int, int, int, int]], tuple[Array, Array]]
Loss = Callable[[Params, Frozen, Batch, Array, Array], tuple[Array, Metrics]]


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
) -> Objective:
    """Returns the objective.

    The arguments are those of `diffusion_draw` and `diffusion_loss`, of which it is the composition.
    """
    draw = diffusion_draw(schedule, noise=noise, strength=strength, annealed=annealed)
    loss = diffusion_loss(
        unet_structure, vae_structure, schedule, target=target, compute_dtype=compute_dtype, remat=remat
    )

    def objective(
        params: Params, frozen: Frozen, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float32[Array, ""], Metrics]:
        if "latents" in batch:
            b, _, *latent = batch["latents"].shape
        else:
            vae = functional.merge(vae_structure, frozen["vae"]).config
            b, h, w, _ = batch["rgb"].shape
            latent = (h // vae.downsampling, w // vae.downsampling, vae.latent_channels)
        return loss(params, frozen, batch, *draw(key, (b, *latent)))

    return objective


def diffusion_draw(
    schedule: NoiseSchedule, *, noise: str = "multi_resolution", strength: float = 0.9, annealed: bool = True
) -> Draw:
    """Returns `draw(key, shape) -> (timesteps (b,), noise (b, i, j, z))`: all that is random in the objective.

    Args:
        noise: a row of `NOISES`.
        strength: of the coarse levels ("multi_resolution") or of the offset ("offset").
        annealed: lets the strength of each sample grow with its timestep, from 0 to `strength`.

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
) -> Loss:
    """Returns `loss(params, frozen, batch, timesteps, noise) -> (loss, metrics)`: all that is not random.

    Args:
        target: a row of `TARGETS`.
        compute_dtype: of the networks. Parameters, noise schedule, loss and gradients are float32 in any case.
        remat: a row of `REMAT`: less memory for more time.

    Raises:
        ValueError: the target or remat is unknown; or, when called, the UNet does not read two latents.
    """
    target_key, to_pixels = row(TARGETS, "target", target)
    checkpoint = row(REMAT, "remat", remat)

    def encoded(frozen: Frozen, batch: Batch) -> tuple[Float[Array, "b 2 i j z"], Bool[Array, "b i j 1"]]:
        """Latents of image and target, and which of them count: as the batch has them, or encoded here."""
        if "latents" in batch:
            return batch["latents"], batch["latent_mask"]
        vae = functional.merge(vae_structure, cast(frozen["vae"], compute_dtype))
        # Image and target go through the VAE as one batch, so that it is compiled once; as neighbours, so that a batch
        # which is split over devices stays split.
        pairs = jnp.stack([batch["rgb"], to_pixels(batch[target_key])], axis=1)
        latents = vae.encode(pairs.reshape(-1, *pairs.shape[2:]).astype(compute_dtype))
        latents = jax.lax.stop_gradient(latents).reshape(*pairs.shape[:2], *latents.shape[1:])
        return latents, latent_mask(mask_of(batch), vae.config.downsampling)

    def loss(
        params: Params,
        frozen: Frozen,
        batch: Batch,
        timesteps: Int32[Array, " b"],
        noise: Float[Array, "b i j z"],
    ) -> tuple[Float32[Array, ""], Metrics]:
        unet = functional.merge(unet_structure, cast(params, compute_dtype))
        latents, mask = encoded(frozen, batch)
        if unet.config.in_channels != 2 * latents.shape[-1]:
            raise ValueError(
                f"the UNet reads {unet.config.in_channels} channels, wanted {2 * latents.shape[-1]}: the latents of "
                "the image and of the target; inflate the checkpoint"
            )

        rgb, x0 = latents[:, 0].astype(compute_dtype), latents[:, 1]
        x_t = schedule.add_noise(x0, noise, timesteps)
        prompt = frozen["empty_prompt"].astype(compute_dtype)
        context = jnp.broadcast_to(prompt, (len(rgb), *prompt.shape))
        # The image comes first: so the released weights have it.
        both = jnp.concatenate([rgb, x_t.astype(compute_dtype)], axis=-1)
        output = unet(both, timesteps, context, checkpoint)

        value = masked_mse(output, schedule.target(x0, noise, timesteps), mask)
        return value, {"valid_latents": jnp.mean(mask, dtype=jnp.float32)}

    return loss
