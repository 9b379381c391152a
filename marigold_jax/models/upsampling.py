"""Nearest-neighbour resizing, and a 3x3 convolution of an image of twice the size that never makes that image."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

LAYOUT = ("NHWC", "HWIO", "NHWC")


def resize_nearest(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b i j c"]:
    """Nearest-neighbour resize with source index floor(i · in / out): PyTorch's "nearest", not "nearest-exact"."""
    b, h, w, c = x.shape
    if size == (2 * h, 2 * w):
        doubled = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
        return doubled.reshape(b, 2 * h, 2 * w, c)
    rows = jnp.arange(size[0]) * h // size[0]
    columns = jnp.arange(size[1]) * w // size[1]
    return jnp.take(jnp.take(x, rows, axis=1), columns, axis=2)


def doubled(conv: nnx.Conv, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
    """Returns conv(resize_nearest(x, twice the size)), with 4/9 of the products.

    Where pixels are repeated, two of three neighbours are equal, and their weights can be added before. Which two
    depends on whether a row and a column of the result is even or odd: four 2x2 convolutions of x, whose results are
    interleaved.

    Args:
        conv: 3x3, stride 1, padded by 1.
        x: the image before it is resized, (b, h, w, c).

    Returns:
        (b, 2h, 2w, d). It differs from the other order by rounding alone.
    """
    b, h, w, _ = x.shape
    quarters = [
        [
            jax.lax.conv_general_dilated(
                x, kernel, (1, 1), ((1 - row, row), (1 - column, column)), dimension_numbers=LAYOUT
            )
            for column, kernel in enumerate(_even_and_odd(of_row, axis=1))
        ]
        for row, of_row in enumerate(_even_and_odd(conv.kernel[...], axis=0))
    ]
    y = jnp.stack([jnp.stack(columns, axis=3) for columns in quarters], axis=2)
    return y.reshape(b, 2 * h, 2 * w, -1) + conv.bias[...].reshape(1, 1, 1, -1)


def _even_and_odd(kernel: Float[Array, "i j c d"], axis: int) -> tuple[Array, Array]:
    """Returns the two weights that remain of three along an axis, for even and for odd places of the result."""
    first, second, third = jnp.split(kernel, 3, axis)
    return jnp.concatenate([first, second + third], axis), jnp.concatenate([first + second, third], axis)
