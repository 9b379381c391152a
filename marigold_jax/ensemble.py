"""Merging several predictions of one image into one, with a map of where they disagree.

Depth maps come with an unknown scale and shift each, so they are aligned first. Two aligners:

- "eigen" (default), closed form. With z_i the centred map i at unit variance, the aligned map is v_i z_i, where v is
  the leading eigenvector of the correlation matrix of the z: the scales that minimise the squared distances between
  all pairs of maps at fixed total energy. All aligned maps have mean zero, so they agree in shift as well.
- "bfgs", the objective of the paper (arXiv 2312.02145), from the same start and at the same few iterations as
  diffusers. More iterations do not help: its true minimum shrinks all maps to nothing, and next to it they are upside
  down. So no scale becomes less than a quarter of what it begins with. (The official code stays upright because its
  finite differences are too small for float32: it moves the shifts alone.)
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from marigold_jax.diffusion.gradients import arc_cosine, leading_eigenvector, length, square_root

SMALLEST_SCALE = 0.25  # of a map that spans [0, 1] at the start of "bfgs"
TINY = 1e-6  # the smallest range, deviation or norm that is divided by

# ---- Reductions: e aligned maps -> (merged map, how far the members spread around it) --------------------------------


def lower_median(maps: Float[Array, "e ..."]) -> Float[Array, "..."]:
    """The median over the leading axis; for an even number the lower of the two middle values, as in PyTorch.

    Batcher's odd-even merge sort, unrolled over whole maps: no branches, and on a CPU a hundred times faster than a
    sort along so short an axis. Comparators that the median does not depend on are dropped by the compiler.
    """
    lanes, size = list(maps), maps.shape[0]
    run = 1  # sorted runs of this length are merged in pairs
    while run < size:
        gap = run
        while gap:
            for first in range(gap % run, size - gap, 2 * gap):
                for low in range(first, min(first + gap, size - gap)):
                    high = low + gap
                    if low // (2 * run) == high // (2 * run):
                        pair = lanes[low], lanes[high]
                        lanes[low], lanes[high] = jnp.minimum(*pair), jnp.maximum(*pair)
            gap //= 2
        run *= 2
    return lanes[(size - 1) // 2]


def _median_and_deviation(maps):
    median = lower_median(maps)
    return median, lower_median(jnp.abs(maps - median[None]))


def _weighted_sum(weights, maps):
    # Unrolled over the members: on a CPU, XLA reduces over a leading axis 70 times slower.
    return sum(weight * member for weight, member in zip(weights, maps, strict=True))


def _mean(maps):
    return _weighted_sum(jnp.full(maps.shape[0], 1 / maps.shape[0]), maps)


def _mean_and_deviation(maps):
    mean = _mean(maps)
    freedom = maps.shape[0] - 1
    return mean, square_root(_weighted_sum(jnp.full(maps.shape[0], 1 / freedom), (maps - mean[None]) ** 2))


REDUCTIONS = {  # name: (the merged map alone, the merged map and its spread)
    "median": (lower_median, _median_and_deviation),
    "mean": (_mean, _mean_and_deviation),
}

# ---- Aligners: maps in about [0, 1] -> (scale, shift, trust) of each, so that scale * map + shift agree --------------


def _moments(maps, mask, shift_invariant):
    """Mean (zero if the shift is known), centred maps (zero outside the mask), and their covariance matrix."""
    count = jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1.0)
    inside = mask[None]
    mean = jnp.sum(jnp.where(inside, maps, 0.0), axis=(1, 2)) / count * float(shift_invariant)
    centred = jnp.where(inside, maps - mean[:, None, None], 0.0).reshape(maps.shape[0], -1)
    return mean, centred, jnp.matmul(centred, centred.T, precision="highest") / count


def align_eigen(
    maps: Float[Array, "e h w"], mask: Bool[Array, "h w"], *, shift_invariant: bool
) -> tuple[Float[Array, " e"], Float[Array, " e"], Float[Array, " e"]]:
    """Closed form: each map at unit variance, times its component of the leading eigenvector.

    The squared component, e times over, is 1 for a member that agrees with the others as well as the average one does
    and near 0 for an unrelated or constant one. Capped at 1 and squared, it is the trust in that member. A member that
    is the others upside down gets a negative scale, which turns it upright; with as many inverted members as upright
    ones, nobody can know which are which.
    """
    mean, _, covariance = _moments(maps, mask, shift_invariant)
    deviation = square_root(jnp.diagonal(covariance))
    varies = deviation > TINY
    unit = jnp.where(varies, 1.0 / jnp.where(varies, deviation, 1.0), 0.0)
    leading = leading_eigenvector(covariance * jnp.outer(unit, unit))
    leading = jnp.where(jnp.sum(leading) < 0, -leading, leading)  # an eigenvector's sign is arbitrary
    scale = leading * unit
    return scale, -scale * mean, jnp.minimum(1.0, maps.shape[0] * leading**2) ** 2


def align_bfgs(
    maps: Float[Array, "e h w"],
    mask: Bool[Array, "h w"],
    *,
    shift_invariant: bool,
    reduction: str = "median",
    regularizer_strength: float = 0.02,
    max_iter: int = 2,
    tol: float = 1e-3,
) -> tuple[Float[Array, " e"], Float[Array, " e"], Float[Array, " e"]]:
    """The paper's objective, minimised from the maps as they come, which should span [0, 1].

    Sum of the RMS distances of all pairs, plus `regularizer_strength` times how far the merged map's extrema are from 0
    and 1. The distances need only the covariance matrix and the means, so no pixel is touched but for the extrema.
    Scales are searched for above `SMALLEST_SCALE`, by their logarithm: whatever `max_iter`, no map is turned around.
    """
    members = maps.shape[0]
    mean, centred, covariance = _moments(maps, mask, shift_invariant)
    reduce, _ = REDUCTIONS[reduction]
    first, second = jnp.triu_indices(members, 1)

    def distances(scale, level):
        scaled = covariance * jnp.outer(scale, scale)
        energy = jnp.diagonal(scaled)
        squared = energy[first] + energy[second] - 2 * scaled[first, second] + (level[first] - level[second]) ** 2
        apart = squared > TINY**2  # at zero the square root has no gradient
        return jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)

    def extrema(scale, level):
        # Found without gradients on all pixels, then read again, with gradients, at the two pixels alone.
        # The barrier keeps XLA from sorting inside argmin's scalar loop, five times slower on a CPU.
        merged = reduce(jax.lax.stop_gradient(scale[:, None] * centred + level[:, None]))
        merged = jax.lax.optimization_barrier(merged)
        inside = mask.reshape(-1)
        near = jnp.argmin(jnp.where(inside, merged, jnp.inf))
        far = jnp.argmax(jnp.where(inside, merged, -jnp.inf))
        return reduce(scale * centred[:, near] + level), reduce(scale * centred[:, far] + level)

    def unpacked(parameters):
        logarithm, level = jnp.split(parameters, 2)
        # 1 at 0, with slope 1; nowhere below the floor.
        scale = SMALLEST_SCALE + (1 - SMALLEST_SCALE) * jnp.exp(logarithm / (1 - SMALLEST_SCALE))
        return scale, level * float(shift_invariant)

    def objective(parameters):
        scale, level = unpacked(parameters)
        near, far = extrema(scale, level)
        return jnp.sum(distances(scale, level)) + regularizer_strength * (jnp.abs(near) + jnp.abs(1.0 - far))

    start = jnp.concatenate([jnp.zeros(members, jnp.float32), mean])
    scale, level = unpacked(_minimise_bfgs(objective, start, max_iter, tol))
    return scale, level - scale * mean, jnp.ones_like(scale)


def _minimise_bfgs(objective, start, max_iter, tol):
    """BFGS of fixed cost: each line search tries 14 step lengths, 4 down to 1/2048, and takes the best if it descends.

    It stops moving once no entry of the gradient exceeds `tol`.
    """
    step_lengths = 4.0 * 0.5 ** jnp.arange(14, dtype=jnp.float32)
    identity = jnp.eye(start.shape[0], dtype=start.dtype)

    def dot(a, b):
        return jnp.matmul(a, b, precision="highest")

    def iterate(_, state):
        point, value, gradient, inverse_hessian = state
        direction = -dot(inverse_hessian, gradient)
        values = jax.lax.map(lambda length: objective(point + length * direction), step_lengths)
        values = jnp.where(jnp.isfinite(values), values, jnp.inf)
        best = jnp.argmin(values)
        descends = (values[best] < value) & (jnp.max(jnp.abs(gradient)) > tol)
        step = jnp.where(descends, step_lengths[best], 0.0) * direction
        new_value, new_gradient = jax.value_and_grad(objective)(point + step)

        change = new_gradient - gradient
        curvature = dot(step, change)
        convex = curvature > TINY**2  # else the update would lose positive definiteness
        rho = jnp.where(convex, 1.0 / jnp.where(convex, curvature, 1.0), 0.0)
        left = identity - rho * jnp.outer(step, change)
        updated = dot(dot(left, inverse_hessian), left.T) + rho * jnp.outer(step, step)
        return point + step, new_value, new_gradient, jnp.where(convex, updated, inverse_hessian)

    state = start, *jax.value_and_grad(objective)(start), identity
    return jax.lax.fori_loop(0, max_iter, iterate, state)[0]


# ---- Depth -----------------------------------------------------------------------------------------------------------


def ensemble_depth(
    maps: Float[Array, "e h w"],
    mask: Bool[Array, "h w"] | None = None,
    *,
    method: str = "eigen",
    scale_invariant: bool = True,
    shift_invariant: bool = True,
    reduction: str = "median",
    regularizer_strength: float = 0.02,
    max_iter: int = 2,
    tol: float = 1e-3,
    max_res: int = 1024,
) -> tuple[Float[Array, "h w"], Float[Array, "h w"]]:
    """Aligns e >= 2 finite depth maps of one image and merges them; returns (depth, uncertainty), float32.

    - Affine-invariant maps (default): depth spans exactly [0, 1], or is 0 everywhere if all maps are constant.
      Scale-invariant ones (`shift_invariant=False`): the maximum is 1. Neither: merged as they are, in their own unit.
    - `mask` is True at the pixels that count; the others are never looked at, and are 0 in both answers.
    - `method` "eigen" or "bfgs"; `regularizer_strength`, `max_iter` and `tol` belong to "bfgs".
    - `reduction` "median" (the lower one for even e) with uncertainty the median absolute deviation, or "mean" with the
      unbiased standard deviation; the uncertainty is in the unit of the depth.
    - If the longer side exceeds `max_res`, the alignment is estimated on a nearest-neighbour subsample of that size.

    Jit it and vmap it over images with all keyword options static. Raises ValueError for an unknown method or
    reduction, for fewer than two maps, and for shift-only invariance, which no depth model has.
    """
    if maps.shape[0] < 2:
        raise ValueError(f"An ensemble needs at least 2 maps, got {maps.shape[0]}; a single map needs no merging.")
    if shift_invariant and not scale_invariant:
        raise ValueError(
            "Shift-only alignment is not defined: set shift_invariant=False, or scale_invariant=True as well."
        )
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {list(REDUCTIONS)}, got {reduction!r}.")
    aligners: dict[str, Callable[..., Any]] = {
        "eigen": align_eigen,
        "bfgs": partial(
            align_bfgs, reduction=reduction, regularizer_strength=regularizer_strength, max_iter=max_iter, tol=tol
        ),
    }
    if method not in aligners:
        raise ValueError(f"method must be one of {list(aligners)}, got {method!r}.")

    maps = maps.astype(jnp.float32)
    mask = jnp.ones(maps.shape[1:], bool) if mask is None else mask
    _, merge = REDUCTIONS[reduction]
    if not scale_invariant:
        depth, uncertainty = merge(jnp.where(mask[None], maps, 0.0))
        return depth, uncertainty

    height, width = mask.shape
    rows, columns = _subsample(height, width, max_res)
    sample_mask = mask[rows][:, columns]
    low, high = _extrema(maps[:, rows][:, :, columns], sample_mask[None], from_zero=not shift_invariant)
    maps = jnp.where(mask[None], (maps - low) / jnp.maximum(high - low, TINY), 0.0)
    scale, shift, trust = aligners[method](maps[:, rows][:, :, columns], sample_mask, shift_invariant=shift_invariant)
    maps = scale[:, None, None] * maps + shift[:, None, None]
    # Who is not trusted abstains: the vote goes to the consensus instead. (The mean then is the trust-weighted mean.)
    consensus = _weighted_sum(trust / jnp.sum(trust), maps)[None]
    depth, uncertainty = merge(consensus + trust[:, None, None] * (maps - consensus))

    low, high = _extrema(depth, mask, from_zero=not shift_invariant)
    span = jnp.maximum(high - low, TINY)
    return jnp.where(mask, (depth - low) / span, 0.0), jnp.where(mask, uncertainty / span, 0.0)


def _extrema(maps, mask, from_zero):
    """Smallest (or 0) and largest value of each map inside the mask, as arrays that broadcast against the maps."""
    high = jnp.max(jnp.where(mask, maps, -jnp.inf), axis=(-2, -1), keepdims=True)
    low = jnp.min(jnp.where(mask, maps, jnp.inf), axis=(-2, -1), keepdims=True)
    return jnp.zeros_like(low) if from_zero else low, high


def _subsample(height, width, max_res):
    """Rows and columns of a nearest-exact resize to a longer side of `max_res`; all if the image is smaller."""
    longest = max(height, width)
    if longest <= max_res:
        return slice(None), slice(None)

    def picks(side):
        size = max(side * max_res // longest, 1)
        return (2 * jnp.arange(size) + 1) * side // (2 * size)  # floor((i + 1/2) * side / size) in integers

    return picks(height), picks(width)


# ---- Normals ---------------------------------------------------------------------------------------------------------


def ensemble_normals(
    maps: Float[Array, "e h w 3"], *, reduction: str = "closest"
) -> tuple[Float[Array, "h w 3"], Float[Array, "h w"]]:
    """Merges unit normals of one image; returns (normals, uncertainty), float32.

    The mean direction, or (default) at each pixel the member "closest" to it, which keeps edges sharp. Uncertainty: the
    mean angle between the members and the mean direction, as a fraction of 180 degrees. Raises ValueError for an
    unknown reduction.
    """
    if reduction not in ("closest", "mean"):
        raise ValueError(f"reduction must be 'closest' or 'mean', got {reduction!r}.")
    maps = maps.astype(jnp.float32)
    mean = _mean(maps)
    mean = mean / jnp.maximum(length(mean), TINY)
    cosine = jnp.clip(jnp.sum(mean[None] * maps, axis=-1), -1.0, 1.0)  # e h w
    uncertainty = _mean(arc_cosine(cosine)) / jnp.pi
    if reduction == "mean":
        return mean, uncertainty
    closest = jnp.argmax(cosine, axis=0)
    return jnp.take_along_axis(maps, closest[None, :, :, None], axis=0)[0], uncertainty
