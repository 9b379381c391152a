"""End-to-end fine-tuning (arXiv 2409.11355, section 4): one step at the last timestep, with a loss on decoded pixels.

The UNet reads the latent of the image, and noise or zeros. The clean latent that follows from its output is decoded by
the frozen VAE, and the loss compares the pixels with the ground truth. Gradients flow through the decoder.

With such a loss alone, the network learns to ignore the noise, and all members of an ensemble are equal. With the
option `spread`, every image is predicted twice, with different noise, and the loss falls with the distance between the
two predictions. At `spread` 1 the loss of an ensemble of two is the fair CRPS (arXiv 2412.15832, section 2), which is
least if members vary as much as the ground truth might. At smaller values members vary less, and a single one is not
much worse than their median.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, PRNGKeyArray

from marigold_jax.diffusion.schedule import NoiseSchedule
from marigold_jax.models import functional
from marigold_jax.models.functional import Params, Structure
from marigold_jax.training.batch import Batch, mask_of
from marigold_jax.training.objectives.alignment import make_alignment
from marigold_jax.training.objectives.contract import NOISES, REMAT, Frozen, Metrics, Objective, cast, row
from marigold_jax.training.objectives.encoding import context_of
from marigold_jax.training.targets import TARGETS

DRAWS = {"zeros": lambda key, shape, strength: jnp.zeros(shape, jnp.float32), **NOISES}


def _metres(batch: Batch) -> Array:
    """Returns the metres that one unit of the target stands for, for each image: half of its span."""
    return (batch["span"] / 2).reshape(-1, 1, 1, 1)


# The unit of depth errors: a factor (b, 1, 1, 1) or (b, h, w, 1) for the error of the aligned prediction. "metres" is
# the choice of the paper, and gives deep scenes more weight. With "normalised", all scenes have the same weight.
# "relative" divides by the depth of the pixel, so that the loss is AbsRel.
UNITS = {
    "metres": _metres,
    "normalised": lambda batch: jnp.ones((len(batch["rgb"]), 1, 1, 1)),
    "relative": lambda batch: _metres(batch) / jnp.where(mask_of(batch), batch["depth"], 1.0),
}


Predict = Callable[[Params, Frozen, Batch, PRNGKeyArray], tuple[Float[Array, "n h w 3"], list[Array]]]


def _make_predict(
    unet_structure: Structure,
    vae_structure: Structure,
    schedule: NoiseSchedule,
    draw_noise: Callable[[PRNGKeyArray, tuple[int, ...]], Array],
    members: int,
    compute_dtype: jax.typing.DTypeLike,
    remat: str,
) -> Predict:
    """Returns `predict(params, frozen, batch, key)`: decoded pixels, and features of the UNet's decoder.

    The pixels are those of `members` predictions of every image: all images of one member, then all of the next. The
    features are those of the first member.
    """
    last, checkpoint = schedule.num_train_timesteps - 1, REMAT[remat]

    def decode(vae: Any, latents: Array) -> Array:
        if remat == "none":
            return vae.decode(latents)
        return jax.lax.map(lambda latent: vae.decode(latent[None], checkpoint)[0], latents)

    def predict(
        params: Params, frozen: Frozen, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, "n h w 3"], list[Array]]:
        unet = functional.merge(unet_structure, cast(params, compute_dtype))
        vae = functional.merge(vae_structure, cast(frozen["vae"], compute_dtype))
        rgb = jax.lax.stop_gradient(vae.encode(batch["rgb"].astype(compute_dtype)))
        rgb = jnp.concatenate([rgb] * members)
        timesteps = jnp.full(len(rgb), last, jnp.int32)
        x_t = draw_noise(key, rgb.shape)
        context = context_of(frozen, len(rgb), compute_dtype)
        # A UNet that was never widened reads the image alone.
        widened = unet.config.in_channels > vae.config.latent_channels
        inputs = jnp.concatenate([rgb, x_t.astype(compute_dtype)], axis=-1) if widened else rgb
        taps: list[Array] = []
        output = unet(inputs, timesteps, context, checkpoint, taps)
        latents = schedule.predict_x0(x_t, output, timesteps).astype(compute_dtype)
        return decode(vae, latents), [tap[: len(batch["rgb"])] for tap in taps]

    return predict


def end_to_end_objective(
    unet_structure: Structure,
    vae_structure: Structure,
    schedule: NoiseSchedule,
    *,
    target: str = "depth",
    noise: str = "zeros",
    strength: float = 0.9,
    units: str = "metres",
    compute_dtype: jax.typing.DTypeLike = jnp.float32,
    remat: str = "none",
    align: float = 0.0,
    spread: float = 0.0,
) -> Objective:
    """Returns the objective: the scale-and-shift-invariant L1 of depth, or the mean angle of normals, in radians.

    Args:
        unet_structure, vae_structure: of the networks; see `models.functional`.
        schedule: of the noise; only its last timestep is used.
        target: a row of `TARGETS`.
        noise: the input instead of the noisy latent of the target: "zeros", or a row of `NOISES`.
        strength: of the noise, for the kinds that have one.
        units: of the depth loss; a row of `UNITS`. All but "normalised" need `span` (b,) in the batch, the metres that
            the target's range [-1, 1] stands for; "relative" also needs `depth` (b, h, w, 1), in metres.
        compute_dtype: of the networks. Parameters, alignment, loss and gradients are always float32.
        remat: a row of `REMAT`, for UNet and decoder. With any but "none", images are decoded one at a time.
        align: weight of the loss in `training.objectives.alignment`.
        spread: weight of half the distance between two members, from 0 to 1; at 0 there is only one member.

    Raises:
        ValueError: the target, noise, units or remat is unknown, or `spread` is not 0 and there is no noise.
    """
    modality, draw = row(TARGETS, "target", target), row(DRAWS, "noise", noise)
    weight_of, _ = row(UNITS, "units", units), row(REMAT, "remat", remat)
    if spread and noise == "zeros":
        raise ValueError(
            f"objective: spread is {spread} and noise is 'zeros': wanted noise, so that members can differ"
        )
    members, add_alignment = 2 if spread else 1, make_alignment(align)

    def draw_noise(key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
        return draw(key, shape, jnp.full(shape[:1], strength, jnp.float32))

    predict = _make_predict(unet_structure, vae_structure, schedule, draw_noise, members, compute_dtype, remat)

    def objective(
        params: Params, frozen: Frozen, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float32[Array, ""], Metrics]:
        pixels, taps = predict(params, frozen, batch, key)
        predictions = [modality.from_pixels(each, batch) for each in jnp.split(pixels.astype(jnp.float32), members)]
        weight = weight_of(batch) if modality.has_units else None
        truth = batch[modality.key]
        loss = sum(modality.distance(prediction, truth, batch, weight) for prediction in predictions) / members
        metrics = {"valid_pixels": jnp.mean(mask_of(batch), dtype=jnp.float32)}
        if spread:
            metrics["apart"] = modality.distance(*predictions, batch, weight)
            loss -= spread / 2 * metrics["apart"]
        return add_alignment(loss, metrics, params, frozen, batch, taps)

    return objective
