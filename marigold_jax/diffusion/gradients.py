"""Functions whose own gradient is infinite somewhere, with a finite one there.

A network can emit any number, an exact 0 too, and a gradient that is infinite in one pixel makes NaN of all: also where
the pixel is masked, for 0 times infinity is NaN. What is not a number stays so: trainers skip such a step.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def square_root(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The square root; at 0, and below, where rounding may lead, it is 0 and so is the gradient."""
    positive = ~(x <= 0)
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def length(vectors: Float[Array, "... c"]) -> Float[Array, "... 1"]:
    """The Euclidean length along the last axis; for a vector of length 0 the gradient is 0."""
    return square_root(jnp.sum(vectors**2, axis=-1, keepdims=True))


def arc_cosine(cosine: Float[Array, "..."]) -> Float[Array, "..."]:
    """The angle, in [0, π]; at and beyond cosines of ±1, where rounding may lead, the gradient is 0."""
    within = ~(jnp.abs(cosine) >= 1)
    ends = jnp.where(cosine < 0, jnp.pi, 0.0).astype(cosine.dtype)
    return jnp.where(within, jnp.arccos(jnp.where(within, cosine, 0.0)), ends)


@jax.custom_jvp
def leading_eigenvector(matrix: Float[Array, "n n"]) -> Float[Array, " n"]:
    """The unit eigenvector of the largest eigenvalue of a symmetric matrix, of either sign.

    Its gradient is finite whatever the other eigenvalues are; JAX's own is not where two of those are equal.
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
