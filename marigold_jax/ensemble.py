"""Merges several predictions of one image into one, and estimates the uncertainty from how much they differ.

Each depth map has an unknown scale and shift, so the maps are aligned first. There are two methods:

- "eigen" (default) has a closed form. Let z_i be map i, centred and scaled to unit variance. The aligned map is v_i
  z_i, where v is the leading eigenvector of the correlation matrix of the z. These scales minimise the squared
  distances between all pairs of maps for a fixed total energy. All aligned maps have mean zero, so their shifts agree.
- "bfgs" minimises the objective of the paper (arXiv 2312.02145, section 3.4), with the same starting point and as few
  iterations as diffusers. More iterations do not help: the true minimum scales all maps to zero, and close to it they
  are inverted. So no scale falls below a quarter of its initial value. (The official code does not invert maps because
  its finite differences are too small for float32, so that only the shifts change.)
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from marigold_jax.diffusion.gradients import arc_cosine, leading_eigenvector, length, square_root

SMALLEST_SCALE = 0.25  # of a map that spans [0, 1] at the start of "bfgs"
TINY = 1e-6  # the smallest range, deviation or norm that is divided by

# ---- Reductions: e aligned maps -> (merged map, how far the members spread around it) --------------------------------


def lower_median(maps: Float[Array, "e ..."]) -> Float[Array, "..."]:
    """Returns the median over the leading axis; for an even number the lower of the two middle values, as PyTorch does.

    This is Batcher's odd-even merge sort, unrolled over whole maps. It has no branches, and on a CPU it is a hundred
    times faster than sorting along such a short axis. The compiler drops comparisons that the median does not need.
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
    """Returns mean (zero if the shift is known), centred maps (zero outside the mask), and their covariance matrix."""
    count = jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1.0)
    inside = mask[None]
    mean = jnp.sum(jnp.where(inside, maps, 0.0), axis=(1, 2)) / count * float(shift_invariant)
    centred = jnp.where(inside, maps - mean[:, None, None], 0.0).reshape(maps.shape[0], -1)
    return mean, centred, jnp.matmul(centred, centred.T, precision="highest") / count


def align_eigen(
    maps: Float[Array, "e h w"], mask: Bool[Array, "h w"], *, shift_invariant: bool
) -> tuple[Float[Array, " e"], Float[Array, " e"], Float[Array, " e"]]:
    """Closed form: each map at unit variance, times its component of the leading eigenvector.

    e times the squared component is 1 for a member that agrees with the others as well as the average member does, and
    near 0 for an unrelated or constant one. Capped at 1 and squared, it is the trust in that member. An inverted member
    gets a negative scale, which corrects it. If half of the members are inverted, it is unknown which half is right.

    Args:
        maps: finite, (e, h, w), in about [0, 1].
        mask: True at the pixels that count.
        shift_invariant: the shift of each map is unknown; otherwise it is 0.

    Returns:
        Scale, shift and trust of each map; trust is in [0, 1].
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
    """Minimises the objective of the paper (arXiv 2312.02145, section 3.4), starting from scale 1 and shift 0.

    The objective is the sum of the RMS distances of all pairs, plus `regularizer_strength` times the distance of the
    merged map's extrema from 0 and 1. The RMS distances need only the covariance matrix and the means, so pixels are
    read only for the extrema. Scales stay above `SMALLEST_SCALE`, so no map is inverted for any `max_iter`.

    Args:
        maps: finite, (e, h, w); each should span [0, 1].
        mask: True at the pixels that count.
        shift_invariant: the shift of each map is unknown; otherwise it is 0.
        reduction: "median" or "mean".
        regularizer_strength: see above.
        max_iter: BFGS iterations.
        tol: stops once no entry of the gradient is larger.

    Returns:
        Scale, shift and trust of each map; trust is 1.
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

    def objective(parameters):
        scale, level = _unpacked(parameters, shift_invariant)
        near, far = extrema(scale, level)
        return jnp.sum(distances(scale, level)) + regularizer_strength * (jnp.abs(near) + jnp.abs(1.0 - far))

    start = jnp.concatenate([jnp.zeros(members, jnp.float32), mean])
    scale, level = _unpacked(_minimise_bfgs(objective, start, max_iter, tol), shift_invariant)
    return scale, level - scale * mean, jnp.ones_like(scale)


def _unpacked(parameters, shift_invariant):
    """Returns the scales and the levels (means of the scaled maps) of the parameters of BFGS."""
    logarithm, level = jnp.split(parameters, 2)
    # The scale is 1 at 0, with slope 1, and never below the smallest.
    scale = SMALLEST_SCALE + (1 - SMALLEST_SCALE) * jnp.exp(logarithm / (1 - SMALLEST_SCALE))
    return scale, level * float(shift_invariant)


def _minimise_bfgs(objective, start, max_iter, tol):
    """Runs BFGS at fixed cost: a line search tries 14 step lengths, 4 to 1/2048, and takes the best if it descends.

    The point no longer changes once no entry of the gradient exceeds `tol`.
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


ALIGNERS: dict[str, Callable[..., Any]] = {"eigen": align_eigen, "bfgs": align_bfgs}

# ---- Depth -----------------------------------------------------------------------------------------------------------


def ensemble_depth(
    maps: Float[Array | np.ndarray, "e h w"],
    mask: Bool[Array | np.ndarray, "h w"] | None = None,
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
    """Aligns depth maps of one image and merges them.

    It compiles itself: the first call with a shape and a set of options takes about a second more. It can also be
    called under `jax.jit`, `jax.vmap` (over images) and `jax.grad`. The keyword options are plain Python values there.

    Args:
        maps: two or more finite maps, (e, h, w), of JAX or NumPy.
        mask: True at the pixels that count, (h, w); None for all. The others are not used, and are 0 in both results.
        method: "eigen" or "bfgs"; see above.
        scale_invariant: the scale of each map is unknown. Otherwise maps are merged as they are, in their own unit.
        shift_invariant: the shift of each map is unknown too.
        reduction: "median" (the lower one for even e), with the median absolute deviation as uncertainty, or "mean",
            with the unbiased standard deviation.
        regularizer_strength: of "bfgs"; see `align_bfgs`.
        max_iter: of "bfgs".
        tol: of "bfgs".
        max_res: if the longer side is larger, the alignment is estimated on a nearest-neighbour subsample of this size.

    Returns:
        Depth and uncertainty in the same unit, float32 (h, w). With unknown scale and shift, depth spans exactly
        [0, 1], or is 0 everywhere if all maps are constant. With unknown scale only, its maximum is 1.

    Raises:
        ValueError: an unknown method or reduction, fewer than two maps, or `shift_invariant` without `scale_invariant`.
    """
    if maps.shape[0] < 2:
        raise ValueError(f"An ensemble needs at least 2 maps, got {maps.shape[0]}; a single map needs no merging.")
    if shift_invariant and not scale_invariant:
        raise ValueError(
            "Shift-only alignment is not defined: set shift_invariant=False, or scale_invariant=True as well."
        )
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {list(REDUCTIONS)}, got {reduction!r}.")
    if method not in ALIGNERS:
        raise ValueError(f"method must be one of {list(ALIGNERS)}, got {method!r}.")
    only_bfgs = (("regularizer_strength", regularizer_strength), ("max_iter", max_iter), ("tol", tol))
    options = (("reduction", reduction), *only_bfgs) if method == "bfgs" else ()
    how = _DepthMerge(method, options, scale_invariant, shift_invariant, reduction, max_res)
    return _merge_depth_maps(how, maps, mask)


class _DepthMerge(NamedTuple):
    """What is fixed when `_merge_depth_maps` is compiled: arguments of `ensemble_depth`, hashable."""

    method: str
    options: tuple[tuple[str, Any], ...]  # of the aligner
    scale_invariant: bool
    shift_invariant: bool
    reduction: str
    max_res: int


# Inlined, so that a program that merges as its last step is compiled as if this were not a function of its own.
@partial(jax.jit, static_argnums=0, inline=True)
def _merge_depth_maps(
    how: _DepthMerge, maps: Float[Array, "e h w"], mask: Bool[Array, "h w"] | None
) -> tuple[Float[Array, "h w"], Float[Array, "h w"]]:
    maps = maps.astype(jnp.float32)
    mask = jnp.ones(maps.shape[1:], bool) if mask is None else mask
    _, merge = REDUCTIONS[how.reduction]
    if not how.scale_invariant:
        depth, uncertainty = merge(jnp.where(mask[None], maps, 0.0))
        return depth, uncertainty

    from_zero, align = not how.shift_invariant, partial(ALIGNERS[how.method], **dict(how.options))
    height, width = mask.shape
    rows, columns = _subsample(height, width, how.max_res)
    sample_mask = mask[rows][:, columns]
    low, high = _extrema(maps[:, rows][:, :, columns], sample_mask[None], from_zero)
    maps = jnp.where(mask[None], (maps - low) / jnp.maximum(high - low, TINY), 0.0)
    scale, shift, trust = align(maps[:, rows][:, :, columns], sample_mask, shift_invariant=how.shift_invariant)
    maps = scale[:, None, None] * maps + shift[:, None, None]
    # A member with little trust is moved towards the consensus. (With "mean", this is the trust-weighted mean.)
    consensus = _weighted_sum(trust / jnp.sum(trust), maps)[None]
    depth, uncertainty = merge(consensus + trust[:, None, None] * (maps - consensus))

    low, high = _extrema(depth, mask, from_zero)
    span = jnp.maximum(high - low, TINY)
    return jnp.where(mask, (depth - low) / span, 0.0), jnp.where(mask, uncertainty / span, 0.0)


def _extrema(maps, mask, from_zero):
    """Returns the smallest value (or 0) and the largest of each map inside the mask, to broadcast against the maps."""
    high = jnp.max(jnp.where(mask, maps, -jnp.inf), axis=(-2, -1), keepdims=True)
    low = jnp.min(jnp.where(mask, maps, jnp.inf), axis=(-2, -1), keepdims=True)
    return jnp.zeros_like(low) if from_zero else low, high


def _subsample(height, width, max_res):
    """Returns rows and columns of a nearest-exact resize to a longer side of `max_res`; all if the image is smaller."""
    longest = max(height, width)
    if longest <= max_res:
        return slice(None), slice(None)

    def picks(side):
        size = max(side * max_res // longest, 1)
        return (2 * jnp.arange(size) + 1) * side // (2 * size)  # floor((i + 1/2) * side / size) in integers

    return picks(height), picks(width)


# ---- Normals ---------------------------------------------------------------------------------------------------------


def ensemble_normals(
    maps: Float[Array | np.ndarray, "e h w 3"], *, reduction: str = "closest"
) -> tuple[Float[Array, "h w 3"], Float[Array, "h w"]]:
    """Merges unit normals of one image. Like `ensemble_depth`, it compiles itself.

    Args:
        maps: unit vectors, (e, h, w, 3), of JAX or NumPy.
        reduction: "mean" for the mean direction, or "closest" for the member closest to it at each pixel, which keeps
            edges sharp.

    Returns:
        Normals (h, w, 3), and the mean angle between the members and the mean direction as a fraction of 180 degrees,
        (h, w); both float32.

    Raises:
        ValueError: an unknown reduction.
    """
    if reduction not in ("closest", "mean"):
        raise ValueError(f"reduction must be 'closest' or 'mean', got {reduction!r}.")
    return _merge_normal_maps(reduction, maps)


@partial(jax.jit, static_argnums=0, inline=True)
def _merge_normal_maps(
    reduction: str, maps: Float[Array, "e h w 3"]
) -> tuple[Float[Array, "h w 3"], Float[Array, "h w"]]:
    maps = maps.astype(jnp.float32)
    mean = _mean(maps)
    mean = mean / jnp.maximum(length(mean), TINY)
    cosine = jnp.clip(jnp.sum(mean[None] * maps, axis=-1), -1.0, 1.0)  # e h w
    uncertainty = _mean(arc_cosine(cosine)) / jnp.pi
    if reduction == "mean":
        return mean, uncertainty
    closest = jnp.argmax(cosine, axis=0)
    return jnp.take_along_axis(maps, closest[None, :, :, None], axis=0)[0], uncertainty
