"""Writes a split shard by shard, so that it can be interrupted and resumed, and is never visible half-written.

Shards are written to a folder beside the dataset, each under a temporary name until it is complete. When all are
complete, the folder is renamed to the dataset; or its files are moved beside the existing splits, with the index
`dataset_info.json` last. `metadata.json` records what each split was made from, so that the same command can be
recognised.
"""

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marigold_jax.data.prepared import dataset_folder
from marigold_jax.data.raw_frame import Part
from marigold_jax.data.record_reader import INDEX, WRITER_OPTIONS, read_index, shards_of
from marigold_jax.data.rgbd.rgbd_dataset_builder import Builder, RgbdConfig, examples
from marigold_jax.runtime import extras
from marigold_jax.runtime.files import read_json, write, write_json

with extras.needed("prepare"):
    import tensorflow_datasets as tfds
    from absl import logging
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

PREPARED = "prepared"  # the key of metadata.json
PLAN = "plan.txt"


@dataclasses.dataclass(frozen=True)
class Shard:
    """A finished shard: how many records it holds, and the remarks for the report (see `examples`)."""

    records: int
    remarks: list[dict[str, Any]]


def open_builder(data_dir: str | Path, config: RgbdConfig) -> Builder:
    """The builder of the dataset `config.name` below `data_dir`, with the splits that exist already.

    Raises ValueError if the existing dataset is damaged, or was not made by this package.
    """
    folder = dataset_folder(data_dir, config.name)
    if folder.exists():
        read_index(folder)  # checks what TFDS would trust
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # TFDS warns of every configuration that is not listed in the builder's code
    try:
        return Builder(data_dir=str(data_dir), config=config, file_format="array_record")
    except OSError:
        raise
    except Exception as error:  # TFDS, protobuf and JSON raise nearly anything for a damaged dataset
        reason = " ".join(str(error).split()) or type(error).__name__
        folder = dataset_folder(data_dir, config.name)
        raise ValueError(f"{folder}: this dataset cannot be read: {reason}; delete it to make it again") from None
    finally:
        logging.set_verbosity(verbosity)


def begin(builder: Builder, split: str) -> list[tuple[Path, Sequence[Any]]]:
    """The path at which each shard of the split is written, and its frames.

    Shards that an earlier run finished are kept if that run had the same frames and flags.
    """
    config, staging = builder.builder_config, _staging(builder, split)
    shards = shards_of(config.frames[split])
    contents = (config.depth_format, config.depth_encoding, config.maps, shards, origin(config, split))
    fingerprint = hashlib.sha256(repr(contents).encode()).hexdigest()
    plan = staging / PLAN
    if not plan.exists() or plan.read_text() != fingerprint:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        write(plan, fingerprint.encode())
    return [(staging / f"{number:05d}.array_record", frames) for number, frames in enumerate(shards)]


def write_shard(path: Path, frames: Sequence[Any], config: RgbdConfig) -> Shard:
    """Writes one shard, unless it is finished already. Runs in a worker process."""
    finished = path.with_suffix(".json")
    if finished.exists():
        return Shard(**read_json(finished))
    features = open_builder(path.parent, config).info.features
    serializer = ExampleSerializer(features.get_serialized_info())
    unfinished = path.with_suffix(".unfinished")
    remarks: list[dict[str, Any]] = []
    records = 0
    try:
        writer = ArrayRecordWriter(str(unfinished), WRITER_OPTIONS)
        for _, example in examples(config.read, frames, remarks):
            message = serializer.get_tf_example(features.encode_example(example))
            writer.write(message.SerializeToString(deterministic=True))  # else the order of fields varies by process
            records += 1
        writer.close()
    except RuntimeError as error:  # raised by ArrayRecord, for instance when the disk is full
        unfinished.unlink(missing_ok=True)
        raise OSError(f"{path.parent}: {error}; free some space and run the same command again to continue") from None
    os.replace(unfinished, path)
    shard = Shard(records, remarks)
    write_json(finished, dataclasses.asdict(shard))
    return shard


def publish(builder: Builder, split: str, shards: list[Shard]) -> None:
    """Makes the finished shards of a split visible, as a new TFDS dataset or in an existing one.

    Args:
        builder: of the dataset, from `open_builder`.
        split: its name.
        shards: in order; at least one must hold a record, and empty ones are left out.
    """
    staging, folder = _staging(builder, split), Path(builder.data_dir)
    names = tfds.core.ShardedFileTemplate(
        data_dir=builder.data_path, dataset_name=builder.name, split=split, filetype_suffix="array_record"
    )
    full = [number for number, shard in enumerate(shards) if shard.records]
    size = 0
    for position, number in enumerate(full):
        path = staging / f"{number:05d}.array_record"
        name = names.sharded_filepath(shard_index=position, num_shards=len(full)).name
        if path.exists():  # otherwise an earlier, interrupted run has renamed it
            os.replace(path, staging / name)
        size += next(path.stat().st_size for path in (staging / name, folder / name) if path.exists())
    lengths = [shards[number].records for number in full]
    info = tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=names)
    builder.info.set_splits(tfds.core.splits.SplitDict([*builder.info.splits.values(), info]))
    metadata = builder.info.metadata
    metadata[PREPARED] = metadata.get(PREPARED, {}) | {split: origin(builder.builder_config, split)}
    builder.info.write_to_directory(staging)
    bookkeeping = [path for path in staging.iterdir() if path.stem.isdigit() or path.name == PLAN]
    if folder.exists():
        contents = set(staging.iterdir()) - set(bookkeeping)
        for path in sorted(contents, key=lambda path: path.name == INDEX):
            os.replace(path, folder / path.name)
        shutil.rmtree(staging)
    else:
        os.rename(staging, folder)
        for path in bookkeeping:
            (folder / path.name).unlink()


def origin(config: RgbdConfig, split: str) -> dict[str, Any]:
    """What a split is made from: the flags, the number of frames, and a checksum of their files' names and sizes.

    Folders may be moved without changing it. Files of equal name and size are taken to be equal.
    """
    digest = hashlib.sha256()
    for frame in config.frames[split]:
        files = [(os.path.basename(part.path), part.member, _size(part)) for part in getattr(frame, "parts", ())]
        digest.update(repr((frame.name, files)).encode())
    return {"flags": config.flags, "frames": len(config.frames[split]), "files": digest.hexdigest()[:16]}


def _size(part: Part) -> int | None:
    """The size in bytes, or None if there is no file."""
    try:
        return os.stat(part.path).st_size if part.size is None else part.size
    except (OSError, ValueError):
        return None


def origin_of(builder: Builder, split: str) -> dict[str, Any] | None:
    """The `origin` of an existing split; None if it was made by a version that did not record one."""
    kept = builder.info.metadata.get(PREPARED)
    found = kept.get(split) if isinstance(kept, dict) else None
    return found if isinstance(found, dict) and isinstance(found.get("flags"), dict) else None


def discard(builder: Builder, split: str) -> None:
    """Deletes the finished shards of an unpublished split, so that a later run reads every file again."""
    shutil.rmtree(_staging(builder, split))


def _staging(builder: Builder, split: str) -> Path:
    folder = Path(builder.data_dir)
    return folder.with_name(f"{folder.name}.incomplete-{split}")
