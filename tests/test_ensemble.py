"""Ensembling against NumPy in float64, against diffusers, and against toy ensembles with a known truth."""

import inspect
import runpy
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import torch
from diffusers import MarigoldDepthPipeline, MarigoldNormalsPipeline
from PIL import Image

from marigold_jax.ensemble import align_bfgs, ensemble_depth, ensemble_normals, lower_median

BENCHMARK = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "ensemble.py"))
toy_ensemble, fitted_errors, KINDS = (BENCHMARK[name] for name in ("toy_ensemble", "fitted_errors", "KINDS"))
HEIGHT, WIDTH = 48, 64
SEEDS = range(4)

OF_BFGS = ("shift_invariant", "reduction", "regularizer_strength", "max_iter", "tol")
align_bfgs_jit = jax.jit(align_bfgs, static_argnames=OF_BFGS)


def toy(kind="drift", seed=0):
    return jnp.asarray(toy_ensemble(kind, HEIGHT, WIDTH, seed)[1])


def diffusers_depth(maps, **options):
    maps = torch.from_numpy(np.array(maps))[:, None]
    depth, uncertainty = MarigoldDepthPipeline.ensemble_depth(maps, output_uncertainty=True, **options)
    return depth[0, 0].numpy(), uncertainty[0, 0].numpy()


def lower_median_numpy(maps):
    return np.sort(maps, axis=0)[(len(maps) - 1) // 2]


def eigen_numpy(maps, reduction="median", shift_invariant=True, sample=slice(None)):
    """`sample` picks, in flattened maps, the pixels that the alignment looks at."""
    flat = np.asarray(maps, np.float64).reshape(len(maps), -1)
    seen = flat[:, sample]
    shift = seen.mean(1, keepdims=True) if shift_invariant else 0.0
    deviation = np.sqrt(np.mean((seen - shift) ** 2, axis=1, keepdims=True))
    unit = (seen - shift) / deviation
    leading = np.linalg.svd(unit, full_matrices=False)[0][:, :1]
    leading *= np.sign(leading.sum())
    trust = np.clip(len(maps) * leading**2, 0, 1) ** 2
    aligned = (flat - shift) / deviation * leading
    consensus = np.average(aligned, axis=0, weights=trust[:, 0])
    aligned = trust * aligned + (1 - trust) * consensus
    if reduction == "median":
        depth = lower_median_numpy(aligned)
        spread = lower_median_numpy(np.abs(aligned - depth))
    else:
        depth, spread = aligned.mean(0), aligned.std(0, ddof=1)
    low = depth.min() if shift_invariant else 0.0
    span = depth.max() - low
    return ((depth - low) / span).reshape(maps.shape[1:]), (spread / span).reshape(maps.shape[1:])


def assert_close(actual, expected, tolerance=1e-5):
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=0, atol=tolerance)


@pytest.mark.parametrize("members", range(1, 14))
def test_lower_median_is_that_of_torch(members):
    maps = np.random.default_rng(members).integers(0, 5, (members, 6, 50)).astype(np.float32)  # with ties
    np.testing.assert_array_equal(lower_median(jnp.asarray(maps)), torch.from_numpy(maps).median(dim=0).values)


@pytest.mark.parametrize("shift_invariant", [True, False])
@pytest.mark.parametrize("reduction", ["median", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_eigen_is_that_of_numpy_in_float64(kind, reduction, shift_invariant):
    maps = toy(kind)
    ours = ensemble_depth(maps, reduction=reduction, shift_invariant=shift_invariant)
    assert_close(ours, eigen_numpy(maps, reduction, shift_invariant))


@pytest.mark.parametrize("members", [2, 5])
def test_eigen_of_few_members(members):
    maps = toy()[:members]
    assert_close(ensemble_depth(maps), eigen_numpy(maps))


@pytest.mark.parametrize("kind", KINDS)
def test_eigen_is_closer_to_the_truth_than_diffusers(kind):
    ours, theirs = [], []
    for seed in SEEDS:
        truth, maps = toy_ensemble(kind, HEIGHT, WIDTH, seed)
        ours.append(fitted_errors(np.asarray(ensemble_depth(jnp.asarray(maps))[0]), truth))
        theirs.append(fitted_errors(diffusers_depth(maps)[0], truth))
    assert (np.mean(ours, axis=0) < np.mean(theirs, axis=0)).all()  # RMSE and AbsRel


def test_scale_and_shift_of_a_member_do_not_matter():
    maps, generator = toy("broken"), np.random.default_rng(0)
    scale, shift = generator.uniform(0.2, 5, (10, 1, 1)), generator.uniform(-3, 3, (10, 1, 1))
    moved = jnp.asarray(np.asarray(maps) * scale + shift, jnp.float32)
    assert_close(ensemble_depth(moved), ensemble_depth(maps))
    scaled = jnp.asarray(np.asarray(maps) * scale, jnp.float32)
    assert_close(ensemble_depth(scaled, shift_invariant=False), ensemble_depth(maps, shift_invariant=False))


def test_inverted_members_are_turned_upright():
    maps = toy()
    inverted = maps.at[:3].set(2.0 - maps[:3])
    assert_close(ensemble_depth(inverted), ensemble_depth(maps))


def test_a_constant_member_abstains():
    maps = toy()[:2].at[1].set(0.7)
    depth, uncertainty = ensemble_depth(maps)
    only = (maps[0] - maps[0].min()) / jnp.ptp(maps[0])
    assert_close((depth, uncertainty), (only, jnp.zeros_like(only)))


def paper_objective(aligned, strength=0.02):
    aligned = np.asarray(aligned, np.float64)
    first, second = np.triu_indices(len(aligned), 1)
    distances = np.sqrt(np.mean((aligned[first] - aligned[second]) ** 2, axis=(1, 2)))
    merged = lower_median_numpy(aligned)
    return distances.sum() + strength * (abs(merged.min()) + abs(1 - merged.max()))


@pytest.mark.parametrize("kind", KINDS)
def test_bfgs_descends_as_far_as_scipy_and_is_as_accurate(kind, monkeypatch):
    found = []
    minimise = scipy.optimize.minimize
    monkeypatch.setattr(scipy.optimize, "minimize", lambda *a, **k: found.append(minimise(*a, **k)) or found[-1])
    ours, theirs = [], []
    for seed in SEEDS:
        truth, maps = toy_ensemble(kind, HEIGHT, WIDTH, seed)
        theirs.append(fitted_errors(diffusers_depth(maps)[0], truth))
        ours.append(fitted_errors(np.asarray(ensemble_depth(jnp.asarray(maps), method="bfgs")[0]), truth))
        scale, shift = np.split(found[-1].x[:, None, None], 2)

        low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
        start = (maps - low) / (high - low)
        everywhere = jnp.ones((HEIGHT, WIDTH), bool)
        our_scale, our_shift, _ = align_bfgs_jit(jnp.asarray(start), everywhere, shift_invariant=True)
        aligned = np.asarray(our_scale)[:, None, None] * start + np.asarray(our_shift)[:, None, None]
        assert paper_objective(aligned) < paper_objective(start)
        assert paper_objective(aligned) <= paper_objective(maps * scale + shift)
    assert (np.mean(ours, axis=0) < 1.05 * np.mean(theirs, axis=0)).all()


def predicted():
    """Ten predictions of one photograph by the bundled model, one above the other.

    launch/demo/photographs/rocket.jpg at 96 x 72, seeds 0 to 9, every third row and column, times 255.
    """
    with Image.open(Path(__file__).with_name("members.png")) as image:
        return np.asarray(image, np.float32).reshape(10, 24, 32) / 255


def two_broken():
    """One member is upside down, another is constant."""
    return np.concatenate([1 - predicted()[:1], np.full((1, 24, 32), 0.5, np.float32), predicted()[2:]])


def two_upside_down():
    return np.concatenate([1 - predicted()[:2], predicted()[2:]])


ENSEMBLES = {
    "predicted": predicted,
    "two of them": lambda: predicted()[:2],
    "one upside down, one constant": two_broken,
    "two upside down": two_upside_down,
    "noise": lambda: np.random.default_rng(0).random((6, 24, 32), np.float32),
}


@pytest.mark.parametrize(
    "name, shift_invariant", [*((name, True) for name in ENSEMBLES), ("predicted", False), ("two upside down", False)]
)
def test_bfgs_stays_upright_however_long_it_goes_on(name, shift_invariant):
    """The paper's objective is smallest where all maps are shrunk to nothing, and next to that is upside down."""
    maps = ENSEMBLES[name]()[:, ::2, ::2]
    low, high = maps.min((1, 2), keepdims=True) * shift_invariant, maps.max((1, 2), keepdims=True)
    start = ((maps - low) / np.maximum(high - low, 1e-6)).astype(np.float32)
    everywhere = jnp.ones(start.shape[1:], bool)
    # Compiled once for all numbers of iterations; the annotations would want a number.
    align = jax.jit(partial(inspect.unwrap(align_bfgs), shift_invariant=shift_invariant, tol=1e-6))
    begin, before = lower_median_numpy(start).ravel(), paper_objective(start)
    for iterations in (1, 2, 5, 20, 50, 200):
        scale, shift, _ = align(jnp.asarray(start), everywhere, max_iter=jnp.int32(iterations))
        aligned = np.asarray(scale)[:, None, None] * start + np.asarray(shift)[:, None, None]
        assert (np.asarray(scale) > 0.2).all(), iterations
        after = paper_objective(aligned)
        assert after <= before + 1e-5, iterations
        merged, before = lower_median_numpy(aligned).ravel(), after
        # Maps of noise show nothing that they share, so what they are merged to hangs on their weights.
        assert np.corrcoef(merged, begin)[0, 1] > (0.7 if name == "noise" else 0.95), iterations
    assert before < 0.6 * paper_objective(start)


@pytest.mark.parametrize("kind", KINDS)
def test_bfgs_at_the_official_defaults_is_as_accurate_as_diffusers(kind):
    truth, maps = toy_ensemble(kind, 24, 32, 0)
    options = {"max_iter": 50, "tol": 1e-6}
    (depth, uncertainty), theirs = ensemble_depth(jnp.asarray(maps), method="bfgs", **options), diffusers_depth(maps)
    ours, others = (np.asarray(fitted_errors(np.asarray(one), truth)) for one in (depth, theirs[0]))
    assert (ours < 1.05 * others).all()
    assert np.corrcoef(np.ravel(depth), np.ravel(theirs[0]))[0, 1] > 0.99
    assert uncertainty.mean() < 1.2 * theirs[1].mean()


def test_bfgs_finds_scales_alone_where_the_shift_is_known():
    truth = toy("noise")[0]
    maps = truth[None] * jnp.array([1.0, 2.0, 0.5, 3.0, 1.5])[:, None, None]
    maps = maps.at[1:, 0, 0].set(0.0).at[0, 0, 0].set(2 * truth.max())  # spoils the start of the first member
    depth, _ = ensemble_depth(maps, method="bfgs", shift_invariant=False)
    expected = truth.at[0, 0].set(0.0) / truth.max()
    assert_close([depth], [expected], 2e-3)


@pytest.mark.parametrize("reduction", ["median", "mean"])
@pytest.mark.parametrize("options", [{}, {"shift_invariant": False}, {"max_res": 30}])
def test_start_merge_and_uncertainty_are_those_of_diffusers(reduction, options):
    options = {"reduction": reduction, "max_iter": 0, **options}
    maps = toy("outliers")[:6]
    assert_close(ensemble_depth(maps, method="bfgs", **options), diffusers_depth(maps, **options))


def test_bfgs_stops_at_the_tolerance():
    maps = toy("outliers")[:6]
    start = ensemble_depth(maps, method="bfgs", max_iter=0)
    assert_close(ensemble_depth(maps, method="bfgs", tol=1e6), start)
    assert np.abs(ensemble_depth(maps, method="bfgs")[0] - start[0]).max() > 0.01


def test_regularizer_strength_holds_the_range():
    maps = toy("noise")[:4]
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    align = partial(align_bfgs_jit, (maps - low) / (high - low), jnp.ones(maps.shape[1:], bool), shift_invariant=True)
    weak, strong = align(max_iter=8)[0], align(max_iter=8, regularizer_strength=10.0)[0]
    assert weak.mean() < 0.9 < strong.mean()


def test_alignment_at_max_res_looks_at_a_nearest_exact_subsample():
    maps, index = toy(), torch.arange(HEIGHT * WIDTH, dtype=torch.float64).reshape(1, 1, HEIGHT, WIDTH)
    picked = torch.nn.functional.interpolate(index, size=(18, 25), mode="nearest-exact").flatten().long().numpy()
    assert_close(ensemble_depth(maps, max_res=25), eigen_numpy(maps, sample=picked))


def test_maps_without_invariance_are_merged_as_they_are():
    maps = 10 * toy()
    median = lower_median_numpy(np.asarray(maps))
    deviation = lower_median_numpy(np.abs(np.asarray(maps) - median))
    assert_close(ensemble_depth(maps, scale_invariant=False, shift_invariant=False), (median, deviation))


MODES = [
    {},
    {"reduction": "mean"},
    {"shift_invariant": False},
    {"scale_invariant": False, "shift_invariant": False},
    {"method": "bfgs"},
    {"method": "bfgs", "shift_invariant": False, "reduction": "mean"},
]


@pytest.mark.parametrize("options", MODES)
def test_mask_is_cropping(options):
    maps = toy("broken")[:5]
    garbage = jnp.where(jnp.arange(80) % 2, jnp.nan, 1e9).astype(jnp.float32)
    canvas = jnp.tile(garbage[None, None], (5, 64, 1)).at[:, :HEIGHT, :WIDTH].set(maps)
    mask = jnp.zeros((64, 80), bool).at[:HEIGHT, :WIDTH].set(True)
    padded = ensemble_depth(canvas, mask, **options)
    assert_close([x[:HEIGHT, :WIDTH] for x in padded], ensemble_depth(maps, **options))
    for x in padded:
        assert not np.asarray(x)[~np.asarray(mask)].any()


@pytest.mark.parametrize("options", MODES)
def test_vmap_is_a_loop(options):
    maps = jnp.stack([toy("drift", seed)[:4, :24, :32] for seed in SEEDS])
    masks = jnp.stack([jnp.broadcast_to(jnp.arange(24)[:, None] < rows, (24, 32)) for rows in (24, 20, 16, 9)])
    merge = partial(ensemble_depth, **options)
    together = jax.jit(jax.vmap(merge))(maps, masks)
    alone = [jnp.stack(x) for x in zip(*map(merge, maps, masks), strict=True)]
    assert_close(together, alone)


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("members", [2, 5])
def test_degenerate_maps_give_finite_answers(members, options):
    maps = toy()[:members]
    flat = jnp.stack([jnp.full_like(maps[0], 0.1 + 0.3 * member) for member in range(members)])
    cases = {
        "zero": jnp.zeros_like(maps),
        "constant": flat,
        "one varies": flat.at[0].set(maps[0]),
        "one is constant": maps.at[0].set(0.7),
        "identical": jnp.tile(maps[:1], (members, 1, 1)),
        "opposite": maps.at[0].set(1 - maps[1]),
        "one pixel": jnp.zeros_like(maps).at[:, 3, 5].set(1.0),
    }
    for name, case in cases.items():
        depth, uncertainty = ensemble_depth(case, **options)
        assert np.isfinite(depth).all() and np.isfinite(uncertainty).all(), name
    if options.get("scale_invariant", True) and options.get("shift_invariant", True):
        for name in ("zero", "constant"):
            assert not np.asarray(ensemble_depth(cases[name], **options)[0]).any(), name
    for answer in ensemble_depth(maps, jnp.zeros(maps.shape[1:], bool), **options):
        assert not np.asarray(answer).any()


def test_half_precision_maps_are_merged_in_float32():
    maps = toy().astype(jnp.bfloat16)
    answers = ensemble_depth(maps)
    assert all(x.dtype == jnp.float32 for x in answers)
    assert_close(answers, eigen_numpy(np.asarray(maps.astype(jnp.float32))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale_invariant": False}, "shift_invariant=False"),
        ({"reduction": "mode"}, "'median', 'mean'"),
        ({"method": "newton"}, "'eigen', 'bfgs'"),
    ],
)
def test_errors_say_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        ensemble_depth(toy(), **options)


def test_one_map_is_no_ensemble():
    with pytest.raises(ValueError, match="at least 2 maps, got 1"):
        ensemble_depth(toy()[:1])


def compiled(caplog, function, *arguments, **options):
    """The number of programs that a call compiles."""
    caplog.clear()
    with jax.log_compiles(), caplog.at_level("WARNING", logger="jax"):
        jax.block_until_ready(function(*arguments, **options))
    return sum(record.getMessage().startswith("Compiling jit(") for record in caplog.records)


def test_a_call_is_one_program_and_the_next_call_none(caplog):
    maps, mask = np.random.default_rng(0).random((3, 11, 13), np.float32), np.ones((11, 13), bool)
    normals = np.random.default_rng(0).normal(size=(3, 11, 13, 3)).astype(np.float32)
    calls = {
        "depth": partial(ensemble_depth, maps),
        "masked": partial(ensemble_depth, maps, mask),
        "bfgs": partial(ensemble_depth, maps, method="bfgs", tol=0.01),
        "normals": partial(ensemble_normals, normals),
    }
    for name, call in calls.items():
        assert (compiled(caplog, call), compiled(caplog, call)) == (1, 0), name


def test_numpy_arrays_are_merged_like_those_of_jax():
    maps, mask = np.asarray(toy(), np.float64), np.arange(WIDTH) < np.full((HEIGHT, 1), 50)
    ours = ensemble_depth(maps, mask)
    assert all(isinstance(x, jax.Array) and x.dtype == jnp.float32 for x in ours)
    assert_close(ours, ensemble_depth(jnp.asarray(maps), jnp.asarray(mask)), 0)


def test_it_can_be_called_in_a_program_and_has_gradients_outside_of_one():
    maps = toy()[:3, :8, :8]
    assert_close(jax.jit(ensemble_depth)(maps), ensemble_depth(maps), 1e-6)
    gradient = jax.grad(lambda maps: ensemble_depth(maps)[1].sum())(maps)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


# ---- Normals ---------------------------------------------------------------------------------------------------------


def toy_normals(members=5):
    generator = np.random.default_rng(0)
    normals = generator.normal(size=(1, 24, 32, 3)) + 0.4 * generator.normal(size=(members, 24, 32, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    normals[:, 0, 0] = 0  # a pixel without any direction
    return normals.astype(np.float32)


@pytest.mark.parametrize("members", [3, 6])  # both of two members are equally close to their mean
@pytest.mark.parametrize("reduction", ["closest", "mean"])
def test_normals_are_those_of_diffusers(reduction, members):
    maps = toy_normals(members)
    theirs = MarigoldNormalsPipeline.ensemble_normals(
        torch.from_numpy(maps).permute(0, 3, 1, 2), output_uncertainty=True, reduction=reduction
    )
    ours = ensemble_normals(jnp.asarray(maps), reduction=reduction)
    assert_close(ours, (theirs[0][0].permute(1, 2, 0), theirs[1][0, 0]))


@pytest.mark.parametrize("reduction", ["closest", "mean"])
def test_normals_vmap_is_a_loop(reduction):
    maps = jnp.asarray(toy_normals()).reshape(5, 2, 12, 32, 3)
    merge = partial(ensemble_normals, reduction=reduction)
    together = jax.jit(jax.vmap(merge, in_axes=1))(maps)
    assert_close(together, [jnp.stack(x) for x in zip(merge(maps[:, 0]), merge(maps[:, 1]), strict=True)], 1e-6)


def test_normals_reduction_must_be_known():
    with pytest.raises(ValueError, match="'closest' or 'mean', got 'median'"):
        ensemble_normals(jnp.asarray(toy_normals()), reduction="median")
