"""Converts modules to plain arrays and back. Outside models/, the project uses no other part of NNX.

Parameters are a flat dict from dotted path ("down_blocks.0.resnets.1.conv1.kernel") to array. Up to its last segment,
the path is the name in a diffusers file. Conversion, sharding, checkpoints and optimisers all use it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from marigold_jax.models.layers import Keys

Params = dict[str, Any]  # of jax.Array, numpy.ndarray or jax.ShapeDtypeStruct
Structure = tuple[nnx.GraphDef, tuple[tuple[tuple[str | int, ...], type], ...]]


def split(module: nnx.Module) -> tuple[Structure, Params]:
    """Returns the hashable structure of a module, and its parameters."""
    graph, state = nnx.split(module)
    flat = list(nnx.to_flat_state(state))
    structure = graph, tuple((path, type(variable)) for path, variable in flat)
    return structure, {".".join(map(str, path)): variable.get_value() for path, variable in flat}


def merge(structure: Structure, params: Mapping[str, Any]) -> Any:
    """Returns the module with these parameters. Under jit this costs nothing."""
    graph, leaves = structure
    state = nnx.from_flat_state([(path, kind(params[".".join(map(str, path))])) for path, kind in leaves])
    return nnx.merge(graph, state)


def names(structure: Structure) -> list[str]:
    """Returns the paths of the module's parameters."""
    return [".".join(map(str, path)) for path, _ in structure[1]]


def abstract(make: Callable[[Keys], nnx.Module]) -> tuple[Structure, Params]:
    """Returns the structure and the shapes of the module that `make` builds, without allocating arrays."""
    return split(nnx.eval_shape(lambda: make(Keys(jax.random.key(0)))))


def initialise(make: Callable[[Keys], nnx.Module], seed: int = 0) -> tuple[Structure, Params]:
    """Returns the structure and random parameters: kernels are normal with variance 1 / fan-in, norms are the identity.

    NumPy draws them: to compile seven hundred draws of different shapes would take longer than to train a small model.
    """
    structure, shapes = abstract(make)
    random = np.random.default_rng(seed)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        leaf = path.rpartition(".")[2]
        if leaf in ("bias", "scale"):
            return np.full(shape, leaf == "scale", np.float32)
        fan_in = np.prod(shape[:-1]) if leaf == "kernel" else shape[-1]
        return random.standard_normal(shape, np.float32) / np.float32(fan_in**0.5)

    return structure, {path: jnp.asarray(draw(path, array.shape)) for path, array in shapes.items()}
