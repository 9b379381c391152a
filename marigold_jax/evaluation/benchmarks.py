"""The official test sets for depth and normals, one row each, with the protocol of the papers.

Files are as Marigold's authors packed them:

    DATA_DIR/nyuv2/nyu_labeled_extracted.tar              depth: a tar archive, or a folder of that name without ".tar"
    DATA_DIR/nyuv2/test/000000_img.png, 000000_normal.npy normals: the unpacked zip archive
    LISTS/nyu*/labeled/filename_list_test.txt             a filename list from the official folder `data_split`

A row is a protocol: how to read files as metres or unit vectors, which pixels count, how many images there are, and
with which resolution and seed the papers predict. Scores made with another protocol are not comparable (arXiv
2312.02145, section 4.2).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float32

from marigold_jax.data.depth_format import DepthFormat
from marigold_jax.data.saved_maps import array

DEFAULT_SEED = 1234  # of the papers' predictions
ANY_DEPTH = (float("-inf"), float("inf"))
ETH3D_SIZE = (4032, 6048)  # (height, width) of every raster; its files have no header

Rows, Columns = tuple[int, int], tuple[int, int]


@dataclass(frozen=True)
class Benchmark:
    """The protocol of one test set.

    Attributes:
        container: the archive below DATA_DIR, without ".tar", or a folder of that name.
        filename_list: a glob below LISTS, because the official repository has renamed its folders.
        count: the number of images that the papers score.
        source: how stored depth becomes metres, and which range is valid; its crop applies to image and truth.
        read: turns the content of a truth file into what `data.prepared.decode` takes.
        official_name: turns an RGB path into the official inference's name for its prediction, without ".npy".
        truth: the quantity that the test set holds, a key of `quantities.QUANTITIES`.
        limits: the range in metres that aligned predictions are clipped to; None: the range of the source.
        mask_column: the column of the filename list that names a mask file; None: the range of the source is the mask.
        window: the rows and columns, after the crop, that are scored; None: all.
        processing_resolution: the longer side of the image in the authors' predictions; 0: its own size.
        seed: the seed of the authors' predictions.
        published_resolution: as `processing_resolution`, for the scores in `published`; None: the same.
        alignment_width: the largest number of columns that the fit of scale and shift uses; None: all.
    """

    container: str
    filename_list: str
    count: int
    source: DepthFormat
    read: Callable[[bytes], bytes | np.ndarray]
    official_name: Callable[[str], str]
    truth: str = "depth"
    limits: tuple[float, float] | None = None
    mask_column: int | None = None
    window: tuple[Rows, Columns] | None = None
    processing_resolution: int = 0
    seed: int = DEFAULT_SEED
    published_resolution: int | None = None
    alignment_width: int | None = None


def png(content: bytes) -> bytes:
    return content


def npy(content: bytes) -> Float32[np.ndarray, "h w 1"]:
    values = array(content).astype(np.float32)
    return values.reshape(*values.shape[:2], 1)


def eth3d_raster(content: bytes) -> Float32[np.ndarray, "h w 1"]:
    """Reads little-endian float32 without a header, although names end in ".JPG". Unknown depth (inf) becomes 0."""
    values = np.frombuffer(content, "<f4").reshape(*ETH3D_SIZE, 1)
    return np.where(np.isfinite(values), values, np.float32(0))


def vectors(content: bytes, shortest: float = 0.0) -> Float32[np.ndarray, "h w 3"]:
    """Reads normals of any length: x right, y up, z towards the viewer.

    Vectors up to length `shortest` become 0, which means unknown. Raises ValueError if the file holds something else.
    """
    values = array(content).astype(np.float32)
    if values.ndim != 3 or values.shape[2] != 3:
        raise ValueError(f"wanted normals of shape (height, width, 3), found {values.shape}")
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    return np.where(np.isfinite(length) & (length > shortest), values, np.float32(0))


def same_stem(rgb: str) -> str:
    """a/0001_img.png -> a/0001_img"""
    return str(PurePosixPath(rgb).with_suffix(""))


def by_stem(rgb: str) -> str:
    """a/0001.png -> a/pred_0001"""
    path = PurePosixPath(rgb)
    return str(path.with_name(f"pred_{path.stem}"))


def by_number(rgb: str) -> str:
    """a/rgb_0001.png -> a/pred_0001"""
    path = PurePosixPath(rgb)
    number = [*path.stem.split("_"), path.stem][1]  # names in other lists may have no "_"
    return str(path.with_name(f"pred_{number}"))


def _normals(container: str, filename_list: str, count: int, **differences: Any) -> Benchmark:
    """A test set for normals. The papers predict with four steps and an ensemble of ten."""
    usual = {"read": vectors, "processing_resolution": 640, "published_resolution": 0}
    return Benchmark(
        container,
        filename_list,
        count,
        DepthFormat(1.0),
        official_name=same_stem,
        truth="normals",
        **usual | differences,
    )


BENCHMARKS = {
    "nyu_v2": Benchmark(
        container="nyuv2/nyu_labeled_extracted",
        filename_list="nyu*/labeled/filename_list_test.txt",
        count=654,
        source=DepthFormat(units_per_metre=1000.0, min_depth=1e-3, max_depth=10.0),
        read=png,
        official_name=by_number,
        window=((45, 471), (41, 601)),
    ),
    "kitti": Benchmark(
        container="kitti/kitti_eigen_split_test",
        filename_list="kitti*/eigen_test_files_with_gt.txt",
        count=652,  # of 697 lines; the others have no depth
        source=DepthFormat(units_per_metre=256.0, max_depth=80.0, crop="kitti_benchmark"),
        read=png,
        official_name=by_stem,
        window=((117, 321), (43, 1172)),  # Eigen's
    ),
    "eth3d": Benchmark(
        container="eth3d/eth3d",
        filename_list="eth3d*/eth3d_filename_list.txt",
        count=454,
        source=DepthFormat(units_per_metre=1.0),
        read=eth3d_raster,
        official_name=by_stem,
        processing_resolution=756,
        alignment_width=1024,
    ),
    "scannet": Benchmark(
        container="scannet/scannet_val_sampled_800_1",
        filename_list="scannet*/scannet_val_sampled_list_800_1.txt",
        count=800,
        source=DepthFormat(units_per_metre=1000.0, min_depth=1e-3, max_depth=10.0),
        read=png,
        official_name=by_stem,
    ),
    "diode": Benchmark(
        container="diode/diode_val",
        filename_list="diode*/diode_val_all_filename_list.txt",
        count=771,
        source=DepthFormat(1.0, *ANY_DEPTH),  # the mask file alone says what is valid
        read=npy,
        official_name=by_stem,
        limits=(0.6, 350.0),
        mask_column=2,
        processing_resolution=640,
    ),
    "nyu_v2_normals": _normals("nyuv2/test", "nyu_normals/nyuv2_test.txt", 654, seed=4321),
    "scannet_normals": _normals("scannet", "scannet_normals/scannet_test.txt", 300),
    "ibims_normals": _normals("ibims/ibims", "ibims_normals/ibims_test.txt", 100, seed=4321),
    # The authors train on 627 of its frames; papers score all 1064. Whole frames are scored, without the sky.
    "sintel_normals": _normals(
        "sintel", "sintel_normals/sintel_filtered.txt", 1064, read=partial(vectors, shortest=0.1)
    ),
    "diode_normals": _normals("diode/val", "diode_normals/diode_test.txt", 771, processing_resolution=768),
    "oasis_normals": _normals("oasis/val", "oasis_normals/oasis_test.txt", 9999, processing_resolution=768),
}
