"""Reads the files of prepared datasets without TFDS, which would import any module that `features.json` names.

    DATA_DIR/rgbd/NAME/1.0.0/dataset_info.json                         the splits, and how many records each file holds
    DATA_DIR/rgbd/NAME/1.0.0/features.json                             what a record holds: see `FEATURES`
    DATA_DIR/rgbd/NAME/1.0.0/rgbd-SPLIT.array_record-00000-of-00002    records, each a `tf.train.Example`

TFDS writes these files (`data.split_writer`) and can read them too. Nothing in them is trusted here. Every error is a
ValueError of one line that names the file, and the key or the record.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from marigold_jax.data.record import Feature
from marigold_jax.data.targets import DEPTH, TARGETS
from marigold_jax.runtime import extras
from marigold_jax.runtime.files import printable, read_json, regular

DATASET = "rgbd"
VERSION = "1.0.0"
INDEX = "dataset_info.json"
SCHEMA = "features.json"
SMALLEST_RECORD = 40  # bytes: the header of a chunk; each record has its own chunk
LARGEST_SIDE = 2**15  # pixels, of a map in a record
SHARDS = 128  # at most in a split: every reading process keeps all of them open
SMALLEST_SHARD = 16  # frames
# One record per chunk gives random access; images are compressed already.
WRITER_OPTIONS = "group_size:1,uncompressed"
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"

_FOLDER = "tensorflow_datasets.core.features"
PLACE = "featuresDict.features"
FEATURES_DICT = f"{_FOLDER}.features_dict.FeaturesDict"
CLASSES = {  # the classes that `data.rgbd` writes: their kind, and the key under which the schema describes them
    f"{_FOLDER}.text_feature.Text": ("Text", "text"),
    f"{_FOLDER}.image_feature.Image": ("Image", "image"),
    f"{_FOLDER}.tensor_feature.Tensor": ("Tensor", "tensor"),
}


FEATURES: Mapping[str, Sequence[Feature]] = {  # what a record may hold, and the ways in which it may be stored
    "name": (Feature("Text"),),
    "rgb": (Feature("Image", "uint8", 3),),
    DEPTH.map: DEPTH.stored,
    "mask": (Feature("Image", "uint8", 1),),
    **{target.map: target.stored for target in TARGETS.values()},
}
NEEDED = ("name", "rgb", "depth")


@dataclass(frozen=True)
class Shard:
    """A file of records, with the fields that `ArrayRecordDataSource` expects: `take` is the number of records."""

    filename: str
    take: int
    skip: int = 0

    @property
    def examples_in_shard(self) -> int:
        return self.take


@dataclass(frozen=True)
class Split:
    """The files of a split, and their total size according to the index."""

    shards: tuple[Shard, ...]
    num_bytes: int


@dataclass(frozen=True)
class Index:
    """The content of a dataset's index and schema: the features of a record, and the splits, by name."""

    features: Mapping[str, Feature]
    splits: Mapping[str, Split]


# ---------------------------------------------------------------------------------------------------- index and schema


def read_index(folder: Path) -> Index:
    """Reads and checks `dataset_info.json` and `features.json`; no shard is opened."""
    return Index(_features(folder / SCHEMA), _splits(folder / INDEX))


def wrong(file: str | Path, key: str, wanted: str, found: object) -> ValueError:
    """An error about a wrong value in a JSON file.

    Args:
        file: the path of the file.
        key: the path of the key in it.
        wanted: what was expected, in words.
        found: the value.
    """
    text = printable(repr(found))
    return ValueError(f"{file}: {key}: wanted {wanted}, found {text if len(text) < 80 else text[:77] + '...'}")


def _get(file: Path, values: Mapping[str, Any], path: str, kind: type, default: Any = None, *, under: str = "") -> Any:
    """The value at a path of keys, checked for its type.

    Args:
        file: for error messages.
        values: a JSON object.
        path: keys joined by dots, "a.b".
        kind: the type that the value must have.
        default: returned if the last key is missing; None makes that an error.
        under: where `values` is in the file, for error messages.
    """
    parent, _, key = path.rpartition(".")
    found = (_get(file, values, parent, dict, under=under) if parent else values).get(key, default)
    if not isinstance(found, kind):
        names = {dict: "an object", list: "a list", str: "a string"}
        raise wrong(file, under + path, names[kind], found)
    return found


def _whole(file: Path, key: str, value: object) -> int:
    """A non-negative integer; protocol buffers write 64-bit integers as strings."""
    digits = value if isinstance(value, str) else str(value) if type(value) is int else ""
    if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
        raise wrong(file, key, "a whole number", value)
    return int(digits)


def _features(file: Path) -> dict[str, Feature]:
    schema = read_json(file)
    _check_classes(file, schema)
    features = _get(file, schema, PLACE, dict)
    # Other features may be stored, and are ignored.
    held = [key for key in FEATURES if key in features or key in NEEDED]
    return {key: _feature(file, key, _get(file, features, key, dict, under=f"{PLACE}.")) for key in held}


def _check_classes(file: Path, node: dict[str, Any]) -> None:
    """Raises ValueError for an unknown class. Nothing is imported here, but TFDS would import it."""
    todo: list[object] = [node]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            for key in ("pythonClassName", "python_class_name"):
                if key in value and value[key] not in (FEATURES_DICT, *CLASSES):
                    names = ", ".join([FEATURES_DICT.rpartition(".")[2], *(kind for kind, _ in CLASSES.values())])
                    raise wrong(file, key, f"a feature of TFDS ({names})", value[key])
            todo.extend(value.values())
        elif isinstance(value, list):
            todo.extend(value)


def _feature(file: Path, key: str, node: Mapping[str, Any]) -> Feature:
    under = f"{PLACE}.{key}."
    name = _get(file, node, "pythonClassName", str, under=under)
    kind, place = CLASSES.get(name, ("", ""))
    known = {feature.kind: feature for feature in FEATURES[key]}
    if kind not in known:
        raise wrong(file, f"{under}pythonClassName", f"the class {' or '.join(known)}", name)
    wanted = known[kind]
    if kind in ("Image", "Tensor"):
        dtype = _get(file, node, f"{place}.dtype", str, "uint8", under=under)
        if dtype != wanted.dtype:
            raise wrong(file, f"{under}{place}.dtype", repr(wanted.dtype), dtype)
        sides = _get(file, node, f"{place}.shape.dimensions", list, under=under)
        if list(map(str, sides)) != ["-1", "-1", str(wanted.channels)]:
            raise wrong(file, f"{under}{place}.shape.dimensions", f"[-1, -1, {wanted.channels}]", sides)
        if kind == "Tensor" and (encoding := node[place].get("encoding")) != "zlib":
            raise wrong(file, f"{under}{place}.encoding", "'zlib'", encoding)
    return wanted


def _splits(file: Path) -> dict[str, Split]:
    info = read_json(file)
    for key, wanted in (("name", DATASET), ("fileFormat", "array_record")):
        if (found := info.get(key)) != wanted:
            raise wrong(file, key, repr(wanted), found)
    splits = {}
    for number, node in enumerate(_get(file, info, "splits", list, [])):
        where = f"splits[{number}]"
        if not isinstance(node, dict):
            raise wrong(file, where, "an object", node)
        name = _get(file, node, "name", str, under=f"{where}.")
        if not name.replace("-", "_").isidentifier() or name in splits:
            raise wrong(file, f"{where}.name", "a name of its own, of letters and digits", name)
        if (template := node.get("filepathTemplate") or TEMPLATE) != TEMPLATE:  # it could lead out of the folder
            raise wrong(file, f"{where}.filepathTemplate", repr(TEMPLATE), template)
        lengths = _get(file, node, "shardLengths", list, [], under=f"{where}.")
        counts = [_whole(file, f"{where}.shardLengths", length) for length in lengths]
        files = (f"{DATASET}-{name}.array_record-{one:05d}-of-{len(counts):05d}" for one in range(len(counts)))
        shards = [Shard(str(file.with_name(path)), count) for path, count in zip(files, counts, strict=True)]
        splits[name] = Split(tuple(shards), _whole(file, f"{where}.numBytes", node.get("numBytes", 0)))
    return splits


# ---------------------------------------------------------------------------------------------------------- records


def shards_of(frames: Sequence[Any]) -> list[Sequence[Any]]:
    """Consecutive frames that share a file. Only their number decides, so a second run makes the same shards."""
    size = max(SMALLEST_SHARD, -(-len(frames) // SHARDS))
    return [frames[start : start + size] for start in range(0, len(frames), size)]


class Records:
    """Random access to the records of a split, as they are stored."""

    def __init__(self, folder: Path, index: Index, split: str):
        """Raises ValueError if a file of the split is missing, or too small for its number of records."""
        self._shards, self._features = index.splits[split].shards, index.features
        for shard in self._shards:
            try:
                size = regular(shard.filename).stat().st_size
            except FileNotFoundError:
                raise ValueError(f"{shard.filename}: no such file; copy or prepare the dataset again") from None
            if shard.take * SMALLEST_RECORD > size:
                raise ValueError(f"{shard.filename}: {size} bytes cannot hold the {shard.take} records of {INDEX}")
        self._starts = np.cumsum([0, *(shard.take for shard in self._shards)])
        if not len(self):
            raise ValueError(f"{folder / INDEX}: split {split!r} has no records")
        with extras.needed("train"):
            from array_record.python.array_record_data_source import ArrayRecordDataSource
            from tensorflow_datasets.proto import tf_example_pb2

        self._source, self._parse = ArrayRecordDataSource(self._shards), tf_example_pb2.Example.FromString

    def __len__(self) -> int:
        return int(self._starts[-1])

    def where(self, number: int) -> str:
        """Names a record, for error messages, by its file and its position there."""
        shard = int(np.searchsorted(self._starts, number, "right")) - 1
        return f"record {number - self._starts[shard]} of {Path(self._shards[shard].filename).name}"

    def read(self, number: int, without: str = "") -> dict[str, Any]:
        """A record: text as str, images as bytes, tensors as arrays. The feature `without` is skipped."""
        content = self._source[number]
        if not content:
            raise ValueError("is not there")
        stored = self._parse(content).features.feature
        return {key: _READERS[kind.kind](stored, key, kind) for key, kind in self._features.items() if key != without}


def _bytes(stored: Mapping[str, Any], key: str) -> bytes:
    values = stored[key].bytes_list.value if key in stored else ()
    if len(values) != 1:
        raise ValueError(f"has {len(values) or 'no'} {key!r}, wanted one")
    return values[0]


def _text(stored: Mapping[str, Any], key: str, kind: Feature) -> str:
    return _bytes(stored, key).decode()


def _picture(stored: Mapping[str, Any], key: str, kind: Feature) -> bytes:
    return _bytes(stored, key)


def _array(stored: Mapping[str, Any], key: str, kind: Feature) -> Shaped[np.ndarray, "h w c"]:
    shape = tuple(stored[f"{key}/shape"].int64_list.value) if f"{key}/shape" in stored else ()
    if len(shape) != 3 or shape[2] != kind.channels or not all(0 < side <= LARGEST_SIDE for side in shape):
        raise ValueError(f"{key} has the shape {shape}, wanted (height, width, {kind.channels})")
    dtype = np.dtype(kind.dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    # Never decompresses more than one byte too many, however much there is.
    content = zlib.decompressobj().decompress(_bytes(stored, f"{key}/value"), size + 1)
    if len(content) != size:
        raise ValueError(f"{key} does not have the {size} bytes of its shape {shape}")
    return np.frombuffer(content, dtype).reshape(shape)


_READERS = {"Text": _text, "Image": _picture, "Tensor": _array}
