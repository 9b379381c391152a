"""Transforms against PyTorch's quantile and interpolate, and the two improvements against the reference's way."""

import numpy as np
import pytest
import torch

from marigold_jax.data.depth_format import DepthFormat
from marigold_jax.data.prepared import decode
from marigold_jax.data.record import Feature
from marigold_jax.data.targets import TARGETS, Target
from marigold_jax.data.transforms import mirror, nearest, normalise, percentiles, transform

REFERENCE = {"antialias": False, "far_fill": False}


def example(height=96, width=128, seed=0, invalid=0.2, normals=False):
    random = np.random.default_rng(seed)
    depth = random.gamma(2, 3, (height, width, 1)).astype(np.float32)
    depth[random.random(depth.shape) < invalid] = 0
    out = {"rgb": random.integers(0, 256, (height, width, 3), dtype=np.uint8), "depth": depth, "mask": depth > 0}
    if normals:
        vectors = random.normal(size=(height, width, 3)).astype(np.float32)
        out["normals"] = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return out


def nchw(array):
    return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)[None]


def torch_reference(sample, size, flip):
    """Flip, normalise by the percentiles at full resolution, resize by nearest-exact: the official trainer's way."""
    rgb, depth, mask = (nchw(sample[key]) for key in ("rgb", "depth", "mask"))
    if flip:
        rgb, depth, mask = (x.flip(-1) for x in (rgb, depth, mask))
    near, far = torch.quantile(depth[mask], torch.tensor([0.02, 0.98]))
    target = (((depth - near) / (far - near)) * 2 - 1).clip(-1, 1)
    rgb = rgb.float() / 255 * 2 - 1

    def resize(x):
        return torch.nn.functional.interpolate(x.float(), size, mode="nearest-exact")[0].permute(1, 2, 0).numpy()

    return {"rgb": resize(rgb), "target": resize(target), "mask": resize(mask) > 0, "depth": resize(depth * mask)}


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(60, 80), (41, 97)])
def test_the_reference_way_equals_torch(flip, size):
    sample = transform(example(), size=size, flip=flip, **REFERENCE)
    want = torch_reference(example(), size, flip)
    assert sample.keys() == want.keys() | {"span"}
    depth = example()["depth"][example()["mask"]].astype(np.float64)
    np.testing.assert_allclose(sample["span"], np.diff(np.quantile(depth, (0.02, 0.98)))[0], rtol=1e-6)
    assert sample["mask"].dtype == bool and {sample[key].dtype for key in ("rgb", "depth", "target")} == {
        np.dtype("float32")
    }
    for key, value in want.items():
        assert sample[key].shape == value.shape
        np.testing.assert_allclose(
            sample[key], value, rtol=0, atol=2e-6 if key == "target" else 1e-7 * value.max(), err_msg=key
        )


def test_hypersim_is_shrunk_by_eight_fifths():
    index = nearest(np.arange(1024)[None, :, None], (1, 640)).ravel()
    np.testing.assert_array_equal(index, np.floor((np.arange(640) + 0.5) * 1.6))


def test_antialiased_rgb_equals_torch():
    raw = example()
    want = torch.nn.functional.interpolate(nchw(raw["rgb"]).float(), (60, 80), mode="bilinear", antialias=True)
    sample = transform(raw, size=(60, 80), flip=False, antialias=True, far_fill=False)
    np.testing.assert_allclose(sample["rgb"], want[0].permute(1, 2, 0).numpy() / 255 * 2 - 1, atol=2e-6)


def test_percentiles_equal_numpy_in_float64():
    raw = example(seed=3)
    want = np.quantile(raw["depth"][raw["mask"]].astype(np.float64), [0.02, 0.98])
    np.testing.assert_allclose(percentiles(raw["depth"], raw["mask"]), want, rtol=1e-6)


@pytest.mark.parametrize("far_fill", [False, True])
@pytest.mark.parametrize("depth", [np.zeros, lambda *shape: np.full(*shape, 7.0)], ids=["all invalid", "constant"])
def test_nothing_to_learn_gives_zeros_and_an_empty_mask(depth, far_fill):
    raw = example()
    raw["depth"] = depth((96, 128, 1)).astype(np.float32)
    raw["mask"] = raw["depth"] > 0
    sample = transform(raw, size=(48, 64), flip=False, antialias=True, far_fill=far_fill)
    assert not sample["mask"].any() and not sample["target"].any() and not sample["depth"].any()


def test_nan_never_comes_through():
    raw = example()
    raw["depth"][~raw["mask"]] = np.nan
    sample = transform(raw, size=(48, 64), flip=False, **REFERENCE)
    assert np.isfinite(sample["target"]).all() and np.isfinite(sample["depth"]).all()


def test_flip_mirrors_everything_and_normals_change_side():
    raw = example(normals=True)
    straight, flipped = (transform(raw, size=None, flip=flip, **REFERENCE) for flip in (False, True))
    for key in ("rgb", "depth", "target", "mask"):
        np.testing.assert_array_equal(flipped[key], straight[key][:, ::-1])
    np.testing.assert_array_equal(flipped["normals"], straight["normals"][:, ::-1] * [-1, 1, 1])
    np.testing.assert_allclose(np.linalg.norm(flipped["normals"], axis=-1), 1, atol=1e-6)
    for key, value in mirror(mirror(raw)).items():
        np.testing.assert_array_equal(value, raw[key])


def test_where_a_normal_is_unknown_nothing_counts():
    raw = example(normals=True)
    raw["normals"][10:20] = 0
    sample, plain = (transform(one, size=None, flip=False, **REFERENCE) for one in (raw, example()))
    assert not sample["mask"][10:20].any()
    np.testing.assert_array_equal(sample["mask"][20:], plain["mask"][20:])
    np.testing.assert_array_equal(sample["target"], plain["target"])


@pytest.mark.parametrize("size", [None, (60, 80)])
def test_target_and_span_are_metres_between_the_percentiles(size):
    """What end-to-end fine-tuning learns: depth clamped to its own [2, 98] percentiles (arXiv 2409.11355), shifted."""
    raw = example(192, 256)
    sample = transform(raw, size=size, flip=False, antialias=True, far_fill=True)
    mask, depth = sample["mask"], torch.from_numpy(sample["depth"])
    # They take the percentiles after resizing; here they are those of the picture before.
    low, high = torch.quantile(depth[torch.from_numpy(mask)], torch.tensor([0.02, 0.98]))
    metres = ((sample["target"] + 1) * sample["span"] / 2)[mask]
    wanted = (depth.clip(low, high) - low).numpy()[mask]
    if size is None:
        np.testing.assert_allclose(metres, wanted, rtol=0, atol=1e-5)
    assert np.abs(metres - wanted).mean() < 0.005 * float(high - low)


def test_invalid_pixels_are_near_in_the_reference_and_far_with_far_fill():
    raw = example()
    raw["depth"][0, 0] = 655.35  # a sky that the dataset marks by its largest number
    raw["mask"][0, 0] = False
    reference, filled = (
        transform(raw, size=None, flip=False, antialias=False, far_fill=fill) for fill in (False, True)
    )
    hole = ~raw["mask"]
    hole[0, 0] = False
    assert (reference["target"][hole] == -1).all() and reference["target"][0, 0] == 1
    assert (filled["target"][~raw["mask"]] == 1).all()
    np.testing.assert_array_equal(filled["target"][raw["mask"]], reference["target"][raw["mask"]])
    for key in ("rgb", "depth", "mask"):
        np.testing.assert_array_equal(filled[key], reference[key])


def test_far_fill_keeps_the_sky_from_bleeding_into_the_skyline():
    """An 8 x 8 mean stands for the encoder: what a latent at the border of sky and houses takes from both sides."""
    depth = np.broadcast_to(np.linspace(5, 60, 256, dtype=np.float32)[:, None, None], (256, 256, 1))[::-1].copy()
    truth = np.where(np.arange(256)[:, None, None] < 90, 1000, depth).astype(np.float32)
    mask = truth < 1000
    raw = {"rgb": np.zeros((256, 256, 3), np.uint8), "depth": np.where(mask, truth, np.float32(0)), "mask": mask}

    def latent(target):
        return target.reshape(32, 8, 32, 8).mean(axis=(1, 3))

    ideal, _ = normalise(truth, mask, percentiles(truth, mask))
    error = {}
    for fill in (False, True):
        sample = transform(raw, size=None, flip=False, antialias=False, far_fill=fill)
        error[fill] = np.abs(latent(sample["target"]) - latent(ideal))[11]  # the row of cells that holds row 90
    assert error[True].max() < 1e-6 and error[False].min() > 0.4


def test_antialiasing_removes_what_a_smaller_image_cannot_show():
    """Stripes 2.2 pixels wide, shrunk by 1.6: the small image cannot hold them; nearest shows strong false stripes."""
    stripes = 127.5 + 127.5 * np.sin(2 * np.pi * np.arange(1024) / 2.2)
    raw = example(768, 1024)
    raw["rgb"] = np.broadcast_to(stripes[None, :, None], (768, 1024, 3)).astype(np.uint8)
    contrast = {
        antialias: transform(raw, size=(480, 640), flip=False, antialias=antialias, far_fill=True)["rgb"].std()
        for antialias in (False, True)
    }
    assert contrast[False] > 0.65 and contrast[True] < 0.25 * contrast[False]


def test_a_further_target_is_one_row(monkeypatch):
    """Its map is restored, mirrored and masked as its row says, without any other code."""
    row = Target(
        "albedo",
        map="albedo",
        sample_key="albedo",
        stored=(Feature("Tensor", "uint8", 3),),
        restore=lambda stored: stored.astype(np.float32) / 255,
        mirror=lambda values: 1 - values,
        is_known=lambda values: values[..., :1] > 0.25,
    )
    monkeypatch.setitem(TARGETS, "albedo", row)
    stored = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    depth = np.full((96, 128, 1), 2.0, np.float32)
    decoded = decode({"rgb": stored, "depth": depth, "albedo": stored}, DepthFormat(1.0))
    np.testing.assert_array_equal(decoded["albedo"], stored.astype(np.float32) / 255)
    raw = example() | {"albedo": decoded["albedo"]}
    sample = transform(raw, size=None, flip=True, antialias=True, far_fill=True)
    np.testing.assert_array_equal(sample["albedo"], 1 - raw["albedo"][:, ::-1])
    without = transform(example(), size=None, flip=True, antialias=True, far_fill=True)
    np.testing.assert_array_equal(sample["mask"], without["mask"] & (sample["albedo"][..., :1] > 0.25))
