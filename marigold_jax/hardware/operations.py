"""Counts the operations of matrix products and convolutions in a function, from its jaxpr.

XLA counts the body of a loop once and ignores kernels of Pallas and cuDNN. Here, the body of a loop is counted once per
iteration. The other operations of a network (norms, activations, softmax) are few in comparison and do not use the
matrix units.
"""

import math
from collections.abc import Callable
from typing import Any

import jax


def flops(function: Callable, *arguments: Any) -> float:
    """Returns the operations of one call on all devices together. A multiplication and an addition are two operations.

    Arguments may be arrays or `jax.ShapeDtypeStruct`. A loop of unknown length is counted once. For a conditional, the
    branch with the most operations is counted.
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of_jaxpr(jaxpr: Any) -> float:
    return sum((_of_equation(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns), 0.0)


def _of_equation(equation: Any) -> float:
    name, options = equation.primitive.name, equation.params
    if name in _COUNTS:
        return _COUNTS[name](equation)
    if name == "cond":
        return max(map(_of_jaxpr, options["branches"]))
    return _repetitions(name, options) * sum(map(_of_jaxpr, _inner(options)), 0.0)


def _inner(options: dict[str, Any]) -> list[Any]:
    """Returns the jaxprs inside a call, a loop or a kernel, under whatever parameter name they are stored."""
    return [value for value in options.values() if hasattr(value, "eqns") or hasattr(value, "jaxpr")]


def _repetitions(name: str, options: dict[str, Any]) -> int:
    if name == "scan":
        return options["length"]
    if name == "pallas_call":
        return math.prod(options["grid_mapping"].grid)
    if name == "shard_map":  # its jaxpr is the work of one device; ours are split over all devices
        return options["mesh"].size
    return 1


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod([left[axis] for axis in contracted])


def _convolution(equation: Any) -> float:
    # Each output element is a sum over all axes of the kernel except the output channels.
    layout = equation.params["dimension_numbers"]
    kernel = equation.invars[1].aval.shape
    products = math.prod(kernel) / kernel[layout.rhs_spec[0]] / equation.params["batch_group_count"]
    dilation = math.prod(equation.params["lhs_dilation"])  # zeros inserted between inputs cost nothing
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * products / dilation


def _cudnn_attention(products: int) -> Callable[[Any], float]:
    """Counts products of queries x keys x width; arrays are (batch, length, heads, width)."""

    def count(equation: Any) -> float:
        query, key = (equation.invars[index].aval.shape for index in (0, 1))
        return 2.0 * products * math.prod(query) * key[1]

    return count


_COUNTS = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "dot_product_attention_fwd_wrapper": _cudnn_attention(2),
    "dot_product_attention_bwd_wrapper": _cudnn_attention(5),  # one of them computes the logits again
}
