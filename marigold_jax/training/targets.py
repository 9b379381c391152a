"""What a network can be trained to predict: one row per modality.

`runs.base_model.EXPORTED_AS` has a row of the same name, with what the exported checkpoint says about itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Array, Float

from marigold_jax.data import targets as data_targets
from marigold_jax.diffusion.losses import angular_error, weighted_l1
from marigold_jax.training.batch import Batch, mask_of
from marigold_jax.training.pixels import aligned_depth, depth_to_pixels, normals_to_pixels, unit_normals
from marigold_jax.training.validation import Scored, predict_depth, predict_normals, reconstruct
from marigold_jax.weights.model import DiffusionModel


@dataclass(frozen=True)
class Validation:
    """How a model is scored while it trains.

    Attributes:
        validate: `validate(model, examples)` returns scores by name and a picture of the first examples.
        primary_metric: the score that decides which checkpoint is the best: the lower, the better.
    """

    validate: Callable[[DiffusionModel, Sequence], Scored]
    primary_metric: str


@dataclass(frozen=True)
class Target:
    """One modality in training.

    Attributes:
        data: how it is stored, mirrored and masked, and its keys in examples and samples.
        channels: of the array in a batch.
        to_pixels: from that array (b, h, w, channels) to the image (b, h, w, 3) in [-1, 1] that the VAE encodes.
        from_pixels: `from_pixels(decoded pixels, batch)` returns the prediction that end-to-end training compares.
        distance: `distance(a, b, batch, weight)` returns the mean error between two of them; `weight` may be None.
        has_units: errors are weighted by a row of `objectives.end_to_end.UNITS`.
        validation: of a model that predicts it.
    """

    data: data_targets.Target
    channels: int
    to_pixels: Callable[[Array], Float[Array, "b h w 3"]]
    from_pixels: Callable[[Array, Batch], Array]
    distance: Callable[[Array, Array, Batch, Array | None], Array]
    has_units: bool
    validation: Validation

    @property
    def feature(self) -> str:
        """Its key in an example of a prepared dataset."""
        return self.data.map

    @property
    def key(self) -> str:
        """Its key in a batch."""
        return self.data.sample_key


TARGETS = {
    "depth": Target(
        data=data_targets.DEPTH,
        channels=1,
        to_pixels=depth_to_pixels,
        from_pixels=aligned_depth,
        distance=lambda a, b, batch, weight: weighted_l1(a, b, mask_of(batch), weight),
        has_units=True,
        validation=Validation(predict_depth, "abs_rel"),
    ),
    "normals": Target(
        data=data_targets.NORMALS,
        channels=3,
        to_pixels=normals_to_pixels,
        from_pixels=unit_normals,
        distance=lambda a, b, batch, weight: angular_error(a, b, mask_of(batch)),
        has_units=False,
        validation=Validation(predict_normals, "mean_angle"),
    ),
}

# By the component that trains, then by what the model predicts. A VAE is scored by what it reconstructs.
VALIDATIONS = {
    "unet": {name: target.validation for name, target in TARGETS.items()},
    "vae": dict.fromkeys(TARGETS, Validation(reconstruct, "abs_rel")),
}
