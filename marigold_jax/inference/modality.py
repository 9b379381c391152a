"""What differs between depth and normals: how decoded pixels become a prediction, and how an ensemble is merged.

The rest of the pipeline is the same for both. A new modality is one more row here and one in `inference/outputs.py`,
which has what is drawn and saved under the same key.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from marigold_jax.diffusion.gradients import length
from marigold_jax.ensemble import ensemble_depth, ensemble_normals
from marigold_jax.weights.model_index import ModelIndex

Traits = Mapping[str, Any]  # fields of a model's index


@dataclasses.dataclass(frozen=True)
class Modality:
    """One kind of prediction.

    Attributes:
        name: its key in `MODALITIES`.
        channels: of the prediction.
        has_metres: whether a scale and a shift turn a prediction into metres.
        prediction_types: the values of `prediction_type` in `model_index.json` that mean this modality.
        class_names: likewise for `_class_name`, which is used where there is no `prediction_type`.
        traits: the fields of the model index that matter, with the values taken where it does not have them.
        from_pixels: (pixels, traits): decoded pixels (b, h, w, 3), nominally in [-1, 1], to predictions
            (b, h, w, channels).
        alone: (predictions, mask, traits), without an ensemble: predictions (b, h, w, channels) and the mask of pixels
            that are not padding (b, h, w), to what is returned.
        merge: (members, mask, traits, **options), with an ensemble: members (e, h, w, channels) and the mask (h, w), to
            the prediction (h, w, channels) and its uncertainty (h, w, 1).
        finish: on the host, after resizing (h, w, channels): back into the range that is promised.
        clip: used instead of `finish` where the resized values are kept as they are, but for clipping.
    """

    name: str
    channels: int
    has_metres: bool
    prediction_types: tuple[str, ...]
    class_names: tuple[str, ...]
    traits: Traits
    from_pixels: Callable[[Array, Traits], Array]
    alone: Callable[[Array, Array, Traits], Array]
    merge: Callable[..., tuple[Array, Array]]
    finish: Callable[[np.ndarray], np.ndarray]
    clip: Callable[[np.ndarray], np.ndarray]


def _depth_from_pixels(pixels: Float[Array, "b h w 3"], traits: Traits) -> Float[Array, "b h w 1"]:
    """The mean of the channels, clipped and mapped from [-1, 1] to [0, 1]: 0 is near, 1 is far."""
    return (jnp.clip(pixels.mean(axis=-1, keepdims=True), -1, 1) + 1) / 2


def _alone_depth(depth: Float[Array, "b h w 1"], mask: Bool[Array, "b h w"], traits: Traits) -> Float[Array, "b h w 1"]:
    """Unchanged; or stretched to [0, 1] over the pixels that count, where training left scale and shift free."""
    if not traits["stretch"]:
        return depth
    near = jnp.min(depth, axis=(1, 2, 3), keepdims=True, where=mask[..., None], initial=1)
    far = jnp.max(depth, axis=(1, 2, 3), keepdims=True, where=mask[..., None], initial=0)
    return jnp.clip((depth - near) / jnp.maximum(far - near, 1e-6), 0, 1)


def _merge_depth(
    members: Float[Array, "e h w 1"], mask: Bool[Array, "h w"], traits: Traits, **options: Any
) -> tuple[Float[Array, "h w 1"], Float[Array, "h w 1"]]:
    flags = {key: traits[key] for key in ("scale_invariant", "shift_invariant")}
    depth, uncertainty = ensemble_depth(members[..., 0], mask, **flags, **options)
    return depth[..., None], uncertainty[..., None]


def _normals_from_pixels(pixels: Float[Array, "b h w 3"], traits: Traits) -> Float[Array, "b h w 3"]:
    """Clipped to [-1, 1] and scaled to unit length: x right, y up, z towards the viewer.

    Where the loss saw only directions, nothing is clipped: that would change the direction of a longer vector.
    """
    normals = pixels if traits["stretch"] else jnp.clip(pixels, -1, 1)
    if traits["x_axis"] == "left":
        normals = normals.at[..., 0].multiply(-1)
    if not traits["use_full_z_range"]:
        normals = normals * jnp.asarray([1, 1, 0.5]) + jnp.asarray([0, 0, 0.5])
    return normals / jnp.maximum(length(normals), 1e-6)


def _merge_normals(
    members: Float[Array, "e h w 3"], mask: Bool[Array, "h w"], traits: Traits, **options: Any
) -> tuple[Float[Array, "h w 3"], Float[Array, "h w 1"]]:
    normals, uncertainty = ensemble_normals(members, **options)
    return normals, uncertainty[..., None]


def _unit_length(normals: np.ndarray) -> np.ndarray:
    return normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-6)


def _clip_depth(depth: Float[np.ndarray, "h w 1"]) -> Float[np.ndarray, "h w 1"]:
    """To [0, 1]: bicubic resizing overshoots."""
    return np.clip(depth, 0, 1)


MODALITIES = {
    modality.name: modality
    for modality in (
        Modality(
            name="depth",
            channels=1,
            has_metres=True,
            prediction_types=("depth", "disparity"),
            class_names=("MarigoldPipeline", "MarigoldDepthPipeline"),
            traits={"scale_invariant": True, "shift_invariant": True, "stretch": False},
            from_pixels=_depth_from_pixels,
            alone=_alone_depth,
            merge=_merge_depth,
            finish=_clip_depth,
            clip=_clip_depth,
        ),
        Modality(
            name="normals",
            channels=3,
            has_metres=False,
            prediction_types=("normals",),
            class_names=("MarigoldNormalsPipeline",),
            traits={"use_full_z_range": True, "stretch": False, "x_axis": "right"},
            from_pixels=_normals_from_pixels,
            alone=lambda normals, mask, traits: normals,
            merge=_merge_normals,
            finish=_unit_length,
            clip=lambda normals: np.clip(normals, -1, 1),
        ),
    )
}


def _named(index: ModelIndex) -> str | None:
    """The modality that a `model_index.json` names, if it names one."""
    kind, class_name = index.prediction_type, index.class_name
    for modality in MODALITIES.values():
        if kind in modality.prediction_types or (kind is None and class_name in modality.class_names):
            return modality.name
    return None


def says_otherwise(index: ModelIndex, modality: str | None) -> str | None:
    """The modality that a `model_index.json` names, where it is another than `modality`; else None."""
    named = _named(index)
    return None if modality is None or named == modality else named


def modality_of(index: ModelIndex) -> Modality:
    """The modality that a `model_index.json` names, with the traits that the file sets.

    Raises ValueError where the file names none, or one that is not known here.
    """
    kind, class_name, name = index.prediction_type, index.class_name, _named(index)
    if kind is None and name is None:
        raise ValueError(
            f"model_index.json: _class_name {class_name!r} does not tell {' from '.join(MODALITIES)}; say which with "
            "--modality (in Python: modality=...), or have the folder's name say so"
        )
    if name is None:
        wanted = [each for modality in MODALITIES.values() for each in modality.prediction_types]
        raise ValueError(f"model_index.json: prediction_type is {kind!r}, wanted one of {', '.join(wanted)}")
    modality = MODALITIES[name]
    known = {key: value for key in modality.traits if (value := getattr(index, key)) is not None}
    return dataclasses.replace(modality, traits={**modality.traits, **known})
