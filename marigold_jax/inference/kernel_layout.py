"""The order in memory in which a platform's convolutions read their kernels, so that no call has to reorder them."""

from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental.layout import Format, Layout

# Axes of a kernel (height, width, input, output), the slowest in memory first. cuDNN reads the output first; XLA reads
# kernels in JAX's own order on CPUs, and chooses for each convolution on TPUs.
ORDERS = {"gpu": (3, 0, 1, 2)}


def arranged(params: Mapping[str, Any], platform: str) -> dict[str, Any]:
    """Returns the parameters with the kernels of convolutions in the order of the platform.

    Shapes and values do not change. `jax.jit` compiles for the order of its arguments.

    Args:
        params: by name; arrays, or shapes with shardings to compile for.
        platform: "cpu", "gpu" or "tpu".
    """
    order = ORDERS.get(platform)

    def one(x: Any) -> Any:
        sharding = getattr(x, "sharding", None)  # none: a shape of which nothing is compiled yet
        if order is None or sharding is None or x.ndim != len(order):
            return x
        format = Format(Layout(order), sharding)
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=format)
        return jax.device_put(x, format)

    return {name: one(x) for name, x in params.items()}
