"""What every objective is, and the tables that several of them read.

An objective is a function `(params, frozen, batch, key) -> (loss, metrics)`. `params` are the parameters that train.
`frozen` are the arrays that do not, by what they are: `{"vae": params, "empty_prompt": (n, d)}`, and for an objective
that follows its own average also `"target"`, that average, and `"unet"`, what training began with. A batch holds
float32 images: `rgb` (b, h, w, 3) in [-1, 1], the key of its target (`TARGETS`), and optionally `mask` (b, h, w, 1),
True where the target is valid; without one, everything counts. Where its row in `OBJECTIVES` says so, an objective also
reads batches that hold, in place of images, what the VAE made of them: `latents` (b, 2, i, j, z), of the image and of
the target, and `latent_mask` (b, i, j, 1). `metrics` are scalars to be logged.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from marigold_jax.diffusion.noise import gaussian, multi_resolution_noise, offset_noise
from marigold_jax.models.functional import Params

Batch = Mapping[str, Array | np.ndarray]
Frozen = Mapping[str, Any]
Metrics = dict[str, Array]
Objective = Callable[[Params, Frozen, Batch, PRNGKeyArray], tuple[Array, Metrics]]

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


def row(table: Mapping[str, Any], option: str, name: str) -> Any:
    """The entry of a table, or a ValueError that lists what there is."""
    if name not in table:
        raise ValueError(f"objective: {option} is {name!r}, wanted one of {', '.join(table)}")
    return table[name]


def cast(params: Params, dtype: jax.typing.DTypeLike) -> Params:
    return {name: array.astype(dtype) for name, array in params.items()}


def mask_of(batch: Batch) -> Array:
    """(b, h, w, 1): the batch's own, or one that is True everywhere."""
    return batch["mask"] if "mask" in batch else jnp.ones((*batch["rgb"].shape[:3], 1), bool)
