"""Random access to the splits of prepared datasets: stored records as examples."""

import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from marigold_jax.data.depth_format import CROPS, METADATA, DepthFormat, depth_format_from
from marigold_jax.data.record_reader import DATASET, INDEX, VERSION, Records, read_index
from marigold_jax.data.targets import TARGETS
from marigold_jax.runtime.files import below, printable, read_json

FORMATS = ("PNG", "JPEG")  # of pictures in a record


def dataset_folder(data_dir: str | Path, name: str) -> Path:
    """The folder in which TFDS keeps the dataset `name` below `data_dir`."""
    return Path(data_dir) / DATASET / name / VERSION


class PreparedSplit:
    """Random access to one split of a prepared dataset: `split[i]` is a decoded example at its stored size.

    An example is a dictionary, with the dataset's crop applied:

        rgb       uint8 (h, w, 3), sRGB
        depth     float32 (h, w, 1), metres along the optical axis; stored values are kept where it is invalid
        mask      bool (h, w, 1), True where depth is valid
        normals   float32 (h, w, 3), unit vectors, x right, y up, z towards the viewer, 0 where unknown; if stored

    Pickling keeps only the path, and the split is opened again when unpickled. The files need not be trusted: nothing
    in them is executed, and a damaged file or record raises ValueError with one line that names it.

    Attributes:
        path: DATA_DIR/NAME/SPLIT.
        folder: of the dataset's files.
        features: names of the entries that every record holds.
        depth_format: how depth is stored.
        size: (height, width) to train at, or None.
        limits: metres; the range of valid depth.
        num_bytes: size of all records, from the dataset's index.
    """

    def __init__(self, path: str):
        """Opens DATA_DIR/NAME/SPLIT. Raises ValueError if the dataset or split is missing or damaged."""
        self.path = str(path)
        *data_dir, name, split = ("", "", *Path(path).parts)[-max(2, len(Path(path).parts)) :]
        folder = dataset_folder(Path(*data_dir), name)
        if not name or not (folder / INDEX).exists():
            raise ValueError(
                f"{path}: no dataset {name!r} has been prepared in {Path(*data_dir)}; "
                f"see `python -m marigold_jax.prepare --help`"
            )
        self.folder, index = folder, read_index(folder)
        if split not in index.splits:
            raise ValueError(f"{path}: dataset {name!r} has the splits {', '.join(index.splits)}; not {split!r}")
        self.features = frozenset(index.features)
        self.num_bytes = index.splits[split].num_bytes
        self.depth_format = depth_format_from(read_json(folder / METADATA), folder / METADATA)
        self.size = self.depth_format.size
        self.limits = (self.depth_format.min_depth, self.depth_format.max_depth)
        self.protocol = self.alignment_width = None  # only official test sets have these: see `evaluation.benchmarks`
        self._records = Records(folder, index, split)

    def __reduce__(self):
        return PreparedSplit, (self.path,)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        return self._of(index, self._decode)

    def truth(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        """The example without `rgb`: decoding a photograph takes longer than scoring a prediction."""
        return self._of(index, self._decode, without="rgb")

    def name_of(self, index: SupportsIndex) -> str:
        """The path of the frame's RGB image in the raw dataset, as the official filename lists spell it.

        Programs name files after it, so it is checked to be a relative path without "..".
        """
        return self._of(index, lambda record: str(below(Path(), record["name"])))

    def count_pixels(self, index: SupportsIndex) -> int:
        """The number of pixels of `rgb` as it is stored, from its header alone."""
        return self._of(index, lambda record: math.prod(Image.open(io.BytesIO(record["rgb"]), formats=FORMATS).size))

    def _decode(self, record: dict[str, Any]) -> dict[str, np.ndarray]:
        example = decode(record, self.depth_format)
        _check_sizes(example)
        return example

    def _of(self, index: SupportsIndex, use: Callable[[dict[str, Any]], Any], without: str = "") -> Any:
        """Applies `use` to a record. Every error becomes a ValueError of one line, which worker processes pass on."""
        number = range(len(self))[index]
        try:
            return use(self._records.read(number, without))
        except Exception as error:  # readers and decoders raise nearly anything on what is damaged
            reason = printable(" ".join(str(error).split())[:300]) or type(error).__name__
            advice = "copy or prepare the dataset again"
            raise ValueError(f"{self.path}: {self._records.where(number)}: {reason}; {advice}") from None


def decode(record: Mapping[str, Any], depth_format: DepthFormat) -> dict[str, np.ndarray]:
    """Turns a stored record into an example, as described at `PreparedSplit`.

    A record without `rgb` or without `depth` gives an example without it. Without depth, the mask is True wherever a
    stored mask does not say otherwise.
    """
    example = {}
    if "rgb" in record:
        rgb = record["rgb"]
        example["rgb"] = np.asarray(_picture(rgb, "rgb").convert("RGB")) if isinstance(rgb, bytes) else rgb
    if "depth" in record:
        depth = record["depth"]
        if isinstance(depth, bytes):
            depth = _grey(depth, "depth")
        example["depth"] = depth = depth.astype(np.float32) / np.float32(depth_format.units_per_metre)
        example["mask"] = (depth > depth_format.min_depth) & (depth < depth_format.max_depth)
    for target in TARGETS.values():
        if target.restore and target.map in record:
            example[target.map] = target.restore(record[target.map])
    size = next(iter(example.values())).shape[:2]
    example.setdefault("mask", np.ones((*size, 1), bool))
    if "mask" in record:
        mask = _grey(record["mask"], "mask")
        _check_sizes({**example, "mask": mask})
        example["mask"] &= mask > 0
    window = CROPS[depth_format.crop](*size)
    if depth_format.crop != "none":
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
        raise ValueError(f"{what}: wanted grey, got a picture of Pillow's mode {image.mode}")
    return np.asarray(image)[..., None]
