"""Convolutions of large images in strips of rows. Input and output are whole images; intermediate arrays are strips.

The normalised and activated input of a layer would be another array of the size of the image. Here it exists for one
strip at a time, with a halo of one row above and below. Normalisation uses the statistics of the whole image, so strips
leave no seams: the result equals that of the whole image, except for the order in which a convolution may sum.

The choice is automatic for each layer. `MARIGOLD_JAX_STRIPS=never` or `always` overrides it.
"""

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from marigold_jax.models.attention import platform

# The largest layer of the decoder at 768x768 has this many elements. Up to that size, which includes training at
# 480x640, layers are computed whole. Above it, memory matters more: at 2048x1536, strips save 40 % of the temporaries
# of the decoder and 30 % of those of the encoder. On TPUs, all layers are computed whole: the compiler tiles them
# itself, and needs more memory for strips, because every loop may choose another memory layout (docs/memory.md).
LARGEST_WHOLE = 768 * 768 * 256
STRIP = 2**24  # elements in the larger of a strip's input and output, for the whole batch

MODES = ("auto", "always", "never")


def wanted(x: Float[Array, "b h w c"], conv: nnx.Conv, factor: int = 1) -> bool:
    """Whether to compute the convolution in strips. Before it, x is enlarged by `factor` along both sides.

    Raises:
        ValueError: MARIGOLD_JAX_STRIPS is not one of `MODES`.
    """
    mode = os.environ.get("MARIGOLD_JAX_STRIPS", "auto")
    if mode not in MODES:
        raise ValueError(f"MARIGOLD_JAX_STRIPS={mode!r}: wanted one of {', '.join(MODES)}")
    numbers = factor**2 * x.shape[1] * x.shape[2] * max(x.shape[3], conv.out_features)
    return mode == "always" or (mode == "auto" and numbers > LARGEST_WHOLE and platform() != "tpu")


def convolve(
    conv: nnx.Conv,
    x: Float[Array, "b h w c"],
    before: Callable[[Array], Array] = lambda strip: strip,
    *,
    factor: int = 1,
    beside: Float[Array, "b h w e"] | None = None,
    shortcut: Callable[[Array], Array] = lambda strip: strip,
) -> Float[Array, "b i j d"]:
    """Returns conv(resize(before(x))) + shortcut(beside), computed in strips. The image is padded with zeros.

    Args:
        conv: 3x3, stride 1, padded by 1.
        x: the whole image, (b, h, w, c).
        before: applied to each pixel before the convolution; its argument is a strip (b, n, w, c).
        factor: 1, or 2 to repeat each pixel twice along both sides.
        beside: the other term of the sum, or None; only with factor 1. If it has as many channels as the result, the
            result overwrites it in memory.
        shortcut: applied to each pixel of `beside`.
    """
    b, h, w, _ = x.shape
    of_strip = _of_strip(conv, before, factor)
    in_place = beside is not None and beside.shape[3] == conv.out_features
    # Every element is overwritten. XLA would allocate a constant at the start of the program and keep it until here.
    corner = jax.lax.stop_gradient(x[:, :1, :1, :1])
    blank = jnp.broadcast_to(corner, (b, factor * h, factor * w, conv.out_features))

    def write(out: Array, start: Array | int, count: int) -> Array:
        above = _rows(x, jnp.maximum(start - 1, 0), 1)
        y = of_strip(above, _rows(x, start, count), _below(x, start + count), start == 0, start + count == h)
        if beside is not None:
            y = y + shortcut(_rows(out if in_place else beside, start, count))
        return jax.lax.dynamic_update_slice_in_dim(out, y, factor * start, axis=1)

    return _each_strip(write, beside if in_place else blank, h, _rows_of_strip(x, conv, factor))


def convolve_in_place(
    conv: nnx.Conv,
    x: Float[Array, "b h w c"],
    before: Callable[[Array], Array],
    shortcut: Callable[[Array], Array],
) -> Float[Array, "b h w c"]:
    """Returns conv(before(x)) and shortcut(x), concatenated along the channels, computed in strips.

    The result overwrites x in memory, so it must have as many channels as x.
    """

    rows = _rows_of_strip(x, conv, 1)
    of_strip = _of_strip(conv, before, 1)
    ends = x[:, rows - 1 :: rows] if rows < x.shape[1] else x[:, :1]  # a copy: x is overwritten

    def write(both: Array, start: Array | int, count: int) -> Array:
        above, strip = _rows(ends, jnp.maximum(start // rows - 1, 0), 1), _rows(both, start, count)
        y = of_strip(above, strip, _below(both, start + count), start == 0, start + count == x.shape[1])
        both_of_strip = jnp.concatenate([y, shortcut(strip)], axis=-1)
        return jax.lax.dynamic_update_slice_in_dim(both, both_of_strip, start, axis=1)

    return _each_strip(write, x, x.shape[1], rows)


def _of_strip(conv: nnx.Conv, before: Callable[[Array], Array], factor: int) -> Callable[..., Array]:
    """Returns the convolution of one strip, a function of its rows and the rows above and below (zero outside)."""

    # Rematerialised, so that the backward pass stores no intermediate arrays of strips either.
    @jax.checkpoint
    def of_strip(above: Array, strip: Array, below: Array, first: Array | bool, last: Array | bool) -> Array:
        above, strip, below = (before(part) for part in (above, strip, below))
        above, below = (jnp.where(outside, 0, part) for outside, part in ((first, above), (last, below)))
        strip = jnp.concatenate([above, strip, below], axis=1)
        if factor == 2:  # the halo of one row is now two rows
            strip = jnp.repeat(jnp.repeat(strip, 2, axis=1), 2, axis=2)[:, 1:-1]
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(strip, conv.kernel[...], (1, 1), ((0, 0), (1, 1)), dimension_numbers=layout)
        return y + conv.bias[...].reshape(1, 1, 1, -1)

    return of_strip


def _rows_of_strip(x: Array, conv: nnx.Conv, factor: int) -> int:
    b, h, w, channels = x.shape
    return min(h, max(1, STRIP // (factor**2 * b * w * max(channels, conv.out_features))))


def _each_strip(write: Callable[[Array, Array | int, int], Array], out: Array, h: int, rows: int) -> Array:
    """Calls write(out, first row, rows) for one strip after the other. The last strip may have fewer rows."""
    out = jax.lax.fori_loop(0, h // rows, lambda i, out: write(out, i * rows, rows), out)
    rest = h % rows
    return write(out, h - rest, rest) if rest else out


def _rows(x: Array, start: Array | int, count: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, start, count, axis=1)


def _below(x: Array, end: Array | int) -> Array:
    """Returns the row after a strip that ends at `end`. For the last strip, any row is returned, and not used."""
    return _rows(x, jnp.minimum(end, x.shape[1] - 1), 1)
