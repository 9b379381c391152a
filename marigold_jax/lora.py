"""Low-rank adaptation of attention (LoRA, arXiv 2106.09685): train a small correction to each projection's kernel.

A kernel W (in, out) becomes W + scale · A B, with A (in, rank) random and B (rank, out) zero at first, so that training
starts from the base model itself. `scale` is alpha / rank.
"""

import re

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from marigold_jax.models.functional import Params
from marigold_jax.objectives import Objective

ADAPTED = re.compile(r"(.*\.attn[12]\.to_(?:q|k|v|out))\.kernel")
A, B = "lora_A.kernel", "lora_B.kernel"


def init(params: Params, rank: int, key: PRNGKeyArray) -> Params:
    """Returns the tree that trains: `<projection>.lora_A.kernel` and `<projection>.lora_B.kernel` for each projection.

    A is uniform in ±1 / √in, as PEFT draws it; B is zero.

    Raises:
        ValueError: the base has no attention projections, or the rank is less than 1.
    """
    projections = sorted(match[1] for match in map(ADAPTED.fullmatch, params) if match)
    if not projections or rank < 1:
        raise ValueError(f"lora: rank is {rank} and {len(projections)} projections match; wanted at least 1 of each")
    lora = {}
    for path, one in zip(projections, jax.random.split(key, len(projections)), strict=True):
        inputs, outputs = params[f"{path}.kernel"].shape
        bound = inputs**-0.5
        lora[f"{path}.{A}"] = jax.random.uniform(one, (inputs, rank), jnp.float32, -bound, bound)
        lora[f"{path}.{B}"] = jnp.zeros((rank, outputs), jnp.float32)
    return lora


def merge(params: Params, lora: Params, scale: float) -> Params:
    """Returns the base parameters with every correction added: for the forward pass, and for export."""
    projections = [name.removesuffix(f".{A}") for name in lora if name.endswith(A)]
    corrections = {path: scale * (lora[f"{path}.{A}"] @ lora[f"{path}.{B}"]) for path in projections}
    return dict(params) | {f"{path}.kernel": params[f"{path}.kernel"] + x for path, x in corrections.items()}


def adapt(objective: Objective, scale: float) -> Objective:
    """Returns the objective as a function of the LoRA tree alone; the base parameters go into `frozen["unet"]`."""

    def adapted(lora, frozen, batch, key):
        return objective(merge(frozen["unet"], lora, scale), frozen, batch, key)

    return adapted
