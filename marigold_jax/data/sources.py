"""The RGB-D datasets, one row each, and random access to the prepared ones.

A row says how stored depth becomes metres, which metres count, what is cropped, and at which size the paper trains on
it (arXiv 2312.02145, section 4.1). The row is written into every prepared dataset, so a dataset explains itself.
"""

import io
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import SupportsIndex

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Shaped
from PIL import Image

VERSION = "1.0.0"
STORED = ("PNG", "JPEG")  # what `prepare` leaves in a record; Pillow would try others, some of which start programs
NORMAL_UNITS = 32767  # normals are stored as 16-bit integers: an error below 0.002 degrees


@dataclass(frozen=True)
class Source:
    """Valid is `min_depth < metres < max_depth`, and `metres = stored / units_per_metre`; `crop` is a key of `CROPS`.

    `size` is the (height, width) to train at, or None for the size that the crop leaves.
    """

    units_per_metre: float
    min_depth: float = 1e-5
    max_depth: float = float("inf")
    crop: str = "none"
    size: tuple[int, int] | None = None


SOURCES = {
    "hypersim": Source(units_per_metre=1000.0, max_depth=65.0, size=(480, 640)),
    "virtual_kitti_2": Source(units_per_metre=100.0, max_depth=80.0, crop="kitti_benchmark"),
    "rooms": Source(units_per_metre=1000.0, max_depth=65.0),
}


def _kitti_benchmark(height: int, width: int) -> tuple[slice, slice]:
    """The 352 x 1216 window at the bottom centre that the KITTI depth benchmark scores."""
    if height < 352 or width < 1216:
        raise ValueError(f"the KITTI benchmark crop takes 352 x 1216 pixels; the image has {height} x {width}")
    left = (width - 1216) // 2
    return slice(height - 352, height), slice(left, left + 1216)


CROPS: dict[str, Callable[[int, int], tuple[slice, slice]]] = {
    "none": lambda height, width: (slice(None), slice(None)),
    "kitti_benchmark": _kitti_benchmark,
}


def dataset_folder(data_dir: str | Path, name: str) -> Path:
    """Where TFDS keeps the dataset `name` below `data_dir`."""
    return Path(data_dir) / "rgbd" / name / VERSION


def source_from(metadata: dict) -> Source:
    """The row that is written in a prepared dataset."""
    fields = {key: metadata[key] for key in asdict(Source(1.0))}
    return Source(**fields | {"size": fields["size"] and tuple(fields["size"])})


class PreparedSplit:
    """Random access to one split of a prepared dataset: `split[i]` is a decoded example, at the size it was stored in.

    An example holds `rgb` uint8 (h, w, 3), `depth` float32 (h, w, 1) in metres as stored (also where invalid), `mask`
    bool (h, w, 1), and, if the dataset has them, `normals` float32 (h, w, 3): unit vectors, x right, y up, z to the
    viewer. The dataset's crop is applied. It travels to other processes as its path alone, and is opened again there.
    """

    def __init__(self, path: str):
        """`path` is DATA_DIR/NAME/SPLIT. Raises ValueError if there is no such dataset or split."""
        self.path = str(path)
        *data_dir, name, split = Path(path).parts
        folder = dataset_folder(Path(*data_dir), name)
        if not (folder / "dataset_info.json").exists():
            raise ValueError(
                f"{path}: no dataset {name!r} has been prepared in {Path(*data_dir)}; "
                f"`python -m marigold_jax.prepare --help` tells how to make one"
            )
        builder = tfds.builder_from_directory(folder)
        if split not in builder.info.splits:
            raise ValueError(f"{path}: dataset {name!r} has the splits {', '.join(builder.info.splits)}; not {split!r}")
        self.features = frozenset(builder.info.features)
        self.num_bytes = builder.info.splits[split].num_bytes
        self.source = source_from(builder.info.metadata)
        self.size = self.source.size
        self.limits = (self.source.min_depth, self.source.max_depth)
        self.protocol = self.alignment_width = None  # the papers have none; see `data.benchmarks`
        # Images stay encoded here: TFDS would need OpenCV for 16-bit PNG.
        encoded = [key for key, feature in builder.info.features.items() if isinstance(feature, tfds.features.Image)]
        self._records = builder.as_data_source(split, decoders={key: tfds.decode.SkipDecoding() for key in encoded})

    def __reduce__(self):
        return PreparedSplit, (self.path,)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        return decode(self._records[index], self.source)

    def truth(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        """The same without the photograph, whose decoding takes longer than scoring does."""
        return decode({key: value for key, value in self._records[index].items() if key != "rgb"}, self.source)

    def name_of(self, index: SupportsIndex) -> str:
        """The path of the frame's RGB image inside the raw dataset, as official filename lists spell it."""
        return self._records[index]["name"].decode()


def decode(record: dict, source: Source) -> dict[str, np.ndarray]:
    """Turns a stored record into an example, as described at `PreparedSplit`.

    A record without a photograph, or without depth, makes an example without; where no depth limits it, the mask is
    True everywhere.
    """
    example = {}
    if "rgb" in record:
        rgb = record["rgb"]
        example["rgb"] = (
            np.asarray(Image.open(io.BytesIO(rgb), formats=STORED).convert("RGB")) if isinstance(rgb, bytes) else rgb
        )
    if "depth" in record:
        depth = record["depth"]
        if isinstance(depth, bytes):
            depth = _grey(depth)
        example["depth"] = depth = depth.astype(np.float32) / np.float32(source.units_per_metre)
        example["mask"] = (depth > source.min_depth) & (depth < source.max_depth)
    if "normals" in record:
        example["normals"] = _unit(record["normals"].astype(np.float32))
    size = next(iter(example.values())).shape[:2]
    example.setdefault("mask", np.ones((*size, 1), bool))
    if "mask" in record:
        example["mask"] &= _grey(record["mask"]) > 0
    window = CROPS[source.crop](*size)
    return {key: value[window] for key, value in example.items()}


def _grey(png: bytes) -> Shaped[np.ndarray, "h w 1"]:
    return np.asarray(Image.open(io.BytesIO(png), formats=STORED))[..., None]


def _unit(vectors: Shaped[np.ndarray, "h w 3"]) -> Shaped[np.ndarray, "h w 3"]:
    """Zero vectors (no normal is known there) stay zero."""
    length = np.sqrt(np.einsum("hwc,hwc->hw", vectors, vectors))[..., None]
    return vectors / np.where(length > 0, length, 1)
