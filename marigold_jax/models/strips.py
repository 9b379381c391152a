"""Convolutions in strips of rows, where a picture is large: what goes in and what comes out is whole, the rest a strip.

Normalised and activated, a layer's input would be another array of the picture's size. Here that exists for one strip
at a time, with a row of halo above and below. Statistics of the normalisation are those of the whole picture, so strips
have no seams: the result is that of the whole, but for the order in which a convolution may sum.

The choice is automatic, layer by layer. `MARIGOLD_JAX_STRIPS=never` or `always` overrides it.
"""

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from marigold_jax.models.attention import platform

# A layer stays whole if it would at 768x768, where so many numbers go into the decoder's last level. That is all of a
# training at 480x640 as well. Above, memory is what counts: at 2048x1536 strips save 40 % of the decoder's temporaries
# and 30 % of the encoder's. On a TPU all layers stay whole: its compiler tiles them itself, and needs more for strips,
# because each loop lays the picture out as it likes (docs/memory.md).
LARGEST_WHOLE = 768 * 768 * 256
STRIP = 2**24  # numbers in the larger of a strip's input and output, all pictures of the batch together

MODES = ("auto", "always", "never")


def wanted(x: Float[Array, "b h w c"], conv: nnx.Conv, factor: int = 1) -> bool:
    """Whether the convolution of x, made `factor` times as large before, goes in strips.

    Raises:
        ValueError: MARIGOLD_JAX_STRIPS is none of `MODES`.
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
    """conv(resize(before(x))) + shortcut(beside), in strips; what is outside of the picture is zero, as for the whole.

    Args:
        conv: 3x3, stride 1, padded by 1.
        before: what becomes of each pixel first; it sees strips (b, n, w, c).
        factor: 1, or 2 to repeat each pixel twice along both sides.
        beside: added in the end, if there is any; only with factor 1. Where it is as wide as the result, the result
            takes its place in memory.
        shortcut: what becomes of each pixel of `beside` first.
    """
    b, h, w, _ = x.shape
    of_strip = _of_strip(conv, before, factor)
    in_place = beside is not None and beside.shape[3] == conv.out_features
    # All of it is written over. A constant would be made at the program's start, and kept until here.
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
    """conv(before(x)) and shortcut(x), one beside the other along the channels, in strips. They take x's place in
    memory, so together they must have as many channels.
    """

    rows = _rows_of_strip(x, conv, 1)
    of_strip = _of_strip(conv, before, 1)
    ends = x[:, rows - 1 :: rows] if rows < x.shape[1] else x[:, :1]  # kept, for they are written over when wanted

    def write(both: Array, start: Array | int, count: int) -> Array:
        above, strip = _rows(ends, jnp.maximum(start // rows - 1, 0), 1), _rows(both, start, count)
        y = of_strip(above, strip, _below(both, start + count), start == 0, start + count == x.shape[1])
        both_of_strip = jnp.concatenate([y, shortcut(strip)], axis=-1)
        return jax.lax.dynamic_update_slice_in_dim(both, both_of_strip, start, axis=1)

    return _each_strip(write, x, x.shape[1], rows)


def _of_strip(conv: nnx.Conv, before: Callable[[Array], Array], factor: int) -> Callable[..., Array]:
    """The convolution of one strip, from its rows and those above and below, which count as zero outside."""

    # Rematerialised, so that the gradient keeps no strip's inside either.
    @jax.checkpoint
    def of_strip(above: Array, strip: Array, below: Array, first: Array | bool, last: Array | bool) -> Array:
        above, strip, below = (before(part) for part in (above, strip, below))
        above, below = (jnp.where(outside, 0, part) for outside, part in ((first, above), (last, below)))
        strip = jnp.concatenate([above, strip, below], axis=1)
        if factor == 2:  # a halo of one row has become one of two
            strip = jnp.repeat(jnp.repeat(strip, 2, axis=1), 2, axis=2)[:, 1:-1]
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(strip, conv.kernel[...], (1, 1), ((0, 0), (1, 1)), dimension_numbers=layout)
        return y + conv.bias[...].reshape(1, 1, 1, -1)

    return of_strip


def _rows_of_strip(x: Array, conv: nnx.Conv, factor: int) -> int:
    b, h, w, channels = x.shape
    return min(h, max(1, STRIP // (factor**2 * b * w * max(channels, conv.out_features))))


def _each_strip(write: Callable[[Array, Array | int, int], Array], out: Array, h: int, rows: int) -> Array:
    """write(out, first row, rows) for one strip after the other; the last may have fewer rows."""
    out = jax.lax.fori_loop(0, h // rows, lambda i, out: write(out, i * rows, rows), out)
    rest = h % rows
    return write(out, h - rest, rest) if rest else out


def _rows(x: Array, start: Array | int, count: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, start, count, axis=1)


def _below(x: Array, end: Array | int) -> Array:
    """The row after a strip that ends there, or any at all."""
    return _rows(x, jnp.minimum(end, x.shape[1] - 1), 1)
