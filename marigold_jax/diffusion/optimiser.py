"""Optimisers and their learning rate, as Marigold (arXiv 2312.02145) and E2E-FT (arXiv 2409.11355) use them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float32, Int


def iter_exponential(
    learning_rate: float, total_steps: int = 25_000, final_ratio: float = 0.01, warmup_steps: int = 100
) -> optax.Schedule:
    """Returns a schedule: linear warm-up from 0, exponential decay to `final_ratio` of the peak, then constant.

    It is a function of the number of completed steps. So the first update has a learning rate of 0, and changes only
    Adam's moments.

    Raises:
        ValueError: unless 0 <= warmup_steps < total_steps and final_ratio > 0.
    """
    if not 0 <= warmup_steps < total_steps or final_ratio <= 0:
        raise ValueError(
            "iter_exponential: wanted 0 <= warmup_steps < total_steps and final_ratio > 0; "
            f"got {warmup_steps}, {total_steps} and {final_ratio}"
        )

    def schedule(completed: Int[Array, ""] | int) -> Float32[Array, ""]:
        completed = jnp.asarray(completed, jnp.float32)
        warmup = completed / max(warmup_steps, 1)
        progress = jnp.minimum((completed - warmup_steps) / (total_steps - warmup_steps), 1.0)
        return learning_rate * jnp.where(completed < warmup_steps, warmup, jnp.float32(final_ratio) ** progress)

    return schedule


class LearningRateState(NamedTuple):
    """The number of updates so far, and the learning rate of the last one."""

    count: Int[Array, ""]
    learning_rate: Float32[Array, ""]


def follow(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns the last link of an optimiser: it multiplies updates by minus the scheduled rate, and stores the rate."""

    def init(params: Any) -> LearningRateState:
        return LearningRateState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

    def update(updates: Any, state: LearningRateState, params: Any = None) -> tuple[Any, LearningRateState]:
        rate = jnp.asarray(schedule(state.count), jnp.float32)
        return jax.tree.map(lambda x: -rate * x, updates), LearningRateState(state.count + 1, rate)

    return optax.GradientTransformation(init, update)


def _factored(decay: optax.GradientTransformation, adam: optax.GradientTransformation) -> tuple:
    """Adafactor without momentum. The RMS of the update of each array is at most the learning rate."""
    return optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), decay


# The order of transformations. Weight decay comes before the moments (L2) or after them (decoupled, arXiv 1711.05101).
_ORDERS = {
    "adam": lambda decay, adam: (decay, adam),
    "adamw": lambda decay, adam: (adam, decay),
    "adafactor": _factored,
}


def make_optimiser(
    name: str,
    schedule: optax.Schedule,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
) -> optax.GradientTransformation:
    """Returns the optimiser `name`, after optional clipping by the global norm.

    "adam" and "adamw" equal PyTorch's. "adafactor" is optax's, without momentum (arXiv 1804.04235): its state has a few
    megabytes, while Adam's has twice the size of the parameters; it does not use `betas` and `epsilon`.
    `optax.tree.get(state, "learning_rate")` is the learning rate of the last update.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in _ORDERS:
        raise ValueError(f"make_optimiser: name is {name!r}, wanted one of {', '.join(_ORDERS)}")
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    decay = optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity()
    adam = optax.scale_by_adam(*betas, eps=epsilon)
    chain = optax.chain(clip, *_ORDERS[name](decay, adam), follow(schedule))

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to the power of its int32 count
            return chain.update(gradients, state, params)

    return optax.GradientTransformation(chain.init, update)
