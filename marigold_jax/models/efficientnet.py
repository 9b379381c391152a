"""Features of EfficientNet-lite0 (arXiv 1905.11946), pretrained on ImageNet, in NHWC: a frozen teacher.

`weights/teacher.py` folds each batch normalisation into the convolution before it. Parameters are a flat dict, as for
all models: `stem`, and `blocks.N.expand`, `.depthwise` and `.project`, each with a `kernel` and a `bias`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from marigold_jax.models.functional import Params

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the colours of ImageNet, in [0, 1]
ROW = (1, 1, 1, -1)  # the shape of an array that has one value per channel
STEM_WIDTH = 32
EPSILON = 1e-3  # of the batch normalisations


class Block(NamedTuple):
    """One inverted bottleneck: expansion factor, side of the kernel, stride, input channels, output channels."""

    expansion: int
    side: int
    stride: int
    inputs: int
    outputs: int


def _blocks() -> tuple[Block, ...]:
    # (repeats, side, stride of the first block, expansion, input channels, output channels)
    stages = (
        (1, 3, 1, 1, 32, 16),
        (2, 3, 2, 6, 16, 24),
        (2, 5, 2, 6, 24, 40),
        (3, 3, 2, 6, 40, 80),
        (3, 5, 1, 6, 80, 112),
        (4, 5, 2, 6, 112, 192),
        (1, 3, 1, 6, 192, 320),
    )
    return tuple(
        Block(expansion, side, stride if first else 1, inputs if first else outputs, outputs)
        for repeats, side, stride, expansion, inputs, outputs in stages
        for first in [True] + [False] * (repeats - 1)
    )


BLOCKS = _blocks()
# Stride -> the last block of that stride, and its channels.
FEATURES = {16: (10, BLOCKS[10].outputs), 32: (15, BLOCKS[15].outputs)}


def features(params: Params, rgb: Float[Array, "b h w 3"]) -> dict[int, Float[Array, "b i j c"]]:
    """Returns features of images in [-1, 1]: {16: (b, h / 16, w / 16, 112), 32: (b, h / 32, w / 32, 320)}.

    The keys are strides. If a side of the image is not a multiple of the stride, that of the features is rounded up.
    """
    found = {}
    mean, deviation = (jnp.asarray(numbers, rgb.dtype).reshape(ROW) for numbers in (MEAN, DEVIATION))
    x = ((rgb + 1) / 2 - mean) / deviation
    x = jnp.clip(_convolution(params, "stem", x, 2), 0, 6)
    for index, block in enumerate(BLOCKS):
        name, y = f"blocks.{index}", x
        if block.expansion > 1:
            y = jnp.clip(_convolution(params, f"{name}.expand", y, 1), 0, 6)
        y = jnp.clip(_depthwise(params, f"{name}.depthwise", y, block.stride), 0, 6)
        y = _convolution(params, f"{name}.project", y, 1)
        x = x + y if block.stride == 1 and block.inputs == block.outputs else y
        found |= {stride: x for stride, (last, _) in FEATURES.items() if last == index}
    return found


def _convolution(params: Params, name: str, x: Array, stride: int) -> Array:
    kernel, bias = params[f"{name}.kernel"], params[f"{name}.bias"].reshape(ROW)
    if kernel.shape[:2] == (1, 1):
        return x @ kernel[0, 0] + bias
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=numbers) + bias


def _depthwise(params: Params, name: str, x: Array, stride: int) -> Array:
    """Depthwise convolution as a sum of shifted images: XLA's own is many times slower on CPUs."""
    kernel, y = params[f"{name}.kernel"], params[f"{name}.bias"].reshape(ROW)
    side, (height, width) = len(kernel), x.shape[1:3]
    pads = [_padding(length, side, stride) for length in (height, width)]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = (-(-length // stride) for length in (height, width))
    for i in range(side):
        for j in range(side):
            part = x[:, i : i + (rows - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride]
            y = y + part * kernel[i, j].reshape(ROW)
    return y


def _padding(length: int, side: int, stride: int) -> tuple[int, int]:
    """Returns the padding before and after, as TensorFlow's "SAME" computes it."""
    total = max((-(-length // stride) - 1) * stride + side - length, 0)
    return total // 2, total - total // 2
