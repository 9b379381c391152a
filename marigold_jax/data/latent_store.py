"""Latents on disk: the VAE encodings of each frame of a prepared split, as stored and mirrored, computed once.

They are kept beside the dataset:

    DATA_DIR/rgbd/NAME/latents-SPLIT/fingerprint.json      what they were computed from, and how they are stored
    DATA_DIR/rgbd/NAME/latents-SPLIT/00000.array_record    consecutive frames, two records each: as stored, mirrored

A record holds the shape of the latents (three uint16: height, width, channels), the latents of the image and of the
target, and the mask of valid latents, one bit each. Until it is complete, the folder is named
`latents-SPLIT.incomplete`, and a shard in it `*.unfinished`, so the work can be interrupted and resumed.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from marigold_jax.data.prepared import PreparedSplit, dataset_folder
from marigold_jax.data.record_reader import WRITER_OPTIONS, shards_of, wrong
from marigold_jax.runtime import extras
from marigold_jax.runtime.files import printable, read_json, regular, write_json

FINGERPRINT = "fingerprint.json"
SUFFIX = ".array_record"
ADVICE = "delete the folder to compute the latents again"


def _to_bfloat16(values: Float32[np.ndarray, "..."]) -> bytes:
    """The upper half of each float32, rounded to nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> 16 & np.uint32(1))) >> 16).astype("<u2").tobytes()


def _from_bfloat16(content: bytes) -> Float32[np.ndarray, " n"]:
    return (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)


# How latents are stored: bytes per number, float32 to bytes, bytes to float32.
DTYPES: dict[str, tuple[int, Callable[[np.ndarray], bytes], Callable[[bytes], np.ndarray]]] = {
    "float32": (4, lambda values: values.astype("<f4").tobytes(), lambda content: np.frombuffer(content, "<f4")),
    "bfloat16": (2, _to_bfloat16, _from_bfloat16),
}


def to_record(latents: Float32[np.ndarray, "2 i j z"], mask: Bool[np.ndarray, "i j 1"], dtype: str) -> bytes:
    """Encodes the latents of the image and of the target, and their mask. `dtype` is a key of `DTYPES`."""
    shape = np.array(latents.shape[1:], "<u2").tobytes()
    return shape + DTYPES[dtype][1](np.ascontiguousarray(latents)) + np.packbits(mask).tobytes()


def from_record(record: bytes, dtype: str) -> dict[str, np.ndarray]:
    """Decodes a record to `latents` float32 (2, i, j, z), of the image and of the target, and `latent_mask` (i, j, 1).

    Raises ValueError if the length of the record does not match its shape.
    """
    width, _, to_float32 = DTYPES[dtype]
    i, j, z = (int(side) for side in np.frombuffer(record[:6], "<u2"))
    end = 6 + width * 2 * i * j * z
    if not i * j * z or len(record) != end + -(-i * j // 8):
        raise ValueError(f"{len(record)} bytes do not hold latents of {i} x {j} x {z} in {dtype}")
    bits: UInt8[np.ndarray, " n"] = np.frombuffer(record[end:], np.uint8)
    mask = np.unpackbits(bits, count=i * j).astype(bool).reshape(i, j, 1)
    return {"latents": to_float32(record[6:end]).reshape(2, i, j, z), "latent_mask": mask}


class LatentSplit:
    """Random access to the latents of a split; `len` counts frames. Pickling keeps only the path.

    A damaged folder or record raises ValueError, in one line that names it.
    """

    def __init__(self, path: str | Path):
        self.path = str(path)
        file = Path(path) / FINGERPRINT
        fingerprint = read_json(file)
        self._dtype = fingerprint.get("dtype")
        if not isinstance(self._dtype, str) or self._dtype not in DTYPES:
            raise wrong(file, "dtype", " or ".join(map(repr, DTYPES)), self._dtype)
        with extras.needed("train"):
            from array_record.python.array_record_data_source import ArrayRecordDataSource

        files = sorted(Path(path).glob(f"*{SUFFIX}"))
        try:
            self._records = ArrayRecordDataSource([str(regular(shard)) for shard in files])
        except Exception as error:  # array_record raises nearly anything on what is damaged
            raise ValueError(f"{path}: its files cannot be read ({_line(error)}); {ADVICE}") from None
        if [len(self._records) / 2] != [fingerprint.get("frames")]:
            raise ValueError(f"{path}: {len(self._records)} records are not two for each frame; {ADVICE}")

    def __reduce__(self):
        return LatentSplit, (self.path,)

    def __len__(self) -> int:
        return len(self._records) // 2

    def sample(self, index: int, flip: bool) -> dict[str, np.ndarray]:
        """The latents and the mask of a frame (see `from_record`), as stored or mirrored."""
        try:
            return from_record(self._records[2 * index + flip], self._dtype)
        except Exception as error:
            raise ValueError(f"{self.path}: record {2 * index + flip}: {_line(error)}; {ADVICE}") from None


def _line(error: Exception) -> str:
    return printable(" ".join(str(error).split())) or type(error).__name__


# -------------------------------------------------------------------------------------------------------------- writing


def folder_of(split: PreparedSplit) -> Path:
    """The folder of the latents of a prepared split, once they are complete."""
    *data_dir, name, split_name = Path(split.path).parts
    return dataset_folder(Path(*data_dir), name).with_name(f"latents-{split_name}")


def staging_of(folder: Path) -> Path:
    """The folder in which latents are written before they are complete."""
    return folder.with_name(f"{folder.name}.incomplete")


def begin(folder: Path, fingerprint: Mapping[str, Any]) -> None:
    """Creates the folder to write to, unless the latents exist already, completely or in part.

    Args:
        folder: from `folder_of`.
        fingerprint: everything that decides the latents, and `dtype`, a key of `DTYPES`.

    Raises:
        ValueError: the existing latents have another fingerprint.
    """
    for place in (folder, staging_of(folder)):
        file = place / FINGERPRINT
        if not file.is_file():
            continue
        found = read_json(file)
        if found != (wanted := json.loads(json.dumps(fingerprint))):
            keys = [key for key in sorted(wanted.keys() | found.keys()) if wanted.get(key) != found.get(key)]
            differences = "; ".join(f"{key} was {found.get(key)}, is {wanted.get(key)}" for key in keys)
            message = f"{place} holds other latents: {differences}. Delete it to compute them again"
            raise ValueError(printable(message))
        return
    write_json(staging_of(folder) / FINGERPRINT, fingerprint)


def shards(folder: Path, frames: int) -> list[tuple[Path, range]]:
    """The path at which each shard is written, and its frames."""
    staging = staging_of(folder)
    return [(staging / f"{number:05d}{SUFFIX}", shard) for number, shard in enumerate(shards_of(range(frames)))]


def write_shard(path: Path, records: Iterable[bytes]) -> None:
    """Writes the records of a shard under a temporary name, and renames it when it is complete."""
    with extras.needed("train"):
        from array_record.python.array_record_module import ArrayRecordWriter

    unfinished = path.with_suffix(".unfinished")
    writer = ArrayRecordWriter(str(unfinished), WRITER_OPTIONS)
    for record in records:
        writer.write(record)
    writer.close()
    os.replace(unfinished, path)


def publish(folder: Path, frames: int) -> None:
    """Renames the folder when all shards are complete. Raises FileNotFoundError if one is missing."""
    missing = [path for path, _ in shards(folder, frames) if not path.exists()]
    if missing:
        raise FileNotFoundError(f"{missing[0]} is missing: wanted a folder that all processes share")
    os.rename(staging_of(folder), folder)
