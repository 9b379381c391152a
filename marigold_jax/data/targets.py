"""What a model can learn to predict, as the data side sees it: one row for each target, in `TARGETS`.

A row says how the target's map is stored, restored, mirrored and masked. To add a target, add a row here, and store its
map in the reader of each kind of raw data that has one (`data.raw_kinds`). What the network makes of a target is in
`inference.modality`, and how training encodes one in `training.objectives.contract`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32

from marigold_jax.data.record import Feature, restore_normals


@dataclass(frozen=True)
class Target:
    """One quantity that a model can learn to predict.

    Attributes:
        name: what configurations and messages call it.
        map: its key in a record and in an example (`data.prepared`).
        sample_key: its key in a training sample (`data.transforms.transform`).
        stored: the ways in which a record may hold the map.
        restore: a stored map to the map of an example. None: the dataset's `DepthFormat` decides.
        mirror: applied to the values of a map whose pixels have been mirrored left to right. None changes nothing.
        is_known: (h, w, c) to (h, w, 1), False where the map has no value. None: the mask of the depth decides.
    """

    name: str
    map: str
    sample_key: str
    stored: tuple[Feature, ...]
    restore: Callable[[np.ndarray], np.ndarray] | None = None
    mirror: Callable[[np.ndarray], np.ndarray] | None = None
    is_known: Callable[[np.ndarray], np.ndarray] | None = None


def _negate_x(normals: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w 3"]:
    return normals * np.float32([-1, 1, 1])


def _is_nonzero(vectors: Float32[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w 1"]:
    return vectors.any(axis=-1, keepdims=True)


DEPTH = Target(
    "depth", map="depth", sample_key="target", stored=(Feature("Image", "uint16", 1), Feature("Tensor", "float32", 1))
)
NORMALS = Target(
    "normals",
    map="normals",
    sample_key="normals",
    stored=(Feature("Tensor", "int16", 3),),
    restore=restore_normals,
    mirror=_negate_x,
    is_known=_is_nonzero,
)

TARGETS = {target.name: target for target in (DEPTH, NORMALS)}
# Every dataset has depth. These maps are optional, and are read only by a run that asks for them.
OPTIONAL_MAPS = frozenset(target.map for target in TARGETS.values()) - {DEPTH.map}
