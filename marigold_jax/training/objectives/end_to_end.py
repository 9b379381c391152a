"""End-to-end fine-tuning (arXiv 2409.11355, section 4): one step at the last timestep, judged by what comes out.

The network sees the image's latent beside noise, or zeros; the latent it implies goes through the frozen decoder, and
the loss compares pixels with the truth. Gradients flow back through the decoder.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, PRNGKeyArray

from marigold_jax.diffusion.gradients import length
from marigold_jax.diffusion.losses import aligned, angular_error, weighted_l1
from marigold_jax.diffusion.schedule import NoiseSchedule
from marigold_jax.models import functional
from marigold_jax.models.functional import Params, Structure
from marigold_jax.training.objectives.alignment import make_alignment
from marigold_jax.training.objectives.contract import (
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
from marigold_jax.training.objectives.encoding import context_of
from marigold_jax.weights.model_index import END_TO_END, OPTIONS

NORM_EPSILON = 1e-5  # keeps the dot product of normals below 1, and the gradient of its arc cosine finite

DRAWS = {"zeros": lambda key, shape, strength: jnp.zeros(shape, jnp.float32), **NOISES}


def _metres(batch: Batch) -> Array:
    """The target's unit, for each image: half of the metres from -1 to +1."""
    return (batch["span"] / 2).reshape(-1, 1, 1, 1)


# What an error of the aligned prediction is measured in: (b, 1, 1, 1) or (b, h, w, 1), to multiply it with.
# In metres, deep scenes weigh more: the paper's choice. "normalised": all scenes are equally deep. "relative": to the
# depth of the pixel, so that the loss is AbsRel itself.
UNITS = {
    "metres": _metres,
    "normalised": lambda batch: jnp.ones((len(batch["rgb"]), 1, 1, 1)),
    "relative": lambda batch: _metres(batch) / jnp.where(mask_of(batch), batch["depth"], 1.0),
}


def _aligned_depth(pixels, batch):
    depth = jnp.clip(jnp.mean(pixels, axis=-1, keepdims=True), -1.0, 1.0)
    return aligned(depth, batch["target"], mask_of(batch))


def _unit_normals(pixels, batch):
    return jnp.clip(pixels / (length(pixels) + NORM_EPSILON), -1.0, 1.0)


class Judgement(NamedTuple):
    """`read(pixels, batch)`: the prediction in decoded pixels. `distance(a, b, batch, weight)`: between two."""

    read: Callable[[Array, Batch], Array]
    distance: Callable[[Array, Array, Batch, Array | None], Array]


JUDGEMENTS = {
    "depth": Judgement(_aligned_depth, lambda a, b, batch, weight: weighted_l1(a, b, mask_of(batch), weight)),
    "normals": Judgement(_unit_normals, lambda a, b, batch, weight: angular_error(a, b, mask_of(batch))),
}


def describe_end_to_end(*, noise: str = "zeros", **options: Any) -> dict[str, Any]:
    """Returns the fields of `ModelIndex` that tell how a model trained with these options is run."""
    return END_TO_END | ({"noise": noise} if noise in OPTIONS["noise"].values else {})


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

    A network judged like this learns to pass over the noise, and members of an ensemble are all the same. With `spread`
    it sees every image twice, with different noise, and is rewarded for how far the two predictions are apart: for 1
    the score of an ensemble of two is the fair CRPS (arXiv 2412.15832, section 2), least where members scatter as
    widely as the truth might. For less they scatter less, and one alone is not much worse than their median.

    Args:
        target: "depth" or "normals".
        noise: what takes the place of the noisy target's latent: "zeros", or a row of `NOISES`.
        strength: of noise that has one.
        units: of the depth loss; a row of `UNITS`. All but "normalised" want `span` (b,) in the batch, the metres that
            the target's [-1, 1] stands for; "relative" also wants `depth` (b, h, w, 1), metres.
        compute_dtype: of the networks. Parameters, alignment, loss and gradients are float32 in any case.
        remat: a row of `REMAT`, for UNet and decoder. With any but "none", images are decoded one at a time.
        align: what the loss of `training.objectives.alignment` is worth beside this one.
        spread: what half the distance between two members is worth, from 0 to 1; 0 makes do with one.

    Raises:
        ValueError: the target, noise, units or remat is unknown, or members would differ in nothing.
    """
    row(TARGETS, "target", target)
    draw, weigh = row(DRAWS, "noise", noise), row(UNITS, "units", units)
    judgement, checkpoint = JUDGEMENTS[target], row(REMAT, "remat", remat)
    if spread and noise == "zeros":
        raise ValueError(f"objective: spread is {spread} and noise is 'zeros': wanted noise for members to differ by")
    members = 2 if spread else 1
    last, also = schedule.num_train_timesteps - 1, make_alignment(align)

    def objective(
        params: Params, frozen: Frozen, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float32[Array, ""], Metrics]:
        unet = functional.merge(unet_structure, cast(params, compute_dtype))
        vae = functional.merge(vae_structure, cast(frozen["vae"], compute_dtype))
        rgb = jax.lax.stop_gradient(vae.encode(batch["rgb"].astype(compute_dtype)))
        images, rgb = len(rgb), jnp.concatenate([rgb] * members)
        timesteps = jnp.full(len(rgb), last, jnp.int32)
        x_t = draw(key, rgb.shape, jnp.full(len(rgb), strength, jnp.float32))
        context = context_of(frozen, len(rgb), compute_dtype)
        # A UNet that was never widened reads the image alone.
        widened = unet.config.in_channels > vae.config.latent_channels
        seen = jnp.concatenate([rgb, x_t.astype(compute_dtype)], axis=-1) if widened else rgb
        taps: list[Array] = []
        output = unet(seen, timesteps, context, checkpoint, taps)
        latents = schedule.predict_x0(x_t, output, timesteps).astype(compute_dtype)

        if remat == "none":
            pixels = vae.decode(latents)
        else:
            pixels = jax.lax.map(lambda latent: vae.decode(latent[None], checkpoint)[0], latents)
        predictions = [judgement.read(of_one, batch) for of_one in jnp.split(pixels.astype(jnp.float32), members)]
        weight = weigh(batch) if target == "depth" else None
        truth = batch[TARGETS[target][0]]
        loss = sum(judgement.distance(prediction, truth, batch, weight) for prediction in predictions) / members
        metrics = {"valid_pixels": jnp.mean(mask_of(batch), dtype=jnp.float32)}
        if spread:
            metrics["apart"] = judgement.distance(*predictions, batch, weight)
            loss -= spread / 2 * metrics["apart"]
        return also(loss, metrics, params, frozen, batch, [tap[:images] for tap in taps])

    return objective
