"""Low-rank adaptation of attention (LoRA, arXiv 2106.09685): trains a low-rank correction of each projection's kernel.

A kernel W (in, out) becomes W + A · B, with A (in, rank) random and B (rank, out) zero at first, so that training
starts from the base model. (In PEFT's terms, alpha equals the rank.) `conv_in`, the layer that learns to read two
latents instead of one, is small, so all of its weights are trained.
"""

import re

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from marigold_jax.models.functional import Params

ADAPTED = re.compile(r"(.*\.attn[12]\.to_(?:q|k|v|out))\.kernel")
WHOLE = ("conv_in.kernel", "conv_in.bias")
A, B = "lora_A.kernel", "lora_B.kernel"


def init(params: Params, rank: int, key: PRNGKeyArray) -> Params:
    """Returns the trainable parameters: `conv_in`, and `<projection>.lora_A.kernel` and `.lora_B.kernel`.

    A is uniform in ±1 / √in, as in PEFT; B is zero.

    Raises:
        ValueError: the base has no attention projections, or the rank is less than 1.
    """
    projections = sorted(match[1] for match in map(ADAPTED.fullmatch, params) if match)
    if not projections or rank < 1:
        raise ValueError(f"lora: rank is {rank} and {len(projections)} projections match; wanted at least 1 of each")
    lora = {name: params[name] for name in WHOLE if name in params}
    for path, one in zip(projections, jax.random.split(key, len(projections)), strict=True):
        inputs, outputs = params[f"{path}.kernel"].shape
        bound = inputs**-0.5
        lora[f"{path}.{A}"] = jax.random.uniform(one, (inputs, rank), jnp.float32, -bound, bound)
        lora[f"{path}.{B}"] = jnp.zeros((rank, outputs), jnp.float32)
    return lora


def merge(params: Params, trained: Params) -> Params:
    """Returns the base parameters with the trained ones applied: for the forward pass and for export.

    Corrections are added to kernels. All other parameters in `trained` replace those of the base, so this works for
    training without LoRA too.
    """
    projections = [name.removesuffix(f".{A}") for name in trained if name.endswith(A)]
    corrections = {path: trained[f"{path}.{A}"] @ trained[f"{path}.{B}"] for path in projections}
    whole = {name: array for name, array in trained.items() if not name.endswith((A, B))}
    return {**params, **whole, **{f"{path}.kernel": params[f"{path}.kernel"] + x for path, x in corrections.items()}}
