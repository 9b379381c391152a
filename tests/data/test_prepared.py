"""Stored records as examples: units, ranges, masks, normals and the crop of Virtual KITTI."""

import io
import json
import pickle
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from marigold_jax.data.depth_format import DEPTH_FORMATS, DepthFormat, depth_format_from
from marigold_jax.data.prepared import decode
from marigold_jax.data.record import quantise, to_mask_png, to_png


def record(depth, rgb=None, **more):
    rgb = np.zeros((*depth.shape[:2], 3), np.uint8) if rgb is None else rgb
    return {"rgb": to_png(rgb), "depth": to_png(depth) if depth.dtype == np.uint16 else depth[..., None], **more}


@pytest.mark.parametrize("units", [1000.0, 100.0, 256.0, 5000.0])
def test_every_16_bit_depth_is_the_nearest_float32_of_metres(units):
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    example = decode(record(every), DepthFormat(units))
    np.testing.assert_array_equal(example["depth"][..., 0], (every / units).astype(np.float32))


@pytest.mark.parametrize(
    "name, millimetres, valid",
    [
        ("hypersim", [0, 1, 64999, 65000, 65535], [0, 1, 1, 0, 0]),
        ("virtual_kitti_2", [0, 10, 79990, 80000, 655350], [0, 1, 1, 0, 0]),
    ],
)
def test_the_range_of_valid_depth_is_open(name, millimetres, valid):
    stored = np.array([millimetres]) * DEPTH_FORMATS[name].units_per_metre / 1000
    large = np.tile(stored.astype(np.uint16), (352, 250))[:, :1216]
    mask = decode(record(large), DEPTH_FORMATS[name])["mask"]
    assert mask.dtype == bool and mask[0, :5, 0].tolist() == [bool(v) for v in valid]


def test_float_depth_is_kept_to_the_bit():
    depth = np.random.default_rng(0).random((7, 5), dtype=np.float32)
    np.testing.assert_array_equal(decode(record(depth), DepthFormat(1.0))["depth"][..., 0], depth)


def test_a_stored_mask_narrows_the_valid_range():
    depth = np.array([[0, 500, 500]], np.uint16)
    mask = to_mask_png(np.array([True, True, False]).reshape(1, 3, 1))
    assert decode(record(depth, mask=mask), DepthFormat(1000.0))["mask"][0, :, 0].tolist() == [False, True, False]


def test_normals_survive_storage():
    random = np.random.default_rng(0)
    normals = random.normal(size=(20, 30, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    normals[0, 0] = np.nan
    normals[0, 1] = 0.05
    back = decode(record(np.ones((20, 30), np.uint16), normals=quantise(normals)), DepthFormat(1.0))["normals"]
    assert back.dtype == np.float32 and not back[0, :2].any()
    assert np.degrees(np.linalg.norm(back - normals, axis=-1)[1:].max()) < 0.002
    np.testing.assert_allclose(np.linalg.norm(back[1:], axis=-1), 1, atol=1e-6)


def test_virtual_kitti_is_cropped_to_the_kitti_benchmark():
    index = np.arange(375 * 1242, dtype=np.uint32).reshape(375, 1242)
    rgb = np.stack([index >> 16, index >> 8, index], axis=-1).astype(np.uint8)
    example = decode(record((index % 7999 + 1).astype(np.uint16), rgb), DEPTH_FORMATS["virtual_kitti_2"])
    window = index[23:375, 13:1229]
    assert {key: value.shape for key, value in example.items()} == {
        "rgb": (352, 1216, 3),
        "depth": (352, 1216, 1),
        "mask": (352, 1216, 1),
    }
    np.testing.assert_array_equal(example["rgb"].astype(np.uint32) @ np.uint32([65536, 256, 1]), window)
    np.testing.assert_allclose(example["depth"][..., 0], (window % 7999 + 1) / 100, rtol=1e-6)


def test_an_image_too_small_for_the_crop_is_refused():
    with pytest.raises(ValueError, match="the KITTI benchmark crop takes 352 x 1216 pixels; the image has 300 x 1242"):
        decode(record(np.ones((300, 1242), np.uint16)), DEPTH_FORMATS["virtual_kitti_2"])


def test_grey_and_transparent_images_become_rgb():
    for mode in ("L", "RGBA", "P"):
        buffer = io.BytesIO()
        Image.new(mode, (4, 3), 7 if mode != "RGBA" else (7, 7, 7, 9)).save(buffer, "PNG")
        example = decode(record(np.ones((3, 4), np.uint16)) | {"rgb": buffer.getvalue()}, DepthFormat(1.0))
        assert example["rgb"].shape == (3, 4, 3) and example["rgb"].dtype == np.uint8


@pytest.mark.parametrize("source", [*DEPTH_FORMATS.values(), DepthFormat(256.0)])
def test_a_row_survives_being_written_into_a_dataset(source):
    assert depth_format_from(json.loads(json.dumps(asdict(source)))) == source


def test_the_rows_travel_to_other_processes():
    assert pickle.loads(pickle.dumps(DEPTH_FORMATS)) == DEPTH_FORMATS
