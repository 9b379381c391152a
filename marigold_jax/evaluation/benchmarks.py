"""The test sets that papers report depth and normals on, one row each, read as Marigold's authors packed them.

    DATA_DIR/nyuv2/nyu_labeled_extracted.tar        the archive, or a folder of that name without ".tar"
    DATA_DIR/nyuv2/test/000000_img.png, 000000_normal.npy ...         of the normals, which come in a zip archive
    LISTS/nyu*/labeled/filename_list_test.txt       the official filename list (LISTS: its folder `data_split`)

A row is a protocol: how files become metres or unit vectors, which pixels count, at which resolution and with which
seed the papers predict, how many images there are. A score under another one is another number (arXiv 2312.02145,
section 4.2).
"""

import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Bool, Float32, Int

from marigold_jax.data.depth_format import DepthFormat
from marigold_jax.data.filename_list import read_filename_list
from marigold_jax.data.prepared import decode
from marigold_jax.data.raw_frame import BadFrame, Part, check_sizes, open_image
from marigold_jax.data.saved_maps import array
from marigold_jax.runtime.files import below, printable, regular

ANY_DEPTH = (float("-inf"), float("inf"))
ETH3D_SIZE = (4032, 6048)  # (height, width) of every raster, which is all that the file holds

Rows, Columns = tuple[int, int], tuple[int, int]


@dataclass(frozen=True)
class Benchmark:
    """The protocol of one test set.

    Attributes:
        container: the archive below DATA_DIR, without ".tar"; a folder of that name does as well.
        filename_list: a glob below LISTS; the repository has renamed the folders since.
        count: how many images the papers score.
        source: from stored depth to metres, and which count; its crop applies to photograph and truth.
        read: from the content of a file of the truth to what `data.prepared.decode` understands.
        official_name: from an RGB path to the name that the official inference gives its prediction, without ".npy".
        truth: what is known of each photograph, "depth" or "normals".
        limits: to which aligned predictions are clipped, in metres; None for the range of the source.
        mask_column: of the filename list; a file that says what is valid. None: the range of the source says it.
        window: rows and columns, after the crop, that count; None for all.
        processing_resolution, seed: of the authors' predictions.
        published_resolution: of those whose scores are in `PUBLISHED`; None where it is the same.
        alignment_width: the fit sees every so-manieth column, so that there are at most these; None for all.
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
    seed: int = 1234
    published_resolution: int | None = None
    alignment_width: int | None = None


def png(content: bytes) -> bytes:
    return content


def npy(content: bytes) -> Float32[np.ndarray, "h w 1"]:
    values = array(content).astype(np.float32)
    return values.reshape(*values.shape[:2], 1)


def eth3d_raster(content: bytes) -> Float32[np.ndarray, "h w 1"]:
    """Little-endian float32 without a header, in spite of its name in ".JPG"; infinite where nothing was measured."""
    values = np.frombuffer(content, "<f4").reshape(*ETH3D_SIZE, 1)
    return np.where(np.isfinite(values), values, np.float32(0))


def vectors(content: bytes, shortest: float = 0.0) -> Float32[np.ndarray, "h w 3"]:
    """Normals of any length, x right, y up, z to the viewer; zero, which is unknown, where not longer than `shortest`.

    Raises ValueError where the file holds something else.
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
    number = [*path.stem.split("_"), path.stem][1]  # a list of somebody's own may have names without "_"
    return str(path.with_name(f"pred_{number}"))


def _normals(container: str, filename_list: str, count: int, **differences: Any) -> Benchmark:
    """A row of normals; the papers predict with four steps and an ensemble of ten."""
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
    # The authors train on 627 frames of it; papers score all 1064. Whole frames here, and the sky does not count.
    "sintel_normals": _normals(
        "sintel", "sintel_normals/sintel_filtered.txt", 1064, read=partial(vectors, shortest=0.1)
    ),
    "diode_normals": _normals("diode/val", "diode_normals/diode_test.txt", 771, processing_resolution=768),
    "oasis_normals": _normals("oasis/val", "oasis_normals/oasis_test.txt", 9999, processing_resolution=768),
}


# (AbsRel, δ1) in percent, least-squares aligned, of arXiv 2312.02145 and 2409.11355; columns in the order above.
PUBLISHED_DEPTH = {
    "Marigold v1-0, 50 steps, ensemble of 10": ((5.5, 96.4), (9.9, 91.6), (6.5, 96.0), (6.4, 95.1), (30.8, 77.3)),
    "Marigold v1-0, 50 steps": ((6.0, 95.9), (10.5, 90.4), (7.1, 95.1), (6.9, 94.5), (31.0, 77.2)),
    "Marigold v1-0, trailing, 1 step": ((5.7, 96.2), (10.8, 89.6), (6.9, 95.5), (6.6, 95.2), (31.1, 76.8)),
    "Marigold LCM, 4 steps, ensemble of 5": ((6.2, 95.6), (9.9, 91.7), (6.9, 95.5), (7.0, 94.5), (30.9, 77.6)),
    "Marigold LCM, 1 step": ((6.5, 95.4), (10.7, 89.9), (7.5, 94.5), (7.6, 93.8), (31.5, 76.3)),
    "Marigold + E2E-FT, 1 step": ((5.2, 96.6), (9.6, 91.9), (6.2, 95.9), (5.8, 96.2), (30.2, 77.9)),
    "Stable Diffusion 2 + E2E-FT, 1 step": ((5.4, 96.5), (9.6, 92.1), (6.4, 95.9), (5.8, 96.5), (30.3, 77.6)),
}


# (mean in degrees, within 11.25 degrees in percent), over all pixels together, of arXiv 2409.11355.
PUBLISHED_NORMALS = {
    "Marigold normals, 50 steps, ensemble of 10": ((18.8, 55.9), (17.7, 58.8), (18.4, 64.3), (39.1, 14.9)),
    "Marigold normals, trailing, 1 step": ((17.4, 56.5), (16.8, 57.6), (18.1, 62.9), (37.1, 15.7)),
    "Marigold + E2E-FT, 1 step": ((16.2, 61.4), (14.7, 66.0), (15.8, 69.9), (33.5, 21.5)),
    "Stable Diffusion 2 + E2E-FT, 1 step": ((16.5, 60.4), (14.7, 66.1), (16.1, 69.7), (33.5, 22.3)),
    "GeoWizard + E2E-FT, 1 step": ((16.1, 60.7), (15.3, 63.6), (16.2, 69.4), (33.4, 22.4)),
}
# By what is known: the scores, and in which unit of ours the two columns are.
PUBLISHED = {"depth": (PUBLISHED_DEPTH, (0.01, 0.01)), "normals": (PUBLISHED_NORMALS, (1.0, 0.01))}
# What has to be said below them.
NOTES = {
    "normals": [
        "Published normals: all pixels together, predicted at the images' own size (--processing_res 0, seed 1234).",
        "Marigold's authors evaluate theirs with --denoise_steps 4 --ensemble_size 10, the default size and seed here.",
    ]
}


def published(name: str) -> dict[str, tuple[float, float]]:
    """What papers report of each method on this test set, in our units: (AbsRel, δ1), (degrees, share within 11.25)."""
    truth = BENCHMARKS[name].truth
    scores, units = PUBLISHED[truth]
    column = [other for other, row in BENCHMARKS.items() if row.truth == truth].index(name)
    return {
        method: tuple(round(value * unit, 6) for value, unit in zip(columns[column], units, strict=True))
        for method, columns in scores.items()
        if column < len(columns)
    }


class OfficialSplit:
    """Random access to a test set: `split[i]` is an example as that of `data.prepared.PreparedSplit`.

    Raises ValueError, in one line, if the container or the list is not there, or a name in the list would leave the
    container. An image raises BadFrame if one of its files is missing or broken.
    """

    def __init__(self, name: str, data_dir: str | Path, lists: str | Path):
        self.name, self.protocol = name, BENCHMARKS[name]
        self.features = frozenset({"rgb", self.protocol.truth})
        self.source = self.protocol.source
        self.alignment_width = self.protocol.alignment_width
        self.limits = self.protocol.limits or (self.source.min_depth, self.source.max_depth)
        folder = Path(data_dir) / self.protocol.container
        self.path = str(folder if folder.is_dir() else folder.with_name(f"{folder.name}.tar"))
        if not Path(self.path).exists():
            raise ValueError(f"{name}: neither {self.path} nor a folder {folder} is there")
        found = sorted(Path(lists).glob(self.protocol.filename_list))
        if len(found) != 1:
            raise ValueError(
                f"{name}: wanted one filename list {Path(lists) / self.protocol.filename_list}, found {len(found)}; "
                "--lists is the folder data_split of Marigold's official repository"
            )
        self._lines = read_filename_list(regular(found[0]))
        columns = [0, 1, *([self.protocol.mask_column] if self.protocol.mask_column else [])]
        for line in self._lines:
            if len(line) <= max(columns):
                raise ValueError(
                    f"{found[0]}: wanted {max(columns) + 1} columns; {printable(line[0])[:200]!r} has fewer"
                )
            for column in columns:
                try:
                    below(folder, line[column])
                except ValueError as error:
                    raise ValueError(f"{found[0]}: {error}") from None

    def __len__(self) -> int:
        return len(self._lines)

    def name_of(self, index: SupportsIndex) -> str:
        """The path of the photograph, as the filename list spells it."""
        return self._lines[index][0]

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        rgb = self._lines[index][0]
        # Opened here, so that the error says which file it is.
        return self._example(index, {"rgb": np.asarray(open_image(self._part(rgb).read(), rgb).convert("RGB"))})

    def truth(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        """The same without the photograph, whose decoding takes longer than scoring does."""
        return self._example(index, {})

    def _example(self, index: SupportsIndex, record: dict) -> dict[str, np.ndarray]:
        paths, column, what = self._lines[index], self.protocol.mask_column, self.protocol.truth
        truth = paths[1]
        record[what] = self._part(truth).read()
        try:
            record[what] = self.protocol.read(record[what])
            mask = None if column is None else npy(self._part(paths[column]).read()) > 0
            example = decode(record, self.source)
        except BadFrame:
            raise
        except Exception as error:  # decoders raise nearly anything on a damaged file
            raise BadFrame(f"unreadable {what}", f"{truth}: {error}") from None
        if mask is not None:
            example["mask"] = mask
        check_sizes((key, value.shape[:2]) for key, value in example.items())
        example["mask"] = example["mask"] & inside(self.protocol.window, example["mask"].shape[:2])
        return example

    def _part(self, path: str) -> Part:
        if self._members is None:
            part = f"{self.path}/{path}"
            try:
                regular(part)
            except FileNotFoundError:
                raise BadFrame("missing file", part) from None
            except ValueError as error:
                raise BadFrame("unreadable file", str(error)) from None
            return Part(part)
        if path not in self._members:
            raise BadFrame("missing file", f"{self.path}: {path}")
        part = self._members[path]
        if part.offset + part.size > Path(self.path).stat().st_size:
            raise BadFrame("truncated file", part.name)
        return part

    @cached_property
    def _members(self) -> dict[str, Part] | None:
        """Where the files lie in the archive; None for a folder."""
        if Path(self.path).is_dir():
            return None
        try:
            with tarfile.open(regular(self.path), "r:") as archive:
                return {
                    member.name.removeprefix("./"): Part(self.path, member.name, member.offset_data, member.size)
                    for member in archive
                    if member.isfile()
                }
        except Exception as error:  # headers of PAX are text, and parsed
            raise ValueError(f"{self.path}: not a whole tar archive ({error})") from None


def inside(window: tuple[Rows, Columns] | None, shape: tuple[int, int]) -> Bool[np.ndarray, "h w 1"]:
    """True in the window's rows and columns; everywhere for None."""
    mask = np.zeros((*shape, 1), bool)
    (top, bottom), (left, right) = window or ((0, shape[0]), (0, shape[1]))
    mask[top:bottom, left:right] = True
    return mask


def fitted_columns(width: int, most: int | None) -> slice | Int[np.ndarray, " n"]:
    """The columns that the alignment sees, at most so many (None: all): the reference thins out the width alone."""
    return slice(None) if not most or width <= most else np.arange(most) * width // most
