"""What is minimised: functions `(params, frozen, batch, key) -> (loss, metrics)`, one for each way of training.

`params` are the parameters that train. `frozen` are the arrays that do not: `{"vae": params, "empty_prompt": (n, d)}`.
A batch holds float32 images: `rgb` (b, h, w, 3) in [-1, 1], the key of its target (`TARGETS`), and optionally `mask`
(b, h, w, 1), True where the target is valid; without one, everything counts. `metrics` are scalars to be logged.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32, PRNGKeyArray

from marigold_jax.losses import latent_mask, masked_mse
from marigold_jax.models import functional
from marigold_jax.models.functional import Params, Structure
from marigold_jax.noise import annealed_strength, gaussian, multi_resolution_noise, offset_noise
from marigold_jax.schedule import NoiseSchedule

Batch = Mapping[str, Array | np.ndarray]
Frozen = Mapping[str, Any]
Metrics = dict[str, Array]
Objective = Callable[[Params, Frozen, Batch, PRNGKeyArray], tuple[Array, Metrics]]
Draw = Callable[[PRNGKeyArray, tuple[int, int, int, int]], tuple[Array, Array]]
Loss = Callable[[Params, Frozen, Batch, Array, Array], tuple[Array, Metrics]]


# Target -> (its key in the batch, what makes it the three channels in [-1, 1] that the VAE encodes).
TARGETS = {
    "depth": ("target", lambda depth: jnp.repeat(depth, 3, axis=-1)),
    "normals": ("normals", lambda normals: normals),
}

NOISES = {
    "gaussian": lambda key, shape, strength: gaussian(key, shape),
    "offset": offset_noise,
    "multi_resolution": multi_resolution_noise,
}


def _is_linear_layer(primitive: Any, *operands: Any, **options: Any) -> bool:
    """Whether a kernel multiplies tokens (b, n, c). JAX's own policies would keep blockwise attention's logits."""
    return primitive is jax.lax.dot_general_p and [operand.ndim for operand in operands] == [3, 2]


# What the backward pass finds stored of a resnet's or transformer's inside: everything, nothing, or the outputs of its
# linear layers. Convolutions and attention are computed again in both of the latter. (XLA for CPUs merges what is
# computed twice, and so undoes it; GPUs and TPUs do not.)
REMAT = {
    "none": lambda function: function,
    "blocks": functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable),
    "dots": functools.partial(jax.checkpoint, policy=_is_linear_layer),
}


def _row(table: Mapping[str, Any], option: str, name: str) -> Any:
    if name not in table:
        raise ValueError(f"objective: {option} is {name!r}, wanted one of {', '.join(table)}")
    return table[name]


def _cast(params: Params, dtype: jax.typing.DTypeLike) -> Params:
    return {name: array.astype(dtype) for name, array in params.items()}


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
    """Returns Marigold's objective (arXiv 2312.02145, section 3.2): denoise the target's latent beside the image's.

    The arguments are those of `diffusion_draw` and `diffusion_loss`, of which it is the composition.
    """
    draw = diffusion_draw(schedule, noise=noise, strength=strength, annealed=annealed)
    loss = diffusion_loss(
        unet_structure, vae_structure, schedule, target=target, compute_dtype=compute_dtype, remat=remat
    )

    def objective(
        params: Params, frozen: Frozen, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float32[Array, ""], Metrics]:
        vae = functional.merge(vae_structure, frozen["vae"]).config
        b, h, w, _ = batch["rgb"].shape
        shape = (b, h // vae.downsampling, w // vae.downsampling, vae.latent_channels)
        return loss(params, frozen, batch, *draw(key, shape))

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
    noise_of, count = _row(NOISES, "noise", noise), schedule.num_train_timesteps

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
    target_key, to_pixels = _row(TARGETS, "target", target)
    checkpoint = _row(REMAT, "remat", remat)

    def loss(
        params: Params,
        frozen: Frozen,
        batch: Batch,
        timesteps: Int32[Array, " b"],
        noise: Float[Array, "b i j z"],
    ) -> tuple[Float32[Array, ""], Metrics]:
        unet = functional.merge(unet_structure, _cast(params, compute_dtype))
        vae = functional.merge(vae_structure, _cast(frozen["vae"], compute_dtype))
        if unet.config.in_channels != 2 * vae.config.latent_channels:
            raise ValueError(
                f"the UNet reads {unet.config.in_channels} channels, wanted {2 * vae.config.latent_channels}: the "
                "latents of the image and of the target; inflate the checkpoint"
            )

        # Image and target go through the VAE as one batch, so that it is compiled once; as neighbours, so that a batch
        # which is split over devices stays split.
        pairs = jnp.stack([batch["rgb"], to_pixels(batch[target_key])], axis=1)
        latents = vae.encode(pairs.reshape(-1, *pairs.shape[2:]).astype(compute_dtype))
        latents = jax.lax.stop_gradient(latents).reshape(*pairs.shape[:2], *latents.shape[1:])
        rgb, x0 = latents[:, 0], latents[:, 1]
        x_t = schedule.add_noise(x0, noise, timesteps)
        prompt = frozen["empty_prompt"].astype(compute_dtype)
        context = jnp.broadcast_to(prompt, (len(rgb), *prompt.shape))
        # The image comes first: so the released weights have it.
        both = jnp.concatenate([rgb, x_t.astype(compute_dtype)], axis=-1)
        output = unet(both, timesteps, context, checkpoint)

        if "mask" in batch:
            mask = latent_mask(batch["mask"], vae.config.downsampling)
        else:
            mask = jnp.ones((*x0.shape[:3], 1), bool)
        value = masked_mse(output, schedule.target(x0, noise, timesteps), mask)
        return value, {"valid_latents": jnp.mean(mask, dtype=jnp.float32)}

    return loss
