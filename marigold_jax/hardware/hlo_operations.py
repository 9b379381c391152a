"""Counts the operations of matrix products, convolutions and attention in instructions of a compiled program.

A multiplication and an addition are two operations. `operations.py` counts a function before it is compiled.
"""

import math
import re

from marigold_jax.hardware.hlo import Computation, Instruction, Program
from marigold_jax.hardware.hlo_shapes import Shape

_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_DILATED = re.compile(r"lhs_dilate=([\dx]+)")
_GROUPS = re.compile(r"batch_group_count=(\d+)")
_LIBRARY_DIMENSIONS = re.compile(r'"lhs_contracting_dimensions":(\[[^\]]*\])')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')

# Which arrays of a cuDNN call are the outputs and the kernel of the convolution that it belongs to, as an index of its
# operands, or None for its result. Other calls are those convolutions themselves: (None, 1).
_GRADIENTS = {"BackwardInput": (0, 1), "BackwardFilter": (1, None)}


# Words in the name of an attention kernel -> products of queries x keys x width. The first that matches is used. The
# backward pass recomputes the logits.
_PRODUCTS = {"dkv": 4, "dq": 3, "fmhaSoftmaxBackward": 5, "fmhaScaleBiasSoftmaxBackward": 5, "": 2}


def operations(program: Program, computation: Computation, one: Instruction) -> float:
    """Returns the operations of one run of an instruction, with those inside a fusion."""
    if one.opcode == "fusion":
        return sum((_own(inner, each) for inner, each in program.inside(one)), 0.0)
    return _own(computation, one)


def target(one: Instruction) -> str:
    """Returns the function that a custom call calls, or ""."""
    match = _TARGET.search(one.attributes) if one.opcode == "custom-call" else None
    return match[1] if match else ""


def is_attention(one: Instruction) -> bool:
    name = target(one)
    return "fmha" in name or (name == "tpu_custom_call" and "flash" in one.op_name)


def _own(computation: Computation, one: Instruction) -> float:
    if one.opcode not in ("dot", "convolution", "custom-call"):
        return 0.0
    operands = [shape for name in one.operands if name in computation for shape in computation[name].shapes[:1]]
    name = target(one)
    if is_attention(one):
        return _attention(one, operands)
    if one.opcode == "dot":
        return _product(one, operands, _CONTRACTED)
    if "gemm" in name or "cublas" in name:
        return _product(one, operands, _LIBRARY_DIMENSIONS)
    if one.opcode == "convolution" or "cudnn$conv" in name:
        return _convolution(one, operands, name)
    return 0.0


def _product(one: Instruction, operands: list[Shape], dimensions: re.Pattern) -> float:
    match = dimensions.search(one.attributes)
    if not match or not operands:
        return 0.0
    contracted = [int(axis) for axis in re.findall(r"\d+", match[1])]
    return 2.0 * one.shapes[0].elements * math.prod(operands[0].sides[axis] for axis in contracted)


def _convolution(one: Instruction, operands: list[Shape], name: str) -> float:
    labels = _LABELS.search(one.attributes)
    if not labels or len(operands) < 2:
        return 0.0
    places = next((places for word, places in _GRADIENTS.items() if word in name), (None, 1))
    outputs, kernel = (one.shapes[0] if place is None else operands[place] for place in places)
    # Each output is a sum over all axes of the kernel except its output features.
    products = kernel.elements / kernel.sides[labels[2].index("o")]
    if groups := _GROUPS.search(one.attributes):
        products /= int(groups[1])
    if dilated := _DILATED.search(one.attributes):  # zeros inserted between inputs cost nothing
        products /= math.prod(map(int, dilated[1].split("x")))
    return 2.0 * outputs.elements * products


def _attention(one: Instruction, operands: list[Shape]) -> float:
    query, key = operands[:2]
    kernel = target(one) + one.op_name
    products = next(count for word, count in _PRODUCTS.items() if word in kernel)
    # Queries are (batch, heads, length, width); cuDNN's are (batch, length, heads, width), its results the former.
    *_, heads, _, width = one.shapes[0].sides if "fmha" in kernel else query.sides
    batch = query.sides[0]
    keys = key.elements // (batch * heads * width)
    return 2.0 * products * query.elements * keys
