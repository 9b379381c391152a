"""Functions whose gradient is infinite somewhere, with a finite gradient there.

A network can output any number, including an exact 0. An infinite gradient in one pixel makes all gradients NaN, even
if the pixel is masked, because 0 times infinity is NaN. A NaN in the input still gives NaN: training skips such a step.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def square_root(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the square root. At 0, and below because of rounding, the value and the gradient are 0."""
    positive = ~(x <= 0)
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def length(vectors: Float[Array, "... c"]) -> Float[Array, "... 1"]:
    """Returns the Euclidean length along the last axis. The gradient of a zero vector is 0."""
    return square_root(jnp.sum(vectors**2, axis=-1, keepdims=True))


def arc_cosine(cosine: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the angle, in [0, π]. At cosines of ±1, and beyond because of rounding, the gradient is 0."""
    within = ~(jnp.abs(cosine) >= 1)
    ends = jnp.where(cosine < 0, jnp.pi, 0.0).astype(cosine.dtype)
    return jnp.where(within, jnp.arccos(jnp.where(within, cosine, 0.0)), ends)


@jax.custom_jvp
def leading_eigenvector(matrix: Float[Array, "n n"]) -> Float[Array, " n"]:
    """Returns the unit eigenvector of the largest eigenvalue of a symmetric matrix. Its sign is arbitrary.

    The gradient is finite for any other eigenvalues; the gradient of `jnp.linalg.eigh` is not if two of them are equal.
    """
    return jnp.linalg.eigh(matrix)[1][:, -1]


@leading_eigenvector.defjvp
def _leading_eigenvector_jvp(primals, tangents):
    (matrix,), (change,) = primals, tangents
    values, vectors = jnp.linalg.eigh(matrix)
    leading = vectors[:, -1]
    gaps = values[-1] - values
    apart = gaps > 1e-6 * jnp.abs(values[-1])
    inverse = jnp.where(apart, 1.0 / jnp.where(apart, gaps, 1.0), 0.0)
    symmetric = (change + change.T) / 2
    return leading, vectors @ (inverse * (vectors.T @ (symmetric @ leading)))
