"""What differs between depth and normals: how three decoded channels become a prediction, and how members are merged.

The rest of the pipeline is one. How predictions are drawn and saved stands in `data/predictions.py`, under the same
names.
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
        name: "depth" or "normals".
        channels: of the prediction.
        traits: fields of `ModelIndex` that matter, with the values taken where the file does not say.
        from_pixels: decoded pixels (b, h, w, 3), nominally in [-1, 1], to predictions (b, h, w, channels).
        alone: predictions of no ensemble (b, h, w, channels) and the mask of pixels that count (b, h, w), to what is
            returned of them.
        merge: members (e, h, w, channels) and the mask of pixels that count, to the prediction (h, w, channels) and its
            uncertainty (h, w, 1).
        finish: on the host, after resizing (h, w, channels): back into the range that the prediction promises.
        clip: in its place, where what resizing made of a prediction is to stay: nothing but that.
    """

    name: str
    channels: int
    traits: Traits
    from_pixels: Callable[[Array, Traits], Array]
    alone: Callable[[Array, Array, Traits], Array]
    merge: Callable[..., tuple[Array, Array]]
    has_metres: bool
    finish: Callable[[np.ndarray], np.ndarray]
    clip: Callable[[np.ndarray], np.ndarray]


def _depth_from_pixels(pixels: Float[Array, "b h w 3"], traits: Traits) -> Float[Array, "b h w 1"]:
    """The mean of the channels, clipped and mapped from [-1, 1] to [0, 1]: 0 near, 1 far."""
    return (jnp.clip(pixels.mean(axis=-1, keepdims=True), -1, 1) + 1) / 2


def _alone_depth(depth: Float[Array, "b h w 1"], mask: Bool[Array, "b h w"], traits: Traits) -> Float[Array, "b h w 1"]:
    """As it is; or, where the training left scale and shift free, from the nearest pixel at 0 to the farthest at 1."""
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

    A training that looked at directions alone is not clipped: clipping would turn what is longer.
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


MODALITIES = {
    "depth": Modality(
        "depth",
        1,
        {"scale_invariant": True, "shift_invariant": True, "stretch": False},
        _depth_from_pixels,
        _alone_depth,
        _merge_depth,
        True,
        lambda depth: np.clip(depth, 0, 1),  # bicubic resizing overshoots
        lambda depth: np.clip(depth, 0, 1),
    ),
    "normals": Modality(
        "normals",
        3,
        {"use_full_z_range": True, "stretch": False, "x_axis": "right"},
        _normals_from_pixels,
        lambda normals, mask, traits: normals,
        _merge_normals,
        False,
        _unit_length,
        lambda normals: np.clip(normals, -1, 1),
    ),
}

_BY_PREDICTION_TYPE = {"depth": "depth", "disparity": "depth", "normals": "normals"}
_BY_CLASS = {
    "MarigoldPipeline": "depth",
    "MarigoldDepthPipeline": "depth",
    "MarigoldNormalsPipeline": "normals",
}


def _named(index: ModelIndex) -> str | None:
    kind, class_name = index.prediction_type, index.class_name
    return _BY_PREDICTION_TYPE.get(kind) if kind is not None else _BY_CLASS.get(class_name)


def says_otherwise(index: ModelIndex, modality: str | None) -> str | None:
    """The modality that a `model_index.json` names, where that is another than `modality`; else None."""
    named = _named(index)
    return None if modality is None or named == modality else named


def modality_of(index: ModelIndex) -> Modality:
    """The modality that a `model_index.json` describes, its traits filled in.

    Raises ValueError where it is neither depth nor normals, or does not say.
    """
    kind, class_name = index.prediction_type, index.class_name
    name = _named(index)
    if kind is None and name is None:
        raise ValueError(
            f"model_index.json: _class_name {class_name!r} does not tell depth from normals; say which with --modality "
            "(in Python: modality=...), or have the folder's name say so"
        )
    if name is None:
        raise ValueError(
            f"model_index.json: prediction_type {kind!r}, _class_name {class_name!r}: neither depth nor normals"
        )
    modality = MODALITIES[name]
    known = {key: value for key in modality.traits if (value := getattr(index, key)) is not None}
    return dataclasses.replace(modality, traits={**modality.traits, **known})
