"""The five test sets that papers report depth on, one row each, read as Marigold's authors packed them.

    DATA_DIR/nyuv2/nyu_labeled_extracted.tar        the archive, or a folder of that name without ".tar"
    LISTS/nyu*/labeled/filename_list_test.txt       the official filename list (LISTS: its folder `data_split`)

A row is a protocol: how files become metres, which pixels count, at which resolution and with which seed the papers
predict, how many images there are. A score under another one is another number (arXiv 2312.02145, section 4.2).
"""

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import SupportsIndex

import numpy as np
from jaxtyping import Bool, Float32, Int

from marigold_jax.data.frames import BadFrame, Part, check_sizes, open_image, read_filename_list
from marigold_jax.data.sources import Source, decode

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
        source: from stored depth to metres, and which count; its crop applies to photograph and depth.
        read_depth: from the content of a depth file to what `source` understands.
        official_name: from an RGB path to the name that the official inference gives its prediction, without ".npy".
        limits: to which aligned predictions are clipped, in metres; None for the range of the source.
        mask_column: of the filename list; a file that says what is valid. None: the range of the source says it.
        window: rows and columns, after the crop, that count; None for all.
        processing_resolution, seed: of the papers' predictions.
        alignment_width: the fit sees every so-manieth column, so that there are at most these; None for all.
    """

    container: str
    filename_list: str
    count: int
    source: Source
    read_depth: Callable[[bytes], bytes | np.ndarray]
    official_name: Callable[[str], str]
    limits: tuple[float, float] | None = None
    mask_column: int | None = None
    window: tuple[Rows, Columns] | None = None
    processing_resolution: int = 0
    seed: int = 1234
    alignment_width: int | None = None


def png(content: bytes) -> bytes:
    return content


def npy(content: bytes) -> Float32[np.ndarray, "h w 1"]:
    values = np.load(io.BytesIO(content)).astype(np.float32)
    return values.reshape(*values.shape[:2], 1)


def eth3d_raster(content: bytes) -> Float32[np.ndarray, "h w 1"]:
    """Little-endian float32 without a header, in spite of its name in ".JPG"; infinite where nothing was measured."""
    values = np.frombuffer(content, "<f4").reshape(*ETH3D_SIZE, 1)
    return np.where(np.isfinite(values), values, np.float32(0))


def by_stem(rgb: str) -> str:
    """a/0001.png -> a/pred_0001"""
    path = PurePosixPath(rgb)
    return str(path.with_name(f"pred_{path.stem}"))


def by_number(rgb: str) -> str:
    """a/rgb_0001.png -> a/pred_0001"""
    path = PurePosixPath(rgb)
    return str(path.with_name(f"pred_{path.stem.split('_')[1]}"))


BENCHMARKS = {
    "nyu_v2": Benchmark(
        container="nyuv2/nyu_labeled_extracted",
        filename_list="nyu*/labeled/filename_list_test.txt",
        count=654,
        source=Source(units_per_metre=1000.0, min_depth=1e-3, max_depth=10.0),
        read_depth=png,
        official_name=by_number,
        window=((45, 471), (41, 601)),
    ),
    "kitti": Benchmark(
        container="kitti/kitti_eigen_split_test",
        filename_list="kitti*/eigen_test_files_with_gt.txt",
        count=652,  # of 697 lines; the others have no depth
        source=Source(units_per_metre=256.0, max_depth=80.0, crop="kitti_benchmark"),
        read_depth=png,
        official_name=by_stem,
        window=((117, 321), (43, 1172)),  # Eigen's
    ),
    "eth3d": Benchmark(
        container="eth3d/eth3d",
        filename_list="eth3d*/eth3d_filename_list.txt",
        count=454,
        source=Source(units_per_metre=1.0),
        read_depth=eth3d_raster,
        official_name=by_stem,
        processing_resolution=756,
        alignment_width=1024,
    ),
    "scannet": Benchmark(
        container="scannet/scannet_val_sampled_800_1",
        filename_list="scannet*/scannet_val_sampled_list_800_1.txt",
        count=800,
        source=Source(units_per_metre=1000.0, min_depth=1e-3, max_depth=10.0),
        read_depth=png,
        official_name=by_stem,
    ),
    "diode": Benchmark(
        container="diode/diode_val",
        filename_list="diode*/diode_val_all_filename_list.txt",
        count=771,
        source=Source(1.0, *ANY_DEPTH),  # the mask file alone says what is valid
        read_depth=npy,
        official_name=by_stem,
        limits=(0.6, 350.0),
        mask_column=2,
        processing_resolution=640,
    ),
}


# (AbsRel, δ1) in percent, least-squares aligned, of arXiv 2312.02145 and 2409.11355; columns in the order above.
PUBLISHED = {
    "Marigold v1-0, 50 steps, ensemble of 10": ((5.5, 96.4), (9.9, 91.6), (6.5, 96.0), (6.4, 95.1), (30.8, 77.3)),
    "Marigold v1-0, 50 steps": ((6.0, 95.9), (10.5, 90.4), (7.1, 95.1), (6.9, 94.5), (31.0, 77.2)),
    "Marigold v1-0, trailing, 1 step": ((5.7, 96.2), (10.8, 89.6), (6.9, 95.5), (6.6, 95.2), (31.1, 76.8)),
    "Marigold LCM, 4 steps, ensemble of 5": ((6.2, 95.6), (9.9, 91.7), (6.9, 95.5), (7.0, 94.5), (30.9, 77.6)),
    "Marigold LCM, 1 step": ((6.5, 95.4), (10.7, 89.9), (7.5, 94.5), (7.6, 93.8), (31.5, 76.3)),
    "Marigold + E2E-FT, 1 step": ((5.2, 96.6), (9.6, 91.9), (6.2, 95.9), (5.8, 96.2), (30.2, 77.9)),
    "Stable Diffusion 2 + E2E-FT, 1 step": ((5.4, 96.5), (9.6, 92.1), (6.4, 95.9), (5.8, 96.5), (30.3, 77.6)),
}


def published(name: str) -> dict[str, tuple[float, float]]:
    """(AbsRel, δ1), as shares of 1, of each method on this test set."""
    column = list(BENCHMARKS).index(name)
    return {method: tuple(x / 100 for x in scores[column]) for method, scores in PUBLISHED.items()}


class OfficialSplit:
    """Random access to a test set: `split[i]` is an example as that of `data.sources.PreparedSplit`.

    Raises ValueError, in one line, if the container or the list is not there. An image raises BadFrame if one of its
    files is missing or broken.
    """

    def __init__(self, name: str, data_dir: str | Path, lists: str | Path):
        self.name, self.protocol = name, BENCHMARKS[name]
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
        self._lines = read_filename_list(found[0])

    def __len__(self) -> int:
        return len(self._lines)

    def name_of(self, index: SupportsIndex) -> str:
        """The path of the photograph, as the filename list spells it."""
        return self._lines[index][0]

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        paths, column = self._lines[index], self.protocol.mask_column
        rgb, depth = paths[:2]
        record = {"rgb": self._part(rgb).read(), "depth": self._part(depth).read()}
        open_image(record["rgb"], rgb)  # here, so that the error says which file it is
        try:
            record["depth"] = self.protocol.read_depth(record["depth"])
            mask = None if column is None else npy(self._part(paths[column]).read()) > 0
            example = decode(record, self.source)
        except (ValueError, EOFError, OSError) as error:
            raise BadFrame("unreadable depth", f"{depth}: {error}") from None
        if mask is not None:
            example["mask"] = mask
        check_sizes((key, value.shape[:2]) for key, value in example.items())
        example["mask"] = example["mask"] & inside(self.protocol.window, example["mask"].shape[:2])
        return example

    def _part(self, path: str) -> Part:
        if self._members is None:
            return Part(f"{self.path}/{path}")
        if path not in self._members:
            raise BadFrame("missing file", f"{self.path}: {path}")
        return self._members[path]

    @cached_property
    def _members(self) -> dict[str, Part] | None:
        """Where the files lie in the archive; None for a folder."""
        if Path(self.path).is_dir():
            return None
        try:
            with tarfile.open(self.path, "r:") as archive:
                return {
                    member.name.removeprefix("./"): Part(self.path, member.name, member.offset_data, member.size)
                    for member in archive
                    if member.isfile()
                }
        except tarfile.TarError as error:
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
