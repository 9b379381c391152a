"""The signature of all objectives, and tables that several of them use.

An objective is a function `(params, frozen, batch, key) -> (loss, metrics)`. `params` are the parameters that train.
`frozen` holds the arrays that do not train, by name: `{"vae": params, "empty_prompt": (n, d)}`. An objective that
compares with the moving average of its weights also reads `"target"`, that average, and `"unet"`, the weights that
training began with. A batch holds float32 images: `rgb` (b, h, w, 3) in [-1, 1], a target under its key
(`training.targets`), and optionally `mask` (b, h, w, 1), True where the target is valid. Without a mask, every pixel is
valid. If its row in `OBJECTIVES` says `reads_latents`, an objective also accepts batches with latents in place of
images: `latents` (b, 2, i, j, z), of the image and of the target, and `latent_mask` (b, i, j, 1). `metrics` are scalars
for the log.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array, PRNGKeyArray

from marigold_jax.diffusion.noise import gaussian, multi_resolution_noise, offset_noise
from marigold_jax.models.functional import Params
from marigold_jax.training.batch import Batch

Frozen = Mapping[str, Any]
Metrics = dict[str, Array]
Objective = Callable[[Params, Frozen, Batch, PRNGKeyArray], tuple[Array, Metrics]]

NOISES = {
    "gaussian": lambda key, shape, strength: gaussian(key, shape),
    "offset": offset_noise,
    "multi_resolution": multi_resolution_noise,
}


def _is_linear_layer(primitive: Any, *operands: Any, **options: Any) -> bool:
    """Whether a kernel multiplies tokens (b, n, c). JAX's policies would store the logits of blockwise attention."""
    return primitive is jax.lax.dot_general_p and [operand.ndim for operand in operands] == [3, 2]


# What is stored inside a resnet or transformer block for the backward pass: everything, nothing, or the outputs of
# linear layers. With the last two, convolutions and attention are computed again. (XLA for CPUs merges the
# repeated computations, so no memory is saved there; XLA for GPUs and TPUs does not.)
REMAT = {
    "none": lambda function: function,
    "blocks": functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable),
    "dots": functools.partial(jax.checkpoint, policy=_is_linear_layer),
}


def row(table: Mapping[str, Any], option: str, name: str) -> Any:
    """Returns an entry of a table. Raises ValueError, which lists the names in the table, if there is none."""
    if name not in table:
        raise ValueError(f"objective: {option} is {name!r}, wanted one of {', '.join(table)}")
    return table[name]


def cast(params: Params, dtype: jax.typing.DTypeLike) -> Params:
    return {name: array.astype(dtype) for name, array in params.items()}
