"""The RGB-D datasets, one row each, and random access to the prepared ones.

A row says how stored depth becomes metres, which metres count, what is cropped, and at which size the paper trains on
it (arXiv 2312.02145, section 4.1). The row is written into every prepared dataset, so a dataset explains itself.
"""

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from marigold_jax.data.array_record import DATASET, INDEX, VERSION, Records, read_index, wrong
from marigold_jax.runtime.files import below, printable, read_json

METADATA = "metadata.json"
FORMATS = ("PNG", "JPEG")  # of pictures in a record
LARGEST_SIDE = 2**13  # to train at
UNITS = (1e-9, 1e9)  # in a metre: beyond, float32 overflows
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
    return Path(data_dir) / DATASET / name / VERSION


def source_from(metadata: Mapping[str, Any], file: str | Path = METADATA) -> Source:
    """The row that is written in a prepared dataset. Raises ValueError, naming the file and the key, for nonsense."""

    def number(key: str, least: float, most: float, wanted: str) -> float:
        value = metadata.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise wrong(file, key, wanted, value)
        return float(value)

    units = number("units_per_metre", *UNITS, "a number above 0")
    near = number("min_depth", 0.0, math.inf, "a number of metres, not below 0")
    far = number("max_depth", 0.0, math.inf, "a number of metres")
    if not near < far:
        raise wrong(file, "max_depth", f"more than min_depth, {near:g}", far)
    crop, size = metadata.get("crop"), metadata.get("size")
    if not isinstance(crop, str) or crop not in CROPS:
        raise wrong(file, "crop", " or ".join(map(repr, CROPS)), crop)
    if size is None:
        return Source(units, near, far, crop)
    sides = tuple(size) if isinstance(size, list | tuple) else ()
    if len(sides) != 2 or not all(type(side) is int and 0 < side <= LARGEST_SIDE for side in sides):
        raise wrong(file, "size", f"null or [height, width] of 1 to {LARGEST_SIDE}", size)
    return Source(units, near, far, crop, sides)


class PreparedSplit:
    """Random access to one split of a prepared dataset: `split[i]` is a decoded example, at the size it was stored in.

    An example holds `rgb` uint8 (h, w, 3), `depth` float32 (h, w, 1) in metres as stored (also where invalid), `mask`
    bool (h, w, 1), and, if the dataset has them, `normals` float32 (h, w, 3): unit vectors, x right, y up, z to the
    viewer. The dataset's crop is applied. It travels to other processes as its path alone, and is opened again there.

    Whoever made the dataset need not be trusted: nothing in its folder is run, and a damaged file or record raises
    ValueError, in one line that names it.
    """

    def __init__(self, path: str):
        """`path` is DATA_DIR/NAME/SPLIT. Raises ValueError if there is no such dataset or split, or it is damaged."""
        self.path = str(path)
        *data_dir, name, split = ("", "", *Path(path).parts)[-max(2, len(Path(path).parts)) :]
        folder = dataset_folder(Path(*data_dir), name)
        if not name or not (folder / INDEX).exists():
            raise ValueError(
                f"{path}: no dataset {name!r} has been prepared in {Path(*data_dir)}; "
                f"`python -m marigold_jax.prepare --help` tells how to make one"
            )
        index = read_index(folder)
        if split not in index.splits:
            raise ValueError(f"{path}: dataset {name!r} has the splits {', '.join(index.splits)}; not {split!r}")
        self.features = frozenset(index.features)
        self.num_bytes = index.splits[split].num_bytes
        self.source = source_from(read_json(folder / METADATA), folder / METADATA)
        self.size = self.source.size
        self.limits = (self.source.min_depth, self.source.max_depth)
        self.protocol = self.alignment_width = None  # the papers have none; see `evaluation.benchmarks`
        self._records = Records(folder, index, split)

    def __reduce__(self):
        return PreparedSplit, (self.path,)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        return self._of(index, self._decode)

    def truth(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        """The same without the photograph, whose decoding takes longer than scoring does."""
        return self._of(index, self._decode, without="rgb")

    def name_of(self, index: SupportsIndex) -> str:
        """The path of the frame's RGB image inside the raw dataset, as official filename lists spell it.

        It is a relative path without "..": programs name files after it.
        """
        return self._of(index, lambda record: str(below(Path(), record["name"])))

    def _decode(self, record: dict[str, Any]) -> dict[str, np.ndarray]:
        example = decode(record, self.source)
        _check_sizes(example)
        return example

    def _of(self, index: SupportsIndex, use: Callable[[dict[str, Any]], Any], without: str = "") -> Any:
        """What `use` makes of a record. Whatever goes wrong becomes one line, which worker processes can hand over."""
        number = range(len(self))[index]
        try:
            return use(self._records.read(number, without))
        except Exception as error:  # readers and decoders raise nearly anything on what is damaged
            reason = printable(" ".join(str(error).split())[:300]) or type(error).__name__
            advice = "copy or prepare the dataset again"
            raise ValueError(f"{self.path}: {self._records.where(number)}: {reason}; {advice}") from None


def decode(record: dict, source: Source) -> dict[str, np.ndarray]:
    """Turns a stored record into an example, as described at `PreparedSplit`.

    A record without a photograph, or without depth, makes an example without; where no depth limits it, the mask is
    True everywhere.
    """
    example = {}
    if "rgb" in record:
        rgb = record["rgb"]
        example["rgb"] = np.asarray(_picture(rgb, "rgb").convert("RGB")) if isinstance(rgb, bytes) else rgb
    if "depth" in record:
        depth = record["depth"]
        if isinstance(depth, bytes):
            depth = _grey(depth, "depth")
        example["depth"] = depth = depth.astype(np.float32) / np.float32(source.units_per_metre)
        example["mask"] = (depth > source.min_depth) & (depth < source.max_depth)
    if "normals" in record:
        example["normals"] = _unit(record["normals"].astype(np.float32))
    size = next(iter(example.values())).shape[:2]
    example.setdefault("mask", np.ones((*size, 1), bool))
    if "mask" in record:
        mask = _grey(record["mask"], "mask")
        _check_sizes({**example, "mask": mask})
        example["mask"] &= mask > 0
    window = CROPS[source.crop](*size)
    if source.crop != "none":
        _check_sizes(example)
    return {key: value[window] for key, value in example.items()}


def _check_sizes(example: Mapping[str, np.ndarray]) -> None:
    sizes = {key: value.shape[:2] for key, value in example.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(", ".join(f"{key} is {height} x {width}" for key, (height, width) in sizes.items()))


def _picture(content: bytes, what: str) -> Image.Image:
    try:
        # Pillow would try other formats too: EPS starts Ghostscript.
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        image.load()
        return image
    except Image.DecompressionBombError:
        raise ValueError(f"{what} has more pixels than Pillow allows") from None
    except Exception as error:  # decoders raise nearly anything on a damaged file
        reason = "" if isinstance(error, Image.UnidentifiedImageError) else f" ({error})"
        raise ValueError(f"{what} is not a whole {' or '.join(FORMATS)}{reason}") from None


def _grey(png: bytes, what: str) -> Shaped[np.ndarray, "h w 1"]:
    image = _picture(png, what)
    if len(image.getbands()) != 1 or image.mode == "P":
        raise ValueError(f"{what} is a picture of Pillow's mode {image.mode}, wanted grey")
    return np.asarray(image)[..., None]


def _unit(vectors: Shaped[np.ndarray, "h w 3"]) -> Shaped[np.ndarray, "h w 3"]:
    """Zero vectors (no normal is known there) stay zero."""
    length = np.sqrt(np.einsum("hwc,hwc->hw", vectors, vectors))[..., None]
    return vectors / np.where(length > 0, length, 1)
