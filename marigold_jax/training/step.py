"""One optimiser step, in two compiled halves: add the gradient of a micro-batch, then update with the sum.

Micro-batches of one step may differ in shape, because datasets do. So the first half is compiled once per shape, and
the second half once. Both are pure functions. Random numbers depend only on the seed, the step and the micro-batch, so
a resumed run draws the same ones as an uninterrupted run.

The training state is a plain dict:

| key       | holds                                                                          |
|-----------|--------------------------------------------------------------------------------|
| params    | name -> float32 array                                                          |
| opt_state | of optax; its moments are dicts with the names of `params`                     |
| step      | int32, updates so far, skipped ones among them                                 |
| skipped   | int32, updates skipped in a row because the loss or a gradient was not finite  |
| ema       | optional: name -> exponential moving average of the parameter                  |
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from marigold_jax.hardware import compiler_options
from marigold_jax.models.functional import Params
from marigold_jax.runtime.sharding import Layout
from marigold_jax.training.objectives.contract import Batch, Frozen, Metrics, Objective

TrainState = dict[str, Any]
Accumulator = dict[str, Any]  # {"gradients": as params, "loss": scalar, "metrics": scalars}
Accumulate = Callable[..., Accumulator]
Update = Callable[[TrainState, Accumulator], tuple[TrainState, Metrics]]


class Programs(NamedTuple):
    """The compiled functions of training; see `make_programs`."""

    zeros: Callable[..., Accumulator]
    add: Callable[..., Accumulator]
    apply: Callable[[TrainState, Accumulator], tuple[TrainState, Metrics]]


def init_state(
    params: Params, optimiser: optax.GradientTransformation, ema: bool = False, layout: Layout | None = None
) -> TrainState:
    """Returns the state before the first step, with every array created where `layout` places it.

    The state holds copies, so updating it does not change `params`. Delete those to free their memory.
    """
    init = functools.partial(_initial, optimiser=optimiser, ema=ema)
    shardings = None if layout is None else layout.shardings(jax.eval_shape(init, params))
    return jax.jit(init, out_shardings=shardings)(params if layout is None else layout.place(params))


def state_shapes(params: Params, optimiser: optax.GradientTransformation, ema: bool, layout: Layout) -> TrainState:
    """Returns the shapes of what `init_state` returns, without computing anything or using memory."""
    return layout.shapes(jax.eval_shape(functools.partial(_initial, optimiser=optimiser, ema=ema), params))


def _initial(params: Params, optimiser: optax.GradientTransformation, ema: bool) -> TrainState:
    state = {
        "params": jax.tree.map(jnp.copy, params),
        "opt_state": optimiser.init(params),
        "step": jnp.zeros((), jnp.int32),
        "skipped": jnp.zeros((), jnp.int32),
    }
    return state | ({"ema": jax.tree.map(jnp.copy, params)} if ema else {})


def _skip(state: TrainState, gradients: Params) -> TrainState:
    return state | {"skipped": state["skipped"] + 1}


def _metrics(state: TrainState, accumulator: Accumulator) -> Metrics:
    learning_rate = optax.tree.get(state["opt_state"], "learning_rate")
    own = {"loss": accumulator["loss"], "lr": learning_rate, "grad_norm": optax.tree.norm(accumulator["gradients"])}
    return own | {"skipped": state["skipped"]} | accumulator["metrics"]


def _options(layout: Layout | None, batch_size: int) -> dict[str, Any] | None:
    if layout is None or not batch_size:
        return None
    mesh = layout.mesh
    return dict(compiler_options.options(mesh.devices.flat[0].platform, batch_size // mesh.size)) or None


def make_programs(
    objective: Objective,
    optimiser: optax.GradientTransformation,
    *,
    accumulation: int,
    seed: int,
    ema_decay: float | None = None,
    layout: Layout | None = None,
    batch_size: int = 0,
) -> Programs:
    """Returns the compiled parts of an optimiser step; the arguments are those of `make_steps`, which calls them.

    `add(accumulator, params, frozen, micro_batch, step, micro)` adds the gradient of a micro-batch to the accumulator;
    None starts a new one. `zeros(params, frozen, micro_batch)` returns an accumulator of zeros. `apply(state,
    accumulator)` updates the state. Each can be compiled without being run, even for devices that are not present.
    """

    def stay(tree: Any) -> Any:
        return tree if layout is None else jax.lax.with_sharding_constraint(tree, layout.shardings(tree))

    def meshed() -> contextlib.AbstractContextManager:
        """Gives the mesh to kernels that split themselves over devices, because the compiler cannot."""
        return contextlib.nullcontext() if layout is None else jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh)

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=_options(layout, batch_size))
    def add(
        accumulator: Accumulator | None, params: Params, frozen: Frozen, batch: Batch, step: Array, micro: Array
    ) -> Accumulator:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), micro)
        with meshed():
            (loss, metrics), gradients = jax.value_and_grad(objective, has_aux=True)(params, frozen, batch, key)
        part = {"gradients": gradients, "loss": loss, "metrics": metrics}
        part = jax.tree.map(lambda x: x.astype(jnp.float32) / accumulation, part)
        return stay(part if accumulator is None else jax.tree.map(jnp.add, accumulator, part))

    @jax.jit
    def zeros(params: Params, frozen: Frozen, batch: Batch) -> Accumulator:
        with meshed():
            loss, metrics = jax.eval_shape(objective, params, frozen, batch, jax.random.key(seed))
        shapes = {"gradients": params, "loss": loss, "metrics": metrics}
        return stay(jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes))

    def advance(state: TrainState, gradients: Params) -> TrainState:
        updates, opt_state = optimiser.update(gradients, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        new = {"params": params, "opt_state": opt_state, "skipped": jnp.zeros_like(state["skipped"])}
        if ema_decay is not None:
            new["ema"] = jax.tree.map(lambda mean, x: mean + (1 - ema_decay) * (x - mean), state["ema"], params)
        return state | new

    @functools.partial(jax.jit, donate_argnums=0)
    def apply(state: TrainState, accumulator: Accumulator) -> tuple[TrainState, Metrics]:
        gradients, loss = accumulator["gradients"], accumulator["loss"]
        finite = jnp.stack([jnp.isfinite(x).all() for x in (loss, *gradients.values())]).all()
        # A conditional: to select between old and new arrays would make XLA repeat the check in the kernel of every
        # array, and compilation would take minutes.
        state = jax.lax.cond(finite, advance, _skip, state, gradients)
        return stay(state | {"step": state["step"] + 1}), _metrics(state, accumulator)

    return Programs(zeros, add, apply)


def make_steps(
    objective: Objective,
    optimiser: optax.GradientTransformation,
    *,
    accumulation: int,
    seed: int,
    ema_decay: float | None = None,
    layout: Layout | None = None,
    batch_size: int = 0,
) -> tuple[Accumulate, Update]:
    """Returns the two halves of an optimiser step.

    `accumulate(accumulator, params, frozen, micro_batch, step, micro) -> accumulator` adds 1 / `accumulation` of the
    loss, its metrics and its gradient. Begin each step with None; the accumulator passed in is donated. `step` and
    `micro` (0 .. accumulation − 1) choose the random numbers.

    `update(state, accumulator) -> (state, metrics)` consumes both. The metrics are scalars: loss, lr (that of the last
    update), grad_norm (before clipping), skipped (in a row), and the means of the objective's own. If the loss or
    any gradient is not finite, parameters, moments and averages do not change; only the counters do.

    Args:
        objective, optimiser: as `training.objectives` and `make_optimiser` return them.
        accumulation, seed: micro-batches per step; seed of all random numbers.
        ema_decay: d in `ema ← d · ema + (1 − d) · params`; the state must have been made with `ema=True`.
        layout: as given to `init_state`; None for a single device.
        batch_size: samples of a micro-batch on all devices together, by which the compiler gets its options (see
            `hardware.compiler_options`); 0 for none.
    """
    programs = make_programs(
        objective,
        optimiser,
        accumulation=accumulation,
        seed=seed,
        ema_decay=ema_decay,
        layout=layout,
        batch_size=batch_size,
    )

    def number(x: int | Array) -> Array:
        """Sends it to the devices explicitly, so that the loop can run under `jax.transfer_guard("disallow")`."""
        return x if isinstance(x, Array) else jax.device_put(np.int32(x), None if layout is None else layout.replicated)

    def accumulate(
        accumulator: Accumulator | None,
        params: Params,
        frozen: Frozen,
        micro_batch: Batch,
        step: int | Array,
        micro: int | Array,
    ) -> Accumulator:
        # A single micro-batch needs no accumulator: its gradient is the sum. Otherwise the sum starts at zero, because
        # to start from None would compile a second program for every shape.
        if accumulator is None and accumulation > 1:
            accumulator = programs.zeros(params, frozen, micro_batch)
        return programs.add(accumulator, params, frozen, micro_batch, number(step), number(micro))

    def update(state: TrainState, accumulator: Accumulator) -> tuple[TrainState, Metrics]:
        if ("ema" in state) != (ema_decay is not None):
            raise ValueError(
                f"update: ema_decay is {ema_decay} and the state has {'an' if 'ema' in state else 'no'} 'ema'; "
                "give both or neither"
            )
        result = programs.apply(state, accumulator)
        # No output has the shapes of the gradients and is not in the state, so JAX cannot use them as a donation. They
        # are freed here, because the caller may still hold a reference.
        jax.tree.map(lambda x: x.delete(), accumulator["gradients"])
        return result

    return accumulate, update
